//! Promise: once a client asks for the configuration of an image, the layers are asked for, too, so that a pull over a
//! long line takes fewer round trips. Nothing of them comes in before the client asks, and only for that client.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::support::{Fault, Hub, Image, Larder, On, Options, RepositoryConfig, Request, eventually, get, request};

const KIB: usize = 1 << 10;

/// A Larder by its defaults, but for these lines about the repository and its upstream.
async fn larder(hub: &Hub, keys: &str, of_upstream: &str) -> Larder {
    let config = RepositoryConfig::new("hub").default_prefetch().set(keys);
    Larder::start(config.upstream_with(hub, of_upstream)).await
}

fn image(seed: u64) -> Image {
    Image::with_layers(seed, &[20 * KIB, 5 * KIB, 30 * KIB, 8 * KIB])
}

async fn manifest(larder: &Larder, name: &str, reference: &str) {
    let answer = get(larder.manifest_url(&format!("hub/{name}"), reference)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

async fn blob(larder: &Larder, name: &str, digest: &str) {
    let answer = get(larder.blob_url(&format!("hub/{name}"), digest)).await;
    assert!(answer.status == 200 && answer.complete(), "{}", answer.text());
}

fn all(image: &Image) -> Vec<String> {
    [image.layer_digests(), vec![image.config_digest()]].concat()
}

async fn is_whole(larder: &Larder, image: &Image) {
    eventually("the image is whole", async || larder.has_stored(&all(image)).await).await;
}

fn gets(hub: &Hub, digest: &str) -> usize {
    hub.count_on(On::blob().get().reference(digest))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_configuration_comes_the_layers_are_asked_for_once_and_nothing_of_them_is_stored() {
    for options in [Options::default(), Options::with_redirects()] {
        let hub = Hub::start(options).await;
        let image = image(1);
        hub.push_image("team/app", "1", &image);
        let larder = larder(&hub, "", "").await;
        let (layers, config) = (image.layer_digests(), image.config_digest());
        let held = hub.hold(On::blob().get().reference(&config));
        manifest(&larder, "team/app", "1").await;
        let asked = tokio::spawn(request("GET", larder.blob_url("hub/team/app", &config)).send());
        eventually("all layers are asked for", async || layers.iter().all(|layer| gets(&hub, layer) == 1)).await;
        assert_eq!(larder.stats().await["fills_running"], 1, "the configuration's");
        held.open();
        assert!(asked.await.expect("no panic").complete());
        assert!(layers.iter().all(|layer| !larder.object(layer).exists()));
        for layer in &layers {
            blob(&larder, "team/app", layer).await;
        }
        is_whole(&larder, &image).await;
        for digest in all(&image) {
            assert_eq!(gets(&hub, &digest), 1, "{}", hub.summary());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_was_opened_ahead_and_breaks_goes_on_where_it_broke() {
    let hub = Hub::start(Options::with_redirects()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "", "").await;
    let layer = &image.layer_digests()[2];
    let broken = hub.fault(On::storage().get().reference(layer).times(1), Fault::Short { after: 10_000 });
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &image.config_digest()).await;
    eventually("it was opened", async || broken.hits() == 1).await;
    // The signed address has ended, too: the registry is asked again.
    hub.expire_redirects();
    blob(&larder, "team/app", layer).await;
    assert_eq!(hub.bytes_sent(layer), 30 * KIB as u64, "{}", hub.summary());
    assert_eq!(gets(&hub, layer), 2, "{}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_refused_ahead_is_refused() {
    let hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "", "").await;
    let layer = &image.layer_digests()[1];
    hub.delete_blob("team/app", layer);
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &image.config_digest()).await;
    eventually("it was asked for", async || gets(&hub, layer) >= 1).await;
    assert_eq!(get(larder.blob_url("hub/team/app", layer)).await.status, 404);
    blob(&larder, "team/app", &image.layer_digests()[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_connections_are_few_none_is_opened_ahead() {
    let hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "", "max_connections = 3").await;
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &image.config_digest()).await;
    // What was begun before would have shown itself by the time that another image is whole.
    let other = Image::with_layers(2, &[KIB]);
    hub.push_image("team/other", "1", &other);
    manifest(&larder, "team/other", "1").await;
    blob(&larder, "team/other", &other.layer_digests()[0]).await;
    is_whole(&larder, &other).await;
    for layer in &image.layer_digests() {
        assert_eq!(hub.count_on(On::blob().reference(layer)), 0, "{}", hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_opened_for_one_client_is_not_for_another() {
    let options = Options::with_basic("me", "mine").user("you", "yours").private("team/app", "me");
    let hub = Hub::start(options).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "client_credentials = \"pass\"", "").await;
    let ask = async |pair: &str, url: String| {
        let login = format!("Basic {}", BASE64_STANDARD.encode(pair));
        request("GET", url).header("authorization", login).send().await
    };
    let (layers, config) = (image.layer_digests(), image.config_digest());
    let mine = format!("Basic {}", BASE64_STANDARD.encode("me:mine"));
    let is_mine = |request: &Request| request.header("authorization") == Some(&mine);
    let by_me = |layer: &str| hub.count(|request| request.path.ends_with(layer) && is_mine(request));
    assert_eq!(ask("me:mine", larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert!(ask("me:mine", larder.blob_url("hub/team/app", &config)).await.complete());
    eventually("all are open", async || layers.iter().all(|layer| gets(&hub, layer) == 1)).await;
    for layer in &layers {
        assert_eq!(ask("you:yours", larder.blob_url("hub/team/app", layer)).await.status, 403);
        assert!(!larder.object(layer).exists());
        assert!(ask("me:mine", larder.blob_url("hub/team/app", layer)).await.complete());
        assert_eq!(by_me(layer), 1, "{}", hub.summary());
    }
}
