//! The client of one upstream registry: the questions that can be asked of the registry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use http::header::{ACCEPT, LINK, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::answers::{
    BlobAnswer, BuildError, Lane, ListAnswer, ManifestAnswer, content_digest, content_length, content_range, is_page,
    length_behind_which_nothing_is, media_type as media_type_of,
};
use super::asked::Asked;
use super::auth::{Auth, Authorization, FetchToken};
use super::budget::Budget;
use super::errors;
use super::record::Summary;
use super::shared::Shared;
use super::storages::{Storage, Storages};
use super::token::{self, TokenAnswer, TokenRequest};
use super::transport::{Ask, Led, Reached, Transport};
use super::warning;
use super::who::Who;
use crate::clock::Instant;
use crate::config::{self, Credentials};
use crate::failure::{Failure, FailureKind};
use crate::observe::Metrics;
use crate::oci::media_type::{self, MediaType};
use crate::oci::{Digest, Name, Reference, challenge, list, manifest, signed};
use crate::places::{Party, Place, Places};

/// Largest manifest, index or list accepted, in bytes. containerd stops at about 4 MiB, so nothing real is larger.
const MAX_DOCUMENT: usize = 8 << 20;

/// How long a blob transfer waits for a connection of its own.
const PERMIT_PATIENCE: Duration = Duration::from_secs(20);

/// Most times that one request is sent, each with another login: none or an old one, a kept one that is refused, a new
/// one.
const MAX_LOGINS: usize = 3;

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The client of one upstream registry, and what is known about the registry.
pub struct Upstream {
    config: config::Upstream,
    pub(super) transport: Arc<Transport>,
    pub(super) auth: Auth,
    pub(super) storages: Arc<Storages>,
    pub(super) asked: Asked,
    /// Bounds the blob transfers under way, and shares them out by client.
    transfers: Places,
    /// Bounds those of them that are for a single client.
    asides: Arc<Semaphore>,
    /// Bounds those of them that are further transfers of one blob.
    parts: Arc<Semaphore>,
}

/// The right to one of an upstream's connections for blobs, held until it is dropped.
#[derive(Debug)]
pub struct Permit {
    _share: Option<OwnedSemaphorePermit>,
    _all: Place,
}

/// Transfers for single clients may use one in this many of an upstream's connections.
const ASIDE_SHARE: usize = 4;
/// Further transfers of large blobs may use one in this many connections: first transfers, those of small blobs among
/// them, have the rest.
const PART_SHARE: usize = 2;

/// The state of an upstream.
#[derive(Clone, Debug)]
pub struct Status {
    /// How long Larder sends it no requests, and why.
    pub resting: Option<(Duration, Failure)>,
    /// How long Larder sends it no requests that count as pulls, and why.
    pub pulls_resting: Option<(Duration, Failure)>,
    /// Its rate limit, as it last reported it.
    pub budget: Option<Budget>,
    /// The account that Larder uses: a user name, the program of a helper, or `anonymous`.
    pub account: String,
    /// How it did lately.
    pub lately: Summary,
}

