//! Copies of servers' answers: what has to be known to use a copy again, and how a copy comes in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, DATE,
    ETAG, EXPIRES, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyDataStream, BodyExt};
use http_cache_semantics::{BeforeRequest, CachePolicy};
use quick_cache::sync::Cache as Bounded;
use serde::{Deserialize, Serialize};

use super::headers;
use super::relay::{Held, Limited, broken, in_time};
use super::rules::ProxyRules;
use super::secrets::Secrets;
use crate::body::{self, Body};
use crate::cache::flight::Flights;
use crate::cache::{Cache, FillReader, Origin, Party, Source, Standing, Transfer};
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::index::{Timestamp, UrlEntry};
use crate::observe::Metrics;
use crate::oci::{Algorithm, Digest};
use crate::registry::Written;
use crate::upstream::{PassError, Server};

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Most running copies that further requests can join.
const OPENED: usize = 1_024;
/// Longest head of an answer that is kept, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Highest `Age` that is believed, in seconds. A higher value is nonsense, and may be more than the library can add up.
const MAX_AGE: u64 = 100 * 365 * 24 * 3600;
/// How long an answer is fresh at most if its server does not state a time.
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 3600);

/// Copies that are on their way in.
pub struct Copies {
    /// Running requests to servers, by URL and by the headers on which an answer usually depends.
    pub openings: Flights<(Digest, [u8; 32]), Opened>,
    /// By URL.
    opened: Bounded<Digest, Weak<Copy>>,
}

impl Default for Copies {
    fn default() -> Self {
        Self { openings: Flights::default(), opened: Bounded::new(OPENED) }
    }
}

impl Copies {
    /// Returns the running copy of a URL, with a reader of its fill.
    pub fn running(&self, key: &Digest, cache: &Cache) -> Option<(Arc<Copy>, FillReader)> {
        let copy = self.opened.get(key)?.upgrade().filter(|copy| !copy.is_outdated())?;
        let fill = cache.running_fill(&copy.name)?;
        Some((copy, fill))
    }

    /// Makes a running copy available to further requests.
    pub fn put(&self, copy: &Arc<Copy>) {
        self.opened.insert(copy.key, Arc::downgrade(copy));
    }
}

/// The result of asking a server.
#[derive(Clone)]
pub enum Opened {
    /// The answer is coming in, for all requests that it fits.
    Shared(Arc<Copy>, FillReader),
    /// The answer is for this one client only.
    Own(Arc<Mutex<Option<http::Response<Body>>>>),
    /// The stored variant is still current, with this head.
    Renewed(Arc<Head>, [u8; 32]),
    /// The server cannot be reached, or fails.
    Failed(PassError),
}

/// All of an answer except its body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    pub policy: CachePolicy,
    #[serde(with = "http_serde::header_map")]
    headers: HeaderMap,
}

impl Head {
    /// Creates a head from the policy of an answer and its headers.
    pub fn new(policy: CachePolicy, headers: HeaderMap) -> Self {
        Self { policy, headers }
    }

