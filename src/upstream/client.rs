//! The client of one upstream registry: the questions that can be asked of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LINK, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::sync::Semaphore;

use super::auth::{Auth, FetchToken, TokenRequest};
use super::budget::Budget;
use super::errors;
use super::fallback::Shared;
use super::storages::{Storage, Storages};
use super::token::{self, TokenAnswer};
use super::transport::{Ask, Led, Transport, is_storage_of};
use super::warning;
use super::who::Who;
use crate::config::{self, Credentials};
use crate::failure::{Failure, FailureKind};
use crate::oci::media_type::{self, MediaType};
use crate::oci::{Digest, Name, Reference, challenge, list, manifest};
use crate::telemetry::Metrics;

/// Largest manifest, index or list taken. containerd stops at about 4 MiB, so nothing real is larger.
const MAX_DOCUMENT: usize = 8 << 20;

/// How long a blob waits for a connection of its own.
const PERMIT_PATIENCE: Duration = Duration::from_secs(20);

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// One upstream registry and what is known of it.
pub struct Upstream {
    config: config::Upstream,
    transport: Transport,
    auth: Auth,
    storages: Arc<Storages>,
    /// Bounds the blob transfers under way.
    transfers: Arc<Semaphore>,
    /// Of these, those for a single client.
    asides: Arc<Semaphore>,
}

/// For whom a blob is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// For the cache and all clients that read along.
    Fill,
    /// For one client alone, which may take as long as it likes: only a share of the connections is for these.
    Aside,
}

/// The share of an upstream's connections that single clients may have.
const ASIDE_SHARE: usize = 4;

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {reason}")]
pub struct BuildError {
    pub(super) upstream: Arc<str>,
    pub(super) reason: String,
}

/// How an upstream does.
#[derive(Clone, Debug)]
pub struct Status {
    /// How long it is left alone, and why.
    pub resting: Option<(Duration, Failure)>,
    /// How long it is not asked for what counts as a pull, and why.
    pub pulls_resting: Option<(Duration, Failure)>,
    /// What it says of its rate limit.
    pub budget: Option<Budget>,
    /// As whom it is asked.
    pub account: String,
}

/// What a HEAD says of a manifest.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// Absent where the upstream does not name it; the content must then be fetched to know it.
    pub digest: Option<Digest>,
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
    /// For people who pull.
    pub warnings: Vec<HeaderValue>,
}

/// How an upstream showed that it gives an object to whom it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By what only the object has: its bytes, its digest, or its length where that cannot be guessed.
    Shown,
    /// By a redirect to the storage that sent this very object before, which cannot be asked now.
    Redirect,
}

/// What an upstream says of a blob that it has.
struct Told {
    size: Option<u64>,
    /// Whether the answer names the digest.
    is_named: bool,
}

/// A manifest, verified against its digest.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
    /// For people who pull.
    pub warnings: Vec<HeaderValue>,
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
    /// The storage that it comes from, where that is not the upstream itself.
    pub storage: Option<Storage>,
}

/// Blobs up to this size are looked at as a whole where no digest is named: a page that is as long is likely enough, and
/// whoever writes the path that it shows can make it so.
const GUESSABLE: u64 = 64 * 1024;

impl Upstream {
    /// `patience`: how long to wait for an answer to begin.
    pub fn new(
        config: &config::Upstream,
        patience: Duration,
        metrics: Arc<Metrics>,
        shared: &Shared,
    ) -> Result<Self, BuildError> {
        let account = match &config.credentials {
            None => "anonymous".to_owned(),
            Some(Credentials::Login(login)) => login.username.clone(),
            Some(Credentials::Helper(helper)) => helper.program.display().to_string(),
        };
        let transport = Transport::new(config, account, patience, metrics, &shared.ours)?;
        let (label, origin) = (transport.label.clone(), &config.url.origin);
        Ok(Self {
            auth: Auth::new(label, origin, config.credentials.clone(), config.token_realms.clone())
                .keep_few_tokens(config.confined_to.is_some()),
            transfers: Arc::new(Semaphore::new(config.max_connections)),
            asides: Arc::new(Semaphore::new((config.max_connections / ASIDE_SHARE).max(1))),
            transport,
            storages: shared.storages.clone(),
            config: config.clone(),
        })
    }

