//! One transfer of a fill: takes bytes from an origin to the file, and notes which bytes are there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::plan::{self, Claim};
use super::{Fill, Origin, Reserved, Transfer};
use crate::failure::{Failure, FailureKind};
use crate::spool::{Partial, Slot};

/// Most bytes taken off the network before they are written; a transfer buffers twice as many. Not more than the
/// distance that a reader waits for: so bytes that are being written are never taken from a transfer any more.
const BATCH: usize = plan::NEAR as usize;

/// So many readers are told of new bytes less often: each time wakes them all, and each of them sends what there is.
pub const CROWD: usize = 8;
/// Bytes that are gathered for a crowd before it is told, unless that takes longer than [`GATHERING`].
const GATHERED: usize = 256 << 10;
/// How long bytes for a crowd may wait for those behind them.
const GATHERING: Duration = Duration::from_millis(3);

/// The range of a transfer: where it stands, and where it ends. The planner may move the end while the transfer runs.
#[derive(Debug)]
pub struct Span {
    from: u64,
    since: Instant,
    at: AtomicU64,
    until: AtomicU64,
}

impl Span {
    pub fn new(from: u64, until: u64) -> Self {
        Self { from, since: Instant::now(), at: AtomicU64::new(from), until: AtomicU64::new(until) }
    }

    /// Returns the bytes that the transfer has still to bring.
    pub fn claim(&self) -> Claim {
        Claim { at: self.at.load(Ordering::Relaxed), until: self.until.load(Ordering::Relaxed) }
    }

    /// Returns the offset at which the transfer began.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Returns how long ago the transfer began.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Moves the end.
    pub fn set_until(&self, until: u64) {
        self.until.store(until, Ordering::Relaxed);
    }
}

/// How a transfer ended.
#[derive(Debug)]
pub enum End {
    /// It brought all of its span; or the body ended, where the size was not known.
    Complete,
    /// The source broke off.
    Broke(Failure),
    /// A range was requested, and the source sends the whole.
    NoRanges,
    /// Two answers do not agree on the length of the object.
    Contradiction,
    /// The file could not be written.
    Storage(io::Error),
    /// The object does not fit into the cache.
    NoRoom(Failure),
    /// The object cannot be stored. Nothing of the transfer was read yet.
    Unstored(Failure, Box<Transfer>),
}

/// Where a transfer writes its bytes.
#[derive(Clone, Debug)]
pub struct Sink {
    pub fill: Arc<Fill>,
    pub partial: Partial,
    pub slot: Slot,
    pub reserved: Reserved,
    /// Whether room was reserved for the size that the source states.
    pub has_room_for_all: bool,
}

