//! Promise: a changed configuration applies without a restart and without dropping anything.

use std::time::Duration;

use crate::support::{
    Authority, Hub, Image, Larder, On, Options, RepositoryConfig, TlsFront, eventually, get, repository_config, request,
};

async fn hub_with(name: &str, image: &Image) -> Hub {
    let hub = Hub::start(Options::with_tokens()).await;
    hub.push_image(name, "1", image);
    hub
}

async fn serves(larder: &Larder, name: &str) -> bool {
    get(larder.manifest_url(name, "1")).await.status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_applies_and_a_running_transfer_goes_on() {
    let image = Image::with_layers(1, &[400_000]);
    let (one, two) = (hub_with("team/app", &image).await, hub_with("team/app", &image).await);
    let mut larder = Larder::start(repository_config("one", &[&one])).await;
    assert!(serves(&larder, "one/team/app").await && !serves(&larder, "two/team/app").await);
    let digest = &image.layer_digests()[0];
    let gate = one.gate(On::blob().reference(digest), 200_000);
    let mut running = request("GET", larder.blob_url("one/team/app", digest)).open().await;
    gate.reached().await;

    larder.write_config(format!("{}{}", repository_config("one", &[&one]), repository_config("two", &[&two])));
    eventually("the new repository is served", async || serves(&larder, "two/team/app").await).await;
    // The upstream that was there before keeps its tokens.
    one.take_requests();
    assert!(serves(&larder, "one/team/app").await);
    assert_eq!(one.count_on(On::token()), 0, "{}", one.summary());

    larder.write_config(repository_config("two", &[&two]));
    eventually("the old one is gone", async || !serves(&larder, "one/team/app").await).await;
    let begun = running.next_chunk().await.expect("a piece").expect("no error");
    gate.open();
    let rest = running.read_to_end().await;
    assert!(rest.complete());
    assert_eq!([&begun[..], &rest.body[..]].concat(), image.layers[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_change_changes_nothing_and_is_reported_once() {
    let image = Image::new(1);
    let hub = hub_with("team/app", &image).await;
    let mut larder = Larder::start(repository_config("hub", &[&hub])).await;
    let told = |larder: &Larder| larder.log().matches("cannot be used").count();
    for (at, wrong) in
        ["[server", "[sever]", "[repository.\"new\"]\n", "[server]\nmax_connections = \"x\""].iter().enumerate()
    {
        larder.write_config(wrong);
        eventually("it is reported", async || told(&larder) == at + 1).await;
        assert!(serves(&larder, "hub/team/app").await);
    }
    let refused = "larder_config_reloads_total{result=\"refused\"} 4";
    eventually("it is counted", async || larder.metrics().await.contains(refused)).await;
    // As long as it stays wrong nothing more is said: by now it has been looked at several times.
    let looked = std::time::Instant::now();
    eventually("some looks later", async || looked.elapsed() > Duration::from_secs(2)).await;
    assert_eq!(told(&larder), 4, "{}", larder.log());

    larder.write_config(format!(
        "{}\n[repository.\"new\"]\n[[repository.\"new\".upstream]]\nurl = \"{}\"",
        repository_config("hub", &[&hub]),
        hub.url()
    ));
    eventually("it is mended", async || serves(&larder, "new/team/app").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reloads_at_once() {
    let image = Image::new(1);
    let hub = hub_with("team/app", &image).await;
    let mut larder = Larder::start(repository_config("hub", &[&hub])).await;
    larder.write_config(repository_config("other", &[&hub]));
    larder.signal("HUP");
    eventually("it is read", async || serves(&larder, "other/team/app").await).await;
    assert!(larder.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_file_applies() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let hub = hub_with("team/app", &Image::new(1)).await;
    let front = TlsFront::start(&hub, &ours.issue("127.0.0.1"), None).await;
    let bundle = dir.path().join("bundle.pem");
    std::fs::copy(theirs.file(), &bundle).expect("copied");
    let keys = format!("server_ca_bundle = \"{}\"", bundle.display());
    let larder = Larder::start(RepositoryConfig::new("hub").upstream_url(&front.url(), &keys)).await;
    assert!(!serves(&larder, "hub/team/app").await);
    std::fs::copy(ours.file(), &bundle).expect("copied");
    eventually("the new authority is believed", async || serves(&larder, "hub/team/app").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_too() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[400_000, 400_000, 400_000]);
    hub.push_image("team/app", "1", &image);
    let config = repository_config("hub", &[&hub]);
    let mut larder = Larder::start(&config).await;
    for digest in image.layer_digests() {
        assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
    }
    eventually("they are stored", async || larder.stats().await["current_size"].as_u64() >= Some(1_200_000)).await;
    larder.write_config(format!("[cache]\nmax_size = \"500kB\"\n{config}"));
    eventually("two are evicted, and no more", async || larder.stats().await["objects"] == 1).await;
    let times_read = |larder: &Larder| larder.log().matches("the configuration was read again").count();
    assert_eq!(times_read(&larder), 1);

    larder.write_config(format!("[cache]\nttl = \"1s\"\n{config}"));
    eventually("all are too old", async || larder.stats().await["objects"] == 0).await;
    eventually("it was read", async || times_read(&larder) == 2).await;
    larder.write_config(format!("[logging]\nlevel = \"debug\"\n[admin]\nlisten = \"127.0.0.1:1\"\n{config}"));
    // The harness itself says where to listen and how to log, in the environment.
    eventually("it is read", async || times_read(&larder) == 3).await;
    assert!(serves(&larder, "hub/team/app").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_for_tags_apply_and_change() {
    let hub = Hub::start(Options::default()).await;
    for tag in ["v1", "latest"] {
        hub.push_image("team/app", tag, &Image::new(1));
    }
    let with = |rules: &str| RepositoryConfig::new("hub").upstream(&hub).to_string() + rules;
    let rule = "[[repository.\"hub\".tag]]\nmatch = \"^v[0-9]\"\nmax_age = \"1h\"\n";
    let mut larder = Larder::start(with(rule)).await;
    let checks = async |larder: &Larder, tag: &str| {
        assert_eq!(get(larder.manifest_url("hub/team/app", tag)).await.status, 200);
        hub.take_requests();
        assert_eq!(get(larder.manifest_url("hub/team/app", tag)).await.status, 200);
        hub.take_requests().len()
    };
    assert_eq!((checks(&larder, "v1").await, checks(&larder, "latest").await), (0, 1));
    larder.write_config(with(""));
    eventually("the rule is gone", async || checks(&larder, "v1").await == 1).await;
    larder.write_config(with("[[repository.\"hub\".tag]]\nmatch = \"^latest$\"\nimmutable_tags = true\n"));
    eventually("another is there", async || checks(&larder, "latest").await == 0).await;
    assert_eq!(checks(&larder, "v1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_replaced_does_not_mean_the_defaults() {
    let hub = hub_with("team/app", &Image::new(1)).await;
    let mut larder = Larder::start(repository_config("hub", &[&hub])).await;
    larder.write_config("\n");
    eventually("it is refused", async || larder.log().contains("gone or empty")).await;
    assert!(serves(&larder, "hub/team/app").await);
    larder.write_config(repository_config("other", &[&hub]));
    eventually("what comes then is taken", async || serves(&larder, "other/team/app").await).await;
}
