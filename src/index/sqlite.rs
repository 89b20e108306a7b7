//! The index in SQLite: one writing thread that batches, and a few reading connections.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use tokio::sync::oneshot;

use super::damage::{identity, mark_damaged, mark_if_damaged, remove_aside};
use super::queue::Task;
use super::size;
use super::writer::{Change, Queue};
use super::{Bounds, IndexError, ObjectEntry, TagEntry, TagKey, Timestamp, Totals, UsedObject, Viewer, Write};
use crate::oci::{Digest, MediaType};

/// Reading connections.
const READERS: usize = 4;

/// The index of one cache directory.
pub struct Sqlite {
    pub(super) path: PathBuf,
    pub(super) readers: Readers,
    pub(super) writer: Queue,
    pub(super) was_damaged: bool,
    /// Device and inode number of the file that was opened; `None` in memory.
    pub(super) file: Option<(u64, u64)>,
}

impl Sqlite {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the index was damaged when it was opened, and had to be begun anew.
    pub fn was_damaged(&self) -> bool {
        self.was_damaged
    }

    /// Queues a write of a request. Never waits: if too many writes wait already, this one is dropped and counted.
    pub fn write(&self, write: Write) {
        self.writer.note(write);
    }

    /// Queues writes of upkeep, which are not dropped. Waits while too many writes wait. Blocks.
    pub fn apply(&self, writes: impl IntoIterator<Item = Write>) {
        self.writer.apply(writes);
    }

