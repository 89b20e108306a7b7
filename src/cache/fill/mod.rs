//! A fill: one object on its way in from upstream, and those who read it meanwhile.
//!
//! The bytes go to a file; what is there so far is a [`RangeSet`] that every reader watches. Readers
//! read behind the writer from the page cache, so there is no channel to run full and no slowest
//! reader. The last piece is held back until the digest matched: no reader ever gets to the end of
//! content that is wrong.

mod driver;
mod passing;
pub mod plan;
mod reserved;
mod supervision;
mod transfer;
mod window;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::plan::Want;
pub use super::origin::{HELD_BACK, Origin, Source, Transfer};
use super::ranges::RangeSet;
use crate::failure::{Failure, FailureKind};
use crate::index::Viewer;
use crate::oci::Digest;
use crate::work::ReadFile;

pub(super) use driver::{Destination, drive};
pub(super) use passing::pass;
pub use reserved::Reserved;
use window::{Passed, Window};
pub(super) use window::{Seat, Windows};

/// What a fill is to bring in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The object of this digest.
    Digest(Digest),
    /// The same, from somebody whom others are not to depend on: who knows the key joins, nobody else.
    Apart { key: Digest, digest: Digest },
    /// Whatever its origin has; until its digest is known, this stands for it.
    Whatever(Digest),
}

impl Wanted {
    pub fn key(&self) -> Digest {
        match self {
            Self::Digest(key) | Self::Apart { key, .. } | Self::Whatever(key) => *key,
        }
    }

    /// The digest that it is to have; `None`: any.
    fn digest(&self) -> Option<Digest> {
        match self {
            Self::Digest(digest) | Self::Apart { digest, .. } => Some(*digest),
            Self::Whatever(_) => None,
        }
    }

    fn is(&self, found: &Digest) -> bool {
        self.digest().is_none_or(|digest| digest == *found)
    }

    /// Whether the configuration names the source. A source that only a client names gets room as bytes come and not
    /// for the size that it states, has to keep a least speed, and its transfer ends when nobody reads it.
    fn is_vouched_for(&self) -> bool {
        matches!(self, Self::Digest(_))
    }

    /// Whether what an earlier transfer left may be gone on with: all that there is under its name is of it.
    fn may_resume(&self) -> bool {
        matches!(self, Self::Digest(_))
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transfer({:?}, from {} of {:?})", self.source, self.start, self.total)
    }
}

/// One object being brought in.
#[derive(Debug)]
pub struct Fill {
    /// Whom it was begun for; others may join once their own upstream confirmed the object.
    viewer: Viewer,
    state: watch::Sender<State>,
    /// What readers wait for, so that it can be fetched first.
    wants: Mutex<HashMap<u64, Want>>,
    next_want: AtomicU64,
    wanted: Notify,
    /// Requests that read it, or are about to.
    readers: AtomicUsize,
    /// The size that a source stated last, believed or not; 0: none did.
    stated: AtomicU64,
    /// What it is read from once it passes.
    window: OnceLock<Arc<Window>>,
    /// When it was begun, and when it got a place among the transfers.
    begun: Instant,
    placed: OnceLock<Instant>,
}

/// A client whose transfer waited this long for a place is not told that the upstream is slow.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// A fill that a request reads, or is about to; it counts as read until this is dropped.
#[derive(Debug)]
pub struct FillReader(Arc<Fill>);

impl FillReader {
    fn new(fill: Arc<Fill>) -> Self {
        fill.readers.fetch_add(1, Ordering::Relaxed);
        Self(fill)
    }

    /// The fill, for who remembers it without reading it.
    pub fn downgrade(&self) -> Weak<Fill> {
        Arc::downgrade(&self.0)
    }
}

impl Clone for FillReader {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl std::ops::Deref for FillReader {
    type Target = Fill;

