//! Promise: when nothing can be stored, the start and `/readyz` say so with the reason, pulls go on, and a second process
//! never writes to the same directory.
//!
//! As people have set it up: a volume for `blobs` alone, a directory of another user (OxiCloud#173), a disk with less
//! room than `min_free`, a directory whose owner is corrected under the running process (kache#767).

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use crate::support::larder::{Builder, NOBODY};
use crate::support::{Answer, Hub, Image, Larder, Options, SmallDisk, eventually, get, repository_config};

async fn hub() -> (Hub, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[50_000]);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

fn larder(hub: &Hub) -> Builder {
    Larder::builder().config(repository_config("hub", &[hub]))
}

async fn readiness(larder: &Larder) -> Answer {
    get(format!("{}/readyz", larder.admin_url())).await
}

/// Pulls twice.
async fn pull(larder: &Larder, image: &Image) {
    for _ in 0..2 {
        let manifest = get(larder.manifest_url("hub/team/app", "1")).await;
        assert_eq!((manifest.status, &manifest.body[..]), (200, &image.manifest.bytes[..]));
        let layer = get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await;
        assert!(layer.complete() && layer.body == image.layers[0], "{} {:?}", layer.status, layer.error);
    }
}

/// Returns whether the layer is stored in a cache directory.
fn has_stored(dir: &Path, image: &Image) -> bool {
    let digest = &image.layer_digests()[0]["sha256:".len()..];
    dir.join("blobs/sha256").join(&digest[..2]).join(digest).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_on_another_filesystem_than_downloads_are_told_of() {
    let (hub, image) = hub().await;
    let disk = SmallDisk::mount("16m");
    let larder = {
        let larder = larder(&hub).prepare();
        fs::create_dir(larder.dir()).expect("made");
        symlink(disk.path(), larder.dir().join("blobs")).expect("linked");
        larder.started().await
    };
    assert!(larder.log().contains("nothing can be stored until this is mended"), "{}", larder.log());
    let answer = readiness(&larder).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("blobs") && answer.text().contains("another filesystem"), "{}", answer.text());
    pull(&larder, &image).await;
    assert!(!has_stored(&larder.dir(), &image));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_user_among_those_of_objects_is_told_of() {
    let (hub, image) = hub().await;
    let larder = larder(&hub).unprivileged().prepare();
    let digest = &image.layer_digests()[0];
    let shard = larder.object(digest).parent().expect("a directory").to_owned();
    fs::create_dir_all(&shard).expect("made");
    for folder in shard.ancestors().skip(1).take(3) {
        chown(folder, Some(NOBODY), Some(NOBODY)).expect("given away");
    }
    let larder = larder.started().await;
    let is_named = |text: &str| text.contains(&shard.display().to_string());
    assert!(is_named(&larder.log()), "{}", larder.log());
    eventually("it is found", async || readiness(&larder).await.status == 503).await;
    pull(&larder, &image).await;
    assert!(!has_stored(&larder.dir(), &image));
    chown(&shard, Some(NOBODY), Some(NOBODY)).expect("given away");
    eventually("all are writable", async || readiness(&larder).await.status == 200).await;
    eventually("it is stored", async || {
        pull(&larder, &image).await;
        has_stored(&larder.dir(), &image)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_less_room_than_min_free_is_told_of_until_there_is_more() {
    let (hub, image) = hub().await;
    let disk = SmallDisk::mount("16m");
    fs::write(disk.path().join("other"), vec![0; 4 << 20]).expect("written");
    let dir = disk.path().join("cache").display().to_string();
    let larder = larder(&hub).config("[cache]\nmin_free = \"13MiB\"").env("LARDER_CACHE__DIR", &dir).start().await;
    eventually("it says so", async || readiness(&larder).await.status == 503).await;
    let answer = readiness(&larder).await.text();
    assert!(answer.contains("cache.min_free"), "{answer}");
    pull(&larder, &image).await;
    assert!(!has_stored(Path::new(&dir), &image));
    fs::remove_file(disk.path().join("other")).expect("removed");
    assert_eq!(readiness(&larder).await.status, 200);
    eventually("it is stored", async || {
        pull(&larder, &image).await;
        has_stored(Path::new(&dir), &image)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_becomes_writable_is_used_by_one_process_only() {
    let (hub, image) = hub().await;
    let parent = tempfile::tempdir().expect("a directory");
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let dir = parent.path().join("cache");
    fs::create_dir(&dir).expect("made");
    let with = |larder: Builder| larder.unprivileged().env("LARDER_CACHE__DIR", dir.to_str().expect("text"));
    let first = with(larder(&hub)).start().await;
    assert_eq!(readiness(&first).await.status, 503);
    pull(&first, &image).await;
    chown(&dir, Some(NOBODY), Some(NOBODY)).expect("given away");
    // A second process comes first.
    let mut second = with(larder(&hub)).start().await;
    assert_eq!(readiness(&second).await.status, 200);
    pull(&first, &image).await;
    let answer = readiness(&first).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("another Larder uses this directory"), "{}", answer.text());
    assert!(!has_stored(&dir, &image), "the first has stored nothing");
    eventually("the second stores it", async || {
        pull(&second, &image).await;
        has_stored(&dir, &image)
    })
    .await;
    second.stop().await;
    eventually("the first has the lock now", async || readiness(&first).await.status == 200).await;
    let other = with(larder(&hub)).run_to_exit().await;
    assert_eq!(other.code, Some(1), "{}", other.log);
    assert!(other.log.contains("in use by another Larder"), "{}", other.log);
}
