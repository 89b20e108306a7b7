//! Manifests: from memory and from the store, and on their way into it.
//!
//! A manifest is handed on when its digest has matched. It is stored behind that: a disk that is slow, or hangs, keeps no
//! client waiting. Until then it is among those that are pending, and a hit.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fill::Reservation;
use super::hot::{MAX_MANIFEST, Manifest};
use super::read::{Content, read_at};
use super::space::Space;
use super::{Cache, blocking};
use crate::failure::{Failure, FailureKind};
use crate::index::{Timestamp, Viewer, Write};
use crate::oci::Digest;
use crate::oci::manifest::{self, Outline};
use crate::store::Body;

/// How long an answer waits for a manifest to be stored. A disk in good health takes a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);
/// Most bytes of manifests that are pending; further ones are served uncached.
const MOST_PENDING: usize = 64 << 20;

/// Manifests that are verified and not stored yet.
#[derive(Default)]
pub struct Pending(Mutex<HashMap<Digest, Arc<Manifest>>>);

impl Pending {
    fn get(&self, digest: &Digest) -> Option<Arc<Manifest>> {
        self.lock().get(digest).cloned()
    }

    /// Takes one in; `false`: too many wait already.
    fn add(&self, manifest: &Arc<Manifest>) -> bool {
        let mut pending = self.lock();
        let bytes: usize = pending.values().map(|manifest| manifest.bytes.len()).sum();
        let has_room = bytes + manifest.bytes.len() <= MOST_PENDING;
        if has_room {
            pending.insert(manifest.digest, manifest.clone());
        }
        has_room
    }