    fn deref(&self) -> &Fill {
        &self.0
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
struct State {
    phase: Phase,
    /// Counts the files begun: bytes of one attempt are never mixed with those of another.
    attempt: u32,
    file: Option<ReadFile>,
    size: Option<u64>,
    present: RangeSet,
    /// Whether it goes on from what an earlier transfer left.
    is_resumed: bool,
    /// How far it is once it passes.
    passed: Passed,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Nothing is known yet.
    Opening,
    Growing,
    /// All of it is there and the digest matched.
    Verified,
    /// It cannot be stored. Behind what is in the file it passes through a window; `is_verified`: all of it did, and the
    /// digest matched.
    Passing {
        is_verified: bool,
    },
    Failed(Failure),
}

/// Who reads, and how far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// The copy that bytes were read of; the reader fails when that copy turned out wrong.
    pub attempt: Option<u32>,
    pub end: Option<u64>,
    /// What the reader was told that the whole has; it fails when the right copy has another size.
    pub size: Option<u64>,
    /// Whether the last bytes may be read before the whole is verified: for a part that a client asked
    /// for by both its ends, which cannot be taken for the whole.
    pub may_read_unverified: bool,
}

/// A registered want; gone when dropped.
struct Waiting<'a> {
    fill: &'a Fill,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.fill.wants.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// What a reader may have next.
#[derive(Clone, Debug)]
pub enum Readable {
    File {
        file: ReadFile,
        /// Bytes up to here may be read; equal to the offset asked for at the end of the object.
        until: u64,
        attempt: u32,
    },
    /// It is in the window, unless it just left that.
    InWindow,
    /// It is to be had by a transfer of the reader's own alone.
    Elsewhere,
}

impl Fill {
    fn new(viewer: Viewer) -> Self {
        let state = State {
            phase: Phase::Opening,
            attempt: 0,
            file: None,
            size: None,
            present: RangeSet::default(),
            is_resumed: false,
            passed: Passed::default(),
        };
        Self {
            viewer,
            state: watch::Sender::new(state),
            wants: Mutex::default(),
            next_want: AtomicU64::new(0),
            wanted: Notify::new(),
            readers: AtomicUsize::new(0),
            stated: AtomicU64::new(0),
            window: OnceLock::new(),
            begun: Instant::now(),
            placed: OnceLock::new(),
        }
    }

    /// It has all places of our own that it needs.
    pub fn has_place(&self) {
        self.placed.get_or_init(Instant::now);
    }

    /// Whether it waited long for these.
    pub fn waited_long(&self) -> bool {
        self.placed.get().copied().unwrap_or_else(Instant::now) - self.begun >= LONG_WAIT
    }

    /// Whom it was begun for.
    pub fn viewer(&self) -> &Viewer {
        &self.viewer
    }

    /// Whether all of it is there and verified.
    pub fn is_verified(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Verified)
    }

    /// Whether it began with what an earlier transfer left, which may have been somebody else's.
    pub fn is_resumed(&self) -> bool {
        self.state.borrow().is_resumed
    }

    /// The size of the object as soon as that is known; `None` when the upstream does not say and the
    /// end is not reached. That it is empty is said only when it is verified: who is told that has all of it.
    pub async fn size(&self) -> Result<Option<u64>, Failure> {
        let mut state = self.state.subscribe();
        let may_be_said = |state: &State| !matches!(state.phase, Phase::Opening) && !state.is_maybe_empty();
        let state = state.wait_for(may_be_said).await.map_err(|_| gone())?;
        match &state.phase {
            Phase::Failed(failure) => Err(failure.clone()),
            _ => Ok(state.size),
        }
    }

    /// The size once all is there, for requests that cannot be answered without it. Of what passes, readers have to take
    /// the bytes before its end is known.
    pub async fn final_size(&self) -> Result<u64, Failure> {
        let mut state = self.state.subscribe();
        let has_size = |state: &State| state.size.is_some() && !state.is_maybe_empty();
        let passes = |state: &State| state.size.is_none() && matches!(state.phase, Phase::Passing { .. });
        let is_known = |state: &State| has_size(state) || passes(state) || matches!(state.phase, Phase::Failed(_));
        let state = state.wait_for(is_known).await.map_err(|_| gone())?;
        match (&state.phase, state.size) {
            (Phase::Failed(failure), _) => Err(failure.clone()),
            (_, Some(size)) => Ok(size),
            (Phase::Passing { .. }, None) => Err(Failure::new(FailureKind::NoRoom, "its length is not known")),
            (_, None) => Err(gone()),
        }
    }

