//! Reads content. A complete object, one that is still coming in, and one that cannot be stored look alike to the
//! reader.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, Stream};

use super::direct::Direct;
use super::fill::{FillReader, Origin, Readable, Reading, Seat};
use crate::failure::{Failure, FailureKind};
use crate::oci::{Digest, Hasher};
use crate::store::{Body, Mapping, Object};
use crate::upkeep::Lease;
use crate::work::{Hashing, ReadFile};

/// Most bytes read, and so buffered, at a time for one reader.
const WINDOW: u64 = 64 * 1024;
/// Bytes of the first read: a client that never takes anything holds no more than the first two reads.
const FIRST_WINDOW: u64 = 16 * 1024;
/// Bytes that all readers together may read at a time. Where there are many, each reads less: most of them wait for
/// their clients, with what they have read in memory.
const WINDOWS: u64 = 1 << 20;
/// Bytes that a reader may read at a time, however many there are.
const LEAST_WINDOW: u64 = 16 * 1024;
/// Bytes of a mapped object handed on at a time; they are pages of the system's cache, not buffers.
const FRAME: u64 = 1 << 20;

/// An object to read from: stored, on its way in, or not to be stored.
#[derive(Clone)]
pub enum Content {
    Complete {
        object: Object,
        lease: Arc<Lease>,
    },
    /// The object is on its way in.
    Growing {
        fill: FillReader,
        /// Where to get the object if the fill fails because of Larder's own disk.
        aside: Aside,
        /// The size that the upstream states.
        told: Option<u64>,
        /// Whether pages of the file may go to the reader; else its bytes are read into buffers.
        is_mapped: bool,
        /// Keeps the object from eviction; `None` where nothing is evicted.
        _lease: Option<Arc<Lease>>,
    },
    /// The object cannot be stored.
    Uncached {
        aside: Aside,
        size: Option<u64>,
    },
}

/// Where a reader gets the object without the store.
#[derive(Clone)]
pub struct Aside {
    pub digest: Digest,
    pub origin: Arc<dyn Origin>,
    /// Whether the running fill was begun for this reader.
    pub is_own: bool,
}

impl Content {
    /// Returns the size as soon as it is known; `None` if only the end will tell.
    pub async fn size(&self) -> Result<Option<u64>, Failure> {
        match self {
            Self::Complete { object, .. } => Ok(Some(object.size)),
            Self::Growing { fill, told, .. } => match fill.size().await {
                // The reader goes on by a transfer of its own, whose size is not known yet.
                Err(failure) if failure.kind == FailureKind::Unread => Ok(*told),
                size => size.map(|size| size.or(*told)),
            },
            Self::Uncached { size, .. } => Ok(*size),
        }
    }

    /// Returns the size, however long it takes to learn it; `None` if it cannot be known before the bytes are taken.
    pub async fn final_size(&self) -> Result<Option<u64>, Failure> {
        match self {
            Self::Growing { told: Some(_), .. } => self.size().await,
            Self::Growing { fill, .. } => match fill.final_size().await {
                Err(failure) if failure.kind.is_of_the_store() || failure.kind == FailureKind::Unread => Ok(None),
                size => size.map(Some),
            },
            Self::Complete { .. } | Self::Uncached { .. } => self.size().await,
        }
    }

    /// Returns whether the object is complete and has this size.
    pub fn is_complete_with(&self, size: u64) -> bool {
        matches!(self, Self::Complete { object, .. } if object.size == size)
    }

    /// Returns the same content, to be read into buffers: for code that looks at the bytes before they go to a socket,
    /// as HTTP/2 and TLS do. Such code must not touch a page that a truncated file no longer has.
    pub fn unmapped(self) -> Self {
        match self {
            Self::Complete { object, lease } => Self::Complete { object: object.unmapped(), lease },
            Self::Growing { fill, aside, told, _lease, .. } => {
                Self::Growing { fill, aside, told, is_mapped: false, _lease }
            }
            Self::Uncached { .. } => self,
        }
    }

    /// Returns the mapping that the frames of [`Self::stream`] are cut from, as far as it is known now.
    pub fn mapping(&self) -> Option<Arc<Mapping>> {
        match self {
            Self::Complete { object, .. } => object.mapping().cloned(),
            Self::Growing { fill, is_mapped: true, .. } => fill.mapping(),
            Self::Growing { .. } | Self::Uncached { .. } => None,
        }
    }

