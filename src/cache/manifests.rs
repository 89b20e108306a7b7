//! Manifests: from memory, from the store, and on their way into the store.
//!
//! A manifest is handed on once its digest has matched, and is stored after that: a disk that is slow, or hangs, keeps
//! no client waiting. Until it is stored, the manifest is pending, and a hit.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Cache;
use super::bucket::{InBucket, KnownBucket};
use super::hot::{Hot, MAX_MANIFEST, Manifest};
use super::read::Content;
use crate::failure::{Failure, FailureKind};
use crate::index::{Index, Timestamp, Viewer, Write};
use crate::oci::Digest;
use crate::oci::manifest::{self, Outline};
use crate::store::{Body, Store};
use crate::upkeep::Upkeep;
use crate::upkeep::room::{Reservation, Room};

/// How long an answer waits for a manifest to be stored. A healthy disk takes a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);

impl Cache {
    /// Returns a manifest from memory or the store, and counts that as a use of it.
    pub async fn manifest(&self, digest: &Digest) -> Result<Option<Arc<Manifest>>, Failure> {
        let found = self.look_at_manifest(digest).await?;
        if found.is_some() {
            self.upkeep.used(digest);
        }
        Ok(found)
    }

    /// Returns a manifest from memory or the store. Who only looks at the cache changes nothing of what is evicted next.
    pub async fn look_at_manifest(&self, digest: &Digest) -> Result<Option<Arc<Manifest>>, Failure> {
        if let Some(manifest) = self.hot.manifests.get(digest).or_else(|| self.pending.get(digest)) {
            return Ok(Some(manifest));
        }
        // Loaded once for all callers, so that a large manifest is in memory once.
        let (loader, wanted) = (self.manifest_loader(), *digest);
        let load = || async move { loader.load(&wanted).await };
        self.loads.run(*digest, load).await.0.inspect_err(|_| {
            self.metrics.errors.inc();
        })
    }

    /// Keeps a verified manifest. If the store fails, the manifest is handed on all the same, and is not kept in memory
    /// either: the next request for it is another chance to store it.
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
        // Storing may go on after the answer.
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
                self.index.note(Write::Edges { parent: manifest.digest, children });
                self.upkeep.edges_changed(&manifest.digest);
                self.offer_upload(manifest.digest);
            }
            Err(failure) => {
                self.metrics.unstored.inc();
                tracing::warn!(digest = %manifest.digest, %failure, "a manifest is served uncached");
            }
        }
    }

    /// Stores a manifest, in room that is reserved for it as for any other object.
    async fn store(&self, manifest: &Arc<Manifest>) -> Result<(bool, Reservation), Failure> {
        let reservation = match self.room.reserve(manifest.bytes.len() as u64).await {
            Err(failure) => {
                // Limits that are reached are no failure of the cache; a full disk is.
                if self.store.capacity().await.is_ok_and(|capacity| capacity.is_full()) {
                    self.metrics.errors.inc();
                }
                return Err(failure);
            }
            reserved => reserved?,
        };
        let stored = self.store.put(&manifest.digest, manifest.bytes.clone()).await;
        Ok((stored.map_err(|error| self.broken("cannot store a manifest", error))?, reservation))
    }

    fn manifest_loader(&self) -> Loader {
        Loader {
            store: self.store.clone(),
            index: self.index.clone(),
            upkeep: self.upkeep.clone(),
            hot: self.hot.clone(),
            bucket: self.bucket.clone(),
            room: self.room.clone(),
        }
    }

    /// Returns whether a stored object came as a manifest and not as a blob.
    pub async fn is_only_a_manifest(&self, digest: &Digest, content: &Content) -> bool {
        // Only small objects are `Body::Read`. Larger ones are no manifests, and need no look.
        let Content::Complete { object, .. } = content else {
            return false;
        };
        let is_json = matches!(&object.body, Body::Read(bytes, _) if bytes.first() == Some(&b'{'));
        if !is_json {
            return false;
        }
        let entry = self.read(self.index.object(digest)).await;
        entry.is_ok_and(|entry| entry.is_some_and(|entry| entry.media_type.is_some()))
    }
}

/// Reads manifests from the store into memory.
struct Loader {
    store: Arc<dyn Store>,
    index: Arc<dyn Index>,
    upkeep: Arc<Upkeep>,
    hot: Arc<Hot>,
    bucket: Option<Arc<KnownBucket>>,
    room: Arc<dyn Room>,
}

impl Loader {
    async fn load(&self, digest: &Digest) -> Result<Option<Arc<Manifest>>, Failure> {
        let loaded = self.read(digest).await.map_err(|error| {
            tracing::error!(%error, "cannot read a manifest");
            Failure::of(FailureKind::Storage, "cannot read a manifest", error)
        });
        let manifest = loaded?.map(Arc::new);
        if let Some(manifest) = &manifest {
            self.hot.manifests.insert(*digest, manifest.clone());
        }
        Ok(manifest)
    }

    async fn read(&self, digest: &Digest) -> io::Result<Option<Manifest>> {
        let Some(object) = self.store.open(digest).await? else {
            return Ok(self.recall(digest).await);
        };
        if object.size > MAX_MANIFEST {
            return Ok(None);
        }
        let bytes = object.read(0, object.size).await?;
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            tracing::error!(%digest, "a stored manifest is damaged; it was removed and is fetched again");
            self.upkeep.discard(digest).await?;
            return Ok(None);
        }
        let entry = self.index.object(digest).await.unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "cannot read what the index knows of a manifest");
            None
        });
        let stored_at = entry.as_ref().map_or_else(Timestamp::now, |entry| entry.stored_at);
        // An object that came as a blob has no media type. Without a row, it is not known how the object came.
        let media_type = match entry {
            Some(entry) => entry.media_type,
            None => manifest::is_one(&bytes).then(|| manifest::media_type_of(&bytes)),
        };
        Ok(media_type.map(|media_type| Manifest::new(*digest, media_type, bytes, stored_at)))
    }

    /// Returns a manifest that is only in the bucket. It is stored again, as far as there is room.
    async fn recall(&self, digest: &Digest) -> Option<Manifest> {
        let known = self.bucket.as_ref()?;
        let found = InBucket::of(digest, self.index.object(digest).await.ok().flatten()?)?;
        let media_type = found.media_type.clone()?;
        let bytes = known.manifest(&found, &self.upkeep).await?;
        let size = bytes.len() as u64;
        if let Ok(_reservation) = self.room.reserve(size).await
            && self.store.put(digest, bytes.clone()).await.is_ok()
        {
            self.upkeep.has_file(digest, size);
        }
        let stored_at = Timestamp::from_system_time(found.since);
        Some(Manifest::new(*digest, media_type, bytes, stored_at))
    }
}
