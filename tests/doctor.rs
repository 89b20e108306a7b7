//! Promise: `larder doctor` finds what keeps a cache from serving, and says in words what to do. Each fault is planted.

use jsonwebtoken::Algorithm;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::issuer::{Issuer, SigningKey};
use crate::support::provider::Provider;
use crate::support::{Hub, Image, Larder, Options, RepositoryConfig, eventually, get, repository_config};

/// What the doctor found: check, verdict and text of each finding.
async fn found(larder: &Larder, arguments: &[&str]) -> (Option<i32>, Vec<(String, String, String)>) {
    let ran = larder.run(&[&["doctor", "--json"], arguments].concat()).await;
    let said: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
    let findings = said["findings"].as_array().expect("a list").iter();
    (ran.code, findings.map(|of| (text(of, "check"), text(of, "verdict"), text(of, "text"))).collect())
}

/// The text of the finding about `check` with this verdict.
fn text_of(findings: &[(String, String, String)], check: &str, verdict: &str) -> String {
    let found = findings.iter().find(|(of, is, _)| of == check && is == verdict);
    found.unwrap_or_else(|| panic!("no {verdict} about {check}: {findings:#?}")).2.clone()
}

/// A folder in which no client is installed.
fn no_clients() -> (TempDir, String) {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().display().to_string();
    (dir, path)
}

