//! Promise: what goes through the proxy door and is none of its business arrives as it was sent, where the
//! configuration lets it go, and nowhere else.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{
    Authority, Browser, Certificate, DEADLINE, ForwardProxy, Hub, Larder, Options, Origin, Page, eventually, raw,
    request,
};

const DOOR: &str = "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n";

/// A Larder with a proxy door that may lead to these places.
async fn larder(proxy: &str, domains: &[String], more: &str) -> Larder {
    let config = format!("{DOOR}{proxy}\n[allowlist]\ndomains = {domains:?}\n{more}");
    Larder::builder().config(config).start().await
}

/// A certificate of an authority that the door believes, as a key of `[proxy]`.
fn believed(dir: &TempDir) -> (Certificate, Authority, String) {
    let authority = Authority::new(dir.path(), "upstream");
    let key = format!("upstream_ca_bundle = \"{}\"", authority.file().display());
    (authority.issue("127.0.0.1"), authority, key)
}

/// What a server says that repeats what it hears.
async fn echo() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (address, serving)
}

/// A tunnel through the door; the answer to CONNECT if there is none.
async fn tunnel(larder: &Larder, place: &str) -> Result<TcpStream, String> {
    let mut stream = TcpStream::connect(larder.door("proxy")).await.expect("a connection");
    stream.write_all(format!("CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n\r\n").as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.map_err(|error| error.to_string())?);
    }
    let head = String::from_utf8(head).expect("text");
    if head.starts_with("HTTP/1.1 200 ") {
        assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
        return Ok(stream);
    }
    let length =
        head.to_ascii_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.expect("a page");
    Err(head + &String::from_utf8_lossy(&body))
}

