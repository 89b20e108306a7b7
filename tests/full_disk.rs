//! Promise: a disk that is full or broken never fails a pull, shows, and caching comes back by itself.

use std::path::Path;

use crate::support::{
    Fault, Hub, Image, Larder, On, Options, SmallDisk, blob, eventually, get, head, repository_config, request,
};

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_when_the_disk_is_full_and_are_cached_again_when_it_is_not() {
    let disk = SmallDisk::mount("16m");
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000, 20_000]);
    hub.push_image("team/app", "1", &image);
    let dir = disk.path().join("cache").display().to_string();
    let larder =
        Larder::builder().config(repository_config("hub", &[&hub])).env("LARDER_CACHE__DIR", &dir).start().await;
    let filler = disk.fill_up();

    for _ in 0..2 {
        let manifest = get(larder.manifest_url("hub/team/app", "1")).await;
        assert_eq!((manifest.status, manifest.body), (200, image.manifest.bytes.clone()));
        for (layer, digest) in image.layers.iter().zip(image.layer_digests()) {
            let answer = get(larder.blob_url("hub/team/app", &digest)).await;
            assert!(answer.complete() && answer.body == layer, "{} {:?}", answer.status, answer.error);
            assert_eq!(answer.header("x-cache"), "MISS");
            assert_eq!(answer.header("content-length"), layer.len().to_string());
        }
    }
    assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 503);
    let stats = larder.stats().await;
    assert!(stats["errors"].as_u64() > Some(0) && stats["unstored"].as_u64() > Some(0), "{stats}");
    assert!(!larder.metrics().await.contains("larder_unstored_total 0\n"));
    eventually("the log says so", async || larder.log().contains("uncached")).await;

    std::fs::remove_file(filler).expect("removed");
    assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 200);
    let url = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    assert_eq!(get(&url).await.body, image.layers[0]);
    eventually("it is cached again", async || head(&url).await.header("x-cache") == "HIT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_does_not_fit_is_served_whole_also_when_that_shows_late() {
    let disk = SmallDisk::mount("8m");
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 12_000_000);
    let digest = hub.push_blob("team/app", content.clone());
    // Without a length the disk runs full in the middle.
    hub.fault(On::blob().get().times(1), Fault::NoContentLength);
    let dir = disk.path().join("cache").display().to_string();
    let larder =
        Larder::builder().config(repository_config("hub", &[&hub])).env("LARDER_CACHE__DIR", &dir).start().await;
    for _ in 0..2 {
        let answer = get(larder.blob_url("hub/team/app", &digest)).await;
        assert!(answer.complete() && answer.body == content, "{} {:?}", answer.status, answer.error);
    }
    assert_eq!(larder.stats().await["stores"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_caught_without_the_disk_too() {
    let disk = SmallDisk::mount("16m");
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 3_000_000);
    let digest = hub.push_blob("team/app", content.clone());
    let dir = disk.path().join("cache").display().to_string();
    let larder =
        Larder::builder().config(repository_config("hub", &[&hub])).env("LARDER_CACHE__DIR", &dir).start().await;
    let _filler = disk.fill_up();
    hub.fault(On::blob().get(), Fault::WrongBytes);
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert!(!answer.complete() && answer.body.len() < content.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_on_a_full_disk_and_stores_once_there_is_room() {
    for with_content in [false, true] {
        let disk = SmallDisk::mount("16m");
        let hub = Hub::start(Options::default()).await;
        let image = Image::with_layers(1, &[3_000_000, 20_000]);
        hub.push_image("team/app", "1", &image);
        let dir = disk.path().join("cache").display().to_string();
        // What is there is not to go for what is kept free.
        let config = format!("[cache]\nmin_free = 0\n{}", repository_config("hub", &[&hub]));
        let prepared = Larder::builder().config(config).env("LARDER_CACHE__DIR", &dir);
        if with_content {
            let mut larder = prepared.clone().start().await;
            expect_right_pull(&larder, &image).await;
            eventually("all is stored", async || larder.stats().await["objects"] == 4).await;
            larder.stop().await;
        }
        disk.fill_up();
        let mut larder = prepared.start().await;
        // What the start itself gave back.
        let filler = disk.fill_up();
        for _ in 0..2 {
            expect_right_pull(&larder, &image).await;
        }
        assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 503);
        let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
        assert_eq!(head(&layer).await.header("x-cache") == "HIT", with_content);

        std::fs::remove_file(filler).expect("removed");
        assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 200);
        expect_right_pull(&larder, &image).await;
        eventually("it is cached", async || head(&layer).await.header("x-cache") == "HIT").await;
        // What came in meanwhile is known to the next start.
        larder.restart().await;
        eventually("all is known", async || larder.stats().await["objects"] == 4).await;
        expect_right_pull(&larder, &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_from_a_directory_that_it_may_only_read() {
    let disk = SmallDisk::mount("16m");
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000, 20_000]);
    let other = Image::with_layers(2, &[1_000_000]);
    hub.push_image("team/app", "1", &image);
    hub.push_image("team/app", "2", &other);
    let dir = disk.path().join("cache").display().to_string();
    let mut larder =
        Larder::builder().config(repository_config("hub", &[&hub])).env("LARDER_CACHE__DIR", &dir).start().await;
    expect_right_pull(&larder, &image).await;
    eventually("all is stored", async || larder.stats().await["objects"] == 4).await;
    larder.stop().await;
    disk.only_for_reading();
    larder.restart().await;
    // Known to the index, which can be read; a tag that is not there passes through.
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    let answer = get(&layer).await;
    assert!(answer.complete() && answer.body == image.layers[0]);
    assert_eq!(answer.header("x-cache"), "HIT");
    expect_right_pull(&larder, &image).await;
    let manifest = get(larder.manifest_url("hub/team/app", "2")).await;
    assert_eq!((manifest.status, manifest.body), (200, other.manifest.bytes.clone()));
    let answer = get(larder.blob_url("hub/team/app", &other.layer_digests()[0])).await;
    assert!(answer.complete() && answer.body == other.layers[0]);
    assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 503);
    larder.kill9();
}

async fn expect_right_pull(larder: &Larder, image: &Image) {
    let manifest = get(larder.manifest_url("hub/team/app", "1")).await;
    assert_eq!((manifest.status, manifest.body), (200, image.manifest.bytes.clone()));
    for (layer, digest) in image.layers.iter().zip(image.layer_digests()) {
        let answer = get(larder.blob_url("hub/team/app", &digest)).await;
        assert!(answer.complete() && answer.body == layer, "{} {:?}", answer.status, answer.error);
    }
    assert!(get(larder.blob_url("hub/team/app", &image.config_digest())).await.complete());
}

/// A tag list of about a megabyte.
fn long_list(hub: &Hub) {
    let tags: Vec<_> = (0..25_000).map(|at| format!("{at:035}")).collect();
    let list = serde_json::json!({"name": "team/app", "tags": tags}).to_string();
    hub.fault(On::tags(), Fault::reply(200, &[("content-type", "application/json")], &list));
}

async fn purge_all(larder: &Larder) {
    let answer = request("DELETE", format!("{}/api/cache", larder.admin_url())).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_do_not_fill_a_small_disk() {
    let disk = SmallDisk::mount("32m");
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000, 20_000]);
    hub.push_image("team/app", "1", &image);
    long_list(&hub);
    let dir = disk.path().join("cache").display().to_string();
    let mut larder =
        Larder::builder().config(repository_config("hub", &[&hub])).env("LARDER_CACHE__DIR", &dir).start().await;
    for n in 0..100 {
        assert_eq!(get(format!("{}/v2/hub/team/app/tags/list?n={n}", larder.url())).await.status, 200);
    }
    let layer = image.layer_digests()[0].clone();
    for is_first in [true, false] {
        expect_right_pull(&larder, &image).await;
        let url = larder.blob_url("hub/team/app", &layer);
        eventually("it is cached", async || head(&url).await.header("x-cache") == "HIT").await;
        assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 200);
        if is_first {
            larder.restart().await;
        }
    }
    purge_all(&larder).await;
    let left = space_used(disk.path());
    assert!(left < 1_000_000, "{left} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_filled_the_disk_makes_room_for_itself_at_the_start() {
    let disk = SmallDisk::mount("32m");
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000, 20_000]);
    hub.push_image("team/app", "1", &image);
    let cache = disk.path().join("cache");
    std::fs::create_dir(&cache).expect("made");
    fill_with_an_old_index(&cache.join("larder.db"));
    disk.fill_up();
    let dir = cache.display().to_string();
    let mut larder =
        Larder::builder().config(repository_config("hub", &[&hub])).env("LARDER_CACHE__DIR", &dir).start().await;
    for is_first in [true, false] {
        expect_right_pull(&larder, &image).await;
        let url = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
        eventually("it is cached", async || head(&url).await.header("x-cache") == "HIT").await;
        assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 200);
        let index = std::fs::metadata(cache.join("larder.db")).expect("on disk").len();
        assert!(index < 1_000_000, "{index} bytes of index");
        if is_first {
            larder.restart().await;
        }
    }
}