    /// Returns the answer's headers as clients get them at `now`.
    pub fn headers(&self, now: SystemTime) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(AGE, HeaderValue::from(self.policy.age(now).as_secs()));
        headers
    }

    /// Returns the headers that make a request conditional: the server sends content only if it has changed.
    pub fn comparison(&self) -> Vec<(HeaderName, HeaderValue)> {
        let pairs = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
        let add = |(has, asks): (HeaderName, HeaderName)| Some((asks, self.headers.get(has)?.clone()));
        pairs.into_iter().filter_map(add).collect()
    }

    /// Returns the headers after a 304 with these headers (RFC 9111, section 3.2). `None`: the 304 is about other
    /// content.
    pub fn renewed_by(&self, told: &HeaderMap) -> Option<HeaderMap> {
        let differs = |name: &HeaderName| told.get(name).is_some_and(|told| self.headers.get(name) != Some(told));
        if differs(&ETAG) || (!told.contains_key(ETAG) && differs(&LAST_MODIFIED)) {
            return None;
        }
        let of_the_body = [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_TYPE, CONTENT_RANGE, ETAG];
        let mut renewed = self.headers.clone();
        for name in told.keys().filter(|name| !of_the_body.contains(name)) {
            renewed.remove(name);
            for value in told.get_all(name) {
                renewed.append(name.clone(), value.clone());
            }
        }
        // Without `Age`, the answer is new.
        if !told.contains_key(AGE) {
            renewed.remove(AGE);
        }
        Some(renewed)
    }

    /// Returns the digest of the headers of another request on which the answer depends.
    pub fn variant_of(&self, request: &Request<()>) -> [u8; 32] {
        variant(request.headers(), &self.headers)
    }

    /// Returns whether the answer may be used at `now` without asking its server. If the server states no time, the
    /// time is guessed from how long the content had not changed; no guess is good for longer than a day.
    pub fn is_fresh(&self, request: &Request<()>, now: SystemTime) -> bool {
        let says_how_long = |directive: &String| directive.starts_with("max-age") || directive.starts_with("s-maxage");
        let is_guess = !self.headers.contains_key(EXPIRES) && !self.directives().any(|said| says_how_long(&said));
        let is_too_old = is_guess && self.policy.age(now) >= LONGEST_GUESS;
        !is_too_old && matches!(self.policy.before_request(request, now), BeforeRequest::Fresh(_))
    }

    /// Returns the answer's directives about storing and reusing it.
    pub fn directives(&self) -> impl Iterator<Item = String> {
        directives(&self.headers)
    }

    /// Reads a head that [`Self::write`] wrote.
    pub fn read(bytes: &Bytes) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Returns the head as bytes. `None`: it is too long to be kept.
    pub fn write(&self) -> Option<Bytes> {
        serde_json::to_vec(self).ok().filter(|bytes| bytes.len() <= MAX_HEAD).map(Bytes::from)
    }
}

/// Returns the directives of `Cache-Control`, in lower case.
pub fn directives(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_ascii_lowercase())
}

/// Returns whether an answer may be kept for other clients (RFC 9111, section 3): a whole answer to GET that does not
/// forbid it.
pub fn is_storable(request: &Request<()>, answer: &http::Response<()>, policy: &CachePolicy) -> bool {
    let headers = answer.headers();
    let is_for_all = directives(headers).any(|directive| directive == "public");
    let is_of_somebody = request.headers().contains_key(COOKIE) || request.headers().contains_key(AUTHORIZATION);
    let varies_with_all = varied(headers).iter().any(|name| ["*", "authorization", "cookie"].contains(&name.as_str()));
    let is_personal = headers.contains_key(SET_COOKIE) || (is_of_somebody && !is_for_all);
    answer.status() == StatusCode::OK
        && !headers.contains_key(CONTENT_RANGE)
        && !varies_with_all
        && !is_personal
        && policy.is_storable()
}

/// Returns an answer's headers in a form that the library understands: for its rules, not for clients.
pub fn sane(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    // If there are several, the first one counts (RFC 9111, section 5.1).
    let age = headers.get(AGE).and_then(|age| age.to_str().ok()?.split(',').next()?.trim().parse::<u64>().ok());
    match age {
        Some(age) => drop(headers.insert(AGE, HeaderValue::from(age.min(MAX_AGE)))),
        None => drop(headers.remove(AGE)),
    }
    // The library reads only one of the three forms of dates (RFC 9110, section 5.6.7).
    for name in [DATE, EXPIRES, LAST_MODIFIED] {
        let date = headers.get(&name).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if let Some(Ok(date)) = date.map(|date| HeaderValue::try_from(httpdate::fmt_http_date(date))) {
            headers.insert(name, date);
        }
    }
    lower_directives(&mut headers);
    headers
}

/// Puts directives in lower case: their case has no meaning (RFC 9111, section 5.2), but the library does not know
/// that.
pub fn lower_directives(headers: &mut HeaderMap) {
    let values: Vec<_> =
        headers.get_all(CACHE_CONTROL).iter().map(HeaderValue::as_bytes).map(<[u8]>::to_ascii_lowercase).collect();
    if !values.is_empty() {
        headers.insert(CACHE_CONTROL, HeaderValue::from_bytes(&values.join(&b", "[..])).unwrap_or(NO_STORE));
    }
}

