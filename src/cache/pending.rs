//! Manifests that are verified and not stored yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hot::Manifest;
use crate::oci::Digest;

/// Most bytes of pending manifests; further manifests are served uncached.
const MOST_PENDING: usize = 64 << 20;

/// Manifests that are verified and not stored yet.
#[derive(Default)]
pub struct Pending(Mutex<HashMap<Digest, Arc<Manifest>>>);

impl Pending {
    /// Returns a pending manifest.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Manifest>> {
        self.lock().get(digest).cloned()
    }

    /// Adds a manifest; `false` if too many wait already.
    pub fn add(&self, manifest: &Arc<Manifest>) -> bool {
        let mut pending = self.lock();
        let bytes: usize = pending.values().map(|manifest| manifest.bytes.len()).sum();
        let has_room = bytes + manifest.bytes.len() <= MOST_PENDING;
        if has_room {
            pending.insert(manifest.digest, manifest.clone());
        }
        has_room
    }

    /// Removes a manifest that waits no longer.
    pub fn remove(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Returns whether no manifest waits.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Manifest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::index::Timestamp;
    use crate::oci::{Algorithm, MediaType};

    #[test]
    fn manifests_that_wait_for_the_disk_are_bounded_by_bytes() {
        let pending = Pending::default();
        let manifest = |number: u8| {
            let digest = Digest::of(Algorithm::Sha256, &[number]);
            let bytes = Bytes::from(vec![number; 8 << 20]);
            Arc::new(Manifest::new(digest, MediaType::new("m"), bytes, Timestamp(1)))
        };
        let taken = (0..20).filter(|number| pending.add(&manifest(*number))).count();
        assert_eq!(taken, MOST_PENDING / (8 << 20));
        let first = Digest::of(Algorithm::Sha256, &[0]);
        assert!(pending.get(&first).is_some());
        pending.remove(&first);
        assert!(pending.get(&first).is_none() && pending.add(&manifest(30)), "there is room again");
    }
}
