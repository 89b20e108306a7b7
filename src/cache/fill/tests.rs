use std::sync::Mutex as StdMutex;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};

use super::driver::Outcome;
use super::*;
use crate::cache::{Aside, Content};
use crate::oci::Algorithm;
use crate::places::Places;
use crate::spool::Spool;
use crate::store::{Disk, LocalStore, Store};
use crate::upkeep::room::{Reservation, Room};
use crate::work::Pool;
use bytes::Bytes;
use futures_util::future::BoxFuture;

/// What a scripted source does when it is opened.
pub enum Step {
    /// Sends `bytes` from `start` and ends, or breaks off.
    Send {
        start: u64,
        total: Option<u64>,
        bytes: Vec<u8>,
        breaks: bool,
    },
    /// Sends `bytes`, states `total`, and then sends nothing more.
    Stall {
        bytes: Vec<u8>,
        total: u64,
    },
    /// Sends what the stream gives, from the first byte on.
    Stream {
        total: u64,
        body: BoxStream<'static, Result<Bytes, Failure>>,
    },
    Refuse(FailureKind),
}

#[derive(Default)]
pub struct Script {
    steps: StdMutex<Vec<Step>>,
    opened_at: StdMutex<Vec<u64>>,
    rejected: StdMutex<Vec<Source>>,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        let mut steps: Vec<_> = steps.into_iter().collect();
        steps.reverse();
        Arc::new(Self { steps: StdMutex::new(steps), ..Self::default() })
    }
}

impl Origin for Script {
    fn open(&self, from: u64, _: Option<u64>, _: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        self.opened_at.lock().expect("lock").push(from);
        let left = self.steps.lock().expect("lock").len();
        let step = self.steps.lock().expect("lock").pop().unwrap_or(Step::Refuse(FailureKind::Unavailable));
        let result = match step {
            Step::Refuse(kind) => Err(Failure::new(kind, "refused")),
            Step::Stall { bytes, total } => {
                let body = stream::iter([Ok(bytes.into())]).chain(stream::pending()).boxed();
                Ok(Transfer { source: Source(left), start: 0, total: Some(total), body })
            }
            Step::Stream { total, body } => Ok(Transfer { source: Source(left), start: 0, total: Some(total), body }),
            Step::Send { start, total, bytes, breaks } => {
                let mut items: Vec<_> = bytes.chunks(1000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
                if breaks {
                    items.push(Err(Failure::new(FailureKind::Unavailable, "broken")));
                }
                Ok(Transfer { source: Source(left), start, total, body: stream::iter(items).boxed() })
            }
        };
        std::future::ready(result).boxed()
    }

    fn parallel(&self) -> usize {
        1
    }

    fn broke(&self, _: Source, _: bool, _: &Failure) {}

    fn reject(&self, source: Source) {
        self.rejected.lock().expect("lock").push(source);
    }

    fn received(&self, _: u64) {}

    fn stored<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Returns more places than any test needs.
pub fn places() -> Places {
    Places::new(64)
}

/// Room without end.
pub struct Endless;

impl Room for Endless {
    fn reserve(&self, _: u64) -> BoxFuture<'static, Result<Reservation, Failure>> {
        std::future::ready(Ok(Reservation::new(|| {}))).boxed()
    }

    fn never_fits(&self, _: u64) -> bool {
        false
    }
}

/// Returns a pool that waits for the disk as long as necessary: the speed of the tests' own disk is not tested.
pub fn pool() -> Pool {
    Pool::new("a test", 64, Duration::from_secs(3600))
}

/// A directory that objects go to.
pub struct Place {
    pub spool: Spool,
    pub store: Arc<dyn Store>,
    room: Arc<dyn Room>,
    places: Places,
}

impl Place {
    pub fn new(dir: &std::path::Path) -> Self {
        Self::with_room(dir, Arc::new(Endless))
    }

    pub fn with_room(dir: &std::path::Path, room: Arc<dyn Room>) -> Self {
        let disk = Disk::open(dir, pool()).expect("a store");
        Self {
            spool: Spool::new(dir.join("partial"), pool()),
            store: Arc::new(LocalStore::new(disk, pool(), pool(), pool())),
            room,
            places: places(),
        }
    }

