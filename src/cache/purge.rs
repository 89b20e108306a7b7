//! Takes content out, step by step: rows first, then files, then what the bucket has.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::Cache;
use super::hot::Hot;
use crate::failure::Failure;
use crate::index::{Index, IndexError, Purge, Purged};
use crate::s3::{Bucket, Upload};
use crate::store::Store;
use crate::upkeep::{self, Upkeep};

/// How long a purge waits for the bucket in all, once no client gets anything of it any more.
const BUCKET: Duration = Duration::from_secs(20);

impl Cache {
    /// Takes content out, in steps: rows first, then files, then what the bucket has, as far as that is soon deleted.
    /// Readers that have a file open go on. The purge runs to its end even if its caller has left.
    pub async fn purge(&self, purge: Purge) -> Result<Purged, Failure> {
        self.purge_within(purge, BUCKET).await
    }

    /// Takes content out. `patience`: how long it waits for the bucket.
    pub(super) async fn purge_within(&self, purge: Purge, patience: Duration) -> Result<Purged, Failure> {
        let purging = Purging {
            index: self.index.clone(),
            hot: self.hot.clone(),
            upkeep: self.upkeep.clone(),
            store: self.store.clone(),
            bucket: self.bucket.as_ref().map(|known| known.bucket.clone()),
        };
        let purged = tokio::spawn(async move { purging.run(&purge, patience).await }).await;
        self.purges.send_modify(|purges| *purges += 1);
        let purged = purged.map_err(|error| self.broken("a purge broke off", error))?;
        purged.map_err(|error| match error {
            PurgeError::Index(error) => self.broken("cannot purge", error),
            PurgeError::Disk(error) => self.broken("cannot remove an object", error),
        })
    }
}

/// The parts of the cache that a purge works on.
struct Purging {
    index: Arc<dyn Index>,
    hot: Arc<Hot>,
    upkeep: Arc<Upkeep>,
    store: Arc<dyn Store>,
    bucket: Option<Bucket>,
}

/// Why content was not taken out.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// What the bucket has of rows that are gone.
#[derive(Default)]
struct Left {
    uploads: Vec<Upload>,
    /// How many more there are: only the sweep finds them.
    more: usize,
}

impl Left {
    fn add(&mut self, step: &Purged) {
        let room = upkeep::MOST_LEAVING - self.uploads.len();
        let uploads = step.uploads.iter().map(|&(digest, generation)| Upload { digest, generation });
        self.uploads.extend(uploads.take(room));
        self.more += step.uploads.len().saturating_sub(room);
    }
}

impl Purging {
    /// Takes content out. Readers that have a file open go on.
    async fn run(&self, purge: &Purge, patience: Duration) -> Result<Purged, PurgeError> {
        let mut left = Left::default();
        let purged = self.rows_and_files(purge, &mut left).await;
        // Also if the purge broke off: removed content must not be served from memory, and its rows are gone.
        self.hot.clear();
        self.delete_uploads(left, patience).await;
        purged
    }

    async fn rows_and_files(&self, purge: &Purge, left: &mut Left) -> Result<Purged, PurgeError> {
        match self.in_steps(purge, left).await {
            // On a full disk, not even rows can be removed until something else was.
            Err(PurgeError::Index(_)) if *purge == Purge::All => {
                self.store.clear().await?;
                self.in_steps(purge, left).await
            }
            purged => purged,
        }
    }

    async fn in_steps(&self, purge: &Purge, left: &mut Left) -> Result<Purged, PurgeError> {
        let is_all = *purge == Purge::All;
        let mut steps = self.index.purge(purge.clone());
        let (mut all, mut removed) = (Purged::default(), Ok(()));
        while let Some(step) = steps.next().await {
            let step = step?;
            self.hot.clear();
            self.upkeep.removed(&step.digests, false);
            if !is_all {
                // The next rows are removed all the same: a file that cannot be removed is shown to nobody.
                let files = self.store.remove(&step.digests).await;
                removed = removed.and(files);
            }
            left.add(&step);
            // The digests are dropped: no caller asks for them.
            all.add(Purged { digests: Vec::new(), uploads: Vec::new(), ..step });
        }
        self.upkeep.removed(&[], is_all);
        if is_all {
            removed = self.store.clear().await;
            if let Some(bucket) = &self.bucket {
                // Whatever is there now belongs to no row, and nothing of it is taken in again.
                self.index.set_compared_with(Some(bucket.place())).await?;
            }
        }
        removed?;
        Ok(all)
    }

    /// Deletes what was purged from the bucket. What takes longer than `patience` is deleted behind the purge.
    async fn delete_uploads(&self, Left { uploads, more }: Left, patience: Duration) {
        let Some(bucket) = self.bucket.as_ref().filter(|_| !uploads.is_empty()) else {
            return;
        };
        let (uploads, failure) = match patience {
            Duration::ZERO => (uploads, None),
            patience => upkeep::delete_uploads(bucket, uploads, patience).await,
        };
        let left = uploads.len() + more;
        if let Some(error) = failure {
            tracing::warn!(
                left,
                %error,
                "the bucket does not delete all that was purged now; no client gets it, and it is deleted later, at the latest by the sweep within a day or two"
            );
        }
        self.upkeep.delete_later(uploads);
    }
}
