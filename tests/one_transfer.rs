//! Promise: one upstream transfer per object, however many clients ask, and no client slows another.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{
    Fault, Gate, Hub, Larder, On, Options, RepositoryConfig, blob, client, eventually, get, repository_config, request,
};

const MIB: usize = 1 << 20;
const NAME: &str = "hub/team/app";

struct Scene {
    hub: Hub,
    larder: Larder,
    digest: String,
    content: bytes::Bytes,
}

/// One blob of `size` bytes behind Larder.
async fn scene(size: usize) -> Scene {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, size);
    let digest = hub.push_blob("team/app", content.clone());
    // One connection: a transfer that a test holds back would else be shared out over several.
    let config = RepositoryConfig::new("hub").upstream_with(&hub, "parallel = 1");
    let larder = Larder::start(&config.to_string()).await;
    Scene { hub, larder, digest, content }
}

impl Scene {
    fn url(&self) -> String {
        self.larder.blob_url(NAME, &self.digest)
    }

    /// The upstream sends half of the blob and waits.
    fn gate_at_half(&self) -> Gate {
        self.hub.gate(On::blob().get(), self.content.len() as u64 / 2)
    }

    async fn is_stored(&self) -> bool {
        self.larder.stats().await["stores"] == 1
    }
}

/// The client gets exactly this, and its proper end.
async fn expect_rest(client: client::Streaming, expected: bytes::Bytes) {
    let length = expected.len() as u64;
    assert_eq!(client.compare(expected).await, (length, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_cost_one_transfer_and_little_memory() {
    let scene = scene(64 * MIB).await;
    let gate = scene.gate_at_half();

    let mut clients = join_all((0..50).map(|_| client::open(scene.url()))).await;
    gate.reached().await;
    // The upstream is held at half: every client gets its first bytes all the same.
    for client in &mut clients {
        assert_eq!(client.status, 200);
        assert_eq!(client.read_exact(4096).await, scene.content[..4096]);
    }
    gate.open();
    join_all(clients.into_iter().map(|client| expect_rest(client, scene.content.slice(4096..)))).await;

    assert_eq!(scene.hub.count_on(On::blob().get()), 1, "{}", scene.hub.summary());
    assert_eq!(scene.hub.bytes_sent(&scene.digest), scene.content.len() as u64);
    let memory = scene.larder.resident_memory();
    println!("peak resident memory: {} MiB", memory.peak >> 20);
    assert!(memory.peak < 96 * MIB as u64, "{memory:?}");
    assert_eq!(scene.larder.stats().await["coalesced"], 49);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_over_parallel_connections_cost_each_byte_once() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 64 * MIB);
    let digest = hub.push_blob("team/app", content.clone());
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    hub.fault(On::blob().get(), Fault::Throttle { bytes_per_second: 16 << 20, chunk: 256 << 10 });
    let url = larder.blob_url(NAME, &digest);
    let clients = join_all((0..50).map(|_| client::open(url.clone()))).await;
    join_all(clients.into_iter().map(|client| expect_rest(client, content.clone()))).await;
    let sent = hub.bytes_sent(&digest);
    // The slack is what the first connection had under way when the second one's range began.
    assert!(sent <= content.len() as u64 + (8 << 20), "{sent}");
    let memory = larder.resident_memory();
    assert!(memory.peak < 96 * MIB as u64, "{memory:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_reads_at_once_what_has_arrived() {
    let scene = scene(8 * MIB).await;
    let gate = scene.gate_at_half();
    let first = client::open(scene.url()).await;
    gate.reached().await;

    // The best of a few tries: the promise is about Larder, not about what else runs on the machine.
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let joined = Instant::now();
        let mut follower = client::open(scene.url()).await;
        assert!(!follower.read_exact(1).await.is_empty());
        fastest = fastest.min(joined.elapsed());
    }
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    gate.open();
    assert_eq!(first.read_to_end().await.body, scene.content);
    assert_eq!(scene.hub.count_on(On::blob().get()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_delays_nobody() {
    let scene = scene(16 * MIB).await;
    let slow = request("GET", scene.url()).bytes_per_second(100 * 1024).open().await;
    // At that speed the slow client needs minutes; the others are not to wait for it.
    let answers = join_all((0..4).map(|_| get(scene.url()))).await;
    assert!(answers.iter().all(|answer| answer.complete() && answer.body == scene.content));
    eventually("the blob is stored", async || scene.is_stored().await).await;
    assert_eq!(scene.hub.count_on(On::blob().get()), 1);
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_do_not_stop_the_transfer() {
    let scene = scene(8 * MIB).await;
    let gate = scene.gate_at_half();
    let clients = join_all((0..3).map(|_| client::open(scene.url()))).await;
    gate.reached().await;
    drop(clients);
    gate.open();
    eventually("the blob is stored", async || scene.is_stored().await).await;

    let answer = get(scene.url()).await;
    assert_eq!(answer.header("x-cache"), "HIT");
    assert_eq!(answer.body, scene.content);
    assert_eq!(scene.hub.count_on(On::blob().get()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_one_tag_cost_one_check_and_one_fetch() {
    let hub = Hub::start(Options::default()).await;
    let image = crate::support::Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let hold = hub.hold(On::manifest().head());
    let ask = |_| tokio::spawn(get(larder.manifest_url(NAME, "1")));
    let asked: Vec<_> = (0..20).map(ask).collect();
    hold.wait_for(1).await;
    hold.open();
    for answer in join_all(asked).await {
        assert_eq!(answer.expect("no panic").body, image.manifest.bytes);
    }
    // Those who came after the first check was over are entitled to one of their own.
    assert_eq!(hub.count_on(On::manifest().get()), 1, "{}", hub.summary());
    assert!(hub.count_on(On::manifest().head()) <= 20, "{}", hub.summary());
}
