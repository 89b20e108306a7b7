//! The memory of the questions to one upstream.

use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::habits::Habit;

/// How one registry answers HEAD, as far as Larder has learnt it, and the bound on the questions under way.
pub struct Asked {
    blobs: Mutex<Habit>,
    manifests: Mutex<Habit>,
    /// One permit for each question that may be under way.
    pub turns: Arc<Semaphore>,
    /// Makes the numbers that stand for manifests in [`Habit`].
    pub hasher: RandomState,
}

impl Asked {
    /// Makes an empty memory. `at_once`: how many questions may be under way.
    pub fn new(at_once: usize) -> Self {
        Self {
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            turns: Arc::new(Semaphore::new(at_once)),
            hasher: RandomState::new(),
        }
    }

    /// Returns how the registry answers HEAD for blobs, locked.
    pub fn blobs(&self) -> MutexGuard<'_, Habit> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how the registry answers HEAD for manifests, locked.
    pub fn manifests(&self) -> MutexGuard<'_, Habit> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
