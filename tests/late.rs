//! Promise: no answer is late. With a copy in the cache the answer begins within 3 s, whatever the upstream does; without
//! one, an answer or a truthful error begins within 25 s. What waits for places of our own is never told as the upstream's
//! failure, and large layers keep no small blob waiting.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{
    Answer, Fault, Hub, Image, Larder, On, Options, RepositoryConfig, Streaming, blob, eventually, get,
    repository_config, request,
};

/// For an answer with a copy to begin, and without one: as docs/outages.md tells.
const WITH_COPY: Duration = Duration::from_secs(3);
const WITHOUT: Duration = Duration::from_secs(25);

#[test]
fn the_document_tells_the_deadlines_that_are_tested_here() {
    let document = include_str!("../docs/outages.md");
    for (row, within) in [
        ("| yes | hung |", WITH_COPY),
        ("| yes | dripping |", WITH_COPY),
        ("| no | hung |", WITHOUT),
        ("| no | dripping |", WITHOUT),
        ("| no | resting |", WITH_COPY),
    ] {
        let told = format!("{row} {} s |", within.as_secs());
        assert!(document.lines().any(|line| line == told), "{told}");
    }
}

async fn timed(url: String) -> (Answer, Duration) {
    let since = Instant::now();
    let answer = request("GET", url).deadline(Duration::from_secs(40)).send().await;
    (answer, since.elapsed())
}

/// Asks for all tags at once; each has to be answered with its copy in time.
async fn all_are_stale_in_time(larder: &Larder, tags: &[String]) {
    let answers = tags.iter().map(|tag| timed(larder.manifest_url("hub/team/app", tag)));
    for (answer, took) in join_all(answers).await {
        assert_eq!((answer.status, answer.header("x-cache")), (200, "STALE"), "{}", answer.text());
        assert!(!answer.header("warning").is_empty());
        assert!(took < WITH_COPY, "{took:?}");
    }
}

