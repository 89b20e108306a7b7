//! A fill: one object on its way in from upstream, shared by its readers.
//!
//! The bytes go to a file. Every reader watches a [`RangeSet`] of the bytes that are there so far, and reads behind the
//! writer from the page cache. So there is no channel that could run full, and no slow reader holds up the others. The
//! last bytes are held back until the digest matched: no reader gets to the end of wrong content.

mod behind;
mod driver;
mod entry;
mod passing;
pub mod plan;
mod progress;
mod reserved;
mod supervision;
mod transfer;
mod window;

use std::collections::HashMap;
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
use crate::observe::trace::SpanRef;
use crate::oci::Digest;
use crate::store::{MIN_MAPPED, Mapping};
use crate::work::ReadFile;

pub(super) use driver::{Destination, drive};
pub use entry::Registered;
pub(super) use passing::pass;
pub use progress::Progress;
pub use reserved::Reserved;
use window::{Passed, Window};
pub(super) use window::{Seat, Windows};

/// The content that a fill is to bring in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The object with this digest.
    Digest(Digest),
    /// The object with this digest, from a source on which other clients must not depend. The fill has its own `key`:
    /// only clients that know the key join.
    Apart { key: Digest, digest: Digest },
    /// Any content that the origin sends. This key stands for the content until its digest is known.
    Whatever(Digest),
}

impl Wanted {
    /// Returns the key under which the fill is registered and its download is kept.
    pub fn key(&self) -> Digest {
        match self {
            Self::Digest(key) | Self::Apart { key, .. } | Self::Whatever(key) => *key,
        }
    }

    /// Returns the digest that the content must have; `None`: any digest is right.
    fn digest(&self) -> Option<Digest> {
        match self {
            Self::Digest(digest) | Self::Apart { digest, .. } => Some(*digest),
            Self::Whatever(_) => None,
        }
    }

    /// Returns whether content with the digest `found` is right.
    fn is(&self, found: &Digest) -> bool {
        self.digest().is_none_or(|digest| digest == *found)
    }

    /// Returns whether the configuration names the source. If only a client names the source, the fill reserves room as
    /// bytes arrive and not for the size that the source states, the source has to keep a least speed, and the fill
    /// ends when nobody reads it.
    fn is_vouched_for(&self) -> bool {
        matches!(self, Self::Digest(_))
    }

    /// Returns whether the fill may resume an earlier download: only where the key is the digest, so that all bytes
    /// kept under the key are of this object.
    fn may_resume(&self) -> bool {
        matches!(self, Self::Digest(_))
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transfer({:?}, from {} of {:?})", self.source, self.start, self.total)
    }
}

/// One object on its way in.
#[derive(Debug)]
pub struct Fill {
    /// The viewer for whom the fill was begun. Other viewers may join once their own upstream has confirmed the object.
    viewer: Viewer,
    /// The state that readers watch.
    state: watch::Sender<State>,
    /// The bytes that readers wait for, so that these are fetched first. The key counts the waits.
    wants: Mutex<HashMap<u64, Want>>,
    next_want: AtomicU64,
    /// Notified when a reader begins to wait.
    wanted: Notify,
    /// Requests that read the fill, or are about to.
    readers: AtomicUsize,
    /// The size that a source stated last, whether believed or not; 0: no source stated one.
    stated: AtomicU64,
    /// One more than the source that answered last; 0: none has.
    source: AtomicUsize,
    /// The window that readers read from once the object passes.
    window: OnceLock<Arc<Window>>,
    /// When the fill was begun.
    begun: Instant,
    /// When the fill had all of Larder's own places that it needs.
    placed: OnceLock<Instant>,
    behind: behind::Behind,
    /// The span of its transfer, to which those of other requests refer.
    span: OnceLock<SpanRef>,
}

/// A client whose transfer waited this long for a place is not told that the upstream is slow.
const LONG_WAIT: Duration = Duration::from_secs(10);

/// A fill that a request reads, or is about to. The fill counts as read until this is dropped.
#[derive(Debug)]
pub struct FillReader(Arc<Fill>);

impl FillReader {
    fn new(fill: Arc<Fill>) -> Self {
        fill.readers.fetch_add(1, Ordering::Relaxed);
        Self(fill)
    }

