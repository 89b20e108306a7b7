//! Promise: a log that cannot be written stops nothing, and what was not written is counted.
//!
//! What really happens to it: standard error is a pipe that nobody reads or whose reader ended (containerd#9342), the
//! disk is full (couchdb#5283), a program that rotates logs renames the file and sends a signal (pelican#1999).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::larder::Reader;
use crate::support::{Hub, Image, Larder, Options, eventually, get, repository_config};

struct Scene {
    hub: Hub,
    image: Image,
    larder: Larder,
}

async fn scene(with: impl FnOnce(crate::support::larder::Builder) -> crate::support::larder::Builder) -> Scene {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[300_000]);
    hub.push_image("team/app", "1", &image);
    let larder = with(Larder::builder().config(repository_config("hub", &[&hub]))).start().await;
    Scene { hub, image, larder }
}

impl Scene {
    /// Misses, hits and the admin door, with more lines than a pipe holds (64 KiB): each request is one, at least.
    async fn works(&self, tag: &str) {
        self.hub.push_image("team/app", tag, &self.image);
        for _ in 0..400 {
            let manifest = get(self.larder.manifest_url("hub/team/app", tag)).await;
            assert_eq!((manifest.status, &manifest.body[..]), (200, &self.image.manifest.bytes[..]));
        }
        let layer = get(self.larder.blob_url("hub/team/app", &self.image.layer_digests()[0])).await;
        assert!(layer.complete() && layer.body == self.image.layers[0]);
        for page in ["healthz", "readyz", "metrics"] {
            assert_eq!(get(format!("{}/{page}", self.larder.admin_url())).await.status, 200, "{page}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_error_that_nobody_reads_or_that_broke_stops_no_request() {
    for reader in [Reader::Stops, Reader::Goes] {
        let mut scene = scene(|larder| larder.reader(reader).env("LARDER_LOGGING__LEVEL", "trace")).await;
        scene.works("2").await;
        let exit = scene.larder.stop().await;
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{reader:?}");
    }
}

fn point(link: &Path, target: &str) {
    let _ = fs::remove_file(link);
    symlink(target, link).expect("a link");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_log_loses_lines_and_says_how_many_when_there_is_room_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let link = dir.path().join("larder.log");
    // The harness reads standard error.
    point(&link, "/dev/stderr");
    let scene = scene(|larder| larder.env("LARDER_LOGGING__FILE", link.to_str().expect("text"))).await;
    scene.works("2").await;
    // Writing there is always ENOSPC.
    point(&link, "/dev/full");
    scene.larder.signal("USR1");
    scene.works("3").await;
    let ready = async || get(format!("{}/readyz", scene.larder.admin_url())).await.json()["warnings"].to_string();
    assert!(ready().await.contains("logging.file"), "{}", ready().await);
    assert!(!scene.larder.metrics().await.contains("larder_log_lines_dropped_total 0\n"));
    point(&link, "/dev/stderr");
    scene.larder.signal("USR1");
    eventually("it writes again, and says what is missing", async || {
        scene.works("4").await;
        let log = scene.larder.log();
        log.contains("so many log lines were dropped") && log.contains("manifests/4")
    })
    .await;
    eventually("it is content again", async || !ready().await.contains("logging.file")).await;
    assert!(!scene.larder.log().contains("manifests/3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_log_file_is_left_at_sigusr1_and_at_sighup() {
    for signal in ["USR1", "HUP"] {
        let dir = tempfile::tempdir().expect("a directory");
        let (link, file, old) =
            (dir.path().join("link"), dir.path().join("larder.log"), dir.path().join("larder.log.1"));
        point(&link, "/dev/stderr");
        let scene = scene(|larder| larder.env("LARDER_LOGGING__FILE", link.to_str().expect("text"))).await;
        point(&link, file.to_str().expect("text"));
        scene.larder.signal(signal);
        let contains = |path: &Path, text: &str| fs::read_to_string(path).is_ok_and(|log| log.contains(text));
        eventually("the new file is written to", async || {
            scene.works("first").await;
            contains(&file, "manifests/first")
        })
        .await;
        // As logrotate does.
        fs::rename(&file, &old).expect("renamed");
        scene.larder.signal(signal);
        eventually("a file of the name is written to again", async || {
            scene.works("second").await;
            contains(&file, "manifests/second")
        })
        .await;
        assert!(!contains(&file, "manifests/first"), "{signal}");
    }
}

#[tokio::test]
async fn a_log_file_in_no_directory_stops_the_start_with_its_key() {
    let exit = Larder::builder().env("LARDER_LOGGING__FILE", "missing/larder.log").run_to_exit().await;
    assert_eq!(exit.code, Some(2), "{}", exit.log);
    assert!(exit.log.contains("logging.file"), "{}", exit.log);
}
