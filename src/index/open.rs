//! Opens an index, whatever state it and its disk are in: no damaged file can stop the start.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, params};

use super::damage::{damage_mark, identity, is_damage, is_of_the_disk, set_aside};
use super::medium::{Medium, remove, uri};
use super::size::{self, LITTLE};
use super::sqlite::Readers;
use super::writer::{PATIENCE, Queue, Writer};
use super::{IndexError, Sqlite, pins};
use crate::files::{self, FolderLock};

pub(super) const MIGRATIONS: [&str; 12] = [
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
    include_str!("migrations/5.sql"),
    include_str!("migrations/6.sql"),
    include_str!("migrations/7.sql"),
    include_str!("migrations/8.sql"),
    include_str!("migrations/9.sql"),
    include_str!("migrations/10.sql"),
    include_str!("migrations/11.sql"),
    include_str!("migrations/12.sql"),
];
/// All tables, except SQLite's own and those that follow from these. The last says that the rows of all objects are there:
/// where others cannot be copied, it is not either.
const TABLES: [&str; 9] =
    ["objects", "tags", "manifests", "visibility", "edges", "pins", "listings", "urls", "compared"];
/// Tables that may be large and only help in an outage, with the SQL that returns their bytes.
const SPARE: [(&str, &str); 2] =
    [("listings", "SELECT sum(length(body)) FROM old.listings"), ("urls", "SELECT sum(length(head)) FROM old.urls")];
/// Most bytes of such a table that are kept in memory.
const SPARE_BYTES: u64 = 16 << 20;
/// A database of fewer bytes is not the reason why a disk is full.
const LARGE: u64 = 4 << 20;

impl Sqlite {
    /// Opens the index under `dir`. An index that cannot be read is set aside, and a new one begun: what it knew is
    /// learnt again, and no damaged file can stop the start.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        Self::open_locked(dir, lock_of(&dir.join("larder.db")))
    }

    /// [`Self::open`], with the lock on the directory. An index that is kept in memory takes it before it is written.
    pub fn open_locked(dir: &Path, lock: Arc<FolderLock>) -> Result<Self, IndexError> {
        let path = dir.join("larder.db");
        let mark = damage_mark(&path);
        let was_marked = mark.exists();
        if was_marked {
            tracing::error!("the index was found damaged; it is built anew from the files");
            set_aside(&path)?;
            std::fs::remove_file(mark)?;
        }
        match Self::open_at(&path, was_marked, &lock) {
            Err(IndexError::Database(error)) if is_damage(&error) => {
                tracing::error!(%error, "the index is damaged; it is built anew from the files");
                set_aside(&path)?;
                Self::open_at(&path, true, &lock)
            }
            // Its rows may mean something else than this version knows.
            Err(error @ IndexError::Later { .. }) => {
                tracing::error!(%error, "the index is set aside and built anew from the files");
                set_aside(&path)?;
                Self::open_at(&path, true, &lock)
            }
            Err(IndexError::Database(error)) if is_of_the_disk(&error) => Self::open_without_disk(&path, &error, &lock),
            result => result,
        }
    }

    /// Opens an index whose disk is full or cannot be written to. If the index itself fills the disk, it is written
    /// anew. Else it is kept in memory, and written when the process ends.
    fn open_without_disk(path: &Path, error: &rusqlite::Error, lock: &Arc<FolderLock>) -> Result<Self, IndexError> {
        let copy = Copy::of(path)?;
        let is_full = path.parent().is_some_and(|dir| size::free(dir).is_ok_and(|free| free < LITTLE));
        let before = size::on_disk(path);
        if is_full && copy.is_whole && before > LARGE && size::used(&copy.connection)? < before / 2 {
            tracing::error!(%error, bytes = before, "the index fills the disk; it is written anew without lists");
            remove(path)?;
            match copy.connection.execute("VACUUM INTO ?1", params![uri(path, "vfs=unix")]) {
                Ok(_) => return Self::open_at(path, false, lock),
                Err(error) => {
                    tracing::error!(%error, "the index cannot be written anew");
                    remove(path)?;
                }
            }
        }
        tracing::error!(%error, "the index cannot be written; it is kept in memory until the next start");
        Self::start(copy.connection, path, Path::new(&copy.name), Medium::Memory { may_replace: copy.is_whole }, lock)
    }

    /// Opens an index that is gone with the process. It begins with the readable part of the index at `path`.
    #[cfg(test)]
    pub(super) fn open_in_memory(path: &Path) -> Result<Self, IndexError> {
        let copy = Copy::of(path)?;
        Self::start(copy.connection, path, Path::new(&copy.name), Medium::Memory { may_replace: false }, &lock_of(path))
    }

    fn open_at(path: &Path, was_damaged: bool, lock: &Arc<FolderLock>) -> Result<Self, IndexError> {
        let is_new = std::fs::metadata(path).map_or(true, |metadata| metadata.len() == 0);
        // The library would make the file readable for everybody, and makes the files beside it like this one. If this
        // fails, the library's own error says more.
        let _ = files::make(path, files::Readers::Group);
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        if is_new {
            size::prepare(&connection)?;
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A power cut may lose the last rows, never the database; lost rows are learnt again.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        size::configure(&connection)?;
        migrate(&mut connection, MIGRATIONS.len())?;
        if is_new {
            pins::restore(&connection, path);
        } else if size::should_be_written_anew(&connection, path)? {
            let written = size::write_anew(&connection).and_then(|()| size::take_in_log(&connection));
            if let Err(error) = written {
                tracing::warn!(%error, "the index cannot be written anew; it gives no room back until it is");
            }
        }
        Ok(Self { was_damaged, ..Self::start(connection, path, path, Medium::Disk, lock)? })
    }

    /// Opens the reading connections and starts the writing thread. `source`: where further connections find the
    /// database of the first.
    fn start(
        connection: Connection,
        path: &Path,
        source: &Path,
        medium: Medium,
        lock: &Arc<FolderLock>,
    ) -> Result<Self, IndexError> {
        let readers = Readers::open(path, source)?;
        let writer = Queue::start(Writer::new(connection, path.to_owned(), medium, lock.clone()))?;
        let file = if medium == Medium::Disk { identity(path) } else { None };
        Ok(Self { path: path.to_owned(), readers, writer, was_damaged: false, file })
    }
}

