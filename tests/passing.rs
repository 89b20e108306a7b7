//! Promise: what cannot be stored is transferred once all the same, for all who ask for it at about the same time, and
//! nobody is cut for it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::{
    Fault, Hub, Larder, On, Options, RepositoryConfig, SmallDisk, blob, client, eventually, get, request,
};

const MIB: usize = 1 << 20;
const NAME: &str = "hub/team/app";

struct Scene {
    hub: Hub,
    larder: Larder,
}

/// A cache that holds a megabyte, before an upstream with these keys.
async fn scene(keys: &str) -> Scene {
    let hub = Hub::start(Options::default()).await;
    let config = RepositoryConfig::new("hub").upstream_with(&hub, keys);
    let larder = Larder::start(format!("[cache]\nmax_size = \"1MB\"\n{config}")).await;
    Scene { hub, larder }
}

impl Scene {
    fn push(&self, seed: u64, size: usize) -> (String, Bytes) {
        let content = blob(seed, size);
        let digest = self.hub.push_blob("team/app", content.clone());
        (self.larder.blob_url(NAME, &digest), content)
    }

    fn transfers(&self) -> usize {
        self.hub.count_on(On::blob().get())
    }
}

async fn expect_whole(client: client::Streaming, content: Bytes) {
    assert_eq!(client.status, 200);
    let length = content.len() as u64;
    assert_eq!(client.compare(content).await, (length, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_blob_that_does_not_fit_share_one_transfer() {
    for count in [6, 50] {
        // Fewer connections than clients: each transfer of a client's own would wait for one.
        let scene = scene("max_connections = 8").await;
        let (url, content) = scene.push(1, 32 * MIB);
        // Nobody is far ahead when the last one comes.
        let gate = scene.hub.gate(On::blob().get(), MIB as u64);
        let clients = join_all((0..count).map(|_| client::open(&url))).await;
        gate.open();
        join_all(clients.into_iter().map(|client| expect_whole(client, content.clone()))).await;
        assert_eq!(scene.transfers(), 1, "{}", scene.hub.summary());
        let stats = scene.larder.stats().await;
        assert_eq!((&stats["stores"], &stats["coalesced"]), (&0.into(), &(count - 1).into()), "{stats}");
        // The next who come share theirs.
        let gate = scene.hub.gate(On::blob().get(), MIB as u64);
        let clients = join_all((0..count).map(|_| client::open(&url))).await;
        gate.open();
        join_all(clients.into_iter().map(|client| expect_whole(client, content.clone()))).await;
        assert_eq!(scene.transfers(), 2, "{}", scene.hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_of_what_passes_holds_nobody_up_and_is_not_cut() {
    let scene = scene("").await;
    let (url, content) = scene.push(1, 64 * MIB);
    let gate = scene.hub.gate(On::blob().get(), MIB as u64);
    // It stops after the first bytes; what its connection holds is far less than the blob.
    let mut slow = request("GET", &url).bytes_per_second(1 << 40).open().await;
    let first = slow.read_exact(1000).await;
    assert!(first == content[..1000]);
    let clients = join_all((0..4).map(|_| client::open(&url))).await;
    gate.open();
    join_all(clients.into_iter().map(|client| expect_whole(client, content.clone()))).await;
    assert_eq!(scene.transfers(), 1, "{}", scene.hub.summary());
    // It goes on where it stands, alone.
    let length = content.len() as u64;
    assert_eq!(slow.compare(content.slice(1000..)).await, (length - 1000, true));
    assert_eq!(scene.transfers(), 2, "{}", scene.hub.summary());
    assert_eq!(scene.hub.count_on(On::blob().get().ranged()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_shares_a_later_transfer() {
    let scene = scene("").await;
    let (url, content) = scene.push(1, 32 * MIB);
    let gate = scene.hub.gate(On::blob().get().times(1), 20 * MIB as u64);
    let mut first = client::open(&url).await;
    assert!(first.read_exact(16 * MIB).await == content[..16 * MIB]);
    // The beginning is gone.
    let gate_of_others = scene.hub.gate(On::blob().get().times(1), MIB as u64);
    let others = join_all((0..5).map(|_| client::open(&url))).await;
    gate_of_others.open();
    join_all(others.into_iter().map(|client| expect_whole(client, content.clone()))).await;
    gate.open();
    assert_eq!(first.compare(content.slice(16 * MIB..)).await, (16 * MIB as u64, true));
    assert_eq!(scene.transfers(), 2, "{}", scene.hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_what_does_not_fit_are_transferred_as_parts() {
    let scene = scene("").await;
    let (url, content) = scene.push(1, 16 * MIB);
    expect_whole(client::open(&url).await, content.clone()).await;
    for (range, part) in [
        ("bytes=100-199", 100..200),
        ("bytes=5000000-5999999", 5_000_000..6_000_000),
        ("bytes=-70000", content.len() - 70_000..content.len()),
        ("bytes=16000000-", 16_000_000..content.len()),
    ] {
        let answer = request("GET", &url).header("range", range).send().await;
        assert!(answer.status == 206 && answer.complete(), "{range}: {:?}", answer.error);
        assert!(answer.body == content[part], "{range}");
    }
    assert_eq!(scene.transfers(), 5, "{}", scene.hub.summary());
    assert_eq!(scene.hub.count_on(On::blob().get().ranged()), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stopped_gives_its_connection_to_others() {
    let scene = scene("max_connections = 1").await;
    let (url, content) = scene.push(1, 64 * MIB);
    let mut slow = request("GET", &url).bytes_per_second(1 << 40).open().await;
    assert!(slow.read_exact(1000).await == content[..1000]);
    // There is one connection, and it waits for the client.
    let (other, small) = scene.push(2, 100_000);
    assert_eq!(get(&other).await.body, small);
    assert_eq!(slow.compare(content.slice(1000..)).await, (content.len() as u64 - 1000, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_goes_on_for_all_where_the_upstream_broke_off() {
    let scene = scene("").await;
    let (url, content) = scene.push(1, 16 * MIB);
    scene.hub.fault(On::blob().get().times(1), Fault::Short { after: 5 * MIB });
    let gate = scene.hub.gate(On::blob().get(), MIB as u64);
    let clients = join_all((0..6).map(|_| client::open(&url))).await;
    gate.open();
    join_all(clients.into_iter().map(|client| expect_whole(client, content.clone()))).await;
    assert_eq!(scene.transfers(), 2, "{}", scene.hub.summary());
    assert_eq!(scene.hub.count_on(On::blob().get().ranged()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_that_passes_ends_properly_for_nobody() {
    for size in [50_000, 3 * MIB, 16 * MIB] {
        let hub = Hub::start(Options::default()).await;
        let content = blob(1, size);
        let digest = hub.push_blob("team/app", content.clone());
        let config = RepositoryConfig::new("hub").upstream(&hub);
        let larder = Larder::start(format!("[cache]\nmax_size = \"20kB\"\n{config}")).await;
        hub.fault(On::blob().get(), Fault::WrongBytes);
        let gate = hub.gate(On::blob().get(), 1000);
        let asking = (0..6).map(|_| client::open(larder.blob_url(NAME, &digest)));
        let clients = join_all(asking).await;
        gate.open();
        for answer in join_all(clients.into_iter().map(client::Streaming::read_to_end)).await {
            assert!(!answer.complete() && answer.body.len() < content.len(), "{size}: {}", answer.body.len());
        }
        assert_eq!(hub.count_on(On::blob().get()), 1, "{}", hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_in_the_middle_costs_one_more_transfer_for_all() {
    // Without a length the disk runs full in the middle.
    let disk = SmallDisk::mount("8m");
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 24 * MIB);
    let digest = hub.push_blob("team/app", content.clone());
    hub.fault(On::blob().get(), Fault::NoContentLength);
    let gate = hub.gate(On::blob().get(), 2 * MIB as u64);
    let dir = disk.path().join("cache").display().to_string();
    let config = RepositoryConfig::new("hub").upstream_with(&hub, "max_connections = 8");
    let larder = Larder::builder().config(config).env("LARDER_CACHE__DIR", &dir).start().await;
    let mut clients = join_all((0..12).map(|_| client::open(larder.blob_url(NAME, &digest)))).await;
    for client in &mut clients {
        assert!(client.read_exact(MIB).await == content[..MIB]);
    }
    gate.open();
    let rest = content.slice(MIB..);
    for ended in join_all(clients.into_iter().map(|client| client.compare(rest.clone()))).await {
        assert_eq!(ended, (rest.len() as u64, true));
    }
    assert_eq!(hub.count_on(On::blob().get()), 2, "{}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_blobs_that_pass_take_bounded_memory() {
    let scene = scene("").await;
    let blobs: Vec<_> = (0..3).map(|seed| scene.push(seed, 100 * MIB)).collect();
    let gate = scene.hub.gate(On::blob().get(), MIB as u64);
    let asking = blobs.iter().flat_map(|blob| (0..8).map(move |_| blob));
    let clients = join_all(asking.map(async |(url, content)| (client::open(url).await, content.clone()))).await;
    // Some stop, so that all that may be kept for them is.
    let (stopped, reading): (Vec<_>, Vec<_>) = clients.into_iter().enumerate().partition(|(at, _)| at % 8 == 0);
    gate.open();
    join_all(reading.into_iter().map(|(_, (client, content))| expect_whole(client, content))).await;
    let memory = scene.larder.resident_memory();
    println!("peak resident memory: {} MiB", memory.peak >> 20);
    assert!(memory.peak < 128 * MIB as u64, "{memory:?}");
    drop(stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_for_one_client_is_not_read_by_another_without_a_right() {
    let hub =
        Hub::start(Options::with_tokens().user("me", "mine").user("you", "yours").private("team/app", "me")).await;
    let content = blob(1, 8 * MIB);
    let digest = hub.push_blob("team/app", content.clone());
    hub.push_blob("team/other", blob(2, 10));
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&hub);
    let larder = Larder::start(format!("[cache]\nmax_size = \"1MB\"\n{config}")).await;
    let asked = |name: &str, login: &str| {
        let login = format!("Basic {}", BASE64_STANDARD.encode(login));
        request("GET", larder.blob_url(name, &digest)).header("authorization", login)
    };
    let gate = hub.gate(On::blob().get(), MIB as u64);
    let mut mine = asked(NAME, "me:mine").open().await;
    assert!(mine.read_exact(1000).await == content[..1000]);
    assert_eq!(asked(NAME, "you:yours").send().await.status, 403);
    assert_eq!(asked("hub/team/other", "you:yours").send().await.status, 404);
    assert_eq!(get(larder.blob_url(NAME, &digest)).await.status, 401);
    // The same client again reads along.
    let again = asked(NAME, "me:mine").open().await;
    gate.open();
    let (mine, ()) = tokio::join!(mine.compare(content.slice(1000..)), expect_whole(again, content.clone()));
    assert_eq!(mine, (content.len() as u64 - 1000, true));
    // But for the first, which is told where tokens are, and what asks whether somebody may read it.
    let is_transfer = |request: &crate::support::hub::Request| {
        On::blob().get().name("team/app").matches(request) && request.header("range").is_none()
    };
    assert_eq!(hub.count(is_transfer), 2, "{}", hub.summary());
    eventually("nothing is left", async || larder.stats().await["fills_running"] == 0).await;
}
