//! What is remembered of the questions to one upstream.

use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::habits::Habit;

/// What is known of how a registry answers, and the bound on the questions under way.
pub struct Questions {
    blobs: Mutex<Habit>,
    manifests: Mutex<Habit>,
    pub turns: Arc<Semaphore>,
    pub hasher: RandomState,
}

impl Questions {
    pub fn new(at_once: usize) -> Self {
        Self {
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            turns: Arc::new(Semaphore::new(at_once)),
            hasher: RandomState::new(),
        }
    }

    pub fn blobs(&self) -> MutexGuard<'_, Habit> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn manifests(&self) -> MutexGuard<'_, Habit> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
