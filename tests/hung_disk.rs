//! Promise: a disk that does not answer fails no pull and hides nothing; what it keeps waiting is bounded, and when it
//! answers again all is as before.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::disk::SlowDisk;
use crate::support::{Hub, Image, Larder, Options, RepositoryConfig, blob, eventually, get, request};

/// Before any client gives up.
const SOON: Duration = Duration::from_secs(25);

async fn expect(url: String, content: &[u8]) {
    let answer = request("GET", &url).deadline(SOON).try_send().await;
    let answer = answer.unwrap_or_else(|error| panic!("{url} is not answered: {error}"));
    assert!(answer.complete() && answer.body == content, "{url}: {} {:?}", answer.status, answer.error);
}

/// Whether content can be stored, as a probe of Kubernetes would find out: it waits a second, here some more.
async fn readiness(larder: &Larder) -> u16 {
    let answer =
        request("GET", format!("{}/readyz", larder.admin_url())).deadline(Duration::from_secs(5)).try_send().await;
    answer.expect("a probe is answered").status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_fails_no_pull_and_comes_back() {
    let disk = SlowDisk::new();
    let hub = Hub::start(Options::default()).await;
    let warm = Image::with_layers(1, &[1_000_000, 20_000]);
    let cold = Image::with_layers(2, &[300_000, 500]);
    hub.push_image("team/app", "warm", &warm);
    let larder = disk.under(&hub).config("[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n").start().await;
    let pull = async |image: &Image, tag: &str| {
        expect(larder.manifest_url("hub/team/app", tag), &image.manifest.bytes).await;
        expect(larder.manifest_url("hub/team/app", &image.manifest.digest), &image.manifest.bytes).await;
        let layers = image.layers.iter().zip(image.layer_digests());
        join_all(layers.map(|(content, digest)| expect(larder.blob_url("hub/team/app", &digest), content))).await;
    };
    pull(&warm, "warm").await;
    eventually("it is stored", async || larder.stats().await["stores"] == 3).await;

    disk.hang(&larder);
    hub.push_image("team/app", "cold", &cold);
    tokio::join!(pull(&warm, "warm"), pull(&cold, "cold"));
    assert!(disk.hung() > 0, "the disk was asked");
    // Many more clients than there are threads.
    let (content, digest) = (&warm.layers[1], &warm.layer_digests()[1]);
    let url = larder.blob_url("hub/team/app", digest);
    for _ in 0..4 {
        join_all((0..50).map(|_| expect(url.clone(), content))).await;
    }
    eventually("it says so", async || readiness(&larder).await == 503).await;
    for page in ["healthz", "metrics", "api/cache/stats"] {
        let answer = request("GET", format!("{}/{page}", larder.admin_url())).deadline(SOON).try_send().await;
        assert_eq!(answer.expect("it is answered").status, 200, "{page}");
    }
    pull(&warm, "warm").await;

    disk.answer();
    eventually("it is ready again", async || readiness(&larder).await == 200).await;
    eventually("a hit is a hit again", async || {
        let before = hub.requests().len();
        expect(url.clone(), content).await;
        hub.requests().len() == before
    })
    .await;
    // What was served uncached is stored by the next pull.
    pull(&cold, "cold").await;
    eventually("it is stored", async || larder.object(&cold.layer_digests()[0]).exists()).await;
}

/// Unused for longer than `ttl`, as after a machine was off for long or `ttl` was shortened.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_on_a_slow_disk_keeps_no_pull_waiting() {
    const OLD: usize = 400;
    let disk = SlowDisk::new();
    let hub = Hub::start(Options::default()).await;
    let config = |ttl: &str| {
        let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
        format!("[cache]\nttl = \"{ttl}\"\n{repository}")
    };
    let mut larder = disk.beneath(Larder::builder().config(config("1h"))).start().await;
    let blobs: Vec<_> = (0..OLD).map(|number| blob(number as u64, 1_000)).collect();
    for content in &blobs {
        let digest = hub.push_blob("team/app", content.clone());
        expect(larder.blob_url("hub/team/app", &digest), content).await;
    }
    eventually("all are stored", async || larder.stats().await["stores"] == OLD).await;
    larder.stop().await;

    disk.remove_in(Duration::from_millis(20));
    larder.write_config(config("1s"));
    larder.restart().await;
    eventually("they expire", async || disk.removed() > 0).await;
    for number in 1_000..1_003 {
        let content = blob(number, 1_000);
        let digest = hub.push_blob("team/app", content.clone());
        expect(larder.blob_url("hub/team/app", &digest), &content).await;
        let removed = disk.removed();
        assert!(removed < OLD * 3 / 4, "it waited until {removed} of {OLD} were removed");
    }
    assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 200);
    eventually("the others go, too", async || larder.stats().await["evictions"].as_u64() >= Some(OLD as u64)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_at_the_same_time_are_not_in_each_others_way() {
    let hub = Hub::start(Options::default()).await;
    let larder = Larder::start(RepositoryConfig::new("hub").upstream(&hub)).await;
    for _ in 0..5 {
        let probes = (0..40).map(|_| get(format!("{}/readyz", larder.admin_url())));
        for answer in join_all(probes).await {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
}
