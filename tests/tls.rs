//! Promise: the registry door speaks TLS as its clients expect it, and lets in who belongs.

use std::path::Path;

use crate::support::issuer::now;
use crate::support::{
    Authority, Certificate, Hub, Image, Larder, On, Options, RepositoryConfig, eventually, https, repository_config,
    request,
};

/// A client that believes one authority and may show a certificate.
fn client(authority: &Authority, own: Option<&Certificate>) -> reqwest::Client {
    https(&authority.file(), own).build().expect("a client")
}

fn tls(certificates: &[&Certificate], more: &str) -> String {
    let list = |file: fn(&Certificate) -> &Path| {
        certificates.iter().map(|own| format!("{:?}", file(own).display().to_string())).collect::<Vec<_>>().join(", ")
    };
    let (chains, keys) = (list(|own| &own.certificate), list(|own| &own.key));
    format!("[server.tls]\ncertificate = [{chains}]\nprivate_key = [{keys}]\n{more}\n")
}

fn secure(larder: &Larder, path: &str) -> String {
    format!("https://{}/{path}", larder.door("registry"))
}

async fn hub() -> (Hub, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000]);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn content_comes_whole_over_tls_cold_and_warm() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let authority = Authority::new(dir.path(), "ca");
    let (hub, image) = hub().await;
    let own = authority.issue("127.0.0.1");
    let larder = Larder::start(tls(&[&own], "") + &repository_config("hub", &[&hub])).await;
    let client = client(&authority, None);
    let layer = secure(&larder, &format!("v2/hub/team/app/blobs/{}", image.layer_digests()[0]));
    for round in ["cold", "warm"] {
        let tag = client.get(secure(&larder, "v2/hub/team/app/manifests/1")).send().await.expect("an answer");
        assert_eq!(tag.bytes().await.expect("a body"), image.manifest.bytes, "{round}");
        let blob = client.get(&layer).send().await.expect("an answer");
        assert!(blob.bytes().await.expect("a body") == image.layers[0], "{round}");
        let part = client.get(&layer).header("range", "bytes=1000000-1999999").send().await.expect("an answer");
        assert!(part.bytes().await.expect("a body") == image.layers[0][1_000_000..2_000_000], "{round}");
    }
    // Who speaks plain HTTP here, or nothing at all, is no harm.
    assert!(request("GET", larder.url() + "/v2/").try_send().await.is_err());
    assert_eq!(client.get(&layer).send().await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (old, new) = (Authority::new(dir.path(), "old"), Authority::new(dir.path(), "new"));
    let (hub, _) = hub().await;
    let (first, second) = (old.issue("127.0.0.1"), new.issue("127.0.0.1"));
    let own = Certificate { certificate: dir.path().join("own.crt"), key: dir.path().join("own.key") };
    let install = |from: &Certificate| {
        std::fs::copy(&from.certificate, &own.certificate).expect("copied");
        std::fs::copy(&from.key, &own.key).expect("copied");
    };
    install(&first);
    let larder = Larder::start(tls(&[&own], "") + &repository_config("hub", &[&hub])).await;
    let base = secure(&larder, "v2/");
    let (before, after) = (client(&old, None), client(&new, None));
    assert!(before.get(&base).send().await.is_ok() && after.get(&base).send().await.is_err());

    // Half of it is no change: a certificate without its key.
    std::fs::copy(&second.certificate, &own.certificate).expect("copied");
    eventually("the mismatch is reported", async || larder.log().contains("is not the key of")).await;
    assert!(client(&old, None).get(&base).send().await.is_ok());
    install(&second);
    eventually("the new one is shown", async || client(&new, None).get(&base).send().await.is_ok()).await;
    // A connection that was open goes on.
    assert!(before.get(&base).send().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_has_its_own_certificate() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let authority = Authority::new(dir.path(), "ca");
    let (hub, _) = hub().await;
    let (one, two) = (authority.issue("one.test"), authority.issue("two.test"));
    let larder = Larder::start(tls(&[&one, &two], "") + &repository_config("hub", &[&hub])).await;
    let metrics = larder.metrics().await;
    for name in ["one.test", "two.test"] {
        let figure = format!("larder_certificate_expiry_timestamp_seconds{{name=\"{name}\"}} ");
        let (_, until) = metrics.split_once(&figure).expect("how long it is good");
        let until: u64 = until.lines().next().expect("a line").parse().expect("seconds");
        assert!(until > now(), "{name}: {until}");
    }
    let address = larder.door("registry");
    for (name, is_trusted) in [("one.test", true), ("two.test", true), ("three.test", false)] {
        let client = https(&authority.file(), None).resolve(name, address);
        let url = format!("https://{name}:{}/v2/", address.port());
        let answer = client.build().expect("a client").get(url).send().await;
        assert_eq!(answer.is_ok(), is_trusted, "{name}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_asked_for_as_configured() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let (hub, _) = hub().await;
    let own = ours.issue("127.0.0.1");
    let (friend, stranger) = (ours.issue("friend"), theirs.issue("stranger"));
    let bundle = format!("client_ca_bundle = {:?}\n", ours.file().display().to_string());
    for (auth, answers) in [
        ("", [true, true, false]),
        ("client_auth = \"optional\"", [true, true, false]),
        ("client_auth = \"required\"", [false, true, false]),
    ] {
        let config = tls(&[&own], &(bundle.clone() + auth)) + &RepositoryConfig::new("hub").upstream(&hub).to_string();
        let larder = Larder::start(config).await;
        for (shown, is_let_in) in [None, Some(&friend), Some(&stranger)].into_iter().zip(answers) {
            let answer = client(&ours, shown).get(secure(&larder, "v2/")).send().await;
            assert_eq!(answer.is_ok(), is_let_in, "{auth} {shown:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_say_who_may_pull_what() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let ours = Authority::new(dir.path(), "ours");
    let (hub, _) = hub().await;
    let own = ours.issue("127.0.0.1");
    let (ci, laptop) = (ours.issue("build.ci.test"), ours.issue("laptop.test"));
    let bundle = format!("client_ca_bundle = {:?}\n", ours.file().display().to_string());
    let repository = |name: &str, allow: &str| {
        RepositoryConfig::new(name).set(&format!("allow = [{allow}]")).upstream(&hub).to_string()
    };
    let config = tls(&[&own], &bundle)
        + &repository("named", "\"cert:build.ci.test\"")
        + &repository("domain", "\"cert:*.ci.test\"")
        + &repository("organisation", "\"cert:O=nobody\"")
        + &repository("all", "\"*\"");
    let larder = Larder::start(config).await;
    for (name, answers) in [
        ("named", [403, 200, 403]),
        ("domain", [403, 200, 403]),
        ("organisation", [403, 403, 403]),
        ("all", [200, 200, 200]),
    ] {
        for (shown, status) in [None, Some(&ci), Some(&laptop)].into_iter().zip(answers) {
            let url = secure(&larder, &format!("v2/{name}/team/app/manifests/1"));
            let answer = client(&ours, shown).get(url).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), status, "{name} {shown:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_that_are_no_good_are_turned_away() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let (hub, _) = hub().await;
    let own = ours.issue("127.0.0.1");
    let bundle = format!("client_ca_bundle = {:?}\n", ours.file());
    let certificates = [
        ("a good one", ours.issue("good"), true),
        ("an expired one", ours.issue_expired("expired"), false),
        ("one of the future", ours.issue_early("early"), false),
        ("a foreign one", theirs.issue("good"), false),
        ("one that signed itself", Certificate::self_signed(dir.path(), "good"), false),
        (
            "one for servers only",
            ours.issue_with("server", |params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]
            }),
            false,
        ),
    ];
    for auth in ["client_auth = \"optional\"", "client_auth = \"required\""] {
        let config = tls(&[&own], &(bundle.clone() + auth)) + &RepositoryConfig::new("hub").upstream(&hub).to_string();
        let larder = Larder::start(config).await;
        for (what, shown, is_let_in) in &certificates {
            let answer = client(&ours, Some(shown)).get(secure(&larder, "v2/")).send().await;
            assert_eq!(answer.is_ok(), *is_let_in, "{auth}: {what}");
        }
        assert_eq!(client(&ours, None).get(secure(&larder, "v2/")).send().await.is_ok(), auth.contains("optional"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_an_authority_loses_its_open_connections_too() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (ours, next) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "next"));
    let (hub, image) = hub().await;
    let own = ours.issue("127.0.0.1");
    let bundle = dir.path().join("clients.pem");
    std::fs::copy(ours.file(), &bundle).expect("copied");
    let more = format!("client_ca_bundle = {bundle:?}\nclient_auth = \"required\"\n");
    let layer = &image.layer_digests()[0];
    let gate = hub.gate(On::blob().reference(layer), 1_000_000);
    let larder = Larder::start(tls(&[&own], &more) + &repository_config("hub", &[&hub])).await;
    let (before, after) = (ours.issue("before"), next.issue("after"));
    let old = client(&ours, Some(&before));
    let base = secure(&larder, "v2/");
    assert!(old.get(&base).send().await.is_ok() && client(&ours, Some(&after)).get(&base).send().await.is_err());
    // A transfer that is running, on a connection of its own.
    let running = client(&ours, Some(&before));
    let running = running.get(secure(&larder, &format!("v2/hub/team/app/blobs/{layer}"))).send().await.expect("begun");

    std::fs::copy(next.file(), &bundle).expect("copied");
    eventually("the next one is let in", async || client(&ours, Some(&after)).get(&base).send().await.is_ok()).await;
    // The connection that was kept open is none any more, and another one is not to be had.
    eventually("the old one is out", async || old.get(&base).send().await.is_err()).await;
    gate.open();
    assert!(running.bytes().await.expect("all of it") == image.layers[0], "what was running ends as it began");
}
