//! A transfer past the store: an object streamed straight from its origin, for when the disk is full or broken. It goes
//! to all readers through the window of a fill (`fill/passing.rs`), or to one reader that cannot read along there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::breaks::Breaks;
use super::origin::{HELD_BACK, Origin, Source, Transfer};
use crate::failure::{Failure, FailureKind};
use crate::oci::{Digest, Hasher};

/// Most times in a row that the stream is opened again without progress.
const REOPEN_ATTEMPTS: u32 = 5;
/// A reader that takes nothing for this long gives up its connection to the origin; it gets another one later.
const UNTAKEN: Duration = Duration::from_secs(30);
/// Bytes handed on at a time where they are verified. They are copied together, so that memory is bounded by bytes and
/// not by the pieces that a source chooses.
pub const PIECE: usize = 32 << 10;

/// Consecutive bytes of an object; none at the end.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    pub bytes: Bytes,
    /// The hash over all bytes of the object up to the end of these, where the object is verified.
    pub hasher: Option<Hasher>,
}

/// One transfer of an object that is not stored.
pub struct Direct {
    origin: Arc<dyn Origin>,
    digest: Digest,
    /// The next byte to come from the origin.
    at: u64,
    /// Where the transfer ends, once that is known.
    end: Option<u64>,
    /// The hash over all bytes before those in `filling`, when the whole is read.
    hasher: Option<Hasher>,
    /// Bytes that make no whole piece yet.
    filling: Vec<u8>,
    /// Pieces not handed on yet: the last ones are kept until the digest matched.
    held: VecDeque<Piece>,
    /// Whether the bytes were promised to a client, so that a failure that may pass is no answer.
    is_promised: bool,
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
    pieces: mpsc::Receiver<Came>,
    since: Instant,
    /// Bytes that this stream brought.
    brought: u64,
}

impl Direct {
    /// Creates a transfer from `at` to `end`. `hasher` has seen all bytes before `at`; without a hasher, nothing is
    /// verified.
    pub fn new(origin: Arc<dyn Origin>, digest: Digest, at: u64, end: Option<u64>, hasher: Option<Hasher>) -> Self {
        Self {
            origin,
            digest,
            at,
            end,
            hasher,
            filling: Vec::new(),
            held: VecDeque::new(),
            is_promised: false,
            open: None,
            total: None,
            brought: 0,
            breaks: Breaks::default(),
            strikes: 0,
            is_done: false,
        }
    }

    /// Sets the size of the object, where it is known.
    pub fn of_size(self, size: Option<u64>) -> Self {
        Self { end: self.end.or(size), total: size, ..self }
    }

    /// Notes that the bytes were promised to a client.
    pub fn promised(self) -> Self {
        Self { is_promised: true, ..self }
    }

    /// Opens the stream, if it is not open.
    pub async fn open(&mut self) -> Result<(), Failure> {
        while self.open.is_none() {
            if let Err(failure) = self.reopen().await {
                self.not_opened(failure).await?;
            }
        }
        Ok(())
    }

    /// Returns the length of the whole, where it is known.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Returns whether the stream is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Gives the connection up. The next bytes come over another connection.
    pub fn pause(&mut self) {
        self.open = None;
    }