    pub fn destination(&self) -> Destination<'_> {
        Destination { spool: &self.spool, store: &self.store, room: &self.room, places: &self.places }
    }
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

fn whole(bytes: &[u8]) -> Step {
    Step::Send { start: 0, total: Some(bytes.len() as u64), bytes: bytes.to_vec(), breaks: false }
}

/// Begins a fill of `right`, for the caller to drive.
fn begin(dir: &std::path::Path, right: &[u8]) -> (FillReader, Registered, Digest, Place) {
    let place = Place::new(dir);
    let digest = Digest::of(Algorithm::Sha256, right);
    let Joined::New(fill, registered) = Fills::default().join(&digest, &Viewer::own("r")) else {
        panic!("a new fill");
    };
    (fill, registered, digest, place)
}

/// Drives a fill of `right` with the scripted source. Returns the outcome, the fill, and the content in the store.
async fn run(right: &[u8], script: &Arc<Script>) -> (Result<Outcome, Failure>, FillReader, Option<Vec<u8>>) {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::new(dir.path());
    let digest = Digest::of(Algorithm::Sha256, right);
    let fills = Fills::default();
    let Joined::New(fill, registered) = fills.join(&digest, &Viewer::own("r")) else {
        panic!("a new fill");
    };
    let origin: Arc<dyn Origin> = script.clone();
    let outcome = drive(&registered, Wanted::Digest(digest), &origin, place.destination()).await;
    drop(registered);
    assert_eq!(fills.count(), 0);
    let path = dir.path().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
    let partials = std::fs::read_dir(dir.path().join("partial")).expect("readable").count();
    assert_eq!(partials, 0);
    (outcome, fill, std::fs::read(path).ok())
}

/// Returns up to where the file may be read, and which attempt it holds.
fn until(readable: Result<Readable, Failure>) -> (u64, u32) {
    match readable.expect("readable") {
        Readable::File { until, attempt, .. } => (until, attempt),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn right_content_is_stored() {
    let right = content(200_000);
    let (outcome, fill, stored) = run(&right, &Script::new([whole(&right)])).await;
    assert!(outcome.expect("stored").is_stored);
    assert_eq!(stored, Some(right));
    assert_eq!(until(fill.readable(0, Reading::default()).await), (200_000, 1));
}

#[tokio::test]
async fn content_of_unknown_length_is_stored() {
    let right = content(5_000);
    let step = Step::Send { start: 0, total: None, bytes: right.clone(), breaks: false };
    let (outcome, fill, stored) = run(&right, &Script::new([step])).await;
    assert_eq!(outcome.expect("stored").size, 5_000);
    assert_eq!(stored, Some(right));
    assert_eq!(fill.size().await.expect("known"), Some(5_000));
}

#[tokio::test]
async fn empty_content_is_stored() {
    let (outcome, _, stored) = run(b"", &Script::new([whole(b"")])).await;
    assert_eq!(outcome.expect("stored").size, 0);
    assert_eq!(stored, Some(Vec::new()));
}

#[tokio::test]
async fn what_has_arrived_is_read_while_nothing_more_comes() {
    let right = content(200_000);
    let script = Script::new([Step::Stall { bytes: right[..50_000].to_vec(), total: 200_000 }]);
    let dir = tempfile::tempdir().expect("a directory");
    let (fill, registered, digest, place) = begin(dir.path(), &right);
    let origin: Arc<dyn Origin> = script;
    let reads = tokio::time::timeout(Duration::from_secs(20), fill.readable(0, Reading::default()));
    tokio::select! {
        outcome = drive(&registered, Wanted::Digest(digest), &origin, place.destination()) => panic!("it goes on: {outcome:?}"),
        readable = reads => assert_eq!(until(readable.expect("in time")).0, 50_000),
    }
}

#[tokio::test(start_paused = true)]
async fn many_readers_are_told_of_several_pieces_at_once_and_few_of_each() {
    for (readers, is_crowd) in [(transfer::CROWD - 1, false), (transfer::CROWD, true)] {
        let right = content(40_000);
        let dir = tempfile::tempdir().expect("a directory");
        let (fill, registered, digest, place) = begin(dir.path(), &right);
        let _readers: Vec<_> = (1..readers).map(|_| fill.clone()).collect();
        let (watched, told) = (fill.downgrade(), Arc::new(AtomicU64::new(0)));
        let told_last = told.clone();
        let pieces: Vec<_> = right.chunks(1_000).map(Bytes::copy_from_slice).collect();
        let body = stream::iter(pieces).then(move |piece| {
            let (watched, told) = (watched.clone(), told.clone());
            async move {
                // Each comes a moment after the one before.
                tokio::task::yield_now().await;
                let until = watched.upgrade().map_or(0, |fill| fill.present().run_end(0));
                told.store(until, Ordering::Relaxed);
                Ok(piece)
            }
        });
        let origin: Arc<dyn Origin> = Script::new([Step::Stream { total: 40_000, body: body.boxed() }]);
        let outcome = drive(&registered, Wanted::Digest(digest), &origin, place.destination()).await;
        assert!(outcome.is_ok(), "{outcome:?}");
        // When the last piece came, a crowd had been told of the first alone.
        let told = told_last.load(Ordering::Relaxed);
        assert_eq!(told <= 1_000, is_crowd, "{readers} readers had been told of {told} bytes");
    }
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let right = content(100_000);
    let total = Some(100_000);
    let script = Script::new([
        Step::Send { start: 0, total, bytes: right[..40_000].to_vec(), breaks: true },
        Step::Refuse(FailureKind::Unavailable),
        Step::Send { start: 40_000, total, bytes: right[40_000..70_000].to_vec(), breaks: false },
        // A source that does not serve ranges begins at the first byte again.
        Step::Send { start: 0, total, bytes: right.clone(), breaks: false },
    ]);
    let (outcome, _, stored) = run(&right, &script).await;
    assert!(outcome.is_ok());
    assert_eq!(stored, Some(right));
    assert_eq!(*script.opened_at.lock().expect("lock"), [0, 40_000, 40_000, 70_000]);
}

#[tokio::test]
async fn wrong_content_is_dropped_and_the_next_source_asked() {
    let right = content(200_000);
    let mut wrong = right.clone();
    wrong[100] ^= 1;
    let script = Script::new([whole(&wrong), whole(&right)]);
    let (outcome, fill, stored) = run(&right, &script).await;
    assert!(outcome.is_ok());
    assert_eq!(stored, Some(right));
    assert_eq!(*script.rejected.lock().expect("lock"), [Source(2)]);
    // A reader that read bytes of the first copy gets an error; a reader that read nothing goes on with the second.
    assert_eq!(
        fill.readable(10, Reading { attempt: Some(1), ..Reading::default() }).await.expect_err("told").kind,
        FailureKind::WrongContent
    );
    assert_eq!(until(fill.readable(0, Reading::default()).await).1, 2);
}

#[tokio::test]
async fn who_disagrees_on_the_size_is_not_blamed_alone() {
    let right = content(8 << 20);
    let (at, total) = (6 << 20, Some(right.len() as u64));
    let script = Script::new([
        Step::Stall { bytes: right[..100_000].to_vec(), total: 9 << 20 },
        // A transfer beside the first, for a reader far ahead.
        Step::Send { start: at, total, bytes: right[at as usize..].to_vec(), breaks: false },
        whole(&right),
    ]);
    let dir = tempfile::tempdir().expect("a directory");
    let (fill, registered, digest, place) = begin(dir.path(), &right);
    let origin: Arc<dyn Origin> = script.clone();
    let drive = drive(&registered, Wanted::Digest(digest), &origin, place.destination());
    let (outcome, read) = tokio::join!(drive, fill.readable(at, Reading::default()));
    assert!(outcome.is_ok() && read.is_ok(), "{outcome:?} {read:?}");
    assert_eq!(*script.rejected.lock().expect("lock"), []);
}

#[tokio::test]
async fn more_than_was_announced_is_wrong_content() {
    let right = content(1_000);
    let step = Step::Send { start: 0, total: Some(900), bytes: right.clone(), breaks: false };
    let script = Script::new([step, Step::Refuse(FailureKind::NotFound)]);
    let (outcome, _, stored) = run(&right, &script).await;
    assert_eq!(outcome.expect_err("failed").kind, FailureKind::NotFound);
    assert_eq!(stored, None);
}

#[tokio::test]
async fn a_refusal_before_the_first_byte_fails_at_once() {
    let (outcome, fill, _) = run(b"x", &Script::new([Step::Refuse(FailureKind::Denied)])).await;
    assert_eq!(outcome.expect_err("failed").kind, FailureKind::Denied);
    assert_eq!(fill.size().await.expect_err("failed").kind, FailureKind::Denied);
}

#[test]
fn the_last_piece_is_held_back_until_the_whole_is_verified() {
    let mut present = RangeSet::default();
    present.insert(0, 100_000);
    let file = Arc::new(tempfile::tempfile().expect("a file"));
    let file = Some(ReadFile::new(file, pool()));
    let mut state = State {
        phase: Phase::Growing,
        attempt: 1,
        file,
        mapping: None,
        size: Some(100_000),
        present,
        is_resumed: false,
        passed: Passed::default(),
    };
    let until = |state: &State, at| state.answer(at, Reading::default()).map(|answer| until(answer).0);
    assert_eq!(until(&state, 0), Some(100_000 - HELD_BACK));
    assert_eq!(until(&state, 100_000 - HELD_BACK), None);
    state.size = None;
    assert_eq!(until(&state, 0), Some(100_000 - HELD_BACK));
    state.phase = Phase::Verified;
    state.size = Some(100_000);
    assert_eq!(until(&state, 0), Some(100_000));
    assert_eq!(until(&state, 100_000), Some(100_000), "the end");
}

#[test]
fn a_fill_whose_task_vanished_has_failed() {
    let fills = Fills::default();
    let digest = Digest::Sha256([1; 32]);
    let Joined::New(fill, registered) = fills.join(&digest, &Viewer::own("r")) else {
        panic!("a new fill");
    };
    assert!(matches!(fills.join(&digest, &Viewer::own("r")), Joined::Running(_)));
    drop(registered);
    assert!(!fill.is_joinable());
    assert_eq!(fills.count(), 0);
}

#[tokio::test]
async fn a_reader_that_comes_as_its_fill_is_given_up_gets_the_object_all_the_same() {
    let right: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
    let digest = Digest::of(Algorithm::Sha256, &right);
    let Joined::New(fill, registered) = Fills::default().join(&digest, &Viewer::own("r")) else {
        panic!("a new fill");
    };
    registered.fail(Failure::new(FailureKind::Unread, "nobody reads it any more"));
    let total = Some(right.len() as u64);
    let origin = Script::new([Step::Send { start: 0, total, bytes: right.clone(), breaks: false }]);
    let aside = Aside { digest, origin, is_own: false };
    let content = Content::Growing { fill, aside, told: None, is_mapped: true, _lease: None };
    assert_eq!(content.size().await.expect("no failure"), None);
    assert_eq!(content.final_size().await.expect("no failure"), None);
    let pieces: Vec<Bytes> = content.stream(0, None, None, false).try_collect().await.expect("whole");
    assert!(pieces.concat() == right);
}

#[tokio::test]
async fn a_reader_on_a_plain_socket_gets_pages_of_the_file_and_others_get_copies() {
    let right = content(300_000);
    let script = Script::new([whole(&right)]);
    let (outcome, fill, _) = run(&right, &script).await;
    let digest = outcome.expect("right content").digest;
    let mapping = fill.mapping().expect("its size was known at the beginning");
    let aside = Aside { digest, origin: script, is_own: true };
    let content = Content::Growing { fill, aside, told: Some(300_000), is_mapped: true, _lease: None };
    for (content, is_mapped) in [(content.clone(), true), (content.unmapped(), false)] {
        assert_eq!(content.mapping().is_some(), is_mapped);
        let pieces: Vec<Bytes> = content.stream(0, Some(300_000), None, false).try_collect().await.expect("whole");
        assert!(pieces.concat() == right);
        assert!(pieces.iter().all(|piece| mapping.position(piece).is_some() == is_mapped), "{is_mapped}");
    }
}
