//! What must not happen with a bucket (`[storage.s3]`): content is lost, content that was purged comes back, or somebody
//! reads what is not for him.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::bucket::{DAY, scene};
use crate::support::bucket::{Op, S3, S3Fault};
use crate::support::{Hub, Larder, On, Options, Proxied, RepositoryConfig, blob, client, eventually, get, request};

const MIB: usize = 1 << 20;
const NAME: &str = "hub/team/app";

/// The index is lost, and the first comparison breaks off behind the first key. The next comparison must not take what the
/// first one did not reach for left over.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_broke_off_makes_the_next_one_delete_nothing() {
    let mut scene = scene(300_000, "").await;
    scene.pull().await;
    let second = scene.hub.push_blob("team/app", blob(2, 300_000));
    assert!(get(scene.larder.blob_url(NAME, &second)).await.complete());
    scene.is_uploaded(2).await;
    let keys = scene.s3.keys();
    scene.s3.age(2 * DAY);
    scene.larder.stop().await;
    std::fs::remove_file(scene.larder.dir().join("larder.db")).expect("there is an index");
    std::fs::remove_dir_all(scene.larder.dir().join("blobs")).expect("there are files");
    scene.s3.fault(Op::List, S3Fault::SecondPage);
    scene.larder.restart().await;
    eventually("it breaks off", async || scene.larder.log().contains("cannot be compared with the index now")).await;
    scene.is_uploaded(1).await;
    scene.s3.heal();
    scene.larder.restart().await;
    scene.is_uploaded(2).await;
    scene.is_swept().await;
    assert_eq!(scene.s3.keys(), keys);
    // From now on, what belongs to no row is left over again.
    let (folder, _) = keys[0].rsplit_once('.').expect("a generation");
    let rowless = format!("{folder}.{}", "0".repeat(32));
    scene.s3.put(&rowless, &scene.content);
    scene.s3.age(2 * DAY);
    scene.larder.restart().await;
    eventually("it is deleted", async || scene.s3.keys() == keys).await;
}

/// The index is lost, the bucket cannot be listed at the start, and something is uploaded before it can.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_uploaded_before_the_first_comparison_makes_it_delete_nothing() {
    let mut scene = scene(300_000, "").await;
    scene.pull().await;
    let key = scene.s3.key_of(&scene.digest).expect("one key");
    scene.lose_index().await;
    scene.s3.fault(Op::List, S3Fault::Refuse(503, "SlowDown"));
    scene.larder.restart().await;
    eventually("it breaks off", async || scene.larder.log().contains("cannot be compared with the index now")).await;
    let second = scene.hub.push_blob("team/app", blob(2, 300_000));
    assert!(get(scene.larder.blob_url(NAME, &second)).await.complete());
    scene.is_uploaded(1).await;
    scene.s3.heal();
    scene.larder.restart().await;
    scene.is_uploaded(2).await;
    assert!(scene.s3.keys().contains(&key));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_purged_and_not_deleted_does_not_come_back() {
    let mut scene = scene(300_000, "").await;
    scene.pull().await;
    scene.s3.fault(Op::Delete, S3Fault::Refuse(403, "AccessDenied"));
    let purged = scene.larder.run(&["purge", "--all"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert_eq!(scene.s3.keys().len(), 1, "the bucket refuses");
    scene.is_uploaded(0).await;
    scene.larder.stop().await;
    scene.s3.heal();
    scene.s3.age(2 * DAY);
    scene.larder.restart().await;
    eventually("the sweep deletes it", async || scene.s3.keys().is_empty()).await;
    scene.is_uploaded(0).await;
    scene.hub.take_requests();
    assert!(get(scene.url()).await.complete());
    assert_eq!(scene.hub.count_on(On::blob().get()), 1, "it was in the cache again");
}

/// What clients' own credentials brought in is forgotten before any door opens; the bucket is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn no_start_waits_for_a_bucket_that_hangs() {
    let (hub, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let blobs: Vec<_> = (0..3).map(|number| hub.push_blob("team/app", blob(number, 1000))).collect();
    let config = |keys: &str| format!("{}{}", s3.config(""), RepositoryConfig::new("hub").set(keys).upstream(&hub));
    let mut larder = Larder::start(config("client_credentials = \"pass\"")).await;
    for digest in &blobs {
        assert!(get(larder.blob_url(NAME, digest)).await.complete());
    }
    eventually("all is in the bucket", async || larder.metrics().await.contains("larder_s3_objects 3\n")).await;
    s3.fault(Op::Delete, S3Fault::Hang);
    larder.write_config(config(""));
    // Fails if it does not listen within the time of a single request to the bucket.
    larder.restart().await;
    eventually("nothing of it is known", async || larder.metrics().await.contains("larder_s3_objects 0\n")).await;
    assert_eq!(s3.keys().len(), 3);
}

/// Each upload would leave a further copy.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_bucket_takes_and_does_not_confirm_is_deleted() {
    for size in [300_000, 20 * MIB] {
        let mut scene = scene(size, "").await;
        scene.s3.fault(Op::Head, S3Fault::Refuse(403, "AccessDenied"));
        assert!(get(scene.url()).await.complete());
        eventually("it was sent", async || scene.s3.count(Op::Head) > 0).await;
        eventually("it is deleted", async || scene.s3.count(Op::Delete) > 0 && scene.s3.keys().is_empty()).await;
        assert_eq!(scene.s3.count(Op::Put) + scene.s3.count(Op::Complete), 1);
        scene.s3.heal();
        scene.larder.restart().await;
        scene.is_uploaded(1).await;
        scene.hub.stop().await;
        scene.empty_tier();
        assert_eq!(get(scene.url()).await.body, scene.content);
    }
}

/// An upload lives as long as its fill, which may be longer than a day.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_runs_is_not_swept_however_old_it_is() {
    let mut scene = scene(40 * MIB, "").await;
    scene.is_compared().await;
    // The comparison of this start has not come to the unfinished uploads yet.
    scene.larder.stop().await;
    let lists = scene.s3.hold(Op::List);
    let gate = scene.hub.gate(On::blob().get(), 36 * MIB as u64);
    scene.larder.restart().await;
    let client = client::open(scene.url()).await;
    eventually("parts are sent", async || scene.s3.count(Op::Part) >= 2).await;
    scene.s3.age(2 * DAY);
    // One of a process that was killed: it is aborted.
    scene.s3.begin("p/blobs/sha256/old");
    scene.s3.age(2 * DAY);
    lists.send_replace(true);
    eventually("the sweep comes to it", async || scene.s3.count(Op::Abort) > 0).await;
    gate.open();
    assert!(client.read_to_end().await.complete());
    scene.is_uploaded(1).await;
    assert_eq!((scene.s3.count(Op::Begin), scene.s3.count(Op::Abort)), (1, 1));
}

