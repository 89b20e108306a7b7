//! Reads a file without waiting for its disk for ever.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::ReadWriteFlags;

use super::Pool;
use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes that are hashed at a time.
const HASHED: u64 = 1 << 20;

/// An open file whose reads have the deadline of a [`Pool`]; clones share the file.
#[derive(Clone, Debug)]
pub struct ReadFile {
    file: Arc<File>,
    pool: Pool,
}

impl ReadFile {
    /// Creates a reader of `file` whose reads wait in `pool`.
    pub fn new(file: Arc<File>, pool: Pool) -> Self {
        Self { file, pool }
    }

    /// Returns the file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns the pool in which reads of the file wait.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Reads exactly `length` bytes at `at`. Bytes in the page cache are read without a change of threads.
    pub async fn read(&self, at: u64, length: u64) -> io::Result<Bytes> {
        if let Some(bytes) = read_cached(&self.file, at, length) {
            return Ok(bytes);
        }
        let file = self.file.clone();
        self.pool.run_io(move || read_at(&file, at, length)).await
    }

    /// Hashes the bytes from where `hashing` stands up to `until`.
    pub async fn hash(&self, mut hashing: Hashing, until: u64) -> io::Result<Hashing> {
        while hashing.at < until {
            let (file, length) = (self.file.clone(), (until - hashing.at).min(HASHED));
            hashing = self.pool.run_io(move || hashing.step(&file, length)).await?;
        }
        Ok(hashing)
    }
}

/// A digest that is being computed over a file from its beginning.
pub struct Hashing {
    hasher: Hasher,
    buffer: Vec<u8>,
    at: u64,
}

impl Hashing {
    /// Begins a digest at the first byte.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { hasher: algorithm.hasher(), buffer: Vec::new(), at: 0 }
    }

    /// Returns how many bytes were hashed.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Returns the digest of the bytes that were hashed.
    pub fn finish(self) -> Digest {
        self.hasher.finish()
    }

    /// Returns the state of the digest, to go on with bytes from elsewhere.
    pub fn into_hasher(self) -> Hasher {
        self.hasher
    }

    /// Hashes the next `length` bytes. Blocks.
    fn step(mut self, file: &File, length: u64) -> io::Result<Self> {
        // Fits: it is at most `HASHED`.
        let length = length as usize;
        self.buffer.resize(self.buffer.len().max(length), 0);
        let part = &mut self.buffer[..length];
        file.read_exact_at(part, self.at)?;
        self.hasher.update(part);
        self.at += length as u64;
        Ok(self)
    }
}

/// Reads exactly `length` bytes at `at` if they are in the page cache, as bytes that were just written are. Never waits
/// for a disk.
fn read_cached(file: &File, at: u64, length: u64) -> Option<Bytes> {
    let mut buffer = vec![0; usize::try_from(length).ok()?];
    let into = &mut [IoSliceMut::new(&mut buffer)];
    let read = rustix::io::preadv2(file, into, at, ReadWriteFlags::NOWAIT).ok()?;
    (read as u64 == length).then(|| buffer.into())
}

fn read_at(file: &File, at: u64, length: u64) -> io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut buffer, at)?;
    Ok(buffer.into())
}
