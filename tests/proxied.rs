//! Promise: who pulls through the proxy door gets what the registry would give, once from there and then
//! from the cache, and nothing that the registry would not give.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::support::{
    Browser, Fault, Hub, Image, Manifest, On, Options, Proxied, Redirect, blob, eventually, get, request,
};

const PRIVATE: &str = "team/private";
const NAME: &str = "team/app";

/// A token of the hub, as a client gets it before each pull.
async fn token(hub: &Hub, name: &str, login: &str) -> String {
    let url = format!("{}/token?service=hub&scope=repository:{name}:pull", hub.token_url());
    let request = request("GET", url);
    let request = match login {
        "" => request,
        login => request.header("authorization", format!("Basic {}", BASE64_STANDARD.encode(login))),
    };
    format!("Bearer {}", request.send().await.json()["token"].as_str().expect("a token"))
}

/// All that a client asks for in a pull, and what it is told of the cache each time.
async fn pull(scene: &Proxied, name: &str, image: &Image, authorization: &str) -> Vec<String> {
    let browser = scene.browser();
    let tag = browser.get_as(authorization, scene.manifest(name, "1")).await;
    assert!(tag.status == 200 && tag.body == image.manifest.bytes, "{}: {}", tag.status, tag.text());
    let mut states = vec![tag.header("x-cache").to_owned()];
    for (digest, bytes) in std::iter::once(image.config_digest()).chain(image.layer_digests()).zip(image.blobs()) {
        let blob = browser.get_as(authorization, scene.blob(name, &digest)).await;
        assert!(blob.status == 200 && blob.complete() && blob.body == bytes, "{}: {}", blob.status, blob.text());
        states.push(blob.header("x-cache").to_owned());
    }
    states
}

