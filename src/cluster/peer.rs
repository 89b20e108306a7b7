//! A request to another replica.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_RANGE, IF_NONE_MATCH, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::{Request, Response};
use serde::Deserialize;
use url::Url;

use super::{Asked, CLIENT, Cluster, EPOCH, FAILURE, ONLY_STORED, REPORT, REPOSITORY, SCHEME};
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::index::Replica;
use crate::oci::Digest;

/// How long another replica may take for its answer: it may have to ask upstreams, each with deadlines of its own.
const HEAD: Duration = Duration::from_secs(60);
/// How long it may bring nothing of content. That its process is gone is known sooner.
const STALL: Duration = Duration::from_secs(60);
/// How long a replica may be silent before it is asked whether it is there.
const LOOK: Duration = Duration::from_secs(1);
/// How long it has for that answer.
const PROBE: Duration = Duration::from_secs(2);
/// Most bytes of a document that says why there is no content.
const MAX_DOCUMENT: usize = 64 * 1024;

/// Bytes of a blob from another replica.
pub struct Part {
    /// The offset of the first byte.
    pub start: u64,
    /// Length of the whole blob, where it is known.
    pub total: Option<u64>,
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
}

/// A manifest as another replica has it.
pub struct Copy {
    pub headers: HeaderMap,
    /// `None`: the copy that was named is still right.
    pub content: Option<Bytes>,
    /// Why the replica serves an old copy, if it does.
    pub stale: Option<Failure>,
}

/// The document of a refusal (OCI Distribution Specification, "Error Codes").
#[derive(Deserialize)]
struct Document {
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

impl Cluster {
    /// Asks a replica for the bytes of a blob from `from` to `until`, or to its end.
    pub(super) async fn blob(
        self: &Arc<Self>,
        replica: &Replica,
        asked: &Asked,
        digest: &Digest,
        (from, until): (u64, Option<u64>),
    ) -> Result<Part, Failure> {
        let range = match (from, until) {
            (0, None) => None,
            (from, None) => Some(format!("bytes={from}-")),
            (from, Some(until)) => Some(format!("bytes={from}-{}", until.saturating_sub(1))),
        };
        let headers = range.and_then(|range| Some((RANGE, HeaderValue::try_from(range).ok()?)));
        let response = self.ask(replica, asked, &format!("blobs/{digest}"), headers).await?;
        let (start, total) = match response.status() {
            StatusCode::OK => (0, response.content_length()),
            StatusCode::PARTIAL_CONTENT => content_range(response.headers()).ok_or_else(|| strange(replica))?,
            _ => return Err(strange(replica)),
        };
        let (cluster, from) = (self.clone(), replica.clone());
        let body = stream::unfold(Some(response), move |response| {
            let (cluster, from) = (cluster.clone(), from.clone());
            async move {
                let mut response = response?;
                match cluster.while_alive(&from, STALL, response.chunk()).await {
                    Ok(Ok(Some(bytes))) => {
                        cluster.metrics.replica_bytes_received.inc_by(bytes.len() as u64);
                        Some((Ok(bytes), Some(response)))
                    }
                    Ok(Ok(None)) => None,
                    Ok(Err(error)) => Some((Err(broke(&from, error)), None)),
                    Err(failure) => Some((Err(failure), None)),
                }
            }
        });
        Ok(Part { start, total, body: body.boxed() })
    }

    /// Asks a replica for a manifest of at most `limit` bytes. `known`: the copy that is here already.
    pub async fn manifest(
        self: &Arc<Self>,
        replica: &Replica,
        asked: &Asked,
        reference: &str,
        known: Option<&Digest>,
        limit: usize,
    ) -> Result<Copy, Failure> {
        let condition = known.map(|digest| (IF_NONE_MATCH, digest.etag()));
        let mut response = self.ask(replica, asked, &format!("manifests/{reference}"), condition).await?;
        let stale = failure_kind(response.headers()).map(|kind| {
            let why = response.headers().get(http::header::WARNING).and_then(|value| value.to_str().ok());
            Failure::new(kind, why.unwrap_or("another replica serves an old copy"))
        });
        let content = match response.status() {
            StatusCode::NOT_MODIFIED if known.is_some() => None,
            StatusCode::OK => Some(self.document(replica, &mut response, limit).await?),
            _ => return Err(strange(replica)),
        };
        Ok(Copy { headers: std::mem::take(response.headers_mut()), content, stale })
    }

    /// Asks a replica what it tells of itself, and whether it has an object. Returns at most `limit` bytes, by `deadline`.
    pub async fn report(
        self: &Arc<Self>,
        replica: &Replica,
        digest: Option<&Digest>,
        deadline: Instant,
        limit: usize,
    ) -> Result<Bytes, Failure> {
        let path = digest.map_or_else(|| REPORT.to_owned(), |digest| format!("{REPORT}/{digest}"));
        let request = self.request(replica, &path)?;
        let told = async {
            let mut response = self.client.execute(request).await.map_err(|error| broke(replica, error))?;
            match response.status() {
                StatusCode::OK => self.document(replica, &mut response, limit).await,
                _ => Err(strange(replica)),
            }
        };
        let told = tokio::time::timeout_at(deadline, told).await;
        told.unwrap_or_else(|_| Err(Failure::new(FailureKind::Timeout, "it does not answer")))
    }

