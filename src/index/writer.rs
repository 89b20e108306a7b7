//! The writing thread.
//!
//! Locks: `ended` and `bounds` are each taken alone.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::apply::apply;
use super::bounds::{self, Bounds, Excess};
use super::damage::mark_if_damaged;
use super::medium::{self, Medium};
use super::queue::{Losses, Task, Tasks};
use super::size::{self, Left};
use super::{IndexError, Write};
use crate::clock::Instant;
use crate::files::FolderLock;

/// Most writes in one transaction. A caller may wait for the one before its own: in an index of a million objects, both
/// together take less than 50 ms.
const BATCH: usize = 128;
/// The same while there are rows beyond the bounds: a step that removes some of them comes between two batches, and has
/// to remove more rows than a batch adds.
const SMALL_BATCH: usize = 44;
/// About the most bytes of the writes in one transaction.
const BATCH_BYTES: u64 = 1 << 20;
/// How long a write waits for other connections to the database.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often the thread waits for readers when the log has become long. In between, it only tries.
const WAITS: Duration = Duration::from_secs(60);
/// How long the thread waits for readers while it has nothing else to do.
const IDLE_PATIENCE: Duration = Duration::from_millis(100);
/// How long it then rests, if readers held it up.
const REST: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the thread: a disk that hangs would keep the process for ever.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// A change for whose result a caller waits.
pub type Change = Box<dyn FnOnce(&mut Connection) + Send>;

/// Hands work to the writing thread, which writes everything that is queued before it ends.
pub struct Queue {
    tasks: Arc<Tasks<Change>>,
    thread: Option<JoinHandle<()>>,
    /// Closed when the thread has ended.
    ended: Mutex<Receiver<Infallible>>,
    /// Whether a caller waits for the end, or has waited long enough.
    is_ending: AtomicBool,
    pub shared: Arc<Shared>,
}

/// State that the writing thread and the callers of the index share.
#[derive(Debug, Default)]
pub struct Shared {
    losses: Losses,
    /// Bytes of the database that hold something.
    used: AtomicU64,
    /// Whether the log has grown long, because readers keep it from being taken into the database.
    has_long_log: AtomicBool,
    bounds: Mutex<Bounds>,
}

impl Shared {
    /// Returns how many writes were lost.
    pub fn dropped(&self) -> u64 {
        self.losses.all()
    }

    /// Returns the bytes of the database that hold something.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Sets what the index may hold.
    pub fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    fn bounds(&self) -> Bounds {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Starts the writing thread.
    pub fn start(writer: Writer) -> Result<Self, IndexError> {
        let tasks = Arc::<Tasks<Change>>::default();
        let (shared, closing) = (writer.shared.clone(), Closing(tasks.clone()));
        let (ending, ended) = channel();
        let run = move || {
            let _ending = ending;
            writer.run(&closing.0);
        };
        let thread = std::thread::Builder::new().name("larder-index".to_owned()).spawn(run)?;
        Ok(Self { tasks, thread: Some(thread), ended: Mutex::new(ended), is_ending: AtomicBool::default(), shared })
    }

    /// Queues a write of a request. Never waits: a write that does not fit is dropped and counted, since the index is a
    /// help and a client must not wait for it.
    pub fn note(&self, write: Write) {
        if write.is_spare() && self.shared.has_long_log.load(Ordering::Relaxed) {
            return self.shared.losses.add(1, &"its log is long, and readers keep it from being taken in");
        }
        if let Err(error) = self.tasks.offer(write) {
            self.shared.losses.add(1, &error);
        }
    }

    /// Queues writes of upkeep, which are not dropped. Waits while the queue is full. Blocks.
    pub fn apply(&self, writes: impl IntoIterator<Item = Write>) {
        for write in writes {
            if let Err(error) = self.tasks.put(write) {
                self.shared.losses.add(1, &error);
            }
        }
    }

    /// Queues a task for which a caller waits.
    pub fn add(&self, task: Task<Change>) -> Result<(), IndexError> {
        self.tasks.add(task)
    }

    /// Writes what is queued and ends the thread.
    pub async fn close(&self) -> Result<(), IndexError> {
        self.is_ending.store(true, Ordering::Relaxed);
        let (done, closed) = oneshot::channel();
        self.tasks.add(Task::Close(done))?;
        closed.await.map_err(|_| IndexError::Closed)
    }
}

impl Drop for Queue {
    /// Writes what is queued and ends the thread. Writes that are not made in time are learnt again.
    fn drop(&mut self) {
        if *self.is_ending.get_mut() {
            return;
        }
        let (Ok(()), Some(thread)) = (self.tasks.add(Task::Close(oneshot::channel().0)), self.thread.take()) else {
            return;
        };
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LAST_WRITES) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the index could not be closed in time; the next start takes in its log");
        } else if thread.join().is_err() {
            tracing::error!("the index's thread panicked");
        }
    }
}

