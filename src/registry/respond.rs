//! Responses: bodies, cache headers, ranges and conditions.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http::header::{
    ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE, WARNING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::access::{Refusal, Wanted};
use crate::body::{Body, empty, full, streamed};
use crate::cache::{Content, Manifest};
use crate::clock;
use crate::failure::Failure;
use crate::observe::Reason;
use crate::observe::reason::{Hit, Miss};
use crate::oci::Digest;
use crate::oci::range::{ByteRange, RangeHeader, Selection};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const X_CACHE_DATE: HeaderName = HeaderName::from_static("x-cache-date");

/// Room for the headers of an answer, so that they need not be moved while they are set.
const HEADERS: usize = 16;

/// How long a request for a part waits for the size of content whose size is not known yet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the cache answered a request.
#[derive(Clone, Debug)]
pub enum CacheState {
    /// From the cache. `since`: when the copy was stored or last confirmed.
    Hit { since: SystemTime, why: Hit },
    /// From the cache, after the server confirmed that the copy is still current.
    Confirmed { at: SystemTime },
    /// From upstream.
    Miss(Miss),
    /// An old copy, because of a failure.
    Stale { since: SystemTime, why: Failure },
}

impl CacheState {
    /// Returns why the request is answered as it is.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Hit { why, .. } => Reason::Hit(*why),
            Self::Confirmed { .. } => Reason::Hit(Hit::Unchanged),
            Self::Miss(why) => Reason::Miss(*why),
            Self::Stale { why, .. } => Reason::Stale(why.clone()),
        }
    }

    /// Returns the value of `Cache-Status` (RFC 9211). `ttl` is for how many seconds a tag is fresh, `detail` the word
    /// of the reason.
    fn cache_status(&self) -> String {
        let detail = self.reason().code();
        let how = match self {
            Self::Hit { why: Hit::Fresh { until }, .. } => {
                let ttl = until.duration_since(clock::wall()).unwrap_or_default().as_secs();
                return format!("larder; hit; ttl={ttl}; detail={detail}");
            }
            Self::Hit { .. } => "hit",
            Self::Confirmed { .. } => "fwd=stale; fwd-status=304",
            Self::Miss(Miss::Joined) => "fwd=miss; collapsed",
            Self::Miss(_) => "fwd=miss",
            Self::Stale { .. } => "fwd=stale",
        };
        ["larder; ", how, "; detail=", detail].concat()
    }

    /// Writes `Cache-Status` (RFC 9211), `X-Cache`, `X-Cache-Date`, `Age` and `Warning`.
    pub fn write(&self, headers: &mut HeaderMap) {
        let (word, since) = match self {
            Self::Hit { since, .. } => ("HIT", Some(since)),
            Self::Confirmed { at } => ("HIT", Some(at)),
            Self::Miss(_) => ("MISS", None),
            Self::Stale { since, .. } => ("STALE", Some(since)),
        };
        insert(headers, CACHE_STATUS, self.cache_status());
        headers.insert(X_CACHE, HeaderValue::from_static(word));
        if let Some(since) = since {
            let age = clock::wall().duration_since(*since).unwrap_or_default();
            headers.insert(AGE, HeaderValue::from(age.as_secs()));
            insert(headers, X_CACHE_DATE, humantime::format_rfc3339_seconds(*since).to_string());
        }
        if let Self::Stale { why, .. } = self {
            warn(headers, &format!("larder serves an old copy: {}", why.message()));
        }
    }
}

/// Sets `Warning` to a text for people.
pub fn warn(headers: &mut HeaderMap, text: &str) {
    let text: String = text.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
    insert(headers, WARNING, format!("299 - \"{text}\""));
}

/// Sets a header. Values that are made here are plain text; a value that cannot be sent is left out.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: impl TryInto<HeaderValue>) {
    match value.try_into() {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => tracing::debug!(%name, "a header was left out: its value cannot be sent"),
    }
}

/// Returns the response with a manifest.
pub fn manifest(method: &Method, conditions: &HeaderMap, manifest: &Manifest, state: &CacheState) -> Response<Body> {
    let written = &manifest.headers;
    let mut response = Response::new(empty());
    let headers = response.headers_mut();
    headers.reserve(HEADERS);
    state.write(headers);
    headers.insert(DOCKER_CONTENT_DIGEST, written.digest.clone());
    headers.insert(ETAG, written.etag.clone());
    if is_unmodified(conditions, &written.etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    headers.extend(written.media_type.clone().map(|value| (CONTENT_TYPE, value)));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(manifest.bytes.len()));
    if method != Method::HEAD {
        *response.body_mut() = full(manifest.bytes.clone());
    }
    response
}

