//! Content in a bucket of an S3-compatible server (`[storage.s3]`).
//!
//! The bucket keeps complete, verified objects; the cache directory is a first tier in front of it. What one upload
//! brought has a key of its own ([`key`]), which the object's row names: the row is the truth. Nothing here depends on
//! conditional writes, lifecycle rules or clocks that agree:
//!
//! - several servers answer `If-None-Match: *` with 200 and overwrite the object, others with 501;
//! - the age of a key is the server's own `Last-Modified` against the server's own `Date` ([`http`]).
//!
//! Each call has a deadline. Calls are made once: a fill asks another source next, an upload waits and comes again.

mod error;
mod http;
pub mod key;
mod probe;
mod unfinished;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::HttpClient;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{GetOptions, GetRange, MultipartId, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use url::Url;

pub use error::{Kind, S3Error};
pub use key::Upload;
pub use probe::Finding;
pub use unfinished::Unfinished;

use self::http::{Connector, Http};
use crate::clock::Instant;
use crate::config;
use crate::observe::Metrics;

/// How long a client's read waits for the head of an answer, and for each piece of the content. The upstreams are next,
/// and the client gives up after half a minute.
const READ: Duration = Duration::from_secs(4);
/// Fewest bytes that have to come while a client's read waits so long: a slower bucket is no better than none.
const LEAST: u64 = 128 << 10;
/// How long other requests may take, apart from the content that they send.
const PATIENCE: Duration = Duration::from_secs(20);
/// The slowest line, in bytes a second, over which content is sent.
const SLOWEST: u64 = 64 << 10;

/// A bucket; clones share it.
#[derive(Clone, Debug)]
pub struct Bucket {
    store: AmazonS3,
    http: Arc<Http>,
    name: Arc<str>,
    /// What the names of all keys begin with; empty, or with a slash at its end.
    prefix: Arc<str>,
    region: Arc<str>,
    /// The URL of the bucket.
    base: Url,
    /// Whether clients are sent here for blobs.
    pub redirects: bool,
}

/// Content on its way from the bucket.
pub struct Got {
    /// The size of the whole object.
    pub total: u64,
    /// Each piece has a deadline of its own.
    pub body: BoxStream<'static, Result<Bytes, S3Error>>,
}

/// An object in the bucket.
#[derive(Clone, Debug)]
pub struct Listed {
    /// `None`: the key is none of Larder's, or a probe's.
    pub upload: Option<Upload>,
    /// Whether a probe stored it.
    pub is_probe: bool,
    path: Path,
    /// In bytes.
    pub size: u64,
    /// By the server's own times; `None` if it does not state them.
    pub age: Option<Duration>,
}

/// An upload in parts.
#[derive(Debug)]
pub struct Multipart {
    path: Path,
    id: MultipartId,
    parts: Vec<PartId>,
}

impl Bucket {
    /// Prepares the access to a bucket. Nothing is sent yet.
    pub fn new(s3: &config::S3, metrics: Arc<Metrics>) -> Result<Self, S3Error> {
        let base = base(s3)?;
        let http = Arc::new(Http::new(&s3.access, &base, metrics)?);
        // With the variables of the environment: the default chain of AWS begins there.
        let builder = match &s3.keys {
            Some(keys) => {
                AmazonS3Builder::new().with_access_key_id(&keys.id).with_secret_access_key(keys.secret.reveal())
            }
            None => AmazonS3Builder::from_env(),
        };
        let is_virtual = s3.endpoint.is_none() && !s3.bucket.contains('.');
        let address = base.as_str().trim_end_matches('/');
        // Where the bucket is in the path, the library adds it to the endpoint.
        let endpoint = if is_virtual { address } else { address.trim_end_matches(s3.bucket.as_str()) };
        let store = builder
            .with_bucket_name(&s3.bucket)
            .with_region(&s3.region)
            .with_endpoint(endpoint)
            .with_virtual_hosted_style_request(is_virtual)
            .with_allow_http(base.scheme() == "http")
            .with_http_connector(Connector(http.clone()))
            .with_retry(RetryConfig { max_retries: 0, retry_timeout: PATIENCE, ..RetryConfig::default() })
            // GCS and others have no request that deletes several objects.
            .with_disable_bulk_delete(true)
            .build()
            .map_err(S3Error::of)?;
        Ok(Self {
            store,
            http,
            name: s3.bucket.as_str().into(),
            prefix: s3.prefix.as_str().into(),
            region: s3.region.as_str().into(),
            base,
            redirects: s3.redirect,
        })
    }

