//! Promise: a disk that is slow to sync, or never done with it, keeps no client waiting; what is verified is a hit from
//! then on, and a stop waits for it as long as it may.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::disk::SlowDisk;
use crate::support::{Hub, Image, Larder, Options, blob, eventually, get, head, request};

/// What is asked of Larder is a hit with these bytes, by GET and HEAD.
async fn expect_hit(url: &str, content: &[u8]) {
    let answer = head(url).await;
    assert_eq!((answer.status, answer.header("x-cache")), (200, "HIT"), "HEAD {url}");
    assert_eq!(answer.header("content-length"), content.len().to_string());
    let answer = get(url).await;
    assert_eq!((answer.status, answer.header("x-cache")), (200, "HIT"), "GET {url}");
    assert!(answer.complete() && answer.body == content, "GET {url}: {:?}", answer.error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_answered_when_its_digest_matched_and_is_a_hit_before_it_is_synced() {
    let disk = SlowDisk::new();
    let mut hub = Hub::start(Options::default()).await;
    let manifest = Image::new(1).manifest;
    hub.push_manifest("team/app", Some("1"), &manifest);
    let larder = disk.under(&hub).start().await;
    disk.hold();
    let (tag, digest) =
        (larder.manifest_url("hub/team/app", "1"), larder.manifest_url("hub/team/app", &manifest.digest));
    let asked_at = Instant::now();
    let answer = get(&tag).await;
    assert_eq!((answer.status, answer.header("x-cache"), &answer.body), (200, "MISS", &manifest.bytes));
    assert!(asked_at.elapsed() < Duration::from_secs(2), "it took {:?}", asked_at.elapsed());
    disk.has_begun(1).await;
    hub.stop().await;
    for url in [&tag, &digest] {
        expect_hit(url, &manifest.bytes).await;
    }
    assert_eq!(disk.calls().1, 0, "it is still being synced");
    assert!(!larder.object(&manifest.digest).exists());

    disk.let_go();
    eventually("it is stored", async || larder.stats().await["stores"] == 1).await;
    assert!(larder.object(&manifest.digest).exists());
    for url in [&tag, &digest] {
        expect_hit(url, &manifest.bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_a_hit_when_its_digest_matched_and_before_it_is_synced() {
    let disk = SlowDisk::new();
    let mut hub = Hub::start(Options::default()).await;
    let content = blob(1, 1_000_000);
    let digest = hub.push_blob("team/app", content.clone());
    let larder = disk.under(&hub).start().await;
    disk.hold();
    let url = larder.blob_url("hub/team/app", &digest);
    let answer = get(&url).await;
    assert_eq!((answer.status, answer.header("x-cache")), (200, "MISS"));
    assert!(answer.complete() && answer.body == content);
    disk.has_begun(1).await;
    hub.stop().await;
    let expect_hits = async || {
        expect_hit(&url, &content).await;
        for (range, from, to) in [("0-9", 0, 10), ("500000-", 500_000, 1_000_000), ("-100", 999_900, 1_000_000)] {
            let answer = request("GET", &url).header("range", format!("bytes={range}")).send().await;
            assert_eq!((answer.status, answer.header("x-cache")), (206, "HIT"), "{range}");
            assert!(answer.body == content[from..to], "{range}");
        }
    };
    expect_hits().await;
    assert_eq!(disk.calls().1, 0, "it is still being synced");
    assert!(!larder.object(&digest).exists());

    disk.let_go();
    eventually("it is stored", async || larder.stats().await["stores"] == 1).await;
    assert!(larder.object(&digest).exists());
    expect_hits().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_what_is_being_synced() {
    let disk = SlowDisk::new();
    let mut hub = Hub::start(Options::default()).await;
    let (manifest, content) = (Image::new(1).manifest, blob(1, 1_000_000));
    hub.push_manifest("team/app", Some("1"), &manifest);
    let digest = hub.push_blob("team/app", content.clone());
    let mut larder = disk.under(&hub).start().await;
    // Its file, the folder that is made for it, and that in which it gets its name.
    disk.take(Duration::from_secs(1));
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.body, manifest.bytes);
    assert!(get(larder.blob_url("hub/team/app", &digest)).await.body == content);
    disk.has_begun(2).await;
    assert!(!larder.object(&digest).exists() && !larder.object(&manifest.digest).exists());
    assert_eq!(larder.stop().await.code, Some(0));
    disk.let_go();

    hub.stop().await;
    larder.restart().await;
    for reference in ["1", &manifest.digest] {
        expect_hit(&larder.manifest_url("hub/team/app", reference), &manifest.bytes).await;
    }
    expect_hit(&larder.blob_url("hub/team/app", &digest), &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_never_ends_fails_no_pull_and_no_stop() {
    let disk = SlowDisk::new();
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[1_000_000, 20_000]);
    hub.push_image("team/app", "1", &image);
    let mut larder = disk.under(&hub).config("[server]\nshutdown_grace = \"1s\"").start().await;
    disk.hold();
    for _ in ["cold", "pending"] {
        let answer = get(larder.manifest_url("hub/team/app", "1")).await;
        assert_eq!((answer.status, &answer.body), (200, &image.manifest.bytes));
        for (content, digest) in image.layers.iter().zip(image.layer_digests()) {
            let answer = get(larder.blob_url("hub/team/app", &digest)).await;
            assert!(answer.complete() && answer.body == content, "{} {:?}", answer.status, answer.error);
        }
        assert_eq!(get(format!("{}/healthz", larder.admin_url())).await.status, 200);
    }
    disk.has_begun(3).await;
    assert_eq!(disk.calls().1, 0);
    let stopped_at = Instant::now();
    let exit = larder.stop().await;
    assert_eq!(exit.code, Some(0));
    // The grace, and 5 s for the last stores.
    assert!(stopped_at.elapsed() < Duration::from_secs(12), "it took {:?}", stopped_at.elapsed());
    assert!(exit.log.contains("could be stored in time"), "it says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_where_the_index_cannot_be_synced() {
    let disk = SlowDisk::new();
    let mut hub = Hub::start(Options::default()).await;
    let content = blob(1, 100_000);
    let digest = hub.push_blob("team/app", content.clone());
    let mut larder = disk.under(&hub).config("[server]\nshutdown_grace = \"1s\"").start().await;
    let url = |larder: &Larder| larder.blob_url("hub/team/app", &digest);
    let other = hub.push_blob("other/app", blob(2, 1000));
    assert!(get(url(&larder)).await.body == content);
    assert_eq!(get(larder.blob_url("hub/other/app", &other)).await.status, 200);
    eventually("both are stored", async || larder.stats().await["stores"] == 2).await;
    disk.hold();
    // So that its log is not empty: while nothing is written, it is taken in.
    let purged = larder.run(&["purge", &format!("hub/other/app@{other}")]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    let stopped_at = Instant::now();
    assert_eq!(larder.stop().await.code, Some(0));
    assert!(stopped_at.elapsed() < Duration::from_secs(15), "it took {:?}", stopped_at.elapsed());
    assert!(disk.calls().0 > 0, "the index is synced when it is closed");
    assert_eq!(disk.calls().1, 0);

    // What it knew is not lost by that.
    disk.let_go();
    hub.stop().await;
    larder.restart().await;
    expect_hit(&url(&larder), &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_syncs_that_never_end_fail_no_pull() {
    let disk = SlowDisk::new();
    let hub = Hub::start(Options::default()).await;
    let larder = disk.under(&hub).start().await;
    disk.hold();
    // More than there are threads for work that blocks.
    let manifests: Vec<_> = (0..600).map(|number| Image::with_layers(number, &[10]).manifest).collect();
    for some in manifests.chunks(50) {
        let pulls = some.iter().map(async |manifest| {
            hub.push_manifest("team/app", None, manifest);
            let answer = get(larder.manifest_url("hub/team/app", &manifest.digest)).await;
            assert_eq!((answer.status, &answer.body), (200, &manifest.bytes));
        });
        join_all(pulls).await;
    }
    let blobs: Vec<_> = (0..60).map(|number| blob(number, 100_000)).collect();
    for some in blobs.chunks(30) {
        let pulls = some.iter().map(async |content| {
            let digest = hub.push_blob("team/app", content.clone());
            let answer = get(larder.blob_url("hub/team/app", &digest)).await;
            assert!(answer.complete() && answer.body == content, "{} {:?}", answer.status, answer.error);
        });
        join_all(pulls).await;
    }
    // And what was verified is a hit, as long as it is remembered.
    expect_hit(&larder.manifest_url("hub/team/app", &manifests[0].digest), &manifests[0].bytes).await;
}
