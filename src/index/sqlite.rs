//! The index in SQLite: one writing thread that batches, a few reading connections.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use super::pins;
use super::purge::{self, Purge, Purged};
use super::urls;
use super::{IndexError, Listing, ObjectEntry, TagEntry, TagKey, Timestamp, Totals, Write};
use crate::files;
use crate::oci::{Digest, MediaType};

const MIGRATIONS: [&str; 4] = [
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
];
/// Writes that may wait. Beyond this they are dropped and counted: the index is a help, and a client
/// must not wait for it.
const QUEUE: usize = 16 * 1024;
/// Most writes in one transaction.
const BATCH: usize = 1024;
const READERS: usize = 4;
/// All tables but those of SQLite itself.
pub(super) const TABLES: [&str; 8] =
    ["objects", "tags", "manifests", "visibility", "edges", "listings", "pins", "urls"];
/// Lists kept for outages. A client can ask for any number of pages, so the oldest go.
const MAX_LISTINGS: usize = 10_000;

/// The index of one cache directory.
pub struct Index {
    path: PathBuf,
    readers: Readers,
    writer: Queue,
    was_damaged: bool,
    /// The file that was opened; `None` in memory.
    file: Option<(u64, u64)>,
}

/// The way to the writing thread, which writes what is queued before it ends.
struct Queue {
    tasks: SyncSender<Task>,
    thread: Option<JoinHandle<()>>,
}

enum Task {
    Write(Write),
    Change(Change),
    Flush(oneshot::Sender<()>),
    Close,
}

/// A change whose result somebody waits for.
type Change = Box<dyn FnOnce(&mut Connection) + Send>;