    /// Returns the fill, for code that remembers the fill without reading it.
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

/// The state of a fill, as readers see it.
#[derive(Clone, Debug)]
struct State {
    phase: Phase,
    /// Counts the files begun: bytes of one attempt are never mixed with bytes of another.
    attempt: u32,
    /// The file that the bytes go to; `None` before the first copy begins.
    file: Option<ReadFile>,
    /// The file as pages. Bytes that are in the file stay as they are, whatever becomes of the copy, so that pages of
    /// it may be on their way to clients.
    mapping: Option<Arc<Mapping>>,
    /// The size of the object, once it is known.
    size: Option<u64>,
    /// The bytes that are in the file.
    present: RangeSet,
    /// Whether the fill continues an earlier download.
    is_resumed: bool,
    /// The bytes that have passed, once the object passes.
    passed: Passed,
}

/// The phase of a fill. The transitions are:
///
/// - `Opening` to `Growing`: a source answered.
/// - `Growing` to `Opening`: the copy was wrong, or answers did not agree on the size. The next copy begins, in a new
///   file.
/// - `Growing` to `Verified`: all bytes are in the file and the digest matched.
/// - `Opening` or `Growing` to `Passing`: the object cannot be stored, and a window for it was opened.
/// - `Passing`, not verified to verified: all bytes passed and the digest matched.
/// - `Opening`, `Growing` or `Passing`, not verified, to `Failed`: the object could not be brought in, nobody reads it
///   any more, or the task of the fill ended early.
///
/// `Verified`, verified `Passing` and `Failed` are final. A `Verified` object is being stored; if that fails, it was
/// served all the same.
#[derive(Clone, Debug)]
enum Phase {
    /// No source has answered for this copy yet.
    Opening,
    Growing,
    /// All bytes are in the file and the digest matched.
    Verified,
    /// The object cannot be stored. After the bytes that are in the file, it passes through a window. `is_verified`:
    /// all of it passed, and the digest matched.
    Passing {
        is_verified: bool,
    },
    /// The fill ended without the whole object; readers get this failure.
    Failed(Failure),
}

/// What a reader was told, has read so far, and may read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// The copy from which the reader got bytes. The reader fails when that copy turned out wrong.
    pub attempt: Option<u32>,
    /// Where the part that the client asked for ends; `None`: at the end of the object.
    pub end: Option<u64>,
    /// The size that the reader was told. The reader fails when the right copy has another size.
    pub size: Option<u64>,
    /// Whether the last bytes may be read before the whole is verified: for a part that a client asked for by both its
    /// ends, and so cannot take for the whole.
    pub may_read_unverified: bool,
}

/// A registered want; dropping it removes the want.
struct Waiting<'a> {
    fill: &'a Fill,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.fill.wants.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Where a reader finds its next bytes.
#[derive(Clone, Debug)]
pub enum Readable {
    /// In the file.
    File {
        file: ReadFile,
        /// Bytes before this offset may be read. At the end of the object, this is the offset asked for.
        until: u64,
        /// The copy that the file holds.
        attempt: u32,
        /// The file as pages, if its size was known at the beginning.
        mapping: Option<Arc<Mapping>>,
    },
    /// In the window, unless they just left it.
    InWindow,
    /// Only in a transfer of the reader's own.
    Elsewhere,
}

impl Fill {
    fn new(viewer: Viewer) -> Self {
        let state = State {
            phase: Phase::Opening,
            attempt: 0,
            file: None,
            mapping: None,
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
            source: AtomicUsize::new(0),
            window: OnceLock::new(),
            begun: Instant::now(),
            placed: OnceLock::new(),
            behind: behind::Behind::default(),
            span: OnceLock::new(),
        }
    }

    /// Notes the span of the fill's transfer.
    pub fn has_span(&self, span: SpanRef) {
        self.span.get_or_init(|| span);
    }

    /// Returns the span of the fill's transfer, if it has begun.
    pub fn span(&self) -> Option<&SpanRef> {
        self.span.get()
    }

    /// Notes that the fill has all of Larder's own places that it needs.
    pub fn has_place(&self) {
        self.placed.get_or_init(Instant::now);
    }