/// Returns whether an answer has a strong entity tag: two answers with the same strong tag have the same content.
pub fn has_strong_etag(headers: &HeaderMap) -> bool {
    headers.get(ETAG).is_some_and(|etag| !etag.as_bytes().starts_with(b"W/"))
}

/// Returns the headers of the request on which an answer depends: the names in its `Vary`, sorted.
fn varied(answer: &HeaderMap) -> Vec<String> {
    let names = answer.get_all(VARY).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut names: Vec<_> =
        names.map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect();
    names.sort();
    names
}

/// Returns a request with only the headers on which an answer depends. The client's other headers must not be kept.
pub fn essence(request: &Request<()>, answer: &HeaderMap) -> Request<()> {
    let mut essence = request.clone();
    let mut kept = HeaderMap::new();
    for name in varied(answer).iter().filter_map(|name| name.parse::<HeaderName>().ok()) {
        for value in request.headers().get_all(&name) {
            kept.append(name.clone(), value.clone());
        }
    }
    *essence.headers_mut() = kept;
    essence
}

/// Returns the digest of the request's headers on which an answer depends.
pub fn variant(request: &HeaderMap, answer: &HeaderMap) -> [u8; 32] {
    let names = varied(answer);
    let mut text = String::new();
    for name in names {
        let values: Vec<_> = request.get_all(name.as_str()).iter().map(|value| format!("{value:?}")).collect();
        text += &format!("{name}={}\n", values.join(","));
    }
    digest_of(text.as_bytes())
}

/// Returns the SHA-256 digest of `bytes`.
pub fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let mut raw = [0; 32];
    raw.copy_from_slice(digest.as_raw());
    raw
}

/// An answer on its way into the cache.
pub struct Copy {
    /// Stands for the URL.
    pub key: Digest,
    /// Stands for this transfer alone.
    pub name: Digest,
    pub head: Head,
    /// As the server sent them.
    headers: HeaderMap,
    variant: [u8; 32],
    pub total: Option<u64>,
    first: Mutex<Option<BoxStream<'static, Result<Bytes, Failure>>>>,
    asked: CopyRequest,
    /// When the server was asked.
    since: SystemTime,
    written: Arc<Written>,
    standing: Mutex<Standing>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
}

/// A request, kept so that it can be sent again from the byte where its answer broke off.
#[derive(Clone)]
pub struct CopyRequest {
    pub rules: Arc<ProxyRules>,
    pub server: Server,
    pub url: url::Url,
    /// As the server gets them, without those that the configuration adds.
    pub headers: HeaderMap,
    /// Kept apart from `headers`: those may be stored.
    pub secrets: Arc<Secrets>,
    /// The client that the request is for.
    pub party: Party,
    /// Its place among the forwarded requests, once it has one.
    pub held: Option<Held>,
    pub since: SystemTime,
}

impl CopyRequest {
    /// Sends the request, with the headers `more`.
    pub async fn send(&self, more: &[(HeaderName, HeaderValue)]) -> Result<reqwest::Response, PassError> {
        let mut request = reqwest::Request::new(http::Method::GET, self.url.clone());
        *request.headers_mut() = self.headers.clone();
        for (name, value) in more {
            request.headers_mut().insert(name, value.clone());
        }
        self.secrets.add_to(request.headers_mut());
        in_time(self.rules.send(request, &self.server, false), &AtomicU64::new(0), &self.server).await
    }

    /// Returns the path of the URL, for the log.
    pub fn path(&self) -> &str {
        self.url.path()
    }
}

impl Copy {
    /// Returns whether a request would get the same answer.
    pub fn fits(&self, request: &Request<()>) -> bool {
        self.head.variant_of(request) == self.variant
    }