    /// Returns the next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Piece, Failure> {
        loop {
            if self.is_done {
                return Ok(self.held.pop_front().unwrap_or_default());
            }
            if let Some(piece) = self.releasable() {
                return Ok(piece);
            }
            match self.receive().await? {
                Some(bytes) => self.keep(bytes),
                None => self.finish()?,
            }
        }
    }

    /// Returns the next piece, if it is not among the last bytes.
    fn releasable(&mut self) -> Option<Piece> {
        let others = self.held.len().saturating_sub(1) * PIECE + self.filling.len();
        let may_go = self.hasher.is_none() || others as u64 >= HELD_BACK;
        may_go.then(|| self.held.pop_front()).flatten()
    }

    fn keep(&mut self, mut bytes: Bytes) {
        self.at += bytes.len() as u64;
        // A piece is never larger: a window makes room for a piece before it comes.
        while self.hasher.is_none() && !bytes.is_empty() {
            let bytes = bytes.split_to(bytes.len().min(PIECE));
            self.held.push_back(Piece { bytes, hasher: None });
        }
        while !bytes.is_empty() {
            self.filling.reserve_exact(PIECE - self.filling.len());
            let part = bytes.split_to(bytes.len().min(PIECE - self.filling.len()));
            self.filling.extend_from_slice(&part);
            if self.filling.len() == PIECE {
                self.seal();
            }
        }
    }

    /// Makes a piece of the bytes in `filling`.
    fn seal(&mut self) {
        let bytes = Bytes::from(std::mem::take(&mut self.filling));
        if let Some(hasher) = self.hasher.as_mut().filter(|_| !bytes.is_empty()) {
            hasher.update(&bytes);
            self.held.push_back(Piece { hasher: Some(hasher.clone()), bytes });
        }
    }

    /// Checks the digest at the end of the transfer.
    fn finish(&mut self) -> Result<(), Failure> {
        self.is_done = true;
        self.seal();
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

    /// Returns the next bytes from the origin, and opens the stream again where it breaks; `None` at the end.
    async fn receive(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Ok(None);
            }
            self.open().await?;
            let Some(open) = &mut self.open else {
                continue;
            };
            match open.pieces.recv().await {
                // These were bytes that the reader has already, and were skipped. A piece without bytes would mean the
                // end to the reader.
                Some(Came::Bytes(bytes)) if bytes.is_empty() => {}
                Some(Came::Bytes(mut bytes)) => {
                    if let Some(end) = self.end {
                        bytes.truncate(usize::try_from(end - self.at).unwrap_or(usize::MAX));
                    }
                    open.brought += bytes.len() as u64;
                    self.brought += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                // The reader took nothing for long, and is back.
                None => self.open = None,
                Some(Came::End) if self.end.is_none() => return Ok(None),
                Some(Came::Broke(failure)) => self.broke(failure).await?,
                Some(Came::End) => {
                    let message = format!("the upstream ended a blob after {} bytes", self.at);
                    self.broke(Failure::new(FailureKind::Unavailable, message)).await?;
                }
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), Failure> {
        // A range to the very end is requested without its end: some storages dislike a last byte.
        let until = self.end.filter(|_| self.end != self.total);
        let transfer = self.origin.open(self.at, until, false).await?;
        self.go_on_with(transfer);
        Ok(())
    }

    /// Goes on with a transfer that was opened for the next byte.
    pub fn go_on_with(&mut self, transfer: Transfer) {
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
    }

    /// Handles that no source opens the stream. If the reader already has a part of the transfer, or its response
    /// header, waits for a source to come back, or for a connection.
    async fn not_opened(&mut self, why: Failure) -> Result<(), Failure> {
        self.strikes += 1;
        let may_pass = matches!(why.kind, FailureKind::Busy | FailureKind::Unavailable | FailureKind::Timeout);
        let is_waited_for = self.brought > 0 || (self.is_promised && may_pass);
        if !is_waited_for || self.strikes > REOPEN_ATTEMPTS {
            return Err(why);
        }
        let broke = self.breaks.broke(0, self.brought, self.total, Duration::ZERO);
        tokio::time::sleep(broke.pause).await;
        Ok(())
    }

    /// Notes that the stream broke, and waits until the next stream may be opened.
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

/// What comes out of a stream.
#[derive(Debug)]
enum Came {
    Bytes(Bytes),
    Broke(Failure),
    End,
}

/// Reads a body a little ahead of its reader. If the reader takes nothing for long, the body is dropped, and with it
/// the connection, which others may need; the channel then closes without an end.
fn pump(mut body: BoxStream<'static, Result<Bytes, Failure>>) -> mpsc::Receiver<Came> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let item = tokio::select! {
                item = body.next() => item,
                () = sender.closed() => return,
            };
            let (piece, is_last) = match item {
                Some(Ok(bytes)) => (Came::Bytes(bytes), false),
                Some(Err(failure)) => (Came::Broke(failure), true),
                None => (Came::End, true),
            };
            let is_taken = tokio::time::timeout(UNTAKEN, sender.send(piece)).await.is_ok_and(|sent| sent.is_ok());
            if is_last || !is_taken {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fill::tests::{Script, Step};
    use crate::oci::Algorithm;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    fn sent(bytes: &[u8]) -> Step {
        Step::Send { start: 0, total: Some(bytes.len() as u64), bytes: bytes.to_vec(), breaks: false }
    }

    fn direct(right: &[u8], script: &Arc<Script>) -> Direct {
        let digest = Digest::of(Algorithm::Sha256, right);
        Direct::new(script.clone(), digest, 0, None, Some(digest.algorithm().hasher()))
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_are_of_one_size_and_each_comes_with_the_hash_of_all_before_its_end() {
        let right = content(5 * PIECE + 7);
        let mut direct = direct(&right, &Script::new([sent(&right)]));
        let mut came = Vec::new();
        loop {
            let piece = direct.next().await.expect("right content");
            if piece.bytes.is_empty() {
                break;
            }
            came.extend_from_slice(&piece.bytes);
            assert!(piece.bytes.len() == PIECE || came.len() == right.len());
            let hash = piece.hasher.expect("a hash").finish();
            assert_eq!(hash, Digest::of(Algorithm::Sha256, &right[..came.len()]));
        }
        assert!(came == right);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_bytes_of_wrong_content_do_not_come() {
        for length in [1, PIECE, 5 * PIECE, 5 * PIECE + 7] {
            let right = content(length);
            let mut wrong = right.clone();
            wrong[0] ^= 1;
            let mut direct = direct(&right, &Script::new([sent(&wrong)]));
            let mut came = 0;
            let failure = loop {
                match direct.next().await {
                    Ok(piece) => came += piece.bytes.len(),
                    Err(failure) => break failure,
                }
            };
            assert_eq!(failure.kind, FailureKind::WrongContent);
            assert!(came as u64 <= (length as u64).saturating_sub(HELD_BACK), "{came} of {length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_promised_the_bytes_waits_for_a_connection_and_nobody_else() {
        let right = content(1000);
        let busy = || Script::new([Step::Refuse(FailureKind::Busy), Step::Refuse(FailureKind::Busy), sent(&right)]);
        assert_eq!(direct(&right, &busy()).next().await.expect_err("told").kind, FailureKind::Busy);
        assert!(direct(&right, &busy()).promised().next().await.expect("it came").bytes == right);
        let gone = Script::new([Step::Refuse(FailureKind::NotFound), sent(&right)]);
        assert_eq!(direct(&right, &gone).promised().next().await.expect_err("told").kind, FailureKind::NotFound);
    }
}
