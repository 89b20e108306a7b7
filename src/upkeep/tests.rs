//! Tests upkeep on a simulated store, in virtual time.

use std::collections::HashSet;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::room::{Reservation, Room};
use super::*;
use crate::config::tests::parse;
use crate::failure::{Failure, FailureKind};
use crate::index::simulated as index_simulated;
use crate::index::{Index, LocalIndex, ObjectEntry, Sqlite, Timestamp, Write};
use crate::oci::{Algorithm, Digest};
use crate::s3::{Upload, bucket_at};
use crate::spool::Spool;
use crate::store::Store;
use crate::store::simulated::{Health, Simulated};
use crate::work::Pool;

/// A cache in which nothing comes in, unless a test says so.
#[derive(Default)]
struct Quiet {
    is_storing: AtomicBool,
    gone: Mutex<HashSet<Digest>>,
}

impl Cached for Quiet {
    fn is_coming_in(&self, _: &Digest) -> bool {
        false
    }

    fn is_storing(&self) -> bool {
        self.is_storing.load(Ordering::Relaxed)
    }

    fn gone(&self, digests: &HashSet<Digest>) {
        self.gone.lock().expect("no panic while held").extend(digests);
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    store: Simulated,
    cached: Arc<Quiet>,
    upkeep: Arc<Upkeep>,
}

/// Starts upkeep with these keys of `[cache]`.
async fn scene(keys: &str) -> Scene {
    let dir = tempfile::tempdir().expect("a directory");
    let text = format!("[cache]\ndir = {:?}\n{keys}\n", dir.path().join("cache"));
    let config = parse(&text).expect("a configuration");
    let pool = Pool::new("a test", 8, Duration::from_secs(3600));
    let (store, cached) = (Simulated::default(), Arc::new(Quiet::default()));
    std::fs::create_dir(dir.path().join("cache")).expect("made");
    let parts = Parts {
        store: Arc::new(store.clone()),
        spool: Spool::new(dir.path().join("partial"), pool.clone()),
        index: Arc::new(LocalIndex::new(
            Sqlite::open(&dir.path().join("cache")).expect("an index"),
            pool.clone(),
            pool.clone(),
        )),
        cached: cached.clone(),
        pool,
        bucket: None,
        metrics: Arc::default(),
    };
    let upkeep = Arc::new(Upkeep::new(&config, parts));
    tokio::spawn(run(upkeep.clone(), true));
    upkeep.loaded().await;
    // After the comparison with the files that each start makes.
    upkeep.census(true).await.expect("counted");
    Scene { _dir: dir, store, cached, upkeep }
}

fn digest(number: u32) -> Digest {
    Digest::of(Algorithm::Sha256, &number.to_le_bytes())
}

impl Scene {
    fn objects(&self) -> usize {
        self.upkeep.ledger().totals().0
    }

