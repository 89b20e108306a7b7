//! An index that fails as disks and servers do, to test what the cache makes of that. It is a real index whose calls
//! are delayed, refused, broken off or lost.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::work::Pool;

/// The state of a simulated index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Well,
    /// Each call takes this long.
    Slow(Duration),
    /// Each call fails, and queued writes are lost.
    Failing,
    /// It can be read, but nothing can be written.
    Full,
    /// A purge breaks off after its first step, and of several writes only the first half is made.
    Torn,
    /// A call ends only when its deadline passes.
    Hanging,
    /// It claims that its writes are durable. After [`Simulated::lose_power`], all of them are gone.
    Lying,
}

/// How long each call of a hanging index takes until it fails.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// The index of a test; clones share it.
#[derive(Clone)]
pub struct Simulated(Arc<Mutex<State>>);

struct State {
    health: Health,
    inner: Arc<LocalIndex>,
    /// Writes that were lost by its health.
    lost: u64,
    /// The file as it was when the index began to lie.
    durable: Option<Vec<u8>>,
    /// The path of the file.
    path: std::path::PathBuf,
}

fn open(path: &Path) -> Arc<LocalIndex> {
    let pool = Pool::new("a test", 8, Duration::from_secs(3600));
    let sqlite = Sqlite::open(path.parent().expect("a directory")).expect("an index");
    Arc::new(LocalIndex::new(sqlite, pool.clone(), pool))
}

fn failed<T>(kind: std::io::ErrorKind) -> Result<T, IndexError> {
    Err(std::io::Error::from(kind).into())
}

impl Simulated {
    /// Opens an index in a directory.
    pub fn open(dir: &Path) -> Self {
        let path = dir.join("larder.db");
        let (health, lost, durable, inner) = (Health::Well, 0, None, open(&path));
        Self(Arc::new(Mutex::new(State { health, inner, lost, durable, path })))
    }

    /// Sets the state of the index.
    pub async fn set(&self, health: Health) {
        if health == Health::Lying {
            let path = self.reopen(|_| ()).await;
            self.state().durable = Some(std::fs::read(path).expect("read"));
        }
        self.state().health = health;
    }

    /// Loses the writes made while the index lied, and opens the index anew.
    pub async fn lose_power(&self) {
        let durable = self.state().durable.take().expect("it has lied");
        self.reopen(|path| std::fs::write(path, durable).expect("written")).await;
        self.state().health = Health::Well;
    }

    /// Closes the file, whose log is empty then, and opens it again.
    async fn reopen(&self, between: impl FnOnce(&Path)) -> std::path::PathBuf {
        let (inner, path) = {
            let state = self.state();
            (state.inner.clone(), state.path.clone())
        };
        inner.close().await.expect("closed");
        between(&path);
        self.state().inner = open(&path);
        path
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    /// Makes a call as the health allows. `is_write`: whether the call changes anything.
    fn call<'a, T: Send + 'a, F>(
        &self,
        is_write: bool,
        call: impl FnOnce(Arc<LocalIndex>) -> F + Send + 'a,
    ) -> Call<'a, T>
    where
        F: Future<Output = Result<T, IndexError>> + Send + 'a,
    {
        let (health, inner) = {
            let state = self.state();
            (state.health, state.inner.clone())
        };
        async move {
            match health {
                Health::Slow(time) => tokio::time::sleep(time).await,
                Health::Failing => return failed(std::io::ErrorKind::Other),
                Health::Full if is_write => return failed(std::io::ErrorKind::StorageFull),
                Health::Hanging => {
                    tokio::time::sleep(DEADLINE).await;
                    return failed(std::io::ErrorKind::TimedOut);
                }
                Health::Well | Health::Full | Health::Torn | Health::Lying => {}
            }
            call(inner).await
        }
        .boxed()
    }
}

impl Index for Simulated {
    fn tag<'a>(&'a self, key: &'a TagKey) -> Call<'a, Option<TagEntry>> {
        self.call(false, async |index| index.tag(key).await)
    }

    fn object<'a>(&'a self, digest: &'a Digest) -> Call<'a, Option<ObjectEntry>> {
        self.call(false, async |index| index.object(digest).await)
    }