async fn hub_with_image() -> Hub {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[100 << 10]));
    hub
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_well_it_says_so_and_pulls_what_is_cached() {
    let hub = hub_with_image().await;
    let larder = Larder::builder().config(repository_config("hub", &[&hub])).keep_ports().start().await;
    let (_dir, root) = no_clients();
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    eventually("it is stored", async || larder.stats().await["objects"] == 1).await;
    let (code, findings) = found(&larder, &["--root", &root]).await;
    assert_eq!(code, Some(0), "{findings:#?}");
    for check in ["configuration", "disk", "clock", "limits", "instance", "pull", "upstream"] {
        text_of(&findings, check, "ok");
    }
    let pulled = text_of(&findings, "pull", "ok");
    assert!(
        pulled.starts_with("hub/team/app:1 came through http://127.0.0.1:") && pulled.contains("3 objects"),
        "{pulled}"
    );
    let shown = larder.run(&["doctor", "--root", &root]).await;
    assert!(shown.code == Some(0) && shown.stdout.ends_with("all is well\n"), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_by_which_nobody_can_log_in_is_found() {
    let key = SigningKey::new("one", Algorithm::ES256);
    let (good, bad) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    good.provide(Provider::new(&key, "dash", None));
    let login = |name: &str| format!("[auth.oidc.{name}.login]\nclient_id = \"dash\"\n");
    let admin = "[admin]\nallow = [\"loopback\", \"oidc:good:groups=ops\", \"oidc:bad:groups=ops\"]\n";
    let config = good.config("good", "") + &login("good") + &bad.config("bad", "") + &login("bad") + admin;
    let larder = Larder::builder().config(config).prepare();
    let (_dir, root) = no_clients();
    let (_, findings) = found(&larder, &["--root", &root]).await;
    assert!(
        text_of(&findings, "login", "ok")
            .contains("`good` answers; the redirect URI to register there ends with /login/good/callback")
    );
    let wrong = text_of(&findings, "login", "error");
    assert!(wrong.contains("nobody can log in with `bad`") && wrong.contains("authorization_endpoint"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_told_with_all_its_mistakes() {
    let mut larder = Larder::builder().config("").prepare();
    larder.write_config("[cache]\nmax_sise = \"1GiB\"\nmin_free = \"101%\"\n");
    let (code, findings) = found(&larder, &[]).await;
    let texts: Vec<_> = findings.iter().filter(|(check, ..)| check == "configuration").map(|(.., text)| text).collect();
    assert_eq!(code, Some(1));
    assert!(
        texts.iter().any(|text| text.contains("max_size")) && texts.iter().any(|text| text.contains("101%")),
        "{texts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_hold_a_cache_is_told() {
    let (_dir, root) = no_clients();
    let hub = hub_with_image().await;
    let repository = repository_config("hub", &[&hub]);
    let larder = Larder::builder().config(format!("[cache]\nmin_free = \"100%\"\n{repository}")).prepare();
    let (code, findings) = found(&larder, &["--root", &root]).await;
    let text = text_of(&findings, "disk", "error");
    assert!(code == Some(1) && text.contains("nothing new can be stored; make room"), "{text}");

    let larder = Larder::builder().config(repository).prepare();
    std::fs::write(larder.dir(), "a file").expect("written");
    let (code, findings) = found(&larder, &["--root", &root]).await;
    let text = text_of(&findings, "disk", "error");
    assert!(code == Some(1) && text.ends_with("is no folder; set cache.dir"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_program_has_is_told_with_its_key() {
    let (_dir, root) = no_clients();
    let hub = hub_with_image().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address");
    let larder = Larder::builder()
        .config(repository_config("hub", &[&hub]))
        .env("LARDER_SERVER__LISTEN", &address.to_string())
        .prepare();
    let ran = larder
        .run_in(
            larder.home(),
            &[("LARDER_SERVER__LISTEN", &address.to_string())],
            &["doctor", "--json", "--root", &root],
        )
        .await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains(&format!("another program has the port {address}")), "{ran:?}");
    assert!(ran.stdout.contains("set server.listen"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_down_or_refuses_the_login_is_told() {
    let (_dir, root) = no_clients();
    let mut down = hub_with_image().await;
    let locked = Hub::start(Options::with_basic("me", "mine")).await;
    let config = format!(
        "{}{}",
        repository_config("down", &[&down]),
        RepositoryConfig::new("locked").upstream_with(&locked, "username = \"me\"\npassword = \"geheim\"")
    );
    down.stop().await;
    let larder = Larder::builder().config(config).prepare();
    let (code, findings) = found(&larder, &["--root", &root]).await;
    let told: Vec<_> =
        findings.iter().filter(|(check, ..)| check == "upstream").map(|(.., text)| text.as_str()).collect();
    assert_eq!((code, told.len()), (Some(1), 2), "{told:?}");
    assert!(
        told[0].contains("(down)") && told[0].ends_with("see that this machine reaches it (DNS, firewall, http_proxy)"),
        "{told:?}"
    );
    assert!(told[1].contains("(locked)") && told[1].contains("see that the login is right"), "{told:?}");
    assert!(!told[1].contains("geheim"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_end_to_end_is_told_in_the_words_of_the_door() {
    let (_dir, root) = no_clients();
    let mut hub = hub_with_image().await;
    let larder = Larder::builder().config(repository_config("hub", &[&hub])).keep_ports().start().await;
    let (_, findings) = found(&larder, &["--root", &root]).await;
    assert!(text_of(&findings, "pull", "note").contains("nothing is cached yet"));
    let (code, findings) = found(&larder, &["--root", &root, "--pull", "hub/team/app:1"]).await;
    assert_eq!(code, Some(0), "{findings:#?}");
    text_of(&findings, "pull", "ok");
    hub.stop().await;
    let (code, findings) = found(&larder, &["--root", &root, "--pull", "hub/team/other:1"]).await;
    let text = text_of(&findings, "pull", "error");
    assert!(code == Some(1) && text.contains("502") && text.contains("UNAVAILABLE"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_this_host_that_is_not_set_up_is_told_how() {
    let hub = hub_with_image().await;
    let repository = RepositoryConfig::new("hub").set("namespace = [\"registry.example\"]").upstream(&hub);
    let larder = Larder::builder().config(repository).keep_ports().start().await;
    let (dir, root) = no_clients();
    let (_, findings) = found(&larder, &["--root", &root]).await;
    assert!(text_of(&findings, "clients", "note").starts_with("none is installed here"));
    std::fs::create_dir_all(dir.path().join("usr/bin")).expect("made");
    std::fs::write(dir.path().join("usr/bin/podman"), "").expect("written");
    let (code, findings) = found(&larder, &["--root", &root]).await;
    let told = text_of(&findings, "clients", "note");
    assert!(code == Some(0) && told.contains("`larder setup podman` shows how"), "{told}");
    let set_up = larder.run(&["setup", "podman", "--write", "--root", &root]).await;
    assert_eq!(set_up.code, Some(0), "{set_up:?}");
    let (_, findings) = found(&larder, &["--root", &root]).await;
    assert!(text_of(&findings, "clients", "ok").starts_with("podman pulls through http://127.0.0.1:"));
}
