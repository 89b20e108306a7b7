//! Promise: what `cache.patterns` match is kept by the rules of a shared cache (RFC 9111): nobody gets what is
//! another's, or older than its server lets it be.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tempfile::TempDir;

use crate::support::{
    Answer, Authority, Browser, Larder, Origin, Page, blob, eventually, head, keeps_archives_of, request,
};

struct Scene {
    origin: Origin,
    larder: Larder,
}

const FRESH: &str = "max-age=3600";

async fn scene() -> Scene {
    let origin = Origin::http().await;
    let config = keeps_archives_of(&origin);
    let larder = Larder::builder().config(config).keep_ports().start().await;
    Scene { origin, larder }
}

impl Scene {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = request(method, self.origin.url(path)).through_proxy(self.larder.door("proxy"));
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[]).await
    }

    /// Gets it until it comes from the cache.
    async fn is_kept(&self, path: &str) {
        eventually("it is kept", async || self.get(path).await.header("x-cache") == "HIT").await;
        self.origin.take_requests();
    }
}

fn tarball(seed: u64) -> Bytes {
    blob(seed, 700_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_comes_once_from_its_server() {
    let mut scene = scene().await;
    let bytes = tarball(1);
    let page = Page::new(bytes.clone()).header("cache-control", FRESH).header("etag", "\"v1\"").header("x-own", "1");
    scene.origin.put("/a/-/a-1.tgz", page.header("content-type", "application/gzip"));
    let first = scene.get("/a/-/a-1.tgz").await;
    assert_eq!((first.status, first.header("x-cache"), first.body == bytes), (200, "MISS", true));
    scene.is_kept("/a/-/a-1.tgz").await;
    let again = scene.get("/a/-/a-1.tgz").await;
    assert_eq!((again.header("x-cache"), again.body == bytes), ("HIT", true));
    for (name, value) in
        [("etag", "\"v1\""), ("x-own", "1"), ("content-type", "application/gzip"), ("accept-ranges", "bytes")]
    {
        assert_eq!(again.header(name), value, "{name}");
    }
    assert!(!again.header("age").is_empty() && !again.header("x-cache-date").is_empty(), "{:?}", again.headers);
    // In parts, compared, and its head alone.
    let part = scene.send("GET", "/a/-/a-1.tgz", &[("range", "bytes=5-9"), ("if-range", "\"v1\"")]).await;
    assert_eq!((part.status, &part.body[..], part.header("content-range")), (206, &bytes[5..10], "bytes 5-9/700000"));
    let other = scene.send("GET", "/a/-/a-1.tgz", &[("range", "bytes=5-9"), ("if-range", "\"v0\"")]).await;
    assert_eq!((other.status, other.body.len()), (200, bytes.len()));
    let beyond = scene.send("GET", "/a/-/a-1.tgz", &[("range", "bytes=700000-")]).await;
    assert_eq!(beyond.status, 416);
    let same = scene.send("GET", "/a/-/a-1.tgz", &[("if-none-match", "W/\"v1\"")]).await;
    assert_eq!((same.status, same.body.len()), (304, 0));
    let head = scene.send("HEAD", "/a/-/a-1.tgz", &[]).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "700000", 0));
    assert_eq!(scene.origin.take_requests().len(), 0);
    let stats = scene.larder.stats().await;
    let others = &stats["repositories"]["other hosts"];
    assert!(stats["hits"] == others["hits"] && others["hits"].as_u64() > Some(5), "{stats}");
    assert_eq!(others["bytes_fetched"], 700_000);
    // Over a restart, with the server gone.
    scene.larder.restart().await;
    scene.origin.stop();
    let after = scene.get("/a/-/a-1.tgz").await;
    assert_eq!((after.header("x-cache"), after.body == bytes), ("HIT", true));
    let cleared = request("DELETE", format!("{}/api/cache", scene.larder.admin_url())).send().await;
    assert_eq!(cleared.status, 200);
    assert_eq!(scene.get("/a/-/a-1.tgz").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_one_alone_or_not_whole_is_not_kept() {
    let scene = scene().await;
    let page = || Page::new("x").header("etag", "\"1\"");
    let fresh = || page().header("cache-control", FRESH);
    let set = |name: &str, page: Page| scene.origin.put(&format!("/{name}.tgz"), page);
    set("no-store", page().header("cache-control", "no-store"));
    set("private", page().header("cache-control", "private, max-age=60"));
    set("cookie", fresh().header("set-cookie", "session=1"));
    set("everything", fresh().header("vary", "*"));
    set("part", fresh().status(206).header("content-range", "bytes 0-0/2"));
    set("absent", fresh().status(404));
    set("created", fresh().status(201));
    set("login", fresh());
    set("capitals", Page::new("x").header("cache-control", "Private, max-age=60"));
    set("must", page().header("cache-control", "must-revalidate, max-age=60"));
    set("nothing-said", Page::new("x"));
    scene.origin.put("/other.zip", fresh());
    for (path, headers) in [
        ("/no-store.tgz", &[][..]),
        ("/private.tgz", &[]),
        ("/cookie.tgz", &[]),
        ("/everything.tgz", &[]),
        ("/part.tgz", &[]),
        ("/absent.tgz", &[]),
        ("/created.tgz", &[]),
        ("/login.tgz", &[("authorization", "Bearer secret")]),
        ("/login.tgz", &[("cookie", "a=b")]),
        ("/capitals.tgz", &[]),
        ("/must.tgz", &[("authorization", "Bearer secret")]),
        ("/other.zip", &[]),
        ("/nothing-said.tgz", &[]),
    ] {
        for _ in 0..2 {
            let answer = scene.send("GET", path, headers).await;
            assert_ne!(answer.header("x-cache"), "HIT", "{path}");
            assert_eq!(answer.text(), "x", "{path}");
        }
        assert_eq!(scene.origin.take_requests().len(), 2, "{path}");
    }
    // A part that was asked for does not become the whole, and other methods change nothing.
    set("big", Page::new(tarball(2)).header("cache-control", FRESH));
    scene.send("GET", "/big.tgz", &[("range", "bytes=0-4")]).await;
    scene.send("HEAD", "/big.tgz", &[]).await;
    scene.send("POST", "/big.tgz", &[]).await;
    assert_eq!(scene.get("/big.tgz").await.body, tarball(2));
    assert_eq!(scene.origin.take_requests().len(), 4);
    assert!(!scene.larder.log().contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_everybody_may_have_is_kept_whoever_asked() {
    let scene = scene().await;
    scene.origin.put("/a.tgz", Page::new("x").header("cache-control", "public, max-age=60"));
    scene.send("GET", "/a.tgz", &[("authorization", "Bearer secret")]).await;
    scene.is_kept("/a.tgz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_for_one_alone_goes_to_no_other_who_waits() {
    let scene = scene().await;
    let (page, gate) = Page::new("for A alone").header("cache-control", "private").gated();
    scene.origin.put("/a.tgz", page);
    let (url, door) = (scene.origin.url("/a.tgz"), scene.larder.door("proxy"));
    let ask = |key: &str| request("GET", &url).through_proxy(door).header("x-api-key", key);
    let first = tokio::spawn(ask("A").send());
    let others: Vec<_> = (0..10).map(|_| tokio::spawn(ask("B").send())).collect();
    scene.origin.wait_for(11).await;
    gate.send_replace(true);
    assert_eq!(first.await.expect("no panic").text(), "for A alone");
    for other in others {
        assert_eq!(other.await.expect("no panic").text(), "for A alone");
    }
    // Each asked for itself.
    let keys: Vec<_> =
        scene.origin.take_requests().iter().map(|request| request.header("x-api-key").to_owned()).collect();
    assert_eq!((keys.len(), keys.iter().filter(|key| *key == "A").count()), (11, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_of_the_variant_that_was_asked_for() {
    let scene = scene().await;
    let page = |body: &'static str| {
        let page = Page::new(body).header("cache-control", "max-age=0").header("etag", format!("\"{body}\""));
        page.header("vary", "x-foo")
    };
    for foo in ["1", "2"] {
        scene.origin.put("/a.tgz", page(if foo == "1" { "one" } else { "two" }));
        let ask = async || scene.send("GET", "/a.tgz", &[("x-foo", foo)]).await;
        assert_eq!(ask().await.text(), if foo == "1" { "one" } else { "two" });
        eventually("it is kept", async || ask().await.header("x-cache") == "HIT").await;
    }
    let (first, second) =
        tokio::join!(scene.send("GET", "/a.tgz", &[("x-foo", "1")]), scene.send("GET", "/a.tgz", &[("x-foo", "2")]));
    for (answer, body) in [(first, "one"), (second, "two")] {
        // What the server has by now is "two" for both; nobody gets the one with the head of the other.
        let etag = format!("\"{}\"", answer.text());
        assert_eq!(answer.header("etag"), etag, "{body}");
    }
    let twice = request("GET", scene.origin.url("/a.tgz")).through_proxy(scene.larder.door("proxy"));
    let twice = twice.header("x-foo", "2").header("x-foo", "3").send().await;
    assert_eq!(twice.header("x-cache"), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_as_they_were_sent() {
    let scene = scene().await;
    let page = Page::new(tarball(1)).header("cache-control", FRESH).header("link", "1").header("link", "2");
    scene
        .origin
        .put("/a.tgz", page.header("age", "18446744073709551615").header("date", "Sat, 21 Nov 2026 10:00:00 GMT"));
    for _ in 0..3 {
        let answer = scene.get("/a.tgz").await;
        let all = |name: &str| {
            answer
                .headers
                .get_all(name)
                .iter()
                .map(|value| value.to_str().expect("text").to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!((all("link"), all("age").len()), (vec!["1".to_owned(), "2".to_owned()], 1), "{:?}", answer.headers);
        assert_eq!(all("date"), ["Sat, 21 Nov 2026 10:00:00 GMT"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_query_tell_contents_apart() {
    let (scene, other) = (scene().await, Origin::http().await);
    for (path, body) in [("/a.tgz", "plain"), ("/a.tgz?v=1", "one"), ("/a.tgz?v=2", "two")] {
        scene.origin.put(path, Page::new(body).header("cache-control", FRESH));
        assert_eq!(scene.get(path).await.text(), body);
        scene.is_kept(path).await;
    }
    assert_eq!(scene.get("/a.tgz?v=1").await.text(), "one");
    assert_eq!(scene.get("/a.tgz").await.text(), "plain");
    // The host is that of the URL, whatever the Host header says.
    other.put("/a.tgz", Page::new("evil"));
    let host = other.address().to_string();
    let answer = scene.send("GET", "/a.tgz", &[("host", &host)]).await;
    assert_eq!(answer.text(), "plain");
    assert!(other.take_requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_varies_is_kept_for_each() {
    let scene = scene().await;
    let page = |body: &'static str| Page::new(body).header("cache-control", FRESH).header("vary", "Accept-Encoding");
    for (encoding, body) in [("gzip", "zipped"), ("identity", "plain")] {
        scene.origin.put("/a.tgz", page(body));
        let ask = async || scene.send("GET", "/a.tgz", &[("accept-encoding", encoding)]).await;
        assert_eq!(ask().await.text(), body);
        eventually("it is kept", async || ask().await.header("x-cache") == "HIT").await;
    }
    scene.origin.take_requests();
    let gzip = scene.send("GET", "/a.tgz", &[("accept-encoding", "gzip")]).await;
    assert_eq!((gzip.text().as_str(), scene.origin.take_requests().len()), ("zipped", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_is_compared_and_only_fetched_if_it_changed() {
    let scene = scene().await;
    let page = |body: Bytes, etag: &str| Page::new(body).header("cache-control", "max-age=0").header("etag", etag);
    scene.origin.put("/a.tgz", page(tarball(1), "\"1\""));
    assert_eq!(scene.get("/a.tgz").await.body, tarball(1));
    scene.is_kept("/a.tgz").await;
    let same = scene.get("/a.tgz").await;
    assert_eq!((same.header("x-cache"), same.body == tarball(1)), ("HIT", true));
    let asked = scene.origin.take_requests();
    assert_eq!((asked.len(), asked[0].header("if-none-match")), (1, "\"1\""));
    scene.origin.put("/a.tgz", page(tarball(2), "\"2\""));
    let changed = scene.get("/a.tgz").await;
    assert_eq!((changed.header("x-cache"), changed.body == tarball(2)), ("MISS", true));
    scene.is_kept("/a.tgz").await;
    // A client may want it compared, too.
    scene.origin.put("/b.tgz", Page::new("b").header("cache-control", FRESH).header("etag", "\"1\""));
    scene.get("/b.tgz").await;
    scene.is_kept("/b.tgz").await;
    let compared = scene.send("GET", "/b.tgz", &[("cache-control", "no-cache")]).await;
    assert_eq!((compared.text().as_str(), scene.origin.take_requests().len()), ("b", 1));
    let kept_only = [("cache-control", "only-if-cached")];
    assert_eq!(scene.send("GET", "/b.tgz", &kept_only).await.status, 200);
    assert_eq!(scene.send("GET", "/c.tgz", &kept_only).await.status, 504);
    assert!(scene.origin.take_requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_is_served_while_its_server_fails_unless_it_forbids_that() {
    let scene = scene().await;
    let page = |control: &str| Page::new("x").header("cache-control", control).header("etag", "\"1\"");
    scene.origin.put("/a.tgz", page("max-age=0"));
    scene.origin.put("/b.tgz", page("max-age=0, must-revalidate"));
    for path in ["/a.tgz", "/b.tgz"] {
        scene.get(path).await;
        scene.is_kept(path).await;
        scene.origin.put(path, Page::new("broken").status(503));
    }
    let stale = scene.get("/a.tgz").await;
    assert_eq!((stale.status, stale.text().as_str(), stale.header("x-cache")), (200, "x", "STALE"));
    assert!(stale.header("warning").contains("503"), "{:?}", stale.headers);
    assert_eq!(scene.get("/b.tgz").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_get_one_transfer_as_it_comes() {
    let scene = scene().await;
    let bytes = tarball(3);
    let (page, gate) = Page::new(bytes.clone()).header("cache-control", FRESH).gated();
    scene.origin.put("/a.tgz", page);
    let url = scene.origin.url("/a.tgz");
    let door = scene.larder.door("proxy");
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move {
                let mut answer = request("GET", url).through_proxy(door).open().await;
                let first = answer.read_exact(1).await;
                (first, answer.read_to_end().await)
            })
        })
        .collect();
    scene.origin.wait_for(1).await;
    gate.send_replace(true);
    for client in clients {
        let (first, rest) = client.await.expect("no panic");
        assert!(rest.complete() && [&first[..], &rest.body[..]].concat() == bytes);
    }
    assert_eq!(scene.origin.take_requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_is_not_kept_nor_taken_for_the_whole() {
    let scene = scene().await;
    let (page, break_off) = Page::new(tarball(4)).header("cache-control", FRESH).breaks_after(300_000);
    scene.origin.put("/a.tgz", page);
    let asked = request("GET", scene.origin.url("/a.tgz")).through_proxy(scene.larder.door("proxy"));
    let mut answer = asked.open().await;
    assert_eq!(answer.read_exact(1000).await, tarball(4)[..1000]);
    break_off.send_replace(true);
    let broken = answer.read_to_end().await;
    assert!(
        !broken.complete() && broken.body.len() < tarball(4).len(),
        "{} {} {:?}",
        broken.status,
        broken.body.len(),
        broken.error
    );
    scene.origin.put("/a.tgz", Page::new(tarball(5)).header("cache-control", FRESH));
    let whole = scene.get("/a.tgz").await;
    assert!(whole.complete() && whole.body == tarball(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_goes_on_only_if_it_is_still_the_same() {
    let scene = scene().await;
    for (path, etag) in [("/same.tgz", "\"1\""), ("/changed.tgz", "\"2\"")] {
        let page = |seed: u64, etag: &str| Page::new(tarball(seed)).header("cache-control", FRESH).header("etag", etag);
        let (first, break_off) = page(6, "\"1\"").breaks_after(300_000);
        scene.origin.put(path, first);
        let asked = request("GET", scene.origin.url(path)).through_proxy(scene.larder.door("proxy"));
        let mut answer = asked.open().await;
        let begun = answer.read_exact(1000).await;
        scene.origin.put(path, page(if path == "/same.tgz" { 6 } else { 7 }, etag));
        break_off.send_replace(true);
        let rest = answer.read_to_end().await;
        let is_whole = rest.complete() && [&begun[..], &rest.body[..]].concat() == tarball(6);
        assert_eq!((rest.complete(), is_whole), (path == "/same.tgz", path == "/same.tgz"), "{path}");
    }
    assert_eq!(scene.get("/changed.tgz").await.body, tarball(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_in_takes_nothing_from_the_others() {
    let scene = scene().await;
    scene.origin.put("/a.tgz", Page::new("x").header("cache-control", "max-age=0").header("etag", "\"1\""));
    scene.get("/a.tgz").await;
    scene.is_kept("/a.tgz").await;
    let own = scene.send("GET", "/a.tgz", &[("authorization", "Bearer secret")]).await;
    assert_eq!((own.text().as_str(), own.header("x-cache")), ("x", "HIT"));
    scene.origin.take_requests();
    assert_eq!(scene.get("/a.tgz").await.header("x-cache"), "HIT");
    assert_eq!(scene.origin.take_requests()[0].header("if-none-match"), "\"1\"", "theirs is compared as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_the_cache_passes() {
    let origin = Origin::http().await;
    let config = format!(
        "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n[allowlist]\ndomains = [\"{}\"]\n[cache]\npatterns = [\"\\\\.tgz$\"]\nmax_size = \"300kB\"",
        origin.address()
    );
    let scene = Scene { larder: Larder::start(config).await, origin };
    scene.origin.put("/a.tgz", Page::new(tarball(1)).header("cache-control", FRESH));
    for _ in 0..3 {
        let answer = scene.get("/a.tgz").await;
        assert!(answer.status == 200 && answer.complete() && answer.body == tarball(1), "{:?}", answer.error);
    }
    // Who asks while it is under way reads along.
    let large = blob(2, 3 << 20);
    let (page, open) = Page::new(large.clone()).header("cache-control", FRESH).gated();
    scene.origin.put("/b.tgz", page);
    scene.origin.take_requests();
    let url = scene.origin.url("/b.tgz");
    let ask = async |_| request("GET", &url).through_proxy(scene.larder.door("proxy")).open().await;
    let clients = join_all((0..6).map(ask)).await;
    open.send(true).expect("the page waits");
    for client in clients {
        assert_eq!(client.compare(large.clone()).await, (large.len() as u64, true));
    }
    assert_eq!(scene.origin.take_requests().len(), 1);

    // Nothing tells whether the rest would be of the same answer, so the others wait for who takes nothing for a while.
    let larger = blob(3, 64 << 20);
    let (page, open) = Page::new(larger.clone()).header("cache-control", FRESH).gated();
    scene.origin.put("/c.tgz", page);
    let url = scene.origin.url("/c.tgz");
    let ask = || request("GET", &url).through_proxy(scene.larder.door("proxy")).bytes_per_second(1 << 40);
    let (mut slow, fast) = (ask().open().await, ask().open().await);
    open.send(true).expect("the page waits");
    assert!(slow.read_exact(1000).await == larger[..1000]);
    let mut fast = tokio::spawn(fast.compare(larger.clone()));
    let waits = tokio::time::timeout(Duration::from_secs(4), &mut fast).await;
    assert!(waits.is_err(), "the fast one has left the slow one behind");
    assert_eq!(slow.compare(larger.slice(1000..)).await, (larger.len() as u64 - 1000, true));
    assert_eq!(fast.await.expect("read"), (larger.len() as u64, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_evicted_as_layers_are() {
    let origin = Origin::http().await;
    let config = format!(
        "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n[allowlist]\ndomains = [\"{}\"]\n[cache]\npatterns = [\"\\\\.tgz$\"]\nmax_size = \"2MB\"",
        origin.address()
    );
    let scene = Scene { larder: Larder::start(config).await, origin };
    for seed in 0..6 {
        let path = format!("/{seed}.tgz");
        scene.origin.put(&path, Page::new(tarball(seed)).header("cache-control", FRESH));
        assert_eq!(scene.get(&path).await.body, tarball(seed));
        scene.is_kept(&path).await;
        let stats = scene.larder.stats().await;
        assert!(stats["current_size"].as_u64() <= Some(2_000_000), "{stats}");
    }
    assert!(scene.larder.stats().await["evictions"].as_u64() >= Some(4));
    let again = scene.get("/0.tgz").await;
    assert_eq!((again.header("x-cache"), again.body == tarball(0)), ("MISS", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_behind_tls_and_headers_of_the_configuration() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new(dir.path(), "upstream");
    let origin = Origin::https(&authority.issue("127.0.0.1")).await;
    let place = origin.address();
    let config = format!(
        "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\nupstream_ca_bundle = \"{}\"\n[allowlist]\ndomains = [\"{place}\"]\n[cache]\npatterns = [\"\\\\.tgz$\"]\n[headers.\"{place}\".set]\nAuthorization = \"Bearer ours\"",
        authority.file().display()
    );
    let larder = Larder::start(config).await;
    let bytes = blob(1, 5 << 20);
    origin.put("/a.tgz", Page::new(bytes.clone()).header("cache-control", FRESH));
    for browser in [Browser::new(&larder, None), Browser::http2(&larder)] {
        eventually("it is kept", async || {
            let answer = browser.get(origin.url("/a.tgz")).await;
            assert!(answer.complete() && answer.body == bytes);
            answer.header("x-cache") == "HIT"
        })
        .await;
    }
    let asked = origin.take_requests();
    assert!(asked.iter().all(|request| request.header("authorization") == "Bearer ours"), "{asked:?}");
    assert_eq!(larder.stats().await["errors"], 0);
    assert_eq!(head(format!("{}/healthz", larder.admin_url())).await.status, 200);
}