    fn is_visible<'a>(&'a self, viewer: &'a Viewer, digest: &'a Digest) -> Call<'a, bool> {
        self.call(false, async |index| index.is_visible(viewer, digest).await)
    }

    fn knows_name<'a>(&'a self, repository: &'a str, name: &'a str, digest: &'a Digest) -> Call<'a, bool> {
        self.call(false, async |index| index.knows_name(repository, name, digest).await)
    }

    fn names(&self, objects: Vec<Digest>) -> Call<'_, Vec<String>> {
        self.call(false, async move |index| index.names(objects).await)
    }

    fn listing<'a>(&'a self, key: &'a ListKey, room: u64) -> Call<'a, Option<Listing>> {
        self.call(false, async move |index| index.listing(key, room).await)
    }

    fn urls<'a>(&'a self, key: &'a Digest) -> Call<'a, Vec<UrlEntry>> {
        self.call(false, async |index| index.urls(key).await)
    }

    fn catalog(&self, repositories: Vec<String>, last: String, count: usize) -> Call<'_, Vec<String>> {
        self.call(false, async move |index| index.catalog(repositories, last, count).await)
    }

    fn images(&self, last: String, count: usize) -> Call<'_, ImagePage> {
        self.call(false, async move |index| index.images(last, count).await)
    }

    fn find_images(&self, search: ImageSearch) -> Call<'_, ImagePage> {
        self.call(false, async move |index| index.find_images(search).await)
    }

    fn stored_of(&self, objects: Vec<Digest>) -> Call<'_, HashSet<Digest>> {
        self.call(false, async move |index| index.stored_of(objects).await)
    }

    fn pins(&self) -> Call<'_, Vec<ImageName>> {
        self.call(false, async |index| index.pins().await)
    }

    fn check(&self) -> Call<'_, ()> {
        self.call(false, async |index| index.check().await)
    }

    fn pinned(&self, repositories: Vec<String>, is_pinned: IsPinned) -> Call<'_, (HashSet<Digest>, bool)> {
        self.call(false, async move |index| index.pinned(repositories, is_pinned).await)
    }

    fn objects_by_use(&self, with_repositories: bool, each: TakeObject) -> Call<'_, ()> {
        self.call(false, async move |index| index.objects_by_use(with_repositories, each).await)
    }

    fn verify(&self) -> Call<'_, ()> {
        self.call(false, async |index| index.verify().await)
    }

    fn note(&self, write: Write) {
        let mut state = self.state();
        match state.health {
            Health::Failing | Health::Full | Health::Hanging => state.lost += 1,
            _ => state.inner.note(write),
        }
    }

    fn apply(&self, mut writes: Vec<Write>) -> Call<'_, ()> {
        if self.state().health == Health::Torn {
            writes.truncate(writes.len() / 2);
        }
        self.call(true, async |index| index.apply(writes).await)
    }

    fn flush(&self) -> Call<'_, ()> {
        self.call(false, async |index| index.flush().await)
    }

    fn close(&self) -> Call<'_, ()> {
        self.call(false, async |index| index.close().await)
    }

    fn set_pin(&self, image: ImageName, is_pinned: bool) -> Call<'_, bool> {
        self.call(true, async move |index| index.set_pin(image, is_pinned).await)
    }

    fn compared_with(&self) -> Call<'_, Option<String>> {
        self.call(false, async |index| index.compared_with().await)
    }

    fn set_compared_with(&self, bucket: Option<String>) -> Call<'_, ()> {
        self.call(true, async move |index| index.set_compared_with(bucket).await)
    }

    fn rows(&self, table: Table, behind: RowKey, count: usize) -> Call<'_, Vec<Row>> {
        self.call(false, async move |inner| inner.rows(table, behind, count).await)
    }

    fn take_in(&self, rows: Vec<Row>) -> Call<'_, ()> {
        self.call(true, async move |inner| inner.take_in(rows).await)
    }

    fn purge(&self, purge: Purge) -> BoxStream<'static, Result<Purged, IndexError>> {
        let health = self.state().health;
        let purging = self.call(true, async move |index| Ok(index.purge(purge)));
        let steps = purging.into_stream().flat_map(move |purging| match purging {
            Ok(steps) if health == Health::Torn => {
                let broken = futures_util::stream::once(async { failed(std::io::ErrorKind::Other) });
                steps.take(1).chain(broken).boxed()
            }
            Ok(steps) => steps,
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        });
        steps.boxed()
    }

    fn keep_within(&self, bounds: Bounds) {
        self.state().inner.keep_within(bounds);
    }

    fn bytes(&self) -> Call<'_, u64> {
        self.call(false, async |index| index.bytes().await)
    }

    fn remove_aside(&self) -> Call<'_, u64> {
        self.call(true, async |index| index.remove_aside().await)
    }

    fn dropped(&self) -> u64 {
        let state = self.state();
        state.lost + state.inner.dropped()
    }

    fn was_damaged(&self) -> bool {
        self.state().inner.was_damaged()
    }
}