    /// Sends a request to a replica. Returns a response that has content, or says that there is nothing new.
    async fn ask(
        self: &Arc<Self>,
        replica: &Replica,
        asked: &Asked,
        page: &str,
        header: Option<(HeaderName, HeaderValue)>,
    ) -> Result<Response, Failure> {
        let mut request = self.request(replica, &format!("/v2/{}/{page}", asked.name))?;
        let headers = request.headers_mut();
        let text = |text: String| HeaderValue::try_from(text).map_err(|_| strange(replica));
        headers.insert(REPOSITORY, text(asked.repository.clone())?);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(client) = asked.client {
            headers.insert(CLIENT, text(client.to_string())?);
        }
        if asked.only_stored {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(ONLY_STORED));
        }
        headers.extend(header);
        let sent = self.while_alive(replica, HEAD, self.client.execute(request)).await;
        let mut response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                if error.is_connect() {
                    self.is_gone(replica);
                }
                return Err(broke(replica, error));
            }
            Err(failure) => {
                self.is_gone(replica);
                return Err(failure);
            }
        };
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let Some(kind) = failure_kind(response.headers()) else {
            // Not a replica of this cluster, or not the one that was meant.
            self.is_gone(replica);
            return Err(strange(replica));
        };
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let document = self.document(replica, &mut response, MAX_DOCUMENT).await.unwrap_or_default();
        let reason = serde_json::from_slice::<Document>(&document).ok();
        let reason = reason.and_then(|document| Some(document.errors.into_iter().next()?.message));
        let message = reason.unwrap_or_else(|| format!("the replica {} answered with {status}", replica.address));
        Err(Failure::new(kind, message).with_retry_after(after.map(Duration::from_secs)))
    }

    /// Makes a request that its receiver lets in.
    fn request(&self, replica: &Replica, path: &str) -> Result<Request, Failure> {
        let url = Url::parse(&format!("{}{path}", replica.address)).map_err(|_| strange(replica))?;
        let mut request = Request::new(http::Method::GET, url);
        request.headers_mut().insert(EPOCH, HeaderValue::from(replica.epoch));
        if let Some(proof) = self.proof(replica, request.url().path()) {
            let value = HeaderValue::try_from(format!("{SCHEME} {proof}")).map_err(|_| strange(replica))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// Reads the rest of a response.
    async fn document(
        self: &Arc<Self>,
        replica: &Replica,
        response: &mut Response,
        limit: usize,
    ) -> Result<Bytes, Failure> {
        let read = async {
            let mut read = BytesMut::new();
            while let Some(part) = response.chunk().await.map_err(|error| broke(replica, error))? {
                if read.len() + part.len() > limit {
                    return Err(strange(replica));
                }
                read.extend_from_slice(&part);
            }
            Ok(read.freeze())
        };
        self.while_alive(replica, HEAD, read).await?
    }

    /// Waits until a replica answers nothing at all: its process may hang while its connections stay open.
    async fn until_silent(self: &Arc<Self>, replica: &Replica) {
        loop {
            tokio::time::sleep(LOOK).await;
            let (cluster, asked) = (self.clone(), replica.clone());
            let probe = || async move {
                let request = cluster.request(&asked, "/healthz")?;
                let sent = tokio::time::timeout(PROBE, cluster.client.execute(request)).await;
                let sent = sent.map_err(|_| Failure::new(FailureKind::Timeout, "it does not answer"))?;
                sent.map(drop).map_err(|error| broke(&asked, error))
            };
            // One question for all that wait.
            if self.probes.run(replica.clone(), probe).await.0.is_err() {
                return;
            }
        }
    }

    /// Waits for something of a replica, for so long at most, and not beyond the moment when the replica is gone.
    async fn while_alive<T>(
        self: &Arc<Self>,
        replica: &Replica,
        time: Duration,
        what: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let late = |what: &str| Failure::new(FailureKind::Timeout, format!("the replica {} {what}", replica.address));
        tokio::select! {
            // Whatever is there already needs no look at the rest.
            biased;
            what = tokio::time::timeout(time, what) => what.map_err(|_| late("brings nothing")),
            () = self.until_gone(replica) => Err(late("is gone")),
            () = self.until_silent(replica) => Err(late("does not answer")),
        }
    }
}

/// Returns the kind of failure that a replica names.
fn failure_kind(headers: &HeaderMap) -> Option<FailureKind> {
    FailureKind::named(headers.get(FAILURE)?.to_str().ok()?)
}

/// Returns the first byte and the total of `Content-Range: bytes 5-9/10` (RFC 9110, section 14.4).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

fn broke(replica: &Replica, error: reqwest::Error) -> Failure {
    let what = format!("the replica {} cannot be reached", replica.address);
    Failure::of(FailureKind::Unavailable, what, error.without_url())
}

fn strange(replica: &Replica) -> Failure {
    let message = format!(
        "what answers at {} is not the replica that is meant; look at cluster.advertise and the token",
        replica.address
    );
    Failure::new(FailureKind::Unavailable, message)
}