    /// Returns the name of the bucket.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what tells this bucket, with its prefix, from all others.
    pub fn place(&self) -> String {
        format!("{}{}", self.base, self.prefix)
    }

    /// Returns by how much this machine's clock is ahead of the server's or behind it, if the server has told its time.
    pub fn skew(&self) -> Option<Duration> {
        self.http.skew()
    }

    /// Opens what an upload brought, from the offset `from` to `until`, or to its end.
    pub async fn get(&self, upload: &Upload, from: u64, until: Option<u64>) -> Result<Got, S3Error> {
        let range = match (from, until) {
            (0, None) => None,
            (from, None) => Some(GetRange::Offset(from)),
            (from, Some(until)) => Some(GetRange::Bounded(from..until)),
        };
        let path = self.path(upload);
        let options = GetOptions { range, ..GetOptions::default() };
        let got = within(READ, self.store.get_opts(&path, options)).await?;
        let (total, http) = (got.meta.size, self.http.clone());
        let body = stream::try_unfold((got.into_stream(), Pace::default()), move |(mut body, mut pace)| {
            let http = http.clone();
            async move {
                let since = Instant::now();
                let Some(piece) = within(READ, body.try_next()).await? else {
                    return Ok(None);
                };
                http.received(piece.len() as u64);
                pace.note(piece.len() as u64, since.elapsed())?;
                Ok(Some((piece, (body, pace))))
            }
        });
        Ok(Got { total, body: body.boxed() })
    }

    /// Stores content in one piece.
    pub async fn put(&self, upload: &Upload, content: Vec<Bytes>) -> Result<(), S3Error> {
        self.put_at(&self.path(upload), content).await
    }

    async fn put_at(&self, path: &Path, content: Vec<Bytes>) -> Result<(), S3Error> {
        let bytes = length(&content);
        within(patience(bytes), self.store.put(path, PutPayload::from_iter(content))).await?;
        self.http.sent(bytes);
        Ok(())
    }

    /// Begins an upload in parts.
    pub async fn begin(&self, upload: &Upload) -> Result<Multipart, S3Error> {
        self.begin_at(self.path(upload)).await
    }

    async fn begin_at(&self, path: Path) -> Result<Multipart, S3Error> {
        let id = within(PATIENCE, self.store.create_multipart(&path)).await?;
        Ok(Multipart { path, id, parts: Vec::new() })
    }

    /// Sends the next part. If that fails, the part may be sent again.
    pub async fn send(&self, multipart: &mut Multipart, content: Vec<Bytes>) -> Result<(), S3Error> {
        let bytes = length(&content);
        let (payload, number) = (PutPayload::from_iter(content), multipart.parts.len());
        let sent = self.store.put_part(&multipart.path, &multipart.id, number, payload);
        multipart.parts.push(within(patience(bytes), sent).await?);
        self.http.sent(bytes);
        Ok(())
    }

    /// Makes the parts an object. An answer of 200 may still have an error in its body (AWS, API reference of
    /// CompleteMultipartUpload), and an error may come after the object was made: only [`Self::size`] tells.
    pub async fn complete(&self, multipart: &Multipart) -> Result<(), S3Error> {
        let Multipart { path, id, parts } = multipart;
        // Servers copy the parts together while the request waits, some for minutes.
        within(4 * PATIENCE, self.store.complete_multipart(path, id, parts.clone())).await.map(drop)
    }

