//! The replicas that share an index: several Larders that behave as one cache.

use std::time::Duration;

use super::Timestamp;

/// A replica, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    /// The URL by which the others reach it, without a slash at the end.
    pub address: String,
    /// The number of its process: whoever answers there later is another.
    pub epoch: u64,
}

/// A replica that is alive, and for how long it is known to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    pub replica: Replica,
    /// Until when, by the index's own clock.
    pub until: Timestamp,
    /// How long that is from now on.
    pub left: Duration,
}
