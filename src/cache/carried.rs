//! What is carried in and out: objects that come from an archive and not from an upstream, and objects that are copied
//! out.
//!
//! An object from an archive takes the way of any other: room is reserved, the bytes go into a download, and the store
//! gets the file once the digest has matched. Nobody is shown the object until [`Cache::show`] says for whom it is.

use std::sync::Arc;

use bytes::Bytes;

use super::hot::MAX_MANIFEST;
use super::read::Content;
use super::{Cache, Manifest};
use crate::failure::{Failure, FailureKind};
use crate::index::{ObjectEntry, Timestamp, Viewer, Write};
use crate::oci::manifest::Outline;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::spool::{Partial, Slot};
use crate::store::Object;
use crate::upkeep::Lease;
use crate::upkeep::room::Reservation;

/// Bytes that are read for a copy at a time.
const PIECE: u64 = 1 << 20;
/// Writes that go to the index at once.
const BATCH: usize = 1_000;

/// The right to carry objects in or out, for one archive at a time.
pub struct Carrying {
    cache: Arc<Cache>,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

/// An object of which a copy is made. It is not evicted meanwhile.
pub struct Copied {
    digest: Digest,
    object: Object,
    at: u64,
    hasher: Option<Hasher>,
    _lease: Arc<Lease>,
}

/// An object on its way from an archive into the store.
pub struct Arriving {
    cache: Arc<Cache>,
    digest: Digest,
    size: u64,
    at: u64,
    partial: Partial,
    slot: Slot,
    reserved: Reservation,
}

/// An object that has come from an archive, or was here before. It is not evicted while this lives.
pub struct Arrived {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Whether it was not here before.
    pub is_new: bool,
    _lease: Arc<Lease>,
}

impl Cache {
    /// Returns the right to carry objects in or out; `None` while another archive is read or written.
    pub fn begin_carrying(self: &Arc<Self>) -> Option<Carrying> {
        let turn = self.carrying.clone().try_lock_owned().ok()?;
        Some(Carrying { cache: self.clone(), _turn: turn })
    }

    /// Returns whether an object may be shown to whoever reads this repository with Larder's own credentials.
    pub async fn is_shown(&self, repository: &str, digest: &Digest) -> Result<bool, Failure> {
        use crate::index::Scope::{Own, Public};
        Ok(self.is_visible(&Viewer::new(repository, Own), digest).await?
            || self.is_visible(&Viewer::new(repository, Public), digest).await?)
    }

    /// Returns whether so many bytes would not fit even if nothing else were cached.
    pub fn never_fits(&self, bytes: u64) -> bool {
        self.room.never_fits(bytes)
    }

    /// Returns what the index knows of a stored object.
    pub async fn known(&self, digest: &Digest) -> Result<Option<ObjectEntry>, Failure> {
        self.read(self.index.object(digest)).await
    }
}

impl Carrying {
    /// Returns the cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Keeps an object from being evicted until this is dropped.
    pub fn keep(&self, digest: &Digest) -> Arc<Lease> {
        self.cache.upkeep.lease(digest)
    }

    /// Opens an object to make a copy of it; `None` if it is not stored.
    pub async fn copy(&self, digest: &Digest) -> Result<Option<Copied>, Failure> {
        Ok(match self.cache.recalled(digest).await? {
            Some(Content::Complete { object, lease }) => {
                let hasher = Some(digest.algorithm().hasher());
                Some(Copied { digest: *digest, object, at: 0, hasher, _lease: lease })
            }
            _ => None,
        })
    }

