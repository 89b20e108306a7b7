//! Tests the fill against a model. Sources break, refuse, know no ranges and hold wrong content, as a script says;
//! readers come and go; the process may be killed on the way. Time is virtual and stands still while files are written,
//! so a case takes no longer than its bytes and has the same course each time.

mod case;
mod sources;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::time::sleep;

use self::case::{Case, Visit, cases};
use self::sources::World;
use super::driver::Outcome;
use super::tests::Place;
use super::*;
use crate::cache::{Aside, Content};
use crate::oci::Algorithm;
use crate::upkeep::room::{Reservation, Room};
use futures_util::future::BoxFuture;

const MIB: u64 = 1 << 20;
/// A source that breaks this often in a row without bringing anything is not asked any more: see `cache::standing`.
const MAX_STRIKES: u8 = 3;

/// The origin for readers of their own, which must never be needed: the disk is fine.
struct NotNeeded;

impl Origin for NotNeeded {
    fn open(&self, _: u64, _: Option<u64>, _: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        panic!("a reader went past the store");
    }

    fn parallel(&self) -> usize {
        1
    }

    fn broke(&self, _: Source, _: bool, _: &Failure) {}

    fn reject(&self, _: Source) {}

    fn received(&self, _: u64) {}

    fn stored<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What a reader got.
#[derive(Debug)]
struct Got {
    /// The size that the reader was told at the beginning.
    told: Option<u64>,
    start: u64,
    end: Option<u64>,
    may_read_unverified: bool,
    bytes: Vec<u8>,
    ended: Ended,
}

#[derive(Debug)]
enum Ended {
    Properly,
    Failed(Failure),
    /// It left, or the part that it asked for does not exist.
    Left,
}

/// Reads as `registry` does for a client.
async fn visit(visit: Visit, size: u64, fill: FillReader, aside: Aside) -> Got {
    sleep(Duration::from_millis(visit.comes_at)).await;
    let mut got =
        Got { told: None, start: 0, end: None, may_read_unverified: false, bytes: Vec::new(), ended: Ended::Left };
    let told = match visit.part {
        None => fill.size().await,
        Some(_) => fill.final_size().await.map(Some),
    };
    match told {
        Ok(told) => got.told = told,
        // The client would be given the whole, as it passes.
        Err(failure) if failure.kind == FailureKind::NoRoom => return got,
        Err(failure) => return Got { ended: Ended::Failed(failure), ..got },
    }
    got.end = got.told;
    if let (Some((from, length)), Some(told)) = (visit.part, got.told) {
        got.start = size * from / 1000;
        let end = told.min(got.start + length);
        got.end = Some(end);
        got.may_read_unverified = visit.may_read_unverified && end.saturating_sub(got.start) < told;
        if got.start >= end {
            return got;
        }
    }
    let content = Content::Growing { fill, aside, told: None, is_mapped: true, _lease: None };
    let mut stream = content.stream(got.start, got.end, got.told, got.may_read_unverified).boxed();
    loop {
        match stream.next().await {
            Some(Ok(bytes)) => got.bytes.extend_from_slice(&bytes),
            Some(Err(failure)) => return Got { ended: Ended::Failed(failure), ..got },
            None => return Got { ended: Ended::Properly, ..got },
        }
        if visit.leaves_after.is_some_and(|after| got.bytes.len() as u64 >= after) {
            return got;
        }
        sleep(Duration::from_millis(visit.pause)).await;
    }
}

impl World {
    /// Brings the object in, with its readers; `None` if the process was killed on the way.
    async fn run(self: &Arc<Self>, place: &Arc<Place>, killed_after: Option<u64>) -> Option<Result<Outcome, Failure>> {
        let digest = Digest::of(Algorithm::Sha256, &self.right);
        let Joined::New(fill, registered) = Fills::default().join(&digest, &Viewer::own("r")) else {
            panic!("a new fill");
        };
        let (origin, place): (Arc<dyn Origin>, _) = (self.clone(), place.clone());
        let mut driver =
            tokio::spawn(async move { drive(&registered, Wanted::Digest(digest), &origin, place.destination()).await });
        let readers = self.visits(&fill, || Aside { digest, origin: Arc::new(NotNeeded), is_own: true });
        let watcher = tokio::spawn(self.clone().watch(fill.clone()));

        let killed = async {
            match killed_after {
                Some(after) => sleep(Duration::from_millis(after)).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = &mut driver => Some(outcome.expect("no panic")),
            () = killed => None,
        };
        if outcome.is_none() {
            readers.iter().for_each(tokio::task::JoinHandle::abort);
            driver.abort();
            // The write under way ends before time goes on.
            sleep(Duration::from_millis(1)).await;
        }
        self.check_file(&fill, &mut RangeSet::default());
        watcher.abort();
        assert!(!watcher.await.is_err_and(|error| error.is_panic()), "something was said to be there that was not");
        for reader in readers {
            match reader.await {
                Ok(got) => self.check(&got, false),
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
        outcome
    }

    fn visits(&self, fill: &FillReader, aside: impl Fn() -> Aside) -> Vec<tokio::task::JoinHandle<Got>> {
        let visits = self.case.readers.iter().cloned();
        visits.map(|reader| tokio::spawn(visit(reader, self.case.size, fill.clone(), aside()))).collect()
    }

    /// Brings the object to its readers where there is room for only `room` bytes.
    async fn pass(self: Arc<Self>, dir: &Path, room: u64) {
        let place = Place::with_room(dir, Arc::new(Full(room.into())));
        let digest = Digest::of(Algorithm::Sha256, &self.right);
        let Joined::New(fill, registered) = Fills::default().join(&digest, &Viewer::own("r")) else {
            panic!("a new fill");
        };
        let origin: Arc<dyn Origin> = self.clone();
        let readers = self.visits(&fill, || Aside { digest, origin: self.to_another(), is_own: true });
        drop(fill);
        let wanted = Wanted::Digest(digest);
        let outcome = drive(&registered, wanted, &origin, place.destination()).await;
        if outcome.as_ref().is_err_and(|failure| failure.kind.is_of_the_store()) {
            let passed = pass(&registered, wanted, &origin, &Windows::default()).await;
            assert_eq!(passed.is_ok(), registered.fill().state.borrow().phase.is_passed(), "{passed:?}");
            assert_eq!(std::fs::read_dir(dir.join("partial")).expect("readable").count(), 0);
        }
        drop(registered);
        for reader in readers {
            self.check(&reader.await.expect("no panic"), true);
        }
    }

    /// Checks again and again that the bytes that are said to be in the file are there.
    async fn watch(self: Arc<Self>, fill: FillReader) {
        let (mut attempt, mut seen) = (0, RangeSet::default());
        loop {
            sleep(Duration::from_millis(37)).await;
            let now = fill.state.borrow().attempt;
            if std::mem::replace(&mut attempt, now) != now {
                seen = RangeSet::default();
            }
            self.check_file(&fill, &mut seen);
        }
    }

    fn check_file(&self, fill: &Fill, seen: &mut RangeSet) {
        let state = fill.state.borrow().clone();
        let Some(file) = state.file else { return };
        for (start, end) in state.present.iter() {
            let mut at = seen.run_end(start).max(start);
            while at < end {
                let mut bytes = vec![0; (end - at).min(MIB) as usize];
                file.file().read_exact_at(&mut bytes, at).expect("present bytes are in the file");
                assert!(self.allows(at, &bytes), "no source holds what is in the file from {at}");
                at += bytes.len() as u64;
            }
            seen.insert(start, end);
        }
    }

    /// Checks what a reader got. `has_passed`: the object was not stored, so there was one copy for all readers.
    fn check(&self, got: &Got, has_passed: bool) {
        let size = self.case.size;
        let summary = format!("{:?} of {}..{:?} of {:?}", got.ended, got.start, got.end, got.told);
        assert!(self.allows(got.start, &got.bytes), "bytes that no source holds: {summary}");
        let is_right =
            || self.right.get(got.start as usize..got.start as usize + got.bytes.len()) == Some(&got.bytes[..]);
        let is_whole = got.start == 0 && got.end == got.told;
        match &got.ended {
            Ended::Properly => {
                let length = got.bytes.len() as u64;
                assert!(got.end.is_none_or(|end| length == end - got.start), "{length} bytes: {summary}");
                // A reader to the end does not get the whole before it is verified.
                let is_verified = !got.may_read_unverified && got.end == got.told;
                // A transfer of a reader's own cannot verify the rest of an object whose beginning the client has from
                // elsewhere.
                if is_verified && (got.start == 0 || !has_passed) {
                    assert!(is_right() && got.start + length == size, "wrong, and taken for right: {summary}");
                }
            }
            Ended::Failed(failure) => {
                let may_fail = if self.case.has_wrong() {
                    has_passed || !self.case.has_right() || failure.kind == FailureKind::WrongContent
                } else {
                    !self.case.has_right()
                };
                assert!(may_fail, "it could have been served: {summary}");
            }
            Ended::Left => {}
        }
        if !self.case.has_wrong() {
            assert!(is_right(), "{summary}");
            assert!(!is_whole || got.told.is_none_or(|told| told == size), "{summary}");
        }
    }

    async fn play(self: Arc<Self>, dir: &Path) {
        let place = Arc::new(Place::new(dir));
        let mut outcome = self.run(&place, self.case.killed_after).await;
        let was_killed = outcome.is_none();
        if was_killed {
            self.restart();
            outcome = self.run(&place, None).await;
        }
        let outcome = outcome.expect("killed once at most");
        if !self.case.may_be_whole() || (outcome.is_err() && !self.case.has_right()) {
            let digest = Digest::of(Algorithm::Sha256, &self.right);
            let stored = place.store.open(&digest).await.expect("readable");
            assert!(outcome.is_err() && stored.is_none(), "nobody has it, and yet: {outcome:?}");
            // What is left on disk of this run must not be in the way of the next fill.
            let mended = World::new(&self.case.mended());
            mended.restart();
            let outcome = mended.run(&place, None).await.expect("not killed");
            return mended.check_stored(outcome, &place, dir).await;
        }
        self.check_stored(outcome, &place, dir).await;
        let told = self.told();
        assert_eq!(told.received, told.delivered);
        if self.case.is_thrifty() {
            // After a kill, the last byte may be requested again.
            let most = self.case.size + told.in_hand + u64::from(was_killed);
            assert!(told.delivered <= most, "{} bytes, not more than {most} are needed", told.delivered);
        }
    }

    async fn check_stored(&self, outcome: Result<Outcome, Failure>, place: &Place, dir: &Path) {
        let outcome = outcome.expect("a source has it");
        assert!(outcome.is_stored && outcome.size == self.case.size, "{outcome:?}");
        let digest = Digest::of(Algorithm::Sha256, &self.right);
        let stored = place.store.open(&digest).await.expect("readable").expect("stored");
        assert_eq!(stored.size, self.case.size);
        let bytes = stored.read(0, stored.size).await.expect("readable");
        assert!(bytes == self.right, "what is stored is wrong");
        assert_eq!(std::fs::read_dir(dir.join("partial")).expect("readable").count(), 0);
    }
}

/// Plays the same cases each time; other cases, and more, where `PROPTEST_CASES` says how many.
fn config(cases: u32) -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), ..config },
    }
}