    /// Creates the copy of an answer whose body has not been read yet.
    pub fn new(
        key: Digest,
        asked: CopyRequest,
        head: Head,
        response: reqwest::Response,
        written: Arc<Written>,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = Digest::of(Algorithm::Sha256, format!("{key} {number} {}", std::process::id()).as_bytes());
        let headers = response.headers().clone();
        Self {
            key,
            name,
            variant: variant(&asked.headers, &headers),
            total: content_length(&headers),
            head,
            headers,
            first: Mutex::new(Some(body_of(response, &asked.server))),
            since: asked.since,
            asked,
            written,
            standing: Mutex::new(Standing::new(1)),
            cache,
            metrics,
        }
    }

    /// Returns whether the URL was written to since the server was asked.
    pub fn is_outdated(&self) -> bool {
        self.written.was_url_written(self.asked.url.as_str(), self.since)
    }

    /// Returns the answer for its own client alone, since it cannot be stored.
    pub fn pass_on(&self) -> Option<http::Response<Body>> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let mut response = http::Response::new(body::streamed(first));
        *response.headers_mut() = self.headers.clone();
        headers::pass_on(response.headers_mut(), http::Version::HTTP_11);
        Some(response)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what tells whether the rest would be of the same answer (RFC 9110, section 13.1.5).
    fn strong_etag(&self) -> Option<&HeaderValue> {
        self.headers.get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/"))
    }

    /// Asks for the rest of the answer, or for all of it again.
    async fn reopen(&self, from: u64) -> Result<Transfer, Failure> {
        if self.standing().worth_asking(Instant::now()).is_empty() {
            return Err(self.standing().why_none());
        }
        let changed = |what: &str| Failure::new(FailureKind::Unavailable, format!("{}: {what}", self.asked.server));
        let more = match self.strong_etag() {
            _ if from == 0 => Vec::new(),
            None => return Err(changed("broke off, and nothing tells whether the rest would be of the same")),
            Some(etag) => {
                let range = HeaderValue::try_from(format!("bytes={from}-"));
                vec![(RANGE, range.map_err(|error| changed(&error.to_string()))?), (IF_RANGE, etag.clone())]
            }
        };
        let response = self.asked.send(&more).await.map_err(|error| match error {
            PassError::Failure(failure) => failure,
            PassError::Forbidden(forbidden) => changed(&forbidden.to_string()),
        })?;
        let is_same = |name: HeaderName| response.headers().get(&name) == self.headers.get(&name);
        let is_as_long = response.status() != StatusCode::OK || is_same(CONTENT_LENGTH);
        if !(is_same(ETAG) && is_same(LAST_MODIFIED) && is_as_long) {
            return Err(changed("changed what it has while it was sent"));
        }
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), from) => from,
            status => return Err(changed(&format!("answered {status} when asked for the rest"))),
        };
        let body = body_of(response, &self.asked.server);
        Ok(Transfer { source: Source(0), start, total: self.total, body })
    }
}

impl Origin for Copy {
    fn open(&self, from: u64, _until: Option<u64>, _is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        match first {
            Some(body) => {
                std::future::ready(Ok(Transfer { source: Source(0), start: 0, total: self.total, body })).boxed()
            }
            None => self.reopen(from).boxed(),
        }
    }

    fn parallel(&self) -> usize {
        1
    }

    fn can_resume(&self) -> bool {
        self.strong_etag().is_some()
    }

    fn broke(&self, source: Source, has_progressed: bool, why: &Failure) {
        self.standing().broke(source.0, has_progressed, why, Instant::now());
    }

    fn reject(&self, source: Source) {
        self.standing().reject(source.0);
    }

