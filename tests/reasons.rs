//! Promise: an error says what is wrong, and which key helps. Each is made with real sockets, as the libraries find it.

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{Authority, Hub, Image, Larder, Options, Origin, RepositoryConfig, TlsFront, eventually, get};

/// What a client is told that pulls by way of this upstream.
async fn told(url: &str, keys: &str) -> (u16, String) {
    let larder = Larder::start(RepositoryConfig::new("hub").upstream_url(url, keys)).await;
    let answer = get(larder.manifest_url("hub/team/app", "1")).await;
    (answer.status, answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_tls_is_asked_for_by_http() {
    // A server as it is: it answers the greeting of TLS with 400 in plain text.
    let server = Origin::http().await;
    let (status, text) = told(&format!("https://{}", server.address()), "").await;
    assert_eq!(status, 502);
    let expected = format!("{0}: it speaks plain HTTP, not TLS; write url = \\\"http://{0}\\\"", server.address());
    assert!(text.contains(&expected), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_not_trusted_is_put_into_server_ca_bundle() {
    let dir = TempDir::new().expect("a directory");
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let authority = Authority::new(dir.path(), "ours");
    let front = TlsFront::start(&hub, &authority.issue("127.0.0.1"), None).await;
    let (status, text) = told(&front.url(), "").await;
    assert_eq!(status, 502);
    assert!(text.contains("an authority that is not trusted") && text.contains("into server_ca_bundle"), "{text}");
    let key = format!("server_ca_bundle = {:?}", authority.file().display().to_string());
    assert_eq!(told(&front.url(), &key).await.0, 200, "what the message says helps");

    let front = TlsFront::start(&hub, &authority.issue("other.example"), None).await;
    let (_, text) = told(&front.url(), &key).await;
    assert!(text.contains("its certificate cannot be used") && text.contains("other.example"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_come_about_names_its_deadline() {
    // A queue that is full: packets are dropped, as by a firewall.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let hole = socket.listen(0).expect("it listens");
    let address = hole.local_addr().expect("an address");
    let mut fillers = Vec::new();
    let patience = std::time::Duration::from_millis(500);
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
        fillers.push(stream.expect("a connection"));
    }
    let (status, text) = told(&format!("http://{address}"), "connect_timeout = \"300ms\"").await;
    assert_eq!(status, 504);
    assert!(text.contains(&format!("{address}: could not connect within 0.3 s (connect_timeout)")), "{text}");
    drop(hole);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_wants_a_login_names_the_keys_for_it() {
    let hub = Hub::start(Options::with_basic("me", "mine")).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let (status, text) = told(&hub.url(), "").await;
    assert!(status == 403 && text.contains("set username and password of the upstream"), "{status} {text}");
    let (status, text) = told(&hub.url(), "username = \"me\"\npassword = \"geheim\"").await;
    assert!(status == 403 && text.contains("(username, password)") && !text.contains("geheim"), "{status} {text}");

    let hub = Hub::start(Options::with_tokens().user("me", "mine").private("team/app", "me")).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let (status, text) = told(&hub.url(), "").await;
    assert!(status == 403 && text.contains("set username and password of the upstream"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_down_or_mistyped_is_blamed_and_the_registry_is_not() {
    let hub = Hub::start(Options::default()).await;
    // A port that is taken, and where nobody listens.
    let taken = TcpSocket::new_v4().expect("a socket");
    taken.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let down = taken.local_addr().expect("an address");
    for url in [hub.url(), "https://registry.example".to_owned()] {
        let key = format!("http_proxy = \"http://me:geheim@{down}\"");
        let (status, text) = told(&url, &key).await;
        assert_eq!(status, 502);
        assert!(text.contains(&format!("the proxy http://{down} on the way to ")), "{text}");
        assert!(text.contains("cannot be reached: ") && text.contains("(http_proxy of the upstream"), "{text}");
        assert!(!text.contains("geheim"), "{text}");
    }
    let (status, text) = told(&hub.url(), "http_proxy = \"http://proxi.invalid:3128\"").await;
    assert!(status == 502 && text.contains("the proxy http://proxi.invalid:3128 on the way to "), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_opens_no_tunnel_is_named_with_its_reason() {
    for (answer, told_why) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "opens no tunnel to registry.example: unsuccessful"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "wants a login: write http://USER:PASSWORD@HOST:PORT"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let (status, text) = told("https://registry.example", &format!("http_proxy = \"http://{address}\"")).await;
        assert!(status == 502 && text.contains(&format!("the proxy http://{address} ")), "{status} {text}");
        assert!(text.contains(told_why), "{text}");
        serving.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_there_is_no_certificate_is_told_from_its_beginning() {
    let dir = TempDir::new().expect("a directory");
    let hub = Hub::start(Options::default()).await;
    let front = TlsFront::start(&hub, &Authority::new(dir.path(), "ours").issue("127.0.0.1"), None).await;
    let config =
        format!("[server.tls.acme]\ndomains = [\"mirror.example.com\"]\ndirectory = \"{}/dir\"\n", front.url());
    let larder = Larder::start(config).await;
    let expected = format!("the ACME server {}/dir: its certificate is signed by an authority that", front.url());
    eventually("it is told", async || larder.log().contains(&expected)).await;
    eventually("the log says so", async || larder.log().contains("into server.tls.acme.ca_bundle")).await;
}