impl Index {
    /// Opens the index under `dir`. One that cannot be read is set aside and a new one begun: what it
    /// knew is learnt again, and no state file can stop the start.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let path = dir.join("larder.db");
        let mark = damage_mark(&path);
        let was_marked = mark.exists();
        if was_marked {
            tracing::error!("the index was found damaged; it is built anew from the files");
            set_aside(&path)?;
            std::fs::remove_file(mark)?;
        }
        match Self::open_at(&path, was_marked) {
            Err(IndexError::Database(error)) if is_damage(&error) => {
                tracing::error!(%error, "the index is damaged; it is built anew from the files");
                set_aside(&path)?;
                Self::open_at(&path, true)
            }
            Err(IndexError::Database(error)) if is_of_the_disk(&error) => {
                tracing::error!(%error, "the index cannot be written; it is kept in memory until the next start");
                Self::open_in_memory(&path)
            }
            result => result,
        }
    }

    /// An index that is gone with the process, begun with what can be read of the one at `path`.
    fn open_in_memory(path: &Path) -> Result<Self, IndexError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let memory = format!("file:/larder-{}?vfs=memdb", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut connection = Connection::open(&memory)?;
        migrate(&mut connection)?;
        // Nobody else writes there, and what the last process left in the log cannot be taken in.
        let encoded = percent_encode(path.as_os_str().as_bytes(), NON_ALPHANUMERIC).to_string().replace("%2F", "/");
        let copied =
            connection.execute("ATTACH ?1 AS old", [format!("file:{encoded}?immutable=1&vfs=unix")]).and_then(|_| {
                TABLES.iter().try_for_each(|table| {
                    connection.execute(&format!("INSERT INTO main.{table} SELECT * FROM old.{table}"), []).map(drop)
                })
            });
        if let Err(error) = copied {
            tracing::warn!(%error, "not all that the index knew can be read; it is learnt again");
        }
        Self::start(connection, path, Path::new(&memory))
    }

    fn open_at(path: &Path, was_damaged: bool) -> Result<Self, IndexError> {
        let is_new = std::fs::metadata(path).map_or(true, |metadata| metadata.len() == 0);
        // The library makes it readable to all, and the files beside it like this one. What goes wrong it tells better.
        let _ = files::make(path, files::Readers::Group);
        let mut connection = Connection::open(path)?;
        configure(&connection)?;
        migrate(&mut connection)?;
        if is_new {
            pins::restore(&connection, path);
        }
        Ok(Self { was_damaged, ..Self::start(connection, path, path)? })
    }

    /// `source` is where further connections find the database of the first.
    fn start(connection: Connection, path: &Path, source: &Path) -> Result<Self, IndexError> {
        let readers = Readers::open(path, source)?;
        let (queue, tasks) = sync_channel(QUEUE);
        let writer = Writer { connection, path: path.to_owned() };
        let writer = std::thread::Builder::new().name("larder-index".to_owned()).spawn(move || writer.run(&tasks))?;
        let writer = Queue { tasks: queue, thread: Some(writer) };
        let file = if source == path { identity(path) } else { None };
        Ok(Self { path: path.to_owned(), readers, writer, was_damaged: false, file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the index was damaged when it was opened, and had to be begun anew.
    pub fn was_damaged(&self) -> bool {
        self.was_damaged
    }

    /// Queues a change. Never waits.
    pub fn write(&self, write: Write) {
        if let Err(error) = self.writer.add(Task::Write(write)) {
            tracing::warn!(%error, "a change to the index was dropped");
        }
    }

    /// Removes rows and tells which objects nothing refers to any more.
    pub async fn purge(&self, purge: Purge) -> Result<Purged, IndexError> {
        self.change(move |connection| purge::run(connection, &purge)).await
    }

    /// Makes a change behind all that is queued, and waits for its result.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Connection) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        let (done, result) = oneshot::channel();
        let change: Change = Box::new(move |connection| {
            // A caller that has gone away needs no answer.
            let _ = done.send(change(connection));
        });
        self.writer.add(Task::Change(change))?;
        result.await.map_err(|_| IndexError::Closed)?
    }

    /// Waits until all that was queued is written.
    pub async fn flush(&self) -> Result<(), IndexError> {
        let (done, result) = oneshot::channel();
        self.writer.add(Task::Flush(done))?;
        result.await.map_err(|_| IndexError::Closed)
    }

    /// As [`Self::flush`], for who may block.
    pub fn flush_blocking(&self) -> Result<(), IndexError> {
        let (done, result) = oneshot::channel();
        self.writer.add(Task::Flush(done))?;
        result.blocking_recv().map_err(|_| IndexError::Closed)
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        self.readers.with(read)
    }

    // The functions below read; they block.

    pub fn tag(&self, key: &TagKey) -> Result<Option<TagEntry>, IndexError> {
        const SQL: &str =
            "SELECT digest, media_type, size, checked_at FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3";
        self.readers.with(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let row = statement.query_row(params![key.repository, key.name, key.tag], |row| {
                Ok(TagEntry {
                    digest: digest(row.get_ref(0)?)?,
                    media_type: MediaType::new(row.get::<_, String>(1)?),
                    size: row.get(2)?,
                    checked_at: Timestamp(row.get(3)?),
                })
            });
            row.optional()
        })
    }

    pub fn object(&self, digest: &Digest) -> Result<Option<ObjectEntry>, IndexError> {
        const SQL: &str = "SELECT size, media_type, stored_at FROM objects WHERE digest = ?1";
        self.readers.with(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let row = statement.query_row(params![digest.as_raw()], |row| {
                Ok(ObjectEntry {
                    size: row.get(0)?,
                    media_type: row.get::<_, Option<String>>(1)?.map(MediaType::new),
                    stored_at: Timestamp(row.get(2)?),
                })
            });
            row.optional()
        })
    }

    pub fn is_visible(&self, repository: &str, digest: &Digest) -> Result<bool, IndexError> {
        const SQL: &str = "SELECT 1 FROM visibility WHERE repository = ?1 AND digest = ?2";
        self.readers.with(|connection| connection.prepare_cached(SQL)?.exists(params![repository, digest.as_raw()]))
    }

    pub fn listing(&self, repository: &str, page: &str) -> Result<Option<Listing>, IndexError> {
        const SQL: &str = "SELECT body, media_type, link, filters_applied, checked_at FROM listings \
                           WHERE repository = ?1 AND page = ?2";
        self.readers.with(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let row = statement.query_row(params![repository, page], |row| {
                Ok(Listing {
                    body: row.get::<_, Vec<u8>>(0)?.into(),
                    media_type: row.get::<_, Option<String>>(1)?.map(MediaType::new),
                    link: row.get(2)?,
                    filters_applied: row.get(3)?,
                    checked_at: Timestamp(row.get(4)?),
                })
            });
            row.optional()
        })
    }

    /// At most `count` names with cached content, as `repository/name` in byte order, behind `last`.
    pub fn catalog(&self, repositories: &[String], last: &str, count: usize) -> Result<Vec<String>, IndexError> {
        // What only clients' own credentials brought in is not listed.
        const SQL: &str = "WITH wanted AS (SELECT value FROM json_each(?3)), \
             named AS (SELECT repository, name, digest FROM tags UNION SELECT repository, name, digest FROM manifests) \
             SELECT DISTINCT repository || '/' || name AS path FROM named \
             WHERE path > ?1 AND repository IN (SELECT value FROM wanted) \
             AND EXISTS (SELECT 1 FROM visibility WHERE visibility.digest = named.digest \
                AND visibility.repository IN (named.repository, named.repository || ' in public')) \
             ORDER BY path LIMIT ?2";
        let wanted = serde_json::to_string(repositories).unwrap_or_default();
        self.readers.with(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let rows = statement
                .query_map(params![last, i64::try_from(count).unwrap_or(i64::MAX), wanted], |row| row.get(0))?;
            rows.collect()
        })
    }

    /// All objects, the least recently used first: digest, size, last use and, where asked for, the
    /// repositories that may see it, a line each.
    pub fn objects_by_use(
        &self,
        with_repositories: bool,
        mut each: impl FnMut(Digest, u64, Timestamp, &str),
    ) -> Result<(), IndexError> {
        const PLAIN: &str = "SELECT digest, size, last_use, '' FROM objects ORDER BY last_use";
        const WITH_REPOSITORIES: &str = "SELECT digest, size, last_use, coalesce((SELECT group_concat(repository, char(10)) \
             FROM visibility WHERE visibility.digest = objects.digest), '') FROM objects ORDER BY last_use";
        self.readers.with(|connection| {
            let mut statement = connection.prepare(if with_repositories { WITH_REPOSITORIES } else { PLAIN })?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let repositories = row.get_ref(3)?.as_str()?;
                each(read_digest(row)?, row.get(1)?, Timestamp(row.get(2)?), repositories);
            }
            Ok(())
        })
    }

    /// All objects that have a row: digest and size.
    pub fn for_each_object(&self, mut each: impl FnMut(Digest, u64)) -> Result<(), IndexError> {
        self.readers.with(|connection| {
            let mut statement = connection.prepare("SELECT digest, size FROM objects")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                each(read_digest(row)?, row.get(1)?);
            }
            Ok(())
        })
    }

    /// Whether the index can be read.
    pub fn check(&self) -> Result<(), IndexError> {
        self.readers.with(|connection| connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())))
    }

    /// Reads all of the index and compares its parts; takes long on a large one.
    pub fn verify(&self) -> Result<(), IndexError> {
        if self.file.is_some() && identity(&self.path) != self.file {
            return Err(IndexError::Replaced);
        }
        let found = self
            .readers
            .with(|connection| connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0)))?;
        if found == "ok" {
            return Ok(());
        }
        mark_damaged(&self.path);
        Err(IndexError::Damaged(found))
    }

    pub fn totals(&self) -> Result<Totals, IndexError> {
        self.readers.with(|connection| {
            connection.query_row("SELECT count(*), coalesce(sum(size), 0) FROM objects", [], |row| {
                Ok(Totals { objects: row.get(0)?, bytes: row.get(1)? })
            })
        })
    }
}

