//! Drives a fill from the first byte to the published object.
//!
//! Locks: `sources` of a copy and `left` of a registered fill are each taken alone.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::plan::{self, Claim, View};
use super::supervision::Supervision;
use super::transfer::{self, End, Sink, Span};
use super::{Fill, Origin, Phase, Registered, Reserved, Source, Transfer, Wanted};
use crate::cache::breaks::Breaks;
use crate::cache::ranges::RangeSet;
use crate::failure::{Failure, FailureKind};
use crate::oci::{Algorithm, Digest};
use crate::places::Places;
use crate::spool::{Partial, Spool};
use crate::store::Store;
use crate::upkeep::room::{Reservation, Room};
use crate::work::{Hashing, ReadFile};

/// Most attempts in a row to open again a transfer that had begun, when no source answers; then the fill fails.
const REOPEN_ATTEMPTS: u32 = 6;
/// The wait before the first of these attempts. Each further wait is twice as long.
const REOPEN_DELAY: Duration = Duration::from_millis(100);
/// Most copies that are fetched before the fill fails: bounds the cost of upstreams that send wrong content.
const MAX_COPIES: usize = 16;
/// How often the speed of a copy is measured. If the rest would take longer than [`WORTH_IT`] over one connection,
/// further connections are opened; the fourth measurement after that decides whether they help.
const MEASURE: Duration = Duration::from_millis(250);
/// The rest has to take longer than this to be worth further connections.
const WORTH_IT: Duration = Duration::from_secs(1);
/// Size in bytes below which an object comes over one connection.
const MIN_PARALLEL: u64 = 16 << 20;

/// The result of a fill whose content was right.
#[derive(Debug)]
pub struct Outcome {
    pub digest: Digest,
    pub size: u64,
    /// Whether the object is in the store. Readers were served either way.
    pub is_stored: bool,
    /// Whether the store did not have the object before.
    pub is_new: bool,
    /// The room of the object, to be held until the object is counted.
    pub _reserved: Vec<Reservation>,
}

/// Where an object goes to.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    pub spool: &'a Spool,
    pub store: &'a Arc<dyn Store>,
    pub room: &'a Arc<dyn Room>,
    /// The places that all transfers share.
    pub places: &'a Places,
}

/// Brings in an object: fetches one copy after the other until one has the right digest, tells the readers, and
/// publishes the file. Where the object cannot be stored, the readers are not told of the failure: the object may still
/// pass.
pub async fn drive(
    registered: &Registered,
    wanted: Wanted,
    origin: &Arc<dyn Origin>,
    into: Destination<'_>,
) -> Result<Outcome, Failure> {
    let result = bring_in(registered, wanted, origin, into).await;
    if let Err(failure) = &result
        && !failure.kind.is_of_the_store()
    {
        registered.fill().update(|state| state.phase = Phase::Failed(failure.clone()));
    }
    result
}

async fn bring_in(
    registered: &Registered,
    wanted: Wanted,
    origin: &Arc<dyn Origin>,
    into: Destination<'_>,
) -> Result<Outcome, Failure> {
    let digest = wanted.key();
    let mut is_alone = false;
    for _ in 0..MAX_COPIES {
        let mut copy = Copy::open(registered, wanted, origin, into).await?;
        // A single stream has bytes of one source only, unless it breaks.
        copy.serves_ranges = !is_alone;
        match copy.fetch().await {
            Ok(Fetched::Whole { size, found }) if wanted.is(&found) => {
                origin.verified();
                registered.fill().update(|state| {
                    state.phase = Phase::Verified;
                    state.size = Some(size);
                });
                return Ok(publish(copy, found, size, &**into.store).await);
            }
            Ok(_) => {
                let sources = lock(&copy.sources).clone();
                tracing::warn!(%digest, sources = sources.len(), "wrong content came from upstream; it was dropped");
                // With bytes of several sources or of an earlier download, it is not known whose bytes are wrong: the
                // next copy is fetched over one connection. If that copy has bytes of several sources again, the source
                // asked first is rejected: the others only stood in for it.
                match sources.first() {
                    Some(first) if is_alone || (sources.len() == 1 && !copy.is_resumed) => origin.reject(*first),
                    _ => is_alone = true,
                }
                copy.partial.discard().await.map_err(storage)?;
            }
            Err(failure) => {
                *lock(&registered.left) = copy.left.take();
                // The bytes that arrived stay for the next fill to resume, unless they cannot be written.
                let is_worth_it = wanted.may_resume() && !copy.fill.present().is_empty();
                if failure.kind.is_of_the_store() || !is_worth_it {
                    let discarded = copy.partial.discard().await;
                    discarded.unwrap_or_else(|error| tracing::warn!(%digest, %error, "cannot remove a download"));
                }
                return Err(failure);
            }
        }
    }
    Err(Failure::new(FailureKind::WrongContent, "no upstream sends the right content"))
}

