//! Promise: certificates come from an ACME server by themselves, and stay when it is down.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::pebble::{Looks, Pebble};
use crate::support::{Authority, Certificate, Larder, eventually, get, https};

const NAME: &str = "mirror.larder.test";

fn acme(pebble: &Pebble, domains: &[&str], more: &str) -> String {
    format!("[server.tls.acme]\ndomains = {domains:?}\n{}{more}\n", pebble.config())
}

/// The certificate that Larder shows for a name, if it is one of this root.
async fn shown(larder: &Larder, root: &Path, name: &str) -> Option<Vec<u8>> {
    shown_to(None, larder, root, name).await
}

async fn shown_to(own: Option<&Certificate>, larder: &Larder, root: &Path, name: &str) -> Option<Vec<u8>> {
    let address = larder.door("registry");
    let client = https(root, own).resolve(name, address).tls_info(true).build().expect("a client");
    let answer = client.get(format!("https://{name}:{}/v2/", address.port())).send().await.ok()?;
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().expect("asked for");
    info.peer_certificate().map(<[u8]>::to_vec)
}

async fn is_shown(larder: &Larder, root: &Path, name: &str) {
    eventually("a certificate is shown", async || shown(larder, root, name).await.is_some()).await;
}

#[tokio::test]
async fn a_certificate_is_got_as_soon_as_the_server_answers_and_stays_when_it_is_gone() {
    let mut pebble = Pebble::new();
    let made = TempDir::new().expect("a directory");
    let clients = Authority::new(made.path(), "clients");
    let own = clients.issue("friend");
    // The server that looks has no client certificate.
    let more = format!(
        "email = \"me@example.com\"\n[server.tls]\nclient_ca_bundle = {:?}\nclient_auth = \"required\"",
        clients.file()
    );
    let mut larder = Larder::builder().config(acme(&pebble, &[NAME], &more)).keep_ports().start().await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;

    pebble.start(Looks::at(larder.door("registry"))).await;
    let root = pebble.root().await;
    assert_eq!(shown_to(Some(&own), &larder, &root, NAME).await, None);
    larder.signal("HUP");
    eventually("there is one", async || shown_to(Some(&own), &larder, &root, NAME).await.is_some()).await;
    assert_eq!(shown(&larder, &root, NAME).await, None, "who has no certificate is turned away");

    pebble.stop();
    let before = shown_to(Some(&own), &larder, &root, NAME).await;
    larder.restart().await;
    assert_eq!(shown_to(Some(&own), &larder, &root, NAME).await, before, "it is kept");

    // Another certificate is needed now; it does not come, and nothing is worse for it.
    let failures = |larder: &Larder| larder.log().matches("no certificate could be got").count();
    let told = failures(&larder);
    larder.write_config(acme(&pebble, &[NAME, "other.larder.test"], &more));
    eventually("it is tried", async || failures(&larder) > told).await;
    assert_eq!(shown_to(Some(&own), &larder, &root, NAME).await, before);
    // A server that does not know the account: one more is made.
    pebble.start(Looks::at(larder.door("registry"))).await;
    let root = pebble.root().await;
    larder.signal("HUP");
    let other = "other.larder.test";
    eventually("there is one", async || shown_to(Some(&own), &larder, &root, other).await.is_some()).await;
    assert_eq!(larder.log().matches("made an account").count(), 2);
    assert!(!larder.log().contains("PRIVATE KEY"));
    let kept = std::fs::read_dir(larder.dir().join("acme")).expect("a folder").map(|entry| entry.expect("one").path());
    let files = kept.flat_map(|folder| std::fs::read_dir(folder).expect("a folder"));
    let modes: Vec<_> =
        files.map(|file| file.expect("a file").metadata().expect("known").permissions().mode() & 0o777).collect();
    assert_eq!(modes, [0o600, 0o600], "an account and a certificate, for nobody else");
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends() {
    let mut pebble = Pebble::new();
    let larder = Larder::start(acme(&pebble, &[NAME], "challenge = \"http-01\"\nhttp_listen = \"127.0.0.1:0\"")).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    pebble.start(Looks { validity: 15, ..Looks::at(larder.door("acme")) }).await;
    let root = pebble.root().await;
    larder.signal("HUP");
    is_shown(&larder, &root, NAME).await;
    let first = shown(&larder, &root, NAME).await;
    assert!(
        larder.metrics().await.contains(&format!("larder_certificate_expiry_timestamp_seconds{{name=\"{NAME}\"}} "))
    );
    // Whoever connects meanwhile is served: the client checks the dates.
    eventually("it is renewed", async || {
        let now = shown(&larder, &root, NAME).await;
        assert!(now.is_some(), "a certificate ended before there was another");
        now != first
    })
    .await;
    let other = get(format!("http://{}/.well-known/acme-challenge/other", larder.door("acme"))).await;
    assert_eq!(other.status, 404);
    assert_eq!(get(format!("http://{}/v2/", larder.door("acme"))).await.status, 404);
}

#[tokio::test]
async fn wildcards_are_got_by_a_record_that_the_hook_sets() {
    let mut pebble = Pebble::new();
    let hook = pebble.hook();
    let more = format!("challenge = \"dns-01\"\ndns_hook = [{hook:?}, \"extra\"]");
    let config = acme(&pebble, &["larder.test", "*.larder.test"], &more);
    let larder = Larder::start(config).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    pebble.start(Looks::at(larder.door("admin"))).await;
    let root = pebble.root().await;
    larder.signal("HUP");
    is_shown(&larder, &root, NAME).await;
    assert!(shown(&larder, &root, "larder.test").await.is_some() && shown(&larder, &root, "a.b.test").await.is_none());
    eventually("the records are taken back", async || pebble.calls().len() == 4).await;
    let calls = pebble.calls();
    let (set, unset) = calls.split_at(2);
    for (call, again) in set.iter().zip(unset) {
        assert!(call.starts_with("extra present larder.test _acme-challenge.larder.test "), "{call}");
        assert_eq!(&call.replace(" present ", " cleanup "), again);
    }
}

#[tokio::test]
async fn an_authority_may_want_an_account_that_it_knows() {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let mut pebble = Pebble::new();
    let made = TempDir::new().expect("a directory");
    let file = made.path().join("hmac");
    std::fs::write(&file, "d3Jvbmcgb25l\n").expect("written");
    let config = acme(&pebble, &[NAME], &format!("eab_key_id = \"mine\"\neab_hmac_key_file = {file:?}"));
    let larder = Larder::start(config).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    pebble.start(Looks { external: Some(("mine", KEY)), ..Looks::at(larder.door("registry")) }).await;
    let root = pebble.root().await;
    larder.signal("HUP");
    eventually("the wrong key is told", async || larder.log().contains("external account binding")).await;
    std::fs::write(&file, format!("{KEY}\n")).expect("written");
    is_shown(&larder, &root, NAME).await;
    assert!(!larder.log().contains(KEY));
}

#[tokio::test]
async fn what_the_server_found_wrong_is_told() {
    let mut pebble = Pebble::new();
    let larder = Larder::start(acme(&pebble, &[NAME], "challenge = \"http-01\"\nhttp_listen = \"127.0.0.1:0\"")).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    // It looks at the wrong door.
    pebble.start(Looks::at(larder.door("admin"))).await;
    larder.signal("HUP");
    eventually("the reason is told", async || {
        larder.log().contains(&format!("the ACME server was not convinced: {NAME}: "))
    })
    .await;
    drop(pebble);
}
