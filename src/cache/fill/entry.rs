//! The entry of a fill among those that are under way.

use std::collections::hash_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Fill, Fills, Phase, Transfer};
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;

/// The entry of a fill in the map, held by the task that drives the fill. Dropping it ends the fill: the entry leaves
/// the map, and a fill that is in no final phase (its task panicked) fails.
#[derive(Debug)]
pub struct Registered {
    pub(super) fills: Fills,
    pub(super) digest: Digest,
    pub(super) fill: Arc<Fill>,
    /// A transfer of an object that could not be stored, and the offset at which it begins. Nothing of it was read yet.
    pub(super) left: Mutex<Option<(u64, Transfer)>>,
}

impl Registered {
    /// Ends the fill before it was driven. Readers that joined meanwhile get the failure.
    pub fn fail(&self, failure: Failure) {
        self.fill.update(|state| state.phase = Phase::Failed(failure));
    }

    /// Returns the size that a source of the object stated; 0: no source stated one.
    pub fn stated_size(&self) -> u64 {
        self.fill.stated.load(Ordering::Relaxed)
    }

    /// Returns the fill.
    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.fill.update(|state| {
            if matches!(state.phase, Phase::Opening | Phase::Growing | Phase::Passing { is_verified: false }) {
                state.phase = Phase::Failed(Failure::new(FailureKind::Storage, "the transfer broke off unexpectedly"));
            }
        });
        let mut fills = self.fills.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(entry) = fills.entry(self.digest) {
            // A failed fill may already have a successor under the same digest.
            if std::ptr::eq(entry.get().as_ptr(), Arc::as_ptr(&self.fill)) {
                entry.remove();
            }
        }
    }
}