/// Closes the queue when the thread ends, also by a panic.
struct Closing(Arc<Tasks<Change>>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The writing thread: writes what is queued, each batch in one transaction.
pub struct Writer {
    connection: Connection,
    path: PathBuf,
    medium: Medium,
    lock: Arc<FolderLock>,
    shared: Arc<Shared>,
    excess: Excess,
    /// Which room the database has still to give back to the disk.
    left: Left,
    /// How long to wait for other work before giving that back.
    rest: Duration,
    /// Whether the last batch could not be written.
    is_failing: bool,
    /// When the thread last waited for readers.
    waited: Option<Instant>,
}

impl Writer {
    /// Creates the thread's state. `connection` is the only one that writes.
    pub fn new(connection: Connection, path: PathBuf, medium: Medium, lock: Arc<FolderLock>) -> Self {
        let shared = Arc::<Shared>::default();
        shared.used.store(size::used(&connection).unwrap_or(0), Ordering::Relaxed);
        Self {
            connection,
            path,
            medium,
            lock,
            shared,
            excess: Excess::default(),
            left: Left::Pages,
            rest: Duration::ZERO,
            is_failing: false,
            waited: None,
        }
    }

    /// Works until the queue is closed.
    fn run(mut self, tasks: &Tasks<Change>) {
        loop {
            let (mut writes, mut bytes) = (Vec::new(), 0);
            let most = if self.excess.is_any() { SMALL_BATCH } else { BATCH };
            let mut next = Some(self.next(tasks));
            while let Some(task) = next.take() {
                match task {
                    Task::Write(write) => {
                        bytes += write.weight();
                        writes.push(write);
                        if writes.len() < most && bytes < BATCH_BYTES {
                            next = tasks.take(Some(Duration::ZERO));
                        }
                    }
                    // Writes that were queued before go first.
                    Task::Change(change) => {
                        self.apply_batch(std::mem::take(&mut writes));
                        change(&mut self.connection);
                        self.settle();
                    }
                    Task::Flush(done) => {
                        let has_written = self.write(std::mem::take(&mut writes));
                        let _ = done.send(());
                        if has_written {
                            self.settle();
                        }
                    }
                    Task::Close(done) => {
                        self.apply_batch(writes);
                        tasks.close();
                        self.close();
                        let _ = done.send(());
                        return;
                    }
                }
            }
            self.apply_batch(writes);
        }
    }

    /// Returns the next task. While there is none, the index gives room back.
    fn next(&mut self, tasks: &Tasks<Change>) -> Task<Change> {
        if let Some(task) = tasks.take(Some(Duration::ZERO)) {
            return task;
        }
        self.shared.losses.end_burst();
        loop {
            let patience = match (self.excess.is_any(), self.left) {
                (true, _) => Some(Duration::ZERO),
                (false, Left::Nothing) => None,
                (false, _) => Some(self.rest),
            };
            match tasks.take(patience) {
                Some(task) => return task,
                None if self.excess.is_any() => self.settle(),
                None => self.tidy(),
            }
        }
    }

    /// Takes one step of giving back what the database no longer needs.
    fn tidy(&mut self) {
        self.rest = Duration::ZERO;
        let given = match self.left {
            Left::Nothing => Ok(Left::Nothing),
            Left::Pages => size::give_back(&self.connection, &self.path, false),
            Left::Log => {
                let is_done = self.take_in_log(IDLE_PATIENCE);
                is_done.map(|is_done| if is_done { Left::Nothing } else { Left::Log })
            }
        };
        match given {
            Ok(left) => {
                let is_held_up = self.left == Left::Log && left == Left::Log;
                self.rest = if is_held_up { REST } else { Duration::ZERO };
                self.left = left;
            }
            Err(error) => {
                tracing::debug!(%error, "the index cannot give room back now");
                self.left = Left::Nothing;
            }
        }
    }

    fn close(&self) {
        match self.medium {
            // So that a start that can only read the file finds everything in it.
            Medium::Disk => {
                if let Err(error) = size::take_in_log(&self.connection) {
                    tracing::warn!(%error, "the index's log is taken in by the next start");
                }
            }
            Medium::Memory { may_replace: true } => match self.lock.take() {
                Ok(()) => medium::save(&self.connection, &self.path),
                Err(error) => tracing::warn!(%error, "the index that was kept in memory is lost"),
            },
            Medium::Memory { may_replace: false } => {}
        }
    }

    /// Makes writes, in one transaction, and then what they make necessary.
    fn apply_batch(&mut self, writes: Vec<Write>) {
        if self.write(writes) {
            self.settle();
        }
    }

    /// Makes writes, in one transaction. Returns whether there were any.
    fn write(&mut self, writes: Vec<Write>) -> bool {
        if writes.is_empty() {
            return false;
        }
        let count = writes.len() as u64;
        let bounds = self.shared.bounds();
        let result = self.connection.transaction().and_then(|transaction| {
            for write in writes.into_iter().filter(|write| bounds.admit(write)) {
                apply(&transaction, write)?;
            }
            transaction.commit()
        });
        if let Err(error) = &result {
            mark_if_damaged(&self.path, error);
            self.shared.losses.count(count);
            if !self.is_failing {
                tracing::error!(%error, count, "changes to the index were lost");
            }
        } else if self.is_failing {
            tracing::info!("changes to the index are written again");
        }
        self.is_failing = result.is_err();
        true
    }

    /// Checks how much the index holds, and takes a step back if that is too much.
    fn settle(&mut self) {
        let bounds = self.shared.bounds();
        let settled = bounds::keep_within(&mut self.connection, &bounds, &mut self.excess);
        match settled.and_then(|()| size::used(&self.connection)) {
            Ok(used) => self.shared.used.store(used, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, "the index cannot be kept within its bounds now");
                // The next write is another chance.
                self.excess = Excess::default();
            }
        }
        if size::has_long_log(&self.path) {
            let is_due = self.waited.is_none_or(|waited| waited.elapsed() > WAITS);
            if is_due {
                self.waited = Some(Instant::now());
            }
            if let Err(error) = self.take_in_log(if is_due { PATIENCE } else { Duration::ZERO }) {
                tracing::warn!(%error, "the index's log cannot be taken in");
            }
        }
        self.shared.has_long_log.store(size::has_long_log(&self.path), Ordering::Relaxed);
        if self.left == Left::Nothing {
            self.left = Left::Pages;
        }
    }

    /// Takes the log into the database; waits for readers at most `patience`. Returns whether it was done.
    fn take_in_log(&self, patience: Duration) -> rusqlite::Result<bool> {
        self.connection.busy_timeout(patience)?;
        let is_done = size::take_in_log(&self.connection);
        self.connection.busy_timeout(PATIENCE)?;
        is_done
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ListKey, Listing, Purge, Sqlite, TagEntry, TagKey, Timestamp};
    use super::*;
    use crate::oci::{Digest, MediaType};

    const MIB: u64 = 1 << 20;

    fn list(number: usize, bytes: usize) -> Write {
        let key = ListKey { repository: "r".to_owned(), name: "a".to_owned(), page: format!("tags/list?n={number}") };
        let listing = Listing {
            body: vec![b' '; bytes].into(),
            media_type: None,
            link: None,
            filters_applied: None,
            checked_at: Timestamp(i64::try_from(number).expect("small")),
        };
        Write::Listing { key, listing }
    }

    fn tag() -> (TagKey, TagEntry) {
        let key =
            TagKey { repository: "r".to_owned(), name: "a".to_owned(), tag: "1".to_owned(), shelf: String::new() };
        let digest = Digest::Sha256([1; 32]);
        (key, TagEntry { digest, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) })
    }

    async fn write_lists(index: &Sqlite, count: usize) {
        for number in 0..count {
            index.write(list(number, 1 << 20));
            index.flush().await.expect("written");
        }
    }

    /// Waits for a condition: room is given back only while nothing else is to be done.
    async fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(20), "did not happen: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_a_flood_took_is_given_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("larder.db");
        let index = Sqlite::open(dir.path()).expect("an index");
        write_lists(&index, 20).await;
        assert!(size::on_disk(&path) > 20 * MIB && index.bytes() > 20 * MIB);
        // In the background, if only a part is removed.
        index.keep_within(Bounds { lists: 2 * MIB, ..Bounds::default() });
        index.write(list(99, 1000));
        // What goes beyond the bounds goes behind the answer to a flush.
        index.flush().await.expect("written");
        index.flush().await.expect("settled");
        assert!(index.bytes() < 6 * MIB, "what holds nothing does not count: {}", index.bytes());
        wait_until("the file is cut", || size::on_disk(&path) < 4 * MIB).await;
        // At once, if everything is removed.
        index.keep_within(Bounds::default());
        write_lists(&index, 20).await;
        index.purge(&Purge::All, drop).expect("purged");
        assert!(size::on_disk(&path) < MIB / 4, "{}", size::on_disk(&path));
    }

    #[tokio::test]
    async fn an_index_of_an_earlier_version_learns_to_give_room_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("larder.db");
        let old = Connection::open(&path).expect("opened");
        for migration in [
            include_str!("migrations/1.sql"),
            include_str!("migrations/2.sql"),
            include_str!("migrations/3.sql"),
            include_str!("migrations/4.sql"),
        ] {
            old.execute_batch(migration).expect("made");
        }
        old.execute_batch(
            "PRAGMA user_version = 4;
             INSERT INTO tags VALUES ('r', 'a', '1', zeroblob(32), 'm', 1, 5);
             INSERT INTO listings SELECT 'r', value, zeroblob(1000000), NULL, NULL, NULL, 1
             FROM json_each('[1, 2, 3, 4, 5]');",
        )
        .expect("filled");
        drop(old);
        assert!(size::on_disk(&path) > 4 * MIB);
        let index = Sqlite::open(dir.path()).expect("an index");
        assert!(size::on_disk(&path) < MIB, "{}", size::on_disk(&path));
        assert!(index.tag(&tag().0).expect("read").is_some());
        let mode: i64 = index
            .read(|connection| connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0)))
            .expect("read");
        assert_eq!(mode, 2);
    }

    #[tokio::test]
    async fn a_large_index_that_cannot_shrink_is_written_anew_once_it_is_mostly_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("larder.db");
        let index = Sqlite::open(dir.path()).expect("an index");
        // A larger index than the start would write anew.
        write_lists(&index, 20).await;
        drop(index);
        let old = Connection::open(&path).expect("opened");
        old.execute_batch("PRAGMA auto_vacuum = NONE; VACUUM").expect("rewritten");
        drop(old);
        let index = Sqlite::open(dir.path()).expect("an index");
        assert!(size::on_disk(&path) > 20 * MIB);
        index.purge(&Purge::All, drop).expect("purged");
        assert!(size::on_disk(&path) < MIB / 4, "{}", size::on_disk(&path));
    }

    #[tokio::test]
    async fn a_reader_that_takes_long_does_not_make_the_log_grow_for_ever() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("larder.db");
        let index = Arc::new(Sqlite::open(dir.path()).expect("an index"));
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let reading = index.clone();
        let reader = std::thread::spawn(move || {
            reading.read(|connection| {
                let transaction = connection.unchecked_transaction()?;
                transaction.query_row("SELECT count(*) FROM tags", [], |row| row.get::<_, u64>(0))?;
                begun.send(()).expect("awaited");
                may_go_on.recv().expect("told");
                Ok(())
            })
        });
        has_begun.recv().expect("begun");
        write_lists(&index, 60).await;
        // Writes that matter are made all the same.
        let (key, entry) = tag();
        index.write(Write::Tag { key: key.clone(), entry });
        index.flush().await.expect("written");
        assert!(index.tag(&key).expect("read").is_some());
        assert!(size::log(&path) < 24 * MIB, "{}", size::log(&path));
        assert!(index.dropped() > 30, "{}", index.dropped());
        go_on.send(()).expect("waiting");
        reader.join().expect("no panic").expect("read");
        index.write(Write::DropTag { key });
        wait_until("the log is taken in", || size::log(&path) <= 2 * MIB).await;
        let before = index.dropped();
        index.flush().await.expect("written");
        index.write(list(1, 1 << 20));
        index.flush().await.expect("written");
        assert_eq!(index.dropped(), before, "lists are kept again");
    }
}
