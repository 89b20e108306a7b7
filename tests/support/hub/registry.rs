//! The answers of a registry in good health.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;

use super::wire::{Request, Response};
use super::{ManifestsAt, Options, RateLimit, Refusal};
use crate::support::content::{Manifest, sha256};

/// Everything the registry holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    repositories: HashMap<String, Repository>,
    signatures: HashSet<String>,
    signed: usize,
    /// Manifest requests that counted against the rate limit, by user; the empty one is everybody else.
    pub pulls: HashMap<String, u64>,
}

#[derive(Debug, Default)]
pub(super) struct Repository {
    pub manifests: BTreeMap<String, Manifest>,
    pub tags: BTreeMap<String, String>,
    pub blobs: HashMap<String, Bytes>,
}

impl Content {
    /// The repository, made if it is new.
    pub fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    /// Makes every redirect handed out so far invalid.
    pub fn expire_signatures(&mut self) {
        self.signatures.clear();
    }

    pub fn manifest(&mut self, request: &Request, user: &str, options: &Options, storage: &str) -> Response {
        let limit = options.rate_limit.as_ref();
        let refused = limit.and_then(|limit| self.spend(request, user, limit));
        let headers = limit.map(|limit| self.rate_headers(user, limit)).unwrap_or_default();
        let mut response = refused.unwrap_or_else(|| self.manifest_or_where_it_is(request, options, storage));
        response.headers.extend(headers);
        response
    }

    fn manifest_or_where_it_is(&mut self, request: &Request, options: &Options, storage: &str) -> Response {
        let digest = self.find(request).map(|manifest| manifest.digest.clone());
        let location = match (options.manifests_at, digest) {
            (ManifestsAt::Registry, _) | (_, None) => return self.find_manifest(request),
            (ManifestsAt::OtherRegistry, _) => format!("{storage}{}", request.path),
            (ManifestsAt::Storage, Some(digest)) => self.sign(storage, &digest),
        };
        Response::new(options.redirect_status).header("location", location)
    }

    fn find(&self, request: &Request) -> Option<&Manifest> {
        let repository = self.repositories.get(&request.name)?;
        let digest = repository.tags.get(&request.reference).unwrap_or(&request.reference);
        repository.manifests.get(digest)
    }

