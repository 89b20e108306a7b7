//! Where content comes from, as the cache sees it: the cache knows no upstream.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::failure::Failure;
use crate::oci::Digest;

/// Where a fill gets its bytes. `registry` hands it to the cache, so that the cache knows no upstream.
pub trait Origin: Send + Sync + 'static {
    /// Opens a transfer of the bytes from `from` to `until`, or to the end. Where ranges are not served, the transfer
    /// begins earlier. Tries all sources that are still worth asking, and fails only when none is left. `is_part`:
    /// other transfers of the object are under way, so this one must not wait for anything.
    fn open(&self, from: u64, until: Option<u64>, is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>>;

    /// Returns how many connections may be used at once for one object.
    fn parallel(&self) -> usize;

    /// Returns whether others wait for the connection of a transfer that nobody reads. A transfer that is told so has
    /// to end.
    fn should_yield(&self) -> bool {
        false
    }

    /// Returns whether another transfer can go on where one has ended.
    fn can_resume(&self) -> bool {
        true
    }

    /// Notes that a transfer ended early, and why. `has_progressed`: whether the object made progress by it.
    fn broke(&self, source: Source, has_progressed: bool, why: &Failure);

    /// Notes that a source sent content with the wrong digest. The source is not asked for this object again.
    fn reject(&self, source: Source);

    /// Notes that `bytes` have arrived.
    fn received(&self, bytes: u64);

    /// Returns whether the cache knows the object already, and bytes of its own came back: the object is not counted as
    /// stored, and it is not known by it that an upstream has shown it.
    fn is_known_content(&self) -> bool {
        false
    }

    /// Notes that the object is complete and verified. No reader has its end yet.
    fn verified(&self) {}

    /// Notes that the object is complete, verified and stored. The fill can be joined until this has ended.
    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()>;
}

/// A source of an [`Origin`], by its position in the order in which the origin asks its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub usize);

/// An open transfer: bytes on their way.
pub struct Transfer {
    pub source: Source,
    /// The offset of the first byte.
    pub start: u64,
    /// Length of the whole object, where it is known.
    pub total: Option<u64>,
    /// The bytes. Each item has a deadline of its own.
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
}

/// Bytes at the end of an object that are held back from readers until the whole is verified.
pub const HELD_BACK: u64 = 64 * 1024;
