//! The index in SQLite: one writing thread that batches, a few reading connections.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use super::bounds::MAX_VISIBLE;
use super::open::{self, identity, mark_damaged, mark_if_damaged};
use super::queue::{Change, Task};
use super::writer::Queue;
use super::{Bounds, IndexError, ObjectEntry, TagEntry, TagKey, Timestamp, Totals, Viewer, Write};
use super::{listings, names, size, urls};
use crate::oci::{Digest, MediaType};

const READERS: usize = 4;

/// The index of one cache directory.
pub struct Index {
    pub(super) path: PathBuf,
    pub(super) readers: Readers,
    pub(super) writer: Queue,
    pub(super) was_damaged: bool,
    /// The file that was opened; `None` in memory.
    pub(super) file: Option<(u64, u64)>,
}

impl Index {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the index was damaged when it was opened, and had to be begun anew.
    pub fn was_damaged(&self) -> bool {
        self.was_damaged
    }

    /// Queues a change of a request. Never waits: where too many wait already it is dropped and counted.
    pub fn write(&self, write: Write) {
        self.writer.note(write);
    }

    /// Queues changes of upkeep, which are not dropped: waits while too many wait. Blocks.
    pub fn apply(&self, writes: impl IntoIterator<Item = Write>) {
        self.writer.apply(writes);
    }

    /// Changes that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.writer.shared.dropped()
    }

    /// Holds no more than this from now on.
    pub fn keep_within(&self, bounds: Bounds) {
        self.writer.shared.set_bounds(bounds);
    }

    /// Bytes of disk that the index needs: of its database what holds something, and its log. What holds nothing is
    /// used again or given back. Blocks.
    pub fn bytes(&self) -> u64 {
        if self.file.is_none() { 0 } else { self.writer.shared.used() + size::log(&self.path) }
    }

    /// Removes a damaged index that was set aside. Returns the bytes that this gives back. Blocks.
    pub fn remove_aside(&self) -> std::io::Result<u64> {
        self.path.parent().map_or(Ok(0), open::remove_aside)
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

    /// As [`Self::change`], for who may block.
    pub(super) fn change_blocking<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Connection) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        let change: Change = Box::new(move |connection| {
            // Who waits is still there: it cannot leave.
            let _ = done.send(change(connection));
        });
        self.writer.add(Task::Change(change))?;
        result.recv().map_err(|_| IndexError::Closed)?
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
        const SQL: &str = "SELECT digest, media_type, size, checked_at FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3 \
             AND shelf = ?4";
        self.readers.with(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let row = statement.query_row(params![key.repository, key.name, key.tag, key.shelf], |row| {
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

    pub fn is_visible(&self, viewer: &Viewer, digest: &Digest) -> Result<bool, IndexError> {
        const SQL: &str = "SELECT 1 FROM visibility WHERE repository = ?1 AND scope = ?2 AND digest = ?3";
        self.readers.with(|connection| {
            connection.prepare_cached(SQL)?.exists(params![viewer.repository, viewer.scope, digest.as_raw()])
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

/// Reading connections, shared out among blocking callers.
pub struct Readers {
    connections: Vec<Mutex<Connection>>,
    path: PathBuf,
}

impl Readers {
    pub fn open(path: &Path, source: &Path) -> Result<Self, IndexError> {
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

pub(super) fn apply(transaction: &Transaction<'_>, write: Write) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(values).map(drop);
    match write {
        Write::Object { digest, entry } => run(
            "INSERT INTO objects (digest, size, media_type, stored_at, last_use) VALUES (?1, ?2, ?3, ?4, ?4) \
             ON CONFLICT (digest) DO UPDATE SET size = ?2, media_type = coalesce(?3, media_type), last_use = ?4",
            params![digest.as_raw(), entry.size, entry.media_type.as_ref().map(MediaType::as_str), entry.stored_at.0],
        ),
        Write::Tag { key, entry } => run(
            "INSERT INTO tags (repository, name, tag, digest, media_type, size, checked_at, shelf, is_listed) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, EXISTS (SELECT 1 FROM visibility \
                 WHERE repository = ?1 AND scope IN (0, 2) AND digest = ?4)) \
             ON CONFLICT (repository, name, tag, shelf) DO UPDATE SET digest = excluded.digest, \
                 media_type = excluded.media_type, size = excluded.size, checked_at = excluded.checked_at, \
                 is_listed = excluded.is_listed",
            params![
                key.repository,
                key.name,
                key.tag,
                entry.digest.as_raw(),
                entry.media_type.as_str(),
                entry.size,
                entry.checked_at.0,
                key.shelf
            ],
        ),
        Write::DropTag { key } => run(
            "DELETE FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3 AND shelf = ?4",
            params![key.repository, key.name, key.tag, key.shelf],
        ),
        Write::Manifest { repository, name, digest, at } => names::put(transaction, &repository, &name, &digest, at),
        Write::Visible { viewer, digest } => put_visible(transaction, &viewer, &digest),
        Write::Edges { parent, children } => children.iter().try_for_each(|child| {
            run("INSERT OR IGNORE INTO edges (parent, child) VALUES (?1, ?2)", params![parent.as_raw(), child.as_raw()])
        }),
        Write::Listing { key, listing } => listings::put(transaction, &key, &listing),
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

/// Notes that a repository may see an object; where very many may, another one has to ask its upstream again.
fn put_visible(transaction: &Transaction<'_>, viewer: &Viewer, digest: &Digest) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT OR IGNORE INTO visibility (repository, scope, digest) VALUES (?1, ?2, ?3)";
    const OTHERS: &str = "DELETE FROM visibility WHERE digest = ?3 AND (repository, scope) IN \
        (SELECT repository, scope FROM visibility WHERE digest = ?3 AND (repository, scope) <> (?1, ?2) \
         ORDER BY random() LIMIT max(0, (SELECT count(*) FROM visibility WHERE digest = ?3) - ?4))";
    let Viewer { repository, scope } = viewer;
    if transaction.prepare_cached(INSERT)?.execute(params![repository, scope, digest.as_raw()])? > 0 {
        transaction.prepare_cached(OTHERS)?.execute(params![repository, scope, digest.as_raw(), MAX_VISIBLE])?;
    }
    Ok(())
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