impl Upstream {
    /// Makes the client of an upstream. `patience`: how long to wait for an answer to begin.
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
        let transport = Transport::new(config, account, patience, metrics, shared)?;
        let (label, origin) = (transport.label.clone(), &config.url.origin);
        Ok(Self {
            auth: Auth::new(label, origin, config.credentials.clone(), config.token_realms.clone())
                .keep_few_tokens(config.confined_to.is_some()),
            transfers: Places::of_one(config.max_connections),
            asides: Arc::new(Semaphore::new((config.max_connections / ASIDE_SHARE).max(1))),
            parts: Arc::new(Semaphore::new(config.max_connections / PART_SHARE)),
            asked: Asked::new(config.max_connections),
            transport,
            storages: shared.storages.clone(),
            config: config.clone(),
        })
    }

    /// Sends a client's request unchanged and returns the response unchanged.
    pub async fn pass(&self, request: reqwest::Request) -> Result<Response, Failure> {
        self.transport.pass(request).await
    }

    /// Returns the upstream's host and port, for logs and errors.
    pub fn label(&self) -> &str {
        &self.transport.label
    }

    /// Returns the upstream's configuration.
    pub fn config(&self) -> &config::Upstream {
        &self.config
    }

    /// Returns the upstream's current state.
    pub fn status(&self) -> Status {
        let now = Instant::now();
        let owned = |(left, why): (Duration, &Failure)| (left, why.clone());
        let health = self.transport.health();
        Status {
            resting: health.resting(now).map(owned),
            pulls_resting: health.pulls_resting(now).map(owned),
            budget: self.transport.budget(),
            account: self.transport.account().to_owned(),
            lately: self.transport.record().summary(),
        }
    }

    /// Returns what is left of the upstream's rate limit (0 to 1; 1 without a limit).
    pub fn left(&self, now: Instant) -> f64 {
        let is_limited = self.transport.health().pulls_resting(now).is_some();
        if is_limited { 0.0 } else { self.transport.budget().map_or(1.0, |budget| budget.left(now)) }
    }

    /// Returns whether the upstream may be asked for something that no client waits for.
    pub fn has_quota_to_spare(&self, now: Instant) -> bool {
        let is_free = {
            let health = self.transport.health();
            health.resting(now).is_none() && health.pulls_resting(now).is_none()
        };
        is_free && self.transport.budget().is_none_or(|budget| !budget.is_below_floor(now))
    }

    /// Returns the failure of an upstream for whose answer no time was left. It does not count against the upstream.
    pub(super) fn had_no_time(&self, after: Duration) -> Failure {
        errors::timeout(self.label(), "an answer as a whole", after)
    }

    /// Returns the failure of an upstream that did not complete its answer in time, and notes it in the upstream's
    /// health.
    pub(super) fn took_too_long(&self, after: Duration) -> Failure {
        let failure = errors::timeout(self.label(), "an answer as a whole", after);
        let now = Instant::now();
        let since = now.checked_sub(after).unwrap_or(now);
        self.transport.note_failure(&failure, Reached { was_reached: false, since }, now);
        failure
    }

    /// Checks whether the upstream accepts the credentials of `who`, as `docker login` wants to know.
    pub async fn greet(&self, who: &Who) -> Result<(), Failure> {
        let mut url = self.config.url.origin.clone();
        url.set_path("/v2/");
        let ask = Ask { method: Method::GET, url, who, is_pull: false, of: None, headers: HeaderMap::new() };
        let response = self.send(&ask, "").await?;
        self.transport.successful(response).await.map(drop)
    }

    /// Returns whether the upstream may send signed manifests, whose bytes do not have their digest. An upstream that
    /// only a client names may not.
    fn may_sign(&self) -> bool {
        self.config.confined_to.is_none()
    }

    /// Fetches a manifest and verifies it: against the digest asked for, else against the digest that the upstream
    /// states.
    pub async fn manifest(&self, who: &Who, name: &Name, reference: &Reference) -> Result<ManifestAnswer, Failure> {
        let _turn = self.turn().await?;
        let mut ask = self.ask(Method::GET, who, name, &format!("manifests/{reference}"), Some(media_type::ACCEPT));
        ask.is_pull = true;
        let response = self.send(&ask, &self.scope(name)).await?;
        let response = self.transport.successful(response).await?;
        let (stated, stated_type) = (content_digest(response.headers()), media_type_of(response.headers()));
        let is_page = is_page(response.headers());
        let warnings = self.transport.without_secrets(warning::of(response.headers()));
        let bytes = self.transport.read(response, MAX_DOCUMENT).await?;

        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => stated,
        };
        let came = || stated_type.as_ref().map_or("something", MediaType::as_str);
        // Bytes that have the digest asked for are right, whatever they look like. By a tag they must not be a page,
        // and where no digest is stated they must look like a manifest: any page of a web service may come with 200.
        let is_by_tag = matches!(reference, Reference::Tag(_));
        if (is_by_tag && is_page) || (expected.is_none() && !manifest::says_so(&bytes)) {
            return Err(self.transport.wrong(format!("sent {} that is no manifest for {name}:{reference}", came())));
        }
        let algorithm = expected.map_or(crate::oci::Algorithm::Sha256, |digest| digest.algorithm());
        let found = Digest::of(algorithm, &bytes);
        let digest = match expected {
            // Signed manifests of the first format are named by the digest of the part that was signed.
            Some(expected) if expected != found && self.may_sign() && signed::is_named(&bytes, &expected) => expected,
            Some(expected) if expected != found => {
                let what = if is_page { "a page" } else { "a manifest" };
                let message = format!("sent {what} for {name}:{reference} whose digest is {found}");
                return Err(self.transport.wrong(message));
            }
            _ => found,
        };
        self.gave_manifest(name, reference);
        if digest != found {
            let media_type = MediaType::new(media_type::SIGNED_SCHEMA1);
            return Ok(ManifestAnswer { digest, media_type, bytes, is_signed: true, warnings });
        }
        let named = stated_type.as_ref().filter(|named| !named.says_nothing()).cloned();
        let media_type = named.or_else(|| manifest::own_media_type(&bytes)).or(stated_type);
        let media_type = media_type.unwrap_or_else(|| manifest::media_type_of(&bytes));
        Ok(ManifestAnswer { digest, media_type, bytes, is_signed: false, warnings })
    }

    /// Requests a blob from offset `range.0` up to `range.1` or to its end. No byte of it is verified yet. `address`:
    /// the URL that a redirect led to for this blob and this client. If that URL refuses the request, the registry is
    /// asked again.
    pub async fn blob(
        &self,
        permit: Permit,
        who: &Who,
        name: &Name,
        digest: &Digest,
        range: (u64, Option<u64>),
        address: Option<Url>,
    ) -> Result<BlobAnswer, Failure> {
        let (from, until) = range;
        let mut ask = self.ask(Method::GET, who, name, &format!("blobs/{digest}"), None);
        let range = match until {
            Some(until) => HeaderValue::try_from(format!("bytes={from}-{}", until.saturating_sub(1))).ok(),
            None if from > 0 => HeaderValue::try_from(format!("bytes={from}-")).ok(),
            None => None,
        };
        ask.headers.extend(range.map(|range| (RANGE, range)));
        let registry = ask.url.clone();
        let known = match address {
            Some(address) => self.transport.at_address(&ask, address).await,
            None => None,
        };
        let response = match known {
            Some(response) => response,
            None => self.send(&ask, &self.scope(name)).await?,
        };
        let address = Some(response.url().clone()).filter(|address| *address != registry);
        let is_elsewhere = address.as_ref().is_some_and(|address| !self.transport.is_own(address));
        let storage = address.as_ref().filter(|_| is_elsewhere).map(|address| Storage::of(digest, address));
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE
            && let Some(total) = length_behind_which_nothing_is(response.headers())
        {
            // This is an answer, too: the blob has `total` bytes, and none from this offset on.
            return Ok(BlobAnswer { start: from, total: Some(total), body: stream::empty().boxed(), storage, address });
        }
        let response = self.transport.successful(response).await?;

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
        Ok(BlobAnswer { start, total, body: self.transport.stream(response, permit), storage, address })
    }

    /// Waits for one of the connections that blobs may use. If none becomes free, that is no failure of the upstream.
    /// `client`: the address of the client that the transfer is for.
    pub async fn permit(&self, lane: Lane, client: Option<IpAddr>) -> Result<Permit, Failure> {
        let party = Party { source: self.transport.label.clone(), client, is_named: true };
        let share = match lane {
            Lane::Aside => Some(&self.asides),
            Lane::Part => Some(&self.parts),
            Lane::Fill | Lane::Behind => None,
        };
        let permits = async {
            let share = match share {
                Some(share) => Some(share.clone().acquire_owned().await.ok()?),
                None => None,
            };
            let all = match lane {
                Lane::Part => self.transfers.take_now(party)?,
                Lane::Behind => self.transfers.take_spare(party)?,
                Lane::Fill | Lane::Aside => self.transfers.take(party, PERMIT_PATIENCE).await.ok()?,
            };
            Some((share, all))
        };
        let permits = match lane {
            Lane::Part | Lane::Behind => permits.now_or_never().flatten(),
            Lane::Fill | Lane::Aside => tokio::time::timeout(PERMIT_PATIENCE, permits).await.ok().flatten(),
        };
        permits.map(|(share, all)| Permit { _share: share, _all: all }).ok_or_else(|| {
            let message =
                format!("{}: all connections for blobs are in use (max_connections); try again soon", self.label());
            Failure::new(FailureKind::Busy, message)
        })
    }

    /// Returns whether a connection is to spare for a blob that no client waits for.
    pub fn has_spare_connection(&self) -> bool {
        self.transfers.has_spare()
    }

    /// Returns whether a transfer that nobody reads must give its connection to a transfer that waits for one. A
    /// transfer that is told so has to end.
    pub fn wants_connection(&self) -> bool {
        self.transfers.should_yield()
    }

    /// Fetches a page of the tag list; `query` is sent unchanged.
    pub async fn tags(&self, who: &Who, name: &Name, query: &str) -> Result<ListAnswer, Failure> {
        let mut ask = self.ask(Method::GET, who, name, "tags/list", None);
        ask.url.set_query(Some(query).filter(|query| !query.is_empty()));
        self.list(&ask, name, list::is_of_tags).await
    }

    /// Fetches a page of the referrers of `subject`; `query` is sent unchanged.
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
        let _turn = self.turn().await?;
        let response = self.send(ask, &self.scope(name)).await?;
        let response = self.transport.successful(response).await?;
        let text = |name: HeaderName| {
            let values: Vec<_> = response.headers().get_all(name).iter().map(|value| value.as_bytes()).collect();
            // Several header lines form one list (RFC 9110, section 5.3).
            (!values.is_empty()).then(|| String::from_utf8_lossy(&values.join(&b", "[..])).into_owned())
        };
        let (link, filters_applied) = (text(LINK), text(OCI_FILTERS_APPLIED));
        let media_type = media_type_of(response.headers());
        let bytes = self.transport.read(response, MAX_DOCUMENT).await?;
        if !is_one(&bytes) {
            return Err(self.transport.wrong("sent something else than the list asked for".to_owned()));
        }
        Ok(ListAnswer { bytes, media_type, link, filters_applied })
    }

    /// Makes a request for `page`, a path below the name. `accept`: the media types accepted.
    pub(super) fn ask<'a>(
        &self,
        method: Method,
        who: &'a Who,
        name: &Name,
        page: &str,
        accept: Option<&'static str>,
    ) -> Ask<'a> {
        let namespace = &self.config.url.namespace;
        let path =
            if namespace.is_empty() { format!("/v2/{name}/{page}") } else { format!("/v2/{namespace}/{name}/{page}") };
        let mut url = self.config.url.origin.clone();
        url.set_path(&path);
        let mut headers = HeaderMap::new();
        headers.extend(accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))));
        Ask { method, url, who, is_pull: false, of: None, headers }
    }

    /// Returns the token scope for pulling `name`, with the name as the upstream knows it.
    pub(super) fn scope(&self, name: &Name) -> String {
        let namespace = &self.config.url.namespace;
        let separator = if namespace.is_empty() { "" } else { "/" };
        format!("repository:{namespace}{separator}{name}:pull")
    }

    async fn send(&self, ask: &Ask<'_>, scope: &str) -> Result<Response, Failure> {
        self.send_led(ask, scope).await.0
    }

    /// Sends a request with the login that the upstream asks for. Also returns where a redirect led.
    ///
    /// A refused login is replaced once: by the login that the challenge asks for, or by a new start where the upstream
    /// refused a token or a helper's password that was kept from before. Registries end these early, and say so with
    /// 401 (nvcr.io, with another realm: nvidia-container-toolkit#1945), 400 (ECR Public: oras-go#1227) or 403 (ECR:
    /// rules_img#715).
    pub(super) async fn send_led(&self, ask: &Ask<'_>, scope: &str) -> (Result<Response, Failure>, Option<Led>) {
        let mut prepared = match self.transport.may_ask(ask) {
            Ok(()) => self.auth.prepare(ask.who, scope, self).await,
            Err(failure) => Err(failure),
        };
        for attempt in 0..MAX_LOGINS {
            let login = match prepared {
                Ok(login) => login,
                Err(failure) => return (Err(failure), None),
            };
            let header = login.as_ref().map(|login| &login.header);
            let (response, led) = self.transport.follow(ask, header, &self.storages).await;
            let refused = match response {
                // A refusal by a storage is not about the login at the registry.
                Ok(response) if led.is_none() && attempt + 1 < MAX_LOGINS => response,
                response => return (response, led),
            };
            let status = refused.status();
            if login.as_ref().is_some_and(Authorization::is_fresh) {
                // The login was fetched for this request, so the refusal is about the object asked for.
                return (Ok(refused), None);
            }
            let next = if status == StatusCode::UNAUTHORIZED {
                let challenges = challenges(refused.headers());
                self.auth.answer(ask.who, &challenges, scope, login.as_ref(), self).await
            } else if matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN)
                && let Some(login) = &login
                && self.auth.ended_early(ask.who, login).await
            {
                self.auth.prepare(ask.who, scope, self).await
            } else {
                return (Ok(refused), None);
            };
            prepared = match next {
                Ok(login) => Ok(login),
                // The upstream's own reason tells more than the failure that says that there is no further login.
                Err(failure) if failure.kind == FailureKind::Denied && failure.reason().is_none() => {
                    let told = self.transport.reason(refused).await;
                    Err(failure.told(told.as_deref()))
                }
                Err(failure) => Err(failure),
            };
        }
        (Err(self.transport.wrong("refuses each login".to_owned())), None)
    }
}

impl FetchToken for Upstream {
    async fn fetch_token(&self, request: &TokenRequest, who: &Who) -> Result<TokenAnswer, Failure> {
        token::fetch(&self.transport, request, who).await
    }
}

fn challenges(headers: &HeaderMap) -> Vec<challenge::Challenge> {
    let values = headers.get_all(http::header::WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}