impl Queue {
    fn add(&self, task: Task) -> Result<(), IndexError> {
        self.tasks.try_send(task).map_err(|error| match error {
            TrySendError::Full(_) => IndexError::Full,
            TrySendError::Disconnected(_) => IndexError::Closed,
        })
    }
}

impl Drop for Queue {
    /// Writes what is queued and ends the thread.
    fn drop(&mut self) {
        if self.tasks.send(Task::Close).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the index's thread panicked");
        }
    }
}

/// Reading connections, shared out among blocking callers.
struct Readers {
    connections: Vec<Mutex<Connection>>,
    path: PathBuf,
}

impl Readers {
    fn open(path: &Path, source: &Path) -> Result<Self, IndexError> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            // The name of a database in memory is a URI.
            let flags = if source == path { flags } else { flags | OpenFlags::SQLITE_OPEN_URI };
            let connection = Connection::open_with_flags(source, flags)?;
            connection.busy_timeout(Duration::from_secs(5))?;
            Ok(Mutex::new(connection))
        };
        let connections = (0..READERS).map(|_| open()).collect::<Result<_, IndexError>>()?;
        Ok(Self { connections, path: path.to_owned() })
    }

    fn with<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        let free = self.connections.iter().find_map(|reader| reader.try_lock().ok());
        let connection = match free {
            Some(connection) => connection,
            None => {
                let any = usize::from(spread()) % self.connections.len();
                self.connections[any].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
            }
        };
        Ok(read(&connection).inspect_err(|error| mark_if_damaged(&self.path, error))?)
    }
}

