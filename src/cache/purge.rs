//! Takes content out, step by step: rows first, then files.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt;

use super::Cache;
use super::hot::Hot;
use crate::failure::Failure;
use crate::index::{Index, IndexError, Purge, Purged};
use crate::s3::{Bucket, Upload};
use crate::store::Store;
use crate::upkeep::{self, Upkeep};

impl Cache {
    /// Takes content out, in steps: rows first, then files. Readers that have a file open go on. The purge runs to its
    /// end even if its caller has left.
    pub async fn purge(&self, purge: Purge) -> Result<Purged, Failure> {
        let purging = Purging {
            index: self.index.clone(),
            hot: self.hot.clone(),
            upkeep: self.upkeep.clone(),
            store: self.store.clone(),
            bucket: self.bucket.as_ref().map(|known| known.bucket.clone()),
        };
        let purged = tokio::spawn(async move { purging.run(&purge).await }).await;
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

impl Purging {
    /// Takes content out. Readers that have a file open go on.
    pub async fn run(&self, purge: &Purge) -> Result<Purged, PurgeError> {
        let purged = self.rows_and_files(purge).await;
        // Also if the purge broke off: removed content must not be served from memory.
        self.hot.clear();
        purged
    }

    async fn rows_and_files(&self, purge: &Purge) -> Result<Purged, PurgeError> {
        match self.in_steps(purge).await {
            // On a full disk, not even rows can be removed until something else was.
            Err(PurgeError::Index(_)) if *purge == Purge::All => {
                self.store.clear().await?;
                self.in_steps(purge).await
            }
            purged => purged,
        }
    }

    async fn in_steps(&self, purge: &Purge) -> Result<Purged, PurgeError> {
        let is_all = *purge == Purge::All;
        let mut steps = self.index.purge(purge.clone());
        let (mut all, mut removed) = (Purged::default(), Ok(()));
        let mut left = 0;
        while let Some(step) = steps.next().await {
            let step = step?;
            self.hot.clear();
            self.upkeep.removed(&step.digests, false);
            if !is_all {
                // The next rows are removed all the same: a file that cannot be removed is shown to nobody.
                let files = self.store.remove(&step.digests).await;
                removed = removed.and(files);
            }
            left += self.delete_uploads(&step).await;
            // The digests are dropped: no caller asks for them.
            all.add(Purged { digests: Vec::new(), uploads: Vec::new(), ..step });
        }
        if left > 0 {
            tracing::warn!(
                left,
                "the bucket does not delete all that was purged now; no client gets it, and the sweep deletes it within a day or two"
            );
        }
        self.upkeep.removed(&[], is_all);
        if is_all {
            removed = self.store.clear().await;
        }
        removed?;
        Ok(all)
    }

    /// Deletes what was purged from the bucket. Returns how many keys are left.
    async fn delete_uploads(&self, step: &Purged) -> usize {
        let Some(bucket) = self.bucket.as_ref().filter(|_| !step.uploads.is_empty()) else {
            return 0;
        };
        let uploads = step.uploads.iter().map(|&(digest, generation)| Upload { digest, generation });
        upkeep::delete_uploads(bucket, uploads.collect()).await.0.len()
    }
}