    /// Sends a request of somebody else's as it is and gives its answer as it is.
    pub async fn pass(&self, request: reqwest::Request) -> Result<Response, Failure> {
        self.transport.pass(request).await
    }

    /// Host and port, for logs and errors.
    pub fn label(&self) -> &str {
        &self.transport.label
    }

    pub fn config(&self) -> &config::Upstream {
        &self.config
    }

    pub fn status(&self) -> Status {
        let now = Instant::now();
        let owned = |(left, why): (Duration, &Failure)| (left, why.clone());
        let health = self.transport.health();
        Status {
            resting: health.resting(now).map(owned),
            pulls_resting: health.pulls_resting(now).map(owned),
            budget: self.transport.budget(),
            account: self.transport.account().to_owned(),
        }
    }

    /// What is left of its rate limit (0 to 1; 1 without a limit).
    pub fn left(&self, now: Instant) -> f64 {
        let is_limited = self.transport.health().pulls_resting(now).is_some();
        if is_limited { 0.0 } else { self.transport.budget().map_or(1.0, |budget| budget.left(now)) }
    }

    /// Whether it may be asked for what no client waits for.
    pub fn has_quota_to_spare(&self, now: Instant) -> bool {
        let is_free = {
            let health = self.transport.health();
            health.resting(now).is_none() && health.pulls_resting(now).is_none()
        };
        is_free && self.transport.budget().is_none_or(|budget| !budget.is_below_floor(now))
    }

    /// It answered, if at all, so slowly that it is not waited for any longer.
    pub(super) fn took_too_long(&self, after: Duration) -> Failure {
        let failure = errors::timeout(self.label(), "an answer as a whole", after);
        self.transport.note_failure(&failure, false, Instant::now());
        failure
    }

    /// Whether it takes `who` in: what `docker login` wants to know.
    pub async fn greet(&self, who: &Who) -> Result<(), Failure> {
        let mut url = self.config.url.origin.clone();
        url.set_path("/v2/");
        let ask = Ask { method: Method::GET, url, who, is_pull: false, of: None, headers: HeaderMap::new() };
        let response = self.send(&ask, "").await?;
        self.transport.successful(response).map(drop)
    }

    /// Asks what a manifest is without fetching it. Costs nothing of Docker Hub's quota. `None` when
    /// the upstream does not answer HEAD and the manifest must be fetched to know.
    pub async fn head_manifest(
        &self,
        who: &Who,
        name: &Name,
        reference: &Reference,
    ) -> Result<Option<ManifestHead>, Failure> {
        let ask = self.ask(Method::HEAD, who, name, &format!("manifests/{reference}"), Some(media_type::ACCEPT));
        let response = self.send(&ask, &self.scope(name)).await?;
        if refuses_head(response.status()) {
            return Ok(None);
        }
        let response = self.transport.successful(response)?;
        let headers = response.headers();
        Ok(Some(ManifestHead {
            digest: content_digest(headers),
            media_type: media_type(headers).filter(MediaType::may_be_manifest),
            size: content_length(headers),
            warnings: warning::of(headers),
        }))
    }

