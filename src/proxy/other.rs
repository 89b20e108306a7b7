//! `cache.patterns`: content of servers that are no registries, kept by the rules for shared caches (RFC 9111).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, ACCEPT_RANGES, AGE, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, COOKIE,
    ETAG, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_cache_semantics::{BeforeRequest, CachePolicy};
use url::Url;

use super::copies::{
    Copy, CopyRequest, Head, Opened, digest_of, directives, essence, has_strong_etag, is_storable, lower_directives,
    sane,
};
use super::door::Proxy;
use super::headers;
use super::refused::Refused;
use super::relay;
use super::rules::ProxyRules;
use super::secrets::Secrets;
use super::tell::tell;
use crate::access::Refusal;
use crate::auth::{counted_client, is_secure};
use crate::body::{self, Body};
use crate::cache::{Aside, Content, FillReader, Party};
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::index::{Timestamp, UrlEntry};
use crate::observe::Observation;
use crate::observe::metrics::Kind;
use crate::observe::reason::{Hit, Miss};
use crate::oci::range::RangeHeader;
use crate::oci::{Algorithm, Digest};
use crate::registry::respond::{self, About, CacheState};
use crate::upstream::{PassError, Server};

/// Headers by which a client states what it has, or asks for a part. The whole is stored, whatever they say.
const CONDITIONS: [HeaderName; 6] = [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
/// Headers on which an answer most likely depends: requests that differ in these do not wait for each other.
const SELECTING: [HeaderName; 5] = [AUTHORIZATION, COOKIE, ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE];

/// A copy to answer with.
struct FoundCopy {
    /// The headers of the answer.
    headers: HeaderMap,
    content: Content,
    /// A digest whose text does not occur in the content.
    boundary: Digest,
    state: CacheState,
}

/// A stored answer that fits a request.
struct StoredCopy {
    entry: UrlEntry,
    head: Head,
    content: Content,
}

impl StoredCopy {
    fn found(self, headers: HeaderMap, state: CacheState) -> FoundCopy {
        FoundCopy { headers, content: self.content, boundary: self.entry.digest, state }
    }
}

impl Proxy {
    /// Answers from the cache and through it. `None`: the server itself is to answer. `secrets`: the configuration's
    /// headers that go with the request.
    pub(super) async fn other(
        self: &Arc<Self>,
        rules: &Arc<ProxyRules>,
        request: &Parts,
        server: &Server,
        url: &Url,
        secrets: &Secrets,
        observation: &mut Observation,
    ) -> Result<Option<Response<Body>>, Refused> {
        let is_read = request.method == Method::GET || request.method == Method::HEAD;
        if !is_read || super::secrets::has_body(request) || headers::upgrade(&request.headers).is_some() {
            return Ok(None);
        }
        observation.found(self.metrics.other_hosts.clone(), Kind::Other, url[..url::Position::AfterPath].to_owned());
        let (asked, further) = asked(rules, request, server, url, secrets);
        // An answer to the configuration's headers is only for clients that get these headers. Further headers that a
        // client sends make an answer of its own.
        let key = key_of(url, !secrets.is_empty(), &further);
        let whole = asked_for_whole(&asked)?;
        let now = clock::wall();

        let stored = self.stored_answer(&key, url, &whole, now).await;
        let stored = match stored {
            Some((stored, true)) => {
                let state = CacheState::Hit { since: stored.entry.stored_at.to_system_time(), why: Hit::FreshCopy };
                let headers = stored.head.headers(now);
                return self.answer_with(request, url, stored.found(headers, state), observation).await.map(Some);
            }
            stored => stored.map(|(stored, _)| stored),
        };
        if let Some((copy, fill)) = self.copies.running(&key, &self.cache)
            && copy.fits(&whole)
            && copy.head.is_fresh(&whole, now)
        {
            let found = coming(&copy, fill, now, true).await;
            return self.answer_with(request, url, found, observation).await.map(Some);
        }
        if directives(&request.headers).any(|directive| directive == "only-if-cached") {
            return Err(Refused::NotCached);
        }
        // If nothing is stored, a request for a part or a conditional request is forwarded.
        let is_partial = CONDITIONS.iter().any(|name| request.headers.contains_key(name));
        if stored.is_none() && (is_partial || request.method == Method::HEAD) {
            return Ok(None);
        }
        let opened = self.open(key, &asked, &whole, stored.as_ref()).await;
        self.answer_opened(opened, stored, (request, url, &whole, now), observation).await
    }

    /// Answers with the result of asking the server.
    async fn answer_opened(
        self: &Arc<Self>,
        (opened, is_first): (Opened, bool),
        stored: Option<StoredCopy>,
        (request, url, whole, now): (&Parts, &Url, &Request<()>, SystemTime),
        observation: &mut Observation,
    ) -> Result<Option<Response<Body>>, Refused> {
        let is_partial = CONDITIONS.iter().any(|name| request.headers.contains_key(name));
        match (opened, stored) {
            (Opened::Shared(copy, fill), _) => {
                if !(is_first || copy.fits(whole)) {
                    return Ok(None);
                }
                let found = coming(&copy, fill, now, !is_first).await;
                self.answer_with(request, url, found, observation).await.map(Some)
            }
            (Opened::Renewed(head, variant), Some(stored)) if variant == stored.entry.variant => {
                let found = stored.found(head.headers(now), CacheState::Confirmed { at: now });
                self.answer_with(request, url, found, observation).await.map(Some)
            }
            (Opened::Failed(PassError::Failure(why)), Some(stored)) if may_be_stale(&stored.head) => {
                let state = CacheState::Stale { since: stored.entry.stored_at.to_system_time(), why };
                let headers = stored.head.headers(now);
                self.answer_with(request, url, stored.found(headers, state), observation).await.map(Some)
            }
            (Opened::Failed(error), _) => Err(error.into()),
            // The answer may be for this one client only.
            (Opened::Own(response), _) if is_first => {
                let own = response.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok(own.filter(|_| request.method == Method::GET && !is_partial))
            }
            (Opened::Own(_) | Opened::Renewed(..), _) => Ok(None),
        }
    }

    /// Returns the stored answer that fits a request, and whether it is fresh.
    async fn stored_answer(
        &self,
        key: &Digest,
        url: &Url,
        request: &Request<()>,
        now: SystemTime,
    ) -> Option<(StoredCopy, bool)> {
        // An index that cannot be read knows nothing; the server does.
        let entries = self.cache.urls(key).await.unwrap_or_default();
        for entry in entries.iter() {
            let Some(head) = Head::read(&entry.head) else {
                continue;
            };
            if self.objects.written.was_url_written(url.as_str(), entry.stored_at.to_system_time()) {
                self.cache.drop_url(*key, entry.variant).await;
                continue;
            }
            let is_fresh = match head.policy.before_request(request, now) {
                _ if head.variant_of(request) != entry.variant => continue,
                // After the clock was set back, nobody knows how old it is.
                BeforeRequest::Fresh(_) => head.is_fresh(request, now) && !entry.stored_at.is_to_come(),
                BeforeRequest::Stale { matches: true, .. } => false,
                BeforeRequest::Stale { .. } => continue,
            };
            match self.cache.recalled(&entry.digest).await {
                Ok(Some(content)) => return Some((StoredCopy { entry: entry.clone(), head, content }, is_fresh)),
                Ok(None) => self.cache.drop_url(*key, entry.variant).await,
                Err(failure) => tracing::debug!(%failure, "a stored answer cannot be read"),
            }
        }
        None
    }

    /// Asks the server, once for all requests that want the same at the same time. The second value tells whether this
    /// call asked.
    async fn open(
        self: &Arc<Self>,
        key: Digest,
        asked: &CopyRequest,
        whole: &Request<()>,
        stored: Option<&StoredCopy>,
    ) -> (Opened, bool) {
        let selecting: Vec<_> = SELECTING
            .iter()
            .map(|name| format!("{:?}", asked.headers.get_all(name).iter().collect::<Vec<_>>()))
            .collect();
        let selecting = digest_of(selecting.join("\n").as_bytes());
        let (proxy, asked, whole) = (self.clone(), asked.clone(), whole.clone());
        let stored = stored.map(|stored| (stored.entry.clone(), stored.head.clone()));
        let open = || async move { Ok(proxy.ask_server(key, asked, whole, stored).await) };
        let (opened, is_first) = self.copies.openings.run((key, selecting), open).await;
        (opened.unwrap_or_else(|failure| Opened::Failed(failure.into())), is_first)
    }

    async fn ask_server(
        self: &Arc<Self>,
        key: Digest,
        asked: CopyRequest,
        whole: Request<()>,
        stored: Option<(UrlEntry, Head)>,
    ) -> Opened {
        let mut asked = asked;
        asked.headers = whole.headers().clone();
        match self.place_to_forward(asked.party.clone()).await {
            Ok(held) => asked.held = Some(held),
            Err(failure) => return Opened::Failed(failure.into()),
        }
        let comparison = stored.as_ref().map(|(_, head)| head.comparison()).unwrap_or_default();
        let response = match asked.send(&comparison).await {
            Ok(response) if response.status().is_server_error() && stored.is_some() => {
                let message = format!("{}: answered {}", asked.server, response.status());
                return Opened::Failed(Failure::new(FailureKind::Unavailable, message).into());
            }
            Ok(response) => response,
            Err(error) => return Opened::Failed(error),
        };
        let mut seen = seen_of(&response);
        let told = response.headers();
        if let (StatusCode::NOT_MODIFIED, Some((entry, head))) = (response.status(), &stored) {
            // The 304 is about other content: ask again without conditions.
            let Some(renewed) = head.renewed_by(told) else {
                return self.ask_for_whole(key, asked, whole).await;
            };
            *seen.headers_mut() = sane(&renewed);
            *seen.status_mut() = StatusCode::OK;
            let essence = essence(&whole, seen.headers());
            let head = Head::new(CachePolicy::new(&essence, &seen), renewed);
            let may_be_kept = |request: &Request<()>| is_storable(request, &seen, &head.policy);
            match head.write().filter(|_| may_be_kept(&whole)) {
                Some(bytes) => {
                    let entry = UrlEntry { head: bytes, stored_at: Timestamp::now(), ..entry.clone() };
                    self.cache.put_url(key, entry).await;
                }
                // An answer to a client with credentials is not for all clients. The stored answer that others get
                // stays unchanged.
                None if may_be_kept(&essence) => {}
                None => self.cache.drop_url(key, entry.variant).await,
            }
            return Opened::Renewed(Arc::new(head), entry.variant);
        }
        self.take_in(key, asked, &whole, seen, response)
    }

    async fn ask_for_whole(self: &Arc<Self>, key: Digest, asked: CopyRequest, whole: Request<()>) -> Opened {
        match asked.send(&[]).await {
            Ok(response) => {
                let seen = seen_of(&response);
                self.take_in(key, asked, &whole, seen, response)
            }
            Err(error) => Opened::Failed(error),
        }
    }

    /// Begins to store an answer if it may be stored.
    fn take_in(
        self: &Arc<Self>,
        key: Digest,
        asked: CopyRequest,
        whole: &Request<()>,
        seen: Response<()>,
        response: reqwest::Response,
    ) -> Opened {
        let policy = CachePolicy::new(whole, &seen);
        let server = asked.server.clone();
        let kept = CachePolicy::new(&essence(whole, seen.headers()), &seen);
        let head = Head::new(kept, response.headers().clone());
        // If the answer does not fit into the cache, the server is asked again, and has to send the same content.
        let can_be_asked_again = seen.headers().contains_key(CONTENT_LENGTH) || has_strong_etag(seen.headers());
        let is_kept = can_be_asked_again && is_storable(whole, &seen, &policy);
        if !is_kept || head.write().is_none() {
            return Opened::Own(Arc::new(Mutex::new(Some(relay::returned(response, &server, asked.held)))));
        }
        let party = asked.party.clone();
        let written = self.objects.written.clone();
        let copy = Copy::new(key, asked, head, response, written, self.cache.clone(), self.metrics.clone());
        let copy = Arc::new(copy);
        let origin = copy.clone();
        match self.cache.fill_url(copy.name, party, || origin) {
            Some(fill) => {
                self.copies.put(&copy);
                Opened::Shared(copy, fill)
            }
            // Too many fills are running.
            None => Opened::Own(Arc::new(Mutex::new(copy.pass_on()))),
        }
    }

    async fn answer_with(
        &self,
        request: &Parts,
        url: &Url,
        found: FoundCopy,
        observation: &mut Observation,
    ) -> Result<Response<Body>, Refused> {
        let FoundCopy { headers: given, content, boundary, state } = found;
        let is_looked_at = request.version == Version::HTTP_2 || is_secure(request);
        let content = if is_looked_at { content.unmapped() } else { content };
        let mut sent = given;
        headers::pass_on(&mut sent, Version::HTTP_11);
        sent.remove(CONTENT_LENGTH);
        let age = sent.get(AGE).cloned();
        state.write(&mut sent);
        // The age by the server's own clock, with what earlier caches added.
        if let Some(age) = age {
            sent.insert(AGE, age);
        }
        sent.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let about = About {
            is_unmodified: is_unmodified(&request.headers, &sent),
            range: range(&request.headers, &sent).filter(|_| request.method == Method::GET),
            headers: sent,
            boundary,
            is_verified: false,
        };
        observation.answered(state.reason());
        tell(&state, url.path());
        match respond::answer(about, content).await {
            Err(Refusal::Range { size }) => Ok(out_of_range(size)),
            answered => Ok(answered?),
        }
    }
}

/// Returns the key under which an answer to GET is kept. Clients that get the configuration's headers have another key,
/// and so has each set of headers that are not plain.
pub fn key_of(url: &Url, is_secret: bool, further: &str) -> Digest {
    let by = if is_secret { " as the configuration says" } else { "" };
    Digest::of(Algorithm::Sha256, format!("GET {url}{by}{further}").as_bytes())
}

/// Returns a server's answer in the form that the rules need.
fn seen_of(response: &reqwest::Response) -> Response<()> {
    let mut seen = Response::new(());
    *seen.status_mut() = response.status();
    *seen.headers_mut() = sane(response.headers());
    seen
}

fn out_of_range(size: u64) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    let range = HeaderValue::try_from(format!("bytes */{size}"));
    response.headers_mut().extend(range.ok().map(|range| (CONTENT_RANGE, range)));
    response
}

