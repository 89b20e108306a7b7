//! Promise: bad input gets the right 4xx or a closed connection; never a 5xx, never a crash, and never
//! a request to anywhere.

use std::time::Duration;

use crate::support::{
    Fault, Hub, Image, Larder, On, Options, RepositoryConfig, eventually, get, raw, repository_config, request,
};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

async fn scene() -> (Hub, Larder, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let config = format!("[server]\ndefault_repository = \"\"\n{}", repository_config("hub", &[&hub]));
    let larder = Larder::start(&config).await;
    (hub, larder, image)
}

/// The status of a request whose target is sent byte for byte.
async fn status_of(larder: &Larder, method: &str, target: &[u8], more: &str) -> Option<u16> {
    let mut bytes = format!("{method} ").into_bytes();
    bytes.extend_from_slice(target);
    bytes.extend_from_slice(format!(" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n").as_bytes());
    let answer = raw(larder.door("registry"), &bytes, Duration::from_secs(10)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

async fn still_serves(larder: &mut Larder, image: &Image) {
    assert!(larder.is_running());
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.body, image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_references_are_told_apart() {
    let (hub, mut larder, image) = scene().await;
    let long_tag = "a".repeat(129);
    let long_name = "a/".repeat(600);
    for (path, status, code) in [
        ("/v2/hub/UPPER/manifests/1", 400, "NAME_INVALID"),
        ("/v2/hub/a..b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/hub/a%2Fb/manifests/1", 400, "NAME_INVALID"),
        ("/v2/hub/a%00b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/hub/%ff/manifests/1", 400, "NAME_INVALID"),
        ("/v2/hub//manifests/1", 400, "NAME_INVALID"),
        (&format!("/v2/hub/{long_name}x/manifests/1"), 400, "NAME_INVALID"),
        ("/v2/hub/team/app/manifests/-tag", 400, "TAG_INVALID"),
        (&format!("/v2/hub/team/app/manifests/{long_tag}"), 400, "TAG_INVALID"),
        ("/v2/hub/team/app/manifests/sha256:xyz", 400, "DIGEST_INVALID"),
        ("/v2/hub/team/app/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"),
        ("/v2/hub/team/app/blobs/latest", 400, "DIGEST_INVALID"),
        (&format!("/v2/hub/team/app/blobs/{}", DIGEST.to_uppercase()), 400, "DIGEST_INVALID"),
        ("/v2/hub/team/app/referrers/sha256:1", 400, "DIGEST_INVALID"),
        ("/v2/nowhere/app/manifests/1", 404, "NAME_UNKNOWN"),
        ("/v2/team/app/manifests/1?ns=evil.invalid", 404, "NAME_UNKNOWN"),
        ("/v2/hub/team/app/manifests/1?ns=", 404, "NAME_UNKNOWN"),
        ("/v2/hub/team/app/other/1", 404, "NAME_UNKNOWN"),
        ("/evil/v2/", 404, "NAME_UNKNOWN"),
        ("/", 404, "NAME_UNKNOWN"),
    ] {
        let answer = get(format!("{}{path}", larder.url())).await;
        assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{path}");
        assert!(!answer.json()["errors"][0]["message"].as_str().unwrap_or_default().is_empty(), "{path}");
    }
    assert_eq!(hub.requests().len(), 0, "{}", hub.summary());
    still_serves(&mut larder, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_get_a_4xx_or_a_closed_connection() {
    let (hub, mut larder, image) = scene().await;
    let deep = format!("/v2/hub{}/manifests/1", "/a".repeat(10_000));
    let long = format!("/v2/hub/{}/manifests/1", "a".repeat(100 << 10));
    let big_header = format!("X-Big: {}\r\n", "b".repeat(100 << 10));
    let many_headers: String = (0..5_000).map(|at| format!("X-{at}: 1\r\n")).collect();
    let ok = "/v2/hub/team/app/manifests/1";
    for (method, target, more) in [
        ("GET", &b"/v2/hub/a\0b/manifests/1"[..], ""),
        ("GET", b"/v2/hub/../../etc/passwd", ""),
        ("GET", b"/v2/hub/..%2f..%2fetc/manifests/1", ""),
        ("GET", b"/v2/hub/\xff\xfe/manifests/1", ""),
        ("GET", b"/v2/hub/%zz/manifests/1", ""),
        ("GET", deep.as_bytes(), ""),
        ("GET", long.as_bytes(), ""),
        ("GET", ok.as_bytes(), &big_header),
        ("GET", ok.as_bytes(), &many_headers),
        ("GET", ok.as_bytes(), "X-Bad\r\n"),
        ("GET", ok.as_bytes(), "X: a\0b\r\n"),
        ("GET", ok.as_bytes(), "Content-Length: 5\r\nContent-Length: 6\r\n"),
        ("G ET", ok.as_bytes(), ""),
        ("GET", b"http://[", ""),
        ("CONNECT", b"evil.invalid:443", ""),
        ("GET", b"*", ""),
    ] {
        let status = status_of(&larder, method, target, more).await;
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{method} {status:?} {more:.40}");
    }
    for garbage in [
        &b"\0\0\0\0"[..],
        b"\x16\x03\x01\x02\0\x01\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage that is no frame at all",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
    ] {
        raw(larder.door("registry"), garbage, Duration::from_secs(1)).await;
    }
    assert_eq!(hub.requests().len(), 0, "{}", hub.summary());
    still_serves(&mut larder, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_unsupported() {
    let (hub, mut larder, image) = scene().await;
    for (method, path) in [
        ("PUT", "/v2/hub/team/app/manifests/2".to_owned()),
        ("DELETE", "/v2/hub/team/app/manifests/1".to_owned()),
        ("DELETE", format!("/v2/hub/team/app/blobs/{DIGEST}")),
        ("POST", "/v2/hub/team/app/blobs/uploads/".to_owned()),
        ("PATCH", "/v2/hub/team/app/blobs/uploads/1".to_owned()),
        ("PUT", "/v2/hub/team/app/blobs/uploads/1?digest=x".to_owned()),
        ("POST", "/v2/".to_owned()),
        ("DELETE", "/v2/_catalog".to_owned()),
        ("OPTIONS", "/v2/hub/team/app/manifests/1".to_owned()),
    ] {
        let answer = request(method, format!("{}{path}", larder.url())).body(vec![1; 10_000]).send().await;
        assert_eq!((answer.status, answer.error_code().as_str()), (405, "UNSUPPORTED"), "{method} {path}");
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
    assert_eq!(hub.requests().len(), 0, "{}", hub.summary());
    still_serves(&mut larder, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_ranges_are_ignored_or_refused() {
    let (_hub, mut larder, image) = scene().await;
    let url = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    let size = image.layers[0].len();
    let many = format!("bytes={}", "0-0,".repeat(1000));
    for (range, status) in [
        ("bytes=", 200),
        ("bytes=a-b", 200),
        ("bytes=9-3", 200),
        ("bytes=-", 200),
        ("bytes=1-2-3", 200),
        ("items=0-1", 200),
        ("bytes=0-0;1-1", 200),
        (many.as_str(), 200),
        ("bytes=-0", 416),
        ("bytes=99999999999999999999-", 416),
        ("bytes=0-99999999999999999999", 206),
    ] {
        for _ in ["coming", "stored"] {
            let answer = request("GET", &url).header("range", range).send().await;
            assert_eq!(answer.status, status, "{range}");
            if status == 416 {
                assert_eq!(answer.header("content-range"), format!("bytes */{size}"));
            }
        }
    }
    still_serves(&mut larder, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_no_log_and_no_foreign_host() {
    use crate::support::{Auth, TokenPlace, TokenService};
    let place = TokenPlace::Address(std::net::Ipv4Addr::new(127, 0, 0, 3));
    let service = TokenService { place, ..TokenService::default() };
    let hub =
        Hub::start(Options { auth: Auth::Token(service), ..Options::docker_hub() }.user("me", "s3cret-pass")).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let config = RepositoryConfig::new("hub").upstream_with(&hub, "username = \"me\"\npassword = \"s3cret-pass\"");
    let larder = Larder::start(&config.to_string()).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let blob = larder.blob_url("hub/team/app", &Image::new(1).layer_digests()[0]);
    assert_eq!(get(blob).await.status, 200);

    let foreign =
        hub.requests().into_iter().filter(|request| !matches!(request.listener, crate::support::Listener::Registry));
    let with_secret: Vec<_> = foreign.filter(|request| request.header("authorization").is_some()).collect();
    assert!(with_secret.is_empty(), "{with_secret:?}");
    let log = larder.log();
    assert!(log.contains("token_realms"), "the reason is logged");
    for secret in ["s3cret-pass", "bWU6czNjcmV0LXBhc3M", "Bearer "] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_upstream_gets_a_truthful_error_or_a_way_round() {
    let both = |hub: &Hub, fault: Fault| {
        hub.fault(On::manifest(), fault.clone());
        hub.fault(On::blob(), fault);
    };
    // What the client sees of a manifest and of a blob; 0: a response that breaks off.
    for (fault, manifest, blob) in [
        (Fault::NoContentLength, 200, 200),
        (Fault::NoDigestHeader, 200, 200),
        (Fault::NoAcceptRanges, 200, 200),
        (Fault::HeadRefused, 200, 200),
        (Fault::Gzip, 200, 200),
        (Fault::WrongBytes, 502, 502),
        (Fault::HtmlInstead, 502, 502),
        (Fault::GzipAlways, 502, 502),
        (Fault::HugeManifest { size: 20 << 20 }, 502, 502),
        (Fault::Short { after: 100 }, 502, 200),
        (Fault::Drop, 502, 502),
        (Fault::Hang, 504, 504),
        (Fault::status(500), 502, 502),
        (Fault::status(503), 502, 502),
        (Fault::status(404), 404, 404),
        (Fault::status(401), 403, 403),
        (Fault::status(403), 403, 403),
        (Fault::status(429), 429, 429),
        (Fault::reply(429, &[("retry-after", "7")], "Too Many Requests (HAP429)."), 429, 429),
    ] {
        let hub = Hub::start(Options::default()).await;
        let image = Image::new(1);
        hub.push_image("team/app", "1", &image);
        both(&hub, fault.clone());
        // Short where it has to run out, long where a busy machine must not make it run out.
        let timeout = if matches!(fault, Fault::Hang) { "timeout = \"300ms\"" } else { "timeout = \"20s\"" };
        let config = RepositoryConfig::new("hub").set("negative_max_age = \"0s\"").upstream_with(&hub, timeout);
        let larder = Larder::start(&config.to_string()).await;
        let tag = larder.manifest_url("hub/team/app", "1");
        // Small enough to be held back whole, so that errors come before the status.
        let layer = larder.blob_url("hub/team/app", &image.layer_digests()[1]);
        for (url, expected, right) in [(&tag, manifest, &image.manifest.bytes), (&layer, blob, &image.layers[1])] {
            let answer = get(url).await;
            let status = if answer.complete() { answer.status } else { 502 };
            assert_eq!(status, expected, "{fault:?} {url}");
            if expected == 200 {
                assert_eq!(&answer.body, right, "{fault:?}");
            }
            if expected == 429 {
                // Only what the upstream stated.
                let after = answer.header("retry-after").to_owned();
                assert!(["7", "6", ""].contains(&after.as_str()), "{after}");
            }
        }
        hub.clear_faults();
        // Whoever asked for a rest gets it (tests/outage.rs); one that hung is tried again soon.
        if manifest != 429 {
            let what = format!("{fault:?} is over");
            eventually(&what, async || get(&tag).await.body == image.manifest.bytes).await;
            assert_eq!(get(&layer).await.body, image.layers[1], "{fault:?}");
        }
    }
}
