//! Past the store: an object streamed straight from its origin to one reader, for when the disk is
//! full or broken. The pull goes on; nothing is kept and nothing is shared.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::breaks::Breaks;
use super::fill::{HELD_BACK, Origin, Source};
use crate::failure::{Failure, FailureKind};
use crate::oci::{Digest, Hasher};

/// How often in a row the stream is opened again without having got on.
const REOPEN_ATTEMPTS: u32 = 5;
/// A reader that takes nothing for this long gives its connection to the origin away; it gets another one later.
const UNTAKEN: Duration = Duration::from_secs(30);

/// One reader's own transfer.
pub struct Direct {
    origin: Arc<dyn Origin>,
    digest: Digest,
    /// The next byte to come from the origin.
    at: u64,
    end: Option<u64>,
    /// Over all bytes before `at`, when the whole is read.
    hasher: Option<Hasher>,
    /// The last bytes, kept until the digest matched.
    held: VecDeque<Bytes>,
    open: Option<Open>,
    /// Length of the whole, where it is known.
    total: Option<u64>,
    /// Bytes that came so far.
    brought: u64,
    breaks: Breaks,
    /// Breaks in a row without progress.
    strikes: u32,
    is_done: bool,
}

/// A stream from the origin.
struct Open {
    source: Source,
    pieces: mpsc::Receiver<Piece>,
    since: Instant,
    /// Bytes that this stream brought.
    brought: u64,
}

impl Direct {
    /// From `at` to `end`. `hasher` has seen all bytes before `at`; without one nothing is verified.
    pub fn new(origin: Arc<dyn Origin>, digest: Digest, at: u64, end: Option<u64>, hasher: Option<Hasher>) -> Self {
        Self {
            origin,
            digest,
            at,
            end,
            hasher,
            held: VecDeque::new(),
            open: None,
            total: None,
            brought: 0,
            breaks: Breaks::default(),
            strikes: 0,
            is_done: false,
        }
    }

    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Bytes, Failure> {
        loop {
            if self.is_done {
                return Ok(self.held.pop_front().unwrap_or_default());
            }
            if let Some(bytes) = self.releasable() {
                return Ok(bytes);
            }
            match self.receive().await? {
                Some(bytes) => self.keep(bytes),
                None => self.finish()?,
            }
        }
    }

    /// Bytes that are not among the last.
    fn releasable(&mut self) -> Option<Bytes> {
        let first = self.held.front()?;
        let others: u64 = self.held.iter().skip(1).map(|bytes| bytes.len() as u64).sum();
        let may_go = self.hasher.is_none() || others >= HELD_BACK || first.is_empty();
        may_go.then(|| self.held.pop_front()).flatten()
    }

    fn keep(&mut self, bytes: Bytes) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.at += bytes.len() as u64;
        self.held.push_back(bytes);
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.is_done = true;
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        if hasher.finish() == self.digest {
            return Ok(());
        }
        if let Some(open) = &self.open {
            self.origin.reject(open.source);
        }
        Err(Failure::new(FailureKind::WrongContent, "the upstream sent wrong content; ask again"))
    }

    /// The next bytes from the origin, which is opened again where it breaks; `None` at the end.
    async fn receive(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Ok(None);
            }
            if self.open.is_none()
                && let Err(failure) = self.reopen().await
            {
                self.not_opened(failure).await?;
            }
            let Some(open) = &mut self.open else {
                continue;
            };
            match open.pieces.recv().await {
                // What is there already was read past; nothing would mean the end to the reader.
                Some(Piece::Bytes(bytes)) if bytes.is_empty() => {}
                Some(Piece::Bytes(mut bytes)) => {
                    if let Some(end) = self.end {
                        bytes.truncate(usize::try_from(end - self.at).unwrap_or(usize::MAX));
                    }
                    open.brought += bytes.len() as u64;
                    self.brought += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                // The reader took nothing for long, and is back.
                None => self.open = None,
                Some(Piece::End) if self.end.is_none() => return Ok(None),
                Some(Piece::Broke(failure)) => self.broke(failure).await?,
                Some(Piece::End) => {
                    let message = format!("the upstream ended a blob after {} bytes", self.at);
                    self.broke(Failure::new(FailureKind::Unavailable, message)).await?;
                }
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), Failure> {
        // A range to the very end is asked for without its end: some storages dislike a last byte.
        let until = self.end.filter(|_| self.end != self.total);
        let transfer = self.origin.open(self.at, until, false).await?;
        self.total = self.total.or(transfer.total);
        self.end = self.end.or(transfer.total);
        let mut skip = self.at - transfer.start.min(self.at);
        let origin = self.origin.clone();
        let body = transfer.body.map(move |item| {
            item.map(|mut bytes: Bytes| {
                origin.received(bytes.len() as u64);
                let skipped = skip.min(bytes.len() as u64);
                skip -= skipped;
                // Fits: it is at most the length of the bytes.
                bytes.split_off(skipped as usize)
            })
        });
        self.open =
            Some(Open { source: transfer.source, pieces: pump(body.boxed()), since: Instant::now(), brought: 0 });
        Ok(())
    }

    /// No source goes on with a transfer of which the reader has a part already: waits for one to come back.
    async fn not_opened(&mut self, why: Failure) -> Result<(), Failure> {
        self.strikes += 1;
        if self.brought == 0 || self.strikes > REOPEN_ATTEMPTS {
            return Err(why);
        }
        let broke = self.breaks.broke(0, self.brought, self.total, Duration::ZERO);
        tokio::time::sleep(broke.pause).await;
        Ok(())
    }

    /// Takes note that the stream broke, and waits for as long as the next is not to be opened.
    async fn broke(&mut self, why: Failure) -> Result<(), Failure> {
        let Some(open) = self.open.take() else {
            return Err(why);
        };
        let broke = self.breaks.broke(open.brought, self.brought, self.total, open.since.elapsed());
        self.origin.broke(open.source, broke.has_progressed, &why);
        self.strikes = if broke.has_progressed { 0 } else { self.strikes + 1 };
        if self.strikes > REOPEN_ATTEMPTS {
            return Err(why);
        }
        tokio::time::sleep(broke.pause).await;
        Ok(())
    }
}

/// What comes of a stream.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    Broke(Failure),
    End,
}

/// Reads a body a little ahead of its reader. Where the reader takes nothing for long the body is given up, and with
/// it the connection that others may need; the channel then closes without an end.
fn pump(mut body: BoxStream<'static, Result<Bytes, Failure>>) -> mpsc::Receiver<Piece> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let item = tokio::select! {
                item = body.next() => item,
                () = sender.closed() => return,
            };
            let (piece, is_last) = match item {
                Some(Ok(bytes)) => (Piece::Bytes(bytes), false),
                Some(Err(failure)) => (Piece::Broke(failure), true),
                None => (Piece::End, true),
            };
            let is_taken = tokio::time::timeout(UNTAKEN, sender.send(piece)).await.is_ok_and(|sent| sent.is_ok());
            if is_last || !is_taken {
                return;
            }
        }
    });
    receiver
}
