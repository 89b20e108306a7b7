//! The index in PostgreSQL, which several Larders may share.
//!
//! - [`server`]: connections, deadlines, whether the server answers; [`connect`]: how a connection begins; [`errors`]:
//!   what an error says.
//! - [`schema`]: the tables.
//! - `Write` → [`super::queue`] → [`writer`]: the one task that writes → [`batch`]: what many writes come to →
//!   [`apply`]: a statement for each table; [`uploads`]: what is in the bucket. [`bounds`]: what is too much.
//! - [`replicas`]: which Larders are alive. [`leases`]: what one of them does for all. [`changes`]: what others have to
//!   hear of. [`unseen`]: who was not there for long.
//! - [`read`], [`images`]: what is read. [`rows`]: all of it, and what comes from another index. [`purge`]: what is taken out.
//!
//! While the server is away, reads fail at once (the cache then asks upstreams, as where nothing is known), and writes
//! wait in the bounded queue. One task says whether it is away: it looks from time to time, and when a call gave reason to
//! doubt it. A server that answers and takes no changes is read all the same.

mod apply;
mod batch;
mod bounds;
mod changes;
mod connect;
mod errors;
mod images;
mod leases;
mod purge;
mod read;
mod replicas;
mod rows;
mod schema;
mod server;
#[cfg(test)]
pub mod tests;
mod unseen;
mod uploads;
mod values;
mod writer;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::queue::Task;
use super::{
    Bounds, Call, Change, Holder, ImageName, ImagePage, ImageSearch, Index, IndexError, IsPinned, Life, ListKey,
    Listing, Mark, ObjectEntry, ObjectUse, Purge, Purged, Replica, Row, RowKey, Table, TagEntry, TagKey, TakeObject,
    UrlEntry, Viewer, Write,
};
use crate::clock::Instant;
use crate::config::IndexServer;
use crate::oci::Digest;
use connect::Address;
use purge::Purging;
use schema::Names;
use server::{LONG, SOON, Server, Work};
use values::Mine;
use writer::{Shared, Writer};

/// Purges that run at the same time. They take the same rows, so more of them would be no faster.
const PURGES: usize = 2;
/// How long a further purge waits for its turn.
const PURGE_WAIT: Duration = Duration::from_secs(30);
/// How long reading all of the index may take.
const ALL: Duration = Duration::from_secs(1_800);
/// How often a server that is away is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long it is not asked at most, if it went away again and again.
const SELDOM: Duration = Duration::from_secs(8);
/// How long it has for an answer when a call gave reason to doubt that it answers.
const DOUBTED: Duration = Duration::from_secs(1);
/// How often a server that answers is asked for the size of the tables.
const LOOK: Duration = Duration::from_secs(60);
/// How long after its start a Larder forgets no other: after a long rest of all, they come back one by one.
const START: Duration = Duration::from_secs(3600);

/// The index in PostgreSQL.
pub struct PostgresIndex {
    server: Server,
    shared: Arc<Shared>,
    purges: Arc<Semaphore>,
    /// Bytes that the tables take, as of the last look.
    bytes: Arc<AtomicU64>,
    looking: JoinHandle<()>,
}

impl PostgresIndex {
    /// Begins to use a server, which need not be there yet. `store` names this Larder's store among those that share the
    /// index, and `bucket` its bucket, which others may have, too. To be called within a runtime.
    pub fn start(config: &IndexServer, store: String, bucket: Option<String>) -> Result<Self, IndexError> {
        Self::with_deadline(config, Names { store, bucket }, SOON)
    }

    fn with_deadline(config: &IndexServer, names: Names, soon: Duration) -> Result<Self, IndexError> {
        let server = Server::new(Address::of(config)?, soon)?;
        let (shared, bytes) = (Arc::<Shared>::default(), Arc::<AtomicU64>::default());
        Writer::start(server.clone(), shared.clone());
        let looking = tokio::spawn(look_after(server.clone(), shared.clone(), bytes.clone(), names));
        Ok(Self { server, shared, purges: Arc::new(Semaphore::new(PURGES)), bytes, looking })
    }