/// Makes a directory, in memory where there is room: each object is synced, and a disk takes its time.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory).is_ok_and(|free| free.f_bavail * free.f_frsize >= 1 << 30);
    let made = if has_room { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory")
}

fn play(case: &Case) {
    in_virtual_time(|dir| async move { World::new(case).play(&dir).await });
}

fn in_virtual_time<F: Future<Output = ()>>(play: impl FnOnce(std::path::PathBuf) -> F) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).max_blocking_threads(1).build().expect("a runtime");
    let dir = directory();
    let played = async { tokio::time::timeout(Duration::from_secs(3600), play(dir.path().to_owned())).await };
    runtime.block_on(played).expect("it ends");
}

/// A disk with room for this many bytes.
struct Full(AtomicU64);

impl Room for Full {
    fn reserve(&self, bytes: u64) -> BoxFuture<'static, Result<Reservation, Failure>> {
        let took = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        let reserved = took.map(|_| Reservation::new(|| {})).map_err(|_| Failure::new(FailureKind::NoRoom, "full"));
        Box::pin(std::future::ready(reserved))
    }

    fn never_fits(&self, _: u64) -> bool {
        false
    }
}

impl Phase {
    fn is_passed(&self) -> bool {
        matches!(self, Self::Passing { is_verified: true })
    }
}

proptest! {
    #![proptest_config(config(128))]

    #[test]
    fn what_cannot_be_stored_reaches_readers_whole_or_they_are_told(case in cases(false), room in 0u64..9 * MIB) {
        in_virtual_time(|dir| async move { World::new(&case).pass(&dir, room).await });
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn what_cannot_be_stored_passes_whatever_breaks(case in cases(true), room in 0u64..9 * MIB) {
        let case = case.breaking_seldom();
        in_virtual_time(|dir| async move { World::new(&case).pass(&dir, room).await });
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn whatever_sources_do_readers_get_right_bytes_and_right_content_is_stored(case in cases(false)) {
        play(&case);
    }
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn sources_that_break_and_refuse_are_asked_for_each_byte_once(case in cases(true)) {
        play(&case);
    }
}
