//! One connection's worth of a fill: bytes from an origin into the file, noted as they are there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};

use super::plan::Claim;
use super::{Fill, Origin, Transfer};
use crate::failure::{Failure, FailureKind};
use crate::store::partial::Slot;

/// Most bytes taken off the network before they are written, and so a transfer's buffer (twice).
const BATCH: usize = 1 << 20;

/// Where a transfer stands and where it ends; the planner may bring the end nearer while it runs.
#[derive(Debug)]
pub struct Span {
    from: u64,
    at: AtomicU64,
    until: AtomicU64,
}

impl Span {
    pub fn new(from: u64, until: u64) -> Self {
        Self { from, at: AtomicU64::new(from), until: AtomicU64::new(until) }
    }

    pub fn claim(&self) -> Claim {
        Claim { at: self.at.load(Ordering::Relaxed), until: self.until.load(Ordering::Relaxed) }
    }

    pub fn has_brought_any(&self) -> bool {
        self.claim().at > self.from
    }

    pub fn set_until(&self, until: u64) {
        self.until.store(until, Ordering::Relaxed);
    }
}

/// How a transfer ended.
#[derive(Debug)]
pub enum End {
    /// It brought all of its span, or the body ended where the size was not known.
    Complete,
    Broke(Failure),
    /// A range was asked for and the whole is being sent.
    NoRanges,
    /// Two answers do not agree on how long the object is.
    Contradiction,
    Storage(io::Error),
    /// It does not fit into the cache.
    NoRoom(Failure),
}

/// What a transfer writes to.
#[derive(Clone, Debug)]
pub struct Sink {
    pub fill: Arc<Fill>,
    pub file: Arc<File>,
    pub slot: Arc<Slot>,
}

/// Takes an opened transfer to the end of its span. `may_skip`: nobody else brings this object, so an
/// answer that begins too early is read past.
pub async fn run(transfer: Transfer, span: &Span, sink: &Sink, origin: &dyn Origin, may_skip: bool) -> End {
    let from = span.claim().at;
    if transfer.start < from && !may_skip {
        return End::NoRanges;
    }
    let total = transfer.total;
    let mut incoming = Incoming { body: transfer.body, skip: from - transfer.start.min(from), ended: None };
    let mut batch = incoming.next_batch(origin).await;
    while !batch.is_empty() {
        let Claim { at, until } = span.claim();
        let length: u64 = batch.iter().map(|chunk| chunk.len() as u64).sum();
        if total.is_some_and(|total| at + length > total) {
            return End::Contradiction;
        }
        // The rest belongs to another transfer.
        let is_last = at + length >= until;
        if at + length > until {
            truncate(&mut batch, until.saturating_sub(at));
        }
        let write = write(sink.clone(), from, at, batch);
        let (written, next) =
            if is_last { (write.await, Vec::new()) } else { tokio::join!(write, incoming.next_batch(origin)) };
        match written {
            Ok(end) => {
                span.at.store(end, Ordering::Relaxed);
                sink.fill.arrived(at, end);
            }
            Err(error) => return End::Storage(error),
        }
        if is_last {
            return End::Complete;
        }
        batch = next;
    }
    let Claim { at, until } = span.claim();
    match incoming.ended {
        Some(Err(failure)) => End::Broke(failure),
        _ if at < until && (total.is_some() || until != u64::MAX) => {
            let message = format!("the upstream ended a blob after {at} bytes");
            End::Broke(Failure::new(FailureKind::Unavailable, message))
        }
        _ => End::Complete,
    }
}

fn truncate(batch: &mut Vec<Bytes>, mut left: u64) {
    batch.retain_mut(|chunk| {
        let keep = left.min(chunk.len() as u64);
        chunk.truncate(keep as usize);
        left -= keep;
        keep > 0
    });
}

/// Writes a batch at `at` and notes that `[from, end)` is there; returns the end.
async fn write(sink: Sink, from: u64, at: u64, batch: Vec<Bytes>) -> io::Result<u64> {
    super::blocking(move || {
        let mut at = at;
        for chunk in &batch {
            sink.file.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
        }
        sink.slot.write(from, at)?;
        Ok(at)
    })
    .await
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
