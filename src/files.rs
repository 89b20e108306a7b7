//! Files that exist as a whole or not at all, whatever happens while they are written; and the lock on a directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Creates a folder, with all missing ones above it, only for the user that Larder runs as.
pub fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Returns the entries of a folder; none if somebody removed the folder.
pub fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        found => Some(found?),
    };
    Ok(found.into_iter().flatten())
}

/// The users that may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    All,
    /// The user that Larder runs as, and its group.
    Group,
    /// Only the user that Larder runs as: the file holds a secret.
    Own,
}

/// Creates a file that does not exist yet. A stricter umask makes the permissions stricter still.
pub fn make(file: &Path, readers: Readers) -> io::Result<File> {
    let mode = match readers {
        Readers::All => 0o644,
        Readers::Group => 0o640,
        Readers::Own => 0o600,
    };
    OpenOptions::new().write(true).create_new(true).mode(mode).open(file)
}

/// Replaces a file, or creates it, with these bytes. Blocks.
pub fn replace(file: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    // A file left by an earlier attempt may be readable for others.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = make(&new, readers)?;
    written.write_all(bytes)?;
    written.sync_all()?;
    fs::rename(&new, file)?;
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

/// The lock on a directory that only one process may write to. It is held until the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    file: PathBuf,
    held: OnceLock<File>,
}

impl FolderLock {
    /// Creates a lock that is not held yet. `file` is in the directory, and is made when the lock is taken.
    pub fn new(file: PathBuf) -> Self {
        Self { file, held: OnceLock::new() }
    }

    /// Takes the lock, unless it is held already. To be called before anything is written: the directory may not have
    /// been writable at the start. Fails with [`io::ErrorKind::WouldBlock`] if another process holds it. Blocks.
    pub fn take(&self) -> io::Result<()> {
        if self.held.get().is_some() {
            return Ok(());
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o640).open(&self.file)?;
        match file.try_lock() {
            Ok(()) => {}
            // Another thread of this process has just taken it.
            Err(TryLockError::WouldBlock) if self.held.get().is_some() => return Ok(()),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another Larder uses this directory"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let _ = self.held.set(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_for_its_owner_only_even_where_it_was_not() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let file = dir.path().join("key.pem");
        fs::write(&file, "old").expect("written");
        fs::write(dir.path().join("key.pem.new"), "left behind").expect("written");
        replace(&file, b"new", Readers::Own).expect("replaced");
        assert_eq!(fs::read(&file).expect("read"), b"new");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
    }
}