/// Returns the response with a JSON document.
pub fn json(body: Bytes, media_type: &str) -> Response<Body> {
    let length = body.len();
    let mut response = Response::new(full(body));
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(media_type).ok().map(|value| (CONTENT_TYPE, value)));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Returns the response to a HEAD request for a manifest, from the upstream's answer to HEAD.
pub fn manifest_head(digest: &Digest, media_type: &str, size: u64) -> Response<Body> {
    let mut response = Response::new(empty());
    let headers = response.headers_mut();
    CacheState::Miss(Miss::Asked).write(headers);
    headers.insert(DOCKER_CONTENT_DIGEST, digest.header());
    headers.insert(ETAG, digest.etag());
    insert(headers, CONTENT_TYPE, media_type);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    response
}

/// Returns the response to a HEAD request for a blob.
pub fn blob_head(digest: &Digest, size: Option<u64>, state: &CacheState) -> Response<Body> {
    let mut response = Response::new(empty());
    let headers = response.headers_mut();
    blob_headers(headers, digest, state);
    if let Some(size) = size {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    }
    response
}

/// Returns the response with a blob, or with the parts of it that were asked for.
pub async fn blob(
    asked: &HeaderMap,
    digest: &Digest,
    content: Content,
    state: &CacheState,
) -> Result<Response<Body>, Refusal> {
    let mut headers = HeaderMap::with_capacity(HEADERS);
    let etag = blob_headers(&mut headers, digest, state);
    let is_unmodified = is_unmodified(asked, &etag);
    let about =
        About { headers, is_unmodified, range: range_header(asked, &etag), boundary: *digest, is_verified: true };
    answer(about, content).await
}

/// All of a response except its content.
pub struct About {
    pub headers: HeaderMap,
    /// Whether the client has the content already.
    pub is_unmodified: bool,
    /// The parts that the client asks for.
    pub range: Option<RangeHeader>,
    /// A digest whose text does not occur in the content; becomes the boundary between parts.
    pub boundary: Digest,
    /// Whether the end of the content is sent only after the digest has matched.
    pub is_verified: bool,
}

