//! The store on a filesystem.
//!
//! ```text
//! DIR/larder.lock                      one process a directory
//! DIR/blobs/sha256/ab/abcd…            complete, verified, immutable: being there is the proof
//! DIR/partial/…                        fills under way
//! ```
//!
//! A complete object's file carries a seal: the nanoseconds of its modification time are a function of
//! its digest. Who writes to the file, cuts it or replaces it breaks the seal, and what has none is
//! hashed before it is served again. The seal costs nothing to look at and needs no index; what decays
//! below the filesystem, where no time changes, is for `larder verify` to find.
//!
//! All functions block; callers run them off the async threads.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::OFlags;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::mapped::Mapping;
use super::open::OpenObjects;
use super::partial::{Partial, Resumed};
use crate::oci::{Algorithm, Digest};

/// A small object is written in much less than this; a file that is older was left behind.
const TEMPORARY: Duration = Duration::from_secs(300);

/// What is stored may be private. A stricter umask makes it stricter still.
const FOLDER_MODE: u32 = 0o700;
pub(super) const FILE_MODE: u32 = 0o640;

/// The directories of complete and partial content.
#[derive(Debug)]
pub struct Disk {
    blobs: PathBuf,
    partial: PathBuf,
    next_temporary: AtomicU64,
    syncs: Arc<Semaphore>,
    /// Whether the filesystem keeps times as finely as seals need.
    can_seal: bool,
    /// Objects that are open, so that many readers of one need one descriptor.
    open: OpenObjects,
    /// Held until the process ends, however it ends; `None` where it could not even be made.
    _lock: Option<File>,
}

/// Objects that are stored at once. A disk that hangs keeps the threads that sync, which must not be all that there are.
const SYNCS: usize = 16;

/// Less free space than this is as good as none.
const LITTLE: u64 = 1 << 20;

/// What is smaller is read when it is opened: to map it would cost more than to copy it.
const MIN_MAPPED: u64 = 64 * 1024;

/// A complete object.
#[derive(Clone, Debug)]
pub struct Stored {
    pub file: Arc<File>,
    pub body: Body,
    pub size: u64,
    /// When it was stored.
    pub since: SystemTime,
    /// Whether its file is as it was when it was verified, as far as its seal tells.
    pub is_sealed: bool,
}

/// How the content of a complete object is had.
#[derive(Clone, Debug)]
pub enum Body {
    /// A small object, read.
    Read(Bytes),
    Mapped(Arc<Mapping>),
    /// It is not mapped, because the filesystem cannot or the reader must not.
    ToRead,
}

/// A partial download on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialFile {
    pub digest: Digest,
    /// Disk that it takes.
    pub bytes: u64,
    /// When it was last written to.
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

impl StoreError {
    /// Whether another process has the directory.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

impl Disk {
    /// Opens the store, making its directories where they are missing. Takes the same time whatever
    /// it holds. A disk that is full, or not to be written to, is no reason to fail: what is stored can
    /// be read, and more can be stored when that has changed.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable { path: dir.to_owned(), source };
        let blobs = dir.join("blobs");
        let partial = dir.join("partial");
        // What is above is not only ours.
        let made = dir.parent().map_or(Ok(()), fs::create_dir_all);
        let made = made.and_then(|()| {
            Algorithm::ALL.iter().try_for_each(|algorithm| make_folder(&blobs.join(algorithm.as_str())))
        });
        let made = made.and_then(|()| make_folder(&partial));
        let lock = made.and_then(|()| {
            OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(dir.join("larder.lock"))
        });
        let lock = match lock {
            Ok(lock) => Some(lock),
            Err(error) if is_passing(&error, dir) => {
                tracing::error!(%error, dir = %dir.display(), "nothing can be stored until the cache directory can be written to");
                None
            }
            Err(error) => return Err(unusable(error)),
        };
        match lock.as_ref().map_or(Ok(()), File::try_lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        let can_seal = keeps_nanoseconds(&partial.join("seal"));
        if !can_seal {
            tracing::info!(
                "the filesystem of cache.dir keeps no fine times; changed objects are found by `larder verify` only"
            );
        }
        Ok(Self {
            blobs,
            partial,
            next_temporary: AtomicU64::new(0),
            syncs: Arc::new(Semaphore::new(SYNCS)),
            can_seal,
            open: OpenObjects::default(),
            _lock: lock,
        })
    }

