//! Promise: whatever happens to the files under the cache directory is repaired or reported, never
//! served.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Hub, Image, Larder, On, Options, blob, client, eventually, get, repository_config, request};

const KIB: usize = 1 << 10;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

struct Scene {
    hub: Hub,
    larder: Larder,
    image: Image,
}

/// An image that is cached, beside a download that was broken off.
async fn scene() -> Scene {
    let hub = Hub::start(Options::default()).await;
    // One object is read, one is mapped.
    let image = Image::with_layers(1, &[10 * KIB, 700 * KIB]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let mut scene = Scene { hub, larder, image };
    scene.expect_right_pull().await;
    eventually("all is stored", async || scene.larder.stats().await["objects"] == 4).await;

    let broken = scene.hub.push_blob("team/app", blob(9, 900 * KIB));
    let gate = scene.hub.gate(On::blob().get().times(1), 300 * KIB as u64);
    let reading = client::open(scene.larder.blob_url("hub/team/app", &broken)).await;
    gate.reached().await;
    drop(reading);
    scene.larder.kill9();
    gate.open();
    scene.larder.restart().await;
    scene
}

impl Scene {
    /// A pull that ends with the right bytes, wherever they come from.
    async fn expect_right_pull(&self) {
        let manifest = get(self.larder.manifest_url("hub/team/app", "1")).await;
        assert!(manifest.complete() && manifest.body == self.image.manifest.bytes, "{manifest:?}");
        let config = self.image.config_digest();
        for (digest, bytes) in self.image.layer_digests().iter().zip(&self.image.layers) {
            let answer = get(self.larder.blob_url("hub/team/app", digest)).await;
            assert!(answer.complete() && answer.body == *bytes, "{} {:?}", answer.status, answer.error);
        }
        assert!(get(self.larder.blob_url("hub/team/app", &config)).await.complete());
    }

    /// Does harm to each file in turn, running and stopped, and pulls after each.
    async fn harm_each(&mut self, harm: impl Fn(&Path)) {
        for is_running in [true, false] {
            for at in 0.. {
                let all = files(&self.larder.dir());
                let Some(file) = all.get(at) else { break };
                if !is_running {
                    self.larder.kill9();
                }
                println!("running: {is_running}, {}", file.display());
                harm(file);
                // The index's shared memory is mapped by SQLite: who cuts it short ends the process.
                let is_shared_memory = file.ends_with("larder.db-shm");
                if is_shared_memory {
                    self.larder.kill9();
                }
                if !is_running || is_shared_memory {
                    self.larder.restart().await;
                }
                self.expect_right_pull().await;
                // And after a restart, which must not fail either.
                self.larder.restart().await;
                self.expect_right_pull().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_file_may_be_deleted() {
    scene().await.harm_each(|file| fs::remove_file(file).expect("removed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_file_may_be_cut_short() {
    let cut = |file: &Path| {
        let file = fs::OpenOptions::new().write(true).open(file).expect("opened");
        let half = file.metadata().expect("its length").len() / 2;
        file.set_len(half).expect("cut");
    };
    scene().await.harm_each(cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_file_may_be_overwritten() {
    let overwrite = |file: &Path| {
        use std::os::unix::fs::FileExt;
        let length = fs::metadata(file).expect("its length").len();
        let file = fs::OpenOptions::new().write(true).open(file).expect("opened");
        // All over it, also behind what is looked at first.
        for at in (0..length).step_by(3000) {
            file.write_all_at(b"\xff\x00damage", at).expect("written");
        }
    };
    scene().await.harm_each(overwrite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_directory_may_go_while_it_runs() {
    let scene = scene().await;
    for folder in ["blobs", "partial"] {
        fs::remove_dir_all(scene.larder.dir().join(folder)).expect("removed");
    }
    for _ in 0..2 {
        scene.expect_right_pull().await;
    }
    let layer = scene.larder.blob_url("hub/team/app", &scene.image.layer_digests()[1]);
    eventually("it is cached again", async || get(&layer).await.header("x-cache") == "HIT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_reported_and_fetched_again() {
    let scene = scene().await;
    let digest = &scene.image.layer_digests()[1];
    let file = scene.larder.object(digest);
    let mut bytes = scene.image.layers[1].to_vec();
    bytes[300_000] ^= 1;
    fs::write(&file, &bytes).expect("written");
    scene.hub.take_requests();
    let answer = get(scene.larder.blob_url("hub/team/app", digest)).await;
    assert!(answer.complete() && answer.body == scene.image.layers[1]);
    assert_eq!(answer.header("x-cache"), "MISS");
    assert_eq!(scene.hub.count_on(On::blob().get()), 1, "{}", scene.hub.summary());
    eventually("the log says so", async || scene.larder.log().contains("was damaged")).await;
    assert_eq!(scene.larder.stats().await["errors"], 1);

    // One whose bytes are right though it was touched is served, and not looked at again.
    eventually("it is stored", async || fs::read(&file).is_ok_and(|bytes| bytes == scene.image.layers[1])).await;
    fs::write(&file, &scene.image.layers[1]).expect("written");
    assert_eq!(get(scene.larder.blob_url("hub/team/app", digest)).await.header("x-cache"), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_cut_short_while_it_is_read_ends_as_an_error() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 64 << 20);
    let digest = hub.push_blob("team/app", content.clone());
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let url = larder.blob_url("hub/team/app", &digest);
    assert!(get(&url).await.complete());
    eventually("it is stored", async || get(&url).await.header("x-cache") == "HIT").await;

    let mut reading = client::open(&url).await;
    assert_eq!(reading.read_exact(4096).await, content[..4096]);
    let file = larder.object(&digest);
    fs::OpenOptions::new().write(true).open(file).expect("opened").set_len(1 << 20).expect("cut");
    let rest = reading.read_to_end().await;
    assert!(!rest.complete());
    assert!(rest.body == content[4096..4096 + rest.body.len()], "what came is right");
    // And the next one is whole.
    let answer = get(&url).await;
    assert!(answer.complete() && answer.body == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_cut_short_under_http2_ends_one_answer_and_not_the_process() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 64 << 20);
    let digest = hub.push_blob("team/app", content.clone());
    let mut larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let url = larder.blob_url("hub/team/app", &digest);
    assert!(get(&url).await.complete());
    eventually("it is stored", async || get(&url).await.header("x-cache") == "HIT").await;
    let mut reading = request("GET", &url).http2().open().await;
    assert_eq!(reading.read_exact(4096).await, content[..4096]);
    fs::OpenOptions::new().write(true).open(larder.object(&digest)).expect("opened").set_len(1000).expect("cut");
    assert!(!reading.read_to_end().await.complete());
    assert!(larder.is_running());
    assert!(get(&url).await.body == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_behind_a_partial_download_are_not_taken_for_a_part_of_it() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 3 << 20);
    let digest = hub.push_blob("team/app", content.clone());
    let mut larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let gate = hub.gate(On::blob().get().times(1), 1 << 20);
    let reading = client::open(larder.blob_url("hub/team/app", &digest)).await;
    gate.reached().await;
    drop(reading);
    larder.kill9();
    gate.open();
    let partial = larder.dir().join("partial").join(digest.replace(':', "-"));
    let mut bytes = fs::read(&partial).expect("there");
    bytes.extend([7; 100_000]);
    fs::write(&partial, bytes).expect("written");
    larder.restart().await;
    let url = larder.blob_url("hub/team/app", &digest);
    eventually("it is stored", async || {
        let answer = get(&url).await;
        assert!(answer.complete() && answer.body == content, "{}", answer.body.len());
        answer.header("x-cache") == "HIT"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_hinders_nobody() {
    let mut scene = scene().await;
    let layers = scene.image.layer_digests();
    let blobs = scene.larder.dir().join("blobs/sha256");
    fs::write(blobs.join("README"), "not ours").expect("written");
    for _ in 0..2 {
        // A folder and a pipe in the place of objects.
        for digest in &layers {
            fs::remove_file(scene.larder.object(digest)).expect("removed");
        }
        fs::create_dir(scene.larder.object(&layers[0])).expect("made");
        fs::write(scene.larder.object(&layers[0]).join("inside"), "x").expect("written");
        let made = std::process::Command::new("mkfifo").arg(scene.larder.object(&layers[1])).status();
        assert!(made.expect("mkfifo is there").success());
        scene.expect_right_pull().await;
        eventually("it is stored", async || layers.iter().all(|digest| scene.larder.object(digest).is_file())).await;
        scene.larder.restart().await;
    }
    let verified = scene.larder.run(&["verify"]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let purged = scene.larder.run(&["purge", "--all"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert_eq!(files(&blobs), [blobs.join("README")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_costs_no_object_and_no_pin() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[10 * KIB, 20 * KIB]);
    hub.push_image("team/app", "1", &image);
    let mut larder = Larder::start(&format!("[cache]\nttl = \"1h\"\n{}", repository_config("hub", &[&hub]))).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    for digest in image.layer_digests() {
        assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
    }
    eventually("all is stored", async || larder.stats().await["objects"] == 3).await;
    assert_eq!(larder.run(&["pin", "hub/team/app:1"]).await.code, Some(0));
    larder.stop().await;
    // Stored long ago, and used since, which only the index knew.
    for file in files(&larder.dir().join("blobs")) {
        let stored = fs::metadata(&file).expect("there").modified().expect("a time");
        let before = stored - std::time::Duration::from_secs(7200);
        fs::File::open(&file).expect("opened").set_times(fs::FileTimes::new().set_modified(before)).expect("set");
    }
    let harms: [fn(&Path); 3] = [
        |db| fs::remove_file(db).expect("removed"),
        |db| fs::write(db, [0xff; 5000]).expect("written"),
        // A mark of damage without an index is no reason to fail either.
        |db| {
            fs::remove_file(db).expect("removed");
            fs::write(db.with_extension("db-damaged"), "").expect("written");
        },
    ];
    for harm in harms {
        harm(&larder.dir().join("larder.db"));
        larder.restart().await;
        eventually("all is known again", async || larder.stats().await["objects"] == 3).await;
        let pins = get(format!("{}/api/pins", larder.admin_url())).await.json();
        assert_eq!(pins["pins"], serde_json::json!(["hub/team/app:1"]));
        // The next second's look at what has expired finds nothing.
        eventually("uses were taken in", async || larder.log().contains("brought in line")).await;
        assert_eq!(larder.stats().await["evictions"], 0);
        larder.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_cannot_read_is_reported_and_fetched_again() {
    let scene = scene().await;
    for digest in &scene.image.layer_digests() {
        // Reading a process's memory where nothing is gives EIO, as a bad disk does.
        let object = scene.larder.object(digest);
        fs::remove_file(&object).expect("removed");
        std::os::unix::fs::symlink("/proc/self/mem", &object).expect("linked");
    }
    scene.expect_right_pull().await;
    assert!(scene.larder.stats().await["errors"].as_u64() > Some(0));
    let layers = scene.image.layer_digests();
    eventually("they are stored", async || {
        layers.iter().all(|digest| fs::symlink_metadata(scene.larder.object(digest)).is_ok_and(|at| at.is_file()))
    })
    .await;
    assert_eq!(scene.larder.run(&["verify"]).await.code, Some(0));
}