    /// Returns whether the fill waited long for these places.
    pub fn waited_long(&self) -> bool {
        self.placed.get().copied().unwrap_or_else(Instant::now) - self.begun >= LONG_WAIT
    }

    /// Returns the viewer for whom the fill was begun.
    pub fn viewer(&self) -> &Viewer {
        &self.viewer
    }

    /// Returns whether all bytes are in the file and verified.
    pub fn is_verified(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Verified)
    }

    /// Returns whether the fill began with bytes of an earlier transfer, which may have been for another client.
    pub fn is_resumed(&self) -> bool {
        self.state.borrow().is_resumed
    }

    /// Returns the size of the object as soon as a source has answered; `None` if the source does not state it and the
    /// end is not reached. Size 0 is returned only once it is verified: a client that is told 0 has the whole object.
    pub async fn size(&self) -> Result<Option<u64>, Failure> {
        let mut state = self.state.subscribe();
        let may_be_said = |state: &State| !matches!(state.phase, Phase::Opening) && !state.is_maybe_empty();
        let state = state.wait_for(may_be_said).await.map_err(|_| gone())?;
        match &state.phase {
            Phase::Failed(failure) => Err(failure.clone()),
            _ => Ok(state.size),
        }
    }

    /// Waits for the size, for requests that cannot be answered without it. Fails if the object passes and no source
    /// stated its size: then readers have to take the bytes before the end is known.
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

    /// Returns the size, if it is known already.
    pub fn size_so_far(&self) -> Option<u64> {
        let state = self.state.borrow();
        let is_coming = !matches!(state.phase, Phase::Opening | Phase::Failed(_)) && !state.is_maybe_empty();
        state.size.filter(|_| is_coming)
    }

    /// Waits until the object is whole and verified, and returns its size; `None` where it only passes.
    pub async fn whole(&self) -> Result<Option<u64>, Failure> {
        let mut state = self.state.subscribe();
        let has_ended =
            |state: &State| matches!(state.phase, Phase::Verified | Phase::Failed(_) | Phase::Passing { .. });
        let state = state.wait_for(has_ended).await.map_err(|_| gone())?;
        match &state.phase {
            Phase::Failed(failure) => Err(failure.clone()),
            Phase::Verified => Ok(state.size),
            _ => Ok(None),
        }
    }

    /// Waits until bytes at `at` may be read, or the end is reached.
    pub async fn readable(&self, at: u64, reader: Reading) -> Result<Readable, Failure> {
        let mut state = self.state.subscribe();
        if let Some(answer) = state.borrow_and_update().answer(at, reader) {
            return answer;
        }
        // A reader that asked for all the rest may well stop earlier, so its end is not noted.
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

    /// Notes the size that a source states. Whether there is room for it is not known yet.
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

    // The functions below are for the task that drives the fill.

    /// Begins a new copy. Readers that have bytes of an earlier copy get an error.
    fn begin_copy(&self, file: ReadFile, present: RangeSet) {
        self.update(|state| {
            state.attempt += 1;
            state.phase = Phase::Opening;
            state.file = Some(file);
            state.mapping = None;
            state.size = None;
            state.is_resumed |= !present.is_empty();
            state.present = present;
        });
    }

    /// Notes that a source has answered; `total`: the size that it states.
    fn opened(&self, total: Option<u64>) {
        let mapping = self.to_map(total);
        self.update(|state| {
            state.phase = Phase::Growing;
            state.size = state.size.or(total);
            state.mapping = state.mapping.take().or(mapping);
        });
    }

    /// Maps the file of this copy, unless it is mapped, or too small for that to pay.
    fn to_map(&self, total: Option<u64>) -> Option<Arc<Mapping>> {
        let file = {
            let state = self.state.borrow();
            state.file.clone().filter(|_| state.mapping.is_none() && state.size.is_none())
        };
        let (file, total) = file.zip(total.filter(|&total| total >= MIN_MAPPED))?;
        // A filesystem that cannot map it is read from.
        Mapping::new(file.file().clone(), total).ok()
    }

    /// Returns the file as pages, if it is mapped.
    pub fn mapping(&self) -> Option<Arc<Mapping>> {
        self.state.borrow().mapping.clone()
    }

    /// Notes that `[start, end)` is in the file.
    fn arrived(&self, start: u64, end: u64) {
        self.update(|state| state.present.insert(start, end));
    }

    fn known_size(&self) -> Option<u64> {
        self.state.borrow().size
    }

    fn present(&self) -> RangeSet {
        self.state.borrow().present.clone()
    }

    /// Returns the size. Where no source stated it, it is the number of bytes that have arrived.
    fn settle_size(&self) -> u64 {
        self.update(|state| state.size = state.size.or(Some(state.present.run_end(0))));
        self.known_size().unwrap_or_default()
    }

    /// Waits until there are bytes at `at`, and returns up to where they are there without a gap; `None` at the end of
    /// the object.
    async fn hashable(&self, at: u64) -> Option<u64> {
        let mut state = self.state.subscribe();
        let has_more = |state: &State| state.present.run_end(at) > at || state.size.is_some_and(|size| at >= size);
        let state = state.wait_for(has_more).await.ok()?;
        Some(state.present.run_end(at)).filter(|&until| until > at)
    }

    /// Returns whether a new reader may join.
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

/// Returns the failure of a reader that finds the sender of the state gone. Readers hold the sender through the fill,
/// so this cannot happen; it is an error all the same.
fn gone() -> Failure {
    Failure::new(FailureKind::Storage, "the transfer ended unexpectedly")
}

impl State {
    /// Returns whether a source states size 0 and that is not verified yet.
    fn is_maybe_empty(&self) -> bool {
        self.size == Some(0) && matches!(self.phase, Phase::Growing | Phase::Passing { is_verified: false })
    }

    /// Returns what a reader at `at` gets now; `None`: the reader has to wait.
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
        let found = || Readable::File { file, until, attempt: self.attempt, mapping: self.mapping.clone() };
        (until > at || is_done).then(|| Ok(found()))
    }

    /// Returns up to where a reader at `at` may read the file before the whole is verified.
    fn unverified_until(&self, at: u64, reader: Reading) -> u64 {
        let run_end = self.present.run_end(at);
        let held_back = if reader.may_read_unverified { 0 } else { HELD_BACK };
        // Where the size is unknown, any byte may be one of the last.
        let end = self.size.unwrap_or(run_end).min(reader.size.unwrap_or(u64::MAX));
        run_end.min(end.saturating_sub(held_back))
    }
}

