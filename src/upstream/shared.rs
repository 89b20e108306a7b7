//! The state that all clients of upstreams share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::ours::Ours;
use super::storages::Storages;

/// Most large documents in memory at once, while they come from upstreams that the configuration names.
pub const LARGE_DOCUMENTS: usize = 8;

/// Most large documents in memory at once from upstreams that only clients name.
const LARGE_DOCUMENTS_OF_OTHERS: usize = 4;

/// The state that all clients of upstreams in this process share.
#[derive(Clone)]
pub struct Shared {
    /// The addresses that this process listens on.
    pub ours: Ours,
    /// Which storages sent which objects.
    pub storages: Arc<Storages>,
    /// Bounds the large documents in memory.
    pub documents: Arc<Semaphore>,
}

impl Shared {
    /// Returns the state for upstreams that only clients name, with a bound of its own on large documents: these
    /// upstreams take nothing that the others need.
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
