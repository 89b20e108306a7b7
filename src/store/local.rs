//! The store on a filesystem: [`Disk`], with the threads and deadlines for each kind of work.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Capacity, Disk, Object, Store, Walk};
use crate::oci::Digest;
use crate::spool::Partial;
use crate::work::Pool;

/// How long a verified download waits for its turn to be stored. Meanwhile it keeps its place among the transfers.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
/// Most objects that are listed ahead of the reader of a list.
const AHEAD: usize = 256;

/// The store on a filesystem; clones share it.
#[derive(Clone, Debug)]
pub struct LocalStore {
    disk: Arc<Disk>,
    reads: Pool,
    /// For storing objects, which are synced. A disk that hangs keeps the threads that sync, so they must not be all
    /// threads.
    syncs: Pool,
    /// For removing and listing.
    upkeep: Pool,
}

impl LocalStore {
    /// Creates the store on a disk, with its pools.
    pub fn new(disk: Disk, reads: Pool, syncs: Pool, upkeep: Pool) -> Self {
        Self { disk: Arc::new(disk), reads, syncs, upkeep }
    }

    /// Runs work on a thread of a pool, with its deadline.
    async fn on<T: Send + 'static>(
        &self,
        pool: &Pool,
        work: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let disk = self.disk.clone();
        pool.run_io(move || work(&disk)).await
    }
}

impl Store for LocalStore {
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, io::Result<Option<Object>>> {
        let digest = *digest;
        self.on(&self.reads, move |disk| disk.get(&digest)).boxed()
    }

    fn put<'a>(&'a self, digest: &'a Digest, content: Bytes) -> BoxFuture<'a, io::Result<bool>> {
        let (disk, digest) = (self.disk.clone(), *digest);
        async move {
            let turn = self.syncs.place().await?;
            self.syncs.run_at(turn, move || disk.put(&digest, &content)).await
        }
        .boxed()
    }

    fn publish<'a>(&'a self, from: Partial, digest: &'a Digest, size: u64) -> BoxFuture<'a, io::Result<bool>> {
        let (disk, digest) = (self.disk.clone(), *digest);
        async move {
            let Ok(turn) = tokio::time::timeout(TURN_PATIENCE, self.syncs.place()).await else {
                from.discard().await?;
                let message = "the disk takes too long over the objects that came before";
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            };
            self.syncs.run_at(turn?, move || disk.publish(&from, &digest, size)).await
        }
        .boxed()
    }

    fn remove<'a>(&'a self, digests: &'a [Digest]) -> BoxFuture<'a, io::Result<()>> {
        let digests = digests.to_vec();
        let remove_all = move |disk: &Disk| {
            let failed = digests.iter().filter_map(|digest| disk.remove(digest).err()).reduce(|first, _| first);
            failed.map_or(Ok(()), Err)
        };
        self.on(&self.upkeep, remove_all).boxed()
    }

    fn clear(&self) -> BoxFuture<'_, io::Result<()>> {
        let disk = self.disk.clone();
        // No deadline: this takes as long as there are files.
        async move { self.upkeep.run_at(self.upkeep.place().await?, move || disk.clear()).await }.boxed()
    }

    fn contains<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, io::Result<bool>> {
        let digest = *digest;
        self.on(&self.upkeep, move |disk| Ok(disk.contains(&digest))).boxed()
    }

    fn list(&self) -> Walk {
        let (disk, upkeep) = (self.disk.clone(), self.upkeep.clone());
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let walked = async {
                let place = upkeep.place().await?;
                let sender = sender.clone();
                let walk = move || disk.for_each(|listed| sender.blocking_send(Ok(listed)).is_ok());
                upkeep.run_at(place, walk).await
            };
            if let Err(error) = walked.await {
                // If the reader has left, there is nobody to tell.
                let _ = sender.send(Err(error)).await;
            }
        });
        Walk(receiver)
    }

    fn capacity(&self) -> BoxFuture<'_, io::Result<Capacity>> {
        self.on(&self.upkeep, Disk::capacity).boxed()
    }

    fn check(&self) -> BoxFuture<'_, io::Result<()>> {
        self.on(&self.reads, Disk::check).boxed()
    }

    fn seal<'a>(&'a self, object: &'a Object, digest: &'a Digest) -> BoxFuture<'a, io::Result<()>> {
        let (object, digest) = (object.clone(), *digest);
        self.on(&self.upkeep, move |disk| disk.seal(&object, &digest)).boxed()
    }

    fn unseal<'a>(&'a self, object: &'a Object) -> BoxFuture<'a, io::Result<()>> {
        let object = object.clone();
        self.on(&self.upkeep, move |disk| disk.unseal(&object)).boxed()
    }
}