    fn remove(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Manifest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// A manifest from memory or the store.
    pub async fn manifest(&self, digest: &Digest) -> Result<Option<Arc<Manifest>>, Failure> {
        if let Some(manifest) = self.hot.manifests.get(digest).or_else(|| self.pending.get(digest)) {
            self.space.used(digest);
            return Ok(Some(manifest));
        }
        // Once for all who ask: a large one is in memory once.
        let (space, hot, wanted) = (self.space.clone(), self.hot.clone(), *digest);
        let load = || async move {
            let loaded = blocking(move || load_manifest(&space, &wanted)).await?;
            let loaded = loaded.map_err(|error| {
                tracing::error!(%error, "cannot read a manifest");
                Failure::new(FailureKind::Storage, format!("cannot read a manifest: {error}"))
            });
            let manifest = loaded?.map(Arc::new);
            if let Some(manifest) = &manifest {
                hot.manifests.insert(wanted, manifest.clone());
            }
            Ok(manifest)
        };
        let loaded = self.loads.run(*digest, load).await.0.inspect_err(|_| {
            self.metrics.errors.inc();
        })?;
        if loaded.is_some() {
            self.space.used(digest);
        }
        Ok(loaded)
    }

    /// Keeps a verified manifest. Where the store fails it is handed on all the same, and not kept in
    /// memory either: the next request for it is another chance to store it.
    pub async fn put_manifest(self: &Arc<Self>, viewer: &Viewer, manifest: Manifest) -> Arc<Manifest> {
        let manifest = Arc::new(manifest);
        if !self.pending.add(&manifest) {
            self.metrics.unstored.inc();
            tracing::warn!(digest = %manifest.digest, "too many manifests wait to be stored; one is served uncached");
            return manifest;
        }
        self.mark_visible(viewer, manifest.digest);
        let (cache, viewer, storing) = (self.clone(), viewer.clone(), manifest.clone());
        let stored = tokio::spawn(async move {
            cache.store_manifest(&viewer, &storing).await;
            cache.pending.remove(&storing.digest);
        });
        // It goes on behind the answer.
        let _ = tokio::time::timeout(PATIENCE, stored).await;
        manifest
    }

    async fn store_manifest(&self, viewer: &Viewer, manifest: &Arc<Manifest>) {
        match self.store(manifest).await {
            // The reservation lives until the object is counted.
            Ok((is_new, _reservation)) => {
                self.hot.manifests.insert(manifest.digest, manifest.clone());
                let size = manifest.bytes.len() as u64;
                self.record_object(viewer, manifest.digest, size, Some(manifest.media_type.clone()), is_new);
                let children = Outline::read(&manifest.bytes).children;
                let children = children.iter().map(|child| child.digest).collect();
                self.index.write(Write::Edges { parent: manifest.digest, children });
                self.space.edges_changed(&manifest.digest);
            }
            Err(failure) => {
                self.metrics.unstored.inc();
                tracing::warn!(digest = %manifest.digest, %failure, "a manifest is served uncached");
            }
        }
    }

    /// Stores a small object, in room that is made for it as for any other.
    async fn store(&self, manifest: &Arc<Manifest>) -> Result<(bool, Reservation), Failure> {
        let (disk, stored) = (self.disk.clone(), manifest.clone());
        let reservation = match self.room.reserve(manifest.bytes.len() as u64).await {
            Err(failure) => {
                // Limits that are reached are no failure of the cache; a disk that is full is.
                if blocking(move || disk.is_full()).await? {
                    self.metrics.errors.inc();
                }
                return Err(failure);
            }
            reserved => reserved?,
        };
        let turn = disk.turn().await;
        let put = move || {
            let _turn = turn;
            disk.put(&stored.digest, &stored.bytes)
        };
        let result = blocking(put).await?;
        Ok((result.map_err(|error| self.broken("cannot store a manifest", &error))?, reservation))
    }

    /// Whether a stored object came as a manifest and not as a blob.
    pub async fn is_only_a_manifest(&self, digest: &Digest, content: &Content) -> bool {
        // Larger ones are no manifests, and need no look.
        let Content::Complete { stored, .. } = content else {
            return false;
        };
        let is_json = matches!(&stored.body, Body::Read(bytes) if bytes.first() == Some(&b'{'));
        if !is_json {
            return false;
        }
        let digest = *digest;
        let entry = self.read(move |index| index.object(&digest)).await;
        entry.is_ok_and(|entry| entry.is_some_and(|entry| entry.media_type.is_some()))
    }
}

fn load_manifest(space: &Space, digest: &Digest) -> Result<Option<Manifest>, io::Error> {
    let Some(stored) = space.disk().get(digest)? else {
        return Ok(None);
    };
    if stored.size > MAX_MANIFEST {
        return Ok(None);
    }
    let bytes = read_at(&stored.file, 0, stored.size)?;
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        tracing::error!(%digest, "a stored manifest is damaged; it was removed and is fetched again");
        space.discard(digest)?;
        return Ok(None);
    }
    let entry = space.index().object(digest).unwrap_or_else(|error| {
        tracing::warn!(%digest, %error, "cannot read what the index knows of a manifest");
        None
    });
    let stored_at = entry.as_ref().map_or_else(Timestamp::now, |entry| entry.stored_at);
    // What came as a blob has no type. Without a row, nothing is known of how it came.
    let media_type = match entry {
        Some(entry) => entry.media_type,
        None => manifest::is_one(&bytes).then(|| manifest::media_type_of(&bytes)),
    };
    Ok(media_type.map(|media_type| Manifest { digest: *digest, media_type, bytes, stored_at }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::oci::{Algorithm, MediaType};

    #[test]
    fn manifests_that_wait_for_the_disk_are_bounded_by_bytes() {
        let pending = Pending::default();
        let manifest = |number: u8| {
            let digest = Digest::of(Algorithm::Sha256, &[number]);
            let bytes = Bytes::from(vec![number; 8 << 20]);
            Arc::new(Manifest { digest, media_type: MediaType::new("m"), bytes, stored_at: Timestamp(1) })
        };
        let taken = (0..20).filter(|number| pending.add(&manifest(*number))).count();
        assert_eq!(taken, MOST_PENDING / (8 << 20));
        let first = Digest::of(Algorithm::Sha256, &[0]);
        assert!(pending.get(&first).is_some());
        pending.remove(&first);
        assert!(pending.get(&first).is_none() && pending.add(&manifest(30)), "there is room again");
    }
}
