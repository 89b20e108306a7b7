//! The store: complete, verified objects by their digests.
//!
//! [`Store`] is what the cache needs of a store. [`LocalStore`] keeps objects on a filesystem. Each call has a deadline
//! of its own, and a caller whose deadline has passed goes on without the store.

mod busy;
mod disk;
mod local;
mod mapped;
mod open;
#[cfg(test)]
pub mod simulated;
#[cfg(test)]
mod suite;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

pub use disk::{Disk, MIN_MAPPED, StoreError};
pub use local::LocalStore;
pub use mapped::Mapping;

use crate::oci::Digest;
use crate::spool::Partial;
use crate::work::{Hashing, ReadFile};

/// Where complete objects are kept. An object that is there is complete and was verified; it never changes.
///
/// Errors are those of the disk or server behind the store; [`io::ErrorKind::TimedOut`] if that did not answer in time.
/// A call that timed out may still take effect.
pub trait Store: Send + Sync + 'static {
    /// Opens an object; `None` if it is not there.
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, io::Result<Option<Object>>>;

    /// Stores small verified content, durably. Returns whether the object is new. Waits for its turn as long as
    /// necessary.
    fn put<'a>(&'a self, digest: &'a Digest, content: Bytes) -> BoxFuture<'a, io::Result<bool>>;

    /// Makes a verified download of `size` bytes the object `digest`, durably: after a power cut, the name never stands
    /// for less than the content. Returns whether the object is new.
    fn publish<'a>(&'a self, from: Partial, digest: &'a Digest, size: u64) -> BoxFuture<'a, io::Result<bool>>;

    /// Removes objects. Readers that have one open go on. A missing object is no error. Removes as many as it can, and
    /// returns the first error.
    fn remove<'a>(&'a self, digests: &'a [Digest]) -> BoxFuture<'a, io::Result<()>>;

    /// Removes all objects, known to the index or not.
    fn clear(&self) -> BoxFuture<'_, io::Result<()>>;

    /// Returns whether an object is there, whole or not.
    fn contains<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, io::Result<bool>>;

    /// Lists all objects, in no order. Objects that come or go meanwhile may be listed or not.
    fn list(&self) -> Walk;

    /// Returns the room on the filesystem.
    fn capacity(&self) -> BoxFuture<'_, io::Result<Capacity>>;

    /// Fails if nothing can be stored now.
    fn check(&self) -> BoxFuture<'_, io::Result<()>>;

    /// Marks an object that was found intact: it need not be hashed before it is served.
    fn seal<'a>(&'a self, object: &'a Object, digest: &'a Digest) -> BoxFuture<'a, io::Result<()>>;

    /// Removes the mark from a damaged object, so that it is not served.
    fn unseal<'a>(&'a self, object: &'a Object) -> BoxFuture<'a, io::Result<()>>;
}

/// A complete object, open.
#[derive(Clone, Debug)]
pub struct Object {
    /// In bytes.
    pub size: u64,
    /// When it was stored.
    pub since: SystemTime,
    /// Whether the object is as it was when it was verified, as far as its seal shows. An object without a seal is
    /// hashed before it is served.
    pub is_sealed: bool,
    pub body: Body,
}

/// How to get the content of an object.
#[derive(Clone, Debug)]
pub enum Body {
    /// A small object, read when it was opened; and its file, if there is one.
    Read(Bytes, Option<ReadFile>),
    /// A file that is mapped into memory, and the same file to read from.
    Mapped(Arc<Mapping>, ReadFile),
    /// A file that is not mapped, because the filesystem cannot map it or the reader must not use a mapping.
    ToRead(ReadFile),
}

/// An object in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// When it was stored.
    pub since: SystemTime,
}

/// How long the next piece of a list may take.
const LIST_PATIENCE: Duration = Duration::from_secs(30);

/// A list that comes object by object, from a task that ends when this is dropped.
pub struct Walk(mpsc::Receiver<io::Result<Listed>>);

impl Walk {
    /// Returns the next object; `None` at the end. Nothing follows an error.
    pub async fn next(&mut self) -> Option<io::Result<Listed>> {
        match tokio::time::timeout(LIST_PATIENCE, self.0.recv()).await {
            Ok(next) => next,
            Err(_) => {
                self.0.close();
                Some(Err(io::Error::new(io::ErrorKind::TimedOut, "listing what is stored takes too long")))
            }
        }
    }
}

/// Bytes of the filesystem that a store is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub total: u64,
    pub free: u64,
}

/// Less free space than this, in bytes, is as good as none.
const LITTLE: u64 = 1 << 20;

impl Capacity {
    /// Returns whether there is as good as no space left.
    pub fn is_full(&self) -> bool {
        self.free < LITTLE
    }
}

impl Object {
    /// Returns the bytes `[at, at + length)`, which must lie within the object.
    pub async fn read(&self, at: u64, length: u64) -> io::Result<Bytes> {
        match &self.body {
            Body::Read(bytes, _) => {
                let range = usize::try_from(at).ok().zip(usize::try_from(at + length).ok());
                let range = range.filter(|&(from, until)| from <= until && until <= bytes.len());
                let (from, until) = range.ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(bytes.slice(from..until))
            }
            Body::Mapped(_, file) | Body::ToRead(file) => file.read(at, length).await,
        }
    }

    /// Reads all of the object and returns whether it has the digest in its name. `progress` gets the bytes of each
    /// piece read, and returns whether to go on; if not, this fails with [`io::ErrorKind::Interrupted`].
    pub async fn is_intact(&self, digest: &Digest, mut progress: impl FnMut(u64) -> bool + Send) -> io::Result<bool> {
        const PIECE: u64 = 8 << 20;
        let file = match &self.body {
            Body::Read(bytes, _) => {
                return match progress(self.size) {
                    true => Ok(Digest::of(digest.algorithm(), bytes) == *digest),
                    false => Err(io::ErrorKind::Interrupted.into()),
                };
            }
            Body::Mapped(_, file) | Body::ToRead(file) => file,
        };
        let mut hashing = Hashing::new(digest.algorithm());
        while hashing.at() < self.size {
            let before = hashing.at();
            hashing = file.hash(hashing, (before + PIECE).min(self.size)).await?;
            if !progress(hashing.at() - before) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(hashing.finish() == *digest)
    }

    /// Returns the same object, to be read into buffers: for readers that look at the bytes before they go to a socket,
    /// as HTTP/2 and TLS do. Such readers must not touch a page that a truncated file no longer has.
    pub fn unmapped(mut self) -> Self {
        if let Body::Mapped(_, file) = self.body {
            self.body = Body::ToRead(file);
        }
        self
    }

    /// Returns the mapping that the object's frames are cut from.
    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        match &self.body {
            Body::Mapped(mapping, _) => Some(mapping),
            Body::Read(..) | Body::ToRead(_) => None,
        }
    }
}
