//! Promise: what one client does keeps no other from being served, and does not fill the memory: many requests at once,
//! slow readers, slow upstreams, tokens, names of whole domains.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;

use crate::support::{
    Connection, Fault, Hub, Image, Larder, On, Options, RepositoryConfig, Streaming, blob, eventually, get,
    repository_config, request,
};

const MIB: u64 = 1 << 20;
/// Another client than the one that most requests here come from.
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));
/// Before any client gives up.
const SOON: Duration = Duration::from_secs(8);

async fn other_is_served(url: String) {
    let answer = request("GET", &url).from(OTHER).deadline(SOON).try_send().await;
    let answer = answer.unwrap_or_else(|error| panic!("{url} is not answered: {error}"));
    assert_eq!(answer.status, 200, "{url}: {}", answer.text());
}

/// Memory that it takes more than before, at its peak.
fn grown(larder: &Larder, before: u64) -> u64 {
    larder.resident_memory().peak.saturating_sub(before)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_slow_readers_of_a_large_manifest_hold_no_copies_of_it() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    hub.fault(On::manifest(), Fault::HugeManifest { size: 4 << 20 });
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let url = larder.manifest_url("hub/team/app", "1");
    assert_eq!(get(&url).await.body.len(), 4 << 20);
    let before = larder.resident_memory().resident;
    let mut reading: Vec<Streaming> = join_all((0..100).map(|_| request("GET", &url).open())).await;
    let connection = Connection::http2(larder.url()).await;
    // Of these nothing is read: they share one window.
    let streams = join_all((0..90).map(|_| request("GET", &url).http2().open_on(&connection))).await;
    assert!(streams.iter().all(|answer| answer.status == 200));
    for answer in &mut reading {
        assert_eq!(answer.status, 200);
        answer.read_exact(1000).await;
    }
    assert!(grown(&larder, before) < 120 * MIB, "{} MiB", grown(&larder, before) / MIB);
    let last = reading.pop().expect("an answer").read_to_end().await;
    assert_eq!(last.body.len() + 1000, 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_manifests_that_drip_in_are_few_at_a_time() {
    let hub = Hub::start(Options::default()).await;
    for at in 0..60 {
        hub.push_image("team/app", &format!("v{at}"), &Image::new(1));
    }
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::manifest(), Fault::HugeManifest { size: 7 << 20 });
    let gate = hub.gate(On::manifest().get(), 6 << 20);
    let before = larder.resident_memory().resident;
    let urls: Vec<_> = (0..60).map(|at| larder.manifest_url("hub/team/app", &format!("v{at}"))).collect();
    let asking: Vec<_> = urls.into_iter().map(|url| tokio::spawn(async move { get(url).await.status })).collect();
    gate.reached().await;
    for asked in asking {
        assert!(matches!(asked.await.expect("no panic"), 200 | 503 | 504));
    }
    // Eight of 7 MiB, and of each of the others its first 256 KiB and what its connection has read ahead (up to 400 KiB).
    // All 60 as a whole would be 420 MiB.
    assert!(grown(&larder, before) < 220 * MIB, "{} MiB", grown(&larder, before) / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_to_an_upstream_that_does_not_answer_take_no_descriptors_of_others() {
    let (hung, well) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    for at in 0..5 {
        well.push_image("team/app", &at.to_string(), &Image::new(at));
    }
    let config = repository_config("hung", &[&hung]) + &repository_config("well", &[&well]);
    let larder = Larder::builder().config(config).descriptors(1024, 1024).start().await;
    hung.fault(On::any(), Fault::Hang);
    let mut connections = Vec::new();
    for _ in 0..10 {
        connections.push(Connection::http2(larder.url()).await);
    }
    let asking = connections
        .iter()
        .enumerate()
        .flat_map(|(connection, over)| (0..90).map(move |at| (over, format!("t{connection}-{at}"))));
    let asking: Vec<_> = asking
        .map(|(over, tag)| request("GET", larder.manifest_url("hung/team/app", &tag)).http2().send_on(over))
        .collect();
    let served = async {
        eventually("the upstream is asked", async || hung.connections() >= 10).await;
        for at in 0..5 {
            other_is_served(larder.manifest_url("well/team/app", &at.to_string())).await;
        }
        assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 200);
        assert!(hung.connections() <= 64, "{}", hung.connections());
    };
    tokio::select! {
        _ = join_all(asking) => {}
        () = served => {}
    }
    for at in 0..5 {
        other_is_served(larder.manifest_url("well/team/app", &at.to_string())).await;
    }
    assert!(!larder.log().contains("Too many open files"));
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_connections_of_one_address_leave_places_for_others_at_both_doors() {
    let (hung, well) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    well.push_image("team/app", "1", &Image::new(1));
    let proxy = "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n";
    let config = format!("{proxy}{}{}", repository_config("hung", &[&hung]), repository_config("well", &[&well]));
    let larder = Larder::builder().config(config).descriptors(512, 512).start().await;
    assert_eq!(get(larder.manifest_url("well/team/app", "1")).await.status, 200);
    hung.fault(On::any(), Fault::Hang);
    let mut busy = Vec::new();
    for at in 0..300 {
        let url = larder.manifest_url("hung/team/app", &format!("t{at}"));
        busy.push(tokio::spawn(async move { request("GET", url).deadline(Duration::from_secs(60)).try_send().await }));
    }
    // Tunnels through which something goes now and then are busy, too.
    for _ in 0..200 {
        let (door, to) = (larder.door("proxy"), hung.address());
        busy.push(tokio::spawn(async move {
            let connect = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
            crate::support::raw(door, connect.as_bytes(), Duration::from_secs(60)).await;
            Err("it only stays open".to_owned())
        }));
    }
    eventually("the upstream is asked", async || hung.connections() >= 8).await;
    for _ in 0..3 {
        other_is_served(larder.manifest_url("well/team/app", "1")).await;
        other_is_served(format!("http://{}/ca.crt", larder.door("proxy"))).await;
    }
    busy.iter().for_each(|task| task.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_take_all_connections_to_an_upstream() {
    let hub = Hub::start(Options::default()).await;
    let slow: Vec<_> = (0..100).map(|at| hub.push_blob("team/app", blob(at, 3000))).collect();
    let quick = hub.push_blob("team/app", blob(999, 3000));
    let larder = Larder::start(RepositoryConfig::new("hub").upstream_with(&hub, "max_connections = 8")).await;
    let gates: Vec<_> = slow.iter().map(|digest| hub.hold(On::blob().get().reference(digest))).collect();
    let urls: Vec<_> = slow.iter().map(|digest| larder.blob_url("hub/team/app", digest)).collect();
    let asking: Vec<_> = urls.into_iter().map(|url| tokio::spawn(async move { get(url).await.status })).collect();
    eventually("it has what it may have", async || gates.iter().filter(|gate| gate.waiting() > 0).count() >= 6).await;
    other_is_served(larder.blob_url("hub/team/app", &quick)).await;
    gates.iter().for_each(crate::support::Gate::open);
    asking.iter().for_each(|task| task.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_whose_readers_have_left_gives_its_connection_to_one_that_is_waited_for() {
    let hub = Hub::start(Options::default()).await;
    let left: Vec<_> = (0..2).map(|at| hub.push_blob("team/app", blob(at, 300_000))).collect();
    let wanted = hub.push_blob("team/app", blob(9, 3000));
    let larder = Larder::start(RepositoryConfig::new("hub").upstream_with(&hub, "max_connections = 2")).await;
    for digest in &left {
        let gate = hub.gate(On::blob().get().reference(digest), 1000);
        let reading = request("GET", larder.blob_url("hub/team/app", digest)).open().await;
        gate.reached().await;
        drop(reading);
    }
    other_is_served(larder.blob_url("hub/team/app", &wanted)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_pulling_opens_no_admin_door() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let dir = tempfile::tempdir().expect("a directory");
    let hash = bcrypt::hash_with_result("secret", 5).expect("hashed").format_for_version(bcrypt::Version::TwoY);
    std::fs::write(dir.path().join("htpasswd"), format!("bob:{hash}\n")).expect("written");
    let config = format!(
        "[auth.htpasswd]\npath = {:?}\n[admin]\nallow = [\"user:bob\"]\n{}",
        dir.path().join("htpasswd").display().to_string(),
        RepositoryConfig::new("hub").set("allow = [\"user:bob\"]").upstream(&hub)
    );
    let larder = Larder::start(config).await;
    let basic = format!("Basic {}", BASE64_STANDARD.encode("bob:secret"));
    let url = format!("{}/token?service=larder&scope=repository:hub/team/app:pull", larder.url());
    let token = request("GET", url).header("authorization", &basic).send().await.json()["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().expect("a token"));
    let pulled = request("GET", larder.manifest_url("hub/team/app", "1")).header("authorization", &bearer).send().await;
    assert_eq!(pulled.status, 200, "{}", pulled.text());
    for (method, path) in [("GET", "/api/cache/stats"), ("DELETE", "/api/cache")] {
        let url = format!("{}{path}", larder.admin_url());
        let refused = request(method, &url).header("authorization", &bearer).send().await;
        assert_eq!(refused.status, 401, "{method} {path}");
    }
    let url = format!("{}/api/cache/stats", larder.admin_url());
    assert_eq!(request("GET", url).header("authorization", &basic).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_names_a_manifests_digest_is_no_consent() {
    let hub = Hub::start(Options::with_basic("alice", "secret")).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&hub);
    let larder = Larder::start(config).await;
    let (url, tag) =
        (larder.manifest_url("hub/team/app", &image.manifest.digest), larder.manifest_url("hub/team/app", "1"));
    let alice = format!("Basic {}", BASE64_STANDARD.encode("alice:secret"));
    for url in [&url, &tag] {
        assert_eq!(request("GET", url).header("authorization", &alice).send().await.status, 200);
    }
    // A gateway in front shows its page to everybody, and says which digest was asked for.
    let digest = image.manifest.digest.as_str();
    for media_type in ["text/html", "application/vnd.oci.image.manifest.v1+json"] {
        let page =
            Fault::reply(200, &[("content-type", media_type), ("docker-content-digest", digest)], "<p>Log in</p>");
        let struck = hub.fault(On::manifest().before_auth(), page);
        for authorization in ["", "Basic Ym9iOng="] {
            for url in [&url, &tag] {
                let asked = request("GET", url);
                let asked = if authorization.is_empty() { asked } else { asked.header("authorization", authorization) };
                let answer = asked.send().await;
                assert_ne!(answer.status, 200, "{media_type} {authorization} {url}: {}", answer.text());
            }
        }
        struck.lift();
    }
}