    /// The size, if it is known already.
    pub fn size_so_far(&self) -> Option<u64> {
        let state = self.state.borrow();
        let is_coming = !matches!(state.phase, Phase::Opening | Phase::Failed(_)) && !state.is_maybe_empty();
        state.size.filter(|_| is_coming)
    }

    /// Waits until bytes at `at` may be read, or the end is reached.
    pub async fn readable(&self, at: u64, reader: Reading) -> Result<Readable, Failure> {
        let mut state = self.state.subscribe();
        if let Some(answer) = state.borrow_and_update().answer(at, reader) {
            return answer;
        }
        // Who asked for all that is left may well stop before.
        let _waiting = self.want(Want { at, end: reader.end.filter(|_| reader.may_read_unverified) });
        let state = state.wait_for(|state| state.answer(at, reader).is_some()).await;
        let state = state.map_err(|_| gone())?;
        state.answer(at, reader).unwrap_or_else(|| Err(gone()))
    }

    fn want(&self, want: Want) -> Waiting<'_> {
        let id = self.next_want.fetch_add(1, Ordering::Relaxed);
        self.wants.lock().unwrap_or_else(PoisonError::into_inner).insert(id, want);
        self.wanted.notify_waiters();
        Waiting { fill: self, id }
    }

    /// A source states a size; whether there is room for it is not known yet.
    fn states(&self, size: u64) {
        self.stated.store(size, Ordering::Relaxed);
    }

    fn is_read(&self) -> bool {
        self.readers() > 0
    }

    fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    fn wants(&self) -> Vec<Want> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    // The functions below are for who drives the fill.

    /// A new copy is brought in; readers of another one are told.
    fn begin_copy(&self, file: ReadFile, present: RangeSet) {
        self.update(|state| {
            state.attempt += 1;
            state.phase = Phase::Opening;
            state.file = Some(file);
            state.size = None;
            state.is_resumed |= !present.is_empty();
            state.present = present;
        });
    }

    /// An upstream has answered.
    fn opened(&self, total: Option<u64>) {
        self.update(|state| {
            state.phase = Phase::Growing;
            state.size = state.size.or(total);
        });
    }

    /// `[start, end)` is in the file.
    fn arrived(&self, start: u64, end: u64) {
        self.update(|state| state.present.insert(start, end));
    }

    fn known_size(&self) -> Option<u64> {
        self.state.borrow().size
    }

    fn present(&self) -> RangeSet {
        self.state.borrow().present.clone()
    }

    /// The size, which is what has arrived where the upstream did not say.
    fn settle_size(&self) -> u64 {
        self.update(|state| state.size = state.size.or(Some(state.present.run_end(0))));
        self.known_size().unwrap_or_default()
    }

    /// How far the object is there in order from `at` on, as soon as it is; `None` at its end.
    async fn hashable(&self, at: u64) -> Option<u64> {
        let mut state = self.state.subscribe();
        let has_more = |state: &State| state.present.run_end(at) > at || state.size.is_some_and(|size| at >= size);
        let state = state.wait_for(has_more).await.ok()?;
        Some(state.present.run_end(at)).filter(|&until| until > at)
    }

    /// Whether a newcomer may join.
    fn is_joinable(&self) -> bool {
        let state = self.state.borrow();
        match state.phase {
            Phase::Failed(_) => false,
            Phase::Passing { .. } => state.passed.is_all_there(),
            Phase::Opening | Phase::Growing | Phase::Verified => true,
        }
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }
}

/// Readers hold the sender through the fill, so this cannot be seen; it is an error all the same.
fn gone() -> Failure {
    Failure::new(FailureKind::Storage, "the transfer ended unexpectedly")
}

impl State {
    /// Whether an upstream says that there is nothing, and that is not verified yet.
    fn is_maybe_empty(&self) -> bool {
        self.size == Some(0) && matches!(self.phase, Phase::Growing | Phase::Passing { is_verified: false })
    }