/// Moves the file of a verified copy to the complete objects.
async fn publish(copy: Copy<'_>, digest: Digest, size: u64, store: &dyn Store) -> Outcome {
    let published = match copy.reserved.cover(size).await {
        Ok(()) => store.publish(copy.partial, &digest, size).await.map_err(storage),
        Err(failure) => {
            let discarded = copy.partial.discard().await;
            Err(discarded.map_or_else(storage, |()| failure))
        }
    };
    if let Err(failure) = &published {
        tracing::error!(%digest, %failure, "the object could not be stored; it was served uncached");
    }
    Outcome {
        digest,
        size,
        is_stored: published.is_ok(),
        is_new: published.unwrap_or(false),
        _reserved: copy.reserved.take(),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the fetch of a copy ended: with all bytes, whose digest is `found`, or with a contradiction.
enum Fetched {
    Whole {
        size: u64,
        found: Digest,
    },
    /// The answers do not agree on the size.
    Contradiction,
}

/// One copy of the object on its way in.
struct Copy<'a> {
    fill: Arc<Fill>,
    /// The digest of the object, or the key that stands for it.
    digest: Digest,
    algorithm: Algorithm,
    origin: &'a Arc<dyn Origin>,
    reserved: Reserved,
    partial: Partial,
    is_resumed: bool,
    size: Option<u64>,
    /// The sources whose bytes the copy may hold.
    sources: Arc<Mutex<BTreeSet<Source>>>,
    /// Most transfers in order at once.
    connections: usize,
    /// Whether ranges may be fetched beside a running transfer.
    serves_ranges: bool,
    /// Whether a range was fetched on the side.
    has_sides: bool,
    /// Attempts in a row to open a transfer that no source answered.
    failed_opens: u32,
    breaks: Breaks,
    /// No transfer is begun before this time.
    pauses_until: Option<Instant>,
    running: Vec<Arc<Span>>,
    speed: Speed,
    is_vouched_for: bool,
    supervision: Supervision<'a>,
    /// A transfer of an object that cannot be stored, and the offset at which it begins.
    left: Option<(u64, Transfer)>,
}

/// A transfer that ended: its span, the source that answered (`None`: no source did), and how it ended.
type Finished = (Arc<Span>, Option<Source>, End);

impl<'a> Copy<'a> {
    /// Opens the download, with the bytes that an earlier fill left in it, and tells the readers of the new copy.
    async fn open(
        registered: &Registered,
        wanted: Wanted,
        origin: &'a Arc<dyn Origin>,
        into: Destination<'a>,
    ) -> Result<Self, Failure> {
        let digest = wanted.key();
        let opened = into.spool.open(&digest, wanted.may_resume()).await;
        let (partial, resumed) = opened.map_err(storage)?;
        let mut present = RangeSet::default();
        resumed.ranges.iter().for_each(|&(start, end)| present.insert(start, end));
        if resumed.size.is_some_and(|size| present.covers(0, size)) {
            // The upstream has to show that it has the object, so the last byte is fetched again.
            present.remove_last();
        }
        let reserved = Reserved::new(into.room.clone());
        if let Some(size) = resumed.size.filter(|_| !present.is_empty()) {
            reserved.cover(size).await?;
        }
        registered.fill().begin_copy(partial.reader(), present.clone());
        Ok(Self {
            fill: registered.fill().clone(),
            digest,
            algorithm: wanted.digest().map_or(Algorithm::Sha256, |digest| digest.algorithm()),
            origin,
            reserved,
            partial,
            is_resumed: !present.is_empty(),
            size: resumed.size.filter(|_| !present.is_empty()),
            sources: Arc::default(),
            connections: 1,
            serves_ranges: true,
            has_sides: false,
            failed_opens: 0,
            breaks: Breaks::default(),
            pauses_until: None,
            running: Vec::new(),
            speed: Speed::default(),
            is_vouched_for: wanted.is_vouched_for(),
            supervision: Supervision::new(into.places, wanted.is_vouched_for()),
            left: None,
        })
    }

    /// Fetches the missing bytes, over as many connections as help, and hashes them as they arrive.
    async fn fetch(&mut self) -> Result<Fetched, Failure> {
        let hashing = AbortOnDrop(tokio::spawn(hash(self.fill.clone(), self.partial.reader(), self.algorithm)));
        let mut transfers: FuturesUnordered<BoxFuture<'static, Finished>> = FuturesUnordered::new();
        let fill = self.fill.clone();
        let mut measuring = tokio::time::interval(MEASURE);
        loop {
            // Registered here, so that no change before the wait below is missed.
            let wanted = fill.wanted.notified();
            tokio::pin!(wanted);
            wanted.as_mut().enable();

            self.pauses_until = self.pauses_until.filter(|until| Instant::now() < *until);
            if self.pauses_until.is_none() {
                while let Some(transfer) = self.start_next() {
                    transfers.push(transfer);
                }
                if transfers.is_empty() {
                    break;
                }
            }
            let pause_ends = tokio::time::sleep_until(self.pauses_until.unwrap_or_else(Instant::now));
            tokio::select! {
                () = pause_ends, if self.pauses_until.is_some() => {}
                finished = transfers.next(), if !transfers.is_empty() => {
                    let Some((span, source, end)) = finished else { continue };
                    self.running.retain(|running| !Arc::ptr_eq(running, &span));
                    if let Some(contradiction) = self.ended(&span, source, end).await? {
                        return Ok(contradiction);
                    }
                }
                () = &mut wanted => {}
                _ = measuring.tick() => {
                    self.supervision.look(&self.fill, &**self.origin)?;
                    self.measure();
                }
            }
        }
        let size = self.fill.settle_size();
        let found = hashing.join().await.map_err(storage)?;
        Ok(Fetched::Whole { size, found })
    }

    /// Returns the next transfer that the plan wants.
    fn start_next(&mut self) -> Option<BoxFuture<'static, Finished>> {
        self.size = self.size.or_else(|| self.fill.known_size());
        let (from, until, is_side) = match self.size {
            None if !self.running.is_empty() => return None,
            None => (self.fill.present().run_end(0), u64::MAX, false),
            Some(size) => {
                let claims: Vec<_> = self.running.iter().map(|span| span.claim()).collect();
                let (present, wants) = (self.fill.present(), self.fill.wants());
                let next = plan::next(View {
                    size,
                    present: &present,
                    claims: &claims,
                    wants: &wants,
                    connections: self.connections,
                    may_side: self.serves_ranges,
                    in_chunks: self.serves_ranges && self.has_sides,
                });
                match next {
                    // An empty object has no bytes to fetch but must be asked for.
                    None if size == 0 && lock(&self.sources).is_empty() && self.running.is_empty() => (0, 0, false),
                    None => return None,
                    Some(next) => {
                        if let Some(shortened) = next.shortens {
                            self.running[shortened].set_until(next.from);
                        }
                        self.has_sides |= next.is_side;
                        (next.from, next.until, next.is_side)
                    }
                }
            }
        };
        let span = Arc::new(Span::new(from, until));
        let is_alone = self.running.is_empty();
        self.running.push(span.clone());
        Some(Box::pin(self.transfer(span, is_alone, is_side)))
    }

    /// Opens a transfer for `span` and runs it to its end. `is_alone`: no other transfer of the object runs. `is_side`:
    /// a client waits for just this part.
    fn transfer(
        &self,
        span: Arc<Span>,
        is_alone: bool,
        is_side: bool,
    ) -> impl Future<Output = Finished> + Send + 'static {
        let (origin, fill, size) = (self.origin.clone(), self.fill.clone(), self.size);
        let sink = Sink {
            fill: fill.clone(),
            partial: self.partial.clone(),
            slot: self.partial.new_slot(),
            reserved: self.reserved.clone(),
            has_room_for_all: self.is_vouched_for,
        };
        let sources = self.sources.clone();
        let is_vouched_for = self.is_vouched_for;
        async move {
            let claim = span.claim();
            // A range to the very end is requested without its end: some storages dislike a last byte.
            let until = Some(claim.until).filter(|&until| until != u64::MAX && Some(until) != size);
            let transfer = match origin.open(claim.at, until, !is_alone && !is_side).await {
                Ok(transfer) => transfer,
                Err(failure) => return (span, None, End::Broke(failure)),
            };
            let source = transfer.source;
            lock(&sources).insert(source);
            fill.source.store(source.0 + 1, Ordering::Relaxed);
            fill.states(transfer.total.unwrap_or(0));
            let contradicts = |stated| size.is_some_and(|known| known != stated) || stated < claim.at;
            if transfer.total.is_some_and(contradicts) {
                return (span, Some(source), End::Contradiction);
            }
            if let (None, Some(total), true) = (size, transfer.total, is_vouched_for) {
                if let Err(failure) = sink.reserved.cover(total).await {
                    return (span, Some(source), End::Unstored(failure, transfer.into()));
                }
                let allocated = sink.partial.allocate(total).await;
                if let Err(error) = allocated {
                    return (span, Some(source), End::Unstored(storage(error), transfer.into()));
                }
            }
            if let (None, Some(total)) = (size, transfer.total) {
                if !is_vouched_for && let Err(failure) = sink.reserved.may_fit(total) {
                    return (span, Some(source), End::Unstored(failure, transfer.into()));
                }
                span.set_until(total);
            }
            fill.opened(transfer.total);
            let end = transfer::run(transfer, &span, &sink, &*origin, is_alone).await;
            (span, Some(source), end)
        }
    }

    /// Takes note of how a transfer ended. Returns a contradiction, which ends this copy; an error ends the fill.
    async fn ended(&mut self, span: &Span, source: Option<Source>, end: End) -> Result<Option<Fetched>, Failure> {
        let has_begun = !lock(&self.sources).is_empty() || self.is_resumed;
        match (end, source) {
            (End::Complete, _) => {
                self.failed_opens = 0;
                if span.claim().until == u64::MAX {
                    self.fill.settle_size();
                    self.size = self.fill.known_size();
                }
            }
            (End::Contradiction, _) => return Ok(Some(Fetched::Contradiction)),
            (End::Storage(error), _) => return Err(storage(error)),
            (End::NoRoom(failure), _) => return Err(failure),
            (End::Unstored(failure, transfer), _) => {
                self.left = Some((span.claim().at, *transfer));
                return Err(failure);
            }
            (End::NoRanges, _) => self.one_stream(span),
            (End::Broke(failure), Some(source)) => {
                tracing::debug!(digest = %self.digest, %failure, at = span.claim().at, "a transfer broke; going on from there");
                let own = span.claim().at - span.from();
                let brought = self.fill.present().len();
                let broke = self.breaks.broke(own, brought, self.size, span.age());
                if broke.has_progressed {
                    self.failed_opens = 0;
                }
                self.pauses_until = Some(Instant::now() + broke.pause).max(self.pauses_until);
                self.origin.broke(source, broke.has_progressed, &failure);
            }
            // Other objects use the connections. More connections may be free later.
            (End::Broke(failure), None) if failure.kind == FailureKind::Busy && !self.running.is_empty() => {
                self.connections = self.running.len();
                self.give_back(span);
            }
            // The running transfers may do without this one.
            (End::Broke(failure), None) if !self.running.is_empty() => {
                tracing::debug!(digest = %self.digest, %failure, "a range could not be had beside the others");
                self.one_stream(span);
            }
            // Clients need the connections, and none waits for this object.
            (End::Broke(failure), None) if failure.kind == FailureKind::Busy && self.fill.is_for_nobody() => {
                return Err(Failure::of(FailureKind::Unread, "clients need its place", failure));
            }
            // Clients already have a part of the object, so it is worth waiting for an upstream to come back.
            (End::Broke(failure), None) if has_begun && self.failed_opens < REOPEN_ATTEMPTS => {
                tracing::debug!(digest = %self.digest, %failure, "no upstream goes on with a transfer; trying again");
                tokio::time::sleep(REOPEN_DELAY * 2u32.pow(self.failed_opens)).await;
                self.failed_opens += 1;
            }
            (End::Broke(failure), None) => return Err(failure),
        }
        Ok(None)
    }

    /// Goes on with one stream, because the upstream does not serve ranges beside a running transfer. The running
    /// transfer goes on to the end, over the range that was to be taken from it.
    fn one_stream(&mut self, failed: &Span) {
        self.serves_ranges = false;
        self.connections = 1;
        self.give_back(failed);
    }

    /// Gives the range of a transfer that did not begin back to the running transfer from which it was taken.
    fn give_back(&mut self, failed: &Span) {
        let Claim { at, until } = failed.claim();
        if let Some(before) = self.running.iter().find(|span| span.claim().until == at) {
            before.set_until(until);
        }
    }

    /// Allows further connections where one is slow, and gives them up where they do not help.
    fn measure(&mut self) {
        let (Some(size), true) = (self.size, self.serves_ranges) else {
            return;
        };
        // Where nobody waits, the connections are for others.
        let wished = if self.fill.is_for_nobody() { 1 } else { self.origin.parallel() };
        let arrived = self.fill.present().len();
        match self.speed.judge(arrived, size, self.connections, wished) {
            Judgement::Widen => {
                tracing::debug!(digest = %self.digest, connections = wished, "opening parallel connections");
                self.connections = wished;
            }
            Judgement::Narrow => {
                tracing::debug!(digest = %self.digest, "parallel connections do not help; going on with one");
                self.connections = 1;
            }
            Judgement::Keep => {}
        }
    }
}