fn with_private(options: Options) -> Options {
    options.user("me", "mine").user("you", "yours").private(PRIVATE, "me")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_needs_no_storage_of_the_registry() {
    let options = Options { redirect: Redirect::Absolute, ..with_private(Options::with_tokens()) };
    let scene = Proxied::start(options).await;
    for (seed, name, login) in [(1, NAME, ""), (2, PRIVATE, "me:mine")] {
        let image = Image::new(seed);
        scene.hub.push_image(name, "1", &image);
        let first = pull(&scene, name, &image, &token(&scene.hub, name, login).await).await;
        assert!(first.iter().all(|state| state == "MISS"), "{first:?}");
        let objects: Vec<_> = std::iter::once(image.config_digest()).chain(image.layer_digests()).collect();
        let is_stored = async || scene.larder.has_stored(&objects).await;
        eventually("all of it is stored", is_stored).await;
        scene.hub.fault(On::storage(), Fault::Drop);
        scene.hub.take_requests();
        // Another pull of another client, with a token of its own.
        let second = pull(&scene, name, &image, &token(&scene.hub, name, login).await).await;
        assert!(second.iter().all(|state| state == "HIT"), "{second:?}");
        // It is asked whether it has them, and each led to it before: that will do while it is down.
        assert_eq!(scene.hub.count_on(On::storage().get()), 0, "{}", scene.hub.summary());
        assert!(scene.hub.count_on(On::blob().head()) <= objects.len(), "{}", scene.hub.summary());
        // What is refused by HEAD may be given by GET: its first byte tells. Nothing is downloaded.
        let is_download = |request: &crate::support::Request| {
            On::blob().get().matches(request) && request.header("range") != Some("bytes=0-0")
        };
        assert_eq!(scene.hub.count(is_download), 0, "{}", scene.hub.summary());
        scene.hub.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_once_pulls_again_without_the_registry_and_what_is_private_does_not() {
    let mut scene = Proxied::start(with_private(Options::with_tokens())).await;
    let (image, private) = (Image::new(1), Image::new(2));
    scene.hub.push_image(NAME, "1", &image);
    scene.hub.push_image(PRIVATE, "1", &private);
    pull(&scene, NAME, &image, &token(&scene.hub, NAME, "me:mine").await).await;
    let mine = token(&scene.hub, PRIVATE, "me:mine").await;
    pull(&scene, PRIVATE, &private, &mine).await;
    // It asks as nobody, too, behind the client's back.
    let is_learnt = async || {
        let browser = scene.browser();
        scene.hub.take_requests();
        browser.get(scene.blob(NAME, &image.layer_digests()[0])).await;
        browser.get(scene.manifest(NAME, &image.manifest.digest)).await;
        scene.hub.take_requests().is_empty()
    };
    eventually("it is known to be public", is_learnt).await;

    scene.hub.stop().await;
    let browser = scene.browser();
    let base = browser.get(format!("{}/v2/", scene.front.url())).await;
    assert_eq!((base.status, base.header("www-authenticate")), (200, ""), "it needs no token now");
    assert!(base.header("warning").starts_with("299"), "{:?}", base.headers);
    let again = pull(&scene, NAME, &image, "").await;
    assert!(again[0] == "STALE" && again[1..].iter().all(|state| state == "HIT"), "{again:?}");
    // Of the private one nobody can say whether they may, but for who was allowed just now.
    for who in ["", "Bearer other"] {
        let tag = browser.get_as(who, scene.manifest(PRIVATE, "1")).await;
        assert_eq!(tag.status, 502, "{}", tag.text());
        let layer = browser.get_as(who, scene.blob(PRIVATE, &private.layer_digests()[0])).await;
        assert_eq!(layer.status, 502, "{}", layer.text());
    }
    pull(&scene, PRIVATE, &private, &mine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_by_one_door_is_a_hit_at_the_other() {
    let scene = Proxied::start(Options::with_redirects()).await;
    let (first, second) = (Image::new(1), Image::new(2));
    scene.hub.push_image(NAME, "1", &first);
    scene.hub.push_image(NAME, "2", &second);
    pull(&scene, NAME, &first, "").await;
    assert_eq!(get(scene.larder.manifest_url(&format!("hub/{NAME}"), "2")).await.status, 200);
    for digest in second.layer_digests() {
        assert!(get(scene.larder.blob_url(&format!("hub/{NAME}"), &digest)).await.complete());
    }
    let all = [first.layer_digests(), second.layer_digests()].concat();
    let is_stored = async || scene.larder.has_stored(&all).await;
    eventually("all of it is stored", is_stored).await;
    scene.hub.fault(On::storage(), Fault::Drop);
    for digest in first.layer_digests() {
        let blob = get(scene.larder.blob_url(&format!("hub/{NAME}"), &digest)).await;
        assert_eq!((blob.status, blob.header("x-cache")), (200, "HIT"), "{}", blob.text());
    }
    for digest in second.layer_digests() {
        let blob = scene.browser().get(scene.blob(NAME, &digest)).await;
        assert_eq!((blob.status, blob.header("x-cache")), (200, "HIT"), "{}", blob.text());
        assert!(!blob.header("x-cache-date").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_it_gets_the_registrys_own_refusal() {
    let scene = Proxied::start(with_private(Options::with_tokens())).await;
    let image = Image::new(1);
    scene.hub.push_image(PRIVATE, "1", &image);
    pull(&scene, PRIVATE, &image, &token(&scene.hub, PRIVATE, "me:mine").await).await;
    let browser = scene.browser();
    let urls = [
        scene.manifest(PRIVATE, "1"),
        scene.manifest(PRIVATE, &image.manifest.digest),
        scene.blob(PRIVATE, &image.layer_digests()[0]),
        // Nor under another name.
        scene.blob(NAME, &image.layer_digests()[0]),
    ];
    let yours = token(&scene.hub, PRIVATE, "you:yours").await;
    for url in &urls {
        for who in ["", &yours, "Bearer forged", "Basic eW91OnlvdXJz"] {
            let through = browser.get_as(who, url).await;
            let direct = request("GET", url.replace(&scene.front.url(), &scene.hub.url()));
            let direct = if who.is_empty() { direct } else { direct.header("authorization", who) }.send().await;
            assert!(direct.status >= 400, "{url}");
            assert_eq!((through.status, &through.body), (direct.status, &direct.body), "{url} as {who}");
            assert_eq!(through.header("www-authenticate"), direct.header("www-authenticate"), "{url} as {who}");
        }
    }
    let log = scene.larder.log();
    assert!(!log.contains("forged") && !log.contains("eW91OnlvdXJz"), "{log}");
    // What it brought in is not even named to others.
    assert_eq!(get(format!("{}/v2/_catalog", scene.larder.url())).await.json()["repositories"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_are_one_transfer_and_get_it_as_it_comes() {
    let scene = Proxied::start(Options::default()).await;
    let image = Image::with_layers(1, &[3 << 20]);
    scene.hub.push_image(NAME, "1", &image);
    let digest = image.layer_digests()[0].clone();
    let gate = scene.hub.gate(On::blob(), 1 << 20);
    let url = scene.blob(NAME, &digest);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (browser, url) = (scene.browser(), url.clone());
            tokio::spawn(async move { browser.get(url).await })
        })
        .collect();
    gate.reached().await;
    gate.open();
    for client in clients {
        let blob = client.await.expect("no panic");
        assert!(blob.complete() && blob.body == image.blobs()[1]);
    }
    assert_eq!(scene.hub.count_on(On::blob().get()), 1, "{}", scene.hub.summary());
    // And then from the store, over either HTTP.
    for browser in [scene.browser(), Browser::http2(&scene.larder)] {
        let is_hit = async || {
            let blob = browser.get(&url).await;
            assert!(blob.complete() && blob.body == image.blobs()[1], "{:?}", blob.error);
            blob.header("x-cache") == "HIT"
        };
        eventually("it is stored", is_hit).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_passes_in_little_memory() {
    let scene = Proxied::start(Options::default()).await;
    let layer = blob(1, 256 << 20);
    let digest = scene.hub.push_blob(NAME, layer.clone());
    let before = scene.larder.resident_memory().resident;
    for browser in [scene.browser(), Browser::http2(&scene.larder)] {
        let answer = browser.get(scene.blob(NAME, &digest)).await;
        assert!(answer.complete() && answer.body == layer);
    }
    let grown = scene.larder.resident_memory().peak.saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_no_repository_has_is_cached_as_well() {
    let other = Hub::start(Options::with_redirects()).await;
    let image = Image::new(3);
    other.push_image(NAME, "1", &image);
    let allow = format!("[allowlist]\ndomains = [\"{}\"]", other.address());
    let mut scene = Proxied::start_with(Options::default(), "", ["", ""], &allow).await;
    let browser = scene.browser();
    let url = format!("{}/v2/{NAME}/blobs/{}", other.url(), image.layer_digests()[0]);
    assert_eq!(browser.get(&url).await.header("x-cache"), "MISS");
    // The last reader may have its last byte a moment before the object is in its place.
    eventually("it is stored", async || browser.get(&url).await.header("x-cache") == "HIT").await;
    other.fault(On::storage(), Fault::Drop);
    assert_eq!(browser.get(&url).await.header("x-cache"), "HIT");
    // Also when its name is all that is left of it.
    let (tag, base) = (format!("{}/v2/{NAME}/manifests/1", other.url()), format!("{}/v2/", other.url()));
    assert_eq!(browser.get(&tag).await.status, 200);
    scene.larder.restart().await;
    let browser = scene.browser();
    other.fault(On::any(), Fault::Drop);
    eventually("it stands in for the registry", async || browser.get(&base).await.status == 200).await;
    assert_eq!(browser.get(&tag).await.header("x-cache"), "STALE");
    other.clear_faults();
    // It can be looked at and taken out.
    let tag = browser.get(format!("{}/v2/{NAME}/manifests/1", other.url())).await;
    assert_eq!(tag.status, 200);
    let images = get(format!("{}/api/images", scene.larder.admin_url())).await.json();
    let reference = images["images"][0]["reference"].as_str().expect("an image").to_owned();
    assert_eq!(reference, format!("http:{}/{NAME}:1", other.address()), "https there would be another");
    let purged =
        request("DELETE", format!("{}/api/cache?reference={reference}", scene.larder.admin_url())).send().await;
    assert_eq!(purged.status, 200, "{}", purged.text());
    assert_eq!(get(format!("{}/api/images", scene.larder.admin_url())).await.json()["images"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pull_is_enough_also_of_a_registry_that_nobody_named() {
    let mut other = Hub::start(with_private(Options::with_tokens())).await;
    let (image, private) = (Image::new(3), Image::new(4));
    other.push_image(NAME, "1", &image);
    other.push_image(PRIVATE, "1", &private);
    let allow = format!("[allowlist]\ndomains = [\"{}\"]", other.address());
    let scene = Proxied::start_with(Options::default(), "", ["", ""], &allow).await;
    let browser = scene.browser();
    let url = |name: &str, digest: &str| format!("{}/v2/{name}/blobs/{digest}", other.url());
    let (own, mine) = (token(&other, NAME, "me:mine").await, token(&other, PRIVATE, "me:mine").await);
    let layers = image.layer_digests();
    for (who, name, digest) in
        [("", NAME, &image.config_digest()), (&own, NAME, &layers[0]), (&mine, PRIVATE, &private.layer_digests()[0])]
    {
        assert_eq!(browser.get_as(who, url(name, digest)).await.header("x-cache"), "MISS");
    }
    let is_learnt = async || {
        let log = scene.larder.log();
        log.lines().any(|line| line.contains("is for everybody") && line.contains(&layers[0]))
    };
    eventually("it is looked at as nobody", is_learnt).await;
    let urls = [url(NAME, &image.config_digest()), url(NAME, &layers[0])];
    let hidden = url(PRIVATE, &private.layer_digests()[0]);
    other.stop().await;
    for url in &urls {
        eventually("it is served", async || browser.get(url).await.header("x-cache") == "HIT").await;
    }
    assert_eq!(browser.get(&hidden).await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_of_the_clients_own_choice_is_not_believed_to_have_what_it_does_not_send() {
    let evil = Hub::start(Options::default()).await;
    let allow = format!("[allowlist]\ndomains = [\"{}\"]", evil.address());
    let scene = Proxied::start_with(with_private(Options::with_tokens()), "", ["", ""], &allow).await;
    let image = Image::new(1);
    scene.hub.push_image(PRIVATE, "1", &image);
    pull(&scene, PRIVATE, &image, &token(&scene.hub, PRIVATE, "me:mine").await).await;
    let digest = image.layer_digests()[0].clone();
    let size = image.blobs()[1].len();
    let browser = scene.browser();
    let url = format!("{}/v2/x/blobs/{digest}", evil.url());
    // It says that it has it, and how long it is, and where.
    let yes = Fault::Status(200, vec![("content-length".to_owned(), size.to_string())], String::new());
    let there = Fault::Status(307, vec![("location".to_owned(), format!("/storage/{digest}"))], String::new());
    for claim in [yes, there] {
        let injected = evil.fault(On::any().head(), claim);
        let stolen = browser.get(&url).await;
        assert_ne!(stolen.status, 200);
        assert_ne!(stolen.body, image.blobs()[1]);
        injected.lift();
    }
    let manifest = format!("{}/v2/x/manifests/{}", evil.url(), image.manifest.digest);
    let yes =
        Fault::Status(200, vec![("docker-content-digest".to_owned(), image.manifest.digest.clone())], String::new());
    evil.fault(On::any().head(), yes);
    assert_ne!(browser.get(&manifest).await.status, 200);
    evil.clear_faults();
    // Who sends it has it.
    evil.push_blob("x", image.blobs()[1].clone());
    assert_eq!(browser.get(&url).await.body, image.blobs()[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_about_what_is_not_there_yet_or_by_way_of_a_tag_are_worth_nothing() {
    let evil = Hub::start(Options::default()).await;
    let allow = format!("[allowlist]\ndomains = [\"{}\"]", evil.address());
    let scene = Proxied::start_with(with_private(Options::with_tokens()), "", ["", ""], &allow).await;
    let image = Image::new(1);
    scene.hub.push_image(PRIVATE, "1", &image);
    let (layer, manifest) = (image.layer_digests()[0].clone(), image.manifest.digest.clone());
    let browser = scene.browser();
    let (blob_url, manifest_url) =
        (format!("{}/v2/x/blobs/{layer}", evil.url()), format!("{}/v2/x/manifests/{manifest}", evil.url()));
    // Said before anybody has it: yes to HEAD, and a beginning of something else.
    let headers = vec![
        ("docker-content-digest".to_owned(), manifest.clone()),
        ("content-type".to_owned(), "application/vnd.oci.image.manifest.v1+json".to_owned()),
        ("content-length".to_owned(), image.manifest.bytes.len().to_string()),
    ];
    let claim = evil.fault(On::any().head(), Fault::Status(200, headers, String::new()));
    evil.push_blob_as("x", &layer, vec![7; image.blobs()[1].len()]);
    for url in [&blob_url, &manifest_url] {
        browser.send("HEAD", url, &[], "").await;
        browser.get(url).await;
    }
    pull(&scene, PRIVATE, &image, &token(&scene.hub, PRIVATE, "me:mine").await).await;
    let tag = format!("{}/v2/x/manifests/latest", evil.url());
    for url in [&blob_url, &manifest_url, &tag] {
        for _ in 0..2 {
            let stolen = browser.get(url).await;
            assert!(stolen.body != image.blobs()[1] && stolen.body != image.manifest.bytes, "{url}: {}", stolen.status);
        }
    }
    claim.lift();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_registry_of_another_clients_choice() {
    let slow = Hub::start(Options::default()).await;
    let allow = format!("[allowlist]\ndomains = [\"{}\"]", slow.address());
    let scene = Proxied::start_with(Options::default(), "", ["", ""], &allow).await;
    let image = Image::new(1);
    let digest = image.layer_digests()[0].clone();
    slow.push_image("x", "1", &image);
    scene.hub.push_image(NAME, "1", &image);
    let gate = slow.gate(On::blob(), 1000);
    let (browser, url) = (scene.browser(), format!("{}/v2/x/blobs/{digest}", slow.url()));
    let waiting = tokio::spawn(async move { browser.get(url).await });
    gate.reached().await;
    let blob = scene.browser().get(scene.blob(NAME, &digest)).await;
    assert!(blob.complete() && blob.body == image.blobs()[1]);
    gate.open();
    assert_eq!(waiting.await.expect("no panic").body, image.blobs()[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_of_the_clients_own_choice_leads_to_no_other_ports() {
    let evil = Hub::start(Options::default()).await;
    let inside = Hub::start(Options::default()).await;
    let digest = inside.push_blob("x", "inside");
    // The network is open, its other ports are not.
    let allow = format!("[allowlist]\ndomains = [\"127.0.0.0/8\", \"*:{}\"]", evil.address().port());
    let scene = Proxied::start_with(Options::default(), "", ["", ""], &allow).await;
    let there = format!("{}/v2/x/blobs/{digest}", inside.url());
    evil.fault(On::blob(), Fault::Status(307, vec![("location".to_owned(), there.clone())], String::new()));
    let answer = scene.browser().get(format!("{}/v2/x/blobs/{digest}", evil.url())).await;
    assert!(answer.status != 200 && answer.text() != "inside", "{}", answer.text());
    assert!(scene.browser().get(&there).await.status == 403 && inside.connections() == 0);
    // It says why, and names a key that helps.
    let text = answer.text();
    assert!(text.contains("leads to ports 80 and 443 only") && !text.contains("redirect_hosts"), "{text}");
    assert!(text.contains("name 127.0.0.1 in allowlist.domains"), "{text}");
    let allow = format!("[allowlist]\ndomains = [\"127.0.0.1\", \"127.0.0.1:{}\"]", evil.address().port());
    let scene = Proxied::start_with(Options::default(), "", ["", ""], &allow).await;
    let answer = scene.browser().get(format!("{}/v2/x/blobs/{digest}", evil.url())).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "inside"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_just_now_is_cached_when_it_is_pulled() {
    let scene = Proxied::start(Options::default()).await;
    let image = Image::new(1);
    let url = scene.blob(NAME, &image.layer_digests()[0]);
    assert_eq!(scene.browser().send("HEAD", &url, &[], "").await.status, 404);
    scene.hub.push_image(NAME, "1", &image);
    assert_eq!(scene.browser().get(&url).await.header("x-cache"), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_configuration_log_all_clients_in() {
    let secret = format!("Basic {}", BASE64_STANDARD.encode("me:mine"));
    let hub = Hub::start(with_private(Options::with_basic("x", "x"))).await;
    let image = Image::new(1);
    hub.push_image(PRIVATE, "1", &image);
    let headers = format!(
        "[allowlist]\ndomains = [\"{host}\"]\n[headers.\"{host}\".set]\nAuthorization = \"{secret}\"\n[headers.\"{host}\".append]\nX-Team = \"builds\"",
        host = hub.address()
    );
    let scene = Proxied::start_with(Options::default(), "", ["", ""], &headers).await;
    let browser = scene.browser();
    let url = format!("{}/v2/{PRIVATE}/manifests/1", hub.url());
    assert_eq!(browser.get(&url).await.body, image.manifest.bytes);
    let base = browser.send("GET", format!("{}/v2/", hub.url()), &[("x-team", "mine")], "").await;
    assert_eq!(base.status, 200, "what is not cached gets them, too");
    // They are for reading, though.
    let refused = browser.send("DELETE", &url, &[], "").await;
    assert_eq!((refused.status, hub.requests().last().and_then(|last| last.header("authorization"))), (401, None));
    let asked = hub.take_requests();
    let reads = asked.iter().filter(|request| request.method != "DELETE");
    assert!(reads.clone().count() > 1 && reads.clone().all(|request| request.header("authorization") == Some(&secret)));
    assert!(!scene.larder.log().contains(&secret), "{}", scene.larder.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credentials_of_the_configuration_are_for_whom_the_repository_allows() {
    let image = Image::new(1);
    for (allow, status) in [("[\"127.0.0.0/8\"]", 200), ("[\"10.0.0.0/8\"]", 401)] {
        let options = with_private(Options::with_basic("x", "x"));
        let upstream = "username = \"me\"\npassword = \"mine\"";
        let keys = [&format!("allow = {allow}"), upstream];
        let scene = Proxied::start_with(options, "client_credentials = \"ignore\"", keys, "").await;
        scene.hub.push_image(PRIVATE, "1", &image);
        for url in [scene.manifest(PRIVATE, "1"), scene.blob(PRIVATE, &image.layer_digests()[0])] {
            assert_eq!(scene.browser().get(&url).await.status, status, "{allow} {url}");
        }
        // The client's own are not needed, and not looked at where they are not.
        let own = scene.browser().get_as("Basic bWU6bWluZQ==", scene.manifest(PRIVATE, "1")).await;
        assert_eq!(own.status, 200, "{allow}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_go_through_untouched() {
    let scene = Proxied::start(Options::default()).await;
    let manifest = Manifest::new("{}", "application/vnd.oci.image.manifest.v1+json");
    let url = scene.manifest(NAME, "1");
    let put =
        scene.browser().send("PUT", &url, &[("content-type", &manifest.media_type)], manifest.bytes.clone()).await;
    let direct = request("PUT", url.replace(&scene.front.url(), &scene.hub.url())).body(manifest.bytes).send().await;
    assert_eq!((put.status, put.body), (direct.status, direct.body));
    let asked = scene.hub.take_requests();
    assert_eq!(asked.iter().map(|request| request.method.as_str()).collect::<Vec<_>>(), ["PUT", "PUT"]);
    assert_eq!(put.headers.get("x-cache"), None, "only what is cached says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_misses_are_counted_and_told() {
    let scene = Proxied::start(Options::default()).await;
    let image = Image::new(1);
    scene.hub.push_image(NAME, "1", &image);
    pull(&scene, NAME, &image, "").await;
    let objects: Vec<_> = std::iter::once(image.config_digest()).chain(image.layer_digests()).collect();
    let is_stored = async || scene.larder.has_stored(&objects).await;
    eventually("all of it is stored", is_stored).await;
    let before = scene.larder.stats().await;
    pull(&scene, NAME, &image, "").await;
    let after = scene.larder.stats().await;
    let count = |stats: &serde_json::Value, key: &str| stats[key].as_u64().expect("a number");
    assert_eq!(count(&after, "hits") - count(&before, "hits"), 1 + image.blobs().len() as u64);
    assert_eq!(count(&after, "misses"), count(&before, "misses"));
    let path = format!("/v2/{NAME}/blobs/{}", image.layer_digests()[0]);
    let told = |message: &str| {
        scene.larder.log().lines().any(|line| line.contains(&format!("\"{message}\"")) && line.contains(&path))
    };
    let are_told = async || told("cache miss") && told("cached response") && told("cache hit");
    eventually("the log says so", are_told).await;
    assert!(Browser::new(&scene.larder, None).get(scene.manifest(NAME, "2")).await.status == 404);
}