    /// What a reader at `at` is told now; `None`: it has to wait.
    fn answer(&self, at: u64, reader: Reading) -> Option<Result<Readable, Failure>> {
        if let Phase::Failed(failure) = &self.phase {
            return Some(Err(failure.clone()));
        }
        let is_other_copy = reader.attempt.is_some_and(|attempt| attempt != self.attempt);
        let is_other_size = reader.size.zip(self.size).is_some_and(|(told, size)| told != size);
        if is_other_copy || is_other_size {
            let message = "the upstream sent wrong content; ask again for the copy of another upstream";
            return Some(Err(Failure::new(FailureKind::WrongContent, message)));
        }
        match self.phase {
            Phase::Opening => return None,
            Phase::Passing { is_verified } => return self.passing(at, reader, is_verified).map(Ok),
            _ => {}
        }
        let file = self.file.clone()?;
        let until = match self.phase {
            Phase::Verified => self.size.unwrap_or_default().max(at),
            _ => self.unverified_until(at, reader),
        };
        let is_done = matches!(self.phase, Phase::Verified);
        (until > at || is_done).then(|| Ok(Readable::File { file, until, attempt: self.attempt }))
    }

    /// How far a reader at `at` may read of what is in the file before all is verified.
    fn unverified_until(&self, at: u64, reader: Reading) -> u64 {
        let run_end = self.present.run_end(at);
        let held_back = if reader.may_read_unverified { 0 } else { HELD_BACK };
        // Where the size is unknown, any byte may be one of the last.
        let end = self.size.unwrap_or(run_end).min(reader.size.unwrap_or(u64::MAX));
        run_end.min(end.saturating_sub(held_back))
    }
}

/// The fills under way, by digest. An entry leaves with its fill.
#[derive(Clone, Debug, Default)]
pub struct Fills(Arc<Mutex<HashMap<Digest, Weak<Fill>>>>);

/// A fill to read from.
pub enum Joined {
    /// It was under way.
    Running(FillReader),
    /// It is to be driven by the caller.
    New(FillReader, Registered),
}

impl Fills {
    /// The fill of `digest` that is under way.
    pub fn running(&self, digest: &Digest) -> Option<FillReader> {
        let fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fills.get(digest).and_then(Weak::upgrade).filter(|fill| fill.is_joinable()).map(FillReader::new)
    }

    /// Joins the fill of `digest`, or registers a new one.
    pub fn join(&self, digest: &Digest, viewer: &Viewer) -> Joined {
        let mut fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = fills.get(digest).and_then(Weak::upgrade).filter(|fill| fill.is_joinable());
        if let Some(fill) = running {
            return Joined::Running(FillReader::new(fill));
        }
        let fill = Arc::new(Fill::new(viewer.clone()));
        fills.insert(*digest, Arc::downgrade(&fill));
        let left = Mutex::default();
        let registered = Registered { fills: self.clone(), digest: *digest, fill: fill.clone(), left };
        Joined::New(FillReader::new(fill), registered)
    }

    /// Whether a fill has all of its object, verified, and only has to store it.
    pub fn are_storing(&self) -> bool {
        let fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = fills.values().filter_map(Weak::upgrade);
        running.any(|fill| matches!(fill.state.borrow().phase, Phase::Verified))
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A fill's place in the map. When it is dropped the fill is over: it leaves the map and, if it did
/// not come to an end (its task panicked), it has failed.
#[derive(Debug)]
pub struct Registered {
    fills: Fills,
    digest: Digest,
    fill: Arc<Fill>,
    /// A transfer of what could not be stored, of which nothing was read, and where it begins.
    left: Mutex<Option<(u64, Transfer)>>,
}

impl Registered {
    /// Ends the fill before it was driven; who joined meanwhile is told.
    pub fn fail(self, failure: Failure) {
        self.fill.update(|state| state.phase = Phase::Failed(failure));
    }

    /// The size that a source of the object stated; 0: none did.
    pub fn stated_size(&self) -> u64 {
        self.fill.stated.load(Ordering::Relaxed)
    }

    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.fill.update(|state| {
            if matches!(state.phase, Phase::Opening | Phase::Growing | Phase::Passing { is_verified: false }) {
                state.phase = Phase::Failed(Failure::new(FailureKind::Storage, "the transfer broke off unexpectedly"));
            }
        });
        let mut fills = self.fills.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(entry) = fills.entry(self.digest) {
            // A failed fill may already have a successor under the same digest.
            if std::ptr::eq(entry.get().as_ptr(), Arc::as_ptr(&self.fill)) {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod endless_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub mod tests;