    /// Fetches a manifest and verifies it: against the digest asked for, else against the one that
    /// the upstream names.
    pub async fn manifest(&self, who: &Who, name: &Name, reference: &Reference) -> Result<ManifestAnswer, Failure> {
        let mut ask = self.ask(Method::GET, who, name, &format!("manifests/{reference}"), Some(media_type::ACCEPT));
        ask.is_pull = true;
        let response = self.send(&ask, &self.scope(name)).await?;
        let response = self.transport.successful(response)?;
        let stated = content_digest(response.headers());
        let media_type = media_type(response.headers());
        let warnings = warning::of(response.headers());
        let bytes = self.transport.read(response, MAX_DOCUMENT).await?;

        // With a digest that is right it is what was meant, whatever it looks like.
        let is_meant = matches!(reference, Reference::Digest(_)) || stated.is_some() || manifest::says_so(&bytes);
        let plausible = media_type.as_ref().is_none_or(MediaType::may_be_manifest) && manifest::is_plausible(&bytes);
        if !plausible || !is_meant {
            let came = media_type.as_ref().map_or("something", MediaType::as_str);
            return Err(self.transport.wrong(format!("sent {came} that is no manifest for {name}:{reference}")));
        }
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => stated,
        };
        let algorithm = expected.map_or(crate::oci::Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of(algorithm, &bytes);
        if expected.is_some_and(|expected| expected != digest) {
            return Err(self
                .transport
                .wrong(format!("sent a manifest for {name}:{reference} whose digest is {digest}")));
        }
        let media_type = media_type.unwrap_or_else(|| manifest::media_type_of(&bytes));
        Ok(ManifestAnswer { digest, media_type, bytes, warnings })
    }

    /// The size of a blob, without fetching it; `None` when the upstream knows the blob and does not
    /// say how long it is. Where storage refuses HEAD, one byte is asked for instead.
    pub async fn head_blob(&self, who: &Who, name: &Name, digest: &Digest) -> Result<Option<u64>, Failure> {
        self.told_of_blob(who, name, digest).await.map(|told| told.size).map_err(|(failure, _)| failure)
    }

    /// What is told of a blob, by HEAD and else by its first byte. A failure comes with where a redirect led.
    async fn told_of_blob(&self, who: &Who, name: &Name, digest: &Digest) -> Result<Told, (Failure, Option<Led>)> {
        let page = format!("blobs/{digest}");
        let by_head = Ask { of: Some(*digest), ..self.ask(Method::HEAD, who, name, &page, None) };
        let (response, led) = self.send_led(&by_head, &self.scope(name)).await;
        let response = response.map_err(|failure| (failure, led.clone()))?;
        // Storages sign URLs for GET, and refuse HEAD then.
        let is_refused = refuses_head(response.status()) || (led.is_some() && response.status().is_client_error());
        if !is_refused {
            let told = self.told(response, digest).map_err(|failure| (failure, led))?;
            if told.size.is_some() {
                return Ok(told);
            }
        }
        let mut by_range = Ask { method: Method::GET, ..by_head };
        by_range.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let (response, led) = self.send_led(&by_range, &self.scope(name)).await;
        response.and_then(|response| self.told(response, digest)).map_err(|failure| (failure, led))
    }

    fn told(&self, response: Response, digest: &Digest) -> Result<Told, Failure> {
        let nothing = length_behind_which_nothing_is(response.headers());
        if let (StatusCode::RANGE_NOT_SATISFIABLE, Some(size)) = (response.status(), nothing) {
            return Ok(Told { size: Some(size), is_named: false });
        }
        let response = self.transport.successful(response)?;
        self.refuse_pages(&response, digest)?;
        let headers = response.headers();
        let size = match content_range(headers) {
            Some((_, total)) => total,
            None => content_length(headers),
        };
        let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default();
        Ok(Told { size, is_named: content_digest(headers) == Some(*digest) || etag.contains(digest.hex().as_str()) })
    }

    /// A page for people, such as one to log in, is no answer about a blob.
    fn refuse_pages(&self, response: &Response, digest: &Digest) -> Result<(), Failure> {
        let is_page = media_type(response.headers()).is_some_and(|media_type| {
            ["text/html", "application/xhtml+xml"].iter().any(|page| media_type.as_str().starts_with(page))
        });
        let is_other = content_digest(response.headers()).is_some_and(|stated| stated != *digest);
        if is_page || is_other {
            return Err(self.transport.wrong(format!("answered with something else than {digest}")));
        }
        Ok(())
    }