/// Reads an opened transfer to the end of its span. `may_skip`: no other transfer brings this object, so the first
/// bytes of an answer that begins too early are skipped.
pub async fn run(transfer: Transfer, span: &Span, sink: &Sink, origin: &dyn Origin, may_skip: bool) -> End {
    let from = span.claim().at;
    if transfer.start < from && !may_skip {
        return End::NoRanges;
    }
    let total = transfer.total;
    let mut incoming = Incoming::new(transfer.body, from - transfer.start.min(from));
    // The first bytes wait for none.
    let mut batch = incoming.next_batch(origin, false).await;
    while !batch.is_empty() {
        let Claim { at, until } = span.claim();
        let length: u64 = batch.iter().map(|chunk| chunk.len() as u64).sum();
        if total.is_some_and(|total| at + length > total) {
            return End::Contradiction;
        }
        // Where the size is not known, or not believed, room is reserved as the object grows.
        if (total.is_none() || !sink.has_room_for_all)
            && let Err(failure) = sink.reserved.cover(at + length).await
        {
            return End::NoRoom(failure);
        }
        // The bytes from `until` on belong to another transfer.
        let is_last = at + length >= until;
        if at + length > until {
            truncate(&mut batch, until.saturating_sub(at));
        }
        let write = async {
            let end = sink.partial.write(&sink.slot, from, at, batch).await?;
            // Told at once: the next bytes may take long to arrive.
            span.at.store(end, Ordering::Relaxed);
            sink.fill.arrived(at, end);
            Ok(())
        };
        let is_crowd = sink.fill.readers() >= CROWD;
        let (written, next) = match is_last {
            true => (write.await, Vec::new()),
            false => tokio::join!(write, incoming.next_batch(origin, is_crowd)),
        };
        if let Err(error) = written {
            return End::Storage(error);
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

/// The body of a transfer, cut into batches.
struct Incoming {
    body: BoxStream<'static, Result<Bytes, Failure>>,
    /// Bytes to skip because they are there already: the source does not serve ranges.
    skip: u64,
    /// Bytes that did not fit into the last batch.
    kept: Bytes,
    /// How the body ended.
    ended: Option<Result<(), Failure>>,
}

impl Incoming {
    fn new(body: BoxStream<'static, Result<Bytes, Failure>>, skip: u64) -> Self {
        Self { body, skip, kept: Bytes::new(), ended: None }
    }

    /// Waits for bytes, and returns all that have arrived by then, up to [`BATCH`]. Empty at the end. `gathers`: few bytes
    /// wait a moment for more.
    async fn next_batch(&mut self, origin: &dyn Origin, gathers: bool) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut left = BATCH;
        let mut gathering = None;
        while left > 0 && self.ended.is_none() {
            if self.kept.is_empty() {
                let next = match self.body.next().now_or_never() {
                    Some(next) => next,
                    None if batch.is_empty() => self.body.next().await,
                    None if gathers && BATCH - left < GATHERED => {
                        let until = *gathering.get_or_insert_with(|| Instant::now() + GATHERING);
                        match tokio::time::timeout_at(until, self.body.next()).await {
                            Ok(next) => next,
                            Err(_) => break,
                        }
                    }
                    None => break,
                };
                match next {
                    Some(Ok(chunk)) => self.keep(chunk, origin),
                    Some(Err(failure)) => self.ended = Some(Err(failure)),
                    None => self.ended = Some(Ok(())),
                }
            }
            let chunk = self.kept.split_to(self.kept.len().min(left));
            left -= chunk.len();
            if !chunk.is_empty() {
                batch.push(chunk);
            }
        }
        batch
    }

    fn keep(&mut self, mut chunk: Bytes, origin: &dyn Origin) {
        origin.received(chunk.len() as u64);
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        // Fits: it is at most the chunk's length.
        self.kept = chunk.split_off(skipped as usize);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::cache::fill::tests::Script;

    #[tokio::test]
    async fn a_batch_is_never_longer_than_what_readers_wait_for() {
        let sent = (0..5u8).map(|chunk| Ok(Bytes::from(vec![chunk; 700_000])));
        let mut incoming = Incoming::new(stream::iter(sent).boxed(), 100_000);
        let origin = Script::new([]);
        let mut came = Vec::new();
        loop {
            let batch = incoming.next_batch(&*origin, false).await.concat();
            assert!(batch.len() as u64 <= plan::NEAR, "{} bytes", batch.len());
            if batch.is_empty() {
                break;
            }
            came.extend(batch);
        }
        let expected: Vec<u8> = (0..5u8).flat_map(|chunk| vec![chunk; 700_000]).skip(100_000).collect();
        assert!(came == expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_told_of_several_pieces_at_once_and_not_late() {
        let piece = Bytes::from(vec![1; 16 << 10]);
        let slowly = stream::unfold(0, move |count| {
            let piece = piece.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                (count < 12).then_some((Ok(piece), count + 1))
            }
        });
        let mut incoming = Incoming::new(slowly.boxed(), 0);
        let origin = Script::new([]);
        let mut at_once = async |gathers| {
            let begun = Instant::now();
            (incoming.next_batch(&*origin, gathers).await.len(), begun.elapsed())
        };
        assert_eq!(at_once(false).await, (1, Duration::from_millis(1)));
        let (pieces, took) = at_once(true).await;
        assert!(pieces > 2 && took <= Duration::from_millis(1) + GATHERING, "{pieces} in {took:?}");

        // Enough bytes do not wait.
        let plenty = stream::iter((0..40).map(|_| Ok(Bytes::from(vec![1; 16 << 10])))).chain(stream::pending());
        let mut incoming = Incoming::new(plenty.boxed(), 0);
        let begun = Instant::now();
        assert_eq!(incoming.next_batch(&*origin, true).await.len(), 40);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