    fn received(&self, bytes: u64) {
        self.metrics.fetched(&self.metrics.other_hosts, bytes);
    }

    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()> {
        let Some(head) = self.head.write().filter(|_| !self.is_outdated()) else {
            return std::future::ready(()).boxed();
        };
        tracing::info!(path = self.asked.path(), size, "cached response");
        let entry = UrlEntry { variant: self.variant, digest: *digest, head, stored_at: Timestamp::now() };
        self.cache.put_url(self.key, entry).boxed()
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

fn begins_at(headers: &HeaderMap, from: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    range.trim().strip_prefix("bytes").is_some_and(|rest| rest.trim_start().starts_with(&format!("{from}-")))
}

fn body_of(response: reqwest::Response, server: &Server) -> BoxStream<'static, Result<Bytes, Failure>> {
    let label = server.to_string();
    let body = reqwest::Body::from(response).map_err(move |error| broken(&label, &error));
    BodyDataStream::new(Limited::new(body, Arc::default())).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_keep(request: &[(&str, &str)], answer: &[(&str, &str)]) -> bool {
        let mut asked = Request::get("https://x.example/a.tgz");
        for (name, value) in request {
            asked = asked.header(*name, *value);
        }
        let asked = asked.body(()).expect("a request");
        let mut given = http::Response::builder();
        for (name, value) in answer {
            given = given.header(*name, *value);
        }
        let mut given = given.body(()).expect("an answer");
        *given.headers_mut() = sane(given.headers());
        let policy = CachePolicy::new(&asked, &given);
        is_storable(&asked, &given, &policy)
    }

    #[test]
    fn what_is_for_one_alone_is_not_kept() {
        for (request, answer, expected) in [
            (&[][..], &[][..], true),
            (&[], &[("cache-control", "no-store")], false),
            (&[], &[("cache-control", "private, max-age=60")], false),
            (&[], &[("set-cookie", "a=b")], false),
            (&[], &[("vary", "*")], false),
            (&[], &[("vary", "Cookie, accept")], false),
            (&[], &[("vary", "accept-encoding")], true),
            (&[], &[("content-range", "bytes 0-1/2")], false),
            (&[("authorization", "Bearer x")], &[], false),
            (&[("authorization", "Bearer x")], &[("cache-control", "public, max-age=60")], true),
            (&[("authorization", "Bearer x")], &[("cache-control", "must-revalidate, max-age=60")], false),
            (&[("authorization", "Bearer x")], &[("cache-control", "s-maxage=60")], false),
            (&[], &[("cache-control", "Private")], false),
            (&[], &[("cache-control", "No-Store")], false),
            (&[("cookie", "a=b")], &[], false),
            (&[("cookie", "a=b")], &[("cache-control", "public")], true),
            (&[("cache-control", "no-store")], &[], false),
        ] {
            assert_eq!(may_keep(request, answer), expected, "{request:?} {answer:?}");
        }
    }

    #[test]
    fn nothing_is_kept_of_what_a_client_says_beside_what_the_answer_depends_on() {
        let mut request = Request::get("https://x.example/a.tgz");
        for (name, value) in [("authorization", "Bearer geheim"), ("cookie", "geheim"), ("accept-encoding", "gzip")] {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("a request");
        let answer = http::Response::builder().header("cache-control", "public").header("vary", "accept-encoding");
        let answer = answer.body(()).expect("an answer");
        let policy = CachePolicy::new(&essence(&request, answer.headers()), &answer);
        let kept = Head::new(policy, answer.headers().clone()).write().expect("written");
        let text = String::from_utf8_lossy(&kept);
        assert!(text.contains("gzip") && !text.contains("geheim"), "{text}");
    }

    #[test]
    fn an_age_that_cannot_be_added_up_is_cut() {
        for (age, expected) in
            [("5", Some("5")), ("18446744073709551615", Some("3153600000")), ("-1", None), ("x", None)]
        {
            let headers = HeaderMap::from_iter([(AGE, age.parse().expect("a value"))]);
            assert_eq!(sane(&headers).get(AGE).map(|value| value.to_str().expect("text")), expected, "{age}");
        }
    }

    #[test]
    fn a_variant_is_of_what_the_answer_depends_on() {
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().expect("a value"))])
        };
        let (gzip, plain) = (headers("accept-encoding", "gzip"), headers("accept-encoding", "identity"));
        let varies = headers("vary", "Accept-Encoding");
        assert_ne!(variant(&gzip, &varies), variant(&plain, &varies));
        assert_eq!(variant(&gzip, &HeaderMap::new()), variant(&plain, &HeaderMap::new()));
        assert_eq!(
            variant(&gzip, &headers("vary", "x, accept-encoding")),
            variant(&gzip, &headers("vary", "Accept-Encoding,X"))
        );
    }
}
