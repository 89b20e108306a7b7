//! Promise: the disk is never filled. Eviction while running, least recently used first, with accounts
//! that are right after any crash.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::{
    Connection, Fault, Hub, Larder, On, Options, RepositoryConfig, blob, client, eventually, get, head,
    repository_config, request,
};

const KIB: usize = 1 << 10;

/// Bytes that objects and downloads take on disk; a file that is moved while they are counted is one.
fn used(dir: &Path) -> u64 {
    let mut files = std::collections::HashMap::new();
    let mut open = vec![dir.join("blobs"), dir.join("partial")];
    while let Some(folder) = open.pop() {
        // Files may go while they are counted.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => open.push(entry.path()),
                Ok(metadata) => drop(files.insert(metadata.ino(), metadata.len())),
                Err(_) => {}
            }
        }
    }
    files.values().sum()
}

/// Looks again and again at a disk.
struct Watching {
    is_over: Arc<AtomicBool>,
    counting: std::thread::JoinHandle<u64>,
}

impl Watching {
    /// Counts what objects and downloads take; the end tells the most.
    fn begin(dir: std::path::PathBuf) -> Self {
        Self::keep(0, move |most| most.max(used(&dir)))
    }

    fn keep(first: u64, look: impl Fn(u64) -> u64 + Send + 'static) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let ends = is_over.clone();
        let counting = std::thread::spawn(move || {
            let mut kept = first;
            while !ends.load(Ordering::Relaxed) {
                kept = look(kept);
            }
            kept
        });
        Self { is_over, counting }
    }

    /// What was kept of all looks.
    fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.counting.join().expect("counted")
    }
}

async fn start(hub: &Hub, cache: &str) -> Larder {
    // This machine's disk may be as full as it likes.
    let config = format!("[cache]\nmin_free = 0\n{cache}\n{}", repository_config("hub", &[hub]));
    Larder::start(&config).await
}