const ME: &str = "me:mine";

async fn asked(method: &str, url: &str, who: &str) -> client::Answer {
    let asked = request(method, url);
    match who {
        "" => asked.send().await,
        pair => asked.header("authorization", format!("Basic {}", BASE64_STANDARD.encode(pair))).send().await,
    }
}

/// Neither bytes nor an address of the bucket.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_bucket_is_for_nobody_to_whom_the_upstream_would_not_give_it() {
    const PRIVATE: &str = "team/private";
    for (lines, status) in [("", 200), ("redirect = true", 307)] {
        let options = Options::with_tokens().user("me", "mine").user("you", "yours").private(PRIVATE, "me");
        let (hub, other, s3) = (Hub::start(options).await, Hub::start(Options::default()).await, S3::start().await);
        let digest = hub.push_blob(PRIVATE, blob(1, 300_000));
        let private = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&hub);
        let open = RepositoryConfig::new("open").upstream(&other);
        let larder = Larder::start(format!("{}{private}{open}", s3.config(lines))).await;
        let url = larder.blob_url("hub/team/private", &digest);
        let pulled = asked("GET", &url, ME).await;
        assert!(pulled.status == 200 && pulled.complete(), "{}", pulled.text());
        eventually("it is in the bucket", async || larder.metrics().await.contains("larder_s3_objects 1\n")).await;
        std::fs::remove_file(larder.object(&digest)).expect("the file is there");
        let elsewhere = [larder.blob_url("hub/team/public", &digest), larder.blob_url("open/team/private", &digest)];
        for method in ["GET", "HEAD"] {
            for (who, status) in [("you:yours", 403), ("me:wrong", 403), ("", 401)] {
                let theirs = asked(method, &url, who).await;
                assert_eq!((theirs.status, theirs.header("location")), (status, ""), "{lines}: {method} as {who}");
                assert_eq!(theirs.header("docker-content-digest"), "", "{lines}: {method} as {who}");
            }
            for url in &elsewhere {
                let theirs = asked(method, url, "you:yours").await;
                assert_eq!((theirs.status, theirs.header("location")), (404, ""), "{lines}: {method} {url}");
            }
        }
        assert_eq!(s3.count(Op::Get), 0, "{lines}: nothing of it was read");
        assert_eq!(asked("GET", &url, ME).await.status, status, "{lines}");
    }
}

/// Nobody depends on how fast a registry sends that only another client named.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_for_a_registry_of_a_clients_choice_comes_for_that_client_alone() {
    let (chosen, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let rest = format!("[allowlist]\ndomains = [\"{}\"]\n{}", chosen.address(), s3.config(""));
    let scene = Proxied::start_with(Options::default(), "", ["", ""], &rest).await;
    let content = blob(1, 300_000);
    let digest = scene.hub.push_blob("team/app", content.clone());
    chosen.push_blob("team/app", content.clone());
    let urls = [scene.blob("team/app", &digest), format!("{}/v2/team/app/blobs/{digest}", chosen.url())];
    // Both upstreams have sent it once.
    for url in &urls {
        assert_eq!(scene.browser().get(url).await.body, content, "{url}");
    }
    eventually("it is in the bucket", async || scene.larder.metrics().await.contains("larder_s3_objects 1\n")).await;
    std::fs::remove_file(scene.larder.object(&digest)).expect("the file is there");
    let gate = s3.hold(Op::Get);
    let clients = urls.map(|url| {
        let browser = scene.browser();
        tokio::spawn(async move { browser.get(url).await })
    });
    eventually("each has a transfer of its own", async || s3.count(Op::Get) == 2).await;
    gate.send_replace(true);
    for client in clients {
        assert_eq!(client.await.expect("no panic").body, content);
    }
}
