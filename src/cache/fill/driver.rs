//! Drives a fill from the first byte to the published object.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};

use super::{Origin, Phase, Registered, Source, Transfer};
use crate::cache::ranges::RangeSet;
use crate::failure::{Failure, FailureKind};
use crate::oci::{Digest, Hasher};
use crate::store::{Disk, Partial};

/// Most bytes taken off the network before they are written, and so a fill's buffer.
const BATCH: usize = 1 << 20;
/// How often a transfer that had begun is reopened when no source answers, before the fill fails.
const REOPEN_ATTEMPTS: u32 = 6;
const REOPEN_DELAY: Duration = Duration::from_millis(100);

/// What a finished fill left in the store.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub size: u64,
    /// Whether the object is in the store; readers were served either way.
    pub is_stored: bool,
}

/// Brings `digest` in: tries one copy after the other until one has the right digest, tells the
/// readers, and publishes the file.
pub async fn drive(
    registered: &Registered,
    digest: Digest,
    origin: &dyn Origin,
    disk: &Arc<Disk>,
) -> Result<Outcome, Failure> {
    loop {
        let result = attempt(registered, digest, origin, disk).await;
        match result {
            Ok(Attempt::Verified(mut partial, size)) => {
                registered.fill().update(|state| {
                    state.phase = Phase::Verified;
                    state.size = Some(size);
                });
                let disk = disk.clone();
                let published = blocking(move || disk.publish(&mut partial, &digest)).await;
                if let Err(error) = &published {
                    tracing::error!(%digest, %error, "the object could not be stored; it was served uncached");
                }
                return Ok(Outcome { size, is_stored: published.is_ok() });
            }
            Ok(Attempt::Mismatch(source)) => {
                tracing::warn!(%digest, source = source.0, "the upstream sent wrong content; it was dropped");
                origin.reject(source);
            }
            Err(failure) => {
                registered.fill().update(|state| state.phase = Phase::Failed(failure.clone()));
                return Err(failure);
            }
        }
    }
}

enum Attempt {
    Verified(Partial, u64),
    Mismatch(Source),
}