async fn says(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).await.expect("sent");
    let mut heard = vec![0; text.len()];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut heard)).await.expect("in time").expect("heard");
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_to_hosts_that_do_not_matter_are_carried_untouched() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new(dir.path(), "upstream");
    let origin = Origin::https(&authority.issue("127.0.0.1")).await;
    let (echo, _serving) = echo().await;
    let larder = larder("", &[origin.address().to_string(), echo.to_string()], "").await;
    // The certificate is the server's own.
    let browser = Browser::trusting(&larder, &authority.file(), None);
    let answer = browser.send("POST", origin.url("/x?y=1"), &[], "hello").await;
    assert_eq!(answer.text(), "POST /x?y=1 hello");
    assert_eq!(origin.take_requests()[0].headers.get("via"), None);

    let mut stream = tunnel(&larder, &echo.to_string()).await.expect("a tunnel");
    assert_eq!(says(&mut stream, b"\0\x16whatever").await, b"\0\x16whatever");
    stream.shutdown().await.expect("closed");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the other side closes, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_tunnels_hold() {
    let (echo, _serving) = echo().await;
    let larder = larder("", &[echo.to_string()], "").await;
    let before = larder.resident_memory().resident;
    let mut tunnels = Vec::new();
    for _ in 0..200 {
        tunnels.push(tunnel(&larder, &echo.to_string()).await.expect("a tunnel"));
    }
    let block = vec![7; 256 * 1024];
    for stream in &mut tunnels {
        let (mut from, mut to) = stream.split();
        let mut heard = vec![0; block.len()];
        let (sent, got) = tokio::join!(to.write_all(&block), from.read_exact(&mut heard));
        assert!(sent.is_ok() && got.is_ok() && heard == block);
    }
    for stream in tunnels.iter_mut().rev() {
        assert_eq!(says(stream, b"still there?").await, b"still there?");
    }
    let grown = larder.resident_memory().resident.saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_addresses_and_unusual_ports_are_refused_with_a_page() {
    let hub = Hub::start(Options::default()).await;
    let larder = larder("intercept = [\"*\"]", &["*".to_owned(), "name.invalid:8443".to_owned()], "").await;
    let port = hub.address().port();
    for (place, why) in [
        ("127.0.0.1:443", "inside this network"),
        ("127.1:443", "inside this network"),
        ("2130706433:443", "inside this network"),
        ("0.0.0.0:443", "inside this network"),
        ("[::1]:443", "inside this network"),
        ("[::ffff:127.0.0.1]:443", "inside this network"),
        ("10.0.0.1:443", "inside this network"),
        ("192.168.1.1:80", "inside this network"),
        ("169.254.169.254:80", "inside this network"),
        ("[fe80::1]:443", "inside this network"),
        ("[fd00::1]:443", "inside this network"),
        (&format!("127.0.0.1:{port}"), "ports 80 and 443 only"),
        ("example.com:22", "ports 80 and 443 only"),
        ("example.com:25", "ports 80 and 443 only"),
    ] {
        let refused = tunnel(&larder, place).await.expect_err("refused");
        assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains(why), "{place}: {refused}");
        assert!(refused.contains("allowlist.domains"), "it says what to do: {refused}");
        let url = format!("http://{place}/x");
        let answer = request("GET", &url).through_proxy(larder.door("proxy")).send().await;
        assert!(answer.status == 403 && answer.text().contains(why), "{url}: {}", answer.text());
    }
    // What a name stands for is looked at where it is dialled.
    for place in ["localhost:443", "localhost:80"] {
        let answer = request("GET", format!("http://{place}/")).through_proxy(larder.door("proxy")).send().await;
        assert!(answer.status == 403 && answer.text().contains("inside this network"), "{}", answer.text());
    }
    let answer = Browser::new(&larder, None).get("https://localhost/").await;
    assert!(answer.status == 403 && answer.text().contains("inside this network"), "{}", answer.text());
    assert_eq!(hub.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_by_a_name_that_leads_inside_is_refused() {
    let larder = larder("", &[], "").await;
    let refused = tunnel(&larder, "localhost:443").await.expect_err("refused");
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("inside this network"), "{refused}");
    let unknown = tunnel(&larder, "nowhere.invalid:443").await.expect_err("refused");
    assert!(unknown.starts_with("HTTP/1.1 502 ") && unknown.contains("nowhere.invalid"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowlist_refuses_all_other_hosts() {
    let origin = Origin::http().await;
    let more = "enabled = true";
    let larder = larder("", &[origin.address().to_string()], more).await;
    let door = larder.door("proxy");
    assert_eq!(request("GET", origin.url("/a")).through_proxy(door).send().await.text(), "GET /a ");
    for url in ["http://example.com/", "http://127.0.0.1/"] {
        let refused = request("GET", url).through_proxy(door).send().await;
        assert!(refused.status == 403 && refused.text().contains("not in the allowlist"), "{}", refused.text());
        assert_eq!(refused.header("proxy-status"), "larder; error=http_request_denied");
    }
    // That of a repository is another host, too.
    let refused = tunnel(&larder, "registry-1.docker.io:443").await.expect_err("refused");
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("not in the allowlist"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_certificate_is_wrong_is_a_502_that_says_why() {
    let dir = TempDir::new().expect("a directory");
    let (_, authority, key) = believed(&dir);
    for (certificate, why) in [
        (Certificate::self_signed(dir.path(), "127.0.0.1"), "UnknownIssuer"),
        (authority.issue_expired("127.0.0.1"), "expired"),
        (authority.issue("other.example"), "not valid for name"),
    ] {
        let origin = Origin::https(&certificate).await;
        let place = origin.address().to_string();
        let larder = larder(&format!("{key}\nintercept = [\"{place}\"]"), &[place], "").await;
        let answer = Browser::new(&larder, None).get(origin.url("/")).await;
        assert!(answer.status == 502 && answer.text().contains(why), "{why}: {} {}", answer.status, answer.text());
        assert!(origin.take_requests().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opened_tunnels_pass_requests_on_over_either_http() {
    let dir = TempDir::new().expect("a directory");
    let (certificate, _, key) = believed(&dir);
    let origin = Origin::https(&certificate).await;
    let place = origin.address().to_string();
    let more = format!("[headers.\"{place}\".set]\nX-Set = \"ours\"\n[headers.\"{place}\".append]\nX-More = \"ours\"");
    let larder = larder(&key, &[place], &more).await;
    origin.put(
        "/gone",
        Page::new("moved").status(302).header("location", "http://elsewhere.invalid/").header("x-own", "1"),
    );
    for (browser, via) in [(Browser::new(&larder, None), "1.1 larder"), (Browser::http2(&larder), "2 larder")] {
        let headers = [("x-set", "theirs"), ("x-more", "theirs"), ("cookie", "a=b")];
        let answer = browser.send("PUT", origin.url("/x%20y?q=%2F"), &headers, vec![7; 300_000]).await;
        assert_eq!(answer.status, 200);
        let moved = browser.get(origin.url("/gone")).await;
        assert_eq!(
            (moved.status, moved.header("location"), moved.header("x-own")),
            (302, "http://elsewhere.invalid/", "1")
        );
        browser.send("GET", origin.url("/v2/_catalog"), &headers, "").await;
        let asked = origin.take_requests();
        assert_eq!((asked[0].path.as_str(), asked[0].body.len()), ("/x%20y?q=%2F", 300_000));
        // A write is the client's own.
        assert_eq!((asked[0].header("x-set"), asked[0].header("cookie")), ("theirs", "a=b"));
        assert_eq!((asked[2].header("x-set"), asked[2].header("cookie")), ("ours", "a=b"));
        let more: Vec<_> =
            asked[2].headers.get_all("x-more").iter().map(|value| value.to_str().expect("text")).collect();
        assert_eq!(more, ["theirs", "ours"]);
        assert_eq!(asked[0].header("via"), via);
        assert!(asked.iter().all(|request| request.version == http::Version::HTTP_2), "{asked:?}");
    }
    assert!(!larder.log().contains("ours"), "values are secrets");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_goes_through_plain_and_opened() {
    let dir = TempDir::new().expect("a directory");
    let (certificate, _, key) = believed(&dir);
    let (plain, secure) = (Origin::http().await, Origin::https(&certificate).await);
    let places = [plain.address().to_string(), secure.address().to_string()];
    let larder = larder(&format!("{key}\nintercept = [\"{}\"]", places[1]), &places, "").await;
    let ask = |url: &str| {
        format!("GET {url} HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: loud\r\n\r\n", places[0])
    };
    // In absolute form, and as WebSocket clients do it: through a tunnel.
    let mut streams = Vec::new();
    let mut stream = TcpStream::connect(larder.door("proxy")).await.expect("a connection");
    stream.write_all(ask(&plain.url("/")).as_bytes()).await.expect("sent");
    streams.push(stream);
    let mut stream = tunnel(&larder, &places[0]).await.expect("a tunnel");
    stream.write_all(ask("/").as_bytes()).await.expect("sent");
    streams.push(stream);
    for mut stream in streams {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: loud"), "{head}");
        assert_eq!(says(&mut stream, b"hello").await.len(), 5);
    }
    // Inside TLS.
    let mut response = raw_upgrade(&larder, &secure).await;
    response.write_all(b"hello").await.expect("sent");
    let mut heard = [0; 5];
    response.read_exact(&mut heard).await.expect("heard");
    assert_eq!(&heard, b"HELLO");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_its_protocol_is_still_a_connection() {
    let origin = Origin::http().await;
    let place = origin.address().to_string();
    let mut larder = larder("", std::slice::from_ref(&place), "[server]\nmax_connections_per_address = 2").await;
    let ask =
        format!("GET {} HTTP/1.1\r\nhost: {place}\r\nconnection: upgrade\r\nupgrade: loud\r\n\r\n", origin.url("/"));
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(larder.door("proxy")).await.expect("a connection");
        stream.write_all(ask.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        assert_eq!(says(&mut stream, b"hello").await, b"HELLO");
        streams.push(stream);
    }
    assert!(request("GET", origin.url("/")).through_proxy(larder.door("proxy")).try_send().await.is_err());
    let exit = larder.stop().await;
    assert!(exit.code == Some(0) && !exit.log.contains("cut off"), "{}", exit.log);
}

/// An upgraded connection through an opened tunnel.
async fn raw_upgrade(larder: &Larder, origin: &Origin) -> reqwest::Upgraded {
    let roots = larder.home().join("ca/ca.crt");
    let proxy = reqwest::Proxy::all(format!("http://{}", larder.door("proxy"))).expect("a proxy");
    let client = crate::support::https(&roots, None).http1_only().proxy(proxy).build().expect("a client");
    let request = client.get(origin.url("/")).header("connection", "upgrade").header("upgrade", "loud");
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 101);
    response.upgrade().await.expect("upgraded")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_goes_through_an_opened_tunnel_as_well() {
    let (echo, _serving) = echo().await;
    let talker = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let talks = talker.local_addr().expect("an address");
    let talking = tokio::spawn(async move {
        let (mut stream, _) = talker.accept().await.expect("a client");
        stream.write_all(b"220 welcome").await.expect("sent");
        stream
    });
    let places = [echo.to_string(), talks.to_string()];
    let larder = larder("intercept = [\"127.0.0.1\"]", &places, "").await;
    let mut stream = tunnel(&larder, &places[0]).await.expect("a tunnel");
    assert_eq!(says(&mut stream, b"\x01binary").await, b"\x01binary");
    // TLS that offers another protocol than HTTP arrives as it is: its first record comes back.
    let mut stream = tunnel(&larder, &places[0]).await.expect("a tunnel");
    let hello = client_hello(&[b"acme-tls/1"]);
    assert_eq!(says(&mut stream, &hello).await, hello);
    // And servers may speak first.
    let mut stream = tunnel(&larder, &places[1]).await.expect("a tunnel");
    let mut heard = [0; 11];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut heard)).await.expect("in time").expect("heard");
    assert_eq!(&heard, b"220 welcome");
    drop(talking);
}

/// The first bytes of a TLS client that offers these protocols.
fn client_hello(protocols: &[&[u8]]) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").with_root_certificates(rustls::RootCertStore::empty());
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = "larder.test".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("written");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn socks_is_another_way_in() {
    let (echo, _serving) = echo().await;
    let larder = larder("", &[echo.to_string()], "").await;
    let socks = async |host: &[u8], port: u16| {
        let mut stream = TcpStream::connect(larder.door("proxy")).await.expect("a connection");
        stream.write_all(&[5, 1, 0]).await.expect("sent");
        let mut agreed = [0; 2];
        stream.read_exact(&mut agreed).await.expect("heard");
        assert_eq!(agreed, [5, 0]);
        stream.write_all(&[&[5, 1, 0], host, &port.to_be_bytes()].concat()).await.expect("sent");
        let mut told = [0; 10];
        stream.read_exact(&mut told).await.expect("heard");
        (told[1], stream)
    };
    let (told, mut stream) = socks(&[1, 127, 0, 0, 1], echo.port()).await;
    assert_eq!((told, says(&mut stream, b"hello").await), (0, b"hello".to_vec()));
    let name = |name: &str| [&[3, u8::try_from(name.len()).expect("short")], name.as_bytes()].concat();
    assert_eq!(socks(&[1, 10, 0, 0, 1], 443).await.0, 2);
    assert_eq!(socks(&name("localhost"), 443).await.0, 2);
    assert_eq!(socks(&name("nowhere.invalid"), 443).await.0, 4);
    assert_eq!(socks(&name("bad name"), 443).await.0, 8);
    // Only to connect, and not without a way to be somebody or nobody.
    assert_eq!(raw(larder.door("proxy"), b"\x05\x01\x00\x05\x02\x00\x01\x7f\0\0\x01\0\x50", DEADLINE).await[3], 7);
    assert_eq!(raw(larder.door("proxy"), b"\x05\x01\x03", DEADLINE).await, b"\x05\xff");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_be_read_in_two_ways_are_refused() {
    let origin = Origin::http().await;
    let larder = larder("", &[origin.address().to_string()], "").await;
    let url = origin.url("/x");
    let host = origin.address();
    let long = "a".repeat(80_000);
    for (what, request) in [
        (
            "two lengths",
            format!(
                "POST {url} HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n1234G"
            ),
        ),
        (
            "chunked twice",
            format!(
                "POST {url} HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "two hosts",
            format!("GET {url} HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\nhost: other.example\r\n\r\n"),
        ),
        (
            "a space before the colon",
            format!("GET {url} HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\nx : y\r\n\r\n"),
        ),
        (
            "a header over two lines",
            format!("GET {url} HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\nx: y\r\n z\r\n\r\n"),
        ),
        ("a null", format!("GET {url} HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\nx: a\0b\r\n\r\n")),
        ("a head of 80 kB", format!("GET {url} HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\nx: {long}\r\n\r\n")),
        ("no host in the URL", "GET http:///x HTTP/1.1\r\nconnection: close\r\nhost: x\r\n\r\n".to_owned()),
        (
            "another scheme",
            "GET ftp://example.com/x HTTP/1.1\r\nconnection: close\r\nhost: example.com\r\n\r\n".to_owned(),
        ),
        (
            "a login in the URL",
            format!("GET http://me:x@{host}/x HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\n\r\n"),
        ),
        (
            "CONNECT without a port",
            "CONNECT example.com HTTP/1.1\r\nconnection: close\r\nhost: example.com\r\n\r\n".to_owned(),
        ),
        (
            "CONNECT to a path",
            "CONNECT example.com:443/x HTTP/1.1\r\nconnection: close\r\nhost: example.com\r\n\r\n".to_owned(),
        ),
        ("no URL at all", "GET / HTTP/1.1\r\nconnection: close\r\nhost: x\r\n\r\n".to_owned()),
        ("nonsense", "\r\n\r\n\x01\x02\x03\r\n\r\n".to_owned()),
    ] {
        let answer = raw(larder.door("proxy"), request.as_bytes(), Duration::from_secs(5)).await;
        let answer = String::from_utf8_lossy(&answer);
        let first = answer.lines().next().unwrap_or_default().to_owned();
        assert!(first.contains(" 400 ") || first.contains(" 431 ") || first.is_empty(), "{what}: {first}");
        assert!(origin.take_requests().is_empty(), "{what} reached the server");
    }
    assert_eq!(request("GET", &url).through_proxy(larder.door("proxy")).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_request_of_two_lengths_is_no_request() {
    let origin = Origin::http().await;
    let larder = larder("", &[origin.address().to_string()], "").await;
    let (url, host) = (origin.url("/x"), origin.address());
    let (length, chunked) = ("content-length: 4", "transfer-encoding: chunked");
    for (first, second) in [(length, chunked), (chunked, length)] {
        let smuggled = format!("GET {} HTTP/1.1\r\nhost: {host}\r\n\r\n", origin.url("/smuggled"));
        let request =
            format!("POST {url} HTTP/1.1\r\nhost: {host}\r\n{first}\r\n{second}\r\n\r\n1\r\nx\r\n0\r\n\r\n{smuggled}");
        let answer = raw(larder.door("proxy"), request.as_bytes(), DEADLINE).await;
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert!(answer.contains("connection: close") && answer.matches("http/1.1 ").count() == 1, "{answer}");
        let asked = origin.take_requests();
        assert!(asked.len() == 1 && asked[0].body == "x", "{asked:?}");
        assert!(asked[0].headers.get("content-length").is_none() || asked[0].header("transfer-encoding").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_cannot_make_headers() {
    let origin = Origin::http().await;
    let larder = larder("", &[origin.address().to_string()], "").await;
    let url = origin.url("/x%0d%0aX-Evil:%201?y=%0d%0aZ:1");
    assert_eq!(request("GET", &url).through_proxy(larder.door("proxy")).send().await.status, 200);
    let asked = origin.take_requests();
    assert_eq!((asked.len(), asked[0].headers.get("x-evil")), (1, None));
    assert_eq!(asked[0].path, "/x%0d%0aX-Evil:%201?y=%0d%0aZ:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_asks_who_it_is_where_there_are_logins() {
    let origin = Origin::http().await;
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("htpasswd");
    let hash = bcrypt::hash("mine", 4).expect("a hash");
    std::fs::write(&file, format!("me:{hash}\n")).expect("written");
    let more = format!("[auth.htpasswd]\npath = \"{}\"", file.display());
    let larder = larder("", &[origin.address().to_string()], &more).await;
    for (login, status) in [(None, 407), (Some(("me", "wrong")), 407), (Some(("me", "mine")), 200)] {
        let answer = Browser::new(&larder, login).get(origin.url("/")).await;
        assert_eq!(answer.status, status, "{login:?}: {}", answer.text());
        assert_eq!(answer.header("proxy-authenticate").is_empty(), status == 200);
    }
    let asked = origin.take_requests();
    assert!(asked.len() == 1 && asked[0].headers.get("proxy-authorization").is_none(), "{asked:?}");
    let refused = tunnel(&larder, &origin.address().to_string()).await.expect_err("refused");
    assert!(refused.starts_with("HTTP/1.1 407 "), "{refused}");
    assert!(!larder.log().contains("mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_the_environment_is_on_the_way() {
    let dir = TempDir::new().expect("a directory");
    let (certificate, _, key) = believed(&dir);
    let (plain, secure) = (Origin::http().await, Origin::https(&certificate).await);
    let (echo, _serving) = echo().await;
    let places = [plain.address().to_string(), secure.address().to_string(), echo.to_string()];
    for (at, place) in places.iter().enumerate() {
        let target = [plain.address(), secure.address(), echo][at];
        let chained = ForwardProxy::start(target).await;
        let url = format!("http://me:secret@{}", chained.address());
        let config = format!("{DOOR}{key}\nintercept = [\"{}\"]\n[allowlist]\ndomains = {places:?}", places[1]);
        let larder = Larder::builder().config(config).env("HTTP_PROXY", &url).env("HTTPS_PROXY", &url).start().await;
        match at {
            0 => drop(request("GET", plain.url("/")).through_proxy(larder.door("proxy")).send().await),
            1 => assert_eq!(Browser::new(&larder, None).get(secure.url("/")).await.text(), "GET / "),
            _ => assert_eq!(says(&mut tunnel(&larder, place).await.expect("a tunnel"), b"hello").await, b"hello"),
        }
        let heads = chained.heads();
        let wanted = if at == 0 { "GET http://" } else { "CONNECT 127" };
        assert!(heads.len() == 1 && heads[0].starts_with(wanted), "{heads:?}");
        assert!(heads[0].to_ascii_lowercase().contains("proxy-authorization: basic "), "{heads:?}");
        assert!(!larder.log().contains("secret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environment_that_is_down_is_named() {
    // A port that is taken, and where nobody listens.
    let taken = TcpSocket::new_v4().expect("a socket");
    taken.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let url = format!("http://{}", taken.local_addr().expect("an address"));
    let builder = Larder::builder().config(DOOR).env("HTTP_PROXY", &url).env("HTTPS_PROXY", &url);
    let larder = builder.start().await;
    let opened = tunnel(&larder, "server.example:443").await.expect_err("there is no way");
    let plain = request("GET", "http://server.example/").through_proxy(larder.door("proxy")).send().await.text();
    for told in [opened, plain] {
        let expected = format!("the proxy {url} on the way to server.example");
        assert!(told.contains(&expected) && told.contains("HTTPS_PROXY of the environment"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_to_trust_is_given_out_and_explained() {
    let larder = larder("", &[], "").await;
    let answer = request("GET", format!("http://{}/ca.crt", larder.door("proxy"))).send().await;
    let file = std::fs::read_to_string(larder.home().join("ca/ca.crt")).expect("made");
    assert_eq!((answer.status, answer.text()), (200, file.clone()));
    let ran = larder.run(&["ca"]).await;
    assert_eq!((ran.code, &ran.stdout), (Some(0), &file), "{}", ran.stderr);
    for word in
        ["update-ca-certificates", "update-ca-trust", "daemon.json", "containerd", "certs.d", "podman", "SHA-256"]
    {
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
    }
    let json = larder.run(&["ca", "--json"]).await.json();
    assert_eq!(json["pem"], file);
    // Nothing else is there, least of all the key.
    for path in ["/", "/ca.key", "/v2/"] {
        let answer = request("GET", format!("http://{}{path}", larder.door("proxy"))).send().await;
        assert!(answer.status == 400 && answer.text().contains("this is a proxy"), "{}", answer.text());
    }
    let off = Larder::builder().config("").prepare().run(&["ca"]).await;
    assert!(off.code == Some(2) && off.stderr.contains("add [proxy]"), "{}", off.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_trust_us_is_told_of_in_the_log() {
    let dir = TempDir::new().expect("a directory");
    let (certificate, authority, key) = believed(&dir);
    let origin = Origin::https(&certificate).await;
    let place = origin.address().to_string();
    let larder = larder(&format!("{key}\nintercept = [\"{place}\"]"), &[place], "").await;
    let browser = Browser::trusting(&larder, &authority.file(), None);
    assert!(browser.try_send("GET", origin.url("/"), &[], "").await.is_err());
    eventually("it is told", async || larder.log().contains("does not take our certificate")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_tunnels_that_are_silent() {
    let (echo, _serving) = echo().await;
    let mut larder = larder("", &[echo.to_string()], "").await;
    let mut stream = tunnel(&larder, &echo.to_string()).await.expect("a tunnel");
    assert_eq!(says(&mut stream, b"hello").await, b"hello");
    let exit = larder.stop().await;
    assert_eq!(exit.code, Some(0));
    assert!(!exit.log.contains("cut off") && !exit.log.contains("did not end in time"), "{}", exit.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_through_follows_the_configuration_while_it_runs() {
    let origin = Origin::http().await;
    let mut larder = larder("", &[], "").await;
    let door = larder.door("proxy");
    assert_eq!(request("GET", origin.url("/")).through_proxy(door).send().await.status, 403);
    larder.write_config(format!("{DOOR}[allowlist]\ndomains = [\"{}\"]", origin.address()));
    let is_open = async || request("GET", origin.url("/")).through_proxy(door).send().await.status == 200;
    eventually("it is open", is_open).await;
}
