//! Promise: nothing that a client or an upstream can make grow grows without a bound: not the index on disk, not
//! memory, not the names in the catalog. What a flood took is given back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    Connection, Fault, Hub, Image, Index, Larder, On, Options, RepositoryConfig, blob, eventually, get, head,
    repository_config, request,
};

const MIB: u64 = 1 << 20;

/// Bytes on disk of the index, with its log.
fn index_on_disk(dir: &Path) -> u64 {
    let size = |name: &str| std::fs::metadata(dir.join(name)).map_or(0, |metadata| metadata.len());
    ["larder.db", "larder.db-wal", "larder.db-shm"].into_iter().map(size).sum()
}

/// Bytes on disk of all files of a cache directory.
fn all_on_disk(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => all_on_disk(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Looks again and again how much is on disk.
struct Watching {
    is_over: Arc<AtomicBool>,
    looking: std::thread::JoinHandle<u64>,
}

impl Watching {
    fn begin(dir: PathBuf) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let ends = is_over.clone();
        let looking = std::thread::spawn(move || {
            let mut most = 0;
            while !ends.load(Ordering::Relaxed) {
                most = most.max(all_on_disk(&dir));
            }
            most
        });
        Self { is_over, looking }
    }

    /// The most there ever was.
    fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.looking.join().expect("looked")
    }
}

/// A tag list of about so many bytes.
fn tag_list(name: &str, bytes: usize) -> String {
    let tags: Vec<_> = (0..bytes / 40).map(|at| format!("{at:035}")).collect();
    json!({"name": name, "tags": tags}).to_string()
}

/// Has the hub answer all tag lists of a name with about so many bytes, whatever page is asked for. Registries do: GitLab
/// and older Harbor ignore `n`, and all give the whole list where `n` is larger than it.
fn long_list(hub: &Hub, name: &str, bytes: usize) {
    let list = tag_list(name, bytes);
    hub.fault(On::tags().name(name), Fault::reply(200, &[("content-type", "application/json")], &list));
}

fn tags_url(larder: &Larder, name: &str, query: &str) -> String {
    format!("{}/v2/hub/{name}/tags/list{query}", larder.url())
}

/// Asks for all of these, some at a time; panics unless each answer has the status.
async fn flood(urls: Vec<String>, status: u16) {
    let lanes = (0..8).map(|lane| {
        let urls: Vec<_> = urls.iter().skip(lane).step_by(8).cloned().collect();
        async move {
            let Some(first) = urls.first() else { return };
            let connection = Connection::http1(first).await;
            for url in urls {
                let answer = request("GET", &url).send_on(&connection).await;
                assert_eq!(answer.status, status, "{url}: {}", answer.text());
            }
        }
    });
    join_all(lanes).await;
}

