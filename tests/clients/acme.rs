//! Promise: certificates come from an ACME server by themselves, and stay when it is down.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    let other = "other.larder.test";
    eventually("there is one", async || shown_to(Some(&own), &larder, &root, other).await.is_some()).await;
    assert_eq!(larder.log().matches("made an account").count(), 2);
    assert!(!larder.log().contains("PRIVATE KEY"));
    let modes = || {
        let kept =
            std::fs::read_dir(larder.dir().join("acme")).expect("a folder").map(|entry| entry.expect("one").path());
        let files = kept.flat_map(|folder| std::fs::read_dir(folder).expect("a folder").flatten());
        // One that is just being written may be gone by now.
        files.filter_map(|file| Some(file.metadata().ok()?.permissions().mode() & 0o777)).collect::<Vec<_>>()
    };
    eventually("an account and a certificate are kept, for nobody else", async || modes() == [0o600, 0o600]).await;
}

#[tokio::test]
async fn an_acme_server_that_starts_later_is_not_waited_for_long() {
    let mut pebble = Pebble::new();
    let larder = Larder::start(acme(&pebble, &[NAME], "")).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    pebble.start(Looks::at(larder.door("registry"))).await;
    let root = pebble.root().await;
    // Nobody tells it.
    is_shown(&larder, &root, NAME).await;
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
async fn a_certificate_that_the_disk_does_not_take_is_shown_and_written_later() {
    let mut pebble = Pebble::new();
    let larder = Larder::start(acme(&pebble, &[NAME], "")).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    let kept = larder.dir().join("acme");
    let folder = std::fs::read_dir(&kept).expect("a folder").next().expect("of the server").expect("readable").path();
    let in_the_way = folder.join(format!("{NAME}.pem.new"));
    std::fs::create_dir_all(in_the_way.join("x")).expect("made");
    pebble.start(Looks::at(larder.door("registry"))).await;
    let root = pebble.root().await;
    larder.signal("HUP");
    is_shown(&larder, &root, NAME).await;
    let first = shown(&larder, &root, NAME).await;
    eventually("it is told", async || larder.log().contains("cannot be kept on disk")).await;
    std::fs::remove_dir_all(&in_the_way).expect("removed");
    larder.signal("HUP");
    eventually("it is written", async || folder.join(format!("{NAME}.pem")).exists()).await;
    assert_eq!(shown(&larder, &root, NAME).await, first);
    assert_eq!(larder.log().matches("got a certificate").count(), 1, "none is ordered again");

    // Where nothing can be written at all, nothing is ordered.
    std::fs::remove_dir_all(&kept).expect("removed");
    std::fs::write(&kept, "in the way").expect("written");
    let told = larder.log().matches("no certificate could be got").count();
    larder.signal("HUP");
    eventually("it is told", async || larder.log().matches("no certificate could be got").count() > told).await;
    assert_eq!(larder.log().matches("got a certificate").count(), 1);
    assert!(larder.log().contains(&kept.display().to_string()), "with the place");
}

#[tokio::test]
async fn a_hook_that_hangs_is_given_up_for_another_configuration_and_at_the_end() {
    let mut pebble = Pebble::new();
    let made = TempDir::new().expect("a directory");
    let hook = made.path().join("hook");
    let calls = made.path().join("calls");
    let text = format!("#!/bin/sh\necho \"$1 $2\" >>{}\n[ $1 = cleanup ] || exec sleep 600\n", calls.display());
    std::fs::write(&hook, text).expect("written");
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    let by_dns = format!("challenge = \"dns-01\"\ndns_hook = [{hook:?}]");
    let mut larder = Larder::start(acme(&pebble, &[NAME], &by_dns)).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    pebble.start(Looks::at(larder.door("registry"))).await;
    let root = pebble.root().await;
    let called = || std::fs::read_to_string(&calls).unwrap_or_default();
    larder.signal("HUP");
    eventually("the hook runs", async || called() == format!("present {NAME}\n")).await;
    larder.write_config(acme(&pebble, &[NAME], ""));
    is_shown(&larder, &root, NAME).await;
    eventually("the hook cleaned up", async || called() == format!("present {NAME}\ncleanup {NAME}\n")).await;

    larder.write_config(acme(&pebble, &[NAME, "other.larder.test"], &by_dns));
    eventually("the hook runs again", async || called().lines().count() == 3).await;
    assert_eq!(larder.stop().await.code, Some(0));
    let calls: Vec<_> = called().lines().map(str::to_owned).collect();
    assert_eq!(calls[3..], [calls[2].replace("present", "cleanup")], "of whichever domain came first");
}

#[tokio::test]
async fn an_acme_server_that_makes_no_sense_is_told_in_one_line() {
    let hostile = "bad\\n2026-01-01 INFO larder::access: request FORGED\\u001b[31m";
    for (answer, told) in [
        (
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "answered 302 Found",
        ),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_owned(), "answered 500"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<ht>".to_owned(), "its answer is not what the protocol says"),
        (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n\"{hostile}\"", hostile.len() + 2), "FORGED"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let directory = format!("directory = \"http://{address}/dir\"\n");
        let text = Larder::builder().config(format!("[server.tls.acme]\ndomains = \"{NAME}\"\n{directory}"));
        let larder = text.env("LARDER_LOGGING__FORMAT", "json").start().await;
        eventually("it is told", async || larder.log().contains("no certificate could be got")).await;
        let log = larder.log();
        let line = log.lines().find(|line| line.contains("no certificate could be got")).expect("a line");
        assert!(line.contains(told), "{line}");
        let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let error = record["fields"]["error"].as_str().expect("an error");
        assert!(!error.contains(|c: char| c.is_control()), "{error:?}");
        serving.abort();
    }
}

#[tokio::test]
async fn silent_connections_do_not_keep_an_acme_server_out() {
    let mut pebble = Pebble::new();
    let larder = Larder::start(acme(&pebble, &[NAME], "challenge = \"http-01\"\nhttp_listen = \"127.0.0.1:0\"")).await;
    eventually("the failure is told", async || larder.log().contains("no certificate could be got")).await;
    pebble.start(Looks::at(larder.door("acme"))).await;
    let root = pebble.root().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(tokio::net::TcpStream::connect(larder.door("acme")).await.expect("connected"));
    }
    larder.signal("HUP");
    is_shown(&larder, &root, NAME).await;
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