    /// Has the upstream show that it has a blob which is known to have `size` bytes: by its length there where it
    /// is, and by the blob itself where that says too little. An answer alone is no proof, nor is a redirect: login pages
    /// have both. While the storage is down, the redirect counts that led to this very blob before.
    pub async fn proves_blob(&self, who: &Who, name: &Name, digest: &Digest, size: u64) -> Result<Proof, Failure> {
        let told = match self.told_of_blob(who, name, digest).await {
            Ok(told) => told,
            Err((failure, led)) => {
                let is_down = matches!(failure.kind, FailureKind::Unavailable | FailureKind::Timeout);
                let counts = is_down && led.is_some_and(|led| self.knows_storage(digest, &led));
                return if counts { Ok(Proof::Redirect) } else { Err(failure) };
            }
        };
        match told.size {
            Some(told) if told != size => Err(self
                .transport
                .wrong(format!("says that {digest} has {told} bytes; what has that digest has {size}"))),
            Some(_) if told.is_named || size > GUESSABLE => Ok(Proof::Shown),
            _ => self.sends_blob(who, name, digest, size).await.map(|()| Proof::Shown),
        }
    }

    fn knows_storage(&self, digest: &Digest, led: &Led) -> bool {
        let is_redirect = led.status == StatusCode::TEMPORARY_REDIRECT && is_storage_of(digest, &led.url);
        is_redirect && self.storages.know(Storage::of(digest, &led.url))
    }

