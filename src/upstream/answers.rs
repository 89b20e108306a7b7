//! The answers of an upstream, and how Larder reads them from response headers.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::storages::Storage;
use crate::failure::Failure;
use crate::oci::{Digest, MediaType};

/// For whom a blob is transferred. This decides which of the upstream's connections the transfer may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// For the cache, and for all clients that read the same fill.
    Fill,
    /// For the cache, before any client has asked. It takes only a connection that is to spare, and waits for none.
    Behind,
    /// A further transfer of a blob that is already coming in. It does not wait for a place, and only a share of the
    /// connections is for such transfers.
    Part,
    /// For one client alone, which may read as slowly as it likes. So only a share of the connections is for such
    /// transfers.
    Aside,
}

/// Why the client of an upstream could not be built.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {reason}")]
pub struct BuildError {
    pub(super) upstream: Arc<str>,
    pub(super) reason: String,
}

/// The description of a manifest in a response to HEAD.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub digest: Digest,
    pub media_type: Option<MediaType>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// `Warning` headers for people who pull.
    pub warnings: Vec<HeaderValue>,
}

impl ManifestHead {
    /// Returns whether this response shows that the upstream has the manifest that Larder knows to have `digest` and
    /// `size`: the response must state this digest, this size and a media type.
    pub fn shows(&self, digest: &Digest, size: u64) -> bool {
        self.digest == *digest && self.size == Some(size) && self.media_type.is_some()
    }
}

/// The result of a HEAD for a manifest.
#[derive(Clone, Debug)]
pub enum HeadSaid {
    Manifest(ManifestHead),
    /// Nothing reliable: only a GET of the manifest can tell.
    Nothing,
}

/// How an upstream showed that it gives an object to the client whose credentials were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By something that only the object has: its bytes, its digest, or its length where that cannot be guessed.
    Shown,
    /// By a redirect to the storage that sent this object before. The storage itself cannot be asked now.
    Redirect,
}

/// A manifest, verified against its digest.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
    /// Whether the digest is that of the signed part and not of all bytes, as in signed manifests of the first format.
    pub is_signed: bool,
    /// `Warning` headers for people who pull.
    pub warnings: Vec<HeaderValue>,
}

/// A list of tags or referrers, as the upstream wrote it.
#[derive(Clone, Debug)]
pub struct ListAnswer {
    pub bytes: Bytes,
    pub media_type: Option<MediaType>,
    /// The `Link` headers joined into one: where the next page of the list is.
    pub link: Option<String>,
    /// The header `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
}

/// The answer to a request for a blob, with its body still to be read.
pub struct BlobAnswer {
    /// The offset of the first byte in `body`. It is lower than the offset asked for when the upstream does not serve
    /// ranges.
    pub start: u64,
    /// Length of the whole blob in bytes, where the upstream stated it.
    pub total: Option<u64>,
    /// The bytes. Each wait for the next ones has a deadline.
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
    /// The storage that sends the blob, where that is not the upstream itself.
    pub storage: Option<Storage>,
    /// The URL that a redirect led to. Further parts of the blob may be requested there without asking the registry
    /// again.
    pub address: Option<Url>,
}

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Returns the digest in `Docker-Content-Digest`; `None` where the header is absent or holds no digest.
pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.trim().parse().ok()
}

/// Returns the media type in `Content-Type`.
pub(super) fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    MediaType::of_others(headers.get(CONTENT_TYPE)?.to_str().ok()?.trim())
}

/// Returns the length in `Content-Length`, in bytes.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Returns LENGTH of `Content-Range: bytes */LENGTH`, which comes with status 416: the length of the whole object.
pub(super) fn length_behind_which_nothing_is(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.trim().strip_prefix("bytes")?.trim().strip_prefix("*/")?.trim().parse().ok()
}

/// Returns FIRST and LENGTH of a header `Content-Range: bytes FIRST-LAST/LENGTH`: the offset of the first byte and the
/// length of the whole object.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, length) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, length.trim().parse().ok()))
}

/// Returns whether the document is an HTML page, which is for people.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.as_str(), "text/html" | "application/xhtml+xml")
}