    /// Returns the bytes from `start` to `end`, or to the end of the object, for a client that was told that the object
    /// has `size` bytes. Waits for bytes that are not there yet. An error in the stream means that the bytes before it
    /// are not the whole. With `may_read_unverified`, a part is given before the whole is verified.
    pub fn stream(
        self,
        start: u64,
        end: Option<u64>,
        size: Option<u64>,
        may_read_unverified: bool,
    ) -> impl Stream<Item = Result<Bytes, Failure>> + Send + 'static {
        let reading = Reading { attempt: None, end, size, may_read_unverified };
        let reader = Reader {
            content: self,
            start,
            at: start,
            window: FIRST_WINDOW,
            copying: None,
            reading,
            last_file: None,
            seat: None,
            hasher: None,
            direct: None,
        };
        stream::try_unfold(reader, |mut reader| async move {
            let bytes = reader.next().await?;
            Ok((!bytes.is_empty()).then_some((bytes, reader)))
        })
    }
}

/// How many readers copy bytes now.
static COPYING: AtomicU64 = AtomicU64::new(0);

/// A reader that copies bytes, counted until this is dropped.
struct Copying;

impl Copying {
    fn new() -> Self {
        COPYING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        COPYING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns how many bytes one of `readers` may read at a time.
fn window(readers: u64) -> u64 {
    (WINDOWS / readers.max(1)).clamp(LEAST_WINDOW, WINDOW)
}

/// The state of one stream of content.
struct Reader {
    content: Content,
    start: u64,
    at: u64,
    /// Most bytes of the next read.
    window: u64,
    /// Set once the reader has copied bytes.
    copying: Option<Copying>,
    reading: Reading,
    /// The file that was read last.
    last_file: Option<ReadFile>,
    /// The seat at the window of a fill that passes.
    seat: Option<Seat>,
    /// The hash over all bytes of the object before `at`, if they came out of that window.
    hasher: Option<Hasher>,
    /// The reader's own transfer, once it goes past the store.
    direct: Option<Direct>,
}

/// Where a fill has the next bytes.
enum Found {
    /// In this file, up to this offset; and as pages of a mapping, if the reader may have them.
    InFile(ReadFile, u64, Option<Arc<Mapping>>),
    Bytes(Bytes),
    Nowhere,
}

impl Reader {
    /// Returns the next bytes; none at the end.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        if let Some(direct) = &mut self.direct {
            return direct.next().await.map(|piece| piece.bytes);
        }
        if self.reading.end.is_some_and(|end| self.at >= end) {
            return Ok(Bytes::new());
        }
        let (file, until, mapping) = match &self.content {
            Content::Complete { object, lease } => {
                let (object, lease) = (object.clone(), lease.clone());
                let end = self.reading.end.unwrap_or(object.size).min(object.size);
                match object.body {
                    Body::Mapped(mapping, file) => {
                        let frame = self.next_frame(&mapping, &file, end).await;
                        return frame.map_err(|error| unreadable(error, Some(&lease)));
                    }
                    Body::Read(bytes, _) => {
                        let from = self.at.min(end);
                        self.at = self.at.max(end);
                        // Both are at most the length of the bytes.
                        return Ok(bytes.slice(from as usize..end as usize));
                    }
                    Body::ToRead(file) => (file, object.size, None),
                }
            }
            Content::Growing { .. } => match self.growing().await? {
                Found::InFile(file, until, mapping) => (file, until, mapping),
                Found::Bytes(bytes) => return Ok(bytes),
                Found::Nowhere => return self.go_aside().await,
            },
            Content::Uncached { .. } => return self.go_aside().await,
        };
        self.read(file, until, mapping).await
    }