async fn is_hit(larder: &Larder, digest: &str) -> bool {
    head(larder.blob_url("hub/team/app", digest)).await.header("x-cache") == "HIT"
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_as_much_content_never_passes_the_limit() {
    const LIMIT: u64 = 8 << 20;
    const LARGEST: usize = 1 << 20;
    let hub = Hub::start(Options::default()).await;
    let sizes = (0..160u64).map(|at| (at, 16 * KIB + (at as usize * 7919 * KIB) % (LARGEST - 16 * KIB)));
    let objects: Vec<_> = sizes.map(|(seed, size)| (seed, size, hub.push_blob("team/app", blob(seed, size)))).collect();
    let larder = Arc::new(start(&hub, "max_size = \"8MiB\"").await);
    let objects = Arc::new(objects);

    let watching = Watching::begin(larder.dir());
    let clients: Vec<_> = (0..4u64)
        .map(|client| {
            let (larder, objects) = (larder.clone(), objects.clone());
            tokio::spawn(async move {
                let mut random = client + 1;
                for _ in 0..100 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (seed, size, digest) = &objects[(random >> 33) as usize % objects.len()];
                    let answer = get(larder.blob_url("hub/team/app", digest)).await;
                    assert!(answer.complete(), "{} {:?}", answer.status, answer.error);
                    assert!(answer.body == blob(*seed, *size), "wrong bytes");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("every byte is right");
    }
    let most = watching.end();
    // One object for what is in flight, and one for what comes and goes while the files are counted.
    assert!(most > LIMIT / 2 && most <= LIMIT + 2 * LARGEST as u64, "{most} bytes");
    let stats = larder.stats().await;
    assert!(stats["evictions"].as_u64().is_some_and(|evictions| evictions > 100), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_goes_first_and_a_hit_saves() {
    let hub = Hub::start(Options::default()).await;
    let digests: Vec<_> = (0..4).map(|seed| hub.push_blob("team/app", blob(seed, 300 * KIB))).collect();
    let larder = start(&hub, "max_size = \"1000KiB\"").await;
    for (at, digest) in digests[..3].iter().enumerate() {
        assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
        eventually("it is stored", async || larder.stats().await["stores"] == at + 1).await;
    }
    assert!(get(larder.blob_url("hub/team/app", &digests[0])).await.complete());
    assert!(get(larder.blob_url("hub/team/app", &digests[3])).await.complete());
    eventually("it is stored", async || larder.stats().await["stores"] == 4).await;
    let kept: Vec<_> = [is_hit(&larder, &digests[0]).await, is_hit(&larder, &digests[1]).await].into();
    assert_eq!(kept, [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_the_cache_passes_uncached() {
    let hub = Hub::start(Options::default()).await;
    let digest = hub.push_blob("team/app", blob(1, 2 << 20));
    let small = hub.push_blob("team/app", blob(2, 300 * KIB));
    let larder = start(&hub, "max_size = \"1MiB\"").await;
    assert!(get(larder.blob_url("hub/team/app", &small)).await.complete());
    eventually("it is stored", async || larder.stats().await["stores"] == 1).await;
    for _ in 0..2 {
        let answer = get(larder.blob_url("hub/team/app", &digest)).await;
        assert!(answer.complete() && answer.body == blob(1, 2 << 20));
    }
    let stats = larder.stats().await;
    assert_eq!((&stats["objects"], &stats["evictions"], &stats["errors"]), (&1.into(), &0.into(), &0.into()));
    assert_eq!(stats["unstored"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_dropped_after_its_time() {
    let hub = Hub::start(Options::default()).await;
    let digest = hub.push_blob("team/app", blob(1, 300 * KIB));
    let larder = start(&hub, "ttl = \"1s\"").await;
    assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
    eventually("it is dropped", async || larder.stats().await["evictions"] == 1).await;
    assert_eq!(used(&larder.dir()), 0);
    assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_right_after_a_crash_and_after_files_came_and_went() {
    let hub = Hub::start(Options::default()).await;
    let digests: Vec<_> = (0..3).map(|seed| hub.push_blob("team/app", blob(seed, 300 * KIB))).collect();
    let mut larder = start(&hub, "").await;
    for digest in &digests {
        assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
    }
    eventually("all are stored", async || larder.stats().await["stores"] == 3).await;
    larder.kill9();
    // One file vanishes, and the index forgets everything.
    std::fs::remove_file(larder.object(&digests[0])).expect("removed");
    for name in ["larder.db", "larder.db-wal", "larder.db-shm"] {
        std::fs::remove_file(larder.dir().join(name)).ok();
    }
    larder.restart().await;
    eventually("the accounts are right", async || {
        let stats = larder.stats().await;
        stats["objects"] == 2 && stats["current_size"] == used(&larder.dir())
    })
    .await;
    assert!(is_hit(&larder, &digests[1]).await);
    assert!(!is_hit(&larder, &digests[0]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_may_keep_its_objects_longer_or_shorter() {
    let hub = Hub::start(Options::default()).await;
    let [brief, long, both] = [1, 2, 3].map(|seed| hub.push_blob("team/app", blob(seed, 10 * KIB)));
    let config = [("brief", "ttl = \"3s\""), ("long", "ttl = \"none\"")]
        .map(|(prefix, ttl)| RepositoryConfig::new(prefix).set(ttl).upstream(&hub).to_string());
    let mut larder = Larder::start(&format!("[cache]\nmin_free = 0\nttl = \"1h\"\n{}\n{}", config[0], config[1])).await;
    for (prefix, digest) in [("brief", &brief), ("long", &long), ("brief", &both), ("long", &both)] {
        assert!(get(larder.blob_url(&format!("{prefix}/team/app"), digest)).await.complete());
        eventually("it is stored", async || is_hit_in(&larder, prefix, digest).await).await;
    }
    for _ in 0..2 {
        eventually("what is brief is dropped", async || larder.stats().await["objects"] == 2).await;
        assert!(is_hit_in(&larder, "long", &long).await && is_hit_in(&larder, "long", &both).await);
        // The same after a restart, when only the index knows who wants what.
        assert!(get(larder.blob_url("brief/team/app", &brief)).await.complete());
        eventually("it is stored", async || larder.stats().await["objects"] == 3).await;
        larder.restart().await;
    }
}

async fn is_hit_in(larder: &Larder, prefix: &str, digest: &str) -> bool {
    head(larder.blob_url(&format!("{prefix}/team/app"), digest)).await.header("x-cache") == "HIT"
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_read_is_not_evicted() {
    // Larger than what the sockets between take in.
    const READ: usize = 48 << 20;
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, READ);
    let digest = hub.push_blob("team/app", content.clone());
    let larder = start(&hub, "max_size = \"56MiB\"").await;
    assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
    eventually("it is stored", async || is_hit(&larder, &digest).await).await;

    let mut reading = client::open(larder.blob_url("hub/team/app", &digest)).await;
    assert_eq!(reading.read_exact(4096).await, content[..4096]);
    for seed in 2..8 {
        let other = hub.push_blob("team/app", blob(seed, 3 << 20));
        assert!(get(larder.blob_url("hub/team/app", &other)).await.complete());
        eventually("it is stored", async || is_hit(&larder, &other).await).await;
    }
    assert!(larder.object(&digest).exists(), "it is the oldest, and being read");
    assert!(larder.stats().await["evictions"].as_u64() > Some(0));
    let rest = reading.read_to_end().await;
    assert!(rest.complete() && rest.body == content[4096..]);
    // Done with, it is the next to go.
    eventually("it is evicted", async || {
        let other = hub.push_blob("team/app", blob(rand_seed(), 5 << 20));
        get(larder.blob_url("hub/team/app", &other)).await.complete() && !larder.object(&digest).exists()
    })
    .await;
}

/// Another number each time.
fn rand_seed() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_downloads_count_and_go_first() {
    let hub = Hub::start(Options::default()).await;
    let kept = hub.push_blob("team/app", blob(1, 3 << 20));
    let mut larder = start(&hub, "max_size = \"10MiB\"").await;
    assert!(get(larder.blob_url("hub/team/app", &kept)).await.complete());
    // A hit already when it is verified; a kill before it has its name would leave a download of it, too.
    eventually("it is stored", async || larder.stats().await["stores"] == 1).await;
    // 5 MiB that nobody comes back for.
    let abandoned = hub.push_blob("team/app", blob(2, 5 << 20));
    let gate = hub.gate(On::blob().get().times(1), 2 << 20);
    let reading = client::open(larder.blob_url("hub/team/app", &abandoned)).await;
    gate.reached().await;
    drop(reading);
    larder.kill9();
    gate.open();
    larder.restart().await;
    assert!(std::fs::read_dir(larder.dir().join("partial")).expect("a folder").count() > 0);

    let next = hub.push_blob("team/app", blob(3, 5 << 20));
    assert!(get(larder.blob_url("hub/team/app", &next)).await.complete());
    eventually("it is stored", async || is_hit(&larder, &next).await).await;
    // What is verified is a hit, also while its file is being moved.
    let partials = || std::fs::read_dir(larder.dir().join("partial")).expect("a folder").count();
    eventually("the abandoned download goes", async || partials() == 0).await;
    assert!(is_hit(&larder, &kept).await, "what is complete stays");
    assert_eq!(larder.stats().await["evictions"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_unknown_length_keep_to_the_limit_too() {
    let hub = Hub::start(Options::default()).await;
    let small = hub.push_blob("team/app", blob(1, 3 << 20));
    let large = hub.push_blob("team/app", blob(2, 24 << 20));
    let larder = start(&hub, "max_size = \"8MiB\"").await;
    assert!(get(larder.blob_url("hub/team/app", &small)).await.complete());
    eventually("it is stored", async || is_hit(&larder, &small).await).await;
    hub.fault(On::blob().get(), Fault::NoContentLength);

    let watching = Watching::begin(larder.dir());
    let answer = get(larder.blob_url("hub/team/app", &large)).await;
    let most = watching.end();
    assert!(answer.complete() && answer.body == blob(2, 24 << 20), "it passes uncached");
    assert!(most <= 9 << 20, "{most} bytes on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_objects_count_with_the_disk_that_they_take() {
    let hub = Hub::start(Options::default()).await;
    let larder = start(&hub, "max_size = \"2MiB\"").await;
    let connection = Connection::http1(larder.url()).await;
    for seed in 0..1000 {
        let digest = hub.push_blob("team/app", format!("{seed}"));
        let url = larder.blob_url("hub/team/app", &digest);
        assert!(request("GET", url).send_on(&connection).await.complete());
    }
    // A file of one byte takes a block of 4 KiB: at most 512 of them fit.
    eventually("they keep to the limit", async || {
        let objects = larder.stats().await["objects"].as_u64().expect("a number");
        (200..=512).contains(&objects)
    })
    .await;
    assert!(larder.stats().await["evictions"].as_u64() > Some(400));
}

/// A filesystem that cannot set space aside (ext2 has no `fallocate`; nor have ZFS and some NFS servers), in a file.
/// Needs root, as the real clients do.
struct Ext2(tempfile::TempDir);

impl Ext2 {
    /// `None` where no file can be mounted: not as root, or without a loop device.
    fn mount(megabytes: u64) -> Option<Self> {
        let disk = Self(tempfile::tempdir().expect("a directory"));
        let image = disk.0.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(megabytes << 20)).expect("made");
        std::fs::create_dir(disk.path()).expect("made");
        let run = |program: &str, arguments: &[&str], path: Option<&Path>| {
            let done = std::process::Command::new(program).args(arguments).arg(&image).args(path).output();
            let done = done.unwrap_or_else(|error| panic!("{program} is there: {error}"));
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            done.status.success().then_some(()).ok_or(said)
        };
        // None of its blocks are for root alone: Larder may be root here.
        run("mkfs.ext2", &["-q", "-m", "0"], None).expect("a filesystem");
        match run("mount", &["-o", "loop"], Some(&disk.path())) {
            Ok(()) => Some(disk),
            Err(why) => {
                eprintln!("no file can be mounted here: {why}");
                std::mem::forget(disk);
                None
            }
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("disk")
    }

    /// Looks again and again how much is free; the end tells the least.
    fn watch(&self) -> Watching {
        let path = self.path();
        Watching::keep(u64::MAX, move |least| {
            let found = rustix::fs::statvfs(&path).expect("mounted");
            least.min(found.f_bavail * found.f_frsize)
        })
    }
}

impl Drop for Ext2 {
    fn drop(&mut self) {
        let ended = std::process::Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(ended.is_ok_and(|status| status.success()), "umount failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn min_free_is_left_also_where_no_space_can_be_set_aside() {
    const MIB: usize = 1 << 20;
    let Some(disk) = Ext2::mount(96) else {
        return;
    };
    let hub = Hub::start(Options::default()).await;
    let config = format!("[cache]\nmax_size = \"none\"\nmin_free = \"40MiB\"\n{}", repository_config("hub", &[&hub]));
    let dir = disk.path().join("cache").display().to_string();
    let larder = Larder::builder().config(config).env("LARDER_CACHE__DIR", &dir).start().await;
    let blobs: Vec<_> = (0..8).map(|number| blob(number, 12 * MIB)).collect();
    // All of them have begun, and asked for room, before any has written much.
    let gate = hub.gate(On::blob(), 1000);
    let pulls: Vec<_> = blobs
        .iter()
        .map(|content| {
            let url = larder.blob_url("hub/team/app", &hub.push_blob("team/app", content.clone()));
            tokio::spawn(async move { get(url).await })
        })
        .collect();
    eventually("all are under way", async || hub.requests().len() >= 8).await;
    let least = disk.watch();
    gate.open();
    for (pull, content) in pulls.into_iter().zip(&blobs) {
        let answer = pull.await.expect("no panic");
        assert!(answer.complete() && answer.body == content, "{} {:?}", answer.status, answer.error);
    }
    let least = least.end();
    // Beside the files, the filesystem takes blocks for the lists of their blocks.
    assert!(least >= 39 << 20, "{} KiB were left", least >> 10);
    eventually("what fits is stored", async || larder.stats().await["stores"].as_u64() > Some(0)).await;
}
