//! The index on this machine's disk: SQLite behind threads and deadlines.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::{
    Bounds, Call, ImageName, ImagePage, ImageSearch, Index, IndexError, IsPinned, ListKey, Listing, ObjectEntry, Purge,
    Purged, Row, RowKey, Sqlite, Table, TagEntry, TagKey, TakeObject, UrlEntry, Viewer, Write,
};
use crate::oci::Digest;
use crate::work::Pool;

/// Purges that run at the same time. They take the same rows, so more of them would be no faster.
const PURGES: usize = 2;
/// How long a further purge waits for its turn.
const PURGE_WAIT: Duration = Duration::from_secs(30);

/// The index of one cache directory.
pub struct LocalIndex {
    sqlite: Arc<Sqlite>,
    /// For reads that clients wait for.
    reads: Pool,
    /// For work of upkeep.
    upkeep_pool: Pool,
    /// Purges are long, and each waits for other work of upkeep: they would fill its pool.
    purges: Pool,
}

impl LocalIndex {
    /// Creates the index on an open database, with its pools.
    pub fn new(sqlite: Sqlite, reads: Pool, upkeep: Pool) -> Self {
        let purges = Pool::new("a purge", PURGES, PURGE_WAIT);
        Self { sqlite: Arc::new(sqlite), reads, upkeep_pool: upkeep, purges }
    }

    /// Runs a read that a client waits for, with a deadline.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Sqlite) -> Result<T, IndexError> + Send + 'static,
    ) -> Call<'static, T> {
        in_time(self.reads.clone(), self.sqlite.clone(), read)
    }

    /// Runs work of upkeep, with a deadline.
    fn upkeep<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sqlite) -> Result<T, IndexError> + Send + 'static,
    ) -> Call<'static, T> {
        in_time(self.upkeep_pool.clone(), self.sqlite.clone(), work)
    }

    /// Runs work of upkeep that takes as long as it takes.
    fn without_deadline<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sqlite) -> Result<T, IndexError> + Send + 'static,
    ) -> Call<'static, T> {
        let (pool, sqlite) = (self.upkeep_pool.clone(), self.sqlite.clone());
        async move {
            let place = pool.place().await.map_err(io::Error::from)?;
            pool.run_at(place, move || Ok(work(&sqlite))).await?
        }
        .boxed()
    }
}

fn in_time<T: Send + 'static>(
    pool: Pool,
    sqlite: Arc<Sqlite>,
    work: impl FnOnce(&Sqlite) -> Result<T, IndexError> + Send + 'static,
) -> Call<'static, T> {
    async move { pool.run(move || work(&sqlite)).await.map_err(io::Error::from)? }.boxed()
}

impl Index for LocalIndex {
    fn tag<'a>(&'a self, key: &'a TagKey) -> Call<'a, Option<TagEntry>> {
        let key = key.clone();
        self.read(move |sqlite| sqlite.tag(&key))
    }

    fn object<'a>(&'a self, digest: &'a Digest) -> Call<'a, Option<ObjectEntry>> {
        let digest = *digest;
        self.read(move |sqlite| sqlite.object(&digest))
    }