/// Transfers all of one copy and compares its digest.
async fn attempt(
    registered: &Registered,
    digest: Digest,
    origin: &dyn Origin,
    disk: &Arc<Disk>,
) -> Result<Attempt, Failure> {
    let partial = {
        let disk = disk.clone();
        blocking(move || disk.create_partial(&digest)).await.map_err(|error| storage(&error))?
    };
    let mut progress = Progress {
        registered,
        file: partial.file().clone(),
        hasher: Some(digest.algorithm().hasher()),
        at: 0,
        total: None,
    };
    let mut failed_opens = 0;
    let source = loop {
        let transfer = match origin.open(progress.at).await {
            Ok(transfer) => transfer,
            // Clients already have a part of it: it is worth waiting for an upstream to come back.
            Err(failure) if progress.at > 0 && failed_opens < REOPEN_ATTEMPTS => {
                tracing::debug!(%digest, %failure, at = progress.at, "no upstream goes on with a transfer; trying again");
                tokio::time::sleep(REOPEN_DELAY * 2u32.pow(failed_opens)).await;
                failed_opens += 1;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        failed_opens = 0;
        let source = transfer.source;
        let before = progress.at;
        match progress.take(transfer, origin).await {
            Ok(()) => break source,
            Err(Broken::Network(failure)) => {
                tracing::debug!(%digest, %failure, at = progress.at, "a transfer broke; going on from there");
                origin.broke(source, progress.at > before);
            }
            Err(Broken::Contradiction) => return Ok(Attempt::Mismatch(source)),
            Err(Broken::Storage(error)) => return Err(storage(&error)),
        }
    };
    let size = progress.at;
    let is_right = progress.hasher.is_some_and(|hasher| hasher.finish() == digest);
    Ok(if is_right { Attempt::Verified(partial, size) } else { Attempt::Mismatch(source) })
}

/// Why a transfer did not reach the end.
enum Broken {
    Network(Failure),
    /// Two answers do not agree on how long the object is.
    Contradiction,
    Storage(io::Error),
}

struct Progress<'a> {
    registered: &'a Registered,
    file: Arc<File>,
    /// Over all bytes before `at`; `None` only while it is with the writing thread.
    hasher: Option<Hasher>,
    at: u64,
    total: Option<u64>,
}

impl Progress<'_> {
    /// Takes a transfer to its end. Writing one batch and receiving the next go on side by side.
    async fn take(&mut self, transfer: Transfer, origin: &dyn Origin) -> Result<(), Broken> {
        if let (Some(known), Some(stated)) = (self.total, transfer.total)
            && known != stated
        {
            return Err(Broken::Contradiction);
        }
        self.total = self.total.or(transfer.total);
        self.announce(transfer.start);

        let mut incoming = Incoming { body: transfer.body, skip: self.at - transfer.start.min(self.at), ended: None };
        let mut batch = incoming.next_batch(origin).await;
        while !batch.is_empty() {
            let length: u64 = batch.iter().map(|chunk| chunk.len() as u64).sum();
            if self.total.is_some_and(|total| self.at + length > total) {
                return Err(Broken::Contradiction);
            }
            let (written, next) = tokio::join!(self.write(batch), incoming.next_batch(origin));
            written.map_err(Broken::Storage)?;
            self.advance(length);
            batch = next;
        }
        match incoming.ended {
            Some(Err(failure)) => Err(Broken::Network(failure)),
            _ if self.total.is_some_and(|total| self.at < total) => {
                let message = format!("the upstream ended a blob after {} bytes", self.at);
                Err(Broken::Network(Failure::new(FailureKind::Unavailable, message)))
            }
            _ => Ok(()),
        }
    }

    /// Tells the readers of this copy, the first time something of it is on its way.
    fn announce(&self, start: u64) {
        if self.at > 0 || start > 0 {
            return;
        }
        self.registered.fill().update(|state| {
            if !state.file.as_ref().is_some_and(|file| Arc::ptr_eq(file, &self.file)) {
                state.attempt += 1;
                state.present = RangeSet::default();
                state.file = Some(self.file.clone());
            }
            state.phase = Phase::Growing;
            state.size = self.total;
        });
    }

    async fn write(&mut self, batch: Vec<Bytes>) -> io::Result<()> {
        let Some(mut hasher) = self.hasher.take() else {
            return Err(io::Error::other("the hasher was lost"));
        };
        let (file, mut at) = (self.file.clone(), self.at);
        let hasher = blocking(move || {
            for chunk in &batch {
                file.write_all_at(chunk, at)?;
                hasher.update(chunk);
                at += chunk.len() as u64;
            }
            Ok(hasher)
        })
        .await?;
        self.hasher = Some(hasher);
        Ok(())
    }

    fn advance(&mut self, length: u64) {
        let start = self.at;
        self.at += length;
        self.registered.fill().update(|state| state.present.insert(start, start + length));
    }
}

/// A body cut into batches.
struct Incoming {
    body: BoxStream<'static, Result<Bytes, Failure>>,
    /// Bytes that are there already: the source does not serve ranges.
    skip: u64,
    ended: Option<Result<(), Failure>>,
}

impl Incoming {
    /// Waits for bytes and takes with them what else has arrived, up to a limit. Empty at the end.
    async fn next_batch(&mut self, origin: &dyn Origin) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut length = 0;
        while length < BATCH && self.ended.is_none() {
            let next = if batch.is_empty() {
                self.body.next().await
            } else {
                match self.body.next().now_or_never() {
                    Some(next) => next,
                    None => break,
                }
            };
            match next {
                Some(Ok(mut chunk)) => {
                    origin.received(chunk.len() as u64);
                    let skipped = self.skip.min(chunk.len() as u64);
                    self.skip -= skipped;
                    // Fits: it is at most the chunk's length.
                    let chunk = chunk.split_off(skipped as usize);
                    length += chunk.len();
                    if !chunk.is_empty() {
                        batch.push(chunk);
                    }
                }
                Some(Err(failure)) => self.ended = Some(Err(failure)),
                None => self.ended = Some(Ok(())),
            }
        }
        batch
    }
}

fn storage(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Storage, format!("the cache directory cannot be written: {error}"))
}

/// Runs file operations off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