/// The fills under way, by key. An entry is removed when its fill is over.
///
/// Lock order: this map, then a fill's `state`. The other locks of a fill (`wants`, `left`, the window) are each taken
/// alone.
#[derive(Clone, Debug, Default)]
pub struct Fills(Arc<Mutex<HashMap<Digest, Weak<Fill>>>>);

/// A fill to read from.
pub enum Joined {
    /// The fill was under way already.
    Running(FillReader),
    /// The fill is new: the caller has to drive it.
    New(FillReader, Registered),
}

impl Fills {
    /// Returns the fill of `digest` that is under way.
    pub fn running(&self, digest: &Digest) -> Option<FillReader> {
        let fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fills.get(digest).and_then(Weak::upgrade).filter(|fill| fill.is_joinable()).map(FillReader::new)
    }

    /// Joins the fill of `digest`, or registers a new one for the viewer.
    pub fn join(&self, digest: &Digest, viewer: &Viewer) -> Joined {
        let mut fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = fills.get(digest).and_then(Weak::upgrade).filter(|fill| fill.is_joinable());
        if let Some(fill) = running {
            fill.note_asked_for();
            return Joined::Running(FillReader::new(fill));
        }
        let fill = Arc::new(Fill::new(viewer.clone()));
        fills.insert(*digest, Arc::downgrade(&fill));
        let left = Mutex::default();
        let registered = Registered { fills: self.clone(), digest: *digest, fill: fill.clone(), left };
        Joined::New(FillReader::new(fill), registered)
    }

    /// Returns whether any fill has all of its object, verified, and only has to store it.
    pub fn are_storing(&self) -> bool {
        let fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = fills.values().filter_map(Weak::upgrade);
        running.any(|fill| matches!(fill.state.borrow().phase, Phase::Verified))
    }

    /// Returns how many fills are under way.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod endless_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub mod tests;
