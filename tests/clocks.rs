//! Promise: a clock that was wrong and is set right does no lasting harm. What was noted at a time to come is unknown:
//! it is checked and noted anew (grafana#131545: a clock that was ahead for a moment froze schedules for months).
//!
//! The clock is that of `faketime`, which follows a file while the program runs. Timers go by the real clock, and so do
//! the times of files: those of running downloads look old, and may be removed as abandoned. So tests pull until content
//! is stored.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::larder::Builder;
use crate::support::proxied::{Browser, keeps_archives_of};
use crate::support::{Hub, Image, Larder, Options, Origin, Page, RepositoryConfig, eventually, get};

/// A clock that a test sets.
struct Clock {
    dir: TempDir,
}

impl Clock {
    fn ahead() -> Self {
        let clock = Self { dir: tempfile::tempdir().expect("a directory") };
        clock.set("+30d");
        clock
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    /// Sets how far it is from the right time.
    fn set(&self, offset: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, offset).expect("written");
        std::fs::rename(new, self.file()).expect("renamed");
    }

    fn under(&self, larder: Builder) -> Builder {
        larder
            .env("LD_PRELOAD", library().to_str().expect("text"))
            .env("FAKETIME_TIMESTAMP_FILE", self.file().to_str().expect("text"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }
}

/// The library of the Debian package, which is in a folder of the machine's architecture.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("a folder").flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path: &PathBuf| Path::exists(path)).expect("the package faketime is installed")
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_lists_of_a_time_to_come_are_checked_again() {
    for is_restarted in [false, true] {
        let clock = Clock::ahead();
        let hub = Hub::start(Options::default()).await;
        let (old, new) = (Image::with_layers(1, &[1000]), Image::with_layers(2, &[1000]));
        hub.push_image("team/app", "1", &old);
        let repository = RepositoryConfig::new("hub").set("max_age = \"1h\"").upstream(&hub);
        let mut larder = clock.under(Larder::builder().config(repository)).start().await;
        let tag = larder.manifest_url("hub/team/app", "1");
        let list = format!("{}/v2/hub/team/app/tags/list", larder.url());
        assert_eq!(get(&tag).await.body, old.manifest.bytes);
        assert!(get(&list).await.text().contains("\"1\""));
        eventually("it is stored", async || get(&tag).await.header("x-cache") == "HIT").await;
        clock.set("+0");
        if is_restarted {
            larder.restart().await;
        }
        hub.push_image("team/app", "1", &new);
        hub.push_image("team/app", "2", &new);
        let tag = larder.manifest_url("hub/team/app", "1");
        let list = format!("{}/v2/hub/team/app/tags/list", larder.url());
        assert_eq!(get(&tag).await.body, new.manifest.bytes, "restarted: {is_restarted}");
        assert!(get(&list).await.text().contains("\"2\""), "restarted: {is_restarted}");
        // From now on they are as old as they are.
        let asked = hub.requests().len();
        assert_eq!(get(&tag).await.body, new.manifest.bytes);
        assert!(get(&list).await.text().contains("\"2\""));
        assert_eq!(hub.requests().len(), asked, "they are fresh for an hour");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_a_time_to_come_is_served_in_an_outage_and_its_age_counts_from_then_on() {
    let clock = Clock::ahead();
    let mut hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[1000]);
    hub.push_image("team/app", "1", &image);
    let repository = RepositoryConfig::new("hub").set("stale_if_error = \"1h\"").upstream(&hub);
    let larder = clock.under(Larder::builder().config(repository)).start().await;
    let tag = larder.manifest_url("hub/team/app", "1");
    eventually("it is stored", async || {
        assert_eq!(get(&tag).await.status, 200);
        larder.stats().await["stores"].as_u64() > Some(0)
    })
    .await;
    hub.stop().await;
    clock.set("+0");
    assert_eq!(get(&tag).await.body, image.manifest.bytes);
    clock.set("+2h");
    let late = get(&tag).await;
    assert!(late.status >= 500, "{}: it is older than an hour", late.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_at_a_time_to_come_still_expires() {
    let clock = Clock::ahead();
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[1000]);
    hub.push_image("team/app", "1", &image);
    let repository = RepositoryConfig::new("hub").set("ttl = \"1s\"").upstream(&hub);
    let mut larder = clock.under(Larder::builder().config(repository)).start().await;
    eventually("it is stored", async || {
        assert_eq!(get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await.status, 200);
        larder.stats().await["stores"].as_u64() > Some(0)
    })
    .await;
    // The index has to know whose it was.
    larder.stop().await;
    clock.set("+0");
    larder.restart().await;
    eventually("it is gone", async || !larder.object(&image.layer_digests()[0]).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_of_a_time_to_come_is_not_fresh() {
    let clock = Clock::ahead();
    let page = |body: &'static str| Page::new(body).header("cache-control", "max-age=3600");
    let origin = Origin::http().await;
    origin.put("/a.tgz", page("one"));
    let larder = clock.under(Larder::builder().config(keeps_archives_of(&origin))).start().await;
    let browser = Browser::new(&larder, None);
    let url = format!("http://{}/a.tgz", origin.address());
    assert_eq!(browser.get(&url).await.text(), "one");
    eventually("it is stored", async || browser.get(&url).await.header("x-cache") == "HIT").await;
    clock.set("+0");
    origin.put("/a.tgz", page("two"));
    assert_eq!(browser.get(&url).await.text(), "two");
}