    /// Returns how many writes were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.writer.shared.dropped()
    }

    /// Holds no more than this from now on.
    pub fn keep_within(&self, bounds: Bounds) {
        self.writer.shared.set_bounds(bounds);
    }

    /// Returns the bytes of disk that the index needs: the pages of its database that hold something, and its log.
    /// Empty pages are used again or given back. Blocks.
    pub fn bytes(&self) -> u64 {
        if self.file.is_none() { 0 } else { self.writer.shared.used() + size::log(&self.path) }
    }

    /// Removes damaged indexes that were set aside. Returns the bytes that this gives back. Blocks.
    pub fn remove_aside(&self) -> std::io::Result<u64> {
        self.path.parent().map_or(Ok(0), remove_aside)
    }

    /// Makes a change after everything that is queued, and waits for its result. Blocks.
    pub(super) fn change_blocking<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Connection) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        let change: Change = Box::new(move |connection| {
            // The caller is still there: it cannot leave.
            let _ = done.send(change(connection));
        });
        self.writer.add(Task::Change(change))?;
        result.recv().map_err(|_| IndexError::Closed)?
    }

    /// Waits until everything that was queued is written.
    pub async fn flush(&self) -> Result<(), IndexError> {
        let (done, result) = oneshot::channel();
        self.writer.add(Task::Flush(done))?;
        result.await.map_err(|_| IndexError::Closed)
    }

    /// Writes what was queued and closes the file, whatever else still holds the index. Later writes are dropped.
    pub async fn close(&self) -> Result<(), IndexError> {
        self.writer.close().await
    }

    /// Like [`Self::flush`], for callers that may block.
    pub fn flush_blocking(&self) -> Result<(), IndexError> {
        let (done, result) = oneshot::channel();
        self.writer.add(Task::Flush(done))?;
        result.blocking_recv().map_err(|_| IndexError::Closed)
    }

    /// Reads by one of the reading connections. Blocks.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        self.readers.with(read)
    }

    // The functions below read; they block.

    /// Returns what a tag was when its upstream was last asked.
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

    /// Returns what is known about an object in the store.
    pub fn object(&self, digest: &Digest) -> Result<Option<ObjectEntry>, IndexError> {
        const SQL: &str = "SELECT size, media_type, stored_at, generation FROM objects WHERE digest = ?1";
        self.readers.with(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let row = statement.query_row(params![digest.as_raw()], |row| {
                Ok(ObjectEntry {
                    size: row.get(0)?,
                    media_type: row.get::<_, Option<String>>(1)?.map(MediaType::new),
                    stored_at: Timestamp(row.get(2)?),
                    generation: row.get(3)?,
                })
            });
            row.optional()
        })
    }

    /// Returns whether an object is visible to a viewer.
    pub fn is_visible(&self, viewer: &Viewer, digest: &Digest) -> Result<bool, IndexError> {
        const SQL: &str = "SELECT 1 FROM visibility WHERE repository = ?1 AND scope = ?2 AND digest = ?3";
        self.readers.with(|connection| {
            connection.prepare_cached(SQL)?.exists(params![viewer.repository, viewer.scope, digest.as_raw()])
        })
    }

    /// Gives all objects to `each`, the least recently used first; with the repositories in which the object is visible,
    /// if `with_repositories`.
    pub fn objects_by_use(
        &self,
        with_repositories: bool,
        mut each: impl FnMut(UsedObject<'_>),
    ) -> Result<(), IndexError> {
        const PLAIN: &str = "SELECT digest, size, last_use, '', generation IS NOT NULL FROM objects ORDER BY last_use";
        const WITH_REPOSITORIES: &str = "SELECT digest, size, last_use, coalesce((SELECT group_concat(repository, char(10)) \
             FROM visibility WHERE visibility.digest = objects.digest), ''), generation IS NOT NULL \
             FROM objects ORDER BY last_use";
        self.readers.with(|connection| {
            let mut statement = connection.prepare(if with_repositories { WITH_REPOSITORIES } else { PLAIN })?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                each(UsedObject {
                    digest: read_digest(row)?,
                    size: row.get(1)?,
                    last_use: Timestamp(row.get(2)?),
                    repositories: row.get_ref(3)?.as_str()?,
                    is_uploaded: row.get(4)?,
                    has_file: !row.get::<_, bool>(4)?,
                });
            }
            Ok(())
        })
    }

    /// Gives all objects that have a row to `each`: digest and size.
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

    /// Returns the bucket with which this index was once compared from the first key to the last.
    pub fn compared_with(&self) -> Result<Option<String>, IndexError> {
        let read = |connection: &Connection| {
            connection.query_row("SELECT bucket FROM compared", [], |row| row.get(0)).optional()
        };
        self.readers.with(read)
    }

    /// Notes with which bucket this index was compared from the first key to the last; `None`: with none. Blocks.
    pub fn set_compared_with(&self, bucket: Option<String>) -> Result<(), IndexError> {
        self.change_blocking(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM compared", [])?;
            if let Some(bucket) = bucket {
                transaction.execute("INSERT INTO compared (bucket) VALUES (?1)", params![bucket])?;
            }
            Ok(transaction.commit()?)
        })
    }

    /// Checks whether the index can be read.
    pub fn check(&self) -> Result<(), IndexError> {
        self.readers.with(|connection| connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())))
    }

    /// Reads all of the index and compares its parts. Takes long on a large index.
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

    /// Returns the count and the bytes of all objects.
    pub fn totals(&self) -> Result<Totals, IndexError> {
        self.readers.with(|connection| {
            connection.query_row("SELECT count(*), coalesce(sum(size), 0) FROM objects", [], |row| {
                Ok(Totals { objects: row.get(0)?, bytes: row.get(1)? })
            })
        })
    }
}

/// The reading connections, shared out among blocking callers.
pub struct Readers {
    connections: Vec<Mutex<Connection>>,
    path: PathBuf,
}

impl Readers {
    /// Opens the connections. `path` is the file of the index, `source` where its database is found.
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

    /// Reads by a connection that is free, else waits for any of them.
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

/// Returns a number that differs from call to call, to spread callers that wait over the connections.
fn spread() -> u8 {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Reads a digest from a column.
pub(super) fn digest(value: rusqlite::types::ValueRef<'_>) -> rusqlite::Result<Digest> {
    let raw = value.as_blob()?;
    let wrong = || rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, "no digest".into());
    Digest::from_raw(raw).ok_or_else(wrong)
}

/// Reads a digest from the first column.
pub(super) fn read_digest(row: &rusqlite::Row<'_>) -> rusqlite::Result<Digest> {
    digest(row.get_ref(0)?)
}

#[cfg(test)]
mod tests;
