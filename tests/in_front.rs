//! Promise: behind balancers and reverse proxies clients are sent to the right place, known by their own address, and
//! not cut off: as nginx, HAProxy and others really pass things on.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clients::{Caddy, Haproxy, Nginx};
use crate::support::{Hub, Image, Larder, Options, RepositoryConfig, eventually, request};

type Headers = &'static [(&'static str, &'static str)];

/// A hub with an image of one layer.
async fn hub(layer: usize) -> (Hub, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[layer]);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

/// One repository for everybody and one for a user, so that clients are sent to Larder's token service.
fn with_logins(hub: &Hub, server: &str) -> (TempDir, String) {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, "bob:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n").expect("written");
    let config = format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n{server}\n[auth.htpasswd]\npath = {:?}\n{}{}",
        file.display().to_string(),
        RepositoryConfig::new("hub").set("allow = [\"anonymous\"]").upstream(hub),
        RepositoryConfig::new("users").set("allow = [\"user:bob\"]").upstream(hub),
    );
    (dir, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_to_the_address_that_they_asked() {
    let (hub, _) = hub(1000).await;
    let forwarded = "forwarded_header = \"forwarded\"";
    let public = "public_url = \"https://mirror.example.com\"";
    // (configuration, headers of the proxy, where tokens are to be had)
    let cases: [(&str, Headers, &str); 12] = [
        ("", &[], "http://cache.internal"),
        // nginx's $scheme and $host, which has no port (podman#14481, harbor-next#884); its $server_port.
        (
            "",
            &[("x-forwarded-proto", "https"), ("x-forwarded-host", "mirror.example.com")],
            "https://mirror.example.com",
        ),
        (
            "",
            &[("x-forwarded-proto", "https"), ("x-forwarded-host", "mirror.example.com"), ("x-forwarded-port", "8443")],
            "https://mirror.example.com:8443",
        ),
        ("", &[("x-forwarded-proto", "https"), ("x-forwarded-port", "443")], "https://cache.internal"),
        ("", &[("x-forwarded-port", "5001")], "http://cache.internal:5001"),
        // Traefik sends the host with its port, and the port.
        ("", &[("x-forwarded-host", "m.example:8080"), ("x-forwarded-port", "8080")], "http://m.example:8080"),
        // Apache appends in a chain of proxies.
        ("", &[("x-forwarded-host", "outer.example, inner.example")], "http://outer.example"),
        ("", &[("x-forwarded-host", "no host/at all")], "http://cache.internal"),
        (forwarded, &[("x-forwarded-host", "m.example")], "http://cache.internal"),
        (forwarded, &[("forwarded", "for=10.0.0.1;host=\"m.example:8443\";proto=https")], "https://m.example:8443"),
        (public, &[], "https://mirror.example.com"),
        (public, &[("x-forwarded-host", "other.example")], "https://mirror.example.com"),
    ];
    for (server, headers, expected) in cases {
        let (_dir, config) = with_logins(&hub, server);
        let larder = Larder::start(config).await;
        let asked = request("GET", larder.manifest_url("users/team/app", "1")).header("host", "cache.internal");
        let asked = headers.iter().fold(asked, |asked, (name, value)| asked.header(name, value));
        let answer = asked.send().await;
        assert_eq!(answer.status, 401, "{}", answer.text());
        let realm = format!("Bearer realm=\"{expected}/token\",");
        let challenge = answer.header("www-authenticate");
        assert!(challenge.starts_with(&realm), "{server} {headers:?}: {challenge}");
    }
    // A stranger states nothing.
    let (_dir, config) = with_logins(&hub, "");
    let larder = Larder::start(config.replace("127.0.0.1", "127.0.0.7")).await;
    let asked = request("GET", larder.manifest_url("users/team/app", "1")).header("x-forwarded-host", "evil.example");
    let answer = asked.send().await;
    assert!(!answer.header("www-authenticate").contains("evil.example"), "{}", answer.header("www-authenticate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_host_is_found_by_the_name_that_the_proxy_was_asked_by() {
    let (hub, image) = hub(1000).await;
    let config = format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n{}",
        RepositoryConfig::new("hub").set("hosts = [\"hub.example.com\"]").upstream(&hub)
    );
    let larder = Larder::start(config).await;
    let url = format!("{}/v2/team/app/manifests/1", larder.url());
    let answer =
        request("GET", &url).header("host", "inner").header("x-forwarded-host", "hub.example.com").send().await;
    assert_eq!((answer.status, &answer.body[..]), (200, &image.manifest.bytes[..]), "{}", answer.text());
}

/// Sends these bytes and a request for a tag. Returns the status line.
async fn ask_raw(door: SocketAddr, announcement: &[u8]) -> String {
    let mut stream = TcpStream::connect(door).await.expect("connected");
    let get = b"GET /v2/hub/team/app/manifests/1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(&[announcement, get].concat()).await.expect("sent");
    let mut answer = Vec::new();
    // It may be reset.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_announces_its_clients_and_nobody_else_does() {
    let (hub, _) = hub(1000).await;
    let config = |trusted: &str| {
        format!(
            "[server]\nproxy_protocol = true\ntrusted_proxies = [\"{trusted}\"]\n{}",
            RepositoryConfig::new("hub").set("allow = [\"192.0.2.0/24\"]").upstream(&hub)
        )
    };
    let larder = Larder::start(config("127.0.0.1")).await;
    let door = larder.door("registry");
    let v2 = |command: u8, address: [u8; 4]| {
        let addresses = [&address[..], &[192, 0, 2, 1, 0xdc, 4, 1, 0xbb]].concat();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, 0x11, 0, 12], &addresses].concat()
    };
    for (announcement, status) in [
        (b"PROXY TCP4 192.0.2.9 192.0.2.1 56324 443\r\n".to_vec(), "200"),
        (b"PROXY TCP4 198.51.100.9 192.0.2.1 56324 443\r\n".to_vec(), "401"),
        (v2(1, [192, 0, 2, 9]), "200"),
        (v2(1, [198, 51, 100, 9]), "401"),
        // The proxy itself, for a health check.
        (v2(0, [0, 0, 0, 0]), "401"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "401"),
    ] {
        let line = ask_raw(door, &announcement).await;
        let is_refused = line.contains("403") || line.contains("401");
        let is_expected = if status == "200" { line.contains("200") } else { is_refused };
        assert!(is_expected, "{line:?} {}", announcement.escape_ascii());
    }
    // Without an announcement, nothing is believed to be one.
    assert_eq!(ask_raw(door, b"").await, "");
    eventually("the log says why", async || larder.log().contains("server.proxy_protocol is on for its address")).await;
    eventually("the log says so", async || larder.log().contains("\"client\":\"192.0.2.9")).await;

    // A stranger's announcement is no HTTP.
    let larder = Larder::start(config("127.0.0.7")).await;
    let line = ask_raw(larder.door("registry"), b"PROXY TCP4 192.0.2.9 192.0.2.1 56324 443\r\n").await;
    assert!(!line.contains("200"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_real_haproxy_a_client_has_its_own_address() {
    let (hub, image) = hub(1000).await;
    let client = "127.0.0.3".parse().expect("an address");
    let http = "  mode http\n  option forwardfor\n  http-request set-header X-Forwarded-Proto http";
    for (protocol, frontend, server) in
        [(true, "  mode tcp", "send-proxy"), (true, "  mode tcp", "send-proxy-v2"), (false, http, "check inter 100ms")]
    {
        let config = format!(
            "[server]\nproxy_protocol = {protocol}\ntrusted_proxies = [\"127.0.0.1\"]\n{}",
            RepositoryConfig::new("hub").set("allow = [\"127.0.0.3\"]").upstream(&hub)
        );
        let larder = Larder::start(config).await;
        let haproxy = Haproxy::start(larder.door("registry"), frontend, server).await;
        let url = format!("http://{}/v2/hub/team/app/manifests/1", haproxy.address());
        // Which other headers a client adds makes no difference.
        let asked = request("GET", &url).header("x-forwarded-for", "10.1.2.3").from(client);
        let answer = asked.send().await;
        assert_eq!((answer.status, &answer.body[..]), (200, &image.manifest.bytes[..]), "{server}: {}", answer.text());
        let other = "127.0.0.4".parse().expect("an address");
        let stranger = request("GET", &url).header("x-forwarded-for", "127.0.0.3").from(other).send().await;
        assert!(matches!(stranger.status, 401 | 403), "{server}: {}", stranger.status);
        eventually("the log says so", async || larder.log().contains("\"client\":\"127.0.0.3")).await;
    }
}

/// A client takes 24 MB at 6 MB/s through a proxy that reads ahead no more than 1 MiB: Larder has to wait for it.
async fn slow_pull<P>(server: &str, larder_of: impl AsyncFn(SocketAddr) -> (P, SocketAddr)) -> bool {
    let (hub, image) = hub(24_000_000).await;
    let config = format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n{server}\n{}",
        RepositoryConfig::new("hub").upstream(&hub)
    );
    let larder = Larder::start(config).await;
    let digest = &image.layer_digests()[0];
    let warm = request("GET", larder.blob_url("hub/team/app", digest)).send().await;
    assert_eq!(warm.body, image.layers[0]);
    let (_proxy, address) = larder_of(larder.door("registry")).await;
    let url = format!("http://{address}/v2/hub/team/app/blobs/{digest}");
    let answer = request("GET", url).bytes_per_second(6_000_000).send().await;
    answer.complete() && answer.body == image.layers[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_above_the_buffer_of_the_real_nginx_reaches_a_slow_client() {
    // nginx reads until its temporary file is full, and then not before the client has taken all of it.
    let nginx = async |upstream: SocketAddr| {
        let nginx = Nginx::start(upstream, "proxy_buffering on;\nproxy_max_temp_file_size 12m;").await;
        let address = nginx.address();
        (nginx, address)
    };
    assert!(slow_pull("", nginx).await, "it is whole");
    // What happened before there was a long time to wait: nginx takes nothing for longer than that.
    assert!(!slow_pull("stall_timeout = \"1s\"", nginx).await, "the key means this wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_ends_after_the_time_of_its_key() {
    let (hub, _) = hub(1000).await;
    let config = format!("[server]\nidle_timeout = \"1s\"\n{}", RepositoryConfig::new("hub").upstream(&hub));
    let larder = Larder::start(config).await;
    let mut idle = TcpStream::connect(larder.door("registry")).await.expect("connected");
    idle.write_all(b"GET /v2/ HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), idle.read_to_end(&mut answer)).await;
    ended.expect("it ends in time").expect("it ends cleanly");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_may_ask_whether_the_door_is_open_without_a_login_and_by_any_name() {
    let (hub, _) = hub(1000).await;
    let (_dir, config) = with_logins(&hub, "");
    let larder = Larder::start(config.replace("\"anonymous\"", "\"user:bob\"")).await;
    for method in ["GET", "HEAD"] {
        let asked = request(method, format!("{}/healthz", larder.url())).header("host", "10-20-0-5.example");
        assert_eq!(asked.send().await.status, 200);
    }
    assert!(hub.requests().is_empty());
}

/// The lines of the first block of a language in the page about proxies.
fn recipe(language: &str) -> Vec<&'static str> {
    let page = include_str!("../docs/behind-a-proxy.md");
    let block = page.split("```").find_map(|block| block.strip_prefix(&format!("{language}\n")));
    block.expect("a recipe").lines().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recipes_for_nginx_haproxy_and_caddy_work() {
    let nginx = async |upstream: SocketAddr| {
        let lines = recipe("nginx");
        let is_own = |line: &&str| !line.contains("proxy_pass") && line.starts_with(' ');
        let directives: Vec<_> = lines.into_iter().filter(is_own).collect();
        let nginx = Nginx::start(upstream, &directives.join("\n")).await;
        let address = nginx.address();
        (nginx, address)
    };
    assert!(slow_pull("", nginx).await);
    let caddy = async |upstream: SocketAddr| {
        let recipe = recipe("caddy").join("\n");
        let site = |address: SocketAddr| {
            let here = recipe.replace("mirror.example.com", &format!("http://{address}"));
            here.replace("127.0.0.1:5000", &upstream.to_string())
        };
        let caddy = Caddy::start(site).await;
        let address = caddy.address();
        (caddy, address)
    };
    assert!(slow_pull("", caddy).await);

    let (hub, _) = hub(1000).await;
    let (_dir, config) = with_logins(&hub, "");
    let larder = Larder::start(config).await;
    let nginx = nginx(larder.door("registry")).await;
    let haproxy = Haproxy::start(larder.door("registry"), &recipe("haproxy").join("\n"), "").await;
    let caddy = caddy(larder.door("registry")).await;
    for address in [nginx.1, haproxy.address(), caddy.1] {
        let answer = request("GET", format!("http://{address}/v2/users/team/app/manifests/1")).send().await;
        let challenge = answer.header("www-authenticate");
        assert!(challenge.starts_with(&format!("Bearer realm=\"http://{address}/token\",")), "{challenge}");
    }
}