/// An index as the versions before made it, with lists until nothing more fits on the disk.
fn fill_with_an_old_index(path: &Path) {
    let index = rusqlite::Connection::open(path).expect("opened");
    index.pragma_update(None, "journal_mode", "WAL").expect("set");
    for migration in [
        include_str!("../src/index/migrations/1.sql"),
        include_str!("../src/index/migrations/2.sql"),
        include_str!("../src/index/migrations/3.sql"),
        include_str!("../src/index/migrations/4.sql"),
    ] {
        index.execute_batch(migration).expect("made");
    }
    index.execute_batch("PRAGMA user_version = 4").expect("set");
    let list = "INSERT INTO listings VALUES ('hub', ?1, zeroblob(1000000), NULL, NULL, NULL, 1)";
    let written = (0..100).take_while(|page| index.execute(list, [page.to_string()]).is_ok()).count();
    assert!((5..100).contains(&written), "{written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_can_be_purged() {
    let disk = SmallDisk::mount("16m");
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000, 20_000]);
    hub.push_image("team/app", "1", &image);
    let dir = disk.path().join("cache").display().to_string();
    let config = format!("[cache]\nmin_free = 0\n{}", repository_config("hub", &[&hub]));
    let mut larder = Larder::builder().config(config).env("LARDER_CACHE__DIR", &dir).start().await;
    for is_first in [true, false] {
        expect_right_pull(&larder, &image).await;
        eventually("all is stored", async || larder.stats().await["objects"] == 4).await;
        let filler = disk.fill_up();
        if is_first {
            larder.restart().await;
            disk.fill_up();
        }
        purge_all(&larder).await;
        assert_eq!(larder.stats().await["objects"], 0);
        expect_right_pull(&larder, &image).await;
        let url = larder.blob_url("hub/team/app", &image.layer_digests()[1]);
        eventually("what fits is cached again", async || head(&url).await.header("x-cache") == "HIT").await;
        std::fs::remove_file(filler).expect("removed");
        purge_all(&larder).await;
    }
}

fn space_used(disk: &Path) -> u64 {
    let files = std::process::Command::new("du").args(["-s", "-B1"]).arg(disk).output().expect("du is there");
    let text = String::from_utf8(files.stdout).expect("text");
    text.split_whitespace().next().expect("a number").parse().expect("a number")
}
