//! Brings blobs into the cache that no client waits for.

use std::sync::Arc;

use super::blobs::Blobs;
use crate::access::{StoredObject, party};
use crate::cache::Fill;
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;
use crate::routing::Target;
use crate::upstream::{Lane, Upstream};

/// A blob that is in the cache now.
#[derive(Clone, Copy, Debug)]
pub struct Brought {
    pub bytes: u64,
    /// Whether it had been there before.
    pub was_there: bool,
}

/// How far a blob is that is to come in behind the clients.
pub enum Behind {
    /// It is in the cache, and this repository may show it.
    There,
    /// It is on its way in for others.
    Joined(Arc<Fill>),
    /// It is on its way in because of this call.
    Begun(Arc<Fill>),
    /// Clients need all places, or soon may.
    NoPlace,
}

impl Blobs {
    /// Brings a blob into the cache, for nobody in particular.
    pub async fn bring(&self, target: &Target, digest: &Digest) -> Result<Brought, Failure> {
        if let Some(bytes) = self.confirmed(target, digest).await? {
            return Ok(Brought { bytes, was_there: true });
        }
        let (fill, is_first, begun) = self.begun(target, digest).await;
        begun?;
        self.agreed(target, digest, &fill, is_first).await?;
        match fill.whole().await? {
            Some(bytes) => Ok(Brought { bytes, was_there: false }),
            None => Err(no_room()),
        }
    }

    /// Begins to bring a blob into the cache, as long as that keeps no client waiting.
    pub async fn begin_behind(&self, target: &Target, digest: &Digest) -> Result<Behind, Failure> {
        if let Some(fill) = self.cache.running_fill(digest).filter(|fill| !fill.is_verified()) {
            return Ok(Behind::Joined(fill.unread()));
        }
        if self.confirmed(target, digest).await?.is_some() {
            return Ok(Behind::There);
        }
        if !target.repository.upstreams.iter().any(Upstream::has_spare_connection) {
            return Ok(Behind::NoPlace);
        }
        let origin = || self.origins.of(target, digest, Lane::Behind);
        let begun = self.cache.fill_behind(&target.repository.viewer(), *digest, party(target), origin);
        Ok(begun.map_or(Behind::NoPlace, Behind::Begun))
    }

    /// Waits until a blob is there whose fill [`Self::begin_behind`] began, and returns its size.
    pub async fn brought_behind(&self, target: &Target, digest: &Digest, fill: &Arc<Fill>) -> Result<u64, Failure> {
        fill.size().await?;
        // What was resumed may have come for other clients.
        let is_resumed = fill.is_resumed();
        if !is_resumed {
            self.consent.given.begun(target, digest, Arc::downgrade(fill));
        }
        let bytes = fill.whole().await?.ok_or_else(no_room)?;
        if is_resumed && target.repository.config.client_consent.is_some() {
            self.consent.confirm(target, StoredObject::Blob(bytes), digest).await?;
        }
        Ok(bytes)
    }

    /// Returns the size of a blob that is in the cache, once the upstream has agreed that this repository shows it;
    /// `None` if it is not in the cache.
    async fn confirmed(&self, target: &Target, digest: &Digest) -> Result<Option<u64>, Failure> {
        let size = match self.at_hand(target, digest).await {
            Some(content) => content?.0,
            // What is in the bucket is in the cache.
            None => match self.cache.in_bucket(digest).await {
                Some(found) => found.size,
                None => return Ok(None),
            },
        };
        self.consent.confirm(target, StoredObject::Blob(size), digest).await?;
        Ok(Some(size))
    }
}

fn no_room() -> Failure {
    Failure::new(FailureKind::NoRoom, "there is no room for it, or it is larger than the cache")
}
