//! The store on a filesystem: [`Disk`], with the threads and deadlines for each kind of work.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use tokio::sync::mpsc;

use super::busy::BusyObjects;
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
    busy: Arc<BusyObjects>,
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
        Self { disk: Arc::new(disk), busy: Arc::default(), reads, syncs, upkeep }
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
        if let Some(object) = self.busy.find(digest) {
            return future::ready(Ok(Some(object))).boxed();
        }
        let (digest, busy) = (*digest, self.busy.clone());
        let look = move |disk: &Disk| {
            let found = disk.get(&digest)?;
            match &found {
                Some(object) => busy.looked_at(&digest, object),
                None => busy.forget(&digest),
            }
            Ok(found)
        };
        self.on(&self.reads, look).boxed()
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
        let (digests, busy) = (digests.to_vec(), self.busy.clone());
        let remove_all = move |disk: &Disk| {
            let failed = digests.iter().filter_map(|digest| disk.remove(digest).err()).reduce(|first, _| first);
            digests.iter().for_each(|digest| busy.forget(digest));
            failed.map_or(Ok(()), Err)
        };
        self.on(&self.upkeep, remove_all).boxed()
    }

    fn clear(&self) -> BoxFuture<'_, io::Result<()>> {
        let (disk, busy) = (self.disk.clone(), self.busy.clone());
        let clear = move || {
            let cleared = disk.clear();
            busy.forget_all();
            cleared
        };
        // No deadline: this takes as long as there are files.
        async move { self.upkeep.run_at(self.upkeep.place().await?, clear).await }.boxed()
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
        let busy = self.busy.clone();
        let capacity = move |disk: &Disk| {
            busy.forget_old();
            disk.capacity()
        };
        self.on(&self.upkeep, capacity).boxed()
    }

    fn check(&self) -> BoxFuture<'_, io::Result<()>> {
        self.on(&self.reads, Disk::check).boxed()
    }

    fn seal<'a>(&'a self, object: &'a Object, digest: &'a Digest) -> BoxFuture<'a, io::Result<()>> {
        let (object, digest, busy) = (object.clone(), *digest, self.busy.clone());
        let seal = move |disk: &Disk| {
            let sealed = disk.seal(&object, &digest);
            busy.forget(&digest);
            sealed
        };
        self.on(&self.upkeep, seal).boxed()
    }

    fn unseal<'a>(&'a self, object: &'a Object) -> BoxFuture<'a, io::Result<()>> {
        let (object, busy) = (object.clone(), self.busy.clone());
        let unseal = move |disk: &Disk| {
            let unsealed = disk.unseal(&object);
            busy.forget_all();
            unsealed
        };
        self.on(&self.upkeep, unseal).boxed()
    }
}