async fn purge_all(larder: &Larder) {
    let answer = request("DELETE", format!("{}/api/cache", larder.admin_url())).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_lists_keeps_to_max_size_and_gives_the_room_back() {
    const LIMIT: u64 = 10_000_000;
    let mut hub = Hub::start(Options::default()).await;
    long_list(&hub, "team/app", 1_000_000);
    long_list(&hub, "team/small", 20_000);
    let objects: Vec<_> = (0..6).map(|seed| hub.push_blob("team/app", blob(seed, 1_500_000))).collect();
    let config = format!("[cache]\nmin_free = 0\nmax_size = \"10MB\"\n{}", repository_config("hub", &[&hub]));
    let mut larder = Larder::start(&config).await;
    assert_eq!(get(tags_url(&larder, "team/small", "")).await.status, 200);
    for digest in &objects {
        assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
    }
    let watching = Watching::begin(larder.dir());
    flood((1..=528).map(|n| tags_url(&larder, "team/app", &format!("?n={n}"))).collect(), 200).await;
    // The limit, and what configuration.md says of the index: its first 2 MiB do not count, it gives back soon what
    // it no longer needs, and its log grows while readers hold it, on a busy machine up to 16 MiB.
    let most = watching.end();
    assert!(most <= LIMIT + 20 * MIB, "{most} bytes");
    eventually("it keeps to the limit", async || all_on_disk(&larder.dir()) <= LIMIT + 4 * MIB).await;
    eventually("so does the index", async || index_on_disk(&larder.dir()) <= 4 * MIB).await;
    let peak = larder.resident_memory().peak;
    println!("peak resident memory: {} MiB", peak / MIB);
    assert!(peak < 192 * MIB, "{peak} bytes of memory");
    // One name's flood costs no other name's copy.
    hub.stop().await;
    let answer = get(tags_url(&larder, "team/small", "")).await;
    assert_eq!((answer.status, answer.header("x-cache")), (200, "STALE"), "{}", answer.text());
    hub.restart().await;

    purge_all(&larder).await;
    eventually("the purge gives it back", async || all_on_disk(&larder.dir()) < MIB).await;
    larder.restart().await;
    assert!(all_on_disk(&larder.dir()) < MIB, "{} bytes", all_on_disk(&larder.dir()));
    assert_eq!(get(tags_url(&larder, "team/small", "")).await.header("x-cache"), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_a_flood_of_lists_is_bounded_all_the_same() {
    let hub = Hub::start(Options::default()).await;
    long_list(&hub, "team/app", 6 << 20);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    flood((1..=160).map(|n| tags_url(&larder, "team/app", &format!("?n={n}"))).collect(), 200).await;
    let peak = larder.resident_memory().peak;
    println!("peak resident memory: {} MiB", peak / MIB);
    assert!(peak < 320 * MIB, "{peak} bytes of memory");
    eventually("the index keeps its bound", async || index_on_disk(&larder.dir()) < 80 * MIB).await;
    purge_all(&larder).await;
    assert!(index_on_disk(&larder.dir()) < MIB, "{} bytes of index", index_on_disk(&larder.dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_their_large_lists_fill_no_memory() {
    let hub = Hub::start(Options::default()).await;
    long_list(&hub, "team/app", 6 << 20);
    long_list(&hub, "team/small", 2_000);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let mut open = Vec::new();
    let mut refused = 0;
    for n in 1..=100 {
        // Nothing is read of it.
        let answer = request("GET", tags_url(&larder, "team/app", &format!("?n={n}"))).bytes_per_second(1).open().await;
        match answer.status {
            200 => open.push(answer),
            503 => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(open.len() >= 8 && refused > 0, "{} open, {refused} refused", open.len());
    let resident = larder.resident_memory().resident;
    assert!(resident < 320 * MIB, "{resident} bytes of memory");
    // Lists as they usually are pass.
    assert_eq!(get(tags_url(&larder, "team/small", "")).await.status, 200);
    drop(open);
    eventually("large ones pass again", async || get(tags_url(&larder, "team/app", "")).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_that_a_registry_would_give_are_kept() {
    let mut hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let config = RepositoryConfig::new("hub").set("max_age = \"1h\"").upstream(&hub);
    let larder = Larder::start(config).await;
    let subject = &image.manifest.digest;
    let referrers = |query: &str| format!("{}/v2/hub/team/app/referrers/{subject}{query}", larder.url());
    let kept = [
        tags_url(&larder, "team/app", ""),
        tags_url(&larder, "team/app", "?n=10"),
        tags_url(&larder, "team/app", "?n=0010"),
        tags_url(&larder, "team/app", "?n=10&last=1.0_x-y"),
        referrers(""),
        referrers("?artifactType=application/vnd.example.sbom%2Bjson"),
    ];
    let long = "a".repeat(300);
    let passed = [
        tags_url(&larder, "team/app", "?n=10001"),
        tags_url(&larder, "team/app", "?n=-1"),
        tags_url(&larder, "team/app", "?n=ten"),
        tags_url(&larder, "team/app", "?last=a%20b"),
        tags_url(&larder, "team/app", &format!("?last={long}")),
        referrers("?artifactType=a%20b"),
        referrers(&format!("?artifactType={long}")),
    ];
    for url in kept.iter().chain(&passed) {
        assert_eq!(get(url).await.status, 200, "{url}");
    }
    for url in &kept {
        assert_eq!(get(url).await.header("x-cache"), "HIT", "{url}");
    }
    // The same page in other words.
    assert_eq!(get(tags_url(&larder, "team/app", "?n=00010")).await.header("x-cache"), "HIT");
    for url in &passed {
        assert_eq!(get(url).await.header("x-cache"), "MISS", "{url}");
    }
    hub.stop().await;
    for url in &passed {
        assert_eq!(get(url).await.status, 502, "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_referrers_absences_and_long_names_leave_little_behind() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let config = RepositoryConfig::new("hub").set("negative_max_age = \"1h\"").upstream(&hub).to_string();
    let larder = Larder::start(format!("[cache]\nmin_free = 0\nmax_size = \"10MB\"\n{config}")).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let before = larder.resident_memory().resident;

    // Empty lists: a registry with the API gives one for whatever it is asked.
    let subject = &image.manifest.digest;
    let referrers = |query: String| format!("{}/v2/hub/team/app/referrers/{query}", larder.url());
    flood((0..3000).map(|at| referrers(format!("{subject}?artifactType=application/x-{at}"))).collect(), 200).await;
    flood((0..3000).map(|at| referrers(format!("sha256:{at:064x}"))).collect(), 200).await;
    // Tags and names as long as they may be, each with another end.
    let long = |at: usize, length: usize| format!("{}{at:08}", "a".repeat(length - 8));
    flood((0..6000).map(|at| larder.manifest_url("hub/team/app", &long(at, 128))).collect(), 404).await;
    flood((0..6000).map(|at| larder.manifest_url(&format!("hub/{}", long(at, 255)), "1")).collect(), 404).await;

    assert!(index_on_disk(&larder.dir()) <= 5 * MIB, "{} bytes of index", index_on_disk(&larder.dir()));
    let grown = larder.resident_memory().resident.saturating_sub(before);
    assert!(grown < 48 * MIB, "{grown} bytes more");
    // One byte more is no name.
    let answer = get(larder.manifest_url(&format!("hub/{}", long(1, 256)), "1")).await;
    assert_eq!((answer.status, answer.error_code().as_str()), (400, "NAME_INVALID"));
    // What is asked for by clients makes no series.
    let series = larder.metrics().await.lines().count();
    assert!(series < 400, "{series} lines of metrics");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_counts_only_once_the_upstream_has_confirmed_it() {
    let mut hub = Hub::start(Options::default()).await;
    let index = Index::new(1, &["linux/amd64", "linux/arm64"]);
    hub.push_index("team/app", "1", &index);
    hub.push_index("team/copy", "1", &index);
    // For as long as this takes on a busy machine.
    let config = RepositoryConfig::new("hub").set("negative_max_age = \"1h\"").upstream(&hub);
    let mut larder = Larder::start(config).await;
    let digest = &index.manifest.digest;
    let child = &index.images[0].manifest.digest;
    for reference in ["1", digest, child] {
        assert_eq!(get(larder.manifest_url("hub/team/app", reference)).await.status, 200);
    }
    let catalog =
        async |larder: &Larder| get(format!("{}/v2/_catalog", larder.url())).await.json()["repositories"].clone();
    eventually("it is listed", async || catalog(&larder).await == json!(["hub/team/app"])).await;
    let size = index_on_disk(&larder.dir());

    hub.take_requests();
    flood((0..2000).map(|at| larder.manifest_url(&format!("hub/made/up-{at}"), digest)).collect(), 404).await;
    flood((0..2000).map(|at| larder.manifest_url(&format!("hub/made/up-{at}"), child)).collect(), 404).await;
    assert_eq!(catalog(&larder).await, json!(["hub/team/app"]));
    assert!(index_on_disk(&larder.dir()) < size + MIB, "{} bytes of index", index_on_disk(&larder.dir()));
    // Each name and digest costs one HEAD, and nothing while that is remembered.
    assert_eq!(hub.count_on(On::manifest().head()), 4000);
    assert_eq!(hub.count_on(On::manifest().get()), 0);
    assert_eq!(get(larder.manifest_url("hub/made/up-0", digest)).await.status, 404);
    assert_eq!(hub.count_on(On::manifest()), 4000);

    // A name that the upstream has it under counts, by one HEAD, and what an index of that name leads to without any.
    hub.take_requests();
    for reference in [digest, child, digest] {
        assert_eq!(get(larder.manifest_url("hub/team/copy", reference)).await.header("x-cache"), "HIT");
    }
    assert_eq!((hub.count_on(On::manifest().head()), hub.count_on(On::manifest())), (1, 1), "{}", hub.summary());
    let both = json!(["hub/team/app", "hub/team/copy"]);
    eventually("both are listed", async || catalog(&larder).await == both).await;

    // In an outage all is served that may be seen here, and nothing more is listed.
    larder.restart().await;
    hub.stop().await;
    for (name, reference) in [("team/app", "1"), ("team/app", child), ("team/copy", digest), ("made/up", digest)] {
        assert_eq!(get(larder.manifest_url(&format!("hub/{name}"), reference)).await.status, 200, "{name}@{reference}");
    }
    assert_eq!(catalog(&larder).await, both);
    let listed = larder.run(&["ls", "--json"]).await;
    assert!(!listed.stdout.contains("made"), "{}", listed.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_is_asked_about_few_names_at_once() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let digest = &image.manifest.digest;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    hub.take_requests();
    let hold = hub.hold(On::manifest().head());
    let asking: Vec<_> =
        (0..100).map(|at| tokio::spawn(get(larder.manifest_url(&format!("hub/made/up-{at}"), digest)))).collect();
    hold.wait_for(16).await;
    // A name that is known waits for none of them.
    assert_eq!(get(larder.manifest_url("hub/team/app", digest)).await.header("x-cache"), "HIT");
    assert_eq!(hub.count_on(On::manifest()), 16, "{}", hub.summary());
    hold.open();
    for answer in asking {
        assert_eq!(answer.await.expect("answered").status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_hit_needs_no_name_to_be_confirmed() {
    let hub = Hub::start(Options::default()).await;
    let digest = hub.push_blob("team/app", blob(1, 100_000));
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
    eventually("it is stored", async || {
        head(larder.blob_url("hub/team/app", &digest)).await.header("x-cache") == "HIT"
    })
    .await;
    hub.take_requests();
    for at in 0..20 {
        assert_eq!(get(larder.blob_url(&format!("hub/other/{at}"), &digest)).await.header("x-cache"), "HIT");
    }
    assert_eq!(hub.requests().len(), 0, "{}", hub.summary());
}
