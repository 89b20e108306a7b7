//! Where an index is kept: in files on disk, or in memory until the process ends.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, params};

use super::IndexError;

/// Where an index is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Disk,
    /// In memory until the process ends. Then it is written to the disk, if it may replace the index there and there is
    /// room.
    Memory {
        may_replace: bool,
    },
}

/// Writes an index that was kept in memory to disk, in place of the index there.
pub fn save(connection: &Connection, path: &Path) {
    let new = path.with_extension("db-new");
    let saved = remove(&new)
        .map_err(IndexError::from)
        .and_then(|()| Ok(connection.execute("VACUUM INTO ?1", params![uri(&new, "vfs=unix")])?))
        // The old log does not belong to the new file.
        .and_then(|_| Ok(remove(path).and_then(|()| std::fs::rename(&new, path))?));
    match saved {
        Ok(()) => tracing::info!("the index that was kept in memory was written to the disk"),
        Err(error) => {
            tracing::warn!(%error, "the index that was kept in memory is lost; what it knew is learnt again");
            let _ = remove(&new);
        }
    }
}

/// Returns the name of a file for a connection to a database in memory, which would take a plain path for another
/// database in memory.
pub fn uri(path: &Path, parameters: &str) -> String {
    let encoded = percent_encode(path.as_os_str().as_bytes(), NON_ALPHANUMERIC).to_string().replace("%2F", "/");
    format!("file:{encoded}?{parameters}")
}

/// Removes a database with its log. A missing file is no error.
pub fn remove(path: &Path) -> std::io::Result<()> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    // The log goes first: without its database, it could be taken for the log of the next one.
    for file in [with("-wal"), with("-shm"), path.to_owned()] {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
