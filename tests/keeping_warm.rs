//! Promise: what `[[warm]]` names is brought in by schedule: patterns mean the tags that the upstream lists, moved tags
//! are fetched, what fails is told and tried again, and a changed configuration needs no restart.

use serde_json::Value;

use crate::support::{
    Answer, Fault, Hub, Image, Larder, On, Options, RateLimit, eventually, get, head, repository_config, request,
};

const KIB: usize = 1 << 10;

fn schedule(images: &[&str]) -> String {
    let images: Vec<_> = images.iter().map(|image| format!("'{image}'")).collect();
    format!("[[warm]]\nimages = [{}]\nevery = \"1m\"\n", images.join(", "))
}

async fn warmed(larder: &Larder) -> Value {
    let answer = get(format!("{}/api/warm", larder.admin_url())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The first schedule, once a run has ended that `is_meant` accepts.
async fn ended(larder: &Larder, is_meant: impl Fn(&Value) -> bool) -> Value {
    eventually("a run has ended", async || {
        let schedule = warmed(larder).await["schedules"][0].clone();
        schedule["running"] == false && schedule["last"]["ended"].is_string() && is_meant(&schedule)
    })
    .await;
    warmed(larder).await["schedules"][0].clone()
}

async fn run_now(larder: &Larder, number: &str) -> Answer {
    request("POST", format!("{}/api/warm/schedules/{number}", larder.admin_url())).send().await
}

async fn is_cached(larder: &Larder, name: &str, image: &Image) -> bool {
    head(larder.blob_url(name, &image.layer_digests()[0])).await.header("x-cache") == "HIT"
}

fn begun(schedule: &Value) -> String {
    schedule["last"]["job"]["id"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_mean_the_tags_on_all_pages_of_the_upstreams_list() {
    let hub = Hub::start(Options { page_size: 2, ..Options::default() }).await;
    let image = |seed| Image::with_layers(seed, &[KIB]);
    for (tag, seed) in [("3.9", 1), ("3.20", 2), ("3.20.1", 3), ("4", 4), ("latest", 5), ("3.20-rc1", 6)] {
        hub.push_image("team/app", tag, &image(seed));
    }
    hub.push_image("team/one", "1", &image(7));
    let config = schedule(&["hub/team/app:>=3.20, <4", "hub/team/one:1", "hub/team/app:3.20", "hub/team/app:/^9/"]);
    let larder = Larder::start(format!("{}\n{config}", repository_config("hub", &[&hub]))).await;
    let schedule = ended(&larder, |_| true).await;
    let (last, job) = (&schedule["last"], &schedule["last"]["job"]);
    assert_eq!((&job["images"], &job["images_done"], &job["images_failed"]), (&3.into(), &3.into(), &0.into()));
    let problem = &last["problems"][0];
    assert_eq!((&problem["image"], &problem["why"]), (&"hub/team/app:/^9/".into(), &"no tag fits".into()), "{last}");
    let images = get(format!("{}/api/warm/{}", larder.admin_url(), job["id"])).await.json();
    let names = images["images"].as_array().expect("images").iter().map(|image| image["reference"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["hub/team/app:3.20.1", "hub/team/app:3.20", "hub/team/one:1"]);
    for (seed, is_there) in [(1, false), (2, true), (3, true), (4, false), (5, false), (6, false)] {
        assert_eq!(is_cached(&larder, "hub/team/app", &image(seed)).await, is_there, "{seed}");
    }
    assert_eq!((&schedule["every"], &schedule["number"]), (&"1m".into(), &1.into()));
    assert!(schedule["next"].is_string(), "{schedule}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_asks_about_each_tag_and_fetches_only_what_is_new() {
    let hub = Hub::start(Options::default()).await;
    let (old, new) = (Image::with_layers(1, &[KIB]), Image::with_layers(2, &[KIB]));
    hub.push_image("team/app", "1", &old);
    let repository = repository_config("hub", &[&hub]).replacen("[[", "max_age = \"1h\"\n[[", 1);
    let larder = Larder::start(format!("{repository}\n{}", schedule(&["hub/team/app:1"]))).await;
    let first = ended(&larder, |_| true).await;
    assert!(is_cached(&larder, "hub/team/app", &old).await);
    hub.take_requests();
    assert_eq!(run_now(&larder, "1").await.status, 200);
    let second = ended(&larder, |schedule| begun(schedule) != begun(&first)).await;
    let asked: Vec<_> = hub.take_requests().iter().map(|request| request.method.clone()).collect();
    assert_eq!(asked, ["HEAD"], "although the tag is fresh by max_age");
    hub.push_image("team/app", "1", &new);
    assert_eq!(run_now(&larder, "1").await.status, 200);
    ended(&larder, |schedule| begun(schedule) != begun(&second)).await;
    assert!(is_cached(&larder, "hub/team/app", &new).await);
    for (number, status) in [("0", 404), ("2", 404), ("x", 400)] {
        assert_eq!(run_now(&larder, number).await.status, status, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_logged_once_and_tried_again() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[KIB]);
    let config = schedule(&["hub/team/app:1", "qay.io/team/app:1", "hub/team/none:*"]);
    let larder = Larder::start(format!("{}\n{config}", repository_config("hub", &[&hub]))).await;
    let first = ended(&larder, |_| true).await;
    let problems = first["last"]["problems"].as_array().expect("problems").clone();
    let why = |image: &str| {
        let of = problems.iter().find(|problem| problem["image"] == image);
        of.unwrap_or_else(|| panic!("{image}: {problems:?}"))["why"].as_str().expect("a reason").to_owned()
    };
    assert!(why("qay.io/team/app:1").contains("no repository serves"));
    assert!(why("hub/team/none:*").contains("cannot be listed"));
    assert!(!why("hub/team/app:1").is_empty());
    assert_eq!(larder.log().matches("not warmed").count(), 1, "{}", larder.log());
    assert_eq!(larder.log().matches("not all of it is kept warm").count(), 2, "{}", larder.log());
    hub.push_image("team/app", "1", &image);
    run_now(&larder, "1").await;
    let second = ended(&larder, |schedule| begun(schedule) != begun(&first)).await;
    assert_eq!(second["last"]["job"]["images_done"], 1, "{second}");
    assert!(is_cached(&larder, "hub/team/app", &image).await);
}

/// With the upstream gone, the copy is there for clients, and the run says that it could not ask.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_fails_is_a_failure_although_there_is_a_copy() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[KIB]));
    let larder =
        Larder::start(format!("{}\n{}", repository_config("hub", &[&hub]), schedule(&["hub/team/app:1"]))).await;
    let first = ended(&larder, |_| true).await;
    assert_eq!(first["last"]["job"]["images_done"], 1);
    hub.fault(On::any(), Fault::status(503));
    run_now(&larder, "1").await;
    let second = ended(&larder, |schedule| begun(schedule) != begun(&first)).await;
    assert_eq!(second["last"]["problems"][0]["image"], "hub/team/app:1", "{second}");
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_rests_before_the_quota_is_used_up() {
    let rate_limit = Some(RateLimit { pulls: 1, ..RateLimit::default() });
    let hub = Hub::start(Options { rate_limit, ..Options::default() }).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[KIB]));
    hub.push_image("team/app", "2", &Image::with_layers(2, &[KIB]));
    let repository = repository_config("hub", &[&hub]);
    let mut larder = Larder::start(&repository).await;
    // The registry says with this answer how little is left.
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    larder.write_config(format!("{repository}\n{}", schedule(&["hub/team/app:2"])));
    eventually("it rests", async || {
        let schedule = warmed(&larder).await["schedules"][0].clone();
        let job = &schedule["last"]["job"];
        let rests = job["images_resting"] == 1 && schedule["running"] == true && schedule["next"].is_null();
        rests && job["resting"].as_str().is_some_and(|why| why.contains("it goes on"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_begins_and_ends_schedules() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(2, &[KIB]);
    hub.push_image("team/app", "1", &Image::with_layers(1, &[KIB]));
    hub.push_image("team/app", "2", &image);
    let repository = repository_config("hub", &[&hub]);
    let mut larder = Larder::start(format!("{repository}\n{}", schedule(&["hub/team/app:1"]))).await;
    let first = ended(&larder, |_| true).await;
    larder.write_config(format!("{repository}\n{}{}", schedule(&["hub/team/app:1"]), schedule(&["hub/team/app:2"])));
    eventually("the second one has run", async || {
        let all = warmed(&larder).await["schedules"].clone();
        all[1]["last"]["job"]["images_done"] == 1 && begun(&all[0]) == begun(&first)
    })
    .await;
    assert!(is_cached(&larder, "hub/team/app", &image).await);
    larder.write_config(&repository);
    eventually("there are none", async || warmed(&larder).await["schedules"] == Value::Array(Vec::new())).await;
    assert_eq!(larder.stop().await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_counts_as_a_request_for_what_it_keeps_warm() {
    const IMAGES: u64 = 16;
    let hub = Hub::start(Options::default()).await;
    let images: Vec<_> = (0..IMAGES).map(|seed| Image::with_layers(seed, &[300 * KIB])).collect();
    for (at, image) in images.iter().enumerate() {
        hub.push_image("team/app", &at.to_string(), image);
    }
    // There is room for six.
    let config = format!(
        "[cache]\nmax_size = \"2MiB\"\nmin_free = 0\n{}\n{}",
        repository_config("hub", &[&hub]),
        schedule(&["hub/team/app:0"])
    );
    let larder = Larder::start(config).await;
    let mut last = ended(&larder, |_| true).await;
    for (at, image) in images.iter().enumerate().skip(1) {
        assert_eq!(get(larder.manifest_url("hub/team/app", &at.to_string())).await.status, 200);
        assert!(get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await.complete());
        run_now(&larder, "1").await;
        last = ended(&larder, |schedule| begun(schedule) != begun(&last)).await;
        assert_eq!(last["last"]["job"]["fetched"], 0, "it is still there after {at}: {last}");
    }
    eventually("what nobody asked for since is evicted", async || {
        !is_cached(&larder, "hub/team/app", &images[1]).await
    })
    .await;
}