/// A number that differs from call to call, to spread waiters over the readers.
fn spread() -> u8 {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut may lose the last rows, never the database; lost rows are learnt again.
    connection.pragma_update(None, "synchronous", "NORMAL")
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (at, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", at + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Device and number of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The file that says that the index is to be set aside at the next start.
fn damage_mark(path: &Path) -> PathBuf {
    path.with_extension("db-damaged")
}

fn mark_if_damaged(path: &Path, error: &rusqlite::Error) {
    if is_damage(error) {
        mark_damaged(path);
    }
}

fn mark_damaged(path: &Path) {
    tracing::error!("the index is damaged; restart Larder and it is built anew from the files");
    if let Err(error) = files::make(&damage_mark(path), files::Readers::Group)
        && error.kind() != ErrorKind::AlreadyExists
    {
        tracing::error!(%error, "the damage could not be written down");
    }
}

/// Whether it is the disk that keeps the index from being opened, and not the index itself.
fn is_of_the_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(CannotOpen | DiskFull | PermissionDenied | ReadOnly | SystemIoFailure))
}

/// Moves a damaged index out of the way; it may be gone already.
fn set_aside(path: &Path) -> std::io::Result<()> {
    let aside = path.with_extension(format!("db.damaged-{}", Timestamp::now().0));
    match std::fs::rename(path, &aside) {
        Ok(()) => tracing::warn!(aside = %aside.display(), "the damaged index was set aside"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for suffix in ["db-wal", "db-shm"] {
        match std::fs::remove_file(path.with_extension(suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The writing thread: takes what is queued, in one transaction.
struct Writer {
    connection: Connection,
    path: PathBuf,
}

impl Writer {
    fn run(mut self, tasks: &Receiver<Task>) {
        while let Ok(first) = tasks.recv() {
            let mut writes = Vec::new();
            let mut next = Some(first);
            while let Some(task) = next.take() {
                match task {
                    Task::Write(write) => {
                        writes.push(write);
                        if writes.len() < BATCH {
                            next = tasks.try_recv().ok();
                        }
                    }
                    // What was queued before goes first.
                    Task::Change(change) => {
                        self.apply_batch(std::mem::take(&mut writes));
                        change(&mut self.connection);
                    }
                    Task::Flush(done) => {
                        self.apply_batch(std::mem::take(&mut writes));
                        let _ = done.send(());
                    }
                    Task::Close => {
                        self.apply_batch(writes);
                        return self.take_in_log();
                    }
                }
            }
            self.apply_batch(writes);
        }
    }

    /// Writes what is in the log to the database itself, so that a start that can only read finds it.
    fn take_in_log(&self) {
        if let Err(error) = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the index's log is taken in by the next start");
        }
    }

    fn apply_batch(&mut self, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        let count = writes.len();
        let has_url = writes.iter().any(|write| matches!(write, Write::Url { .. }));
        let has_listing = writes.iter().any(|write| matches!(write, Write::Listing { .. }));
        let result = self.connection.transaction().and_then(|transaction| {
            for write in writes {
                apply(&transaction, write)?;
            }
            if has_listing {
                drop_oldest_listings(&transaction, MAX_LISTINGS)?;
            }
            if has_url {
                urls::drop_oldest(&transaction)?;
            }
            transaction.commit()
        });
        if let Err(error) = result {
            mark_if_damaged(&self.path, &error);
            tracing::error!(%error, count, "changes to the index were lost");
        }
    }
}

fn apply(transaction: &Transaction<'_>, write: Write) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(values).map(drop);
    match write {
        Write::Object { digest, entry } => run(
            "INSERT INTO objects (digest, size, media_type, stored_at, last_use) VALUES (?1, ?2, ?3, ?4, ?4) \
             ON CONFLICT (digest) DO UPDATE SET size = ?2, media_type = coalesce(?3, media_type), last_use = ?4",
            params![digest.as_raw(), entry.size, entry.media_type.as_ref().map(MediaType::as_str), entry.stored_at.0],
        ),
        Write::Tag { key, entry } => run(
            "INSERT OR REPLACE INTO tags (repository, name, tag, digest, media_type, size, checked_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                key.repository,
                key.name,
                key.tag,
                entry.digest.as_raw(),
                entry.media_type.as_str(),
                entry.size,
                entry.checked_at.0
            ],
        ),
        Write::DropTag { key } => run(
            "DELETE FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3",
            params![key.repository, key.name, key.tag],
        ),
        Write::Manifest { repository, name, digest } => run(
            "INSERT OR IGNORE INTO manifests (repository, name, digest) VALUES (?1, ?2, ?3)",
            params![repository, name, digest.as_raw()],
        ),
        Write::Visible { repository, digest } => run(
            "INSERT OR IGNORE INTO visibility (repository, digest) VALUES (?1, ?2)",
            params![repository, digest.as_raw()],
        ),
        Write::Edges { parent, children } => children.iter().try_for_each(|child| {
            run("INSERT OR IGNORE INTO edges (parent, child) VALUES (?1, ?2)", params![parent.as_raw(), child.as_raw()])
        }),
        Write::Listing { repository, page, listing } => run(
            "INSERT OR REPLACE INTO listings (repository, page, body, media_type, link, filters_applied, checked_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                repository,
                page,
                &listing.body[..],
                listing.media_type.as_ref().map(MediaType::as_str),
                listing.link,
                listing.filters_applied,
                listing.checked_at.0
            ],
        ),
        Write::Url { key, entry } => urls::put(transaction, &key, &entry),
        Write::DropUrl { key, variant } => urls::drop_one(transaction, &key, &variant),
        Write::Used { digest, at } => {
            run("UPDATE objects SET last_use = ?2 WHERE digest = ?1", params![digest.as_raw(), at.0])
        }
        Write::DropObject { digest } => FORGET.iter().try_for_each(|sql| run(sql, params![digest.as_raw()])),
    }
}

/// What is known of an object, for when its file is gone. A tag of it would name nothing.
const FORGET: [&str; 6] = [
    "DELETE FROM urls WHERE digest = ?1",
    "DELETE FROM objects WHERE digest = ?1",
    "DELETE FROM visibility WHERE digest = ?1",
    "DELETE FROM edges WHERE parent = ?1",
    "DELETE FROM manifests WHERE digest = ?1",
    "DELETE FROM tags WHERE digest = ?1",
];

fn drop_oldest_listings(transaction: &Transaction<'_>, kept: usize) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM listings WHERE checked_at < \
                       (SELECT checked_at FROM listings ORDER BY checked_at DESC LIMIT 1 OFFSET ?1)";
    let kept = i64::try_from(kept).unwrap_or(i64::MAX);
    transaction.prepare_cached(SQL)?.execute(params![kept.saturating_sub(1)]).map(drop)
}

pub(super) fn digest(value: rusqlite::types::ValueRef<'_>) -> rusqlite::Result<Digest> {
    let raw = value.as_blob()?;
    let wrong = || rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, "no digest".into());
    Digest::from_raw(raw).ok_or_else(wrong)
}

pub(super) fn read_digest(row: &rusqlite::Row<'_>) -> rusqlite::Result<Digest> {
    digest(row.get_ref(0)?)
}

#[cfg(test)]
mod tests;
