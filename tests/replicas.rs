//! Promise: several replicas that share an index behave as one cache: one transfer and one question for all of them,
//! and who dies in the middle of it is not missed.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use futures_util::future::join_all;

use crate::support::postgres::Postgres;
use crate::support::{
    Authority, Certificate, Fault, Hub, Image, Larder, On, Options, RepositoryConfig, blob, client, eventually, get,
    head, https, request,
};

pub const MIB: usize = 1 << 20;
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Before any client gives up.
pub const SOON: Duration = Duration::from_secs(25);

/// Returns an address of this machine that no other test has: the port has to be known before it is listened on.
fn address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [high, low] = u16::try_from(std::process::id() % 0x1_0000).expect("small").to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    (Ipv4Addr::new(127, 64 | (high & 63), low, next), 17082).into()
}

fn config(postgres: &Postgres, address: SocketAddr, repository: &RepositoryConfig) -> String {
    let url = postgres.bouncer_url("larder");
    format!(
        "[index]\nurl = \"{url}\"\n[cluster]\nlisten = \"{address}\"\nadvertise = \"http://{address}\"\n\
         token = \"{TOKEN}\"\n{repository}"
    )
}

/// Three replicas behind one upstream.
pub struct Scene {
    pub postgres: Postgres,
    pub hub: Hub,
    pub replicas: Vec<Larder>,
    pub addresses: Vec<SocketAddr>,
}

pub async fn scene(keys: &str) -> Scene {
    scene_of_clocks(keys, "", ["+0", "+0", "+0"]).await
}

/// The same, with further tables in the configuration, and clocks that are so far off.
pub async fn scene_of_clocks(keys: &str, tables: &str, clocks: [&str; 3]) -> Scene {
    let postgres = Postgres::start();
    postgres.create("larder");
    let hub = Hub::start(Options::default()).await;
    let repository = RepositoryConfig::new("hub").set(keys).upstream_with(&hub, "parallel = 1");
    let addresses: Vec<_> = (0..3).map(|_| address()).collect();
    let start = addresses.iter().zip(clocks).map(|(&address, clock)| {
        let builder = Larder::builder().config(config(&postgres, address, &repository) + tables);
        if clock == "+0" { builder.start() } else { builder.clock(clock).start() }
    });
    let replicas = join_all(start).await;
    let scene = Scene { postgres, hub, replicas, addresses };
    scene.all_know_each_other(3).await;
    scene
}

pub async fn metric(larder: &Larder, name: &str) -> u64 {
    let metrics = larder.metrics().await;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let values = lines.filter(|rest| rest.starts_with([' ', '{'])).filter_map(|rest| rest.rsplit(' ').next());
    values.map(|value| value.parse::<u64>().expect("a number")).sum()
}

impl Scene {
    pub async fn all_know_each_other(&self, count: u64) {
        for replica in &self.replicas {
            eventually("the replicas know each other", async || metric(replica, "larder_replicas").await == count)
                .await;
        }
    }

    /// Returns the replica that fetches from upstream, once there is one.
    pub async fn home(&self) -> usize {
        for _ in 0..1_000 {
            for (at, replica) in self.replicas.iter().enumerate() {
                if metric(replica, "larder_fetched_bytes_total").await > 0 {
                    return at;
                }
            }
        }
        panic!("nobody fetches anything");
    }
}

pub async fn expect(url: String, content: &[u8]) {
    let answer = request("GET", &url).deadline(SOON).try_send().await;
    let answer = answer.unwrap_or_else(|error| panic!("{url} is not answered: {error}"));
    assert!(answer.complete() && answer.body == content, "{url}: {} {:?}", answer.status, answer.error);
}

