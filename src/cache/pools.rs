//! The threads of a cache for blocking work.

use std::time::Duration;

use crate::work::Pool;

/// The pools of a cache. Together they have fewer threads than the runtime has for blocking work (512), so that no pool
/// waits for another.
#[derive(Clone)]
pub struct Pools {
    pub reads: Pool,
    pub spool: Pool,
    pub syncs: Pool,
    pub index_reads: Pool,
    pub upkeep: Pool,
}

impl Pools {
    /// Pools for a command: no client waits for it, and a slow disk is waited for.
    pub fn patient() -> Self {
        const LONG: Duration = Duration::from_secs(120);
        Self {
            reads: Pool::new("reading the cache directory", 16, LONG),
            spool: Pool::new("writing to the cache directory", 16, LONG),
            syncs: Pool::new("storing an object", 16, LONG),
            index_reads: Pool::new("reading the index", 16, LONG),
            upkeep: Pool::new("upkeep of the cache directory", 16, LONG),
        }
    }
}

impl Default for Pools {
    fn default() -> Self {
        // A client waits for a read, and for the write of bytes that it reads next; it gives up after half a minute.
        let (soon, long) = (Duration::from_secs(3), Duration::from_secs(30));
        Self {
            reads: Pool::new("reading the cache directory", 128, soon),
            spool: Pool::new("writing to the cache directory", 128, Duration::from_secs(5)),
            syncs: Pool::new("storing an object", 16, long),
            index_reads: Pool::new("reading the index", 32, soon),
            upkeep: Pool::new("upkeep of the cache directory", 16, long),
        }
    }
}