/// How fast a copy comes in.
#[derive(Debug, Default)]
struct Speed {
    /// The time of the last measurement, and the bytes that had arrived by then.
    last: Option<(Instant, u64)>,
    /// Bytes per second over one connection.
    alone: Option<f64>,
    /// Measurements since further connections were allowed.
    widened: u32,
    /// Whether it is decided if the further connections stay; then nothing more is measured.
    is_decided: bool,
}

/// What a measurement says about the number of connections.
enum Judgement {
    Widen,
    Narrow,
    Keep,
}

impl Speed {
    #[allow(clippy::cast_precision_loss)]
    fn judge(&mut self, arrived: u64, size: u64, connections: usize, wished: usize) -> Judgement {
        let now = Instant::now();
        let Some((since, before)) = self.last.replace((now, arrived)) else {
            return Judgement::Keep;
        };
        let speed = arrived.saturating_sub(before) as f64 / now.duration_since(since).as_secs_f64().max(0.001);
        if self.is_decided || wished < 2 {
            return Judgement::Keep;
        }
        if connections == 1 {
            let rest = size.saturating_sub(arrived) as f64;
            if size < MIN_PARALLEL || rest < speed * WORTH_IT.as_secs_f64() {
                return Judgement::Keep;
            }
            self.alone = Some(speed);
            return Judgement::Widen;
        }
        self.widened += 1;
        // The first measurements after widening still include the slow start of the new connections.
        if self.widened < 4 {
            return Judgement::Keep;
        }
        self.is_decided = true;
        match self.alone {
            Some(alone) if speed < alone * 1.2 => Judgement::Narrow,
            _ => Judgement::Keep,
        }
    }
}

/// Hashes the object in order as its bytes arrive, reading them back from the page cache.
async fn hash(fill: Arc<Fill>, file: ReadFile, algorithm: Algorithm) -> io::Result<Digest> {
    let mut hashing = Hashing::new(algorithm);
    while let Some(until) = fill.hashable(hashing.at()).await {
        hashing = file.hash(hashing, until).await?;
    }
    Ok(hashing.finish())
}

/// A task that is aborted when its owner drops it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> AbortOnDrop<io::Result<T>> {
    async fn join(mut self) -> io::Result<T> {
        (&mut self.0).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn storage(error: io::Error) -> Failure {
    Failure::of(FailureKind::Storage, "the cache directory cannot be written", error)
}
