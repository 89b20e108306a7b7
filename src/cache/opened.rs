//! The places in which a cache keeps what it has, opened: its directory, its bucket, its index.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::modes;
use super::pools::Pools;
use super::store_name::store_name;
use crate::config::Config;
use crate::files::FolderLock;
use crate::index::{Index, IndexError, LocalIndex, PostgresIndex, Sqlite};
use crate::s3::{Bucket, S3Error};
use crate::spool::Spool;
use crate::store::{Capacity, Disk, LocalStore, Store, StoreError};
use crate::upkeep;

/// Why a cache directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cache.dir: {0}")]
    Index(#[from] IndexError),
    /// It is kept by a server, and cannot be used as it is configured.
    #[error(transparent)]
    IndexServer(IndexError),
    #[error("storage.s3: {0}")]
    Bucket(#[from] S3Error),
}

/// A cache directory, which no other process uses.
#[derive(Clone)]
pub struct Folder {
    pub dir: PathBuf,
    pub store: Arc<dyn Store>,
    pub spool: Spool,
    pub pools: Pools,
    /// The room on its filesystem, as far as that is known.
    pub capacity: Option<Capacity>,
    lock: Arc<FolderLock>,
}

impl Folder {
    /// Opens a cache directory, and makes it if it is missing. Blocks.
    pub fn open(dir: &Path, pools: Pools) -> Result<Self, StoreError> {
        let disk = Disk::open(dir, pools.reads.clone())?;
        modes::tighten(dir);
        if let Err(error) = disk.check_all() {
            tracing::error!(dir = %dir.display(), %error, "nothing can be stored until this is mended");
        }
        let (lock, capacity) = (disk.lock(), disk.capacity().ok());
        let spool = Spool::locked(dir.join("partial"), pools.spool.clone(), lock.clone());
        let store = LocalStore::new(disk, pools.reads.clone(), pools.syncs.clone(), pools.upkeep.clone());
        Ok(Self { dir: dir.to_owned(), store: Arc::new(store), spool, pools, capacity, lock })
    }

    /// Removes abandoned downloads.
    pub fn clear_downloads(&self, partial_ttl: Duration) {
        // On a full disk, downloads that were broken off are worth less than anything else.
        let is_full = self.capacity.is_some_and(|capacity| capacity.is_full());
        let max_age = if is_full { Duration::ZERO } else { partial_ttl };
        if let Err(error) = self.spool.clear_blocking(max_age) {
            tracing::warn!(%error, "cannot clear abandoned downloads");
        }
    }

    /// Opens the index of the cache, which is in the directory or on a server.
    pub fn index(&self, config: &Config, bucket: Option<&Bucket>) -> Result<Arc<dyn Index>, OpenError> {
        let Pools { index_reads, upkeep, .. } = &self.pools;
        let index: Arc<dyn Index> = match &config.index {
            None => {
                let sqlite = Sqlite::open_locked(&self.dir, self.lock.clone())?;
                Arc::new(LocalIndex::new(sqlite, index_reads.clone(), upkeep.clone()))
            }
            Some(server) => {
                let index = PostgresIndex::start(server, store_name(&self.dir), bucket.map(Bucket::place));
                Arc::new(index.map_err(OpenError::IndexServer)?)
            }
        };
        if let Some(capacity) = self.capacity {
            // Set before anything is written to the index.
            index.keep_within(upkeep::bounds(config, capacity.total));
        }
        Ok(index)
    }
}