/// Returns the lock on the directory of an index that is used alone.
fn lock_of(path: &Path) -> Arc<FolderLock> {
    Arc::new(FolderLock::new(path.with_extension("lock")))
}

/// The readable part of an index, copied into memory.
struct Copy {
    connection: Connection,
    /// The name by which further connections find it.
    name: String,
    /// Whether everything was read that matters.
    is_whole: bool,
}

impl Copy {
    fn of(path: &Path) -> Result<Self, IndexError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("file:/larder-{}?vfs=memdb", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut connection = Connection::open(&name)?;
        size::prepare(&connection)?;
        let copied = if path.exists() { copy_from(&mut connection, path) } else { Ok(()) };
        migrate(&mut connection, MIGRATIONS.len())?;
        if let Err(error) = &copied {
            tracing::warn!(%error, "not all that the index knew can be read; it is learnt again");
        }
        pins::restore(&connection, path);
        Ok(Self { connection, name, is_whole: copied.is_ok() })
    }
}

/// Copies the rows of the index at `path`. If that index is of an earlier version, the copy is of the same version, to
/// be migrated.
fn copy_from(connection: &mut Connection, path: &Path) -> Result<(), IndexError> {
    // The rows that the last process left in the log are read, too, without the shared memory for which a full disk has
    // no room. If the file can only be read, that is not possible: then the log is left out.
    let ways = [("vfs=unix", "PRAGMA old.locking_mode = EXCLUSIVE"), ("immutable=1&vfs=unix", "")];
    let mut copied = Ok(());
    for (parameters, prepare) in ways {
        connection.execute("ATTACH ?1 AS old", [uri(path, parameters)])?;
        copied = connection
            .execute_batch(prepare)
            .and_then(|()| connection.pragma_query_value(Some("old"), "user_version", |row| row.get(0)))
            .map_err(IndexError::from)
            .and_then(|version| refuse_later(version).and_then(|()| migrate(connection, version)))
            .and_then(|()| Ok(copy_tables(connection)?));
        connection.execute_batch("DETACH old")?;
        if copied.is_ok() {
            break;
        }
    }
    copied
}

fn copy_tables(connection: &Connection) -> rusqlite::Result<()> {
    for table in TABLES {
        let columns = shared_columns(connection, table)?;
        // An earlier version may lack the table, or columns that are needed: its rows are learnt again.
        if columns.is_empty() {
            continue;
        }
        if let Some((_, bytes)) = SPARE.iter().find(|(spare, _)| *spare == table) {
            let bytes: Option<u64> = connection.query_row(bytes, [], |row| row.get(0))?;
            if bytes.unwrap_or(0) > SPARE_BYTES {
                continue;
            }
        }
        let columns = columns.join(", ");
        let sql = format!("INSERT OR IGNORE INTO main.{table} ({columns}) SELECT {columns} FROM old.{table}");
        connection.execute(&sql, [])?;
    }
    Ok(())
}

/// Returns the columns that a table has both here and in the attached index; none if the attached one lacks a column
/// that is needed here.
fn shared_columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let columns = |schema: &str| {
        let sql = "SELECT name, \"notnull\" AND dflt_value IS NULL AND NOT pk FROM pragma_table_info(?1, ?2)";
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map(params![table, schema], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<Vec<(String, bool)>>>()
    };
    let (here, there) = (columns("main")?, columns("old")?);
    let is_there = |name: &String| there.iter().any(|(other, _)| other == name);
    if here.iter().any(|(name, is_needed)| *is_needed && !is_there(name)) {
        return Ok(Vec::new());
    }
    Ok(here.into_iter().map(|(name, _)| name).filter(is_there).collect())
}

/// Fails if an index is of a later version of Larder: its rows may mean something else.
fn refuse_later(version: usize) -> Result<(), IndexError> {
    match version > MIGRATIONS.len() {
        true => Err(IndexError::Later { found: version, known: MIGRATIONS.len() }),
        false => Ok(()),
    }
}

