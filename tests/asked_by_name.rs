//! Promise: a request says once and clearly for which host it is, and a name that somebody else made lead here gives a
//! page nothing.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{
    Answer, Authority, Connection, Hub, Image, Larder, Options, RepositoryConfig, https, raw, request,
};

async fn hub() -> (Hub, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

const TAG: &str = "/v2/hub/team/app/manifests/1";

/// The status line and the rest of an answer to these bytes.
async fn said(door: SocketAddr, head: &str) -> (u16, String) {
    let answer = raw(door, head.as_bytes(), Duration::from_secs(10)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.strip_prefix("HTTP/1.1 ").or(text.strip_prefix("HTTP/1.0 ")).and_then(|rest| rest.get(..3));
    (status.and_then(|status| status.parse().ok()).unwrap_or_default(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_names_one_host_and_no_other() {
    let (hub, _) = hub().await;
    let larder = Larder::start(RepositoryConfig::new("hub").upstream(&hub)).await;
    for (door, path) in [("registry", TAG), ("registry", "/v2/"), ("admin", "/api/images"), ("admin", "/healthz")] {
        let address = larder.door(door);
        let ask = async |target: &str, hosts: &str| {
            said(address, &format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{hosts}\r\n")).await
        };
        for hosts in [
            "",
            "Host:\r\n",
            "Host: \r\n",
            "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n",
            "Host: 127.0.0.1\r\nHost: evil.example\r\n",
            "Host: evil.example\r\nhost: 127.0.0.1\r\n",
            "Host: 127.0.0.1\r\nX: y\r\nHOST:\r\n",
            "Host: 127.0.0.1, 127.0.0.1\r\n",
            "Host: 127.0.0.1 evil.example\r\n",
            "Host: http://127.0.0.1\r\n",
            "Host: 127.0.0.1/x\r\n",
            "Host: geheim@127.0.0.1\r\n",
            "Host: me:geheim@127.0.0.1:5000\r\n",
            "Host: 127.0.0.1:x\r\n",
            "Host: 127.0.0.1:65536\r\n",
            "Host: 127.0.0.1:80:80\r\n",
            "Host: ::1\r\n",
            "Host: [::1\r\n",
            "Host: [::1]x\r\n",
            "Host: [fe80::1%1]\r\n",
            "Host: .\r\n",
            "Host: a%62c\r\n",
            "Host: a\"b\r\n",
            "Host: \u{e4}.example\r\n",
        ] {
            let (status, text) = ask(path, hosts).await;
            assert_eq!(status, 400, "{door}{path} {hosts:?}: {text}");
        }
        for (target, host) in [
            (format!("http://evil.example{path}"), "127.0.0.1"),
            (format!("http://127.0.0.1{path}"), "evil.example"),
            (format!("http://127.0.0.1:81{path}"), "127.0.0.1"),
            (format!("http://me:geheim@127.0.0.1{path}"), "127.0.0.1"),
            (format!("http://geheim@127.0.0.1{path}"), "geheim@127.0.0.1"),
        ] {
            let (status, text) = ask(&target, &format!("Host: {host}\r\n")).await;
            assert_eq!(status, 400, "{target} {host}: {text}");
        }
        // What is meant is plain.
        for (target, hosts) in [
            (path.to_owned(), "Host: 127.0.0.1\r\n"),
            (path.to_owned(), "Host: 127.0.0.1:5000\r\n"),
            (path.to_owned(), "Host: 127.0.0.1:\r\n"),
            (path.to_owned(), "Host: LocalHost:5000\r\n"),
            (path.to_owned(), "Host: localhost.\r\n"),
            (path.to_owned(), "Host: cache.localhost:5000\r\n"),
            (path.to_owned(), "Host: [::1]:5000\r\n"),
            (path.to_owned(), "Host: [::1]\r\n"),
            (path.to_owned(), "Host: 192.0.2.1\r\n"),
            (format!("http://127.0.0.1{path}"), "Host: 127.0.0.1:80\r\n"),
            (format!("http://LOCALHOST:5000{path}"), "Host: localhost:5000\r\n"),
        ] {
            let (status, text) = ask(&target, hosts).await;
            assert_eq!(status, 200, "{door} {target} {hosts:?}: {text}");
        }
    }
    // HTTP/1.0 knows no Host.
    let registry = larder.door("registry");
    assert_eq!(said(registry, &format!("GET {TAG} HTTP/1.0\r\n\r\n")).await.0, 200);
    assert_eq!(said(larder.door("admin"), "GET /healthz HTTP/1.0\r\n\r\n").await.0, 200);
    // HTTP/2 has an authority, and may have a Host that says the same.
    let url = larder.manifest_url("hub/team/app", "1");
    let own = registry.to_string();
    for (hosts, status) in [
        (vec![own.as_str()], 200),
        (vec![], 200),
        (vec!["evil.example"], 400),
        (vec!["127.0.0.1:1"], 400),
        (vec![own.as_str(), own.as_str()], 400),
        (vec![""], 400),
    ] {
        let asked = hosts.iter().fold(request("GET", &url).http2(), |asked, host| asked.header("host", host));
        let answer = asked.send().await;
        assert_eq!(answer.status, status, "{hosts:?}: {}", answer.text());
        assert!(status == 200 || answer.json()["errors"][0]["message"].as_str().is_some_and(|text| !text.is_empty()));
    }
    assert!(!larder.log().contains("geheim"));
}

/// Asks by another name than its address.
async fn by_name(method: &str, url: &str, name: &str) -> Answer {
    request(method, url).header("host", name).send().await
}

/// The same over HTTP/2, where the name is in the URL.
async fn by_name_over_http2(url: &str, name: &str) -> Answer {
    let connection = Connection::http2(url).await;
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    request("GET", format!("http://{name}/{path}")).http2().send_on(&connection).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_somebody_else_that_leads_here_leads_to_nothing() {
    let (hub, image) = hub().await;
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    let larder = Larder::start(&repository).await;
    let tag = larder.manifest_url("hub/team/app", "1");
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    assert_eq!(request("GET", &layer).send().await.status, 200);
    let upstream = hub.requests().len();
    let pages = [
        tag.clone(),
        larder.manifest_url("hub/team/app", &image.manifest.digest),
        layer,
        format!("{}/v2/", larder.url()),
        format!("{}/v2", larder.url()),
        format!("{}/v2/_catalog", larder.url()),
        format!("{}/v2/hub/team/app/tags/list", larder.url()),
        format!("{}/hub/v2/team/app/manifests/1", larder.url()),
    ];
    for url in &pages {
        for name in
            ["evil.example", "evil.example:5000", "localhost.evil.example", "evil", "127.0.0.1.nip.example", "127.1"]
        {
            let refused = by_name("GET", url, name).await;
            assert_eq!((refused.status, refused.error_code().as_str()), (403, "DENIED"), "{url} {name}");
            let text = refused.text();
            assert!(text.contains("server.hosts") && text.contains("server.trusted_proxies"), "{text}");
            assert_eq!(by_name("HEAD", url, name).await.status, 403, "{url} {name}");
            assert_eq!(by_name_over_http2(url, name).await.status, 403, "{url} {name}");
        }
        for name in ["localhost:5000", "cache.localhost", "[::1]:5000"] {
            assert_eq!(by_name("GET", url, name).await.status, 200, "{url} {name}");
            assert_eq!(by_name_over_http2(url, name).await.status, 200, "{url} {name}");
        }
    }
    let asked = hub.requests().split_off(upstream);
    assert!(!asked.iter().any(|request| request.path.contains("blobs")), "nothing is fetched for a page");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_configured_are_answered() {
    let (hub, _) = hub().await;
    let repository = RepositoryConfig::new("hub").set("hosts = [\"hub.mirror.example\"]").upstream(&hub).to_string();
    for (server, answered, refused) in [
        ("", &["hub.mirror.example", "HUB.mirror.example:5000"][..], &["mirror.lan", "mirror.example"][..]),
        (
            "hosts = [\"Mirror.lan\", \"*.corp.example\"]",
            &["mirror.lan", "mirror.lan:5000", "mirror.lan.", "a.corp.example", "hub.mirror.example"],
            &["corp.example", "evil.example", "mirror.lan.evil.example"],
        ),
        ("hosts = [\"mirror.lan:5000\"]", &["mirror.lan:5000"], &["mirror.lan:5001"]),
        ("trusted_proxies = [\"127.0.0.1\"]", &["mirror.lan", "evil.example"], &[]),
        ("trusted_proxies = [\"10.0.0.1\"]", &["hub.mirror.example"], &["mirror.lan"]),
    ] {
        let larder = Larder::start(format!("[server]\n{server}\n{repository}")).await;
        for (names, status) in [(answered, 200), (refused, 403)] {
            for name in names {
                let prefix = if name.to_lowercase().starts_with("hub.") { "" } else { "hub/" };
                let url = format!("{}/v2/{prefix}team/app/manifests/1", larder.url());
                assert_eq!(by_name("GET", &url, name).await.status, status, "{server} {name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_to_log_in_is_asked_to_by_whatever_name() {
    let (hub, _) = hub().await;
    let dir = TempDir::new().expect("a directory");
    let hash = bcrypt::hash_with_result("secret", 5).expect("hashed").format_for_version(bcrypt::Version::TwoY);
    std::fs::write(dir.path().join("htpasswd"), format!("bob:{hash}\n")).expect("written");
    let table = format!("[auth.htpasswd]\npath = \"{}\"\n", dir.path().join("htpasswd").display());
    let larder = Larder::start(table + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    for url in [larder.manifest_url("hub/team/app", "1"), format!("{}/v2/", larder.url())] {
        let asked = by_name("GET", &url, "mirror.lan").await;
        assert_eq!(asked.status, 401, "{}", asked.text());
        let told = request("GET", &url).header("host", "mirror.lan").header("authorization", "Basic Ym9iOnNlY3JldA==");
        let told = told.send().await;
        assert_eq!(told.status, 403);
        assert!(told.text().contains("server.hosts"), "{}", told.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_certificate_says_which_name_is_meant() {
    let (hub, _) = hub().await;
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new(dir.path(), "web");
    let own = authority.issue("mirror.lan");
    let tls = format!(
        "[server.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n",
        own.certificate.display(),
        own.key.display()
    );
    let larder = Larder::start(tls + &RepositoryConfig::new("hub").upstream(&hub).to_string()).await;
    let door = larder.door("registry");
    let client = https(&authority.file(), None).resolve("mirror.lan", door).build().expect("a client");
    let answer = client.get(format!("https://mirror.lan:{}{TAG}", door.port())).send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_door_is_asked_by_the_names_that_it_has() {
    let (hub, _) = hub().await;
    let repository = RepositoryConfig::new("hub").upstream(&hub).to_string();
    for (admin, answered, refused) in [
        ("", &["localhost", "x.localhost:1", "[::1]", "10.0.0.1:17081"][..], &["larder", "evil.example"][..]),
        (
            "hosts = [\"larder\", \"larder.monitoring.svc\", \"*.corp.example\"]",
            &["larder:17081", "LARDER", "larder.monitoring.svc", "a.corp.example", "127.0.0.1"],
            &["evil.example", "larder.evil.example", "monitoring.svc"],
        ),
    ] {
        let larder = Larder::start(format!("[admin]\n{admin}\n{repository}")).await;
        for page in ["metrics", "api/images", "api/cache/stats"] {
            let url = format!("{}/{page}", larder.admin_url());
            for (names, status) in [(answered, 200), (refused, 403)] {
                for name in names {
                    assert_eq!(by_name("GET", &url, name).await.status, status, "{admin} {page} {name}");
                }
            }
        }
        // Whether it is well may be asked by any name.
        assert_eq!(by_name("GET", &format!("{}/healthz", larder.admin_url()), "evil.example").await.status, 200);
        // A page of its own may do what a page of another place may not.
        let clear = |host: &str, origin: &str| {
            request("DELETE", format!("{}/api/cache", larder.admin_url())).header("host", host).header("origin", origin)
        };
        assert_eq!(clear("localhost:17081", "http://localhost:17081").send().await.status, 200);
        assert_eq!(clear("localhost:17081", "http://LOCALHOST:17081").send().await.status, 200);
        for (host, origin) in [
            ("localhost:17081", "http://localhost:17082"),
            ("localhost:17081", "http://evil.example"),
            ("localhost:80", "https://localhost"),
            ("localhost:17081", "null"),
            ("localhost:17081", ""),
            ("evil.example", "http://evil.example"),
        ] {
            assert_eq!(clear(host, origin).send().await.status, 403, "{host} {origin}");
        }
    }
}
