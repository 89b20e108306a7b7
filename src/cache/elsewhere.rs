//! Follows what other Larders did to an index that they share: what one of them takes out is gone everywhere.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::Cache;
use super::uploads::IsMine;
use crate::clock::Instant;
use crate::index::{Change, Index, IndexError, Mark, TagKey, Write};
use crate::oci::Digest;

/// How often the index is asked.
const LOOK: Duration = Duration::from_secs(1);
/// The index keeps changes for a day. Who could not ask for so long does not rely on them.
const TOO_LONG: Duration = Duration::from_secs(20 * 3_600);

impl Cache {
    /// Returns the index, by which replicas find one another.
    pub fn index(&self) -> Arc<dyn Index> {
        self.index.clone()
    }

    /// Follows the changes of others; runs until the process ends. Returns at once if nobody shares the index.
    pub(super) async fn follow_others(&self) {
        if !self.index.is_on_server() {
            return;
        }
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut mark, mut asked) = (None::<Mark>, Instant::now());
        loop {
            looks.tick().await;
            let is_late = asked.elapsed() > TOO_LONG;
            // The index says itself that it is away.
            let Ok((changes, known)) = self.index.changes(mark.clone()).await else {
                continue;
            };
            asked = Instant::now();
            if is_late {
                self.follow(vec![Change::Unknown]).await;
            }
            // What could not be done is told, and done, again.
            if self.follow(changes).await {
                mark = Some(known);
            }
        }
    }

    /// Has only those objects uploaded of which `is_mine` says so: others that share the bucket upload the rest.
    pub fn share_uploads(&self, is_mine: IsMine) {
        if let Some(uploads) = &self.uploads {
            uploads.share(is_mine);
        }
    }

    /// Has a stored object uploaded, if there is a bucket.
    pub(super) fn offer_upload(&self, digest: Digest) {
        self.uploads.iter().for_each(|uploads| uploads.offer(digest));
    }

    /// Does what changes ask for. Returns whether all of it was done; it may be done twice.
    async fn follow(&self, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return true;
        }
        let mut is_done = true;
        let (mut gone, mut evicted) = (Vec::new(), Vec::new());
        let (mut is_all, mut is_more, mut is_unknown) = (false, false, false);
        for change in changes {
            is_more |= matches!(change, Change::Purged(_) | Change::PurgedAll | Change::Pins | Change::Unknown);
            match change {
                Change::Purged(digests) => gone.extend(digests),
                Change::PurgedAll => is_all = true,
                Change::Uploaded(objects) => self.upkeep.uploaded_elsewhere(&objects).await,
                Change::NotUploaded(digests) => {
                    self.upkeep.lost_elsewhere(&digests);
                    // Where there is a file, it is sent again.
                    let here = digests.into_iter().filter(|digest| self.upkeep.has_file_of(digest));
                    here.for_each(|digest| self.offer_upload(digest));
                }
                Change::Evicted(digests) => {
                    self.upkeep.lost_elsewhere(&digests);
                    evicted.extend(digests);
                }
                Change::Tags(tags) => self.hear_of_tags(&tags),
                Change::Unknown => is_unknown = true,
                Change::Pins => {}
            }
        }
        if is_unknown {
            self.upkeep.read_anew().await;
        }
        if let Err(error) = self.drop_evicted(evicted).await {
            tracing::warn!(%error, "objects that another Larder has evicted from the bucket stay on this disk for now");
            is_done = false;
        }
        if !is_more {
            return is_done;
        }
        self.upkeep.pins_changed();
        if is_all {
            self.upkeep.removed(&[], true);
            self.forget_files(self.store.clear().await);
        } else if let Err(error) = self.drop_files(gone).await {
            tracing::warn!(%error, "objects that another Larder has purged stay on this disk for now, and are shown to nobody");
            is_done = false;
        }
        // Rows are gone already, so what comes into memory from here on is right.
        self.hot.clear();
        self.purges.send_modify(|purges| *purges += 1);
        is_done
    }

    /// Takes what the index says of tags instead of what is in memory.
    fn hear_of_tags(&self, tags: &[TagKey]) {
        for key in tags {
            self.hot.tags.remove(key);
            self.upkeep.tag_changed(key);
        }
    }

    /// Lets the others that share the index hear of a tag that was noted here. They would keep what they have in memory
    /// until it is old.
    pub fn tell_of_tag(&self, key: TagKey) {
        if self.index.is_on_server() {
            self.index.note(Write::TellTag { key });
        }
    }

    /// Removes the files of objects that another Larder has purged.
    async fn drop_files(&self, gone: Vec<Digest>) -> Result<(), IndexError> {
        let gone = self.not_back(gone).await?;
        if gone.is_empty() {
            return Ok(());
        }
        self.upkeep.removed(&gone, false);
        self.forget_files(self.store.remove(&gone).await);
        Ok(())
    }

    /// Removes the files of objects that another Larder has evicted from the bucket: else they would be uploaded again.
    async fn drop_evicted(&self, evicted: Vec<Digest>) -> Result<(), IndexError> {
        let gone = self.not_back(evicted.clone()).await?;
        // When the others came in again, they were still said to be in the bucket.
        let back = evicted.into_iter().filter(|digest| !gone.contains(digest));
        back.for_each(|digest| self.offer_upload(digest));
        if gone.is_empty() {
            return Ok(());
        }
        self.upkeep.evicted_elsewhere(&gone);
        self.hot.forget(&gone.iter().copied().collect());
        self.forget_files(self.store.remove(&gone).await);
        Ok(())
    }

    /// Returns those that have not come in again meanwhile.
    async fn not_back(&self, gone: Vec<Digest>) -> Result<Vec<Digest>, IndexError> {
        if gone.is_empty() {
            return Ok(gone);
        }
        let is_back: HashSet<_> = self.index.stored_of(gone.clone()).await?;
        Ok(gone.into_iter().filter(|digest| !is_back.contains(digest)).collect())
    }

    fn forget_files(&self, removed: std::io::Result<()>) {
        if let Err(error) = removed {
            self.metrics.errors.inc();
            tracing::warn!(%error, "not all that another Larder has purged could be removed from this disk");
        }
    }
}