pub async fn expect_rest(client: client::Streaming, expected: Bytes) {
    let length = expected.len() as u64;
    assert_eq!(client.compare(expected).await, (length, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_clients_of_three_replicas_cost_one_transfer() {
    let scene = scene("").await;
    // Several blobs: each of the replicas is home to some.
    let contents: Vec<_> = (0..6).map(|seed| blob(seed, MIB + usize::try_from(seed).expect("small"))).collect();
    for content in &contents {
        let digest = scene.hub.push_blob("team/app", content.clone());
        let gate = scene.hub.gate(On::blob().get().reference(&digest), content.len() as u64 / 2);
        let url = |at: usize| scene.replicas[at % 3].blob_url("hub/team/app", &digest);
        let mut clients = join_all((0..60).map(|at| client::open(url(at)))).await;
        gate.reached().await;
        // The upstream is held at half: everybody has the first bytes all the same.
        for client in &mut clients {
            assert_eq!(client.status, 200);
            assert_eq!(client.read_exact(4096).await, content[..4096]);
        }
        gate.open();
        join_all(clients.into_iter().map(|client| expect_rest(client, content.slice(4096..)))).await;
        assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
        assert_eq!(scene.hub.bytes_sent(&digest), content.len() as u64);
    }
    let mut fetched = 0;
    for replica in &scene.replicas {
        fetched += metric(replica, "larder_fetched_bytes_total").await;
        assert!(metric(replica, "larder_replica_received_bytes_total").await > 0, "each got some from others");
    }
    assert_eq!(fetched, contents.iter().map(|content| content.len() as u64).sum::<u64>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_killed_in_the_middle_is_not_missed() {
    let mut scene = scene("").await;
    let content = blob(7, 8 * MIB);
    let digest = scene.hub.push_blob("team/app", content.clone());
    let gate = scene.hub.gate(On::blob().get(), content.len() as u64 / 2);
    // The rest comes by another request, which the gate would hold, too.
    let url = |replica: &Larder| replica.blob_url("hub/team/app", &digest);
    let mut clients = Vec::new();
    for replica in &scene.replicas {
        let mut client = client::open(url(replica)).await;
        client.read_exact(4096).await;
        clients.push(client);
    }
    gate.reached().await;
    let home = scene.home().await;
    for client in &mut clients {
        client.read_exact(content.len() / 2 - 4096 - 65_536).await;
    }
    scene.replicas[home].kill9();
    scene.hub.clear_faults();
    for (at, client) in clients.into_iter().enumerate() {
        if at != home {
            expect_rest(client, content.slice(content.len() / 2 - 65_536..)).await;
        }
    }
    let sent = scene.hub.bytes_sent(&digest);
    assert!(sent < 2 * content.len() as u64, "less than one further transfer: {sent}\n{}", scene.hub.summary());
    let told = get(format!("{}/api/replicas", scene.replicas[(home + 1) % 3].admin_url())).await.json();
    let states: Vec<_> = told["replicas"].as_array().expect("a list").iter().map(|replica| &replica["state"]).collect();
    assert!(states.iter().filter(|state| **state == "this").count() == 1 && !states.is_empty(), "{told}");
    // The others go on without it, also for what was at home there.
    scene.replicas.remove(home);
    for seed in 10..16 {
        let content = blob(seed, 10_000);
        let digest = scene.hub.push_blob("team/app", content.clone());
        for replica in &scene.replicas {
            expect(replica.blob_url("hub/team/app", &digest), &content).await;
        }
        assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
    }
    scene.all_know_each_other(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_costs_one_question_for_all_replicas_and_what_is_not_there_too() {
    let scene = scene("max_age = \"1h\"").await;
    for number in 0..6 {
        let (name, image) = (format!("team/app-{number}"), Image::with_layers(number, &[500]));
        scene.hub.push_image(&name, "1", &image);
        for replica in &scene.replicas {
            expect(replica.manifest_url(&format!("hub/{name}"), "1"), &image.manifest.bytes).await;
            let answer = head(replica.manifest_url(&format!("hub/{name}"), "1")).await;
            assert_eq!(answer.header("docker-content-digest"), image.manifest.digest);
        }
        let asked = |on: On| scene.hub.count_on(on.name(&name));
        assert_eq!((asked(On::manifest().head()), asked(On::manifest().get())), (1, 1), "{}", scene.hub.summary());
        for replica in &scene.replicas {
            let answer = get(replica.manifest_url(&format!("hub/{name}"), "missing")).await;
            assert_eq!((answer.status, answer.error_code().as_str()), (404, "MANIFEST_UNKNOWN"), "{}", answer.text());
            let blob = format!("sha256:{}", "0".repeat(64));
            let answer = get(replica.blob_url(&format!("hub/{name}"), &blob)).await;
            assert_eq!((answer.status, answer.error_code().as_str()), (404, "BLOB_UNKNOWN"), "{}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_seen_by_all_and_an_old_copy_of_any_replica_is_served_in_an_outage() {
    let mut scene = scene("").await;
    let (before, after) = (Image::with_layers(1, &[500]), Image::with_layers(2, &[500]));
    scene.hub.push_image("team/app", "1", &before);
    for replica in &scene.replicas {
        expect(replica.manifest_url("hub/team/app", "1"), &before.manifest.bytes).await;
    }
    scene.hub.push_image("team/app", "1", &after);
    for replica in &scene.replicas {
        expect(replica.manifest_url("hub/team/app", "1"), &after.manifest.bytes).await;
    }
    // Only one of them has the manifests of these.
    let images: Vec<_> = (10..16).map(|seed| Image::with_layers(seed, &[500])).collect();
    for (at, image) in images.iter().enumerate() {
        scene.hub.push_image(&format!("team/old-{at}"), "1", image);
        expect(scene.replicas[0].manifest_url(&format!("hub/team/old-{at}"), "1"), &image.manifest.bytes).await;
    }
    let tags = || scene.postgres.sql("larder", "SELECT count(*) FROM larder.tags");
    eventually("the tags are written", async || tags() == "7").await;
    scene.hub.stop().await;
    for (at, image) in images.iter().enumerate() {
        for replica in &scene.replicas {
            let answer =
                request("GET", replica.manifest_url(&format!("hub/team/old-{at}"), "1")).deadline(SOON).send().await;
            let is_right = answer.complete() && answer.body == image.manifest.bytes;
            assert!(is_right, "{at}: {} {}", answer.status, answer.text());
            assert_eq!(answer.header("x-cache"), "STALE");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_replicas_are_let_in_and_nothing_is_given_where_clients_own_credentials_decide() {
    let mut scene = scene("client_credentials = \"pass\"").await;
    let content = blob(1, 10_000);
    let digest = scene.hub.push_blob("team/app", content.clone());
    expect(scene.replicas[0].blob_url("hub/team/app", &digest), &content).await;
    let url = format!("http://{}/v2/team/app/blobs/{digest}", scene.addresses[0]);
    let epoch = scene
        .postgres
        .sql("larder", &format!("SELECT epoch FROM larder.replicas WHERE address = 'http://{}'", scene.addresses[0]));
    let epoch = epoch.parse::<i64>().expect("a number").cast_unsigned().to_string();
    let proof = |token: &str, address: SocketAddr, path: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
        let tag = hmac::sign(&key, format!("larder\nhttp://{address}\n{epoch}\n{path}").as_bytes());
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("Larder-Replica {hex}")
    };
    let path = format!("/v2/team/app/blobs/{digest}");
    let right = proof(TOKEN, scene.addresses[0], &path);
    for (token, epoch, status) in [
        (None, Some(epoch.as_str()), 421),
        (Some(format!("Bearer {TOKEN}")), Some(epoch.as_str()), 421),
        (Some("Larder-Replica ".to_owned()), Some(epoch.as_str()), 421),
        (Some("Larder-Replica 0\u{e9}".to_owned()), Some(epoch.as_str()), 421),
        (Some(proof(&TOKEN.replace('0', "1"), scene.addresses[0], &path)), Some(epoch.as_str()), 421),
        // What another replica was shown, or what was shown for something else, is worth nothing here.
        (Some(proof(TOKEN, scene.addresses[1], &path)), Some(epoch.as_str()), 421),
        (Some(proof(TOKEN, scene.addresses[0], "/v2/team/app/manifests/1")), Some(epoch.as_str()), 421),
        (Some(right.clone()), None, 421),
        (Some(right.clone()), Some("7"), 421),
        // Let in, and refused all the same.
        (Some(right.clone()), Some(epoch.as_str()), 502),
    ] {
        let mut asked = request("GET", &url).header("larder-repository", "hub");
        if let Some(token) = token {
            asked = asked.header("authorization", token);
        }
        if let Some(epoch) = epoch {
            asked = asked.header("larder-epoch", epoch);
        }
        let answer = asked.send().await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(!answer.body.windows(16).any(|part| part == &content[..16]));
    }
    // The secret is in no log and on no page.
    for replica in &scene.replicas {
        assert!(!replica.log().contains(TOKEN));
        let shown = get(format!("{}/api/config", replica.admin_url())).await;
        assert!(shown.status == 200 && !shown.text().contains(TOKEN), "{}", shown.text());
    }
    // Who stops says so, and is not waited for.
    scene.replicas[2].stop().await;
    scene.replicas.truncate(2);
    scene.all_know_each_other(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_index_is_away_it_is_still_one_transfer() {
    let scene = scene("").await;
    scene.postgres.stop();
    for seed in 20..26 {
        let content = blob(seed, 100_000);
        let digest = scene.hub.push_blob("team/app", content.clone());
        let pulls = scene.replicas.iter().map(|replica| expect(replica.blob_url("hub/team/app", &digest), &content));
        join_all(pulls).await;
        assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
    }
    scene.postgres.go_on();
    let rows = || scene.postgres.sql("larder", "SELECT count(*) FROM larder.objects");
    eventually("all is noted by all", async || rows() == "18").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_sends_wrong_content_or_hangs_costs_no_pull() {
    let scene = scene("").await;
    // What the home has of the blob is not what it should be: its upstream sends wrong bytes.
    let content = blob(30, MIB);
    let digest = scene.hub.push_blob("team/app", content.clone());
    scene.hub.fault(On::blob().get().times(1), Fault::WrongBytes);
    let seen: HashSet<_> = join_all(scene.replicas.iter().map(async |replica| {
        let answer = request("GET", replica.blob_url("hub/team/app", &digest)).deadline(SOON).try_send().await;
        answer.is_ok_and(|answer| answer.complete() && answer.body != content)
    }))
    .await
    .into_iter()
    .collect();
    assert_eq!(seen, HashSet::from([false]), "nobody gets wrong content");
    // A replica that is stopped answers nothing, and its connections stay open.
    let digests: Vec<_> =
        (40..46).map(|seed| (scene.hub.push_blob("team/app", blob(seed, 9_000)), blob(seed, 9_000))).collect();
    scene.replicas[0].signal("STOP");
    for (digest, content) in &digests {
        for replica in &scene.replicas[1..] {
            expect(replica.blob_url("hub/team/app", digest), content).await;
        }
    }
    scene.replicas[0].signal("CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_purged_or_pinned_at_one_is_so_at_all() {
    let mut scene = scene("max_age = \"1h\"").await;
    let images: Vec<_> = (50..53).map(|seed| Image::with_layers(seed, &[20_000, 500])).collect();
    for (at, image) in images.iter().enumerate() {
        scene.hub.push_image(&format!("team/app-{at}"), "1", image);
        for replica in &scene.replicas {
            let name = format!("hub/team/app-{at}");
            expect(replica.manifest_url(&name, "1"), &image.manifest.bytes).await;
            for (content, digest) in image.layers.iter().zip(image.layer_digests()) {
                expect(replica.blob_url(&name, &digest), content).await;
            }
        }
    }
    let digests = |image: &Image| [image.layer_digests(), vec![image.manifest.digest.clone()]].concat();
    for replica in &scene.replicas {
        for image in &images {
            eventually("all is stored", async || replica.has_stored(&digests(image)).await).await;
        }
    }
    let rows = || scene.postgres.sql("larder", "SELECT count(*) FROM larder.objects");
    eventually("all is noted", async || rows() == "27").await;

    let run = async |replica: &Larder, arguments: &[&str]| {
        let ran = replica.run(&[arguments, &["--admin", &replica.admin_url()]].concat()).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    run(&scene.replicas[1], &["pin", "hub/team/app-2:1"]).await;
    run(&scene.replicas[0], &["purge", "hub/team/app-0:1"]).await;
    for replica in &scene.replicas {
        let gone = digests(&images[0]);
        eventually("the files are gone", async || gone.iter().all(|digest| !replica.object(digest).exists())).await;
        assert!(replica.has_stored(&digests(&images[1])).await, "and no others");
        assert!(replica.has_stored(&digests(&images[2])).await);
        let is_pinned = async || {
            let listed: serde_json::Value = serde_json::from_str(&run(replica, &["ls", "--json"]).await).expect("JSON");
            listed.as_array().expect("a list").iter().any(|image| image["pinned"] == true)
        };
        eventually("the pin is known", is_pinned).await;
    }
    // It is in no memory either: within `max_age`, too, the upstream is asked.
    scene.hub.stop().await;
    for replica in &scene.replicas {
        let asked =
            async |name: &str| request("GET", replica.manifest_url(name, "1")).deadline(SOON).send().await.status;
        eventually("nobody serves it", async || asked("hub/team/app-0").await >= 500).await;
        assert_eq!(asked("hub/team/app-1").await, 200);
    }
    run(&scene.replicas[2], &["purge", "--all"]).await;
    for replica in &scene.replicas {
        for image in &images {
            let gone = digests(image);
            eventually("all files are gone", async || gone.iter().all(|digest| !replica.object(digest).exists())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_restarted_one_after_the_other_and_no_pull_fails() {
    let mut scene = scene("").await;
    scene.hub.fault(On::blob().get(), Fault::Throttle { bytes_per_second: 4 << 20, chunk: 64 << 10 });
    for at in 0..3 {
        let content = blob(60 + at, 4 * MIB);
        let digest = scene.hub.push_blob("team/app", content.clone());
        let open = scene.replicas.iter().map(|replica| client::open(replica.blob_url("hub/team/app", &digest)));
        let mut clients = join_all(open).await;
        for client in &mut clients {
            client.read_exact(4096).await;
        }
        let number = usize::try_from(at).expect("small");
        let pulls = join_all(clients.into_iter().map(|client| expect_rest(client, content.slice(4096..))));
        let ((), exit) = tokio::join!(
            async {
                pulls.await;
            },
            scene.replicas[number].stop()
        );
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        let sent = scene.hub.bytes_sent(&digest);
        assert!(sent < 2 * content.len() as u64, "less than one further transfer: {sent}");
        scene.replicas[number].restart().await;
        scene.all_know_each_other(3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_any_replica_has_stored_is_served_by_all_without_the_upstream() {
    let mut scene = scene("").await;
    // Only the first one is there when they come in, so that it has all of them.
    for at in [2, 1] {
        scene.replicas[at].stop().await;
    }
    let images: Vec<_> = (70..76).map(|seed| Image::with_layers(seed, &[20_000, 500])).collect();
    for (at, image) in images.iter().enumerate() {
        let name = format!("hub/team/app-{at}");
        scene.hub.push_image(&format!("team/app-{at}"), "1", image);
        expect(scene.replicas[0].manifest_url(&name, "1"), &image.manifest.bytes).await;
        for (content, digest) in image.layers.iter().zip(image.layer_digests()) {
            expect(scene.replicas[0].blob_url(&name, &digest), content).await;
        }
    }
    let rows = || scene.postgres.sql("larder", "SELECT count(*) FROM larder.objects");
    eventually("all is noted", async || rows() == "18").await;
    let tags = || scene.postgres.sql("larder", "SELECT count(*) FROM larder.tags");
    eventually("the tags are written", async || tags() == "6").await;
    for at in [1, 2] {
        scene.replicas[at].restart().await;
    }
    scene.all_know_each_other(3).await;
    let before = scene.hub.requests().len();
    // Content by digest is asked of nobody else; only tags are checked.
    for (at, image) in images.iter().enumerate() {
        let name = format!("hub/team/app-{at}");
        for replica in &scene.replicas[1..] {
            expect(replica.manifest_url(&name, &image.manifest.digest), &image.manifest.bytes).await;
            let digest = &image.layer_digests()[0];
            expect(replica.blob_url(&name, digest), &image.layers[0]).await;
        }
    }
    assert_eq!(scene.hub.requests().len(), before, "{}", scene.hub.summary());
    scene.hub.stop().await;
    for (at, image) in images.iter().enumerate() {
        let name = format!("hub/team/app-{at}");
        for replica in &scene.replicas[1..] {
            expect(replica.manifest_url(&name, "1"), &image.manifest.bytes).await;
            expect(replica.blob_url(&name, &image.layer_digests()[1]), &image.layers[1]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_each_side_has_to_show_one_of_the_replicas_own_authority() {
    let (postgres, hub) = (Postgres::start(), Hub::start(Options::default()).await);
    postgres.create("larder");
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, others) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "others"));
    let repository = RepositoryConfig::new("hub").upstream_with(&hub, "parallel = 1");
    let url = postgres.bouncer_url("larder");
    let start = async |address: SocketAddr, authority: &Authority| {
        let Certificate { certificate, key } = authority.issue(&address.ip().to_string());
        Larder::start(format!(
            "[index]\nurl = \"{url}\"\n[cluster]\nlisten = \"{address}\"\nadvertise = \"https://{address}\"\n\
             certificate = \"{}\"\nprivate_key = \"{}\"\nca_bundle = \"{}\"\n{repository}",
            certificate.display(),
            key.display(),
            authority.file().display()
        ))
        .await
    };
    let addresses = [address(), address(), address()];
    let replicas = vec![start(addresses[0], &ours).await, start(addresses[1], &ours).await];
    let scene = Scene { postgres, hub, replicas, addresses: addresses.to_vec() };
    scene.all_know_each_other(2).await;
    for seed in 80..84 {
        let content = blob(seed, MIB);
        let digest = scene.hub.push_blob("team/app", content.clone());
        join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url("hub/team/app", &digest), &content)))
            .await;
        assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
    }
    let foreign = others.issue("foreign");
    for own in [None, Some(&foreign)] {
        let client = https(&ours.file(), own).build().expect("a client");
        assert!(client.get(format!("https://{}/healthz", addresses[0])).send().await.is_err(), "it is not let in");
    }
    // One of another authority in the same index is asked and not believed, and does not get anything.
    let stranger = start(addresses[2], &others).await;
    scene.all_know_each_other(3).await;
    for seed in 90..96 {
        let content = blob(seed, 10_000);
        let digest = scene.hub.push_blob("team/app", content.clone());
        for replica in scene.replicas.iter().chain([&stranger]) {
            expect(replica.blob_url("hub/team/app", &digest), &content).await;
        }
        assert!(scene.hub.count_on(On::blob().get().reference(&digest)) <= 3, "{}", scene.hub.summary());
    }
    assert_eq!(metric(&stranger, "larder_replica_received_bytes_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_an_hour_apart_change_nothing() {
    let scene = scene_of_clocks("max_age = \"12h\"", "", ["-1h", "+0", "+1h"]).await;
    for number in 0..6 {
        let (name, image) = (format!("team/app-{number}"), Image::with_layers(100 + number, &[20_000]));
        scene.hub.push_image(&name, "1", &image);
        let digest = &image.layer_digests()[0];
        for _ in 0..2 {
            for replica in &scene.replicas {
                let name = format!("hub/{name}");
                expect(replica.manifest_url(&name, "1"), &image.manifest.bytes).await;
                expect(replica.blob_url(&name, digest), &image.layers[0]).await;
            }
        }
        let asked = |on: On| scene.hub.count_on(on.name(&name));
        assert_eq!(asked(On::blob().get().reference(digest)), 1, "{}", scene.hub.summary());
        assert_eq!((asked(On::manifest().head()), asked(On::manifest().get())), (1, 1), "{}", scene.hub.summary());
    }
    // Longer than any of them counts as alive, and they still know each other.
    let lives = || scene.postgres.sql("larder", "SELECT count(*) FROM larder.replicas WHERE alive_until > now()");
    assert_eq!(lives(), "3");
    let purged = scene.replicas[0].run(&["purge", "--all", "--admin", &scene.replicas[0].admin_url()]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    let image = Image::with_layers(100, &[20_000]);
    for replica in &scene.replicas {
        eventually("it is gone", async || !replica.object(&image.layer_digests()[0]).exists()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_asks_the_upstream_whichever_replica_is_told_to() {
    let scene = scene("max_age = \"12h\"").await;
    for (round, replica) in scene.replicas.iter().enumerate() {
        // Each tag has another home.
        for number in 0..6 {
            let image = Image::with_layers(200 + 10 * round as u64 + number, &[500]);
            let name = format!("team/app-{number}");
            scene.hub.push_image(&name, "1", &image);
            let url = format!("{}/api/refresh?reference=hub/{name}:1", replica.admin_url());
            let answer = request("POST", url).deadline(SOON).send().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            expect(replica.manifest_url(&format!("hub/{name}"), "1"), &image.manifest.bytes).await;
        }
    }
}

/// Else each part of an image would bring in the whole at its home, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_an_image_comes_in_where_it_is_pulled_and_not_at_the_homes_of_its_parts() {
    let postgres = Postgres::start();
    postgres.create("larder");
    let hub = Hub::start(Options::default()).await;
    let repository = RepositoryConfig::new("hub").default_prefetch().upstream(&hub);
    let addresses = [address(), address()];
    let start = addresses.iter().map(|&address| Larder::start(config(&postgres, address, &repository)));
    let replicas = join_all(start).await;
    let scene = Scene { postgres, hub, replicas, addresses: addresses.to_vec() };
    scene.all_know_each_other(2).await;
    let image = Image::with_layers(300, &[1_000; 12]);
    scene.hub.push_image("team/app", "1", &image);
    let name = "hub/team/app";
    expect(scene.replicas[0].manifest_url(name, "1"), &image.manifest.bytes).await;
    expect(scene.replicas[0].manifest_url(name, &image.manifest.digest), &image.manifest.bytes).await;
    expect(scene.replicas[0].blob_url(name, &image.layer_digests()[0]), &image.layers[0]).await;
    let all = image.layer_digests();
    eventually("the rest came in", async || scene.replicas[0].has_stored(&all).await).await;
    let elsewhere = all.iter().filter(|digest| scene.replicas[1].object(digest).exists()).count();
    assert!(elsewhere > 0 && elsewhere < all.len(), "only what is at home there: {elsewhere}");
    assert_eq!(metric(&scene.replicas[1], "larder_prefetch_images_total").await, 0);
}