    /// Opens a complete object; `None` when it is not there.
    pub fn get(&self, digest: &Digest) -> io::Result<Option<Stored>> {
        // What is open already need not be opened again, unless the name stands for another file by now.
        if let Some((file, mapping)) = self.open.find(digest) {
            let metadata = file.metadata()?;
            if metadata.nlink() > 0 {
                return self.stored(digest, file, mapping, &metadata).map(Some);
            }
        }
        // What is no file at all must not make anybody wait.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        match OpenOptions::new().read(true).custom_flags(flags).open(self.path(digest)) {
            Ok(file) => {
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    tracing::error!(%digest, "something that is no file is in the place of an object; it is removed");
                    self.remove(digest)?;
                    return Ok(None);
                }
                self.stored(digest, Arc::new(file), None, &metadata).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn stored(
        &self,
        digest: &Digest,
        file: Arc<File>,
        mapping: Option<Arc<Mapping>>,
        metadata: &fs::Metadata,
    ) -> io::Result<Stored> {
        let size = metadata.len();
        let body = if size < MIN_MAPPED {
            let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, 0)?;
            Body::Read(bytes.into())
        } else {
            let mapping = mapping.filter(|mapping| mapping.length() == size);
            let mapping = mapping.map_or_else(|| Mapping::new(file.clone(), size), Ok);
            mapping.map_or(Body::ToRead, Body::Mapped)
        };
        if size >= MIN_MAPPED {
            let mapping = if let Body::Mapped(mapping) = &body { Some(mapping) } else { None };
            self.open.keep(digest, &file, mapping);
        }
        let is_sealed = !self.can_seal || metadata.mtime_nsec() == i64::from(seal_of(digest));
        Ok(Stored { file, body, size, since: metadata.modified()?, is_sealed })
    }

    /// Reads an object to its end and tells whether it has the digest that it is named by. `progress` is
    /// told of each piece read, and says whether to go on; it fails if not.
    pub fn is_intact(stored: &Stored, digest: &Digest, mut progress: impl FnMut(u64) -> bool) -> io::Result<bool> {
        let mut hasher = digest.algorithm().hasher();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            match stored.file.read_at(&mut buffer, at)? {
                0 => return Ok(hasher.finish() == *digest),
                read => {
                    hasher.update(&buffer[..read]);
                    at += read as u64;
                    if !progress(read as u64) {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                }
            }
        }
    }

    /// Seals an object that was found intact; it keeps the second in which it was stored.
    pub fn seal(&self, stored: &Stored, digest: &Digest) -> io::Result<()> {
        if self.can_seal { seal(&stored.file, digest, stored.since) } else { Ok(()) }
    }

    /// Breaks the seal of a damaged object, so that it is not served.
    pub fn unseal(&self, stored: &Stored) -> io::Result<()> {
        // That now happens to be the right nanosecond is as unlikely as that a write hits it.
        stored.file.set_times(FileTimes::new().set_modified(SystemTime::now()))
    }

    /// The partial download of `digest`: a new one, or what an earlier one left.
    pub fn open_partial(&self, digest: &Digest) -> io::Result<(Partial, Resumed)> {
        // Somebody may have removed the folder.
        make_folder(&self.partial)?;
        Partial::open(self.partial_path(digest))
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.partial.join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }

