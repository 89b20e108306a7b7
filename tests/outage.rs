//! Promise: an upstream failure is not a client failure while the content is cached, and a warm pull
//! costs one HEAD per tag. Against an upstream that behaves like Docker Hub.

use crate::support::{
    Answer, Fault, Hub, Image, Index, Kind, Larder, Listener, On, Options, RepositoryConfig, eventually, get, head,
    repository_config,
};

/// A whole pull as containerd does it: HEAD the tag, manifest by digest, every blob.
async fn pull(larder: &Larder, name: &str, tag: &str) -> Vec<Answer> {
    let tagged = head(larder.manifest_url(name, tag)).await;
    assert_eq!(tagged.status, 200, "{name}:{tag}");
    let mut answers = vec![get(larder.manifest_url(name, tagged.header("docker-content-digest"))).await];
    let mut at = 0;
    while let Some(manifest) = answers.get(at) {
        at += 1;
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(&manifest.body) else {
            continue;
        };
        let digest = |descriptor: &serde_json::Value| descriptor["digest"].as_str().expect("a digest").to_owned();
        let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        for child in list("manifests") {
            answers.push(get(larder.manifest_url(name, &digest(&child))).await);
        }
        let config = document.get("config").cloned();
        for child in list("layers").into_iter().chain(config) {
            let answer = get(larder.blob_url(name, &digest(&child))).await;
            assert!(answer.complete());
            answers.push(Answer { body: bytes::Bytes::new(), ..answer });
        }
    }
    assert!(answers.iter().all(|answer| answer.status == 200));
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_pull_from_docker_hub_costs_one_head_and_an_outage_nothing() {
    let mut hub = Hub::start(Options::docker_hub()).await;
    hub.push_image("library/alpine", "3.20", &Image::new(1));
    let config = RepositoryConfig::new("docker.io").upstream(&hub).to_string();
    let mut larder = Larder::start(&config).await;

    pull(&larder, "docker.io/library/alpine", "3.20").await;
    assert_eq!(hub.count_on(On::manifest().get()), 1 + auth_refusals(&hub), "{}", hub.summary());
    // Whatever went to the storage host went there without our token.
    let storage = hub.requests().into_iter().filter(|request| request.listener == Listener::Storage);
    assert!(storage.map(|request| request.header("authorization").map(str::to_owned)).all(|header| header.is_none()));
    eventually("all is stored", async || larder.stats().await["stores"] == 4).await;

    hub.take_requests();
    // Also without the prefix: docker.io is the default repository, and `alpine` means library/alpine.
    for name in ["docker.io/library/alpine", "library/alpine", "alpine"] {
        pull(&larder, name, "3.20").await;
        let asked: Vec<_> = hub.take_requests().into_iter().filter(|request| request.kind != Kind::Token).collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!((asked[0].method.as_str(), asked[0].reference.as_str()), ("HEAD", "3.20"));
    }

    hub.stop().await;
    pull(&larder, "docker.io/library/alpine", "3.20").await;
    let tagged = get(larder.manifest_url("alpine", "3.20")).await;
    assert_eq!((tagged.status, tagged.header("x-cache")), (200, "STALE"));
    assert!(tagged.header("warning").starts_with("299 - \""), "{:?}", tagged.header("warning"));

    // And after a restart, with no upstream to be found.
    larder.restart().await;
    pull(&larder, "alpine", "3.20").await;
}

/// First requests for a name are refused once, with the challenge that tells where tokens come from.
fn auth_refusals(hub: &Hub) -> usize {
    let without = |request: &crate::support::Request| request.header("authorization").is_none();
    hub.count(|request| request.kind == Kind::Manifest && request.method == "GET" && without(request))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_cached_with_the_platforms_that_were_pulled() {
    let mut hub = Hub::start(Options::docker_hub()).await;
    hub.push_index("library/multi", "1", &Index::new(1, &["linux/amd64", "linux/arm64"]));
    let larder = Larder::start(&repository_config("docker.io", &[&hub])).await;
    let cold = pull(&larder, "docker.io/library/multi", "1").await;
    eventually("all is stored", async || larder.stats().await["fills_running"] == 0).await;
    hub.stop().await;
    let warm = pull(&larder, "docker.io/library/multi", "1").await;
    assert_eq!(cold.len(), warm.len());
    // The index itself is the one thing a HEAD of its tag had already brought in.
    assert!(warm.iter().all(|answer| answer.header("x-cache") == "HIT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_and_serves_with_no_upstream_at_all() {
    let mut hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let mut larder = Larder::start(&repository_config("hub", &[&hub])).await;
    pull(&larder, "hub/team/app", "1").await;
    eventually("all is stored", async || larder.stats().await["stores"] == 4).await;
    hub.stop().await;
    larder.restart().await;
    pull(&larder, "hub/team/app", "1").await;
    let unknown = get(larder.manifest_url("hub/team/other", "1")).await;
    assert_eq!((unknown.status, unknown.error_code().as_str()), (502, "UNAVAILABLE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_upstream_serves_what_the_first_does_not() {
    for fault in [
        crate::support::Fault::status(503),
        crate::support::Fault::status(429),
        crate::support::Fault::status(403),
        crate::support::Fault::status(404),
        crate::support::Fault::Drop,
        crate::support::Fault::Hang,
    ] {
        let (first, second) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
        let image = Image::new(1);
        first.push_image("team/app", "1", &image);
        second.push_image("team/app", "1", &image);
        first.fault(On::any(), fault.clone());
        let config = RepositoryConfig::new("hub").upstream_with(&first, "timeout = \"500ms\"").upstream(&second);
        let larder = Larder::start(&config.to_string()).await;
        pull(&larder, "hub/team/app", "1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_hangs_costs_one_wait_and_not_one_for_each_request() {
    let (hung, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let image = Image::new(1);
    for hub in [&hung, &good] {
        hub.push_image("team/app", "1", &image);
    }
    hung.fault(On::any(), Fault::Hang);
    let config = RepositoryConfig::new("hub").upstream_with(&hung, "timeout = \"2s\"").upstream(&good);
    let larder = Larder::start(&config.to_string()).await;
    for _ in 0..10 {
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.body, image.manifest.bytes);
    }
    assert!(get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await.complete());
    // One request waited. Where the others take longer than its rest, one or two more look.
    assert!(hung.requests().len() <= 4, "{}", hung.summary());
    eventually("the log says so", async || larder.log().contains("backing off from an upstream")).await;

    // Back again, it is asked first.
    hung.clear_faults();
    hung.take_requests();
    eventually("it is asked again", async || {
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
        hung.requests().len() > 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limited_upstream_is_left_alone_until_it_may_be_asked() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    assert_eq!(get(&tag).await.status, 200);
    hub.fault(On::any().times(1), Fault::reply(429, &[("retry-after", "2")], "Too Many Requests (HAP429)."));
    hub.take_requests();
    let began = std::time::Instant::now();
    loop {
        let answer = get(&tag).await;
        assert_eq!((answer.status, &answer.body), (200, &image.manifest.bytes));
        // What is not cached is told when to come back.
        let other = get(larder.manifest_url("hub/team/app", "2")).await;
        if hub.requests().len() > 1 {
            break;
        }
        assert_eq!(answer.header("x-cache"), "STALE");
        assert!(answer.header("warning").contains("429"), "{}", answer.header("warning"));
        let after: u64 = other.header("retry-after").parse().expect("seconds");
        assert!(other.status == 429 && after <= 2, "{} {after}", other.status);
    }
    assert!(began.elapsed() > std::time::Duration::from_millis(1_900), "it was asked too early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_passes_is_not_seen_by_clients() {
    for fault in [Fault::status(500), Fault::status(502), Fault::status(503), Fault::Drop] {
        let hub = Hub::start(Options::default()).await;
        let image = Image::new(1);
        hub.push_image("team/app", "1", &image);
        let larder = Larder::start(&repository_config("hub", &[&hub])).await;
        hub.fault(On::any().times(1), fault.clone());
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.body, image.manifest.bytes, "{fault:?}");
        hub.fault(On::any().times(1), fault.clone());
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.header("x-cache"), "HIT", "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_upstream_is_asked_before_the_client_gives_up() {
    let (hung, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let image = Image::new(1);
    good.push_image("team/app", "1", &image);
    hung.fault(On::any(), Fault::Hang);
    // With a timeout of 60 s each, and of 30 s for the client of this test.
    let larder = Larder::start(&repository_config("hub", &[&hung, &good])).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.body, image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_drips_is_not_waited_for() {
    let (slow, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let image = Image::new(1);
    for hub in [&slow, &good] {
        hub.push_image("team/app", "1", &image);
    }
    // Each byte comes in time, and all of them would take minutes.
    slow.fault(On::manifest().get(), Fault::Throttle { bytes_per_second: 2, chunk: 1 });
    let config = RepositoryConfig::new("hub").upstream_with(&slow, "timeout = \"2s\"").upstream(&good);
    let larder = Larder::start(&config.to_string()).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.body, image.manifest.bytes);
}