    /// Has the upstream send a blob, to be looked at and thrown away.
    pub async fn sends_blob(&self, who: &Who, name: &Name, digest: &Digest, size: u64) -> Result<(), Failure> {
        let mut body = self.blob(Lane::Fill, who, name, digest, 0, None).await?.body;
        let (mut hasher, mut count) = (digest.algorithm().hasher(), 0);
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            count += bytes.len() as u64;
            if count > size {
                break;
            }
            hasher.update(&bytes);
        }
        let is_it = count == size && hasher.finish() == *digest;
        is_it.then_some(()).ok_or_else(|| self.transport.wrong(format!("sent something else as {digest}")))
    }

    /// Opens a blob from offset `from` to `until` or its end. Nothing of it is verified yet.
    pub async fn blob(
        &self,
        lane: Lane,
        who: &Who,
        name: &Name,
        digest: &Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<BlobAnswer, Failure> {
        let permit = self.permit(lane).await?;
        let mut ask = self.ask(Method::GET, who, name, &format!("blobs/{digest}"), None);
        let range = match until {
            Some(until) => HeaderValue::try_from(format!("bytes={from}-{}", until.saturating_sub(1))).ok(),
            None if from > 0 => HeaderValue::try_from(format!("bytes={from}-")).ok(),
            None => None,
        };
        ask.headers.extend(range.map(|range| (RANGE, range)));
        let (response, led) = self.send_led(&ask, &self.scope(name)).await;
        let response = response?;
        let storage = led.map(|led| Storage::of(digest, &led.url));
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE
            && let Some(total) = length_behind_which_nothing_is(response.headers())
        {
            // An answer all the same: so long it is, and nothing comes from there on.
            return Ok(BlobAnswer { start: from, total: Some(total), body: stream::empty().boxed(), storage });
        }
        let response = self.transport.successful(response)?;

        let (start, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = content_range(response.headers());
                range.ok_or_else(|| self.transport.wrong("sent a part without saying which".to_owned()))?
            }
            _ => (0, content_length(response.headers())),
        };
        if start > from {
            return Err(self.transport.wrong(format!("sent bytes from {start} where {from} was asked for")));
        }
        Ok(BlobAnswer { start, total, body: self.transport.stream(response, permit), storage })
    }

    /// Waits for one of the connections that blobs may use. That none is free is no failure of the upstream's.
    async fn permit(&self, lane: Lane) -> Result<impl Send + 'static, Failure> {
        let permits = async {
            let aside = match lane {
                Lane::Aside => Some(self.asides.clone().acquire_owned().await.ok()?),
                Lane::Fill => None,
            };
            Some((aside, self.transfers.clone().acquire_owned().await.ok()?))
        };
        let patience = self.config.timeout.min(PERMIT_PATIENCE);
        let permits = tokio::time::timeout(patience, permits).await.ok().flatten();
        permits.ok_or_else(|| {
            let message =
                format!("{}: all connections for blobs are in use (max_connections); try again soon", self.label());
            Failure::new(FailureKind::Busy, message)
        })
    }

    /// A page of the tag list; `query` is the part of the client's query that concerns the list.
    pub async fn tags(&self, who: &Who, name: &Name, query: &str) -> Result<ListAnswer, Failure> {
        let mut ask = self.ask(Method::GET, who, name, "tags/list", None);
        ask.url.set_query(Some(query).filter(|query| !query.is_empty()));
        self.list(&ask, name, list::is_of_tags).await
    }

    /// A page of the referrers of `subject`.
    pub async fn referrers(
        &self,
        who: &Who,
        name: &Name,
        subject: &Digest,
        query: &str,
    ) -> Result<ListAnswer, Failure> {
        let mut ask = self.ask(Method::GET, who, name, &format!("referrers/{subject}"), Some(media_type::OCI_INDEX));
        ask.url.set_query(Some(query).filter(|query| !query.is_empty()));
        self.list(&ask, name, list::is_of_referrers).await
    }

    async fn list(&self, ask: &Ask<'_>, name: &Name, is_one: fn(&[u8]) -> bool) -> Result<ListAnswer, Failure> {
        let response = self.send(ask, &self.scope(name)).await?;
        let response = self.transport.successful(response)?;
        let text =
            |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (link, filters_applied) = (text(LINK), text(OCI_FILTERS_APPLIED));
        let media_type = media_type(response.headers());
        let bytes = self.transport.read(response, MAX_DOCUMENT).await?;
        if !is_one(&bytes) {
            return Err(self.transport.wrong("sent something else than the list asked for".to_owned()));
        }
        Ok(ListAnswer { bytes, media_type, link, filters_applied })
    }

    fn ask<'a>(&self, method: Method, who: &'a Who, name: &Name, page: &str, accept: Option<&'static str>) -> Ask<'a> {
        let namespace = &self.config.url.namespace;
        let path =
            if namespace.is_empty() { format!("/v2/{name}/{page}") } else { format!("/v2/{namespace}/{name}/{page}") };
        let mut url = self.config.url.origin.clone();
        url.set_path(&path);
        let mut headers = HeaderMap::new();
        headers.extend(accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))));
        Ask { method, url, who, is_pull: false, of: None, headers }
    }

    /// The name as the upstream knows it, which is what tokens are asked for.
    fn scope(&self, name: &Name) -> String {
        let namespace = &self.config.url.namespace;
        let separator = if namespace.is_empty() { "" } else { "/" };
        format!("repository:{namespace}{separator}{name}:pull")
    }

    async fn send(&self, ask: &Ask<'_>, scope: &str) -> Result<Response, Failure> {
        self.send_led(ask, scope).await.0
    }

    /// Sends a request as whom the upstream wants us to be; after a 401 once more. Tells where a redirect led.
    async fn send_led(&self, ask: &Ask<'_>, scope: &str) -> (Result<Response, Failure>, Option<Led>) {
        let prepared = match self.transport.may_ask(ask) {
            Ok(()) => self.auth.prepare(ask.who, scope, self).await,
            Err(failure) => Err(failure),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return (Err(failure), None),
        };
        let header = prepared.as_ref().map(|prepared| &prepared.header);
        let storages = &self.storages;
        let (response, led) = self.transport.follow(ask, header, storages).await;
        let refused = match response {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED && led.is_none() => response,
            response => return (response, led),
        };
        let challenges = challenges(refused.headers());
        drop(refused);
        match self.auth.answer(ask.who, &challenges, scope, prepared.as_ref(), self).await {
            Ok(authorization) => self.transport.follow(ask, Some(&authorization.header), storages).await,
            Err(failure) => (Err(failure), None),
        }
    }
}

impl FetchToken for Upstream {
    async fn fetch_token(&self, request: &TokenRequest, who: &Who) -> Result<TokenAnswer, Failure> {
        token::fetch(&self.transport, request, who).await
    }
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
    MediaType::of_others(headers.get(CONTENT_TYPE)?.to_str().ok()?.trim())
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
