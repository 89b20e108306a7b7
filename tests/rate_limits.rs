//! Promise: an upstream's rate limit is read, spent with care, and kept to.

use std::time::{Duration, SystemTime};

use crate::support::{
    Fault, Hub, Image, Larder, On, Options, RateLimit, Refusal, RepositoryConfig, eventually, get, repository_config,
};

fn limited(pulls: u64, refusal: Refusal, retry_after: Option<u64>) -> Options {
    let limit = RateLimit { pulls, refusal, retry_after, ..RateLimit::default() };
    Options { rate_limit: Some(limit), ..Options::default() }
}

async fn upstreams(larder: &Larder) -> serde_json::Value {
    get(format!("{}/api/upstreams", larder.admin_url())).await.json()["upstreams"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_read_and_shown() {
    let hub = Hub::start(limited(100, Refusal::Json, None)).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let shown = &upstreams(&larder).await[0];
    assert_eq!((&shown["state"], &shown["account"]), (&"ready".into(), &"anonymous".into()));
    let quota = &shown["quota"];
    assert_eq!((&quota["limit"], &quota["remaining"], &quota["window"]), (&100.into(), &99.into(), &21600.into()));
    assert_eq!(quota["source"], "127.0.0.1");
    let metrics = larder.metrics().await;
    let remaining =
        format!("larder_upstream_ratelimit_remaining{{upstream=\"{}\",account=\"anonymous\"}} 99", hub.address());
    assert!(metrics.contains(&remaining), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_on_pulls_stops_nothing_else() {
    let hub = Hub::start(limited(1, Refusal::Json, Some(60))).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    hub.push_image("team/app", "2", &Image::new(2));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let (one, two) = (larder.manifest_url("hub/team/app", "1"), larder.manifest_url("hub/team/app", "2"));
    assert_eq!(get(&one).await.status, 200);
    for _ in 0..3 {
        let refused = get(&two).await;
        assert_eq!((refused.status, refused.error_code().as_str()), (429, "TOOMANYREQUESTS"));
        assert!(refused.text().contains("pull rate limit"), "{}", refused.text());
        assert!((1..=60).contains(&refused.header("retry-after").parse::<u64>().expect("seconds")));
    }
    assert_eq!(hub.count_on(On::manifest().get()), 2, "{}", hub.summary());
    assert_eq!(upstreams(&larder).await[0]["state"], "limited");

    // Neither a blob nor a check of a tag counts.
    assert!(get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await.complete());
    hub.take_requests();
    let checked = get(&one).await;
    assert_eq!((checked.status, checked.header("x-cache")), (200, "HIT"));
    assert_eq!(hub.count_on(On::manifest().head()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_against_abuse_stops_everything_and_says_how_long() {
    let hub = Hub::start(limited(1, Refusal::Abuse, Some(60))).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    // Its HEAD was the one request.
    let refused = get(&tag).await;
    assert_eq!(refused.status, 429);
    assert!(refused.text().contains("HAP429"), "{}", refused.text());
    hub.take_requests();
    assert_eq!(get(&tag).await.status, 429);
    assert_eq!(get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await.status, 429);
    assert_eq!(hub.requests().len(), 0, "{}", hub.summary());
    assert_eq!(upstreams(&larder).await[0]["state"], "resting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_may_be_a_date() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
    hub.fault(On::any(), Fault::reply(429, &[("retry-after", &date)], "later"));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let refused = get(larder.manifest_url("hub/team/app", "1")).await;
    let after: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!(refused.status == 429 && (500..=600).contains(&after), "{} {after}", refused.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_at_one_registry_share_the_load_by_what_is_left() {
    let mut options = Options::with_tokens().user("a", "pa").user("b", "pb");
    options.rate_limit = Some(RateLimit { pulls: 10, ..RateLimit::default() });
    let hub = Hub::start(options).await;
    for number in 0..20 {
        hub.push_image("team/app", &number.to_string(), &Image::new(number));
    }
    let config = RepositoryConfig::new("hub")
        .upstream_with(&hub, "username = \"a\"\npassword = \"pa\"")
        .upstream_with(&hub, "username = \"b\"\npassword = \"pb\"");
    let larder = Larder::start(config).await;
    for number in 0..20 {
        let answer = get(larder.manifest_url("hub/team/app", &number.to_string())).await;
        assert_eq!(answer.status, 200, "{number}: {}", answer.text());
        if number == 9 {
            let shown = upstreams(&larder).await;
            let left = |at: usize| shown[at]["quota"]["remaining"].as_u64().unwrap_or_default();
            assert!((4..=6).contains(&left(0)) && (4..=6).contains(&left(1)), "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_behind_a_clients_back_when_little_is_left() {
    for (pulls, is_checked) in [(100, true), (10, false)] {
        let hub = Hub::start(limited(pulls, Refusal::Json, None)).await;
        let config = RepositoryConfig::new("hub").set("stale_while_revalidate = \"1h\"").upstream(&hub).to_string();
        let larder = Larder::start(&config).await;
        for number in 0..10 {
            hub.push_image("team/app", &number.to_string(), &Image::new(number));
            assert_eq!(get(larder.manifest_url("hub/team/app", &number.to_string())).await.status, 200);
        }
        hub.take_requests();
        let aging = get(larder.manifest_url("hub/team/app", "1")).await;
        assert_eq!((aging.status, aging.header("x-cache")), (200, "HIT"));
        if is_checked {
            eventually("it is checked behind", async || hub.count_on(On::manifest().head()) == 1).await;
        } else {
            // Whatever was begun behind would have been sent before this one, on the same way.
            assert_eq!(get(larder.blob_url("hub/team/app", &Image::new(1).layer_digests()[0])).await.status, 200);
            assert_eq!(hub.count_on(On::manifest()), 0, "{}", hub.summary());
        }
    }
}