    /// Returns where the fill has the next bytes.
    async fn growing(&mut self) -> Result<Found, Failure> {
        let Content::Growing { fill, aside, is_mapped, .. } = &self.content else {
            return Ok(Found::Nowhere);
        };
        self.seat = self.seat.take().or_else(|| fill.sit(self.at));
        if let Some(seat) = &self.seat {
            seat.is_at(self.at);
        }
        match fill.readable(self.at, self.reading).await {
            Ok(Readable::File { file, until, attempt, mapping }) => {
                self.reading.attempt = Some(attempt);
                Ok(Found::InFile(file, until, mapping.filter(|_| *is_mapped)))
            }
            Ok(Readable::InWindow) => {
                self.seat = self.seat.take().or_else(|| fill.sit(self.at));
                let Some(piece) = self.seat.as_ref().and_then(|seat| seat.take(self.at)) else {
                    return Ok(Found::Nowhere);
                };
                let mut bytes = piece.bytes;
                if let Some(end) = self.reading.end {
                    bytes.truncate(usize::try_from(end - self.at).unwrap_or(usize::MAX));
                }
                self.at += bytes.len() as u64;
                self.hasher = piece.hasher;
                Ok(Found::Bytes(bytes))
            }
            Ok(Readable::Elsewhere) => {
                tracing::debug!(digest = %aside.digest, at = self.at, "a client goes on by a transfer of its own");
                Ok(Found::Nowhere)
            }
            Err(failure) if failure.kind == FailureKind::Unread => {
                tracing::debug!(digest = %aside.digest, at = self.at, "a client came as its transfer was given up");
                Ok(Found::Nowhere)
            }
            // If the fill was begun for another client, that client's rights and limits are not this reader's.
            Err(failure) if failure.kind.is_of_the_store() || (!aside.is_own && failure.is_of_who_asked()) => {
                tracing::warn!(digest = %aside.digest, %failure, "a transfer goes on uncached");
                Ok(Found::Nowhere)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Returns the next bytes of a file that has them up to `until`: pages of its mapping, or a copy.
    async fn read(&mut self, file: ReadFile, until: u64, mapping: Option<Arc<Mapping>>) -> Result<Bytes, Failure> {
        let until = until.min(self.reading.end.unwrap_or(u64::MAX));
        if until <= self.at && self.reading.end.is_some() {
            return Err(Failure::new(FailureKind::Storage, "the object ended before its stated size"));
        }
        let bytes = match mapping {
            Some(mapping) => self.next_frame(&mapping, &file, until).await,
            None => self.next_copy(&file, until).await,
        };
        self.last_file = Some(file);
        bytes.map_err(|error| unreadable(error, None))
    }

    /// Copies the next bytes of a file.
    async fn next_copy(&mut self, file: &ReadFile, until: u64) -> io::Result<Bytes> {
        self.copying.get_or_insert_with(Copying::new);
        let window = window(COPYING.load(Ordering::Relaxed));
        let until = until.min(self.at + self.window.min(window));
        self.window = (2 * self.window).min(WINDOW);
        let length = until.saturating_sub(self.at);
        let bytes = file.read(self.at, length).await?;
        self.at += length;
        Ok(bytes)
    }

    /// Returns the next pages of a file that has its bytes up to `end`.
    async fn next_frame(&mut self, mapping: &Arc<Mapping>, file: &ReadFile, end: u64) -> io::Result<Bytes> {
        let (at, length) = (self.at, end.saturating_sub(self.at).min(FRAME));
        if length > 0 && !mapping.is_resident(at, length) {
            let loading = mapping.clone();
            file.pool().run_io(move || loading.load(at, length)).await?;
        }
        self.at += length;
        Ok(mapping.frame(at, length))
    }

    /// Goes on from the origin, past the store. A reader of the whole still gets its end only once the digest matched:
    /// the bytes that it got before were hashed, or are read back to be hashed.
    async fn go_aside(&mut self) -> Result<Bytes, Failure> {
        let (Content::Growing { aside, .. } | Content::Uncached { aside, .. }) = &self.content else {
            return Err(Failure::new(FailureKind::Storage, "a stored object has no other place"));
        };
        let aside = aside.clone();
        let is_whole = self.start == 0 && !self.reading.may_read_unverified;
        let hasher = match (self.hasher.take(), &self.last_file) {
            _ if !is_whole => None,
            (Some(hasher), _) => Some(hasher),
            (None, Some(file)) => {
                let hashing = file.hash(Hashing::new(aside.digest.algorithm()), self.at).await;
                Some(hashing.map_err(|error| unreadable(error, None))?.into_hasher())
            }
            (None, None) => Some(aside.digest.algorithm().hasher()),
        };
        let direct = Direct::new(aside.origin.clone(), aside.digest, self.at, self.reading.end, hasher).promised();
        // This reader does not read the fill any more.
        (self.seat, self.content) = (None, Content::Uncached { aside, size: None });
        self.direct.insert(direct).next().await.map(|piece| piece.bytes)
    }
}

/// Returns the failure for an object that the disk cannot read. So that it does not fail the next client, too, the
/// object is taken out, unless the disk only took too long.
fn unreadable(error: io::Error, lease: Option<&Arc<Lease>>) -> Failure {
    tracing::error!(%error, "cannot read an object");
    if let Some(lease) = lease.filter(|_| error.kind() != io::ErrorKind::TimedOut) {
        lease.give_up();
    }
    Failure::of(FailureKind::Storage, "cannot read an object", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_readers_together_have_little_in_memory() {
        assert_eq!([0, 1, 16].map(window), [WINDOW; 3]);
        assert_eq!(window(32), 32 * 1024);
        assert_eq!([256, 10_000].map(window), [LEAST_WINDOW; 2]);
    }
}