fn tags(hub: &Hub, count: usize) -> Vec<String> {
    let image = Image::new(1);
    (0..count).map(|at| format!("v{at}")).inspect(|tag| drop(hub.push_image("team/app", tag, &image))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upstream_keeps_nobody_waiting_who_can_have_a_copy() {
    let hub = Hub::start(Options::default()).await;
    let tags = tags(&hub, 20);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for tag in &tags {
        assert_eq!(get(larder.manifest_url("hub/team/app", tag)).await.status, 200);
    }
    hub.take_requests();
    hub.fault(On::any(), Fault::Hang);
    // For longer than the upstream has to answer in.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(23) {
        all_are_stale_in_time(&larder, &tags).await;
    }
    let asked = hub.requests().len();
    assert!(asked <= 2 * tags.len(), "{asked} requests to an upstream that does not answer");

    // It is looked after in the background: no client has to wait to find out that it is back.
    hub.clear_faults();
    eventually("it is found out", async || {
        let (answer, took) = timed(larder.manifest_url("hub/team/app", &tags[0])).await;
        assert!(took < WITH_COPY, "{took:?}");
        answer.header("x-cache") == "HIT"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_drips_breaks_off_or_answers_now_and_then_keeps_nobody_waiting_either() {
    let hub = Hub::start(Options::default()).await;
    let tags = tags(&hub, 5);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for tag in &tags {
        assert_eq!(get(larder.manifest_url("hub/team/app", tag)).await.status, 200);
    }
    let moved = Image::new(2);
    for tag in &tags {
        hub.push_image("team/app", tag, &moved);
    }
    // HEAD is answered, and of the manifest comes a byte a second.
    let dripping = hub.fault(On::manifest().get(), Fault::Throttle { bytes_per_second: 1, chunk: 1 });
    for _ in 0..3 {
        all_are_stale_in_time(&larder, &tags).await;
    }
    dripping.lift();
    for fault in [Fault::Drop, Fault::status(503), Fault::Hang] {
        let struck = hub.fault(On::manifest().times(7), fault);
        for _ in 0..5 {
            for (answer, took) in join_all(tags.iter().map(|tag| timed(larder.manifest_url("hub/team/app", tag)))).await
            {
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert!(took < WITH_COPY, "{took:?}");
            }
        }
        struck.lift();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_copy_a_silent_upstream_is_a_truthful_error_in_time_and_then_at_once() {
    let (hung, well) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let image = Image::new(1);
    well.push_image("team/app", "1", &image);
    let larder = Larder::start(repository_config("hung", &[&hung]) + &repository_config("well", &[&well])).await;
    hung.fault(On::any(), Fault::Hang);
    let urls = [
        larder.manifest_url("hung/team/app", "1"),
        larder.manifest_url("hung/team/app", &image.manifest.digest),
        larder.blob_url("hung/team/app", &image.layer_digests()[0]),
        format!("{}/v2/hung/team/app/tags/list", larder.url()),
        format!("{}/v2/hung/team/app/referrers/{}", larder.url(), image.manifest.digest),
    ];
    for (answer, took) in join_all(urls.iter().map(|url| timed(url.clone()))).await {
        assert_eq!((answer.status, answer.error_code().as_str()), (504, "UNAVAILABLE"), "{}", answer.text());
        assert!(took < WITHOUT, "{took:?}");
    }
    for url in urls {
        let (answer, took) = timed(url).await;
        assert_eq!(answer.status, 504);
        assert!(took < WITH_COPY, "it is left alone: {took:?}");
    }
    assert_eq!(get(larder.manifest_url("well/team/app", "1")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_drips_is_an_error_in_time() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::manifest().get(), Fault::Throttle { bytes_per_second: 1, chunk: 1 });
    let (answer, took) = timed(larder.manifest_url("hub/team/app", "1")).await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(took < WITHOUT, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_silent_upstreams_the_last_is_asked_in_time() {
    let (hung, well) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    well.push_image("team/app", "1", &Image::new(1));
    let larder = Larder::start(repository_config("hub", &[&hung, &well])).await;
    hung.fault(On::any(), Fault::Hang);
    let (answer, took) = timed(larder.manifest_url("hub/team/app", "1")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(took < WITHOUT, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_places_of_our_own_is_not_told_as_the_upstreams_failure() {
    let (slow, well) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let slow_blobs: Vec<_> = (0..300).map(|at| slow.push_blob("team/app", blob(at, 2000))).collect();
    let quick = well.push_blob("team/app", blob(999, 2000));
    let larder = Larder::start(repository_config("slow", &[&slow]) + &repository_config("well", &[&well])).await;
    let gate = slow.hold(On::blob().get());
    let asking: Vec<_> =
        slow_blobs.iter().map(|digest| tokio::spawn(timed(larder.blob_url("slow/team/app", digest)))).collect();
    gate.wait_for(48).await;
    // The client has all connections of one upstream that it may have: that is nothing to another upstream.
    let (answer, took) = timed(larder.blob_url("well/team/app", &quick)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(took < WITH_COPY, "{took:?}");
    gate.open();
    for asked in asking {
        let (answer, took) = asked.await.expect("no panic");
        assert!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.text());
        if answer.status == 503 {
            assert_eq!(answer.header("retry-after"), "1");
        }
        assert!(took < WITHOUT, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_never_get_a_place_are_told_so_in_time() {
    let slow = Hub::start(Options::default()).await;
    let blobs: Vec<_> = (0..12).map(|at| slow.push_blob("team/app", blob(at, 2000))).collect();
    let config = RepositoryConfig::new("slow").upstream_with(&slow, "max_connections = 2");
    let larder = Larder::start(config).await;
    slow.hold(On::blob().get());
    let answers = join_all(blobs.iter().map(|digest| timed(larder.blob_url("slow/team/app", digest)))).await;
    let statuses: Vec<_> = answers.iter().map(|(answer, _)| answer.status).collect();
    // Those that were asked for, and those whose turn came when the upstream was known not to answer, are 504.
    assert!(statuses.iter().all(|status| matches!(status, 503 | 504)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 503).count() >= 6, "{statuses:?}");
    assert!(answers.iter().all(|(_, took)| *took < WITHOUT));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_layers_on_a_slow_line_keep_no_small_blob_waiting() {
    const LARGE: usize = 20 << 20;
    let hub = Hub::start(Options::default()).await;
    let large: Vec<_> = (0..8).map(|at| hub.push_blob("team/app", blob(at, LARGE))).collect();
    let small = hub.push_blob("team/app", blob(99, 2000));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for digest in &large {
        hub.fault(On::blob().get().reference(digest), Fault::Throttle { bytes_per_second: 400_000, chunk: 16 << 10 });
    }
    let mut reading: Vec<Streaming> = Vec::new();
    for digest in &large {
        reading.push(
            request("GET", larder.blob_url("hub/team/app", digest)).deadline(Duration::from_secs(120)).open().await,
        );
    }
    eventually("further connections are opened for them", async || hub.connections() >= 32).await;
    let (answer, took) = timed(larder.blob_url("hub/team/app", &small)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(hub.connections() <= 64, "{}", hub.connections());
    drop(reading);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_name_makes_no_outage_of_an_upstream_that_answers_others() {
    let hub = Hub::start(Options::default()).await;
    for tag in ["slow", "a", "b"] {
        hub.push_image("team/app", tag, &Image::new(1));
    }
    let larder = Larder::start(RepositoryConfig::new("hub").upstream_with(&hub, "timeout = \"2s\"")).await;
    let gate = hub.hold(On::manifest().reference("slow"));
    let slow = tokio::spawn(timed(larder.manifest_url("hub/team/app", "slow")));
    gate.reached().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "a")).await.status, 200);
    let (refused, _) = slow.await.expect("no panic");
    assert_eq!(refused.status, 504, "{}", refused.text());
    assert_eq!(get(larder.manifest_url("hub/team/app", "b")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_checks_at_once_share_few_connections() {
    let hub = Hub::start(Options::default()).await;
    let tags = tags(&hub, 600);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::manifest().head(), Fault::Delay(Duration::from_millis(20)));
    let asking = tags.iter().map(|tag| tokio::spawn(timed(larder.manifest_url("hub/team/app", tag))));
    let asking: Vec<_> = asking.collect();
    let mut most = 0;
    for asked in asking {
        assert_eq!(asked.await.expect("no panic").0.status, 200);
        most = most.max(hub.connections());
    }
    // More than have a place may be about to go back to those that are kept, on a busy machine some dozens.
    assert!((1..=200).contains(&most), "{most} connections");
}