    /// Does a read that a client waits for.
    fn read<T: Send + 'static>(
        &self,
        work: impl for<'a> Fn(&'a Client, Mine) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Call<'_, T> {
        async move {
            let mine = self.mine().await?;
            self.server.read(self.server.soon, move |client| work(client, mine)).await
        }
        .boxed()
    }

    /// Returns the holders whose objects this Larder serves, once the server has told them.
    async fn mine(&self) -> Result<Mine, IndexError> {
        self.server.known(Instant::now() + self.server.soon).await?;
        Ok(self.shared.mine())
    }

    /// Waits until what is queued is written. Fails at once while the server is away or takes no changes.
    fn flushed(&self, time: Duration) -> impl Future<Output = Result<(), IndexError>> + Send + use<> {
        let (server, shared) = (self.server.clone(), self.shared.clone());
        async move {
            let deadline = Instant::now() + time;
            server.known(deadline).await?;
            if let Some(why) = server.trouble() {
                return Err(IndexError::Away(why));
            }
            let (done, written) = oneshot::channel();
            shared.tasks.add(Task::Flush(done))?;
            let ended = tokio::time::timeout_at(deadline, async {
                tokio::select! {
                    written = written => written.map_err(|_| IndexError::Closed),
                    error = server.takes_nothing() => Err(error),
                }
            });
            ended.await.map_err(|_| IndexError::Late)?
        }
    }
}

impl Drop for PostgresIndex {
    /// Ends the tasks; what is queued is written if the server answers.
    fn drop(&mut self) {
        self.looking.abort();
        let _ = self.shared.end(oneshot::channel().0);
    }
}

/// Finds out whether the server answers, makes the tables, and looks from time to time how large they are. It alone
/// says that the server is away, so that one call that failed does not fail all others. Runs until the index is dropped.
async fn look_after(server: Server, shared: Arc<Shared>, bytes: Arc<AtomicU64>, names: Names) {
    let (mut patience, mut pause, begun) = (SOON, AGAIN, Instant::now());
    loop {
        match schema::prepare(&server, Instant::now() + patience, &names).await {
            Ok(mine) => {
                shared.set_mine(mine);
                server.answers();
                if patience == DOUBTED {
                    // It was doubted without reason, and may be again, by each call.
                    tokio::time::sleep(AGAIN).await;
                }
                let looking = async {
                    measure(&server, &bytes).await;
                    if begun.elapsed() > START {
                        unseen::forget(&server).await;
                    }
                };
                let doubted = async {
                    tokio::select! {
                        () = server.doubted() => {}
                        () = looking => server.doubted().await,
                    }
                };
                patience = match tokio::time::timeout(LOOK, doubted).await {
                    Ok(()) => DOUBTED,
                    Err(_) => {
                        pause = AGAIN;
                        SOON
                    }
                };
            }
            Err(error) => {
                if server.goes_away(error.to_string()) {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(SELDOM);
                } else {
                    tokio::time::sleep(AGAIN).await;
                }
                patience = SOON;
            }
        }
    }
}

/// Looks how large the tables are.
async fn measure(server: &Server, bytes: &AtomicU64) {
    if let Ok(size) = server.read(LONG, |client| Box::pin(read::bytes(client))).await {
        bytes.store(size, Ordering::Relaxed);
    }
}

impl Index for PostgresIndex {
    fn tag<'a>(&'a self, key: &'a TagKey) -> Call<'a, Option<TagEntry>> {
        let key = Arc::new(key.clone());
        self.read(move |client, _| {
            let key = key.clone();
            Box::pin(async move { read::tag(client, &key).await })
        })
    }

    fn object<'a>(&'a self, digest: &'a Digest) -> Call<'a, Option<ObjectEntry>> {
        let digest = *digest;
        self.read(move |client, mine| Box::pin(async move { read::object(client, mine, &digest).await }))
    }

