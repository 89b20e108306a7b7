//! What another Larder did to an index that several share, as far as it concerns more than rows: memory, files, pins.

use super::TagKey;
use crate::oci::Digest;

/// A change by another Larder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Rows were taken out, and with them these objects: no store is to keep them.
    Purged(Vec<Digest>),
    /// All content was taken out.
    PurgedAll,
    /// These came into the bucket of `[storage.s3]`, each with its bytes.
    Uploaded(Vec<(Digest, u64)>),
    /// These are no longer in the bucket: it has lost them. Whoever has a file of one keeps it.
    NotUploaded(Vec<Digest>),
    /// These were evicted from the bucket, and with that from all stores: no store is to keep them.
    Evicted(Vec<Digest>),
    /// Something new is known of these tags: the index has it.
    Tags(Vec<TagKey>),
    /// Images were pinned, or are so no longer.
    Pins,
    /// There may have been changes that nobody knows any more.
    Unknown,
}

/// Which changes are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The time of the last one, in microseconds, by the index's own clock.
    pub at: i64,
    /// The numbers of the last ones, each with its time.
    pub known: Vec<(i64, i64)>,
}
