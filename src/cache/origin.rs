//! Where content comes from, as the cache sees it: it knows no upstream.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::failure::Failure;
use crate::oci::Digest;

/// Where a fill gets its bytes; what `registry` hands the cache so that the cache knows no upstream.
pub trait Origin: Send + Sync + 'static {
    /// Opens a transfer of the bytes from `from` to `until` (or the end). Where ranges are not served
    /// it begins before. Tries all sources that are still worth it and fails only when none is left.
    /// `is_part`: other transfers of the object are under way, so that this one is not to wait for anything.
    fn open(&self, from: u64, until: Option<u64>, is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>>;

    /// Connections that may be used at once for one object.
    fn parallel(&self) -> usize;

    /// Whether others wait for what a transfer that nobody reads has; one that is told so has to end.
    fn should_yield(&self) -> bool {
        false
    }

    /// A transfer ended early, for this reason. `has_progressed` tells whether the object has got on by it.
    fn broke(&self, source: Source, has_progressed: bool, why: &Failure);

    /// What a source sent had the wrong digest; it is not asked for this object again.
    fn reject(&self, source: Source);

    /// `bytes` have arrived.
    fn received(&self, bytes: u64);

    /// The object is complete and verified; nobody has its end yet.
    fn verified(&self) {}

    /// The object is complete, verified and stored. The fill can still be joined until this is done.
    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()>;
}

/// Which of its sources an [`Origin`] opened, in the order in which it asks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub usize);

/// Bytes on their way.
pub struct Transfer {
    pub source: Source,
    pub start: u64,
    /// Length of the whole object, where it is known.
    pub total: Option<u64>,
    /// Each item has a deadline of its own.
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
}

/// Bytes held back from readers until the whole is verified.
pub const HELD_BACK: u64 = 64 * 1024;
