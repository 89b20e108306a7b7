//! The client of one upstream registry.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::auth::{Auth, Authorization, FetchToken, TokenAnswer, TokenRequest};
use super::health::Health;
use super::{errors, tls};
use crate::config;
use crate::failure::{Failure, FailureKind};
use crate::oci::media_type::{self, MediaType};
use crate::oci::{Digest, Name, Reference, challenge, manifest};
use crate::telemetry::Metrics;

/// Largest manifest, index or list taken. containerd stops at about 4 MiB, so nothing real is larger.
const MAX_DOCUMENT: usize = 8 << 20;
const MAX_TOKEN_ANSWER: usize = 1 << 20;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// One upstream registry and what is known of it.
pub struct Upstream {
    /// Host and port, for logs and errors.
    label: Arc<str>,
    url: config::UpstreamUrl,
    http: reqwest::Client,
    auth: Auth,
    headers: Vec<(HeaderName, HeaderValue)>,
    max_redirect: u8,
    timeout: Duration,
    /// Bounds the blob transfers under way.
    transfers: Arc<Semaphore>,
    health: Mutex<Health>,
    metrics: Arc<Metrics>,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {reason}")]
pub struct BuildError {
    upstream: Arc<str>,
    reason: String,
}

/// What a HEAD says of a manifest.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// Absent where the upstream does not name it; the content must then be fetched to know it.
    pub digest: Option<Digest>,
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
}

/// A manifest, verified against its digest.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
}

/// A list of tags or referrers, as the upstream wrote it.
#[derive(Clone, Debug)]
pub struct ListAnswer {
    pub bytes: Bytes,
    pub media_type: Option<MediaType>,
    /// The `Link` header: where the list goes on.
    pub link: Option<String>,
    /// `OCI-Filters-Applied`
    pub filters_applied: Option<String>,
}

/// A blob on its way.
pub struct BlobAnswer {
    /// The offset of the first byte that comes: less than what was asked for when the upstream does
    /// not serve ranges.
    pub start: u64,
    /// Length of the whole blob, where the upstream said it.
    pub total: Option<u64>,
    /// Each wait for the next bytes has a deadline.
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
}

/// One request, before it is known who we must be for it.
struct Ask<'a> {
    method: Method,
    url: Url,
    name: &'a Name,
    accept: Option<&'static str>,
    range: Option<HeaderValue>,
}