    fn is_visible<'a>(&'a self, viewer: &'a Viewer, digest: &'a Digest) -> Call<'a, bool> {
        let (viewer, digest) = (viewer.clone(), *digest);
        self.read(move |sqlite| sqlite.is_visible(&viewer, &digest))
    }

    fn knows_name<'a>(&'a self, repository: &'a str, name: &'a str, digest: &'a Digest) -> Call<'a, bool> {
        let (repository, name, digest) = (repository.to_owned(), name.to_owned(), *digest);
        self.read(move |sqlite| {
            if sqlite.knows_name(&repository, &name, &digest)? {
                return Ok(true);
            }
            sqlite.flush_blocking()?;
            sqlite.knows_name(&repository, &name, &digest)
        })
    }

    fn names(&self, objects: Vec<Digest>) -> Call<'_, Vec<String>> {
        self.read(move |sqlite| sqlite.names(&objects))
    }

    fn listing<'a>(&'a self, key: &'a ListKey, room: u64) -> Call<'a, Option<Listing>> {
        let key = key.clone();
        self.read(move |sqlite| sqlite.listing(&key, room))
    }

    fn urls<'a>(&'a self, key: &'a Digest) -> Call<'a, Vec<UrlEntry>> {
        let key = *key;
        self.read(move |sqlite| sqlite.urls(&key))
    }

    fn catalog(&self, repositories: Vec<String>, last: String, count: usize) -> Call<'_, Vec<String>> {
        self.read(move |sqlite| sqlite.catalog(&repositories, &last, count))
    }

    fn images(&self, last: String, count: usize) -> Call<'_, ImagePage> {
        self.read(move |sqlite| {
            sqlite.flush_blocking()?;
            sqlite.images(&last, count)
        })
    }

    fn find_images(&self, search: ImageSearch) -> Call<'_, ImagePage> {
        self.read(move |sqlite| {
            sqlite.flush_blocking()?;
            sqlite.find_images(&search)
        })
    }

    fn stored_of(&self, objects: Vec<Digest>) -> Call<'_, HashSet<Digest>> {
        self.read(move |sqlite| sqlite.stored_of(&objects))
    }

    fn pins(&self) -> Call<'_, Vec<ImageName>> {
        self.read(Sqlite::pins)
    }

    fn check(&self) -> Call<'_, ()> {
        self.read(Sqlite::check)
    }

    fn pinned(&self, repositories: Vec<String>, is_pinned: IsPinned) -> Call<'_, (HashSet<Digest>, bool)> {
        self.upkeep(move |sqlite| {
            sqlite.flush_blocking()?;
            let named = sqlite.pins()?;
            let mut roots = sqlite.manifests_of(&named)?;
            for repository in repositories {
                sqlite.tags_of(&repository, |key, digest| roots.extend(is_pinned(&key).then_some(digest)))?;
            }
            Ok((sqlite.below(roots)?, !named.is_empty()))
        })
    }

    fn objects_by_use(&self, with_repositories: bool, each: TakeObject) -> Call<'_, ()> {
        self.without_deadline(move |sqlite| {
            sqlite.flush_blocking()?;
            sqlite.objects_by_use(with_repositories, each)
        })
    }

    fn verify(&self) -> Call<'_, ()> {
        self.without_deadline(|sqlite| {
            sqlite.flush_blocking()?;
            sqlite.verify()
        })
    }

    fn note(&self, write: Write) {
        self.sqlite.write(write);
    }

    fn apply(&self, writes: Vec<Write>) -> Call<'_, ()> {
        self.upkeep(move |sqlite| {
            sqlite.apply(writes);
            Ok(())
        })
    }

    fn flush(&self) -> Call<'_, ()> {
        self.read(Sqlite::flush_blocking)
    }

    fn close(&self) -> Call<'_, ()> {
        self.sqlite.close().boxed()
    }

    fn set_pin(&self, image: ImageName, is_pinned: bool) -> Call<'_, bool> {
        self.upkeep(move |sqlite| sqlite.set_pin(image, is_pinned))
    }

    fn compared_with(&self) -> Call<'_, Option<String>> {
        self.read(Sqlite::compared_with)
    }

    fn set_compared_with(&self, bucket: Option<String>) -> Call<'_, ()> {
        self.upkeep(move |sqlite| sqlite.set_compared_with(bucket))
    }

    fn rows(&self, table: Table, behind: RowKey, count: usize) -> Call<'_, Vec<Row>> {
        self.upkeep(move |sqlite| sqlite.rows(table, &behind, count))
    }

    fn take_in(&self, rows: Vec<Row>) -> Call<'_, ()> {
        self.upkeep(move |sqlite| sqlite.take_in(rows))
    }

    fn purge(&self, purge: Purge) -> BoxStream<'static, Result<Purged, IndexError>> {
        let (sender, steps) = mpsc::channel(1);
        let each = sender.clone();
        let (pool, sqlite) = (self.purges.clone(), self.sqlite.clone());
        // If the caller leaves, the purge still runs to its end.
        let work = move || Ok(sqlite.purge(&purge, |step| drop(each.blocking_send(Ok(step)))));
        let purging = async move {
            let place = tokio::time::timeout(PURGE_WAIT, pool.place()).await;
            let place = place.map_err(|_| IndexError::Full)?.map_err(io::Error::from)?;
            pool.run_at(place, work).await?
        };
        tokio::spawn(async move {
            if let Err(error) = purging.await {
                let _ = sender.send(Err(error)).await;
            }
        });
        stream::unfold(steps, async |mut steps| Some((steps.recv().await?, steps))).boxed()
    }

    fn keep_within(&self, bounds: Bounds) {
        self.sqlite.keep_within(bounds);
    }

    fn bytes(&self) -> Call<'_, u64> {
        self.upkeep(|sqlite| Ok(sqlite.bytes()))
    }

    fn remove_aside(&self) -> Call<'_, u64> {
        self.upkeep(|sqlite| Ok(sqlite.remove_aside()?))
    }

    fn dropped(&self) -> u64 {
        self.sqlite.dropped()
    }

    fn was_damaged(&self) -> bool {
        self.sqlite.was_damaged()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel as blocking_channel;

    use super::*;

    /// Clients wait for the writer where a name may have been noted a moment ago.
    #[tokio::test]
    async fn a_writer_that_hangs_keeps_a_client_as_long_as_a_read_and_takes_no_place_of_upkeep() {
        let dir = tempfile::tempdir().expect("a directory");
        let reads = Pool::new("a read", 8, Duration::from_millis(200));
        let upkeep = Pool::new("upkeep", 1, Duration::from_secs(60));
        let index = LocalIndex::new(Sqlite::open(dir.path()).expect("an index"), reads, upkeep);
        let (release, released) = blocking_channel::<()>();
        let (begin, begun) = blocking_channel();
        let sqlite = index.sqlite.clone();
        let held = std::thread::spawn(move || {
            sqlite.change_blocking(move |_| {
                begin.send(()).expect("it is waited for");
                let _ = released.recv();
                Ok(())
            })
        });
        begun.recv().expect("the writer is held");
        for _ in 0..3 {
            let known = index.knows_name("r", "a", &Digest::Sha256([1; 32])).await;
            assert!(matches!(known, Err(IndexError::Io(error)) if error.kind() == io::ErrorKind::TimedOut));
            index.bytes().await.expect("upkeep goes on");
        }
        drop(release);
        held.join().expect("no panic").expect("changed");
        assert!(!index.knows_name("r", "a", &Digest::Sha256([1; 32])).await.expect("read"));
    }
}
