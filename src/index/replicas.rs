//! The replicas that share an index: several Larders that behave as one cache.

/// A replica, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    /// The URL by which the others reach it, without a slash at the end.
    pub address: String,
    /// The number of its process: whoever answers there later is another.
    pub epoch: u64,
}
