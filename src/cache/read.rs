//! Reading content: a complete object and one that is still coming in look alike to who reads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};

use super::fill::{Fill, Reading};
use crate::failure::{Failure, FailureKind};
use crate::store::Stored;

/// Most bytes read, and so buffered, at a time for one reader.
const WINDOW: u64 = 256 * 1024;

/// An object to read from.
#[derive(Clone, Debug)]
pub enum Content {
    Complete(Stored),
    Growing(Arc<Fill>),
}

impl Content {
    /// The size as soon as it is known; `None` when only the end will tell.
    pub async fn size(&self) -> Result<Option<u64>, Failure> {
        match self {
            Self::Complete(stored) => Ok(Some(stored.size)),
            Self::Growing(fill) => fill.size().await,
        }
    }

    /// The size, however long it takes to learn it.
    pub async fn final_size(&self) -> Result<u64, Failure> {
        match self {
            Self::Complete(stored) => Ok(stored.size),
            Self::Growing(fill) => fill.final_size().await,
        }
    }

    /// The bytes from `start` to `end`, or to the end of the object. What is not there yet is waited
    /// for; an error in the stream means that what came before is not the whole.
    /// With `may_read_unverified` a part is given before the whole is verified.
    pub fn stream(
        self,
        start: u64,
        end: Option<u64>,
        may_read_unverified: bool,
    ) -> impl Stream<Item = Result<Bytes, Failure>> + Send + 'static {
        let reading = Reading { attempt: None, end, may_read_unverified };
        let reader = Reader { content: self, at: start, reading };
        stream::try_unfold(reader, |mut reader| async move {
            let bytes = reader.next().await?;
            Ok((!bytes.is_empty()).then_some((bytes, reader)))
        })
    }
}

struct Reader {
    content: Content,
    at: u64,
    reading: Reading,
}

impl Reader {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        if self.reading.end.is_some_and(|end| self.at >= end) {
            return Ok(Bytes::new());
        }
        let (file, until) = match &self.content {
            Content::Complete(stored) => (stored.file.clone(), stored.size),
            Content::Growing(fill) => {
                let readable = fill.readable(self.at, self.reading).await?;
                self.reading.attempt = Some(readable.attempt);
                (readable.file, readable.until)
            }
        };
        let until = until.min(self.reading.end.unwrap_or(u64::MAX)).min(self.at + WINDOW);
        let (at, length) = (self.at, until.saturating_sub(self.at));
        if length == 0 && self.reading.end.is_some() {
            return Err(Failure::new(FailureKind::Storage, "the object ended before its stated size"));
        }
        let bytes = tokio::task::spawn_blocking(move || read_at(&file, at, length)).await;
        let bytes = bytes.unwrap_or_else(|error| Err(io::Error::other(error)));
        let bytes = bytes.map_err(|error| {
            tracing::error!(%error, "cannot read an object");
            Failure::new(FailureKind::Storage, format!("cannot read an object: {error}"))
        })?;
        self.at += length;
        Ok(bytes)
    }
}

/// Reads exactly `length` bytes at `at`.
pub fn read_at(file: &File, at: u64, length: u64) -> io::Result<Bytes> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut buffer = vec![0; length];
    file.read_exact_at(&mut buffer, at)?;
    Ok(buffer.into())
}
