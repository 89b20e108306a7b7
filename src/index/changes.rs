//! What another Larder did to an index that several share, as far as it concerns more than rows: memory, files, pins.

use crate::oci::Digest;

/// A change by another Larder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Rows were taken out, and with them these objects: no store is to keep them.
    Purged(Vec<Digest>),
    /// All content was taken out.
    PurgedAll,
    /// Images were pinned, or are so no longer.
    Pins,
    /// There may have been changes that nobody knows any more.
    Unknown,
}

/// How far the changes are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The transaction of the last known change, by the index's own count.
    pub transaction: u64,
    /// Its number among the changes.
    pub number: i64,
}
