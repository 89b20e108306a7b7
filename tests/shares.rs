//! Promise: no client and no upstream takes what the others need: connections, descriptors, transfers, room.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{
    Connection, Gate, Hub, Larder, On, Options, RepositoryConfig, blob, client, eventually, get, head,
    repository_config, request,
};

/// Much shorter than any deadline of a client that does nothing.
const SOON: Duration = Duration::from_secs(10);

async fn answers_soon(url: String) {
    let answer = tokio::time::timeout(SOON, get(&url)).await;
    assert_eq!(answer.unwrap_or_else(|_| panic!("{url} is not answered")).status, 200);
}

/// Connections that say this and nothing more.
async fn silent(address: SocketAddr, count: usize, says: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        // It may have been closed for others already.
        let _ = stream.write_all(says).await;
        held.push(stream);
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
    let larder = Larder::builder().descriptors(300, 3000).start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", larder.pid())).expect("running");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit").to_owned();
    assert_eq!(files.split_whitespace().filter(|word| *word == "3000").count(), 2, "{files}");
    assert!(larder.log().contains("few files and connections may be open at once"), "it says that these are few");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_do_nothing_keep_nobody_out_at_any_door() {
    let hub = Hub::start(Options::default()).await;
    let config = format!("[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n{}", repository_config("hub", &[&hub]));
    let larder = Larder::builder().config(config).descriptors(256, 256).start().await;
    let ca = format!("http://{}/ca.crt", larder.door("proxy"));
    for says in [&b""[..], b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut held = Vec::new();
        for door in ["registry", "admin", "proxy"] {
            held.extend(silent(larder.door(door), 300, says).await);
        }
        answers_soon(format!("{}/healthz", larder.admin_url())).await;
        answers_soon(format!("{}/v2/", larder.url())).await;
        answers_soon(ca.clone()).await;
    }
    // The same for kept-alive connections that had an answer.
    let mut kept = Vec::new();
    for _ in 0..150 {
        let connection = Connection::http1(larder.url()).await;
        assert_eq!(request("GET", format!("{}/v2/", larder.url())).send_on(&connection).await.status, 200);
        kept.push(connection);
    }
    answers_soon(format!("{}/v2/", larder.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_an_answer_under_way_is_not_closed_for_others() {
    let hub = Hub::start(Options::default()).await;
    let digest = hub.push_blob("team/app", blob(1, 1 << 20));
    let larder = Larder::builder().config(repository_config("hub", &[&hub])).descriptors(256, 256).start().await;
    let gate = hub.gate(On::blob().get(), 1000);
    let reading = client::open(larder.blob_url("hub/team/app", &digest)).await;
    gate.reached().await;
    let held = silent(larder.door("registry"), 300, b"").await;
    answers_soon(format!("{}/v2/", larder.url())).await;
    gate.open();
    let answer = reading.read_to_end().await;
    assert!(answer.complete() && answer.body == blob(1, 1 << 20), "{:?}", answer.error);
    drop(held);
}

/// A proxy door that leads to a registry of a client's own choice, beside a repository of the configuration.
async fn with_own_registry(hub: &Hub, own: &Hub, cache: &str) -> Larder {
    let config = format!(
        "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n[allowlist]\ndomains = [\"{}\"]\n[cache]\nmin_free = 0\n{cache}\n{}",
        own.address(),
        repository_config("hub", &[hub])
    );
    Larder::start(config).await
}

/// So many downloads from a registry that sends the first byte of each, and then waits at the gate.
async fn dripping(larder: &Larder, own: &Hub, count: u64, size: usize) -> (Gate, Vec<client::Streaming>) {
    let gate = own.gate(On::blob().get(), 1);
    let mut downloads = Vec::new();
    for seed in 0..count {
        let digest = own.push_blob("x", blob(1000 + seed, size));
        let url = format!("{}/v2/x/blobs/{digest}", own.url());
        let request = request("GET", url).through_proxy(larder.door("proxy")).deadline(Duration::from_secs(5));
        downloads.extend(request.try_open().await.ok());
    }
    (gate, downloads)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_of_a_clients_own_choice_gets_no_room_for_what_it_does_not_send() {
    let (hub, own) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let cached: Vec<_> = (0..8).map(|seed| hub.push_blob("team/app", blob(seed, 2 << 20))).collect();
    let larder = with_own_registry(&hub, &own, "max_size = \"24MiB\"").await;
    for digest in &cached {
        assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
    }
    eventually("all are stored", async || larder.stats().await["stores"] == 8).await;
    let (_gate, _downloads) = dripping(&larder, &own, 4, 15 << 20).await;
    eventually("it sends", async || own.count_on(On::blob().get()) >= 4).await;
    let new = hub.push_blob("team/app", blob(100, 2 << 20));
    assert!(get(larder.blob_url("hub/team/app", &new)).await.complete());
    for digest in &cached {
        assert_eq!(head(larder.blob_url("hub/team/app", digest)).await.header("x-cache"), "HIT");
    }
    assert_eq!(larder.stats().await["evictions"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_own_registry_sends_nothing_keeps_no_cold_pull_waiting_and_its_transfers_end_with_it() {
    let (hub, own) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let larder = with_own_registry(&hub, &own, "").await;
    // A quarter of 256 places is for such registries, and an eighth for one client.
    let (_gate, downloads) = dripping(&larder, &own, 32, 1 << 20).await;
    let running = larder.stats().await["fills_running"].as_u64().expect("a number");
    assert!((1..=32).contains(&running), "{running}");
    let digest = hub.push_blob("team/app", blob(1, 1 << 20));
    let answer = tokio::time::timeout(SOON, get(larder.blob_url("hub/team/app", &digest))).await.expect("soon");
    assert!(answer.complete());
    drop(downloads);
    eventually("transfers that nobody reads end", async || larder.stats().await["fills_running"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_of_what_cannot_be_kept_leave_connections_to_others() {
    let hub = Hub::start(Options::default()).await;
    let large = hub.push_blob("team/app", blob(1, 48 << 20));
    let small = hub.push_blob("team/app", blob(2, 300_000));
    let config = RepositoryConfig::new("hub").upstream_with(&hub, "max_connections = 8").to_string();
    let larder = Larder::start(format!("[cache]\nmin_free = 0\nmax_size = \"1MiB\"\n{config}")).await;
    let url = larder.blob_url("hub/team/app", &large);
    let mut readers = Vec::new();
    for _ in 0..16 {
        let request = request("GET", &url).bytes_per_second(1).deadline(Duration::from_secs(3));
        readers.push(tokio::spawn(async move { request.try_open().await }));
    }
    let mut held = Vec::new();
    for reader in readers {
        held.extend(reader.await.expect("no panic").ok());
    }
    assert!(!held.is_empty(), "some have begun");
    let answer = tokio::time::timeout(SOON, get(larder.blob_url("hub/team/app", &small))).await.expect("soon");
    assert!(answer.complete() && answer.status == 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_of_what_cannot_be_kept_costs_little_more_than_a_byte() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 48 << 20);
    let digest = hub.push_blob("team/app", content.clone());
    let config = format!("[cache]\nmin_free = 0\nmax_size = \"1MiB\"\n{}", repository_config("hub", &[&hub]));
    let larder = Larder::start(config).await;
    let url = larder.blob_url("hub/team/app", &digest);
    let byte = async |at: usize| {
        let answer = request("GET", &url).header("range", format!("bytes={at}-{at}")).send().await;
        assert_eq!((answer.status, &answer.body[..]), (206, &content[at..=at]));
    };
    // The first one finds out that it does not fit.
    byte(0).await;
    let before = hub.bytes_sent(&digest);
    for at in 1..50 {
        byte(at * 900_000).await;
    }
    let sent = hub.bytes_sent(&digest) - before;
    assert!(sent <= 49, "{sent} bytes for 49");
}