    /// Gives an upload up: what came of it is deleted.
    pub async fn abort(&self, multipart: &Multipart) -> Result<(), S3Error> {
        within(PATIENCE, self.store.abort_multipart(&multipart.path, &multipart.id)).await
    }

    /// Returns the size of what an upload brought; `None` if it is not there.
    pub async fn size(&self, upload: &Upload) -> Result<Option<u64>, S3Error> {
        self.size_at(&self.path(upload)).await
    }

    async fn size_at(&self, path: &Path) -> Result<Option<u64>, S3Error> {
        match within(PATIENCE, self.store.head(path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) if error.kind() == Kind::Absent => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes what an upload brought, if it is there.
    pub async fn delete(&self, upload: &Upload) -> Result<(), S3Error> {
        self.delete_at(&self.path(upload)).await
    }

    /// Deletes an object that was listed.
    pub async fn delete_listed(&self, listed: &Listed) -> Result<(), S3Error> {
        self.delete_at(&listed.path).await
    }

    async fn delete_at(&self, path: &Path) -> Result<(), S3Error> {
        match within(PATIENCE, self.store.delete(path)).await {
            Err(error) if error.kind() != Kind::Absent => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists all content, page by page as it is taken.
    pub fn list(&self) -> BoxStream<'static, Result<Listed, S3Error>> {
        let folder = Path::from(format!("{}blobs", self.prefix));
        let (prefix, http) = (self.prefix.clone(), self.http.clone());
        stream::try_unfold(self.store.list(Some(&folder)), move |mut list| {
            let (prefix, http) = (prefix.clone(), http.clone());
            async move {
                let Some(meta) = within(PATIENCE, list.try_next()).await? else {
                    return Ok(None);
                };
                let upload = Upload::of_key(&prefix, meta.location.as_ref());
                let is_probe = meta.location.as_ref().starts_with(&probe_key(&prefix, ""));
                let age = http.age(meta.last_modified.into());
                Ok(Some((Listed { upload, is_probe, path: meta.location, size: meta.size, age }, list)))
            }
        })
        .boxed()
    }

    /// Returns a URL at which anybody may read what an upload brought, for as long as `life`.
    pub async fn link(&self, upload: &Upload, life: Duration) -> Result<Url, S3Error> {
        within(READ, self.store.signed_url(Method::GET, &self.path(upload), life)).await
    }

    fn path(&self, upload: &Upload) -> Path {
        // The characters of a key need no encoding.
        Path::from(upload.key(&self.prefix))
    }

    /// Returns the client by which requests are sent that the library does not know.
    fn client(&self) -> HttpClient {
        Connector(self.http.clone()).client()
    }
}

/// How fast content comes, as long as it is waited for.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes a piece for which was waited. Fails if too little came for the wait.
    fn note(&mut self, bytes: u64, waited: Duration) -> Result<(), S3Error> {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < READ {
            return Ok(());
        }
        match std::mem::take(self).bytes < LEAST {
            true => Err(S3Error::slow()),
            false => Ok(()),
        }
    }
}

/// Returns the URL of a bucket. That of AWS has the bucket in the host, as AWS wants it; a name with a dot would not fit
/// the certificate. Other servers have it in the path: their host is one.
fn base(s3: &config::S3) -> Result<Url, S3Error> {
    let config::S3 { bucket, region, .. } = s3;
    let base = match &s3.endpoint {
        Some(endpoint) => format!("{}/{bucket}/", endpoint.as_str().trim_end_matches('/')),
        None if bucket.contains('.') => format!("https://s3.{region}.amazonaws.com/{bucket}/"),
        None => format!("https://{bucket}.s3.{region}.amazonaws.com/"),
    };
    Url::parse(&base).map_err(|error| S3Error::unusable(error.to_string()))
}

/// Returns the key of a probe. It is listed among the blobs, so that what a probe leaves is swept.
fn probe_key(prefix: &str, number: &str) -> String {
    format!("{prefix}blobs/probe.{number}")
}

fn length(content: &[Bytes]) -> u64 {
    content.iter().map(|piece| piece.len() as u64).sum()
}

/// Returns how long a request with so many bytes may take.
fn patience(bytes: u64) -> Duration {
    PATIENCE + Duration::from_secs(bytes / SLOWEST)
}

/// Waits for a request, but not for ever.
async fn within<T>(patience: Duration, request: impl Future<Output = object_store::Result<T>>) -> Result<T, S3Error> {
    match tokio::time::timeout(patience, request).await {
        Ok(answer) => answer.map_err(S3Error::of),
        Err(_) => Err(S3Error::late(patience)),
    }
}

/// Returns a bucket of a test, at an address.
#[cfg(test)]
pub fn bucket_at(endpoint: &str) -> Bucket {
    let text = format!("[storage.s3]\nbucket = \"larder\"\nendpoint = \"{endpoint}\"");
    let s3 = crate::config::tests::parse(&text).expect("a configuration").s3.expect("a bucket");
    let keys = Some(config::S3Keys { id: "x".to_owned(), secret: config::Secret::new("y") });
    Bucket::new(&config::S3 { keys, ..s3 }, Arc::default()).expect("usable")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(keys: &str) -> config::S3 {
        let text = format!("[storage.s3]\nbucket = \"larder\"\n{keys}");
        crate::config::tests::parse(&text).expect("a configuration").s3.expect("a bucket")
    }

    #[test]
    fn the_bucket_is_in_the_host_at_aws_and_in_the_path_elsewhere() {
        for (keys, url) in [
            ("region = \"eu-west-1\"", "https://larder.s3.eu-west-1.amazonaws.com/"),
            ("endpoint = \"https://s3.example:9000\"", "https://s3.example:9000/larder/"),
            ("endpoint = \"http://127.0.0.1:1/\"", "http://127.0.0.1:1/larder/"),
        ] {
            assert_eq!(base(&s3(keys)).expect("a URL").as_str(), url);
        }
        let dotted = config::S3 { bucket: "a.b".to_owned(), ..s3("region = \"eu-west-1\"") };
        assert_eq!(base(&dotted).expect("a URL").as_str(), "https://s3.eu-west-1.amazonaws.com/a.b/");
    }

    #[test]
    fn a_bucket_that_sends_next_to_nothing_fails_and_a_slow_client_costs_it_nothing() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::default();
        assert!((0..3).all(|_| pace.note(10, second).is_ok()));
        assert_eq!(pace.note(10, second).map_err(|error| error.kind()), Err(Kind::Late));
        let mut pace = Pace::default();
        assert!((0..100).all(|_| pace.note(LEAST / 4, second).is_ok()));
        assert!(
            (0..100_000).all(|_| pace.note(1, Duration::ZERO).is_ok()),
            "time in which nobody waits does not count"
        );
    }

    #[tokio::test]
    async fn a_link_leads_to_the_key_of_the_upload_and_shows_no_secret() {
        let secret = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(secret.path(), "geheim").expect("written");
        let keys = format!("prefix = \"p\"\naccess_key_id = \"AKIA\"\nsecret_access_key_file = {:?}", secret.path());
        for (endpoint, begin) in [
            ("endpoint = \"https://s3.example:9000\"\n", "https://s3.example:9000/larder/p/blobs/sha256/07/0707"),
            ("", "https://larder.s3.us-east-1.amazonaws.com/p/blobs/sha256/07/0707"),
        ] {
            let bucket = Bucket::new(&s3(&format!("{endpoint}{keys}")), Arc::default()).expect("a bucket");
            let upload = Upload::new(crate::oci::Digest::Sha256([7; 32])).expect("random numbers");
            let link = bucket.link(&upload, Duration::from_secs(60)).await.expect("a link");
            assert!(link.as_str().starts_with(begin), "{link}");
            assert!(link.as_str().contains("X-Amz-Expires=60") && !link.as_str().contains("geheim"), "{link}");
            assert!(!format!("{bucket:?}").contains("geheim"), "{bucket:?}");
        }
    }
}