/// Returns a running copy as an answer.
async fn coming(copy: &Arc<Copy>, fill: FillReader, now: SystemTime, is_joined: bool) -> FoundCopy {
    let headers = copy.head.headers(now);
    let aside = Aside { digest: copy.name, origin: copy.clone(), is_own: true };
    let content = match fill.size().await {
        // A failure of Larder's own disk must not fail the request.
        Err(failure) if failure.kind.is_of_the_store() => Content::Uncached { aside, size: copy.total },
        _ => Content::Growing { fill, aside, told: None, is_mapped: true, _lease: None },
    };
    FoundCopy { headers, content, boundary: copy.name, state: CacheState::Miss(Miss::of(is_joined)) }
}

/// Returns the request to the server for a client, and the client's headers that are not plain.
fn asked(
    rules: &Arc<ProxyRules>,
    request: &Parts,
    server: &Server,
    url: &Url,
    secrets: &Secrets,
) -> (CopyRequest, String) {
    let mut asked = request.headers.clone();
    headers::pass_on(&mut asked, request.version);
    asked.remove(HOST);
    asked.remove(CONTENT_LENGTH);
    let party = Party { source: server.host.as_str().into(), client: counted_client(request), is_named: false };
    let further = headers::make_shared(&mut asked);
    let secrets = Arc::new(secrets.clone());
    let (rules, server, url) = (rules.clone(), server.clone(), url.clone());
    (CopyRequest { rules, server, url, headers: asked, secrets, party, held: None, since: clock::wall() }, further)
}

