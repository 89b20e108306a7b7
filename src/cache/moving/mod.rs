//! Moves a cache to another place, with everything that is known of its content: from a directory to a bucket, from SQLite to
//! PostgreSQL, or back.
//!
//! Content comes first, and each object's row behind it: so what has a row at the new place is there and need not be sent
//! again. Then comes what leads to the objects, tags last. A migration that breaks off leaves a cache that knows less, never
//! one that knows of what it does not have. Nothing is removed from the old place.
//!
//! What others went through (Nexus: an index that named blobs which were not brought over, and a repair that stopped at the
//! first missing one, sonatype/nexus-public#324 and #273; the registry of Docker: no way but to pull and push everything,
//! distribution/distribution#3878): so each object is compared with its digest on its way, and one that is lost or damaged
//! is named, left out with all that leads to it, and stops nothing else.

mod content;
mod error;
mod objects;
mod place;
mod progress;
mod report;
mod rows;
mod send;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};

pub use error::{MovingError, Side};
pub use progress::Progress;
pub use report::Report;

use super::passes::Passes;
use crate::config::{Amount, Config};
use crate::index::{IndexError, RowKey, Table, TakeObject};
use crate::oci::Digest;
use place::{Place, Same};

/// Objects that are looked at or brought over at once. Each has a part of an upload in memory.
const AT_ONCE: usize = 4;
/// Objects between two writes about those that were there before.
const PAGE: usize = 200;

/// A cache that is to be moved, and the place where it goes.
pub struct Moving {
    from: Place,
    to: Place,
    same: Same,
    /// `cache.max_size` and `cache.min_free` of the new cache.
    max_size: Amount,
    min_free: Amount,
    /// Objects that cannot be brought over.
    lost: Mutex<HashSet<Digest>>,
    progress: Arc<Progress>,
}

impl Moving {
    /// Opens both caches, which nobody may use meanwhile.
    pub async fn open(old: &Config, new: &Config) -> Result<Self, MovingError> {
        let same = Same::of(old, new)?;
        let (from, to) = place::open_both(old, new, same)?;
        if from.index.was_damaged() {
            return Err(MovingError::DamagedIndex);
        }
        for (side, place) in [(Side::Old, &from), (Side::New, &to)] {
            place.index.check().await.map_err(|error| MovingError::Index(side, error))?;
        }
        let (max_size, min_free) = (new.cache.max_size, new.cache.min_free);
        Ok(Self { from, to, same, max_size, min_free, lost: Mutex::default(), progress: Arc::default() })
    }

    /// Returns how far it has come, also while it runs.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Finds out what is to be moved. `is_thorough`: the bucket is asked for each object that it should have, and files that
    /// were touched are read.
    pub async fn plan(&self, is_thorough: bool) -> Result<Report, MovingError> {
        let all = Arc::new(Mutex::new((0, 0)));
        let counted = all.clone();
        let each: TakeObject = Box::new(move |object| {
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            *counted = (counted.0 + 1, counted.1 + object.size);
        });
        self.from.index.objects_by_use(false, each).await.map_err(|error| MovingError::Index(Side::Old, error))?;
        let (objects, bytes) = *all.lock().unwrap_or_else(PoisonError::into_inner);
        self.progress.begin(bytes);
        let mut report = Report { objects, bytes, ..Report::default() };
        let mut behind = RowKey::default();
        while let Some(page) = self.page(Table::Objects, &mut behind, PAGE).await? {
            let looks = stream::iter(objects::known(page)).map(async |object| {
                let size = object.entry.size;
                let there = self.there(&object, is_thorough).await?;
                self.progress.add(size);
                Ok::<_, MovingError>(there.map(|_| size))
            });
            for size in looks.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?.into_iter().flatten() {
                report.present += 1;
                report.present_bytes += size;
            }
        }
        Ok(report)
    }

    /// Fails if what is still to be moved does not fit.
    pub async fn check_room(&self, plan: &Report) -> Result<(), MovingError> {
        let capacity = self.to.folder.store.capacity().await.map_err(|error| MovingError::Disk(Side::New, error))?;
        let (all, left) = (plan.bytes, plan.left_bytes());
        if let Some(most) = self.max_size.of(capacity.total).filter(|most| *most < all) {
            return Err(MovingError::NoRoom { bytes: all, room: most, key: "cache.max_size of the new one" });
        }
        let room = capacity.free.saturating_sub(self.min_free.of(capacity.total).unwrap_or(0));
        if self.to.bucket.is_none() && left > room {
            return Err(MovingError::NoRoom {
                bytes: left,
                room,
                key: "the disk of the new cache.dir, less cache.min_free,",
            });
        }
        Ok(())
    }

    /// Moves everything that `plan` has found.
    pub async fn run(&self, plan: &Report) -> Result<Report, MovingError> {
        if !self.same.folder {
            // First of all: a repository whose content came by clients' credentials must stay known as such.
            let (from, to) = (self.from.folder.dir.clone(), self.to.folder.dir.clone());
            let carried = tokio::task::spawn_blocking(move || Passes::carry(&from, &to)).await;
            let carried = carried.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            carried.map_err(|error| MovingError::Disk(Side::New, error))?;
        }
        self.progress.begin(plan.bytes);
        let mut report = Report { objects: plan.objects, bytes: plan.bytes, ..Report::default() };
        let mut behind = RowKey::default();
        while let Some(page) = self.page(Table::Objects, &mut behind, PAGE).await? {
            self.bring_page(page, &mut report).await?;
        }
        self.bring_rows(&mut report).await?;
        report.is_complete = true;
        Ok(report)
    }

    /// Closes both caches.
    pub async fn close(self) {
        for (side, place) in [(Side::New, &self.to), (Side::Old, &self.from)] {
            match place.index.close().await {
                // It is one index for both.
                Ok(()) | Err(IndexError::Closed) => {}
                Err(error) => tracing::warn!(%error, "the index of {side} could not be closed"),
            }
        }
    }
}
