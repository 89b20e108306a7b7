//! A damaged index: how it is recognized, marked and set aside.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Timestamp;
use super::medium::remove;
use crate::files;

/// Returns whether an error means that the index is damaged.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Returns the device and the inode number of a file.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Returns the path of the file that marks an index to be set aside at the next start.
pub fn damage_mark(path: &Path) -> PathBuf {
    path.with_extension("db-damaged")
}

/// Marks an index as damaged, if an error means that.
pub fn mark_if_damaged(path: &Path, error: &rusqlite::Error) {
    if is_damage(error) {
        mark_damaged(path);
    }
}

/// Marks an index to be set aside at the next start.
pub fn mark_damaged(path: &Path) {
    tracing::error!("the index is damaged; restart Larder and it is built anew from the files");
    if let Err(error) = files::make(&damage_mark(path), files::Readers::Group)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        tracing::error!(%error, "the index is damaged, and that cannot be noted for the next start");
    }
}

/// Returns whether the disk, and not the index itself, keeps the index from being opened.
pub fn is_of_the_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(CannotOpen | DiskFull | PermissionDenied | ReadOnly | SystemIoFailure))
}

/// Moves a damaged index out of the way; it may be gone already. Only the newest damaged index is kept.
pub fn set_aside(path: &Path) -> std::io::Result<()> {
    if let Err(error) = path.parent().map_or(Ok(0), remove_aside) {
        tracing::warn!(%error, "an earlier damaged index cannot be removed");
    }
    let aside = path.with_extension(format!("db.damaged-{}", Timestamp::now().0));
    match std::fs::rename(path, &aside) {
        Ok(()) => tracing::warn!(aside = %aside.display(), "the damaged index was set aside"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    remove(path)
}

/// Removes damaged indexes that were set aside in a cache directory. Returns the bytes that this gives back.
pub fn remove_aside(dir: &Path) -> std::io::Result<u64> {
    let mut freed = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("larder.db.damaged-") {
            freed += entry.metadata()?.len();
            std::fs::remove_file(entry.path())?;
            tracing::info!(path = %entry.path().display(), "an old damaged index was removed");
        }
    }
    Ok(freed)
}
