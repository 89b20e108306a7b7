//! Sources that never bring the whole object: they break off, end early, refuse, contradict themselves, without end.
//! The fill has to end, and to cost few openings: each is a request upstream for which no client asked.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use proptest::prelude::*;

use super::tests::Place;
use super::*;
use crate::cache::standing::Standing;
use crate::clock::Instant;
use crate::oci::Algorithm;
use bytes::Bytes;
use futures_util::future::BoxFuture;

const MIB: u64 = 1 << 20;

/// What a source does each time that it is opened.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Sends this many bytes from the offset asked for and breaks off.
    Breaks(u64),
    /// The same, but the break looks like the end.
    Ends(u64),
    /// Begins at the first byte whatever the offset asked for, and breaks off after this many bytes.
    Restarts(u64),
    /// Answers with an error.
    Refuses,
    /// States another size each time.
    Contradicts,
    /// Sends all of something else.
    SendsWrong,
}

struct World {
    size: u64,
    says_size: bool,
    parallel: usize,
    ways: Vec<Way>,
    standing: Mutex<Standing>,
    /// Openings, and bytes that were sent.
    openings: Mutex<(u64, u64)>,
}

impl World {
    fn answer(&self, at: usize, from: u64, until: Option<u64>) -> Result<Transfer, Failure> {
        let broken = || Failure::new(FailureKind::Unavailable, "broken");
        let mut told = self.openings.lock().expect("no panic while held");
        told.0 += 1;
        let total = self.says_size.then_some(self.size);
        let end = until.unwrap_or(self.size).min(self.size);
        let (start, length, total, breaks) = match self.ways[at] {
            Way::Breaks(bytes) => (from, bytes.min(end - from), total, true),
            Way::Ends(bytes) => (from, bytes.min(end - from), total, false),
            Way::Restarts(bytes) => (0, bytes.min(self.size), total, true),
            Way::Refuses => return Err(broken()),
            Way::Contradicts => (from, 10.min(end - from), Some(self.size + told.0), true),
            Way::SendsWrong => (from, end - from, total, false),
        };
        told.1 += length;
        let mut items: Vec<Result<Bytes, Failure>> = Vec::new();
        let mut left = length;
        while left > 0 {
            let piece = left.min(MIB);
            items.push(Ok(vec![7; piece as usize].into()));
            left -= piece;
        }
        items.extend(breaks.then(|| Err(broken())));
        Ok(Transfer { source: Source(at), start, total, body: stream::iter(items).boxed() })
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().expect("no panic while held")
    }
}

impl Origin for World {
    fn open(&self, from: u64, until: Option<u64>, _: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        let worth_asking = self.standing().worth_asking(Instant::now());
        let mut answer = Err(self.standing().why_none());
        for at in worth_asking {
            answer = self.answer(at, from, until);
            if answer.is_ok() {
                break;
            }
        }
        std::future::ready(answer).boxed()
    }

    fn parallel(&self) -> usize {
        self.parallel
    }

    fn broke(&self, source: Source, has_progressed: bool, why: &Failure) {
        self.standing().broke(source.0, has_progressed, why, Instant::now());
    }

    fn reject(&self, source: Source) {
        self.standing().reject(source.0);
    }

    fn received(&self, _: u64) {}

    fn stored<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, ()> {
        std::future::ready(()).boxed()
    }
}

/// Fills an object that its sources never send as a whole. Returns the openings and the bytes that were sent.
fn openings_of(size: u64, says_size: bool, parallel: usize, ways: &[Way]) -> (u64, u64) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).max_blocking_threads(1).build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let world = Arc::new(World {
        size,
        says_size,
        parallel,
        ways: ways.to_vec(),
        standing: Mutex::new(Standing::new(ways.len())),
        openings: Mutex::default(),
    });
    let origin: Arc<dyn Origin> = world.clone();
    let filled = async {
        let place = Place::new(dir.path());
        let digest = Digest::of(Algorithm::Sha256, b"what nobody has");
        let Joined::New(_fill, registered) = Fills::default().join(&digest, &Viewer::own("r")) else {
            panic!("a new fill");
        };
        drive(&registered, Wanted::Digest(digest), &origin, place.destination()).await
    };
    let result = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(3600), filled).await });
    assert!(result.expect("it ends").is_err(), "nobody has it");
    let told = world.openings.lock().expect("no panic while held");
    *told
}

fn ways() -> impl Strategy<Value = Way> {
    let bytes = prop_oneof![0u64..3, 1u64..5_000, 1_000u64..200_000, MIB - 10..2 * MIB];
    prop_oneof![
        3 => bytes.clone().prop_map(Way::Breaks),
        2 => bytes.clone().prop_map(Way::Ends),
        2 => bytes.prop_map(Way::Restarts),
        1 => Just(Way::Refuses),
        1 => Just(Way::Contradicts),
        1 => Just(Way::SendsWrong),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn a_fill_that_cannot_succeed_ends_after_few_openings(
        size in prop_oneof![1u64..1000, 1_000u64..300_000, 2 * MIB..8 * MIB],
        says_size in any::<bool>(),
        parallel in 1usize..4,
        ways in prop::collection::vec(ways(), 1..4),
    ) {
        let (openings, bytes) = openings_of(size, says_size, parallel, &ways);
        // A few for each source, copies that contradict each other included; one for each mebibyte that came; and for a
        // small object, one for each part of it.
        let allowed = 64 + 40 * ways.len() as u64 + bytes / MIB;
        prop_assert!(openings <= allowed, "{openings} openings, {bytes} bytes, {allowed} allowed");
    }
}