    fn find_manifest(&self, request: &Request) -> Response {
        let Some(manifest) = self.find(request) else {
            return Response::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let etag = format!("\"{}\"", manifest.digest);
        let headers = [("docker-content-digest", &manifest.digest), ("etag", &etag)];
        if request.header("if-none-match").is_some_and(|value| value.contains(&manifest.digest)) {
            return with_headers(Response::new(304), &headers);
        }
        let mut response = Response::new(200).body(&manifest.media_type, manifest.bytes.clone());
        response.counts_for = Some(manifest.digest.clone());
        with_headers(response, &headers)
    }

    /// Counts a pull; an answer if it is one too many.
    fn spend(&mut self, request: &Request, user: &str, limit: &RateLimit) -> Option<Response> {
        // The abuse limit is for every request; the pull limit does not count HEAD.
        let counts = request.method == "GET" || limit.refusal == Refusal::Abuse;
        let pulls = self.pulls.entry(user.to_owned()).or_default();
        if counts && *pulls < limit.pulls {
            *pulls += 1;
            return None;
        }
        if !counts {
            return None;
        }
        let response = match limit.refusal {
            Refusal::Json => Response::error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit."),
            Refusal::Abuse => Response::new(429).body("text/plain", "Too Many Requests (HAP429).\n"),
        };
        Some(match limit.retry_after {
            Some(seconds) => response.header("retry-after", seconds),
            None => response,
        })
    }

    fn rate_headers(&self, user: &str, limit: &RateLimit) -> Vec<(String, String)> {
        let window = limit.window;
        let remaining = limit.pulls.saturating_sub(self.pulls.get(user).copied().unwrap_or_default());
        vec![
            ("ratelimit-limit".to_owned(), format!("{};w={window}", limit.pulls)),
            ("ratelimit-remaining".to_owned(), format!("{remaining};w={window}")),
            ("docker-ratelimit-source".to_owned(), if user.is_empty() { "127.0.0.1" } else { user }.to_owned()),
        ]
    }

    /// The blob, or a redirect to `storage` (an origin, or empty for a relative redirect).
    pub fn blob(&mut self, request: &Request, storage: Option<&str>, ranges: bool, options: &Options) -> Response {
        let stored = self.repositories.get(&request.name).and_then(|found| found.blobs.get(&request.reference));
        let Some(bytes) = stored.cloned() else {
            return Response::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        let Some(origin) = storage else {
            return object(request, &bytes, ranges);
        };
        let location = self.sign(origin, &request.reference);
        Response::new(options.redirect_status).header("location", location)
    }

    /// A presigned URL.
    fn sign(&mut self, origin: &str, digest: &str) -> String {
        self.signed += 1;
        let signature = format!("{:08x}", self.signed);
        self.signatures.insert(format!("{digest} {signature}"));
        let query = format!("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=600&X-Amz-Signature={signature}");
        format!("{origin}/storage/{digest}?{query}")
    }

    /// The storage host: it knows signatures, not users.
    pub fn storage(&self, request: &Request, foreign_host: bool, ranges: bool) -> Response {
        let error = |status, code| {
            let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
            Response::new(status).body("application/xml", body)
        };
        if foreign_host && request.header("authorization").is_some() {
            return error(400, "InvalidArgument");
        }
        if !request.name.is_empty() {
            return self.find_manifest(request);
        }
        let signature = request.query_value("X-Amz-Signature").unwrap_or_default();
        if !self.signatures.contains(&format!("{} {signature}", request.reference)) {
            return error(403, "AccessDenied");
        }
        let manifest = self.repositories.values().find_map(|repository| repository.manifests.get(&request.reference));
        let blob = self.repositories.values().find_map(|repository| repository.blobs.get(&request.reference));
        match (blob, manifest) {
            (Some(bytes), _) => object(request, bytes, ranges),
            // Storages know no digests.
            (None, Some(manifest)) => Response::new(200).body(&manifest.media_type, manifest.bytes.clone()),
            (None, None) => error(404, "NoSuchKey"),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Repository> {
        self.repositories.get(name)
    }
}

/// Bytes with `Range` support.
fn object(request: &Request, bytes: &Bytes, ranges: bool) -> Response {
    let digest = if request.reference.is_empty() { sha256(bytes) } else { request.reference.clone() };
    let etag = format!("\"{digest}\"");
    let headers = [("docker-content-digest", &digest), ("etag", &etag)];
    let wanted = request
        .header("range")
        .filter(|_| ranges && request.method == "GET")
        .filter(|_| request.header("if-range").is_none_or(|value| value == etag))
        .and_then(|value| parse_range(value, bytes.len()));
    let size = bytes.len();
    let mut response = match wanted {
        Some(range) if range.is_empty() => Response::new(416).header("content-range", format!("bytes */{size}")),
        Some(range) => {
            let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            let mut part = Response::new(206).header("content-range", content_range);
            part.offset = range.start as u64;
            part.body("application/octet-stream", bytes.slice(range))
        }
        None => Response::new(200).body("application/octet-stream", bytes.clone()),
    };
    response.counts_for = Some(digest.clone());
    with_headers(response.header("accept-ranges", "bytes"), &headers)
}

/// A single range; `None` means all (several ranges, or nonsense), an empty one that it cannot be satisfied.
fn parse_range(value: &str, size: usize) -> Option<Range<usize>> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    match (first, last) {
        ("", suffix) => {
            let length = suffix.parse::<usize>().ok()?;
            Some(size.saturating_sub(length)..size)
        }
        (first, "") => Some(first.parse::<usize>().ok()?.min(size)..size),
        (first, last) => {
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            (first <= last).then(|| first.min(size)..last.saturating_add(1).min(size))
        }
    }
}

fn with_headers(response: Response, headers: &[(&str, &String)]) -> Response {
    headers.iter().fold(response, |response, (name, value)| response.header(name, value))
}
