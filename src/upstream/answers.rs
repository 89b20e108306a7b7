//! What an upstream answers, and how it is read from heads.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::storages::Storage;
use crate::failure::Failure;
use crate::oci::{Digest, MediaType};

/// For whom a blob is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// For the cache and all clients that read along.
    Fill,
    /// A further one of a blob that is coming in: it waits for nothing, and the last places are not for these.
    Part,
    /// For one client alone, which may take as long as it likes: only a share of the connections is for these.
    Aside,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {reason}")]
pub struct BuildError {
    pub(super) upstream: Arc<str>,
    pub(super) reason: String,
}

/// What a HEAD says of a manifest.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub digest: Digest,
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
    /// For people who pull.
    pub warnings: Vec<HeaderValue>,
}

impl ManifestHead {
    /// Whether this shows that the upstream has a manifest which is known to have `digest` and `size`: it says so of a
    /// manifest of that size.
    pub fn shows(&self, digest: &Digest, size: u64) -> bool {
        self.digest == *digest && self.size == Some(size) && self.media_type.is_some()
    }
}

/// What a HEAD for a manifest is answered with.
#[derive(Clone, Debug)]
pub enum HeadSaid {
    Manifest(ManifestHead),
    /// Nothing that can be believed: only the manifest itself tells.
    Nothing,
}

/// How an upstream showed that it gives an object to whom it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By what only the object has: its bytes, its digest, or its length where that cannot be guessed.
    Shown,
    /// By a redirect to the storage that sent this very object before, which cannot be asked now.
    Redirect,
}

/// A manifest, verified against its digest.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
    /// Whether the digest is that of the signed part and not of the bytes, as of signed manifests of the first format.
    pub is_signed: bool,
    /// For people who pull.
    pub warnings: Vec<HeaderValue>,
}

/// A list of tags or referrers, as the upstream wrote it.
#[derive(Clone, Debug)]
pub struct ListAnswer {
    pub bytes: Bytes,
    pub media_type: Option<MediaType>,
    /// The `Link` headers, as one: where the list goes on.
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
    /// Where a redirect led: more of the blob may be had there without asking the registry again.
    pub address: Option<Url>,
}

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.trim().parse().ok()
}

pub(super) fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    MediaType::of_others(headers.get(CONTENT_TYPE)?.to_str().ok()?.trim())
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The whole length of `Content-Range: bytes */LENGTH`, which comes with 416.
pub(super) fn length_behind_which_nothing_is(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.trim().strip_prefix("bytes")?.trim().strip_prefix("*/")?.trim().parse().ok()
}

/// The first byte and the whole length of `Content-Range: bytes FIRST-LAST/LENGTH`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, length) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, length.trim().parse().ok()))
}

/// Whether a document is a page for people.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.as_str(), "text/html" | "application/xhtml+xml")
}