/// Brings a database to version `wanted`, or to the newest if there is no such version.
fn migrate(connection: &mut Connection, wanted: usize) -> Result<(), IndexError> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    refuse_later(version)?;
    for (at, migration) in MIGRATIONS.iter().enumerate().take(wanted).skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", at + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{TagEntry, TagKey, Timestamp, Write};
    use super::*;
    use crate::index::ImageName;
    use crate::oci::{Digest, MediaType, Reference};

    fn key(tag: &str) -> TagKey {
        TagKey { repository: "r".to_owned(), name: "a".to_owned(), tag: tag.to_owned(), shelf: String::new() }
    }

    fn put(index: &Sqlite, tag: &str) {
        let digest = Digest::Sha256([1; 32]);
        let entry = TagEntry { digest, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
        index.write(Write::Tag { key: key(tag), entry });
    }

    fn full() -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None)
    }

    #[tokio::test]
    async fn an_index_kept_in_memory_is_written_when_the_process_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("larder.db");
        let index = Sqlite::open(dir.path()).expect("an index");
        put(&index, "before");
        index.set_compared_with(Some("a bucket".to_owned())).expect("written");
        index.flush().await.expect("written");
        // As after a kill: the last writes are in the log only.
        let killed = tempfile::tempdir().expect("a directory");
        for name in ["larder.db", "larder.db-wal"] {
            std::fs::copy(dir.path().join(name), killed.path().join(name)).expect("copied");
        }
        drop(index);
        for dir in [dir.path(), killed.path()] {
            let path = dir.join("larder.db");
            let index = Sqlite::open_without_disk(&path, &full(), &lock_of(&path)).expect("an index");
            assert!(index.tag(&key("before")).expect("read").is_some());
            assert_eq!(index.compared_with().expect("read"), Some("a bucket".to_owned()), "all rows were read");
            assert_eq!(index.bytes(), 0);
            put(&index, "in memory");
            drop(index);
            let index = Sqlite::open(dir).expect("an index");
            assert!(index.tag(&key("before")).expect("read").is_some());
            assert!(index.tag(&key("in memory")).expect("read").is_some());
            assert!(!dir.join("larder.db-new").exists());
        }
        // An index that could not be read as a whole is left for a program that can read it.
        std::fs::write(&path, [0xff; 5000]).expect("written");
        let pin = r#"[{"repository": "r", "name": "a", "reference": "1"}]"#;
        std::fs::write(dir.path().join("pins.json"), pin).expect("written");
        let index = Sqlite::open_without_disk(&path, &full(), &lock_of(&path)).expect("an index");
        let reference = Reference::Tag("1".parse().expect("a tag"));
        let pin = ImageName { repository: "r".to_owned(), name: "a".to_owned(), reference };
        assert_eq!(index.pins().expect("read"), [pin]);
        assert_eq!(index.compared_with().expect("read"), None, "what it lost is still in the bucket");
        drop(index);
        assert_eq!(std::fs::read(&path).expect("there"), [0xff; 5000]);
    }

    #[tokio::test]
    async fn an_index_of_a_later_version_is_set_aside_and_not_written_to() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("larder.db");
        let index = Sqlite::open(dir.path()).expect("an index");
        put(&index, "later");
        drop(index);
        let later = Connection::open(&path).expect("opened");
        later.pragma_update(None, "user_version", MIGRATIONS.len() + 1).expect("written");
        drop(later);
        // Where nothing can be written, nothing of it is believed either.
        let index = Sqlite::open_without_disk(&path, &full(), &lock_of(&path)).expect("an index");
        assert!(index.tag(&key("later")).expect("read").is_none());
        drop(index);

        let index = Sqlite::open(dir.path()).expect("a new index");
        assert!(index.was_damaged, "it is built anew from the files");
        assert!(index.tag(&key("later")).expect("read").is_none());
        put(&index, "mine");
        drop(index);
        let names = std::fs::read_dir(dir.path()).expect("readable").flatten().map(|entry| entry.path());
        let aside = names.into_iter().find(|path| path.to_string_lossy().contains(".db.damaged-")).expect("aside");
        let later = Connection::open(aside).expect("opened");
        let tags: String = later.query_row("SELECT group_concat(tag) FROM tags", [], |row| row.get(0)).expect("read");
        assert_eq!(tags, "later");
    }

    #[test]
    fn of_damaged_indexes_the_newest_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let aside = || {
            let names = std::fs::read_dir(dir.path()).expect("readable").flatten();
            names.filter(|entry| entry.file_name().to_string_lossy().contains("damaged")).count()
        };
        std::fs::write(dir.path().join("larder.db.damaged-1"), "old").expect("written");
        std::fs::write(dir.path().join("larder.db.damaged-2"), "old").expect("written");
        std::fs::write(dir.path().join("larder.db"), vec![0x5a; 8192]).expect("written");
        let index = Sqlite::open(dir.path()).expect("a new index");
        assert_eq!(aside(), 1);
        assert_eq!(index.remove_aside().expect("removed"), 8192);
        assert_eq!(aside(), 0);
    }
}
