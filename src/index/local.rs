//! The index on this machine's disk: SQLite behind threads and deadlines.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::{
    Answer, Bounds, ImageName, ImagePage, Index, IndexError, ListKey, Listing, ObjectEntry, Purge, Purged, Sqlite,
    TagEntry, TagKey, TakeObject, UrlEntry, Viewer, Write,
};
use crate::oci::Digest;
use crate::work::Pool;

/// The index of one cache directory.
pub struct LocalIndex {
    sqlite: Arc<Sqlite>,
    /// For reads that clients wait for.
    reads: Pool,
    /// For work of upkeep.
    upkeep: Pool,
}

impl LocalIndex {
    /// Creates the index on an open database, with its pools.
    pub fn new(sqlite: Sqlite, reads: Pool, upkeep: Pool) -> Self {
        Self { sqlite: Arc::new(sqlite), reads, upkeep }
    }

    /// Runs a read that a client waits for, with a deadline.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Sqlite) -> Result<T, IndexError> + Send + 'static,
    ) -> Answer<'static, T> {
        in_time(self.reads.clone(), self.sqlite.clone(), read)
    }

    /// Runs work of upkeep, with a deadline.
    fn look_after<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sqlite) -> Result<T, IndexError> + Send + 'static,
    ) -> Answer<'static, T> {
        in_time(self.upkeep.clone(), self.sqlite.clone(), work)
    }

    /// Runs work of upkeep that takes as long as it takes.
    fn whole<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sqlite) -> Result<T, IndexError> + Send + 'static,
    ) -> Answer<'static, T> {
        let (pool, sqlite) = (self.upkeep.clone(), self.sqlite.clone());
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
) -> Answer<'static, T> {
    async move { pool.run(move || work(&sqlite)).await.map_err(io::Error::from)? }.boxed()
}

impl Index for LocalIndex {
    fn tag<'a>(&'a self, key: &'a TagKey) -> Answer<'a, Option<TagEntry>> {
        let key = key.clone();
        self.read(move |sqlite| sqlite.tag(&key))
    }

    fn object<'a>(&'a self, digest: &'a Digest) -> Answer<'a, Option<ObjectEntry>> {
        let digest = *digest;
        self.read(move |sqlite| sqlite.object(&digest))
    }

    fn is_visible<'a>(&'a self, viewer: &'a Viewer, digest: &'a Digest) -> Answer<'a, bool> {
        let (viewer, digest) = (viewer.clone(), *digest);
        self.read(move |sqlite| sqlite.is_visible(&viewer, &digest))
    }

    fn knows_name<'a>(&'a self, repository: &'a str, name: &'a str, digest: &'a Digest) -> Answer<'a, bool> {
        let (repository, name, digest) = (repository.to_owned(), name.to_owned(), *digest);
        self.read(move |sqlite| sqlite.knows_name(&repository, &name, &digest))
    }

    fn listing<'a>(&'a self, key: &'a ListKey, room: u64) -> Answer<'a, Option<Listing>> {
        let key = key.clone();
        self.read(move |sqlite| sqlite.listing(&key, room))
    }

    fn urls<'a>(&'a self, key: &'a Digest) -> Answer<'a, Vec<UrlEntry>> {
        let key = *key;
        self.read(move |sqlite| sqlite.urls(&key))
    }

    fn catalog(&self, repositories: Vec<String>, last: String, count: usize) -> Answer<'_, Vec<String>> {
        self.read(move |sqlite| sqlite.catalog(&repositories, &last, count))
    }

    fn images(&self, last: String, count: usize) -> Answer<'_, ImagePage> {
        self.read(move |sqlite| sqlite.images(&last, count))
    }

    fn pins(&self) -> Answer<'_, Vec<ImageName>> {
        self.read(Sqlite::pins)
    }

    fn check(&self) -> Answer<'_, ()> {
        self.read(Sqlite::check)
    }

    fn manifests_of(&self, images: Vec<ImageName>) -> Answer<'_, Vec<Digest>> {
        self.look_after(move |sqlite| sqlite.manifests_of(&images))
    }

    fn tags_of<'a>(
        &'a self,
        repository: &'a str,
        is_wanted: Box<dyn Fn(&TagKey) -> bool + Send>,
    ) -> Answer<'a, Vec<Digest>> {
        let repository = repository.to_owned();
        self.look_after(move |sqlite| {
            let mut found = Vec::new();
            sqlite.tags_of(&repository, |key, digest| found.extend(is_wanted(&key).then_some(digest)))?;
            Ok(found)
        })
    }

    fn below(&self, roots: Vec<Digest>) -> Answer<'_, HashSet<Digest>> {
        self.look_after(move |sqlite| sqlite.below(roots))
    }

    fn objects_by_use(&self, with_repositories: bool, each: TakeObject) -> Answer<'_, ()> {
        self.whole(move |sqlite| sqlite.objects_by_use(with_repositories, each))
    }

    fn verify(&self) -> Answer<'_, ()> {
        self.whole(Sqlite::verify)
    }

    fn note(&self, write: Write) {
        self.sqlite.write(write);
    }

    fn apply(&self, writes: Vec<Write>) -> Answer<'_, ()> {
        self.look_after(move |sqlite| {
            sqlite.apply(writes);
            Ok(())
        })
    }

    fn flush(&self) -> Answer<'_, ()> {
        self.look_after(Sqlite::flush_blocking)
    }

    fn close(&self) -> Answer<'_, ()> {
        self.sqlite.close().boxed()
    }

    fn set_pin(&self, image: ImageName, is_pinned: bool) -> Answer<'_, bool> {
        self.look_after(move |sqlite| sqlite.set_pin(image, is_pinned))
    }

    fn purge(&self, purge: Purge) -> BoxStream<'static, Result<Purged, IndexError>> {
        let (sender, steps) = mpsc::channel(1);
        let each = sender.clone();
        // A step is done even if nobody waits for it any more.
        let purging = self.whole(move |sqlite| sqlite.purge(&purge, |step| drop(each.blocking_send(Ok(step)))));
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

    fn bytes(&self) -> Answer<'_, u64> {
        self.look_after(|sqlite| Ok(sqlite.bytes()))
    }

    fn remove_aside(&self) -> Answer<'_, u64> {
        self.look_after(|sqlite| Ok(sqlite.remove_aside()?))
    }

    fn dropped(&self) -> u64 {
        self.sqlite.dropped()
    }

    fn was_damaged(&self) -> bool {
        self.sqlite.was_damaged()
    }
}
