//! Promise: at the proxy door what is kept keeps to the rules of HTTP caches (RFC 9111) that servers and clients count on.

use std::time::{Duration, SystemTime};

use crate::support::{
    Answer, Fault, Image, Larder, On, Options, Origin, Page, Proxied, eventually, get, keeps_archives_of, request,
};

struct Scene {
    origin: Origin,
    larder: Larder,
}

const FRESH: &str = "max-age=3600";

async fn scene() -> Scene {
    let origin = Origin::http().await;
    let config = keeps_archives_of(&origin);
    Scene { larder: Larder::start(config).await, origin }
}

impl Scene {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = request(method, self.origin.url(path)).through_proxy(self.larder.door("proxy"));
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[]).await
    }

    /// Gets it, and tells whether it is served without asking its server once it is stored.
    async fn is_fresh(&self, path: &str) -> bool {
        let first = self.get(path).await;
        assert_eq!(first.status, 200, "{path}: {}", first.text());
        // The last reader may have its last byte a moment before it is in its place.
        let stored = format!("\"path\":\"{path}\"");
        let is_stored =
            async || self.larder.log().lines().any(|line| line.contains("cached response") && line.contains(&stored));
        eventually("it is stored", is_stored).await;
        self.origin.take_requests();
        self.get(path).await;
        self.origin.take_requests().is_empty()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_through_the_door_is_not_served_as_it_was() {
    let scene = scene().await;
    let kept =
        |text: &'static str| Page::new(text).header("cache-control", FRESH).header("etag", format!("\"{text}\""));
    for (at, method) in ["PUT", "POST", "DELETE", "PATCH", "FROB"].into_iter().enumerate() {
        let path = format!("/{at}/a.tgz");
        scene.origin.put(&path, kept("old"));
        // One kind of clients has a copy of its own.
        assert!(scene.is_fresh(&path).await);
        let own = [("x-tenant", "one")];
        eventually("theirs is kept", async || {
            scene.send("GET", &path, &own).await.header("cache-status") == "larder; hit; detail=fresh_copy"
        })
        .await;
        // What fails changes nothing, and neither does what only asks.
        scene.origin.put(&path, Page::new("no").status(403));
        assert_eq!(scene.send(method, &path, &[]).await.status, 403);
        scene.origin.put(&path, kept("new"));
        assert_eq!(scene.send("OPTIONS", &path, &[]).await.status, 200);
        assert_eq!(scene.get(&path).await.text(), "old", "{method}");
        assert_eq!(scene.send(method, &path, &[]).await.status, 200);
        assert_eq!(scene.get(&path).await.text(), "new", "{method}");
        assert_eq!(scene.send("GET", &path, &own).await.text(), "new", "{method}");
    }
    // And what the answer says was written.
    for (at, (header, is_meant)) in [("location", true), ("content-location", true), ("link", false)].iter().enumerate()
    {
        let (path, api) = (format!("/made/{at}.tgz"), format!("/api/{at}"));
        scene.origin.put(&path, kept("old"));
        assert!(scene.is_fresh(&path).await);
        scene.origin.put(&path, kept("new"));
        // Of another server nothing is believed.
        let foreign = format!("http://127.0.0.2:{}{path}", scene.origin.address().port());
        scene.origin.put(&api, Page::new("").status(201).header(header, foreign));
        assert_eq!(scene.send("POST", &api, &[]).await.status, 201);
        assert_eq!(scene.get(&path).await.text(), "old", "{header}");
        scene.origin.put(&api, Page::new("").status(201).header(header, format!("..{path}")));
        assert_eq!(scene.send("POST", &api, &[]).await.status, 201);
        assert_eq!(scene.get(&path).await.text(), if *is_meant { "new" } else { "old" }, "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_pushed_through_the_door_is_asked_for_again() {
    let scene = Proxied::start_with(Options::default(), "", ["max_age = \"1h\"", ""], "").await;
    let (old, new) = (Image::new(1), Image::new(2));
    scene.hub.push_image("team/app", "1", &old);
    let (browser, tag) = (scene.browser(), scene.manifest("team/app", "1"));
    let list = format!("{}/v2/team/app/tags/list", scene.front.url());
    eventually("the tag is kept", async || browser.get(&tag).await.header("x-cache") == "HIT").await;
    eventually("the list is kept", async || browser.get(&list).await.header("x-cache") == "HIT").await;
    scene.hub.push_image("team/app", "1", &new);
    scene.hub.push_image("team/app", "2", &new);
    assert_eq!(browser.send("PUT", &tag, &[], "x").await.status, 405, "this registry takes none");
    assert_eq!(browser.get(&tag).await.body, old.manifest.bytes);
    let taken = Fault::reply(201, &[], "");
    scene.hub.fault(On::any().method("PUT"), taken);
    assert_eq!(browser.send("PUT", &tag, &[], "x").await.status, 201);
    assert_eq!(browser.get(&tag).await.body, new.manifest.bytes);
    assert_eq!(browser.get(&list).await.json()["tags"], serde_json::json!(["1", "2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_an_answer_is_fresh_is_read_as_it_is_written() {
    let scene = scene().await;
    let ago = |span: u64| httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(span));
    let years = 10 * 365 * 86_400;
    for (at, (headers, is_fresh)) in [
        // By a guess, from how long it did not change: no longer than a day.
        (vec![("last-modified", ago(years)), ("age", "3600".to_owned())], true),
        (vec![("last-modified", ago(years)), ("age", "90000".to_owned())], false),
        (vec![("cache-control", "max-age=100000".to_owned()), ("age", "90000".to_owned())], true),
        // All three forms of dates (RFC 9110, section 5.6.7).
        (vec![("expires", "Sat, 06 Nov 2060 08:49:37 GMT".to_owned())], true),
        (vec![("expires", "Saturday, 06-Nov-60 08:49:37 GMT".to_owned())], true),
        (vec![("expires", "Sat Nov  6 08:49:37 2060".to_owned())], true),
        (vec![("expires", "Sunday, 06-Nov-94 08:49:37 GMT".to_owned())], false),
        (vec![("expires", "0".to_owned())], false),
        // Of several ages the first counts (RFC 9111, section 5.1).
        (vec![("cache-control", FRESH.to_owned()), ("age", "7200, 0".to_owned())], false),
        (vec![("cache-control", FRESH.to_owned()), ("age", "7200".to_owned()), ("age", "0".to_owned())], false),
        (vec![("cache-control", FRESH.to_owned()), ("age", "0, 7200".to_owned())], true),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{at}.tgz");
        let page = Page::new("x").header("etag", "\"1\"");
        scene.origin.put(&path, headers.iter().fold(page, |page, (name, value)| page.header(name, value)));
        assert_eq!(scene.is_fresh(&path).await, is_fresh, "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_of_caches_reaches_the_client_as_it_was_said() {
    let scene = scene().await;
    let page = Page::new("x").header("etag", "\"1\"").header("cache-control", "Public, Max-Age=3600");
    scene.origin.put("/a.tgz", page.header("cache-control", "X-Ext=\"Aa, Bb\""));
    assert!(scene.is_fresh("/a.tgz").await);
    let told = scene.get("/a.tgz").await;
    let lines: Vec<_> =
        told.headers.get_all("cache-control").iter().map(|value| value.to_str().expect("text")).collect();
    assert_eq!(lines, ["Public, Max-Age=3600", "X-Ext=\"Aa, Bb\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_its_server_just_confirmed_says_so() {
    let scene = scene().await;
    scene.origin.put("/a.tgz", Page::new("x").header("etag", "\"1\"").header("cache-control", "max-age=0"));
    assert!(!scene.is_fresh("/a.tgz").await);
    scene.origin.put("/a.tgz", Page::new("").status(304).header("etag", "\"1\"").header("cache-control", "max-age=0"));
    let told = scene.get("/a.tgz").await;
    assert_eq!((told.status, told.text().as_str()), (200, "x"));
    // RFC 9211: it went forward as stale, and 304 was the answer.
    assert_eq!(told.header("cache-status"), "larder; fwd=stale; fwd-status=304; detail=unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_warns_of_is_passed_on_with_its_manifests() {
    let scene = Proxied::start_with(Options::default(), "", ["max_age = \"1h\"", ""], "").await;
    let image = Image::new(1);
    scene.hub.push_image("team/app", "1", &image);
    scene.hub.push_image("team/plain", "1", &Image::new(2));
    let warning = "299 - \"this image is not kept after May\"";
    let long = format!("299 - \"{}\"", "x".repeat(5000));
    for value in [warning, "110 - \"not ours to pass on\"", &long] {
        let add = Fault::Header("warning".to_owned(), value.to_owned());
        scene.hub.fault(On::manifest().name("team/app"), add);
    }
    let browser = scene.browser();
    let warnings = |answer: &Answer| {
        let values = answer.headers.get_all("warning").iter();
        values.map(|value| value.to_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    for reference in ["1", &image.manifest.digest] {
        for _ in ["cold", "warm"] {
            for url in [scene.manifest("team/app", reference), scene.larder.manifest_url("hub/team/app", reference)] {
                let told = if url.starts_with("https") { browser.get(&url).await } else { get(&url).await };
                assert_eq!((told.status, warnings(&told)), (200, vec![warning.to_owned()]), "{url}");
            }
        }
    }
    let plain = browser.get(scene.manifest("team/plain", "1")).await;
    assert_eq!((plain.status, warnings(&plain)), (200, Vec::new()));
}
