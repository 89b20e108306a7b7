//! Promise: the log says who did what: at the admin door, at a login, to the disk, and towards an upstream.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Answer, Fault, Hub, Image, Larder, On, Options, RepositoryConfig, blob, eventually, get, head, repository_config,
    request,
};

const KIB: usize = 1 << 10;

/// An htpasswd file for these users, and the table that names it.
fn users(pairs: &[(&str, &str)]) -> (TempDir, String) {
    let dir = TempDir::new().expect("a directory");
    let line = |(user, password): &(&str, &str)| format!("{user}:{}\n", bcrypt::hash(password, 4).expect("hashed"));
    std::fs::write(dir.path().join("htpasswd"), pairs.iter().map(line).collect::<String>()).expect("written");
    let table = format!("[auth.htpasswd]\npath = {:?}\n", dir.path().join("htpasswd").display().to_string());
    (dir, table)
}

async fn ask(method: &str, pair: &str, url: impl AsRef<str>) -> Answer {
    let asked = request(method, url);
    match pair {
        "" => asked.send().await,
        pair => asked.header("authorization", format!("Basic {}", BASE64_STANDARD.encode(pair))).send().await,
    }
}

/// The lines of the log with this message.
fn lines(larder: &Larder, message: &str) -> Vec<Value> {
    let parsed = |line: &str| serde_json::from_str::<Value>(line).ok();
    let log = larder.log();
    log.lines().filter_map(parsed).filter(|line| line["fields"]["message"] == message).collect()
}

async fn line(larder: &Larder, message: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let found = || lines(larder, message).into_iter().find(|line| is_it(&line["fields"]));
    eventually(message, async || found().is_some()).await;
    found().expect("a line")["fields"].clone()
}