impl Upstream {
    pub fn new(config: &config::Upstream, metrics: Arc<Metrics>) -> Result<Self, BuildError> {
        let label: Arc<str> = label(&config.url.origin).into();
        let fail = |reason: String| BuildError { upstream: label.clone(), reason };
        let tls = tls::client_config(&config.tls).map_err(|error| fail(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            // One stream a connection: a shared HTTP/2 window would slow large layers down.
            .http1_only()
            .connect_timeout(config.connect_timeout)
            .pool_max_idle_per_host(config.max_connections)
            .pool_idle_timeout(Duration::from_secs(60))
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| fail(error.to_string()))?;
        let login = match &config.credentials {
            Some(config::Credentials::Login(login)) => Some(login.clone()),
            _ => None,
        };
        let auth = Auth::new(label.clone(), &config.url.origin, login, config.token_realms.clone());
        Ok(Self {
            url: config.url.clone(),
            http,
            auth,
            headers: config.headers.clone(),
            max_redirect: config.max_redirect,
            timeout: config.timeout,
            transfers: Arc::new(Semaphore::new(config.max_connections)),
            health: Mutex::default(),
            metrics,
            label,
        })
    }

    /// Host and port, for logs and errors.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Asks what a manifest is without fetching it. Costs nothing of Docker Hub's quota. `None` when
    /// the upstream does not answer HEAD and the manifest must be fetched to know.
    pub async fn head_manifest(&self, name: &Name, reference: &Reference) -> Result<Option<ManifestHead>, Failure> {
        let ask = self.ask(Method::HEAD, name, &format!("manifests/{reference}"), Some(media_type::ACCEPT));
        let response = self.send(&ask).await?;
        if refuses_head(response.status()) {
            return Ok(None);
        }
        let response = self.successful(response)?;
        let headers = response.headers();
        Ok(Some(ManifestHead {
            digest: content_digest(headers),
            media_type: media_type(headers).filter(MediaType::may_be_manifest),
            size: content_length(headers),
        }))
    }

    /// Fetches a manifest and verifies it: against the digest asked for, else against the one that
    /// the upstream names.
    pub async fn manifest(&self, name: &Name, reference: &Reference) -> Result<ManifestAnswer, Failure> {
        let ask = self.ask(Method::GET, name, &format!("manifests/{reference}"), Some(media_type::ACCEPT));
        let response = self.send(&ask).await?;
        let response = self.successful(response)?;
        let stated = content_digest(response.headers());
        let media_type = media_type(response.headers());
        let bytes = self.read(response, MAX_DOCUMENT).await?;

        let plausible = media_type.as_ref().is_none_or(MediaType::may_be_manifest) && manifest::is_plausible(&bytes);
        if !plausible {
            let came = media_type.as_ref().map_or("something", MediaType::as_str);
            return Err(self.wrong(format!("sent {came} that is no manifest for {name}:{reference}")));
        }
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => stated,
        };
        let algorithm = expected.map_or(crate::oci::Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of(algorithm, &bytes);
        if expected.is_some_and(|expected| expected != digest) {
            return Err(self.wrong(format!("sent a manifest for {name}:{reference} whose digest is {digest}")));
        }
        let media_type = media_type.unwrap_or_else(|| manifest::media_type_of(&bytes));
        Ok(ManifestAnswer { digest, media_type, bytes })
    }

    /// The size of a blob, without fetching it; `None` when the upstream knows the blob and does not
    /// say how long it is. Where storage refuses HEAD, one byte is asked for instead.
    pub async fn head_blob(&self, name: &Name, digest: &Digest) -> Result<Option<u64>, Failure> {
        let mut ask = self.ask(Method::HEAD, name, &format!("blobs/{digest}"), None);
        let response = self.send(&ask).await?;
        let redirected = response.url().origin() != self.url.origin.origin();
        let refused = refuses_head(response.status()) || (redirected && response.status() == StatusCode::FORBIDDEN);
        if !refused {
            let response = self.successful(response)?;
            return Ok(content_length(response.headers()));
        }
        ask.method = Method::GET;
        ask.range = Some(HeaderValue::from_static("bytes=0-0"));
        let response = self.send(&ask).await?;
        let response = self.successful(response)?;
        Ok(match content_range(response.headers()) {
            Some((_, total)) => total,
            None => content_length(response.headers()),
        })
    }

    /// Opens a blob from offset `from` to `until` or its end. Nothing of it is verified yet.
    pub async fn blob(
        &self,
        name: &Name,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<BlobAnswer, Failure> {
        let permit = tokio::time::timeout(self.timeout, self.transfers.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(errors::timeout(&self.label, "a free connection (max_connections)", self.timeout));
        };
        let mut ask = self.ask(Method::GET, name, &format!("blobs/{digest}"), None);
        ask.range = match until {
            Some(until) => HeaderValue::try_from(format!("bytes={from}-{}", until.saturating_sub(1))).ok(),
            None if from > 0 => HeaderValue::try_from(format!("bytes={from}-")).ok(),
            None => None,
        };
        let response = self.send(&ask).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE
            && let Some(total) = length_behind_which_nothing_is(response.headers())
        {
            // An answer all the same: so long it is, and nothing comes from there on.
            return Ok(BlobAnswer { start: from, total: Some(total), body: stream::empty().boxed() });
        }
        let response = self.successful(response)?;

        let (start, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = content_range(response.headers());
                range.ok_or_else(|| self.wrong("sent a part without saying which".to_owned()))?
            }
            _ => (0, content_length(response.headers())),
        };
        if start > from {
            return Err(self.wrong(format!("sent bytes from {start} where {from} was asked for")));
        }
        Ok(BlobAnswer { start, total, body: self.body(response, permit) })
    }

    /// A page of the tag list; `query` is the part of the client's query that concerns the list.
    pub async fn tags(&self, name: &Name, query: &str) -> Result<ListAnswer, Failure> {
        let mut ask = self.ask(Method::GET, name, "tags/list", None);
        ask.url.set_query(Some(query).filter(|query| !query.is_empty()));
        self.list(&ask).await
    }

    /// A page of the referrers of `subject`.
    pub async fn referrers(&self, name: &Name, subject: &Digest, query: &str) -> Result<ListAnswer, Failure> {
        let mut ask = self.ask(Method::GET, name, &format!("referrers/{subject}"), Some(media_type::OCI_INDEX));
        ask.url.set_query(Some(query).filter(|query| !query.is_empty()));
        self.list(&ask).await
    }

    async fn list(&self, ask: &Ask<'_>) -> Result<ListAnswer, Failure> {
        let response = self.send(ask).await?;
        let response = self.successful(response)?;
        let text =
            |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (link, filters_applied) = (text(LINK), text(OCI_FILTERS_APPLIED));
        let media_type = media_type(response.headers());
        let bytes = self.read(response, MAX_DOCUMENT).await?;
        if !manifest::is_plausible(&bytes) {
            return Err(self.wrong("sent a list that is no JSON object".to_owned()));
        }
        Ok(ListAnswer { bytes, media_type, link, filters_applied })
    }

    fn ask<'a>(&self, method: Method, name: &'a Name, page: &str, accept: Option<&'static str>) -> Ask<'a> {
        let namespace = &self.url.namespace;
        let path =
            if namespace.is_empty() { format!("/v2/{name}/{page}") } else { format!("/v2/{namespace}/{name}/{page}") };
        let mut url = self.url.origin.clone();
        url.set_path(&path);
        Ask { method, url, name, accept, range: None }
    }

    /// The name as the upstream knows it, which is what tokens are asked for.
    fn scope(&self, name: &Name) -> String {
        let namespace = &self.url.namespace;
        let separator = if namespace.is_empty() { "" } else { "/" };
        format!("repository:{namespace}{separator}{name}:pull")
    }

    /// Sends a request as whom the upstream wants us to be; after a 401 once more.
    async fn send(&self, ask: &Ask<'_>) -> Result<Response, Failure> {
        self.health().may_ask(Instant::now(), self.timeout)?;
        let scope = self.scope(ask.name);
        let prepared = self.auth.prepare(&scope, self).await?;
        let response = self.follow(ask, prepared.as_ref()).await?;
        let is_own = response.url().origin() == self.url.origin.origin();
        if response.status() != StatusCode::UNAUTHORIZED || !is_own {
            return Ok(response);
        }
        let challenges = challenges(response.headers());
        drop(response);
        let authorization = self.auth.answer(&challenges, &scope, prepared.as_ref(), self).await?;
        self.follow(ask, Some(&authorization)).await
    }

    /// Sends a request and follows its redirects. What is meant for the upstream alone (credentials,
    /// configured headers) goes to no other origin.
    async fn follow(&self, ask: &Ask<'_>, authorization: Option<&Authorization>) -> Result<Response, Failure> {
        let mut url = ask.url.clone();
        for _ in 0..=self.max_redirect {
            let mut request = self.http.request(ask.method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = ask.accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(range) = &ask.range {
                request = request.header(RANGE, range);
            }
            let is_own = url.origin() == self.url.origin.origin();
            if is_own {
                for (name, value) in &self.headers {
                    request = request.header(name, value);
                }
                if let Some(authorization) = authorization {
                    request = request.header(AUTHORIZATION, &authorization.header);
                }
            }
            let response = self.execute(request, is_own).await?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            url = self.redirect_target(&url, response.headers())?;
            tracing::debug!(upstream = %self.label, to = url.host_str().unwrap_or_default(), "following a redirect");
        }
        Err(self.wrong(format!("redirected more than {} times (max_redirect)", self.max_redirect)))
    }

    fn redirect_target(&self, from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let target = location.and_then(|location| from.join(location).ok());
        let target = target.filter(|target| matches!(target.scheme(), "http" | "https"));
        target.ok_or_else(|| self.wrong("redirected without a usable Location".to_owned()))
    }

    /// Sends one request. `is_own`: its answer tells how the upstream does; a storage that it redirects
    /// to is not the upstream.
    async fn execute(&self, request: reqwest::RequestBuilder, is_own: bool) -> Result<Response, Failure> {
        // One that breaks a connection off may do better at once; one that cannot be reached, or hangs,
        // costs whoever asks next as much again.
        let (result, was_reached) = match tokio::time::timeout(self.timeout, request.send()).await {
            Ok(Ok(response)) => (Ok(response), true),
            Ok(Err(error)) => (Err(errors::network(&self.label, &error)), !error.is_connect() && !error.is_timeout()),
            Err(_) => (Err(errors::timeout(&self.label, "an answer", self.timeout)), false),
        };
        match &result {
            Ok(response) => self.metrics.asked_upstream(&self.label, response.status().as_str()),
            Err(failure) => self.metrics.asked_upstream(&self.label, failure.kind.as_str()),
        }
        if is_own {
            self.take_note(&result, was_reached);
        }
        result
    }

    fn take_note(&self, result: &Result<Response, Failure>, was_reached: bool) {
        let now = Instant::now();
        let failure = match result {
            Ok(response) if is_own_trouble(response.status()) => {
                errors::status(&self.label, response.status(), response.headers())
            }
            Ok(_) => return self.health().answered(now),
            Err(failure) => failure.clone(),
        };
        let mut health = self.health();
        let was_resting = health.resting(now).is_some();
        health.failed(&failure, was_reached, now, spread());
        if let (false, Some((left, why))) = (was_resting, health.resting(now)) {
            tracing::warn!(upstream = %self.label, kind = why.kind.as_str(), %why, "an upstream is left alone for {left:.1?}");
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn successful(&self, response: Response) -> Result<Response, Failure> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(errors::status(&self.label, response.status(), response.headers()))
    }

    fn wrong(&self, what: String) -> Failure {
        Failure::new(FailureKind::WrongContent, format!("{}: {what}", self.label))
    }

    /// Reads a whole body of at most `limit` bytes.
    async fn read(&self, mut response: Response, limit: usize) -> Result<Bytes, Failure> {
        let mut bytes = BytesMut::new();
        loop {
            let chunk = tokio::time::timeout(self.timeout, response.chunk()).await;
            let chunk = chunk.map_err(|_| errors::timeout(&self.label, "the rest of an answer", self.timeout))?;
            match chunk.map_err(|error| errors::network(&self.label, &error))? {
                Some(chunk) if bytes.len() + chunk.len() > limit => {
                    return Err(self.wrong(format!("sent a document of more than {limit} bytes")));
                }
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Ok(bytes.freeze()),
            }
        }
    }

    fn body(&self, response: Response, permit: OwnedSemaphorePermit) -> BoxStream<'static, Result<Bytes, Failure>> {
        let (label, timeout) = (self.label.clone(), self.timeout);
        stream::try_unfold((response, permit), move |(mut response, permit)| {
            let label = label.clone();
            async move {
                match tokio::time::timeout(timeout, response.chunk()).await {
                    Ok(Ok(Some(chunk))) => Ok(Some((chunk, (response, permit)))),
                    Ok(Ok(None)) => Ok(None),
                    Ok(Err(error)) => Err(errors::network(&label, &error)),
                    Err(_) => Err(errors::timeout(&label, "the rest of a blob", timeout)),
                }
            }
        })
        .boxed()
    }
}

impl FetchToken for Upstream {
    async fn fetch_token(&self, request: &TokenRequest) -> Result<TokenAnswer, Failure> {
        let mut url = request.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &request.service {
                query.append_pair("service", service);
            }
            for scope in request.scope.split(' ').filter(|scope| !scope.is_empty()) {
                query.append_pair("scope", scope);
            }
        }
        let mut http = self.http.get(url);
        if let Some(header) = self.auth.realm_header(request) {
            http = http.header(AUTHORIZATION, header);
        }
        // Who gives out its tokens is a part of it: without them it cannot be asked either.
        let response = self.execute(http, true).await?;
        let response = self.successful(response)?;
        let bytes = self.read(response, MAX_TOKEN_ANSWER).await?;
        serde_json::from_slice(&bytes).map_err(|_| self.wrong("its token endpoint did not answer with JSON".to_owned()))
    }
}

fn label(origin: &Url) -> String {
    let host = origin.host_str().unwrap_or_default();
    origin.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether a status is about the upstream and not about what was asked for.
fn is_own_trouble(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
}

/// A number between 0 and 1 that is another one each time.
#[allow(clippy::cast_precision_loss)]
fn spread() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) >> 32) as f64 / f64::from(u32::MAX)
}

fn refuses_head(status: StatusCode) -> bool {
    matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED | StatusCode::BAD_REQUEST)
}

fn challenges(headers: &HeaderMap) -> Vec<challenge::Challenge> {
    let values = headers.get_all(http::header::WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.trim().parse().ok()
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?.trim();
    (!text.is_empty()).then(|| MediaType::new(text))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The whole length of `Content-Range: bytes */LENGTH`, which comes with 416.
fn length_behind_which_nothing_is(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.trim().strip_prefix("bytes")?.trim().strip_prefix("*/")?.trim().parse().ok()
}

/// The first byte and the whole length of `Content-Range: bytes FIRST-LAST/LENGTH`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, length) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, length.trim().parse().ok()))
}
