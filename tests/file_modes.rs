//! Promise: what Larder writes is readable for its own user and group alone, whatever the umask.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::{Hub, Image, Larder, On, Options, RepositoryConfig, eventually, get, request};

/// All that is in a folder, with its mode; the folder itself first.
fn modes(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mode = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.permissions().mode());
    let mut found = vec![(folder.to_owned(), mode(folder).expect("a folder"))];
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(modes(&path)),
            // Some are gone soon.
            false => found.extend(mode(&path).ok().map(|mode| (path, mode))),
        }
    }
    found
}

fn assert_modes(folder: &Path, file: u32) {
    for (path, mode) in modes(folder) {
        let wanted = if path.is_dir() { 0o700 } else { file };
        assert_eq!(mode & 0o7777, wanted, "{}: {mode:o}", path.display());
    }
}

async fn scene() -> (Hub, Image, String) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[100_000]);
    hub.push_image("team/app", "1", &image);
    let config = RepositoryConfig::new("hub").upstream(&hub).to_string()
        + &RepositoryConfig::new("pass").set("client_credentials = \"pass\"").upstream(&hub).to_string();
    (hub, image, config)
}

async fn pull(larder: &Larder, image: &Image) {
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert_eq!(get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await.status, 200);
    assert_eq!(get(larder.manifest_url("pass/team/app", "1")).await.status, 200);
    let pin = format!("{}/api/pins?reference=hub/team/app:1", larder.admin_url());
    assert_eq!(request("PUT", pin).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_for_nobody_else() {
    for (umask, file) in [("000", 0o640), ("022", 0o640), ("077", 0o600)] {
        let (hub, image, config) = scene().await;
        let larder = Larder::builder().umask(umask).config(&config).start().await;
        pull(&larder, &image).await;
        // A download that is on its way.
        let other = Image::with_layers(2, &[300_000]);
        hub.push_image("team/app", "2", &other);
        let gate = hub.gate(On::blob(), 100_000);
        let url = larder.blob_url("hub/team/app", &other.layer_digests()[0]);
        let running = tokio::spawn(async move { get(url).await });
        let partial = larder.dir().join("partial");
        eventually("it is on its way", async || fs::read_dir(&partial).is_ok_and(|found| found.count() >= 2)).await;
        assert_modes(&larder.dir(), file);
        for name in ["larder.db", "larder.db-wal", "larder.db-shm", "larder.lock", "pins.json", "passes.json"] {
            assert!(larder.dir().join(name).exists(), "{name} is looked at, too");
        }
        gate.open();
        assert!(running.await.expect("no panic").complete());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_for_nobody_else() {
    let exit = |umask: &'static str| async move {
        let dir = tempfile::TempDir::new().expect("a directory");
        let file = dir.path().join("larder.log");
        let builder = Larder::builder().umask(umask).env("LARDER_LOGGING__FILE", &file.display().to_string());
        // It ends when it has its log.
        let exit = builder.env("LARDER_CACHE__DIR", "/dev/null/cache").run_to_exit().await;
        assert_eq!(exit.code, Some(1), "{}", exit.log);
        fs::metadata(&file).expect("a log").permissions().mode() & 0o7777
    };
    assert_eq!((exit("000").await, exit("022").await, exit("077").await), (0o640, 0o640, 0o600));
}

fn open_to_all(folder: &Path) {
    for (path, _) in modes(folder) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_others_could_read_is_closed_at_the_start() {
    let (_hub, image, config) = scene().await;
    let mut larder = Larder::start(&config).await;
    pull(&larder, &image).await;
    larder.stop().await;
    open_to_all(&larder.dir());
    larder.restart().await;
    let mode = |path: PathBuf| fs::metadata(&path).expect("there").permissions().mode() & 0o7777;
    for folder in ["", "blobs", "blobs/sha256", "blobs/sha512", "partial"] {
        assert_eq!(mode(larder.dir().join(folder)), 0o700, "{folder}");
    }
    for file in ["larder.db", "larder.lock", "pins.json", "passes.json"] {
        assert_eq!(mode(larder.dir().join(file)), 0o640, "{file}");
    }
    pull(&larder, &image).await;
    // What is stricter stays so.
    larder.stop().await;
    fs::set_permissions(larder.dir().join("larder.db"), Permissions::from_mode(0o600)).expect("changed");
    larder.restart().await;
    assert_eq!(mode(larder.dir().join("larder.db")), 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_holds_other_things_keeps_its_mode() {
    let (_hub, image, config) = scene().await;
    let mut larder = Larder::start(&config).await;
    larder.stop().await;
    fs::write(larder.dir().join("notes.txt"), "of somebody").expect("written");
    open_to_all(&larder.dir());
    larder.restart().await;
    let mode = |path: PathBuf| fs::metadata(&path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(larder.dir()), 0o755);
    assert_eq!(mode(larder.dir().join("notes.txt")), 0o644);
    for folder in ["blobs", "partial"] {
        assert_eq!(mode(larder.dir().join(folder)), 0o700, "{folder}");
    }
    assert_eq!(mode(larder.dir().join("larder.db")), 0o640);
    assert!(larder.log().contains("holds other things"), "it is said");
    pull(&larder, &image).await;
}