    /// Returns the bytes of a stored object that may be a manifest; `None` if it is not stored or too large to be one.
    pub async fn document(&self, digest: &Digest) -> Result<Option<Bytes>, Failure> {
        let Some(mut copied) = self.copy(digest).await?.filter(|copied| copied.size() <= MAX_MANIFEST) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        while let Some(piece) = copied.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes.into()))
    }

    /// Returns an object that is here already, and is kept from being evicted.
    pub async fn present(&self, digest: &Digest) -> Result<Option<Arrived>, Failure> {
        let lease = self.keep(digest);
        let found = self.copy(digest).await?;
        Ok(found.map(|copied| Arrived { digest: *digest, size: copied.size(), is_new: false, _lease: lease }))
    }

    /// Begins an object of `size` bytes, in room that is reserved for it.
    pub async fn begin(&self, digest: Digest, size: u64) -> Result<Arriving, Failure> {
        let cache = self.cache.clone();
        if cache.room.never_fits(size) {
            let message =
                format!("{digest} has {size} bytes, more than cache.max_size and cache.min_free leave room for");
            return Err(Failure::new(FailureKind::NoRoom, message));
        }
        let reserved = cache.room.reserve(size).await?;
        // A key of its own: a fill of the same object has a file of its own.
        let key = Digest::of(Algorithm::Sha256, format!("archive {digest}").as_bytes());
        cache.coming.set(Some(key));
        let opened = cache.spool.open(&key, false).await;
        let (partial, _) = opened.map_err(|error| cache.broken("cannot write an object", error))?;
        let allocated = partial.allocate(size).await;
        let slot = partial.new_slot();
        let arriving = Arriving { cache, digest, size, at: 0, partial, slot, reserved };
        match allocated {
            Ok(()) => Ok(arriving),
            Err(error) => Err(arriving.failed(error).await),
        }
    }

    /// Takes objects out again that came from an archive which is not taken in.
    pub async fn take_back(&self, arrived: Vec<Arrived>) {
        for Arrived { digest, .. } in arrived.iter().filter(|arrived| arrived.is_new) {
            if let Err(error) = self.cache.upkeep.discard(digest).await {
                tracing::warn!(%digest, %error, "an object of an archive that was refused cannot be removed");
            }
        }
    }

    /// Shows objects in a repository, as if its upstream had sent them to Larder: first the objects and what leads to
    /// them, then `names`.
    pub async fn show(
        &self,
        viewer: &Viewer,
        objects: &[Digest],
        manifests: &[Manifest],
        names: Vec<Write>,
    ) -> Result<(), Failure> {
        let visible = objects.iter().map(|digest| Write::Visible { viewer: viewer.clone(), digest: *digest });
        let documents = manifests.iter().flat_map(|manifest| {
            let digest = manifest.digest;
            let (size, media_type) = (manifest.bytes.len() as u64, Some(manifest.media_type.clone()));
            let entry = ObjectEntry { size, media_type, stored_at: manifest.stored_at, generation: None };
            let children = Outline::read(&manifest.bytes).children.iter().map(|child| child.digest).collect();
            [Write::Object { digest, entry }, Write::Edges { parent: digest, children }]
        });
        let mut writes: Vec<_> = visible.chain(documents).chain(names).collect();
        let keys: Vec<_> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Tag { key, .. } => Some(key.clone()),
                _ => None,
            })
            .collect();
        let hot = &self.cache.hot;
        // What is in memory may say that an object is a blob, or that a tag leads elsewhere.
        hot.forget(&manifests.iter().map(|manifest| manifest.digest).collect());
        while !writes.is_empty() {
            let batch = writes.drain(..writes.len().min(BATCH)).collect();
            let written = self.cache.index.apply(batch).await;
            written.map_err(|error| self.cache.broken("cannot write to the index", error))?;
        }
        let written = self.cache.index.flush().await;
        written.map_err(|error| self.cache.broken("cannot write to the index", error))?;
        for key in keys {
            hot.tags.remove(&key);
            self.cache.upkeep.tag_changed(&key);
        }
        objects.iter().for_each(|digest| self.cache.upkeep.seen_by(digest, &viewer.repository));
        manifests.iter().for_each(|manifest| self.cache.upkeep.edges_changed(&manifest.digest));
        Ok(())
    }
}

impl Copied {
    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.object.size
    }

    /// Returns the next bytes; `None` at the end. Fails at the end if the bytes do not have the object's digest.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let digest = self.digest;
        if self.at == self.object.size {
            return match self.hasher.take().map(Hasher::finish) {
                Some(found) if found != digest => {
                    let message = format!("{digest} is damaged in the cache; run `larder verify --repair`");
                    Err(Failure::new(FailureKind::Storage, message))
                }
                _ => Ok(None),
            };
        }
        let length = (self.object.size - self.at).min(PIECE);
        let read = self.object.read(self.at, length).await;
        let bytes = read.map_err(|error| Failure::of(FailureKind::Storage, format!("cannot read {digest}"), error))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.at += length;
        Ok(Some(bytes))
    }
}

impl Arriving {
    /// Writes the next bytes.
    pub async fn write(mut self, bytes: Bytes) -> Result<Self, Failure> {
        if self.at + bytes.len() as u64 > self.size {
            let message = format!("{} has more bytes than were announced", self.digest);
            self.give_up().await;
            return Err(Failure::new(FailureKind::WrongContent, message));
        }
        match self.partial.write(&self.slot, 0, self.at, vec![bytes]).await {
            Ok(at) => {
                self.at = at;
                Ok(self)
            }
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// Stores the object, whose bytes were found to have its digest.
    pub async fn publish(self) -> Result<Arrived, Failure> {
        let Self { cache, digest, size, partial, reserved, .. } = self;
        let lease = cache.upkeep.lease(&digest);
        let published = cache.store.publish(partial, &digest, size).await;
        cache.coming.set(None);
        let is_new = published.map_err(|error| cache.broken("cannot store an object", error))?;
        let entry = ObjectEntry { size, media_type: None, stored_at: Timestamp::now(), generation: None };
        let written = cache.index.apply(vec![Write::Object { digest, entry }]).await;
        // For no repository yet.
        cache.upkeep.stored(digest, size, "");
        written.map_err(|error| cache.broken("cannot write to the index", error))?;
        if is_new {
            cache.metrics.stores.inc();
        }
        cache.offer_upload(digest);
        drop(reserved);
        Ok(Arrived { digest, size, is_new, _lease: lease })
    }

    /// Removes what came of the object.
    pub async fn give_up(self) {
        if let Err(error) = self.partial.discard().await {
            tracing::warn!(digest = %self.digest, %error, "cannot remove a download");
        }
        self.cache.coming.set(None);
    }

    async fn failed(self, error: std::io::Error) -> Failure {
        let failure = self.cache.broken("cannot write an object", error);
        self.give_up().await;
        failure
    }
}