async fn hub_with_image() -> (Hub, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[100 * KIB]);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_do_to_the_cache_is_logged_with_who_did_it() {
    let (_dir, auth) = users(&[("bob", "secret")]);
    let (hub, image) = hub_with_image().await;
    let repository = RepositoryConfig::new("hub").set("allow = [\"anonymous\"]").upstream(&hub);
    let larder = Larder::start(format!("[admin]\nallow = [\"user:bob\"]\n{auth}{repository}")).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert_eq!(get(larder.manifest_url("hub/team/app", &image.manifest.digest)).await.status, 200);
    let api = |page: &str| format!("{}/api/{page}", larder.admin_url());
    eventually("it is stored", async || ask("GET", "bob:secret", api("cache/stats")).await.json()["objects"] == 1)
        .await;
    for (method, page, message) in [
        ("PUT", "pins?reference=hub/team/app:1", "pinned"),
        ("DELETE", "pins?reference=hub/team/app:1", "unpinned"),
        ("DELETE", "cache?reference=hub/team/app:1", "purged"),
    ] {
        assert_eq!(ask(method, "bob:secret", api(page)).await.status, 200, "{page}");
        let told = line(&larder, message, |_| true).await;
        assert!(told["by"].as_str().is_some_and(|by| by.starts_with("user:bob at 127.0.0.1:")), "{told}");
        assert_eq!(told["what"], "hub/team/app:1");
    }
    let purged = line(&larder, "purged", |_| true).await;
    assert_eq!((&purged["objects"], &purged["bytes"]), (&json!(1), &json!(image.manifest.bytes.len())));

    let of_admin = line(&larder, "request", |fields| fields["path"] == "/api/cache").await;
    assert_eq!((&of_admin["method"], &of_admin["status"]), (&json!("DELETE"), &json!(200)));
    assert_eq!(of_admin["user"], "user:bob");
    assert_eq!(ask("DELETE", "eve:wrong", api("pins?reference=hub/team/app:1")).await.status, 401);
    let refused = line(&larder, "request", |fields| fields["status"] == 401).await;
    assert_eq!((&refused["path"], &refused["user"]), (&json!("/api/pins"), &Value::Null));
    assert!(!lines(&larder, "request").iter().any(|line| line["fields"]["path"] == "/readyz"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_login_is_a_line_with_name_and_address_and_never_the_password() {
    let (_dir, auth) = users(&[("bob", "secret")]);
    let (hub, _) = hub_with_image().await;
    let larder = Larder::start(auth + &repository_config("hub", &[&hub])).await;
    let base = format!("{}/v2/", larder.url());
    for name in ["bob", "eve\n2026 forged line", &"x".repeat(3000)] {
        assert_eq!(ask("GET", &format!("{name}:geheim"), &base).await.status, 401);
    }
    assert_eq!(ask("GET", "bob:secret", &base).await.status, 200);
    let failed = lines(&larder, "a login failed");
    let names: Vec<_> = failed.iter().map(|line| line["fields"]["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(names[..2], ["bob", "eve\\n2026 forged line"]);
    assert!(names.len() == 3 && names[2].len() < 100, "{names:?}");
    assert!(failed.iter().all(|line| line["fields"]["client"] == "127.0.0.1" && line["level"] == "INFO"), "{failed:?}");
    assert!(!larder.log().contains("geheim"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_user_with_a_wrong_password_is_refused_wherever_others_log_in_upstream() {
    let (_dir, auth) = users(&[("bob", "secret")]);
    let ours = Hub::start(Options::default()).await;
    let theirs = Hub::start(Options::with_basic("bob", "upstream")).await;
    theirs.push_image("team/app", "1", &Image::new(1));
    let own = RepositoryConfig::new("own").set("allow = [\"user:bob\"]").upstream(&ours);
    let passing = RepositoryConfig::new("passing").set("client_credentials = \"pass\"").upstream(&theirs);
    for default in ["own", "passing", ""] {
        let server = format!("[server]\ndefault_repository = \"{default}\"\n");
        let larder = Larder::start(format!("{server}{auth}{own}{passing}")).await;
        for (pair, page, status) in [
            ("bob:wrong", "v2/", 401),
            ("bob:secret", "v2/", 200),
            ("bob:wrong", "token?service=larder", 401),
            ("bob:secret", "token?service=larder", 200),
            // Where a repository is named whose upstream decides, that account counts.
            ("bob:upstream", "token?service=larder&scope=repository:passing/team/app:pull", 200),
            ("bob:wrong", "token?service=larder&scope=repository:own/team/app:pull", 401),
            // An account of somebody unknown here may be one of an upstream.
            ("eve:any", "token?service=larder", 200),
        ] {
            let answer = ask("GET", pair, format!("{}/{page}", larder.url())).await;
            assert_eq!(answer.status, status, "{default}: {pair} {page}: {}", answer.text());
        }
        let tag = larder.manifest_url("passing/team/app", "1");
        assert_eq!(ask("GET", "bob:upstream", &tag).await.status, 200);
        line(&larder, "a login failed", |fields| fields["name"] == "bob").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_evicted_is_named_with_the_limit_that_it_went_for() {
    let hub = Hub::start(Options::default()).await;
    let repository = repository_config("hub", &[&hub]);
    let larder = Larder::start(format!("[cache]\nmin_free = 0\nmax_size = \"1200KiB\"\n{repository}")).await;
    let image = Image::with_layers(1, &[300 * KIB]);
    hub.push_image("team/app", "1", &image);
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let layer = &image.layer_digests()[0];
    assert!(get(larder.blob_url("hub/team/app", layer)).await.complete());
    for seed in 10..16 {
        let digest = hub.push_blob("team/app", blob(seed, 250 * KIB));
        assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
        let is_hit = async || head(larder.blob_url("hub/team/app", &digest)).await.header("x-cache") == "HIT";
        eventually("it is stored", is_hit).await;
    }
    let told =
        line(&larder, "evicted", |fields| fields["names"].as_str().is_some_and(|n| n.contains("hub/team/app:1")));
    let told = told.await;
    assert_eq!(told["why"], "max_size");
    assert!(told["objects"].as_u64() >= Some(1) && told["bytes"].as_u64() >= Some(300), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_debug_each_upstream_request_has_a_line_and_libraries_have_none() {
    let (hub, image) = hub_with_image().await;
    hub.fault(On::manifest().head().times(1), Fault::status(503));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let layer = &image.layer_digests()[0];
    assert!(get(larder.blob_url("hub/team/app", layer)).await.complete());
    let place = format!("{}/v2/team/app/blobs/{layer}", hub.address());
    let told = line(&larder, "upstream request", |fields| fields["place"] == place.as_str()).await;
    assert_eq!((&told["method"], &told["status"]), (&json!("GET"), &json!(200)));
    assert_eq!(told["bytes"], json!(image.layers[0].len()), "{told}");
    assert!(told["ms"].is_u64(), "{told}");
    let upstream = lines(&larder, "upstream request").len();
    assert_eq!(upstream, hub.requests().len(), "one line each");
    let log = larder.log();
    let targets = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| {
        let is_ours = line["target"].as_str().is_some_and(|target| target.starts_with("larder"));
        !is_ours && line["level"] == "DEBUG"
    });
    assert_eq!(targets.count(), 0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_look_changes_nothing() {
    let (_dir, auth) = users(&[("bob", "secret"), ("eve", "other"), ("mallory", "third")]);
    let (hub, _) = hub_with_image().await;
    let repository = RepositoryConfig::new("hub").set("allow = [\"anonymous\"]").upstream(&hub);
    let admin = "[admin]\nallow = [\"user:bob\"]\nread = [\"user:eve\", \"127.0.0.2\"]\n";
    let larder = Larder::start(format!("{admin}{auth}{repository}")).await;
    let url = |page: &str| format!("{}/{page}", larder.admin_url());
    for page in ["metrics", "api/cache/stats", "api/images", "api/pins", "api/upstreams"] {
        for (pair, status) in [("bob:secret", 200), ("eve:other", 200), ("mallory:third", 403), ("", 401)] {
            assert_eq!(ask("GET", pair, url(page)).await.status, status, "{page} as {pair}");
        }
        let from_there = request("GET", url(page)).from("127.0.0.2".parse().expect("an address"));
        assert_eq!(from_there.send().await.status, 200, "{page}");
    }
    for (method, page) in [
        ("DELETE", "api/cache"),
        ("PUT", "api/pins?reference=hub/team/app:1"),
        ("DELETE", "api/pins?reference=hub/team/app:1"),
        ("POST", "api/verify"),
    ] {
        let refused = ask(method, "eve:other", url(page)).await;
        assert_eq!(refused.status, 403, "{method} {page}");
        assert!(refused.text().contains("admin.read lets clients look"), "{}", refused.text());
        let from_there = request(method, url(page)).from("127.0.0.2".parse().expect("an address"));
        assert_eq!(from_there.send().await.status, 401, "it could log in: {method} {page}");
        assert_eq!(ask(method, "bob:secret", url(page)).await.status, 200, "{method} {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_by_service_name_works_once_admin_hosts_has_the_name() {
    let (hub, _) = hub_with_image().await;
    let repository = repository_config("hub", &[&hub]);
    let larder = Larder::start(&repository).await;
    let scrape = async |larder: &Larder| {
        request("GET", format!("{}/metrics", larder.admin_url())).header("host", "larder:17081").send().await
    };
    let refused = scrape(&larder).await;
    let text = refused.text();
    assert!(refused.status == 403 && text.contains("`larder:17081`: add the name to admin.hosts"), "{text}");
    let larder = Larder::start(format!("[admin]\nhosts = [\"larder\"]\n{repository}")).await;
    assert_eq!(scrape(&larder).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whole_answers_from_the_cache_save_bytes() {
    let (hub, image) = hub_with_image().await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    for _ in 0..5 {
        assert_eq!(get(larder.manifest_url("hub/team/app", "none")).await.status, 404);
    }
    let stats = larder.stats().await;
    assert_eq!((&stats["bytes_saved"], &stats["bytes_served"]), (&json!(0), &json!(0)), "{stats}");
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert!(get(&layer).await.complete());
    let digests = image.layer_digests();
    eventually("it is stored", async || larder.has_stored(&digests).await).await;
    let before = larder.stats().await["bytes_saved"].as_u64().expect("a number");
    assert_eq!(before, 0, "all of it was fetched");
    assert!(get(&layer).await.complete());
    let size = image.layers[0].len() as u64;
    let is_saved = async || larder.stats().await["bytes_saved"].as_u64() == Some(size);
    eventually("the second time saves", is_saved).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_is_ready_only_once_it_has_answered() {
    let (mut hub, _) = hub_with_image().await;
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let state = async || {
        let all = get(format!("{}/api/upstreams", larder.admin_url())).await.json();
        let mut all = all["upstreams"].as_array().expect("a list").clone().into_iter();
        all.find(|upstream| upstream["repository"] == "hub").expect("the upstream")
    };
    let unknown = state().await;
    assert_eq!(unknown["state"], "unknown");
    for key in ["last_success", "last_failure", "failed_share", "mean_head_ms"] {
        assert_eq!(unknown[key], Value::Null, "{key}");
    }
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let ready = state().await;
    assert_eq!((&ready["state"], &ready["failed_share"]), (&json!("ready"), &json!(0.0)), "{ready}");
    assert!(ready["last_success"].is_string() && ready["mean_head_ms"].as_f64() > Some(0.0), "{ready}");
    hub.stop().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "2")).await.status, 502);
    let failed = state().await;
    assert!(failed["state"] == "resting" || failed["state"] == "failing", "{failed}");
    assert!(
        failed["last_failure"]["reason"].as_str().is_some_and(|why| why.contains("Connection refused")),
        "{failed}"
    );
    assert!(failed["failed_share"].as_f64() > Some(0.0) && failed["last_success"].is_string(), "{failed}");
}
