//! Promise: what the configuration holds to log in somewhere goes there, to read, and nowhere else.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tempfile::TempDir;

use crate::support::{
    Answer, Authority, Browser, Fault, Hub, Image, Larder, On, Options, Origin, Page, RepositoryConfig, Seen, TlsFront,
    eventually, get, request,
};

const DOOR: &str = "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n";
const NAME: &str = "team/app";
const PRIVATE: &str = "team/private";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Two headers of the configuration that log in; the second is what Artifactory takes for a password.
const SET: &str = "Authorization = \"Bearer canary-set\"\nX-JFrog-Art-Api = \"canary-key\"";
const APPENDED: &str = "X-More = \"canary-appended\"";

/// Whether any header of a request holds a secret of the tests.
fn carries(seen: &Seen) -> bool {
    seen.headers.values().any(|value| String::from_utf8_lossy(value.as_bytes()).contains("canary"))
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

fn htpasswd(dir: &Path, users: &[&str]) -> String {
    let file = dir.join("htpasswd");
    let lines = users.iter().map(|user| format!("{user}:{}\n", bcrypt::hash("right", 4).expect("a hash")));
    std::fs::write(&file, lines.collect::<String>()).expect("written");
    format!("[auth.htpasswd]\npath = \"{}\"\n", file.display())
}

type Sent = (&'static str, String, Vec<(&'static str, &'static str)>, &'static str, bool);

/// What a client of the proxy door may send: method, path, headers, body, and whether the configuration's headers
/// go with it.
fn requests() -> Vec<Sent> {
    let manifest = format!("/v2/{NAME}/manifests/1");
    let mut all = Vec::new();
    let reads = [
        "/v2/".to_owned(),
        manifest.clone(),
        format!("/v2/{NAME}/manifests/{DIGEST}"),
        format!("/v2/{NAME}/blobs/{DIGEST}"),
        format!("/v2/{NAME}/tags/list?n=2&last=scope"),
        format!("/v2/{NAME}/referrers/{DIGEST}?artifactType=x"),
        "/files/a.tgz".to_owned(),
    ];
    for path in &reads {
        for method in ["GET", "HEAD", "OPTIONS"] {
            all.push((method, path.clone(), vec![], "", true));
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "MOVE", "LINK", "TRACK", "GETX", "get"] {
            all.push((method, path.clone(), vec![], "", false));
        }
        all.push(("GET", path.clone(), vec![("connection", "upgrade"), ("upgrade", "loud")], "", false));
        all.push(("GET", path.clone(), vec![], "a body", false));
    }
    // Token services, uploads, other pages, and paths that only look like those of a registry.
    for path in [
        "/token?service=x&scope=repository:team/app:pull,push",
        "/token?service=x&scope=repository:team/app:pull",
        "/v2/token?scope=repository:team/app:push",
        "/v2/token",
        "/v2/auth?scope=registry:catalog:*",
        "/service/token?scope=repository:team/app:pull,push",
        "/jwt/auth?scope=repository:team/app:delete",
        "/oauth2/token",
        "/v2/team/app/blobs/uploads/",
        "/v2/team/app/blobs/uploads/1234?digest=x",
        "/api/security/apiKey",
        "/",
        "/V2/team/app/manifests/1",
        "//v2/team/app/manifests/1",
        "/v2/../api/keys",
        "/v2/%2e%2e/api/keys",
        "/v2/%2E%2e/token?scope=x",
        "/v2/team/app/..%2f..%2f..%2ftoken/tags/list",
        "/v2/..;/token",
        "/v2/team/..;/..;/token/tags/list",
        "/x/v2/team/app/manifests/1",
        "/%76%32/team/app/manifests/1",
        "/files/a.tgz?scope=repository:team/app:push",
        "/files/a.tgz?x=1;Scope=repository:team/app:push",
        "/files/a.tgz?%73cope=repository:team/app:push",
        // Paths that match the pattern and hide another one.
        "/files/..%2fadmin%2fa.tgz",
        "/files/..%5cadmin/a.tgz",
        "/files/..;/admin/a.tgz",
        "/admin%3fx=.tgz",
        "/admin%23x.tgz",
    ] {
        for method in ["GET", "HEAD", "OPTIONS", "POST"] {
            all.push((method, path.to_owned(), vec![], "", false));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_configuration_go_with_reads_of_a_registry_and_with_nothing_else() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new(dir.path(), "upstream");
    let (plain, secure) = (Origin::http().await, Origin::https(&authority.issue("127.0.0.1")).await);
    let (a, b) = (plain.address(), secure.address());
    let config = format!(
        "{DOOR}upstream_ca_bundle = \"{}\"\n[cache]\npatterns = [\"\\\\.tgz$\"]\n[allowlist]\ndomains = [\"{a}\", \"{b}\"]\n[headers.\"{a}\".set]\n{SET}\n[headers.\"{b}\".set]\n{SET}\n[headers.\"{a}\".append]\n{APPENDED}\n[headers.\"{b}\".append]\n{APPENDED}",
        authority.file().display()
    );
    let larder = Larder::start(config).await;
    let (h1, h2) = (Browser::new(&larder, None), Browser::http2(&larder));
    for (method, path, headers, body, expected) in requests() {
        let is_upgrade = headers.iter().any(|(name, _)| *name == "upgrade");
        for way in ["absolute", "tunnel", "h2"] {
            let origin = if way == "absolute" { &plain } else { &secure };
            if way == "h2" && (is_upgrade || method == "get") {
                continue;
            }
            origin.take_requests();
            let what = format!("{method} {path} {headers:?} {body:?} {way}");
            let answer = match way {
                "absolute" => send_raw(&larder, method, &format!("http://{a}{path}"), &headers, body).await,
                _ => {
                    let browser = if way == "h2" { &h2 } else { &h1 };
                    let answer = browser.try_send(method, origin.url(&path), &headers, body).await;
                    answer.map(|answer| format!("{:?}{}", answer.headers, answer.text())).unwrap_or_default()
                }
            };
            assert!(!answer.contains("canary"), "{what}: {answer}");
            let asked = origin.take_requests();
            // What a HEAD was told over HTTP/1.1 serves for a moment.
            if method == "HEAD" && way == "h2" && asked.is_empty() {
                continue;
            }
            assert!(!asked.is_empty() || !expected, "{what} does not arrive: {answer}");
            assert_eq!(asked.iter().any(carries), expected, "{what}: {asked:?}");
        }
    }
    assert!(!larder.log().contains("canary"), "values are secrets");
}

/// One request in absolute form, as it is written, and all that comes back.
async fn send_raw(larder: &Larder, method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> String {
    let host = url.split('/').nth(2).expect("a host");
    let is_upgrade = headers.iter().any(|(name, _)| *name == "upgrade");
    let mut head = format!("{method} {url} HTTP/1.1\r\nhost: {host}\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if !is_upgrade {
        head += "connection: close\r\n";
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    let deadline = std::time::Duration::from_millis(if is_upgrade { 300 } else { 10_000 });
    let answer = crate::support::raw(larder.door("proxy"), format!("{head}\r\n{body}").as_bytes(), deadline).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_with_the_configurations_headers_is_that_read_and_no_other() {
    let origin = Origin::http().await;
    let place = origin.address();
    let config = format!(
        "{DOOR}[allowlist]\ndomains = [\"{place}\"]\n[headers.\"{place}\".set]\n{SET}\n[headers.\"{place}\".append]\n{APPENDED}"
    );
    let larder = Larder::start(config).await;
    // With which frameworks and gateways are told to do something else than the request line says.
    for (name, value) in [
        ("x-http-method-override", "DELETE"),
        ("x-http-method", "PUT"),
        ("x-method-override", "POST"),
        ("x-original-url", "/token?scope=repository:team/app:push"),
        ("x-rewrite-url", "/token?scope=repository:team/app:push"),
        ("x-original-method", "PUT"),
        ("x-forwarded-uri", "/token"),
        ("x-forwarded-prefix", "/token"),
        ("x-forwarded-host", "other.example"),
        ("x-host", "other.example"),
        ("forwarded", "host=other.example"),
        ("x-something-new", "evil"),
    ] {
        let url = origin.url("/v2/_catalog");
        let asked = request("GET", url).header(name, value).header("accept", "x/y").header("x-more", "mine");
        asked.through_proxy(larder.door("proxy")).send().await;
        let asked = origin.take_requests();
        assert!(asked.len() == 1 && carries(&asked[0]), "{name}: {asked:?}");
        assert_eq!((asked[0].header(name), asked[0].header("accept")), ("", "x/y"), "{name}");
        let more: Vec<_> = asked[0].headers.get_all("x-more").iter().filter_map(|value| value.to_str().ok()).collect();
        assert_eq!(more, ["mine", "canary-appended"], "what is appended stands beside the client's own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_shows_no_secret_and_goes_no_further_than_it_may() {
    let origin = Origin::http().await;
    let place = origin.address();
    let config = format!("{DOOR}[allowlist]\ndomains = [\"{place}\"]\n[headers.\"{place}\".set]\n{SET}");
    let larder = Larder::start(config).await;
    for (method, left) in [("TRACE", "0"), ("OPTIONS", "0"), ("TRACE", "1"), ("OPTIONS", "1"), ("TRACE", "2")] {
        let asked = request(method, origin.url("/v2/")).header("max-forwards", left);
        let answer = asked.through_proxy(larder.door("proxy")).send().await;
        let asked = origin.take_requests();
        assert!(!answer.text().contains("canary") && !format!("{:?}", answer.headers).contains("canary"));
        assert_eq!(asked.len(), usize::from(left != "0"), "{method} {left}: {asked:?}");
        if let Some(asked) = asked.first() {
            let less = (left.parse::<u8>().expect("a number") - 1).to_string();
            assert_eq!(asked.header("max-forwards"), less);
            assert_eq!(carries(asked), method == "OPTIONS");
        }
    }
}

/// A hub for whose private repository the configuration has a login in `[headers]`; only bob may use it.
async fn scene_for_bob(more: &str) -> (Hub, Larder, Image, TempDir) {
    let dir = TempDir::new().expect("a directory");
    let options = Options::with_basic("x", "x").user("me", "mine").private(PRIVATE, "me");
    let hub = Hub::start(options).await;
    let image = Image::new(1);
    hub.push_image(PRIVATE, "1", &image);
    let headers = format!("[headers.\"{}\".set]\nAuthorization = \"{}\"", hub.address(), basic("me:mine"));
    let door = format!("{DOOR}allow = [\"anonymous\"]\n{more}");
    let repository = RepositoryConfig::new("hub").set("allow = [\"user:bob\"]").upstream(&hub);
    let config = format!("{repository}\n{door}\n{headers}\n{}", htpasswd(dir.path(), &["bob", "eve"]));
    let larder = Larder::start(config).await;
    (hub, larder, image, dir)
}

async fn as_proxy_user(larder: &Larder, user: &str, method: &str, url: &str) -> Answer {
    let asked = request(method, url).through_proxy(larder.door("proxy"));
    let login = basic(&format!("{user}:right"));
    let asked = if user.is_empty() { asked } else { asked.header("proxy-authorization", login) };
    asked.send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_repository_does_not_name_gets_nothing_by_the_configurations_headers() {
    let (hub, larder, image, _dir) = scene_for_bob("").await;
    let secret = basic("me:mine");
    let url = |rest: &str| format!("{}/v2/{PRIVATE}/{rest}", hub.url());
    let urls = [
        url("manifests/1"),
        url(&format!("manifests/{}", image.manifest.digest)),
        url(&format!("blobs/{}", image.layer_digests()[0])),
        url("tags/list"),
        format!("{}/v2/", hub.url()),
    ];
    // Also when it is cached.
    for _ in 0..2 {
        for user in ["", "eve"] {
            for url in &urls {
                for method in ["GET", "HEAD"] {
                    let answer = as_proxy_user(&larder, user, method, url).await;
                    assert_eq!(answer.status, 401, "{method} {url} as {user:?}: {}", answer.text());
                }
            }
        }
        let asked = hub.take_requests();
        assert!(asked.iter().all(|request| request.header("authorization") != Some(&secret)), "{asked:?}");
        for url in &urls {
            let answer = as_proxy_user(&larder, "bob", "GET", url).await;
            assert_eq!(answer.status, 200, "{url}: {}", answer.text());
        }
        assert!(hub.take_requests().iter().any(|request| request.header("authorization") == Some(&secret)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_registry_gone_nobody_is_told_that_the_configurations_headers_brought_something_in() {
    let (mut hub, larder, image, _dir) = scene_for_bob("").await;
    let tag = format!("{}/v2/{PRIVATE}/manifests/1", hub.url());
    let base = format!("{}/v2/", hub.url());
    let layer = format!("{}/v2/{PRIVATE}/blobs/{}", hub.url(), image.layer_digests()[0]);
    for url in [&tag, &layer] {
        assert_eq!(as_proxy_user(&larder, "bob", "GET", url).await.status, 200);
    }
    hub.stop().await;
    eventually("it is served to bob", async || {
        as_proxy_user(&larder, "bob", "GET", &tag).await.header("x-cache") == "STALE"
    })
    .await;
    for url in [&tag, &layer, &base] {
        assert_eq!(as_proxy_user(&larder, "", "GET", url).await.status, 502, "{url}");
    }
    assert_eq!(as_proxy_user(&larder, "bob", "GET", &base).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pattern_keeps_with_the_configurations_headers_is_for_those_who_get_them() {
    let dir = TempDir::new().expect("a directory");
    let origin = Origin::http().await;
    let place = origin.address();
    origin.put("/a.tgz", Page::new("private").header("cache-control", "max-age=3600").header("etag", "\"1\""));
    let repository = RepositoryConfig::new("x").set("allow = [\"user:bob\"]").upstream_url(&origin.url(""), "");
    let rest = |headers: &str| {
        format!(
            "{repository}\n{DOOR}allow = [\"anonymous\"]\n[cache]\npatterns = [\"\\\\.tgz$\"]\n{headers}\n{}",
            htpasswd(dir.path(), &["bob"])
        )
    };
    let mut larder = Larder::start(rest(&format!("[headers.\"{place}\".set]\n{SET}"))).await;
    let url = origin.url("/a.tgz");
    eventually("it is kept", async || as_proxy_user(&larder, "bob", "GET", &url).await.header("x-cache") == "HIT")
        .await;
    let asked = origin.take_requests();
    assert!(asked.iter().all(carries), "{asked:?}");
    origin.put("/a.tgz", Page::new("log in").status(401));
    let answer = as_proxy_user(&larder, "", "GET", &url).await;
    assert_eq!((answer.status, answer.text().as_str()), (401, "log in"));
    assert!(!origin.take_requests().iter().any(carries));
    assert_eq!(as_proxy_user(&larder, "bob", "GET", &url).await.text(), "private");
    // Nor to everybody once the headers are gone.
    larder.write_config(rest(""));
    let is_refused = async || as_proxy_user(&larder, "bob", "GET", &url).await.status == 401;
    eventually("the server itself is asked", is_refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_does_not_read_elsewhere_with_the_headers_for_another_host() {
    let (image, private) = (Image::new(1), Image::new(2));
    let a = Hub::start(Options::default()).await;
    let b = Hub::start(Options::with_basic("x", "x").user("me", "mine").private(PRIVATE, "me")).await;
    a.push_image(NAME, "1", &image);
    b.push_image(PRIVATE, "1", &private);
    let secret = basic("me:mine");
    let headers = format!(
        "[headers.\"{}\".set]\nAuthorization = \"{secret}\"\n[headers.\"{}\".append]\nX-Key = \"canary\"",
        b.address(),
        b.address()
    );
    let config = format!(
        "{}\n{DOOR}\n[allowlist]\ndomains = [\"{}\"]\n{headers}",
        RepositoryConfig::new("a").upstream(&a),
        b.address()
    );
    let larder = Larder::start(config).await;
    let there = |rest: &str| format!("{}/v2/{PRIVATE}/{rest}", b.url());
    let layer = private.layer_digests()[0].clone();
    let digest = private.manifest.digest.clone();
    for (kind, rest) in [
        (On::blob(), format!("blobs/{layer}")),
        (On::manifest(), format!("manifests/{digest}")),
        (On::manifest(), "manifests/1".to_owned()),
        (On::tags(), "tags/list".to_owned()),
    ] {
        let redirect = Fault::reply(307, &[("location", &there(&rest))], "");
        a.fault(kind, redirect);
        for method in ["HEAD", "GET"] {
            let stolen = request(method, format!("{}/v2/a/{NAME}/{rest}", larder.url())).send().await;
            assert!(stolen.status >= 400, "{method} {rest}: {} {}", stolen.status, stolen.text());
            let through = request(method, format!("{}/v2/{NAME}/{rest}", a.url()));
            let through = through.through_proxy(larder.door("proxy")).send().await;
            assert_ne!(through.status, 200, "{method} {rest}: {}", through.text());
        }
        a.clear_faults();
    }
    // Nor by naming its token service.
    let challenge = format!("Bearer realm=\"{}/v2/\",service=\"x\"", b.url());
    a.fault(On::any(), Fault::reply(401, &[("www-authenticate", &challenge)], ""));
    assert!(get(larder.manifest_url(&format!("a/{NAME}"), "1")).await.status >= 400);
    let asked = b.take_requests();
    assert!(!asked.is_empty(), "it was led there");
    for request in asked {
        assert!(request.header("authorization") != Some(&secret) && request.header("x-key").is_none(), "{request:?}");
    }
    // Whoever asks that host itself gets them.
    let own = request("GET", there("manifests/1")).through_proxy(larder.door("proxy")).send().await;
    assert_eq!(own.body, private.manifest.bytes);
    assert!(b.take_requests().iter().all(|request| request.header("x-key") == Some("canary")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_comes_back_brings_no_credentials_along() {
    let a = Hub::start(Options::with_basic("me", "mine")).await;
    let b = Hub::start(Options::default()).await;
    let image = Image::new(1);
    let layer = image.layer_digests()[0].clone();
    a.push_image(NAME, "1", &image);
    let upstream = "username = \"me\"\npassword = \"mine\"\nheaders = { X-Key = \"canary\" }";
    let headers = format!("[headers.\"{}\".set]\nX-Other = \"canary\"", a.address());
    let config = format!("{}\n{headers}", RepositoryConfig::new("a").upstream_with(&a, upstream));
    let larder = Larder::start(config).await;
    assert_eq!(get(larder.manifest_url(&format!("a/{NAME}"), "1")).await.status, 200);
    assert!(a.take_requests().iter().all(|request| request.header("x-key").is_some()));
    let back = format!("{}/api/delete-everything", a.url());
    a.fault(On::blob(), Fault::reply(307, &[("location", &format!("{}/x", b.url()))], ""));
    b.fault(On::any(), Fault::reply(307, &[("location", &back)], ""));
    get(larder.blob_url(&format!("a/{NAME}"), &layer)).await;
    let asked = a.take_requests();
    let (came_back, first): (Vec<_>, Vec<_>) = asked.iter().partition(|request| request.path.starts_with("/api"));
    assert!(!came_back.is_empty() && !first.is_empty(), "{asked:?}");
    for request in came_back.into_iter().chain(&b.take_requests()) {
        for name in ["authorization", "x-key", "x-other"] {
            assert_eq!(request.header(name), None, "{request:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_to_its_upstream_and_to_nobody_it_redirects_to() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new(dir.path(), "ca");
    let client = authority.issue("client");
    let (a, b) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let (image, private) = (Image::new(1), Image::new(2));
    a.push_image(NAME, "1", &image);
    b.push_image(PRIVATE, "1", &private);
    let server = authority.issue("127.0.0.1");
    let front = TlsFront::start(&a, &server, Some(&authority)).await;
    let other = TlsFront::start(&b, &server, Some(&authority)).await;
    let keys = format!(
        "server_ca_bundle = \"{}\"\nclient_certificate = \"{}\"\nclient_private_key = \"{}\"",
        authority.file().display(),
        client.certificate.display(),
        client.key.display()
    );
    let larder = Larder::start(RepositoryConfig::new("a").upstream_url(&front.url(), &keys)).await;
    assert_eq!(get(larder.manifest_url(&format!("a/{NAME}"), "1")).await.body, image.manifest.bytes);
    let layer = private.layer_digests()[0].clone();
    let there = format!("{}/v2/{PRIVATE}/blobs/{layer}", other.url());
    a.fault(On::blob(), Fault::reply(307, &[("location", &there)], ""));
    let stolen = get(larder.blob_url(&format!("a/{NAME}"), &layer)).await;
    assert!(stolen.status >= 400, "{}", stolen.status);
    assert!(b.requests().is_empty(), "{:?}", b.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_clients_come_with_their_own_credentials_the_configurations_headers_stay_away() {
    let hub = Hub::start(Options::with_tokens().user("me", "mine").private(PRIVATE, "me")).await;
    let image = Image::new(1);
    hub.push_image(PRIVATE, "1", &image);
    let headers = format!("[headers.\"{}\".set]\nX-JFrog-Art-Api = \"canary\"", hub.address());
    let repository = RepositoryConfig::new("hub")
        .set("client_credentials = \"pass\"")
        .upstream_with(&hub, "headers = { X-Api-Key = \"canary\" }");
    let larder = Larder::start(format!("{repository}\n{DOOR}\n{headers}")).await;
    for who in ["", "me:mine"] {
        for rest in ["manifests/1".to_owned(), format!("blobs/{}", image.layer_digests()[0]), "tags/list".to_owned()] {
            for (url, proxy) in [
                (format!("{}/v2/hub/{PRIVATE}/{rest}", larder.url()), None),
                (format!("{}/v2/{PRIVATE}/{rest}", hub.url()), Some(larder.door("proxy"))),
            ] {
                let asked = request("GET", &url);
                let asked = if who.is_empty() { asked } else { asked.header("authorization", basic(who)) };
                let asked = if let Some(proxy) = proxy { asked.through_proxy(proxy) } else { asked };
                let answer = asked.send().await;
                assert!(who == "me:mine" || answer.status >= 400, "{url}: {}", answer.status);
            }
        }
    }
    let asked = hub.take_requests();
    assert!(asked.len() > 4);
    for request in asked {
        assert!(!format!("{:?}", request.headers).contains("canary"), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_an_upstream_are_for_reading_at_the_proxy_door_too() {
    let dir = TempDir::new().expect("a directory");
    let origin = Origin::http().await;
    let upstream = "headers = { X-JFrog-Art-Api = \"canary\" }\nconnect_timeout = \"2s\"";
    let repository = RepositoryConfig::new("x").set("allow = [\"user:bob\"]").upstream_url(&origin.url(""), upstream);
    let config = format!("{repository}\n{DOOR}allow = [\"anonymous\"]\n{}", htpasswd(dir.path(), &["bob"]));
    let larder = Larder::start(config).await;
    for user in ["", "bob"] {
        for (method, path, is_read) in [
            ("GET", "/v2/".to_owned(), true),
            ("OPTIONS", "/v2/".to_owned(), true),
            ("GET", format!("/v2/{NAME}/manifests/1"), true),
            ("HEAD", format!("/v2/{NAME}/blobs/{DIGEST}"), true),
            ("GET", format!("/v2/{NAME}/tags/list"), true),
            ("TRACE", "/v2/".to_owned(), false),
            ("PUT", format!("/v2/{NAME}/manifests/1"), false),
            ("DELETE", format!("/v2/{NAME}/manifests/1"), false),
            ("GET", "/token?scope=repository:x:push".to_owned(), false),
            ("GET", "/api/keys".to_owned(), false),
        ] {
            as_proxy_user(&larder, user, method, &origin.url(&path)).await;
            let asked = origin.take_requests();
            assert!(!asked.is_empty(), "{method} {path}");
            assert_eq!(asked.iter().any(carries), is_read && user == "bob", "{method} {path} as {user:?}: {asked:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_is_told_beside_the_url_is_in_nobody_elses_answer() {
    let origin = Origin::http().await;
    let place = origin.address();
    let config = format!("{DOOR}[allowlist]\ndomains = [\"{place}\"]\n[cache]\npatterns = [\"\\\\.tgz$\"]");
    let larder = Larder::start(config).await;
    // James Kettle, "Practical Web Cache Poisoning" (2018): inputs that servers reflect and caches do not look at.
    for (at, name) in [
        "x-forwarded-host",
        "x-host",
        "x-original-url",
        "x-rewrite-url",
        "x-forwarded-proto",
        "x-forwarded-scheme",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-server",
        "forwarded",
        "x-http-method-override",
        "x-forwarded-for",
        "x-real-ip",
        "true-client-ip",
        "referer",
        "origin",
        "user-agent",
        "x-evil",
        "content-type",
        "max-forwards",
        "from",
        "x-api-key",
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{at}.tgz");
        let page = Page::new("for all ").header("cache-control", "max-age=3600").header("etag", "\"1\"");
        origin.put(&path, page.reflects());
        let url = origin.url(&path);
        let send = async |poison: bool| {
            let asked = request("GET", &url).through_proxy(larder.door("proxy"));
            let asked = if poison { asked.header(name, "evil.example") } else { asked };
            asked.send().await
        };
        for _ in 0..3 {
            assert_eq!(send(true).await.status, 200);
        }
        let answer = send(false).await;
        assert!(answer.text().starts_with("for all") && !answer.text().contains("evil"), "{name}: {}", answer.text());
        eventually("it is kept", async || send(false).await.header("x-cache") == "HIT").await;
        assert!(!send(false).await.text().contains("evil"), "{name}");
    }
    let bytes = Bytes::from_static(b"?");
    // A body is nothing to tell apart by either.
    origin.put("/body.tgz", Page::new("for all ").header("cache-control", "max-age=3600").reflects());
    for browser in [Browser::new(&larder, None)] {
        browser.send("GET", origin.url("/body.tgz"), &[], bytes.clone()).await;
    }
    let answer = request("GET", origin.url("/body.tgz")).through_proxy(larder.door("proxy")).send().await;
    assert_eq!(answer.header("x-cache"), "MISS", "{}", answer.text());
}