    /// All partial downloads, those of running fills among them.
    pub fn partials(&self) -> io::Result<Vec<PartialFile>> {
        let mut partials = Vec::new();
        for entry in entries(&self.partial)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().replacen('-', ":", 1);
            match (name.parse(), entry.metadata()) {
                (Ok(digest), Ok(metadata)) => {
                    // A block is 512 bytes here, whatever the filesystem's own are.
                    let journal = fs::metadata(entry.path().with_extension("have"));
                    let bytes = (metadata.blocks() + journal.map_or(0, |journal| journal.blocks())) * 512;
                    partials.push(PartialFile { digest, bytes, since: metadata.modified()? });
                }
                (Ok(_), Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(partials)
    }

    /// Removes a partial download that no fill goes on with.
    pub fn remove_partial(&self, digest: &Digest) -> io::Result<()> {
        Partial::remove(&self.partial_path(digest))
    }

    /// A turn to [store](Self::put) or [publish](Self::publish), to be kept by the thread that does it until it is done.
    /// Does not block; on a disk that hangs it never comes.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.syncs.clone().acquire_owned().await.ok()
    }

    /// Makes a verified download of `size` bytes the object `digest`: on disk first, then under its name, so that
    /// after a power cut the name never stands for less than the content. Returns whether the object
    /// is new.
    pub fn publish(&self, partial: &Partial, digest: &Digest, size: u64) -> io::Result<bool> {
        let file = &partial.data().file;
        // What was verified and no more, whoever wrote behind it.
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        if self.can_seal {
            seal(file, digest, SystemTime::now())?;
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
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.partial.join(format!("put-{number}"));
        let written = (|| {
            make_folder(&self.partial)?;
            let mut file = new_file(&temporary)?;
            file.write_all(bytes)?;
            if self.can_seal {
                seal(&file, digest, SystemTime::now())?;
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

    /// The path of an object, its directory made.
    fn prepare_place(&self, digest: &Digest) -> io::Result<PathBuf> {
        let path = self.path(digest);
        let parent = path.parent().unwrap_or(&self.blobs);
        if !parent.is_dir() {
            make_folder(parent)?;
            sync_directory(parent.parent().unwrap_or(&self.blobs))?;
        }
        Ok(path)
    }

    /// Removes an object; readers that have it open go on. Returns whether it was there.
    pub fn remove(&self, digest: &Digest) -> io::Result<bool> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(&path).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Walks all objects: digest, size, when it was stored. What is no object is left alone.
    pub fn for_each(&self, mut each: impl FnMut(Digest, u64, SystemTime)) -> io::Result<()> {
        self.walk(|digest, entry| match entry.metadata() {
            Ok(metadata) if metadata.is_file() => {
                each(digest, metadata.len(), metadata.modified()?);
                Ok(())
            }
            // What stands in an object's place goes when the object is asked for.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
    }

    /// Walks all that is named like an object.
    fn walk(&self, mut each: impl FnMut(Digest, &fs::DirEntry) -> io::Result<()>) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            for shard in entries(&self.blobs.join(algorithm.as_str()))? {
                for entry in entries(&shard?.path())? {
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

    /// Whether the directory can be written to now.
    pub fn check(&self) -> io::Result<()> {
        make_folder(&self.partial)?;
        let path = self.partial.join("check");
        new_file(&path)?.write_all(b"larder")?;
        fs::remove_file(&path)?;
        match self.is_full() {
            true => Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on it")),
            false => Ok(()),
        }
    }

    /// Whether there is as good as no space left.
    pub fn is_full(&self) -> bool {
        rustix::fs::statvfs(&self.partial).is_ok_and(|found| found.f_bavail * found.f_frsize < LITTLE)
    }

    /// Removes all objects, known to the index or not.
    pub fn clear(&self) -> io::Result<()> {
        self.walk(|digest, _| self.remove(&digest).map(drop))
    }

    /// Whether an object is there, whole or not.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs.join(digest.algorithm().as_str()).join(&hex[..2]).join(&hex)
    }

    /// Removes the partial downloads that nobody has gone on with for `max_age`, and what an earlier
    /// process was just writing when it was killed.
    pub fn clear_partials(&self, max_age: Duration) -> io::Result<()> {
        for entry in entries(&self.partial)? {
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

/// Whether a directory may be written to some day, though not now; else it is a wrong one.
fn is_passing(error: &io::Error, dir: &Path) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | ReadOnlyFilesystem => true,
        PermissionDenied => dir.is_dir(),
        _ => false,
    }
}

/// What is in a folder; nothing if somebody removed it, or put a file there.
fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            tracing::warn!(path = %folder.display(), "this is no folder of the cache");
            None
        }
        found => Some(found?),
    };
    Ok(found.into_iter().flatten())
}

/// The nanoseconds that seal an object.
fn seal_of(digest: &Digest) -> u32 {
    let raw = digest.as_raw();
    u32::from_le_bytes(std::array::from_fn(|at| raw[at])) % 1_000_000_000
}

fn seal(file: &File, digest: &Digest, since: SystemTime) -> io::Result<()> {
    let seconds = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let sealed = SystemTime::UNIX_EPOCH + Duration::new(seconds, seal_of(digest));
    file.set_times(FileTimes::new().set_modified(sealed))
}

fn keeps_nanoseconds(probe: &Path) -> bool {
    let digest = Digest::of(Algorithm::Sha256, b"larder");
    let probed = (|| {
        seal(&new_file(probe)?, &digest, SystemTime::now())?;
        let metadata = fs::metadata(probe)?;
        fs::remove_file(probe)?;
        io::Result::Ok(metadata.mtime_nsec() == i64::from(seal_of(&digest)))
    })();
    probed.unwrap_or(false)
}

/// Makes a folder with all above it that are missing, for our own user alone.
fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
