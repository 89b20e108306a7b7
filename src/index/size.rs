//! How much disk the index takes, and how it gives back what it no longer needs.

use std::path::Path;

use rusqlite::Connection;

/// Pages of the log after which it is taken into the database: 4 MiB. What changes several times is taken in once.
const LOG_PAGES: u32 = 1_024;
/// Bytes to which the log is cut once it was taken in.
const LOG_BYTES: u64 = 1 << 20;
/// A log of more bytes than this is taken in even if that means waiting for readers.
const LONG_LOG: u64 = 16 << 20;
/// Most memory for pages that the writing connection has read or changed. With SQLite's own 2 MiB, one step of a large
/// index has to write pages out, and read them again, before it ends.
const CACHE_KIB: i64 = 16 << 10;
/// Pages that are moved in one step: a quarter of a MiB.
const STEP: u64 = 64;
/// Free pages that are kept for what comes next, in addition to an eighth of all pages.
const KEPT: u64 = 64;
/// An index that cannot give pages back is written anew only if that takes at most this many bytes of memory.
const MAX_ANEW: u64 = 64 << 20;
/// Less free disk than this, in bytes, is as good as none.
pub const LITTLE: u64 = 1 << 20;

/// SQLite's number for `auto_vacuum = INCREMENTAL`.
const INCREMENTAL: i64 = 2;

/// Prepares a database so that freed pages can be given back without writing everything anew. To be called before the
/// first table is made.
pub fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "auto_vacuum", INCREMENTAL)
}

/// Sets at which size the log is taken in, to which size it is cut, and the pages that the writing connection keeps in
/// memory.
pub fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))
}

/// Returns the bytes of the pages that hold something.
pub fn used(connection: &Connection) -> rusqlite::Result<u64> {
    Pages::of(connection).map(|pages| (pages.all - pages.free) * pages.size)
}

/// Returns the bytes of the log of the database at `path`.
pub fn log(path: &Path) -> u64 {
    length(&path.with_extension("db-wal"))
}

/// Returns the bytes of the database at `path` with its log.
pub fn on_disk(path: &Path) -> u64 {
    length(path) + log(path)
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Returns the bytes that are free on the filesystem of `path`.
pub fn free(path: &Path) -> std::io::Result<u64> {
    let filesystem = rustix::fs::statvfs(path)?;
    Ok(filesystem.f_bavail * filesystem.f_frsize)
}

struct Pages {
    all: u64,
    free: u64,
    size: u64,
    can_shrink: bool,
}

impl Pages {
    fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let read = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let number = |name: &str| read(name).map(|number| u64::try_from(number).unwrap_or(0));
        let (all, free) = (number("page_count")?, number("freelist_count")?);
        Ok(Self {
            all,
            free: free.min(all),
            size: number("page_size")?,
            can_shrink: read("auto_vacuum")? == INCREMENTAL,
        })
    }
}

/// What is left to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// Free pages: a further step gives some back.
    Pages,
    /// The file itself, which is cut when the log is taken in.
    Log,
}

/// Takes a step of giving free pages back; with `is_all`, the steps together give back all of them. `path`: the
/// database, on whose filesystem there has to be room to write. Returns what is left.
pub fn give_back(connection: &Connection, path: &Path, is_all: bool) -> rusqlite::Result<Left> {
    let pages = Pages::of(connection)?;
    let kept = if is_all { 0 } else { KEPT + pages.all / 8 };
    if pages.free <= kept.max(1) {
        return Ok(Left::Nothing);
    }
    if !pages.can_shrink {
        let used = (pages.all - pages.free) * pages.size;
        let has_room = free(path).is_ok_and(|free| free > 2 * used + LITTLE);
        if pages.free <= pages.all / 2 || used > MAX_ANEW || !has_room {
            return Ok(Left::Nothing);
        }
        write_anew(connection)?;
        return Ok(Left::Log);
    }
    let step = STEP.min(pages.free - kept);
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({step})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(if pages.free - step > kept { Left::Pages } else { Left::Log })
}

/// Writes the whole database anew, without free pages, and so that it can shrink from then on.
pub fn write_anew(connection: &Connection) -> rusqlite::Result<()> {
    prepare(connection)?;
    // There may be no directory for temporary files.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    let written = connection.execute_batch("VACUUM");
    connection.pragma_update(None, "temp_store", "DEFAULT")?;
    written
}

/// Returns whether a database that was made without the ability to shrink is small enough to be written anew at the
/// start.
pub fn should_be_written_anew(connection: &Connection, path: &Path) -> rusqlite::Result<bool> {
    const QUICK: u64 = 16 << 20;
    let pages = Pages::of(connection)?;
    let used = (pages.all - pages.free) * pages.size;
    Ok(!pages.can_shrink && used <= QUICK && free(path).is_ok_and(|free| free > 2 * used + LITTLE))
}

/// Takes the log into the database (a checkpoint) and cuts both to what they need. Waits for readers, at most for the
/// busy timeout of the connection. Returns whether it was done.
pub fn take_in_log(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0))
}

/// Returns whether the log of the database at `path` is so long that it must be taken in.
pub fn has_long_log(path: &Path) -> bool {
    log(path) > LONG_LOG
}
