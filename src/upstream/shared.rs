//! What all clients of upstreams have in common.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::ours::Ours;
use super::storages::Storages;

/// What all these servers are in the metrics: there may be any number of them.
pub const OTHER_HOSTS: &str = "other hosts";

/// Large documents in memory at once, on their way from all upstreams.
pub const LARGE_DOCUMENTS: usize = 8;

/// Large documents at once from upstreams that only clients name.
const LARGE_DOCUMENTS_OF_OTHERS: usize = 4;

/// What all clients of a process have in common.
#[derive(Clone)]
pub struct Shared {
    /// Where the process itself listens.
    pub ours: Ours,
    pub storages: Arc<Storages>,
    /// Bounds the large documents in memory.
    pub documents: Arc<Semaphore>,
}

impl Shared {
    /// For upstreams that only clients name: these take nothing of what the others need.
    pub fn of_others(&self) -> Self {
        Self { documents: Arc::new(Semaphore::new(LARGE_DOCUMENTS_OF_OTHERS)), ..self.clone() }
    }
}

impl Default for Shared {
    fn default() -> Self {
        let documents = Arc::new(Semaphore::new(LARGE_DOCUMENTS));
        Self { ours: Ours::default(), storages: Arc::default(), documents }
    }
}
