//! Promise: a registry is not asked about each blob of an image, and nobody reads for it what the registry would not give.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::support::content::{OCI_MANIFEST, sha256};
use crate::support::{Auth, Hub, Image, Larder, Manifest, On, Options, Proxied, RepositoryConfig, eventually, request};

const PRIVATE: &str = "team/private";

fn options() -> Options {
    Options { auth: Auth::Basic, ..Options::with_redirects() }
        .user("me", "mine")
        .user("you", "yours")
        .private(PRIVATE, "me")
}

/// As different clients with the same rights, which is what tokens make of one client.
fn login(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

fn large_image(seed: u64) -> Image {
    Image::with_layers(seed, &[3_000; 12])
}

/// Pulls an image and tells how often the upstream was asked by HEAD for blobs.
async fn pull(scene: &Proxied, name: &str, image: &Image, who: &str) -> usize {
    let browser = scene.browser();
    scene.hub.take_requests();
    let tag = browser.get_as(who, scene.manifest(name, "1")).await;
    assert_eq!((tag.status, &tag.body), (200, &image.manifest.bytes));
    for bytes in image.blobs() {
        let blob = browser.get_as(who, scene.blob(name, &sha256(&bytes))).await;
        assert!(blob.status == 200 && blob.body == bytes, "{}", blob.text());
    }
    scene.hub.count_on(On::blob().head())
}

async fn is_stored(scene: &Proxied, image: &Image) {
    let digests: Vec<_> = image.blobs().iter().map(|bytes| sha256(bytes)).collect();
    eventually("all of it is stored", async || scene.larder.has_stored(&digests).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_image_that_is_private_two_blobs_are_asked_for() {
    let scene = Proxied::start(options().user("also-me", "x").private(PRIVATE, "also-me")).await;
    let image = large_image(1);
    scene.hub.push_image(PRIVATE, "1", &image);
    pull(&scene, PRIVATE, &image, &login("me:mine")).await;
    is_stored(&scene, &image).await;
    // Another token, or another client that may: as many questions as show that it may.
    let asked = pull(&scene, PRIVATE, &image, &login("also-me:x")).await;
    assert_eq!(asked, 2, "{}", scene.hub.summary());
    assert_eq!(scene.hub.count_on(On::blob().get()), 0, "{}", scene.hub.summary());
    // Who may not is refused all the same, and asked about each time.
    for bytes in image.blobs() {
        let browser = scene.browser();
        assert_eq!(browser.get_as(&login("you:yours"), scene.blob(PRIVATE, &sha256(&bytes))).await.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_image_that_is_for_everybody_two_blobs_are_asked_for_as_nobody() {
    let mut scene = Proxied::start(Options::with_tokens()).await;
    let image = large_image(1);
    scene.hub.push_image("team/app", "1", &image);
    let url = format!("{}/token?service=hub&scope=repository:team/app:pull", scene.hub.token_url());
    let token = crate::support::get(url).await.json()["token"].as_str().expect("a token").to_owned();
    let (browser, who) = (scene.browser(), format!("Bearer {token}"));
    let learnt = |digest: &str| {
        scene.larder.log().lines().any(|line| line.contains("\"an object is for everybody") && line.contains(digest))
    };
    let first = [scene.manifest("team/app", "1"), scene.blob("team/app", &image.config_digest())];
    let first = first.into_iter().zip([image.manifest.digest.clone(), image.config_digest()]);
    let layers = image.layer_digests();
    let layer = (scene.blob("team/app", &layers[0]), layers[0].clone());
    for (url, digest) in first.chain([layer]) {
        assert_eq!(browser.get_as(&who, url).await.status, 200);
        eventually("it is known to be for everybody", async || learnt(&digest)).await;
    }
    scene.hub.take_requests();
    for digest in &layers[1..] {
        assert_eq!(browser.get_as(&who, scene.blob("team/app", digest)).await.status, 200);
        eventually("it is known to be for everybody", async || learnt(digest)).await;
    }
    assert_eq!(scene.hub.count_on(On::blob().head()), 0, "{}", scene.hub.summary());
    scene.hub.stop().await;
    for digest in &layers {
        assert_eq!(browser.get(scene.blob("team/app", digest)).await.status, 200, "without the registry, as nobody");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_names_somebody_elses_blobs_opens_none_of_them() {
    let scene = Proxied::start(options()).await;
    let (image, own) = (large_image(1), large_image(2));
    scene.hub.push_image(PRIVATE, "1", &image);
    pull(&scene, PRIVATE, &image, &login("me:mine")).await;
    is_stored(&scene, &image).await;
    // In a repository of the attacker's own, of which it was shown manifest and blobs.
    scene.hub.push_image("you/evil", "1", &own);
    pull(&scene, "you/evil", &own, &login("you:yours")).await;
    let entry = |digest: &str| serde_json::json!({"mediaType": "x/y", "digest": digest, "size": 1});
    let layers: Vec<_> = image.layer_digests().iter().chain(&own.layer_digests()).map(|digest| entry(digest)).collect();
    let evil = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry(&image.config_digest()), "layers": layers});
    scene.hub.push_manifest("you/evil", Some("2"), &Manifest::new(evil.to_string(), OCI_MANIFEST));
    let (browser, you) = (scene.browser(), login("you:yours"));
    assert_eq!(browser.get_as(&you, scene.manifest("you/evil", "2")).await.status, 200);
    for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
        for name in ["you/evil", PRIVATE] {
            let stolen = browser.get_as(&you, scene.blob(name, digest)).await;
            assert!(matches!(stolen.status, 401 | 404), "{name}: {}", stolen.status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_manifest_named_to_a_client_is_asked_for_and_a_refusal_ends_it() {
    let scene = Proxied::start(options().user("also-me", "x").private(PRIVATE, "also-me")).await;
    let (image, other) = (large_image(1), large_image(2));
    scene.hub.push_image(PRIVATE, "1", &image);
    scene.hub.push_image(PRIVATE, "2", &other);
    let (browser, me, also_me) = (scene.browser(), login("me:mine"), login("also-me:x"));
    pull(&scene, PRIVATE, &image, &me).await;
    for digest in other.layer_digests() {
        assert_eq!(browser.get_as(&me, scene.blob(PRIVATE, &digest)).await.status, 200);
    }
    is_stored(&scene, &image).await;
    let layers = image.layer_digests();
    // Shown two blobs, and no manifest.
    let heads = |hub: &Hub| hub.count_on(On::blob().head());
    scene.hub.take_requests();
    for digest in &layers[..4] {
        assert_eq!(browser.get_as(&also_me, scene.blob(PRIVATE, digest)).await.status, 200);
    }
    assert_eq!(heads(&scene.hub), 4, "{}", scene.hub.summary());
    assert_eq!(browser.get_as(&also_me, scene.manifest(PRIVATE, "1")).await.status, 200);
    scene.hub.take_requests();
    assert_eq!(browser.get_as(&also_me, scene.blob(PRIVATE, &layers[4])).await.status, 200);
    assert_eq!(heads(&scene.hub), 0, "{}", scene.hub.summary());
    // It loses its rights, which shows with the first thing that is asked for.
    scene.hub.configure(|options| options.private = vec![(PRIVATE.to_owned(), "me".to_owned())]);
    let refused = browser.get_as(&also_me, scene.blob(PRIVATE, &other.layer_digests()[0])).await;
    assert_eq!(refused.status, 401, "what no manifest named is asked for");
    for digest in &layers[5..] {
        assert_eq!(browser.get_as(&also_me, scene.blob(PRIVATE, digest)).await.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_upstream_of_several_shows_says_nothing_of_the_same_name_at_another() {
    const NAME: &str = "team/app";
    // Whoever likes pushes to the first, and the name is private at the second.
    let first = Hub::start(Options::default()).await;
    let second = Hub::start(options().private(NAME, "me")).await;
    let (image, own) = (large_image(1), large_image(2));
    second.push_image(NAME, "1", &image);
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&first).upstream(&second);
    let larder = Larder::start(config).await;
    let name = format!("hub/{NAME}");
    let get_as = async |pair: &str, url: String| request("GET", url).header("authorization", login(pair)).send().await;
    assert_eq!(get_as("me:mine", larder.manifest_url(&name, "1")).await.status, 200);
    for digest in image.layer_digests() {
        assert_eq!(get_as("me:mine", larder.blob_url(&name, &digest)).await.status, 200);
        eventually("it is stored", async || larder.object(&digest).exists()).await;
    }
    first.push_image(NAME, "2", &own);
    let entry = |digest: &str| serde_json::json!({"mediaType": "x/y", "digest": digest, "size": 1});
    let layers: Vec<_> = image.layer_digests().iter().map(|digest| entry(digest)).collect();
    let evil = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry(&own.config_digest()), "layers": layers});
    first.push_manifest(NAME, Some("evil"), &Manifest::new(evil.to_string(), OCI_MANIFEST));
    assert_eq!(get_as("you:yours", larder.manifest_url(&name, "evil")).await.status, 200);
    for digest in &own.layer_digests()[..3] {
        assert_eq!(get_as("you:yours", larder.blob_url(&name, digest)).await.status, 200);
    }
    for digest in image.layer_digests() {
        let stolen = get_as("you:yours", larder.blob_url(&name, &digest)).await;
        assert_eq!(stolen.status, 403, "{}", stolen.text());
    }
}

/// Some registries give configs to everybody (a config comes first, and clients show it before they log in).
#[tokio::test(flavor = "multi_thread")]
async fn the_configs_of_two_images_open_no_layer() {
    let scene = Proxied::start(options().user("also-me", "x").private(PRIVATE, "also-me")).await;
    let images = [large_image(1), large_image(2)];
    let (browser, also_me) = (scene.browser(), login("also-me:x"));
    for (tag, image) in ["1", "2"].into_iter().zip(&images) {
        scene.hub.push_image(PRIVATE, tag, image);
        for bytes in image.blobs() {
            let blob = browser.get_as(&login("me:mine"), scene.blob(PRIVATE, &sha256(&bytes))).await;
            assert_eq!(blob.status, 200);
        }
        is_stored(&scene, image).await;
    }
    for (tag, image) in ["1", "2"].into_iter().zip(&images) {
        assert_eq!(browser.get_as(&also_me, scene.manifest(PRIVATE, tag)).await.status, 200);
        assert_eq!(browser.get_as(&also_me, scene.blob(PRIVATE, &image.config_digest())).await.status, 200);
    }
    scene.hub.take_requests();
    let layers = images[0].layer_digests();
    for layer in &layers[..3] {
        assert_eq!(browser.get_as(&also_me, scene.blob(PRIVATE, layer)).await.status, 200);
    }
    assert_eq!(scene.hub.count_on(On::blob().head()), 1, "the first layer is asked for: {}", scene.hub.summary());
}