/// Returns the response with content, or with the parts of it that were asked for.
pub async fn answer(about: About, content: Content) -> Result<Response<Body>, Refusal> {
    let About { headers, is_unmodified, range, boundary, is_verified } = about;
    let mut response = Response::new(empty());
    *response.headers_mut() = headers;
    if is_unmodified {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let content_type = response.headers().get(CONTENT_TYPE).cloned();
    let content_type = content_type.unwrap_or_else(|| HeaderValue::from_static("application/octet-stream"));
    let size = content.size().await.map_err(Refusal::of(Wanted::Blob))?;
    let size = match (&range, size) {
        // A client that asks for all bytes from the start gets them as they arrive: a server may ignore a range (RFC
        // 9110, section 14.2).
        (Some(range), None) if !range.is_from_the_start() => {
            match tokio::time::timeout(PATIENCE, content.final_size()).await {
                Ok(size) => size.map_err(Refusal::of(Wanted::Blob))?,
                Err(_) => None,
            }
        }
        (_, size) => size,
    };
    let is_open_ended = range.as_ref().is_some_and(RangeHeader::is_open_ended);
    let selection = match (range, size) {
        (Some(range), Some(size)) => range.select(size),
        _ => Selection::Whole,
    };
    if let Some(mapping) = content.mapping() {
        response.extensions_mut().insert(mapping);
    }
    let headers = response.headers_mut();
    match (selection, size) {
        (Selection::Unsatisfiable, size) => return Err(Refusal::Range { size: size.unwrap_or_default() }),
        (Selection::Parts(parts), Some(size)) if parts.len() > 1 => {
            let may_read_unverified = !is_verified || (!is_open_ended && !are_whole(&parts, size));
            let multipart = Multipart::new(&boundary, &content_type, &parts, size);
            insert(headers, CONTENT_TYPE, multipart.content_type());
            headers.insert(CONTENT_LENGTH, HeaderValue::from(multipart.length()));
            *response.body_mut() = streamed(multipart.stream(content, size, may_read_unverified));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        (Selection::Parts(parts), Some(size)) => {
            // A client may put the whole together from an open-ended part, so such a part is verified first.
            let may_read_unverified = !is_verified || (!is_open_ended && !are_whole(&parts, size));
            let part = parts.first().copied().unwrap_or(ByteRange { start: 0, end: size });
            insert(headers, CONTENT_RANGE, content_range(part, size));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(part.len()));
            *response.body_mut() =
                streamed(content.stream(part.start, Some(part.end), Some(size), may_read_unverified));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        (_, size) => {
            if let Some(size) = size {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
            }
            *response.body_mut() = streamed(content.stream(0, size, size, !is_verified));
        }
    }
    Ok(response)
}

/// Sets the headers that each answer with a blob has. Returns the entity tag.
fn blob_headers(headers: &mut HeaderMap, digest: &Digest, state: &CacheState) -> HeaderValue {
    let etag = digest.etag();
    state.write(headers);
    headers.insert(DOCKER_CONTENT_DIGEST, digest.header());
    headers.insert(ETAG, etag.clone());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    etag
}

/// Returns whether `If-None-Match` lists this entity tag (RFC 9110, section 13.1.2), by weak comparison.
pub fn is_unmodified(conditions: &HeaderMap, etag: impl AsRef<[u8]>) -> bool {
    let etag = etag.as_ref();
    let values = conditions.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut listed = values.flat_map(|value| value.split(',')).map(str::trim);
    let etag = etag.strip_prefix(b"W/").unwrap_or(etag);
    listed.any(|listed| listed == "*" || listed.strip_prefix("W/").unwrap_or(listed).as_bytes() == etag)
}

/// Returns the `Range` header, unless `If-Range` names other content (RFC 9110, section 13.1.5).
fn range_header(asked: &HeaderMap, etag: &HeaderValue) -> Option<RangeHeader> {
    let holds = asked.get(IF_RANGE).is_none_or(|condition| condition == etag);
    let text = asked.get(RANGE).filter(|_| holds)?.to_str().ok()?;
    RangeHeader::parse(text)
}

/// Returns whether the parts together make up the whole.
fn are_whole(parts: &[ByteRange], size: u64) -> bool {
    let mut parts = parts.to_vec();
    parts.sort_unstable_by_key(|part| part.start);
    let mut end = 0;
    for part in parts {
        if part.start > end {
            return false;
        }
        end = end.max(part.end);
    }
    end >= size
}

fn content_range(part: ByteRange, size: u64) -> String {
    format!("bytes {}-{}/{size}", part.start, part.end - 1)
}

/// A `multipart/byteranges` body (RFC 9110, section 14.6).
struct Multipart {
    boundary: String,
    /// Each part: its head and its range.
    parts: Vec<(Bytes, ByteRange)>,
    end: Bytes,
}

impl Multipart {
    fn new(digest: &Digest, content_type: &HeaderValue, ranges: &[ByteRange], size: u64) -> Self {
        // The content contains this text no more probably than its own hash.
        let boundary = format!("larder-{}", &digest.hex()[..32]);
        let part = |range: &ByteRange| {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
                String::from_utf8_lossy(content_type.as_bytes()),
                content_range(*range, size)
            );
            (Bytes::from(head), *range)
        };
        let parts = ranges.iter().map(part).collect();
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        Self { boundary, parts, end }
    }

    fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    fn length(&self) -> u64 {
        let parts: u64 = self.parts.iter().map(|(head, range)| head.len() as u64 + range.len()).sum();
        parts + self.end.len() as u64
    }

    fn stream(
        self,
        content: Content,
        size: u64,
        may_read_unverified: bool,
    ) -> impl Stream<Item = Result<Bytes, Failure>> + Send + 'static {
        let parts = stream::iter(self.parts).flat_map(move |(head, range)| {
            let bytes = content.clone().stream(range.start, Some(range.end), Some(size), may_read_unverified);
            stream::once(std::future::ready(Ok(head))).chain(bytes)
        });
        parts.chain(stream::once(std::future::ready(Ok(self.end))))
    }
}