/// Returns the request for the whole content, without conditions.
fn asked_for_whole(asked: &CopyRequest) -> Result<Request<()>, Refused> {
    let mut whole = Request::new(());
    *whole.uri_mut() = asked.url.as_str().parse().map_err(|_| Refused::Malformed("the URL cannot be asked for"))?;
    *whole.headers_mut() = asked.headers.clone();
    CONDITIONS.iter().for_each(|name| drop(whole.headers_mut().remove(name)));
    lower_directives(whole.headers_mut());
    Ok(whole)
}

/// Returns whether an old answer may be served when its server fails (RFC 9111, section 4.2.4).
fn may_be_stale(head: &Head) -> bool {
    let never = ["must-revalidate", "proxy-revalidate", "no-cache"];
    !head.directives().any(|directive| never.contains(&directive.as_str()) || directive.starts_with("s-maxage"))
}

/// Returns whether the client has the content already (RFC 9110, section 13.2.2).
fn is_unmodified(request: &HeaderMap, sent: &HeaderMap) -> bool {
    let text = |headers: &HeaderMap, name: HeaderName| headers.get(name)?.to_str().ok().map(str::to_owned);
    if request.contains_key(IF_NONE_MATCH) {
        return text(sent, ETAG).is_some_and(|etag| respond::is_unmodified(request, &etag));
    }
    let date = |text: Option<String>| httpdate::parse_http_date(&text?).ok();
    let (since, modified) = (date(text(request, IF_MODIFIED_SINCE)), date(text(sent, LAST_MODIFIED)));
    since.zip(modified).is_some_and(|(since, modified)| modified <= since)
}

/// Returns the part that is asked for, unless `If-Range` names other content.
fn range(request: &HeaderMap, sent: &HeaderMap) -> Option<RangeHeader> {
    let is_strong = |etag: &&HeaderValue| !etag.as_bytes().starts_with(b"W/");
    let holds = request.get(IF_RANGE).is_none_or(|condition| {
        sent.get(ETAG).filter(is_strong) == Some(condition) || sent.get(LAST_MODIFIED) == Some(condition)
    });
    RangeHeader::parse(request.get(RANGE).filter(|_| holds)?.to_str().ok()?)
}
