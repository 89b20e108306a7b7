//! Promise: for each of the last pulls the API and the commands say why it was answered as it was, and what would
//! happen next.

use serde_json::{Value, json};

use crate::support::{
    Fault, Hub, Image, Larder, On, Options, RepositoryConfig, client::open, eventually, get, head, repository_config,
    request,
};

const KIB: usize = 1 << 10;

async fn api(larder: &Larder, page: &str) -> Value {
    let answer = get(format!("{}/api/{page}", larder.admin_url())).await;
    assert_eq!(answer.status, 200, "{page}: {}", answer.text());
    answer.json()
}

/// The reasons of the last pulls of what the text names, the oldest first. They are there once the last byte has gone.
async fn reasons(larder: &Larder, text: &str, count: usize) -> Vec<String> {
    let listed = async || api(larder, &format!("pulls?q={text}")).await["pulls"].as_array().expect("a list").clone();
    eventually("all pulls are listed", async || listed().await.len() == count).await;
    let mut reasons: Vec<_> =
        listed().await.iter().map(|pull| format!("{} {}", pull["cache"], pull["reason"]).replace('"', "")).collect();
    reasons.reverse();
    reasons
}

async fn hub_with(image: &Image) -> Hub {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", image);
    hub
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pull_of_a_tag_has_its_reason() {
    let image = Image::with_layers(1, &[100 * KIB]);
    let mut hub = hub_with(&image).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    assert_eq!(get(&tag).await.status, 200);
    assert_eq!(get(&tag).await.status, 200);
    let newer = Image::with_layers(2, &[10 * KIB]);
    hub.push_image("team/app", "1", &newer);
    assert_eq!(get(&tag).await.status, 200);
    hub.stop().await;
    assert_eq!(get(&tag).await.status, 200);
    assert_eq!(get(larder.manifest_url("hub/team/app", "2")).await.status, 502);
    let expected = ["miss absent", "hit unchanged", "miss moved", "stale unavailable"];
    assert_eq!(reasons(&larder, "team/app:1", 4).await, expected);
    assert_eq!(reasons(&larder, "team/app:2", 1).await, ["failed unavailable"]);

    let pulls = api(&larder, "pulls?status=stale").await;
    let stale = &pulls["pulls"][0];
    assert_eq!((&stale["reference"], &stale["repository"]), (&json!("hub/team/app:1"), &json!("hub")));
    assert_eq!((&stale["status"], &stale["method"], &stale["kind"]), (&json!(200), &json!("GET"), &json!("manifest")));
    assert_eq!((&stale["complete"], &stale["bytes"]), (&json!(true), &json!(newer.manifest.bytes.len())));
    let why = stale["why"].as_str().expect("a sentence");
    assert!(
        why.starts_with("an old copy was served, because the upstream failed: ") && why.contains("refused"),
        "{why}"
    );
    // The log has the same word.
    eventually("the line is there", async || larder.log().contains(r#""cache":"stale","reason":"unavailable""#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_a_kept_and_a_shared_copy_say_so() {
    let image = Image::with_layers(1, &[300 * KIB]);
    let hub = hub_with(&image).await;
    hub.push_image("fixed/app", "1", &image);
    let fresh = RepositoryConfig::new("fresh").set("max_age = \"1h\"").upstream(&hub);
    let fixed = RepositoryConfig::new("fixed").set("immutable_tags = true").upstream(&hub);
    let larder = Larder::start(format!("{fresh}{fixed}")).await;
    for repository in ["fresh", "fixed"] {
        for _ in 0..2 {
            assert_eq!(get(larder.manifest_url(&format!("{repository}/team/app"), "1")).await.status, 200);
        }
    }
    assert_eq!(reasons(&larder, "fresh/team/app:1", 2).await, ["miss absent", "hit fresh"]);
    assert_eq!(reasons(&larder, "fixed/team/app:1", 2).await, ["hit present", "hit immutable"]);
    let answer = head(larder.manifest_url("fresh/team/app", "1")).await;
    let status = answer.header("cache-status");
    let ttl = status.strip_prefix("larder; hit; ttl=").and_then(|rest| rest.strip_suffix("; detail=fresh"));
    assert!(ttl.is_some_and(|ttl| (3000..=3600).contains(&ttl.parse::<u64>().expect("seconds"))), "{status}");

    let digest = &image.layer_digests()[0];
    let gate = hub.gate(On::blob().get(), 1000);
    let url = larder.blob_url("fresh/team/app", digest);
    let (mut first, mut second) = (open(&url).await, open(&url).await);
    assert_eq!((first.read_exact(100).await.len(), second.read_exact(100).await.len()), (100, 100));
    let fills = api(&larder, "fills").await;
    let fill = &fills["fills"][0];
    assert_eq!(
        (&fill["digest"], &fill["repository"], &fill["phase"]),
        (&json!(digest), &json!("fresh"), &json!("growing"))
    );
    assert_eq!((&fill["size"], &fill["clients"]), (&json!(300 * KIB), &json!(2)));
    assert_eq!(fill["upstream"], json!(hub.address().to_string()));
    assert!(fill["bytes"].as_u64().is_some_and(|bytes| (1..300 * KIB as u64).contains(&bytes)), "{fill}");
    gate.open();
    assert!(first.read_to_end().await.complete() && second.read_to_end().await.complete());
    assert_eq!(get(&url).await.body.len(), 300 * KIB);
    let mut found = reasons(&larder, digest, 3).await;
    found.sort_unstable();
    assert!(found == ["hit stored", "miss absent", "miss joined"], "{found:?}");
    eventually("no transfer runs", async || api(&larder, "fills").await["fills"] == json!([])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_larder_refused_is_listed_with_its_words() {
    let hub = hub_with(&Image::new(1)).await;
    let locked = RepositoryConfig::new("locked").set("allow = [\"10.0.0.0/8\"]").upstream(&hub);
    let larder = Larder::start(locked).await;
    assert_eq!(get(larder.manifest_url("locked/team/app", "1")).await.status, 403);
    assert_eq!(get(larder.manifest_url("qay.io/team/app", "1")).await.status, 404);
    assert_eq!(request("PUT", larder.manifest_url("locked/team/app", "1")).send().await.status, 405);
    // Neither content nor a wish for some.
    assert_eq!(get(format!("{}/v2/", larder.url())).await.status, 200);
    assert_eq!(get(format!("{}/favicon.ico", larder.url())).await.status, 404);
    eventually("all are listed", async || {
        api(&larder, "pulls").await["pulls"].as_array().is_some_and(|all| all.len() == 3)
    })
    .await;
    let pulls = api(&larder, "pulls?status=refused").await;
    let why: Vec<_> = pulls["pulls"].as_array().expect("a list").iter().map(|pull| pull["why"].clone()).collect();
    assert!(why[0].as_str().is_some_and(|why| why.contains("this is a cache")), "{why:?}");
    assert!(why[1].as_str().is_some_and(|why| why.contains("no repository serves `qay.io/team/app`")), "{why:?}");
    assert!(why[2].as_str().is_some_and(|why| why.contains("allow")), "{why:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_are_listed_page_by_page_and_wrong_wishes_are_refused() {
    let hub = hub_with(&Image::new(1)).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for _ in 0..5 {
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    }
    eventually("all are listed", async || {
        api(&larder, "pulls").await["pulls"].as_array().is_some_and(|all| all.len() == 5)
    })
    .await;
    let (mut ids, mut before) = (Vec::new(), String::new());
    loop {
        let page = api(&larder, &format!("pulls?n=2{before}")).await;
        ids.extend(page["pulls"].as_array().expect("a list").iter().map(|pull| pull["id"].as_u64().expect("a number")));
        match page["next"].as_u64() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(ids, [5, 4, 3, 2, 1]);
    for wrong in ["n=0", "n=1001", "n=x", "before=x", "sort=up"] {
        let answer = get(format!("{}/api/pulls?{wrong}", larder.admin_url())).await;
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.json()["error"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_hears_of_pulls_transfers_and_figures() {
    let hub = hub_with(&Image::new(1)).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let mut events = open(format!("{}/api/events", larder.admin_url())).await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let mut heard = String::new();
    while !["event: pull\n", "event: fills\n", "event: stats\n"].iter().all(|event| heard.contains(event)) {
        let chunk = events.next_chunk().await.expect("the events go on").expect("bytes");
        heard += &String::from_utf8_lossy(&chunk);
    }
    let data = heard.split("event: pull\ndata: ").nth(1).and_then(|rest| rest.lines().next()).expect("data");
    let pull: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!((&pull["reference"], &pull["reason"]), (&json!("hub/team/app:1"), &json!("absent")));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_listeners_than_there_are_places_for_are_told_to_come_later() {
    let hub = hub_with(&Image::new(1)).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let url = format!("{}/api/events", larder.admin_url());
    let mut listeners = Vec::new();
    for _ in 0..16 {
        listeners.push(open(&url).await);
    }
    assert_eq!(get(&url).await.status, 503);
    listeners.clear();
    eventually("a place is free again", async || open(&url).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_happen_is_explained_and_then_happens() {
    let mut hub = hub_with(&Image::new(1)).await;
    let checked = RepositoryConfig::new("checked").set("stale_if_error = \"2h\"").upstream(&hub);
    let fresh = RepositoryConfig::new("fresh").set("max_age = \"1h\"").upstream(&hub);
    let larder = Larder::start(format!("{checked}{fresh}")).await;
    let explain = async |reference: &str| api(&larder, &format!("explain?reference={reference}")).await;

    let before = explain("checked/team/app:1").await;
    assert_eq!((&before["next"], &before["cached"]), (&json!("fetched"), &Value::Null));
    assert_eq!((&before["repository"], &before["name"]), (&json!("checked"), &json!("team/app")));
    assert_eq!(before["asked_next"], json!(hub.address().to_string()));
    assert_eq!(hub.requests().len(), 0, "nobody is asked for an explanation");
    for repository in ["checked", "fresh"] {
        assert_eq!(get(larder.manifest_url(&format!("{repository}/team/app"), "1")).await.status, 200);
    }
    let after = explain("checked/team/app:1").await;
    assert_eq!(after["next"], "checked");
    let text = after["text"].as_str().expect("a sentence");
    assert!(text.contains("asked by HEAD") && text.contains("for another 1h 59m"), "{text}");
    assert!(after["cached"]["digest"].is_string() && after["cached"]["checked_at"].is_string());
    let fresh = explain("fresh/team/app:1").await;
    assert_eq!((&fresh["next"], &fresh["reason"]), (&json!("served"), &json!("fresh")));
    // The cache's own address before it, as in a pull; a digest; no tag.
    let own = larder.url().replace("http://", "");
    assert_eq!(explain(&format!("{own}/fresh/team/app:1")).await["next"], "served");
    let digest = after["cached"]["digest"].as_str().expect("a digest").to_owned();
    assert_eq!(explain(&format!("fresh/team/app@{digest}")).await["reason"], "stored");
    assert_eq!(explain("fresh/team/app").await["reference"], "fresh/team/app:latest");

    assert_eq!(get(larder.manifest_url("checked/team/app", "none")).await.status, 404);
    let absent = explain("checked/team/app:none").await;
    assert_eq!((&absent["next"], &absent["reason"]), (&json!("refused"), &json!("not_found")));
    assert_eq!(absent["pulls"][0]["reason"], "not_found");
    hub.stop().await;
    assert_eq!(get(larder.manifest_url("checked/team/app", "1")).await.status, 200);
    let down = explain("checked/team/app:1").await;
    assert_eq!(down["pulls"][0]["cache"], "stale");
    for (wrong, status) in
        [("", 400), ("reference=", 400), ("reference=qay.io/a:1", 404), ("reference=A%20B", 400), ("x=1", 400)]
    {
        assert_eq!(get(format!("{}/api/explain?{wrong}", larder.admin_url())).await.status, status, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_can_be_asked_at_once_about_a_tag() {
    let mut hub = hub_with(&Image::new(1)).await;
    let larder = Larder::start(RepositoryConfig::new("hub").set("max_age = \"1h\"").upstream(&hub)).await;
    let refresh =
        async || request("POST", format!("{}/api/refresh?reference=hub/team/app:1", larder.admin_url())).send().await;
    let first = refresh().await.json();
    assert_eq!((&first["changed"], &first["reason"]), (&json!(true), &json!("absent")));
    assert_eq!(refresh().await.json()["changed"], false);
    let newer = Image::new(2);
    hub.push_image("team/app", "1", &newer);
    let tag = larder.manifest_url("hub/team/app", "1");
    assert_ne!(get(&tag).await.header("docker-content-digest"), newer.manifest.digest, "it is fresh");
    let moved = refresh().await.json();
    assert_eq!((&moved["changed"], &moved["reason"]), (&json!(true), &json!("moved")));
    assert_eq!(get(&tag).await.header("docker-content-digest"), newer.manifest.digest);
    hub.stop().await;
    assert_eq!(refresh().await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diagnosis_says_what_is_wrong_and_what_to_do() {
    let mut hub = hub_with(&Image::new(1)).await;
    let config = repository_config("hub", &[&hub]);
    let mut larder = Larder::start(&config).await;
    assert_eq!(api(&larder, "diagnosis").await["findings"], json!([]));
    hub.stop().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 502);
    let found = api(&larder, "diagnosis").await;
    let upstream = &found["findings"][0];
    assert_eq!((&upstream["severity"], &upstream["about"]), (&json!("error"), &json!("upstream")));
    let text = upstream["text"].as_str().expect("a sentence");
    assert!(text.contains(&hub.address().to_string()) && text.contains("curl -v"), "{text}");
    larder.write_config(format!("{config}\n[cache]\nmax_sise = \"1GiB\"\n"));
    let about_config = async || {
        let found = api(&larder, "diagnosis").await;
        let mut findings = found["findings"].as_array().expect("a list").clone().into_iter();
        findings.find(|finding| finding["about"] == "configuration")
    };
    eventually("the wrong configuration is found", async || about_config().await.is_some()).await;
    assert!(
        about_config()
            .await
            .is_some_and(|finding| finding["text"].as_str().is_some_and(|text| text.contains("max_size")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_in_force_is_shown_without_its_secrets() {
    let hub = hub_with(&Image::new(1)).await;
    let larder =
        Larder::start(RepositoryConfig::new("hub").upstream_with(&hub, "username = \"me\"\npassword = \"geheim\""))
            .await;
    let shown = api(&larder, "config").await;
    let repository = &shown["repository"]["hub"];
    assert_eq!(repository["upstream"][0]["username"]["value"], "me", "{shown}");
    assert!(!shown.to_string().contains("geheim"), "{repository}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_show_the_same() {
    let hub = hub_with(&Image::new(1)).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for _ in 0..2 {
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    }
    eventually("both are listed", async || {
        api(&larder, "pulls").await["pulls"].as_array().is_some_and(|all| all.len() == 2)
    })
    .await;
    let pulls = larder.run(&["pulls"]).await;
    let lines: Vec<_> = pulls.stdout.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].contains("it was not in the cache") && lines[1].contains("unchanged"),
        "{pulls:?}"
    );
    let listed: Value =
        serde_json::from_str(&larder.run(&["pulls", "--status", "hit", "--json"]).await.stdout).expect("JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    let explained = larder.run(&["explain", "hub/team/app:1"]).await;
    assert!(explained.stdout.contains("if it were pulled now: it is in the cache, and past max_age"), "{explained:?}");
    let stats = larder.run(&["stats"]).await;
    assert!(stats.stdout.contains("hit rate           50.0 %") && stats.stdout.contains("\nhub "), "{stats:?}");
    let wrong = larder.run(&["explain", "qay.io/app:1"]).await;
    assert!(wrong.code == Some(1) && wrong.stderr.contains("no repository serves"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_pull_says_what_took_long() {
    let image = Image::with_layers(1, &[100 * KIB]);
    let hub = hub_with(&image).await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::manifest(), Fault::Delay(std::time::Duration::from_millis(1_100)));
    assert_eq!(get(larder.manifest_url("hub/team/app", &image.manifest.digest)).await.status, 200);
    eventually("it is listed", async || api(&larder, "pulls").await["pulls"][0]["slow"].is_string()).await;
    let pulls = api(&larder, "pulls").await;
    let slow = pulls["pulls"][0]["slow"].as_str().expect("a sentence");
    assert!(slow.ends_with(" s until the upstream answered"), "{slow}");
}
