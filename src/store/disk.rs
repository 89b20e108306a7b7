//! The store on a filesystem.
//!
//! ```text
//! DIR/larder.lock                      one process a directory
//! DIR/blobs/sha256/ab/abcd…            complete, verified, immutable: being there is the proof
//! DIR/partial/…                        fills under way
//! ```
//!
//! The file of a complete object carries a seal: the nanoseconds of its modification time are a function of its digest
//! and size. A write to the file, its truncation or its replacement breaks the seal, and an object without a seal is
//! hashed before it is served again. Looking at the seal costs nothing and needs no index. Decay below the filesystem,
//! where no time changes, is for `larder verify` to find.
//!
//! All functions block; callers run them off the async threads.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, OFlags};
use rustix::io::Errno;

use super::mapped::Mapping;
use super::open::{Inode, OpenObjects};
use super::{Body, Capacity, Listed, Object};
use crate::clock;
use crate::files::{FolderLock, entries, make_folder};
use crate::oci::{Algorithm, Digest};
use crate::spool::{Partial, TEMPORARY_NAME};
use crate::work::{Pool, ReadFile};

/// Stored content may be private. A stricter umask makes the mode stricter still.
const FILE_MODE: u32 = 0o640;

/// The directory of complete objects.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    blobs: PathBuf,
    partial: PathBuf,
    next_temporary: AtomicU64,
    /// For reading objects.
    reads: Pool,
    /// Whether the filesystem keeps times as finely as seals need.
    can_seal: bool,
    /// Open objects, so that many readers of one object need one descriptor.
    open: OpenObjects,
    lock: Arc<FolderLock>,
    /// Which of the directories of objects is checked next.
    next_check: AtomicU64,
}

/// Objects of fewer bytes are read into memory: mapping them would cost more than copying them.
pub const MIN_MAPPED: u64 = 64 * 1024;

/// Why a cache directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cache.dir: {}: {source}; Larder needs a directory that it may write to", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("cache.dir: {} is in use by another Larder; give each its own directory", path.display())]
    InUse { path: PathBuf },
}

