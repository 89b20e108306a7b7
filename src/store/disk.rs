//! The store on a filesystem.
//!
//! ```text
//! DIR/larder.lock                      one process a directory
//! DIR/blobs/sha256/ab/abcd…            complete, verified, immutable: being there is the proof
//! DIR/partial/…                        fills under way
//! ```
//!
//! All functions block; callers run them off the async threads.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::mapped::Mapping;
use super::partial::{Partial, Resumed};
use crate::oci::{Algorithm, Digest};

/// A small object is written in much less than this; a file that is older was left behind.
const TEMPORARY: Duration = Duration::from_secs(300);

/// The directories of complete and partial content.
#[derive(Debug)]
pub struct Disk {
    blobs: PathBuf,
    partial: PathBuf,
    next_temporary: AtomicU64,
    /// Held until the process ends, however it ends.
    _lock: File,
}

/// What is smaller is read: to map it would cost more than to copy it.
const MIN_MAPPED: u64 = 64 * 1024;

/// A complete object.
#[derive(Clone, Debug)]
pub struct Stored {
    pub file: Arc<File>,
    /// Of a larger object, where the filesystem can.
    pub mapping: Option<Arc<Mapping>>,
    pub size: u64,
    /// When it was stored.
    pub since: SystemTime,
}

/// Why a cache directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cache.dir: {}: {source}; Larder needs a directory that it may write to", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("cache.dir: {} is in use by another Larder; give each its own directory", path.display())]
    InUse { path: PathBuf },
}

