//! Promise: tunnels are opened by the proxy door alone, one at a time, and a login in an address is in no log.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Connection, Hub, Image, Larder, Options, RepositoryConfig, eventually, raw, request};

async fn hub() -> (Hub, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

/// The status and the whole of an answer to these bytes.
async fn said(door: SocketAddr, head: &str) -> (u16, String) {
    let answer = raw(door, head.as_bytes(), Duration::from_secs(10)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    (status.unwrap_or_default(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tunnel_is_opened_at_a_door_that_is_no_proxy() {
    let (hub, image) = hub().await;
    let larder = Larder::start(RepositoryConfig::new("hub").upstream(&hub)).await;
    let target = hub.url().trim_start_matches("http://").to_owned();
    for door in ["registry", "admin"] {
        for (target, hosts) in
            [(target.as_str(), target.as_str()), ("evil.example:443", "127.0.0.1"), ("127.0.0.1:22", "127.0.0.1:22")]
        {
            let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {hosts}\r\nConnection: close\r\n\r\n");
            let (status, text) = said(larder.door(door), &head).await;
            assert_eq!(status, 405, "{door} {target}: {text}");
            assert!(text.to_lowercase().contains("\r\nallow: "), "{text}");
        }
    }
    let connection = Connection::http2(larder.url()).await;
    let asked = request("CONNECT", format!("http://{target}")).http2().body(Bytes::new());
    assert_eq!(asked.send_on(&connection).await.status, 405);
    assert_eq!(hub.requests().len(), 0, "{}", hub.summary());
    assert_eq!(request("GET", larder.manifest_url("hub/team/app", "1")).send().await.body, image.manifest.bytes);
}

const DOOR: &str = "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n";

/// Reads the head of an answer.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    String::from_utf8(head).expect("text")
}

/// An opened tunnel to an upstream.
async fn tunnel(larder: &Larder, place: &str) -> TcpStream {
    let mut stream = TcpStream::connect(larder.door("proxy")).await.expect("a connection");
    stream.write_all(format!("CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n\r\n").as_bytes()).await.expect("sent");
    let told = head(&mut stream).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_tunnel_no_other_is_opened() {
    let (hub, _) = hub().await;
    let larder = Larder::start(DOOR.to_owned() + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    let place = hub.url().trim_start_matches("http://").to_owned();
    for inner in [place.as_str(), "evil.example:443", "127.0.0.1:22"] {
        let mut stream = tunnel(&larder, &place).await;
        stream.write_all(format!("CONNECT {inner} HTTP/1.1\r\nhost: {inner}\r\n\r\n").as_bytes()).await.expect("sent");
        let told = head(&mut stream).await;
        assert!(told.starts_with("HTTP/1.1 405 ") && told.to_lowercase().contains("\r\nallow: "), "{inner}: {told}");
        // Over HTTP/2, too.
        let stream = tunnel(&larder, &place).await;
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.expect("HTTP/2");
        tokio::spawn(connection);
        let asked =
            http::Request::builder().method("CONNECT").uri(inner).body(Empty::<Bytes>::new()).expect("a request");
        assert_eq!(sender.send_request(asked).await.expect("an answer").status().as_u16(), 405, "{inner}");
    }
    assert_eq!(hub.requests().len(), 0, "{}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_an_address_is_in_no_log() {
    let (hub, _) = hub().await;
    let larder = Larder::start(DOOR.to_owned() + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    let place = hub.url().trim_start_matches("http://").to_owned();
    let proxy = larder.door("proxy");
    let close = "Connection: close\r\n\r\n";
    for head in [
        format!("CONNECT user:geheim@{place} HTTP/1.1\r\nHost: {place}\r\n{close}"),
        format!("CONNECT user:geheim@{place} HTTP/1.1\r\nHost: user:geheim@{place}\r\n{close}"),
        format!("CONNECT geheim@evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n{close}"),
        format!("CONNECT a@geheim@{place} HTTP/1.1\r\nHost: {place}\r\n{close}"),
        format!("GET http://user:geheim@{place}/v2/ HTTP/1.1\r\nHost: {place}\r\n{close}"),
        format!("GET http://geheim@{place}/v2/team/app/manifests/1 HTTP/1.1\r\nHost: geheim@{place}\r\n{close}"),
        format!("GET user:geheim@{place} HTTP/1.1\r\nHost: {place}\r\n{close}"),
    ] {
        let (status, text) = said(proxy, &head).await;
        assert_eq!(status, 400, "{head}: {text}");
        assert!(!text.contains("geheim"), "{text}");
    }
    for door in ["registry", "admin"] {
        for head in [
            format!("GET http://user:geheim@127.0.0.1/v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n{close}"),
            format!("GET /v2/ HTTP/1.1\r\nHost: user:geheim@127.0.0.1\r\n{close}"),
        ] {
            let (status, text) = said(larder.door(door), &head).await;
            assert!(status == 400 && !text.contains("geheim"), "{door} {head}: {text}");
        }
    }
    // Through a tunnel, and over SOCKS 5 (RFC 1928: greeting, then CONNECT to a name).
    let mut stream = tunnel(&larder, &place).await;
    let inner = format!("GET http://user:geheim@{place}/v2/ HTTP/1.1\r\nHost: geheim@{place}\r\n\r\n");
    stream.write_all(inner.as_bytes()).await.expect("sent");
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 400 "));
    let mut stream = TcpStream::connect(proxy).await.expect("connected");
    let name = b"user:geheim@127.0.0.1";
    let length = u8::try_from(name.len()).expect("short");
    stream.write_all(&[&[5, 1, 0, 5, 1, 0, 3, length][..], name, &[0, 80]].concat()).await.expect("sent");
    let mut told = [0; 4];
    stream.read_exact(&mut told).await.expect("an answer");
    assert!(told[3] != 0, "{told:?}");
    // Each of them left its line.
    eventually("all are logged", async || larder.log().matches("\"method\":\"CONNECT\"").count() >= 6).await;
    assert!(!larder.log().contains("geheim"), "it is in the log");
    eventually("the log says so", async || larder.log().contains(&place)).await;
    assert!(!larder.metrics().await.contains("geheim"));
}