impl StoreError {
    /// Returns whether another process uses the directory.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

impl Disk {
    /// Opens the store, and makes its directories where they are missing. Takes the same time whatever the store holds.
    /// A disk that is full or cannot be written to is no reason to fail: what is stored can be read, and more can be
    /// stored when that has changed.
    pub fn open(dir: &Path, reads: Pool) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable { path: dir.to_owned(), source };
        let blobs = dir.join("blobs");
        let partial = dir.join("partial");
        // The directories above are not only Larder's.
        let made = dir.parent().map_or(Ok(()), fs::create_dir_all);
        let made = made.and_then(|()| {
            Algorithm::ALL.iter().try_for_each(|algorithm| make_folder(&blobs.join(algorithm.as_str())))
        });
        let made = made.and_then(|()| make_folder(&partial));
        let lock = Arc::new(FolderLock::new(dir.join("larder.lock")));
        match made.and_then(|()| lock.take()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(StoreError::InUse { path: dir.to_owned() });
            }
            Err(error) if is_passing(&error, dir) => {}
            Err(error) => return Err(unusable(error)),
        }
        let can_seal = keeps_nanoseconds(&partial.join("seal"));
        if !can_seal {
            tracing::info!(
                "the filesystem of cache.dir keeps no fine times; changed objects are found by `larder verify` only"
            );
        }
        Ok(Self {
            dir: dir.to_owned(),
            blobs,
            partial,
            next_temporary: AtomicU64::new(0),
            reads,
            can_seal,
            open: OpenObjects::default(),
            lock,
            next_check: AtomicU64::new(0),
        })
    }

    /// Returns the lock on the cache directory.
    pub fn lock(&self) -> Arc<FolderLock> {
        self.lock.clone()
    }

    /// Opens a complete object; `None` if it is not there.
    pub fn get(&self, digest: &Digest) -> io::Result<Option<Object>> {
        // An object that is open already need not be opened again, unless its name stands for another file by now.
        if let Some((file, mapping)) = self.open.find(digest) {
            let metadata = file.metadata()?;
            if metadata.nlink() > 0 {
                return self.object(digest, file, mapping, &metadata).map(Some);
            }
        }
        // Opening something that is no regular file must not wait.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        match OpenOptions::new().read(true).custom_flags(flags).open(self.path(digest)) {
            Ok(file) => {
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    tracing::error!(%digest, "something that is no file is in the place of an object; it is removed");
                    self.remove(digest)?;
                    return Ok(None);
                }
                self.object(digest, Arc::new(file), None, &metadata).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn object(
        &self,
        digest: &Digest,
        file: Arc<File>,
        mapping: Option<Arc<Mapping>>,
        metadata: &fs::Metadata,
    ) -> io::Result<Object> {
        let size = metadata.len();
        let body = if size < MIN_MAPPED {
            let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, 0)?;
            Body::Read(bytes.into(), Some(ReadFile::new(file, self.reads.clone())))
        } else {
            let mapping = mapping.filter(|mapping| mapping.length() == size);
            let mapping = mapping.map_or_else(|| Mapping::new(file.clone(), size), Ok).ok();
            let (file, mapping) = self.open.share(digest, Inode::from(metadata), file, mapping);
            let to_read = ReadFile::new(file, self.reads.clone());
            match mapping {
                Some(mapping) => Body::Mapped(mapping, to_read),
                None => Body::ToRead(to_read),
            }
        };
        let is_sealed = !self.can_seal || metadata.mtime_nsec() == i64::from(seal_of(digest, size));
        Ok(Object { size, since: metadata.modified()?, is_sealed, body })
    }

    /// Seals an object that was found intact. It keeps the second in which it was stored.
    pub fn seal(&self, object: &Object, digest: &Digest) -> io::Result<()> {
        match file_of(object) {
            Some(file) if self.can_seal => seal(file, digest, object.size, object.since),
            _ => Ok(()),
        }
    }

    /// Breaks the seal of a damaged object, so that it is not served.
    pub fn unseal(&self, object: &Object) -> io::Result<()> {
        // The present time has the nanoseconds of the seal only by chance, as the time of a write has.
        let times = FileTimes::new().set_modified(clock::wall());
        file_of(object).map_or(Ok(()), |file| file.set_times(times))
    }

    /// Makes a verified download of `size` bytes the object `digest`: on disk first, then under its name, so that after
    /// a power cut the name never stands for less than the content. Returns whether the object is new.
    pub fn publish(&self, partial: &Partial, digest: &Digest, size: u64) -> io::Result<bool> {
        let file = partial.file();
        // Publishes only the verified bytes, even if more were written behind them.
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        if self.can_seal {
            seal(file, digest, size, clock::wall())?;
        }
        file.sync_all()?;
        let path = self.prepare_place(digest)?;
        let is_new = !path.exists();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        }
        partial.rename(&path)?;
        sync_directory(path.parent().unwrap_or(&self.blobs))?;
        Ok(is_new)
    }

    /// Stores small verified content. Returns whether the object is new.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> io::Result<bool> {
        self.lock.take()?;
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.partial.join(format!("{TEMPORARY_NAME}{number}"));
        let written = (|| {
            make_folder(&self.partial)?;
            let mut file = new_file(&temporary)?;
            file.write_all(bytes)?;
            if self.can_seal {
                seal(&file, digest, bytes.len() as u64, clock::wall())?;
            }
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

    /// Returns the path of an object, and makes its directory.
    fn prepare_place(&self, digest: &Digest) -> io::Result<PathBuf> {
        let path = self.path(digest);
        let parent = path.parent().unwrap_or(&self.blobs);
        if !parent.is_dir() {
            make_folder(parent)?;
            sync_directory(parent.parent().unwrap_or(&self.blobs))?;
        }
        Ok(path)
    }

    /// Removes an object. Readers that have it open go on. Returns whether it was there.
    pub fn remove(&self, digest: &Digest) -> io::Result<bool> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(&path).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives all objects to `each`, as long as `each` says to go on. Files that are no objects are left alone.
    pub fn for_each(&self, mut each: impl FnMut(Listed) -> bool) -> io::Result<()> {
        let walked = self.walk(|digest, entry| match entry.metadata() {
            Ok(metadata) if metadata.is_file() => {
                match each(Listed { digest, size: metadata.len(), since: metadata.modified()? }) {
                    true => Ok(()),
                    false => Err(io::ErrorKind::Interrupted.into()),
                }
            }
            // Something else in an object's place is removed when the object is requested.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        });
        match walked {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            walked => walked,
        }
    }

    /// Walks everything that is named like an object.
    fn walk(&self, mut each: impl FnMut(Digest, &fs::DirEntry) -> io::Result<()>) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            for shard in folder(&self.blobs.join(algorithm.as_str()))? {
                for entry in folder(&shard?.path())? {
                    let entry = entry?;
                    let name = format!("{}:{}", algorithm.as_str(), entry.file_name().to_string_lossy());
                    match name.parse() {
                        Ok(digest) => each(digest, &entry)?,
                        Err(_) => tracing::warn!(path = %entry.path().display(), "this is no object of the cache"),
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks whether an object could be stored now. Each call looks at a few of the directories of objects.
    pub fn check(&self) -> io::Result<()> {
        self.check_folders(FOLDERS_AT_ONCE)
    }

    /// [`Self::check`], of all directories of objects.
    pub fn check_all(&self) -> io::Result<()> {
        self.check_folders(FOLDERS)
    }

    fn check_folders(&self, count: u64) -> io::Result<()> {
        self.lock.take()?;
        make_folder(&self.partial)?;
        make_folder(&self.blobs)?;
        let (new, stored) = (self.partial.join("check"), self.blobs.join("check"));
        let written = new_file(&new).and_then(|mut file| file.write_all(b"larder"));
        written.map_err(|error| of(&self.partial, error))?;
        let renamed = fs::rename(&new, &stored);
        fs::remove_file(if renamed.is_ok() { &stored } else { &new })?;
        renamed.map_err(|error| match error.kind() {
            io::ErrorKind::CrossesDevices => of(&self.blobs, io::Error::new(error.kind(), ELSEWHERE)),
            _ => of(&self.blobs, error),
        })?;
        let from = self.next_check.fetch_add(count, Ordering::Relaxed);
        for algorithm in Algorithm::ALL {
            let folder = self.blobs.join(algorithm.as_str());
            let shards = (from..from + count).map(|number| folder.join(format!("{:02x}", number % FOLDERS)));
            for folder in shards.chain([folder.clone()]) {
                may_write(&folder).map_err(|error| of(&folder, error))?;
            }
        }
        match self.capacity()?.is_full() {
            true => Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on it")),
            false => Ok(()),
        }
    }

    /// Returns the room on the filesystem.
    pub fn capacity(&self) -> io::Result<Capacity> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok(Capacity { total: found.f_blocks * found.f_frsize, free: found.f_bavail * found.f_frsize })
    }

    /// Removes all objects, known to the index or not.
    pub fn clear(&self) -> io::Result<()> {
        self.walk(|digest, _| self.remove(&digest).map(drop))
    }

    /// Returns whether an object is there, whole or not.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs.join(digest.algorithm().as_str()).join(&hex[..2]).join(&hex)
    }
}

/// The directories of the objects of one algorithm: one for each value of the first byte of the digest.
const FOLDERS: u64 = 256;
/// How many of them are looked at in one check.
const FOLDERS_AT_ONCE: u64 = 16;
const ELSEWHERE: &str = "it is on another filesystem than the directory above it, to which objects cannot be moved at \
    once; mount cache.dir as a whole";

/// Checks whether files can be made in a directory. One that is missing is made when it is needed.
fn may_write(folder: &Path) -> io::Result<()> {
    match rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        Err(Errno::NOENT) => Ok(()),
        checked => Ok(checked?),
    }
}

/// Returns an error with the path that it is about.
fn of(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Returns whether a directory that cannot be written to now may be some day; else it is a wrong one.
fn is_passing(error: &io::Error, dir: &Path) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | ReadOnlyFilesystem => true,
        PermissionDenied => dir.is_dir(),
        _ => false,
    }
}

/// Returns the entries of a folder; none if somebody removed the folder, or put a file in its place.
fn folder(path: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let found = match entries(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            tracing::warn!(path = %path.display(), "a folder is needed here, and something else has its name");
            None
        }
        found => Some(found?),
    };
    Ok(found.into_iter().flatten())
}

/// Returns the file of an object of this store.
fn file_of(object: &Object) -> Option<&File> {
    match &object.body {
        Body::Read(_, file) => file.as_ref().map(|file| &**file.file()),
        Body::Mapped(_, file) | Body::ToRead(file) => Some(file.file()),
    }
}

/// Returns the nanoseconds that seal an object of `size` bytes. They depend on the size, since a file that a power cut
/// has truncated, on a disk that claimed to have written it, keeps its time.
fn seal_of(digest: &Digest, size: u64) -> u32 {
    let raw = digest.as_raw();
    let number = u64::from_le_bytes(std::array::from_fn(|at| raw[at]));
    u32::try_from(number.wrapping_add(size.wrapping_mul(LARGE_PRIME)) % 1_000_000_000).unwrap_or(0)
}

/// Makes sizes that are near each other have seals that are not.
const LARGE_PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

/// Gives a file the modification time that seals it, in the second of `since`.
fn seal(file: &File, digest: &Digest, size: u64, since: SystemTime) -> io::Result<()> {
    let seconds = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let sealed = SystemTime::UNIX_EPOCH + Duration::new(seconds, seal_of(digest, size));
    file.set_times(FileTimes::new().set_modified(sealed))
}

/// Returns whether the filesystem keeps the nanoseconds of a file's time.
fn keeps_nanoseconds(probe: &Path) -> bool {
    let digest = Digest::of(Algorithm::Sha256, b"larder");
    let probed = (|| {
        seal(&new_file(probe)?, &digest, 0, clock::wall())?;
        let metadata = fs::metadata(probe)?;
        fs::remove_file(probe)?;
        io::Result::Ok(metadata.mtime_nsec() == i64::from(seal_of(&digest, 0)))
    })();
    probed.unwrap_or(false)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