impl Disk {
    /// Opens the store, making its directories where they are missing. Takes the same time whatever
    /// it holds.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable { path: dir.to_owned(), source };
        let blobs = dir.join("blobs");
        let partial = dir.join("partial");
        for algorithm in Algorithm::ALL {
            fs::create_dir_all(blobs.join(algorithm.as_str())).map_err(unusable)?;
        }
        fs::create_dir_all(&partial).map_err(unusable)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("larder.lock"));
        let lock = lock.map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        Ok(Self { blobs, partial, next_temporary: AtomicU64::new(0), _lock: lock })
    }

    /// Opens a complete object; `None` when it is not there.
    pub fn get(&self, digest: &Digest) -> io::Result<Option<Stored>> {
        match File::open(self.path(digest)) {
            Ok(file) => {
                let metadata = file.metadata()?;
                let (file, size) = (Arc::new(file), metadata.len());
                let mapping = (size >= MIN_MAPPED).then(|| Mapping::new(file.clone(), size)).and_then(Result::ok);
                Ok(Some(Stored { file, mapping, size, since: metadata.modified()? }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The partial download of `digest`: a new one, or what an earlier one left.
    pub fn open_partial(&self, digest: &Digest) -> io::Result<(Partial, Resumed)> {
        let name = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        Partial::open(self.partial.join(name))
    }

    /// Makes a verified download the object `digest`: on disk first, then under its name, so that
    /// after a power cut the name never stands for less than the content. Returns whether the object
    /// is new.
    pub fn publish(&self, partial: &Partial, digest: &Digest) -> io::Result<bool> {
        partial.data().file.sync_all()?;
        let path = self.prepare_place(digest)?;
        let is_new = !path.exists();
        partial.rename(&path)?;
        sync_directory(path.parent().unwrap_or(&self.blobs))?;
        Ok(is_new)
    }

    /// Stores small verified content. Returns whether the object is new.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> io::Result<bool> {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.partial.join(format!("put-{number}"));
        let written = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            let path = self.prepare_place(digest)?;
            let is_new = !path.exists();
            fs::rename(&temporary, &path)?;
            sync_directory(path.parent().unwrap_or(&self.blobs))?;
            Ok(is_new)
        })();
        if written.is_err()
            && let Err(error) = fs::remove_file(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %temporary.display(), %error, "cannot remove a temporary file");
        }
        written
    }

    /// The path of an object, its directory made.
    fn prepare_place(&self, digest: &Digest) -> io::Result<PathBuf> {
        let path = self.path(digest);
        let parent = path.parent().unwrap_or(&self.blobs);
        if !parent.is_dir() {
            fs::create_dir_all(parent)?;
            sync_directory(parent.parent().unwrap_or(&self.blobs))?;
        }
        Ok(path)
    }

    /// Removes an object; readers that have it open go on. Returns whether it was there.
    pub fn remove(&self, digest: &Digest) -> io::Result<bool> {
        match fs::remove_file(self.path(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Walks all objects: digest, size, when it was stored. What is no object is left alone.
    pub fn for_each(&self, mut each: impl FnMut(Digest, u64, SystemTime)) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            for shard in fs::read_dir(self.blobs.join(algorithm.as_str()))? {
                for object in fs::read_dir(shard?.path())? {
                    let object = object?;
                    let name = format!("{}:{}", algorithm.as_str(), object.file_name().to_string_lossy());
                    match (name.parse(), object.metadata()) {
                        (Ok(digest), Ok(metadata)) => each(digest, metadata.len(), metadata.modified()?),
                        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                        (Ok(_), Err(error)) => return Err(error),
                        (Err(_), _) => {
                            tracing::warn!(path = %object.path().display(), "this file is no object of the cache");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the directory can be written to now.
    pub fn check(&self) -> io::Result<()> {
        let path = self.partial.join("check");
        fs::write(&path, b"larder")?;
        fs::remove_file(&path)
    }

    /// Removes all objects, known to the index or not.
    pub fn clear(&self) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            for shard in fs::read_dir(self.blobs.join(algorithm.as_str()))? {
                for object in fs::read_dir(shard?.path())? {
                    fs::remove_file(object?.path())?;
                }
            }
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs.join(digest.algorithm().as_str()).join(&hex[..2]).join(&hex)
    }

    /// Removes the partial downloads that nobody has gone on with for `max_age`, and what an earlier
    /// process was just writing when it was killed.
    pub fn clear_partials(&self, max_age: Duration) -> io::Result<()> {
        for entry in fs::read_dir(&self.partial)? {
            let entry = entry?;
            let is_temporary = entry.file_name().to_string_lossy().starts_with("put-");
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            let limit = if is_temporary { TEMPORARY.min(max_age) } else { max_age };
            if age <= limit {
                continue;
            }
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove an abandoned partial download");
            }
        }
        Ok(())
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn an_object_is_there_only_once_it_is_published() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path()).expect("a store");
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let (partial, _) = disk.open_partial(&digest).expect("a file");
        partial.data().file.write_all_at(b"content", 0).expect("written");
        assert!(disk.get(&digest).expect("readable").is_none());

        assert!(disk.publish(&partial, &digest).expect("published"));
        assert_eq!(disk.get(&digest).expect("readable").map(|stored| stored.size), Some(7));
        assert_eq!(fs::read_dir(dir.path().join("partial")).expect("readable").count(), 0);
        assert!(disk.remove(&digest).expect("removed"));
        assert!(!disk.remove(&digest).expect("nothing to remove"));
    }

    #[test]
    fn only_abandoned_partials_are_cleared() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(dir.path()).expect("a store");
        drop(disk.open_partial(&Digest::Sha256([1; 32])).expect("a file"));
        let left = || fs::read_dir(dir.path().join("partial")).expect("readable").count();
        fs::write(dir.path().join("partial/put-1"), "being written").expect("written");
        disk.clear_partials(Duration::from_secs(3600)).expect("cleared");
        assert_eq!(left(), 3, "the file, its journal, and the one that is being written");
        disk.clear_partials(Duration::ZERO).expect("cleared");
        assert_eq!(left(), 0);
    }

    #[test]
    fn one_directory_serves_one_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Disk::open(dir.path()).expect("a store");
        assert!(matches!(Disk::open(dir.path()), Err(StoreError::InUse { .. })));
        drop(first);
        assert!(Disk::open(dir.path()).is_ok());
    }
}