    fn is_visible<'a>(&'a self, viewer: &'a Viewer, digest: &'a Digest) -> Call<'a, bool> {
        let (viewer, digest) = (Arc::new(viewer.clone()), *digest);
        self.read(move |client, _| {
            let viewer = viewer.clone();
            Box::pin(async move { read::is_visible(client, &viewer, &digest).await })
        })
    }

    fn knows_name<'a>(&'a self, repository: &'a str, name: &'a str, digest: &'a Digest) -> Call<'a, bool> {
        let (place, digest) = (Arc::new((repository.to_owned(), name.to_owned())), *digest);
        let known = move || {
            let place = place.clone();
            self.read(move |client, _| {
                let place = place.clone();
                Box::pin(async move { read::knows_name(client, &place.0, &place.1, &digest).await })
            })
        };
        async move {
            if known().await? {
                return Ok(true);
            }
            self.flushed(self.server.soon).await?;
            known().await
        }
        .boxed()
    }

    fn names(&self, objects: Vec<Digest>) -> Call<'_, Vec<String>> {
        let objects = Arc::new(objects);
        self.read(move |client, _| {
            let objects = objects.clone();
            Box::pin(async move { read::names(client, &objects).await })
        })
    }

    fn listing<'a>(&'a self, key: &'a ListKey, room: u64) -> Call<'a, Option<Listing>> {
        let key = Arc::new(key.clone());
        self.read(move |client, _| {
            let key = key.clone();
            Box::pin(async move { read::listing(client, &key, room).await })
        })
    }

    fn urls<'a>(&'a self, key: &'a Digest) -> Call<'a, Vec<UrlEntry>> {
        let key = *key;
        self.read(move |client, _| Box::pin(async move { read::urls(client, &key).await }))
    }

    fn catalog(&self, repositories: Vec<String>, last: String, count: usize) -> Call<'_, Vec<String>> {
        let asked = Arc::new((repositories, last));
        self.read(move |client, _| {
            let asked = asked.clone();
            Box::pin(async move { read::catalog(client, &asked.0, &asked.1, count).await })
        })
    }

    fn images(&self, last: String, count: usize) -> Call<'_, ImagePage> {
        self.find_images(ImageSearch { last, count, ..ImageSearch::default() })
    }

    fn find_images(&self, search: ImageSearch) -> Call<'_, ImagePage> {
        let search = Arc::new(search);
        async move {
            self.flushed(self.server.soon).await?;
            let find = self.read(move |client, mine| {
                let search = search.clone();
                Box::pin(async move { images::find(client, mine, &search).await })
            });
            find.await
        }
        .boxed()
    }

    fn stored_of(&self, objects: Vec<Digest>) -> Call<'_, HashSet<Digest>> {
        let objects = Arc::new(objects);
        self.read(move |client, mine| {
            let objects = objects.clone();
            Box::pin(async move { read::stored_of(client, mine, &objects).await })
        })
    }

    fn pins(&self) -> Call<'_, Vec<ImageName>> {
        self.read(|client, _| Box::pin(read::pins(client)))
    }

    fn check(&self) -> Call<'_, ()> {
        self.read(|client, _| Box::pin(read::check(client)))
    }

    fn pinned(&self, repositories: Vec<String>, is_pinned: IsPinned) -> Call<'_, (HashSet<Digest>, bool)> {
        async move {
            self.flushed(LONG).await?;
            let (mut roots, has_names) =
                self.server.read(LONG, |client| Box::pin(read::pinned_by_name(client))).await?;
            for repository in repositories {
                let nothing = String::new;
                let mut last = TagKey { repository, shelf: nothing(), name: nothing(), tag: nothing() };
                loop {
                    let behind = Arc::new(last.clone());
                    let page = self.server.read(LONG, move |client| {
                        let behind = behind.clone();
                        Box::pin(async move { read::tags_behind(client, &behind).await })
                    });
                    let page = page.await?;
                    let Some((end, _)) = page.last() else {
                        break;
                    };
                    last = end.clone();
                    roots.extend(page.into_iter().filter(|(key, _)| is_pinned(key)).map(|(_, digest)| digest));
                }
            }
            let roots = Arc::new(roots);
            let below = self.server.read(LONG, move |client| {
                let roots = roots.clone();
                Box::pin(async move { read::below(client, &roots).await })
            });
            Ok((below.await?, has_names))
        }
        .boxed()
    }

    fn objects_by_use(&self, with_repositories: bool, each: TakeObject) -> Call<'_, ()> {
        let each = Arc::new(Mutex::new(each));
        async move {
            self.flushed(LONG).await?;
            let mine = self.mine().await?;
            let read = self.server.change_in_parts(ALL, LONG, move |client| {
                let each = each.clone();
                Box::pin(async move {
                    server::in_time(LONG, read::begin_objects(client, mine, with_repositories)).await?;
                    while server::in_time(LONG, read::next_objects(client, &each)).await? {}
                    Ok(())
                })
            });
            read.await
        }
        .boxed()
    }

    fn verify(&self) -> Call<'_, ()> {
        async move {
            self.flushed(LONG).await?;
            let stray = self.server.change(ALL, |client| Box::pin(read::verify(client))).await?;
            if stray > 0 {
                tracing::warn!(stray, "rows of the index that belong to nothing were removed");
            }
            let mut last = Some(0);
            while let Some(behind) = last {
                last = self.server.change(LONG, move |client| Box::pin(apply::sweep_behind(client, behind))).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn note(&self, write: Write) {
        if let Err(error) = self.shared.tasks.offer(write) {
            self.shared.losses.add(1, &error);
        }
    }

    fn apply(&self, writes: Vec<Write>) -> Call<'_, ()> {
        async move {
            for write in writes {
                // Where none is written any more, upkeep would wait for ever, and with it whoever waits for upkeep.
                let enough = tokio::time::timeout(LONG, self.server.takes_nothing()).map(drop);
                if let Err(error) = self.shared.tasks.put_within(write, enough).await {
                    self.shared.losses.add(1, &error);
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn flush(&self) -> Call<'_, ()> {
        self.flushed(self.server.soon).boxed()
    }

    fn close(&self) -> Call<'_, ()> {
        async move {
            let (done, closed) = oneshot::channel();
            self.shared.end(done)?;
            closed.await.map_err(|_| IndexError::Closed)
        }
        .boxed()
    }

    fn set_pin(&self, image: ImageName, is_pinned: bool) -> Call<'_, bool> {
        let image = Arc::new(image);
        async move {
            let own = self.shared.mine().own;
            let set = self.server.change(LONG, move |client| {
                let image = image.clone();
                Box::pin(async move {
                    changes::note_pins(client, own).await?;
                    changes::forget(client).await?;
                    read::set_pin(client, &image, is_pinned).await
                })
            });
            set.await
        }
        .boxed()
    }

    fn compared_with(&self) -> Call<'_, Option<String>> {
        self.read(|client, mine| Box::pin(read::compared_with(client, mine)))
    }

    fn set_compared_with(&self, bucket: Option<String>) -> Call<'_, ()> {
        let bucket = Arc::new(bucket);
        async move {
            let mine = self.mine().await?;
            let set = self.server.change(LONG, move |client| {
                let bucket = bucket.clone();
                Box::pin(async move { read::set_compared_with(client, mine, bucket.as_deref()).await })
            });
            set.await
        }
        .boxed()
    }

    fn keep_bucket(&self, time: Duration) -> Call<'_, bool> {
        async move {
            let mine = self.mine().await?;
            let soon = self.server.soon;
            self.server.change(soon, move |client| Box::pin(uploads::keep(client, mine, time))).await
        }
        .boxed()
    }

    fn uses(&self, objects: Vec<Digest>) -> Call<'_, HashMap<Digest, ObjectUse>> {
        let objects = Arc::new(objects);
        self.read(move |client, mine| {
            let objects = objects.clone();
            Box::pin(async move { uploads::uses(client, mine, &objects).await })
        })
    }

    fn rows(&self, table: Table, behind: RowKey, count: usize) -> Call<'_, Vec<Row>> {
        let behind = Arc::new(behind);
        async move {
            let mine = self.mine().await?;
            let read = self.server.read(LONG, move |client| {
                let behind = behind.clone();
                Box::pin(async move { rows::rows(client, mine, table, &behind, count).await })
            });
            read.await
        }
        .boxed()
    }

    fn take_in(&self, rows: Vec<Row>) -> Call<'_, ()> {
        let batch = Arc::new(rows::batch(rows));
        async move {
            let mine = self.mine().await?;
            let taken = self.server.change(LONG, move |client| {
                let batch = batch.clone();
                Box::pin(async move { apply::apply(client, mine, &batch).await })
            });
            taken.await
        }
        .boxed()
    }

    fn purge(&self, purge: Purge) -> BoxStream<'static, Result<Purged, IndexError>> {
        let (sender, steps) = mpsc::channel(1);
        let purging = Purging { server: self.server.clone(), shared: self.shared.clone(), steps: sender.clone() };
        let (places, flush) = (self.purges.clone(), self.flushed(LONG));
        // If the caller leaves, the purge still runs to its end.
        let run = async move {
            let place = tokio::time::timeout(PURGE_WAIT, places.acquire_owned()).await;
            let _place = place.map_err(|_| IndexError::Full)?.map_err(|_| IndexError::Closed)?;
            // What was queued before goes, too.
            flush.await?;
            purging.run(&purge).await
        };
        tokio::spawn(async move {
            if let Err(error) = run.await {
                let _ = sender.send(Err(error)).await;
            }
        });
        stream::unfold(steps, async |mut steps| Some((steps.recv().await?, steps))).boxed()
    }

    fn keep_within(&self, bounds: Bounds) {
        self.shared.set_bounds(bounds);
    }

    fn bytes(&self) -> Call<'_, u64> {
        let bytes = self.bytes.load(Ordering::Relaxed);
        async move { Ok(bytes) }.boxed()
    }

    fn remove_aside(&self) -> Call<'_, u64> {
        async { Ok(0) }.boxed()
    }

    fn announce<'a>(&'a self, me: &'a Replica, alive: Duration) -> Call<'a, ()> {
        let me = Arc::new(me.clone());
        async move {
            let mine = self.mine().await?;
            let announce = self.server.change(self.server.soon, move |client| {
                let me = me.clone();
                Box::pin(async move { replicas::announce(client, mine.own, &me, alive).await })
            });
            announce.await
        }
        .boxed()
    }

    fn holders<'a>(&'a self, digest: &'a Digest) -> Call<'a, Vec<Replica>> {
        let digest = *digest;
        self.read(move |client, mine| Box::pin(async move { replicas::holders(client, mine.own, &digest).await }))
    }

    fn replicas(&self) -> Call<'_, Vec<Replica>> {
        async { Ok(self.lives().await?.into_iter().map(|life| life.replica).collect()) }.boxed()
    }

    fn lives(&self) -> Call<'_, Vec<Life>> {
        self.read(|client, _| Box::pin(replicas::alive(client)))
    }

    fn take_lease(&self, name: &'static str, time: Duration) -> Call<'_, Holder> {
        async move {
            let (mine, soon) = (self.mine().await?, self.server.soon);
            self.server.change(soon, move |client| Box::pin(leases::take(client, mine.own, name, time))).await
        }
        .boxed()
    }

    fn changes(&self, known: Option<Mark>) -> Call<'_, (Vec<Change>, Mark)> {
        self.read(move |client, mine| {
            let known = known.clone();
            Box::pin(async move { changes::since(client, mine, known).await })
        })
    }

    fn dropped(&self) -> u64 {
        self.shared.losses.all()
    }

    fn was_damaged(&self) -> bool {
        false
    }

    fn server_trouble(&self) -> Option<String> {
        self.server.trouble()
    }

    fn is_on_server(&self) -> bool {
        true
    }
}