    async fn reserve(&self, bytes: u64) -> Result<Reservation, Failure> {
        self.upkeep.reserve(bytes).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_expires_keeps_nobody_waiting_who_needs_room() {
    // `max_size` is as large as what is stored, so that each object that comes in needs another to go.
    let scene = scene("ttl = \"1h\"\nmax_size = \"614400000\"").await;
    {
        let mut ledger = scene.upkeep.ledger();
        (0..150_000).for_each(|number| ledger.stored(digest(number), 4_000, 0, 1));
    }
    // 370 files a second: 16 of them take 43 ms.
    scene.store.set(Health::Slow(Duration::from_millis(43)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!((1..150_000).contains(&scene.objects()), "they have begun to go: {}", scene.objects());
    for _ in 0..10 {
        let asked = Instant::now();
        let _reserved = scene.reserve(1_000).await.expect("room");
        assert!(asked.elapsed() < Duration::from_secs(1), "it waited {:?}", asked.elapsed());
    }
    assert!(scene.objects() > 100_000, "most are still there: {}", scene.objects());
    tokio::time::sleep(Duration::from_secs(3_000)).await;
    assert_eq!(scene.objects(), 0);
    assert_eq!(scene.cached.gone.lock().expect("no panic").len(), 150_000);
}

#[tokio::test(start_paused = true)]
async fn room_for_a_large_object_keeps_no_small_one_waiting() {
    let scene = scene("max_size = \"614400000\"").await;
    {
        let mut ledger = scene.upkeep.ledger();
        (0..150_000).for_each(|number| ledger.stored(digest(number), 4_000, 0, 1));
    }
    scene.store.set(Health::Slow(Duration::from_millis(43)));
    let large = scene.reserve(400 << 20);
    let small = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let asked = Instant::now();
        let reserved = scene.reserve(1_000).await;
        assert!(asked.elapsed() < Duration::from_secs(1), "it waited {:?}", asked.elapsed());
        reserved
    };
    let (large, small) = tokio::join!(large, small);
    assert!(small.is_ok());
    // Making room would take minutes: the object passes uncached, and what was reserved for it is given back.
    assert_eq!(large.expect_err("too slow").kind, FailureKind::Storage);
    drop(small);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.upkeep.ledger().reserved(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_does_not_answer_keeps_nobody_waiting_for_long() {
    let scene = scene("max_size = \"1000000\"").await;
    scene.upkeep.stored(digest(1), 999_000, "r");
    scene.store.set(Health::Hanging);
    let asked = Instant::now();
    let failure = scene.reserve(900_000).await.expect_err("no room can be made");
    assert_eq!(failure.kind, FailureKind::Storage);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    scene.store.set(Health::Well);
    tokio::time::sleep(Duration::from_secs(60)).await;
    scene.reserve(900_000).await.expect("room again");
}

#[tokio::test(start_paused = true)]
async fn what_is_being_stored_is_waited_for_as_long_as_it_may_leave_room() {
    let scene = scene("max_size = \"1000000\"").await;
    let held = scene.reserve(900_000).await.expect("room");
    let denied = scene.reserve(900_000).await.expect_err("no room");
    assert_eq!(denied.kind, FailureKind::NoRoom);
    scene.cached.is_storing.store(true, Ordering::Relaxed);
    let storing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.upkeep.stored(digest(1), 900_000, "r");
        drop(held);
    };
    let (reserved, ()) = tokio::join!(scene.reserve(900_000), storing);
    reserved.expect("the other can go once it is stored");
    assert_eq!(scene.objects(), 0);
}

#[tokio::test(start_paused = true)]
async fn files_and_ledger_are_brought_in_line() {
    let scene = scene("").await;
    scene.store.put(&digest(1), bytes::Bytes::from_static(b"unknown")).await.expect("stored");
    scene.upkeep.stored(digest(2), 10, "r");
    let seen = scene.upkeep.census(false).await.expect("counted");
    assert_eq!((seen.unknown, seen.missing, seen.bytes), (vec![digest(1)], vec![digest(2)], 7));
    let mended = scene.upkeep.census(true).await.expect("counted");
    assert_eq!((mended.unknown, mended.missing), (vec![digest(1)], vec![digest(2)]));
    assert_eq!(*scene.cached.gone.lock().expect("no panic"), HashSet::from([digest(2)]));
    let after = scene.upkeep.census(false).await.expect("counted");
    assert!(after.unknown.is_empty() && after.missing.is_empty());
    scene.store.set(Health::Failing(io::ErrorKind::Other));
    scene.upkeep.census(true).await.expect_err("the disk fails");
    scene.store.set(Health::Well);
    assert!(scene.upkeep.census(false).await.expect("counted").missing.is_empty(), "nothing was taken for missing");
}

/// A disk that is slow for a moment is not damage: with `--repair`, the object would be gone.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_in_time_is_told_and_not_taken_out() {
    let scene = scene("").await;
    let digests: Vec<_> = [&b"one"[..], b"two"].map(|content| Digest::of(Algorithm::Sha256, content)).into();
    for (digest, content) in digests.iter().zip([&b"one"[..], b"two"]) {
        scene.store.put(digest, bytes::Bytes::from_static(content)).await.expect("stored");
    }
    let store = scene.store.clone();
    let hangs_behind_the_first = move |_: &scrub::Report| {
        store.set(Health::Hanging);
        true
    };
    let report = scrub::verify(&scene.upkeep, true, hangs_behind_the_first).await.expect("verified");
    assert_eq!((report.objects, report.unreadable.count, report.unrepaired), (1, 1, 1), "{report:?}");
    assert_eq!(scene.objects(), 2, "what is known of it is not forgotten either");
    scene.store.set(Health::Well);
    for digest in &digests {
        assert!(scene.store.contains(digest).await.expect("known"));
    }
}

/// Upkeep of a cache with a bucket at an address where nothing listens, on an index that fails as a test says.
fn with_bucket(has_bucket: bool) -> (tempfile::TempDir, index_simulated::Simulated, Upkeep) {
    let dir = tempfile::tempdir().expect("a directory");
    let keys = match has_bucket {
        true => "[storage.s3]\nbucket = \"larder\"",
        false => "",
    };
    let config = parse(&format!("[cache]\ndir = {:?}\n{keys}\n", dir.path())).expect("a configuration");
    let index = index_simulated::Simulated::open(dir.path());
    let pool = Pool::new("a test", 8, Duration::from_secs(3600));
    let parts = Parts {
        store: Arc::new(Simulated::default()),
        spool: Spool::new(dir.path().join("partial"), pool.clone()),
        index: Arc::new(index.clone()),
        cached: Arc::new(Quiet::default()),
        pool,
        bucket: has_bucket.then(|| bucket_at("http://127.0.0.1:1")),
        metrics: Arc::default(),
    };
    let upkeep = Upkeep::new(&config, parts);
    (dir, index, upkeep)
}

/// Notes an object with its upload.
async fn put(index: &dyn Index, digest: Digest) -> Upload {
    let upload = Upload::new(digest).expect("random numbers");
    let generation = Some(upload.generation);
    let entry = ObjectEntry { size: 10, media_type: None, stored_at: Timestamp(1), generation };
    index.apply(vec![Write::Object { digest, entry }]).await.expect("queued");
    index.flush().await.expect("written");
    upload
}

#[tokio::test]
async fn what_a_row_still_names_is_not_deleted_and_stays_counted() {
    for health in [index_simulated::Health::Torn, index_simulated::Health::Full] {
        let (_dir, index, upkeep) = with_bucket(true);
        let upload = put(&index, digest(1)).await;
        // The change is lost, or cannot be made.
        index.set(health).await;
        assert_eq!(upkeep.forget_uploaded(&[digest(1)]).await, [], "{health:?}");
        assert!(upkeep.is_uploaded(&digest(1)), "{health:?}");
        let waiting = upkeep.leaving().waiting();
        assert_eq!(leaving::unnamed(&index, waiting).await, [], "{health:?}");
        index.set(index_simulated::Health::Well).await;
        assert_eq!(upkeep.forget_uploaded(&[digest(1)]).await, [digest(1)]);
        assert_eq!(leaving::unnamed(&index, vec![upload]).await, [upload]);
    }
    // What cannot be read may be named.
    let (_dir, index, upkeep) = with_bucket(true);
    let upload = put(&index, digest(1)).await;
    index.set(index_simulated::Health::Failing).await;
    assert_eq!(upkeep.forget_uploaded(&[digest(1)]).await, []);
    assert_eq!(leaving::unnamed(&index, vec![upload]).await, []);
}

/// The tier takes a file out at the moment in which the object's upload is noted.
#[tokio::test]
async fn a_file_that_goes_takes_no_row_with_it_that_names_an_upload() {
    for has_bucket in [true, false] {
        let (_dir, index, upkeep) = with_bucket(has_bucket);
        put(&index, digest(1)).await;
        upkeep.forget(&[digest(1)]).await;
        index.flush().await.expect("written");
        let row = index.object(&digest(1)).await.expect("read");
        assert_eq!(row.is_some(), has_bucket, "without a bucket, the file was all there was");
    }
}

#[tokio::test]
async fn an_upload_runs_until_its_end() {
    let (_dir, _, upkeep) = with_bucket(true);
    let upload = Upload::new(digest(1)).expect("random numbers");
    let running = upkeep.begin_upload(upload);
    assert!(upkeep.is_uploading(&upload));
    drop(running);
    assert!(!upkeep.is_uploading(&upload));
}
