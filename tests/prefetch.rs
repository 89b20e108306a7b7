//! Promise: an image that was pulled once is whole in the cache. What the client had already is brought in behind it,
//! and no client waits for that, nor is anything fetched that nobody pulls.
//!
//! How clients ask: `tests/traces`. Harbor fetches what Docker left out for the same reason ("docker client will skip to
//! pull layers exist in local", src/controller/proxy/manifestcache.go of goharbor/harbor).

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::support::{
    Fault, Gate, Hub, Image, Index, Larder, On, Options, Proxied, RateLimit, RepositoryConfig, eventually, get, head,
    request,
};

const KIB: usize = 1 << 10;

/// A Larder by its defaults, but for these lines about the repository.
async fn larder(hub: &Hub, keys: &str) -> Larder {
    Larder::start(RepositoryConfig::new("hub").default_prefetch().set(keys).upstream(hub)).await
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

/// How many images ended like this, as the metrics say.
async fn ended(larder: &Larder, result: &str) -> u64 {
    let line = format!("larder_prefetch_images_total{{result=\"{result}\"}} ");
    larder.metrics().await.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok()).unwrap_or_default()
}

async fn ends(larder: &Larder, result: &str) {
    eventually(result, async || ended(larder, result).await == 1).await;
}

fn gets(hub: &Hub, digest: &str) -> usize {
    hub.count_on(On::blob().get().reference(digest))
}

/// Pulls another image and waits until it is whole: what was begun before would have shown itself by then.
async fn another_comes(hub: &Hub, larder: &Larder, seed: u64) {
    let other = image(seed);
    hub.push_image("team/other", "1", &other);
    manifest(larder, "team/other", "1").await;
    blob(larder, "team/other", &other.layer_digests()[0]).await;
    is_whole(larder, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_had_already_is_there_for_the_next_when_the_upstream_is_gone() {
    let mut hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "").await;
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &image.layer_digests()[2]).await;
    is_whole(&larder, &image).await;
    ends(&larder, "whole").await;
    hub.stop().await;
    manifest(&larder, "team/app", "1").await;
    for digest in all(&image) {
        blob(&larder, "team/app", &digest).await;
    }
    let bytes = image.blobs().iter().map(|blob| blob.len()).sum::<usize>() - 30 * KIB;
    let metrics = larder.metrics().await;
    assert!(metrics.contains(&format!("larder_prefetch_bytes_total {bytes}\n")), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_fetches_nothing_again_and_no_layer_of_an_image_is_fetched_twice() {
    let hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "").await;
    let pull = async |client: u8| {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, client));
        let url = larder.manifest_url("hub/team/app", "1");
        assert_eq!(request("GET", &url).from(from).send().await.status, 200);
        for digest in all(&image) {
            let answer = request("GET", larder.blob_url("hub/team/app", &digest)).from(from).send().await;
            assert!(answer.status == 200 && answer.complete(), "{digest}");
        }
    };
    tokio::join!(pull(2), pull(3), pull(4));
    is_whole(&larder, &image).await;
    eventually("it has ended", async || ended(&larder, "whole").await + ended(&larder, "present").await >= 1).await;
    let before = ended(&larder, "present").await;
    pull(5).await;
    eventually("nothing was missing", async || ended(&larder, "present").await > before).await;
    for digest in all(&image) {
        assert_eq!(gets(&hub, &digest), 1, "{}", hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_only_the_platform_that_was_pulled_comes() {
    let hub = Hub::start(Options::default()).await;
    let index = Index::new(1, &["linux/amd64", "linux/arm64"]);
    hub.push_index("team/app", "1", &index);
    let larder = larder(&hub, "").await;
    manifest(&larder, "team/app", "1").await;
    let [pulled, other] = &index.images[..] else { panic!("two platforms") };
    manifest(&larder, "team/app", &pulled.manifest.digest).await;
    blob(&larder, "team/app", &pulled.layer_digests()[0]).await;
    is_whole(&larder, pulled).await;
    another_comes(&hub, &larder, 2).await;
    assert_eq!(hub.count_on(On::manifest().reference(&other.manifest.digest)), 0);
    for digest in all(other).iter().filter(|digest| !all(pulled).contains(digest)) {
        assert_eq!(hub.count_on(On::blob().reference(digest)), 0, "{}", hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_images_with_a_layer_in_common_only_the_one_that_is_pulled_comes() {
    let hub = Hub::start(Options::default()).await;
    let base = vec![1_u8; 10 * KIB];
    let mut images = Vec::new();
    for seed in 0..20 {
        let mut image = Image::with_layers(seed, &[4 * KIB, KIB]);
        let mut document: Value = serde_json::from_slice(&image.manifest.bytes).expect("JSON");
        document["layers"][0]["digest"] = json!(crate::support::sha256(&base));
        document["layers"][0]["size"] = json!(base.len());
        image.layers[0] = base.clone().into();
        image.manifest = crate::support::Manifest::new(document.to_string(), &image.manifest.media_type);
        hub.push_image("team/app", &seed.to_string(), &image);
        images.push(image);
    }
    let larder = larder(&hub, "").await;
    // Others look at all of them.
    for seed in 0..20 {
        let url = larder.manifest_url("hub/team/app", &seed.to_string());
        let looked = request("GET", url).from(Ipv4Addr::new(127, 0, 0, 9).into()).send().await;
        assert_eq!(looked.status, 200);
    }
    manifest(&larder, "team/app", "7").await;
    blob(&larder, "team/app", &images[7].layer_digests()[0]).await;
    is_whole(&larder, &images[7]).await;
    another_comes(&hub, &larder, 99).await;
    for (seed, image) in images.iter().enumerate().filter(|(seed, _)| *seed != 7) {
        assert_eq!(hub.count_on(On::blob().reference(&image.layer_digests()[1])), 0, "{seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_an_image_and_a_lazy_pull_bring_in_nothing_more() {
    let hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "").await;
    let layer = &image.layer_digests()[0];
    let url = larder.blob_url("hub/team/app", layer);
    assert_eq!(head(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    manifest(&larder, "team/app", "1").await;
    // Tools that inspect images, and containerd before a lazy pull, fetch this whole.
    blob(&larder, "team/app", &image.config_digest()).await;
    assert_eq!(head(&url).await.status, 200);
    // stargz, podman (zstd:chunked), SOCI: see tests/traces.
    for range in ["bytes=0-1", "bytes=100-200,300-400", "bytes=10-9999", "bytes=-100"] {
        assert_eq!(request("GET", &url).header("range", range).send().await.status, 206, "{range}");
    }
    another_comes(&hub, &larder, 2).await;
    for digest in &image.layer_digests()[1..] {
        assert_eq!(hub.count_on(On::blob().reference(digest)), 0, "{}", hub.summary());
    }
    // A pull that goes on where it broke off, and containerd with several connections (containerd_open_ranges).
    assert_eq!(request("GET", &url).header("range", "bytes=100-").send().await.status, 206);
    is_whole(&larder, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_does_not_wait_for_the_layer_that_the_client_asks_for() {
    let hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "").await;
    let layers = image.layer_digests();
    let held = hub.hold(On::blob().get().reference(&layers[0]));
    manifest(&larder, "team/app", "1").await;
    let asked = tokio::spawn(request("GET", larder.blob_url("hub/team/app", &layers[0])).send());
    eventually("the others are there", async || {
        layers[1..].iter().chain([&image.config_digest()]).all(|digest| larder.object(digest).exists())
    })
    .await;
    assert!(!larder.object(&layers[0]).exists());
    held.open();
    assert!(asked.await.expect("no panic").complete());
    ends(&larder, "whole").await;
    for digest in all(&image) {
        assert_eq!(gets(&hub, &digest), 1, "{}", hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_small_layers_many_come_at_once_and_of_large_ones_few() {
    for (size, at_once) in [(KIB, 12), (4 << 20, 3)] {
        let hub = Hub::start(Options::default()).await;
        let image = Image::with_layers(1, &[size; 16]);
        hub.push_image("team/app", "1", &image);
        let larder = larder(&hub, "").await;
        manifest(&larder, "team/app", "1").await;
        let layers = image.layer_digests();
        let held: Vec<_> = layers.iter().map(|layer| hub.hold(On::blob().get().reference(layer))).collect();
        // Small as it is, it takes no layer's turn for long.
        let asked = tokio::spawn(request("GET", larder.blob_url("hub/team/app", &layers[0])).send());
        let waiting = || held.iter().map(Gate::waiting).sum::<usize>();
        eventually("as many as may come are asked for", async || waiting() == 1 + at_once).await;
        eventually("its configuration is there", async || larder.object(&image.config_digest()).exists()).await;
        for gate in held.iter().rev() {
            assert!(waiting() <= 1 + at_once, "{}", hub.summary());
            gate.open();
        }
        assert!(asked.await.expect("no panic").complete());
        is_whole(&larder, &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_waits_for_what_comes_behind_others() {
    for connections in [2, 4] {
        let hub = Hub::start(Options::default()).await;
        // More layers than come in at once.
        let (image, other) = (Image::with_layers(1, &[20 * KIB; 6]), image(2));
        hub.push_image("team/app", "1", &image);
        hub.push_image("team/other", "1", &other);
        let config = RepositoryConfig::new("hub").default_prefetch();
        let config = config.upstream_with(&hub, &format!("max_connections = {connections}"));
        let larder = Larder::start(config).await;
        let layers = image.layer_digests();
        let gates: Vec<_> =
            layers[1..].iter().map(|layer| hub.gate(On::blob().get().reference(layer), 1_000)).collect();
        manifest(&larder, "team/app", "1").await;
        blob(&larder, "team/app", &layers[0]).await;
        eventually("the rest comes", async || gates.iter().any(|gate| gate.waiting() > 0)).await;
        for digest in all(&other) {
            blob(&larder, "team/other", &digest).await;
        }
        // One that waits for its turn.
        let at = gates.iter().position(|gate| gate.waiting() == 0).expect("not all come at once");
        let pulled = request("GET", larder.blob_url("hub/team/app", &layers[at + 1])).open().await;
        gates[at].reached().await;
        gates.iter().for_each(Gate::open);
        assert!(pulled.read_to_end().await.complete());
        is_whole(&larder, &image).await;
        for digest in all(&image) {
            let begun = hub.count(|request| request.path.ends_with(&digest) && request.header("range").is_none());
            assert_eq!(begun, 1, "{connections}: {}", hub.summary());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_connection_is_given_to_a_client_who_needs_it() {
    let hub = Hub::start(Options::default()).await;
    let (image, other) = (image(1), image(2));
    hub.push_image("team/app", "1", &image);
    hub.push_image("team/other", "1", &other);
    let config = RepositoryConfig::new("hub").default_prefetch().upstream_with(&hub, "max_connections = 1");
    let larder = Larder::start(config).await;
    let layers = image.layer_digests();
    let gate = hub.gate(On::blob().get().reference(&layers[2]), 1_000);
    manifest(&larder, "team/app", "1").await;
    for digest in [&layers[0], &layers[1], &layers[3], &image.config_digest()] {
        blob(&larder, "team/app", digest).await;
    }
    let is_shown = |fill: &Value| {
        (&fill["digest"], &fill["prefetch"], &fill["clients"]) == (&json!(layers[2]), &json!(true), &json!(0))
    };
    eventually("it is shown", async || {
        let fills = get(format!("{}/api/fills", larder.admin_url())).await.json();
        gate.waiting() > 0 && fills["fills"].as_array().is_some_and(|all| all.iter().any(is_shown))
    })
    .await;
    for digest in all(&other) {
        blob(&larder, "team/other", &digest).await;
    }
    gate.open();
    is_whole(&larder, &image).await;
    let asked = hub.count(|request| request.path.ends_with(&layers[2]) && request.header("range").is_none());
    assert_eq!(asked, 1, "it goes on where it was: {}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_joins_what_comes_behind() {
    let hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "").await;
    let layers = image.layer_digests();
    let gate = hub.gate(On::blob().get().reference(&layers[2]), 1_000);
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &layers[0]).await;
    gate.reached().await;
    let joined = request("GET", larder.blob_url("hub/team/app", &layers[2])).open().await;
    assert!(joined.header("cache-status").contains("collapsed"), "{}", joined.header("cache-status"));
    gate.open();
    assert!(joined.read_to_end().await.complete());
    is_whole(&larder, &image).await;
    assert_eq!(gets(&hub, &layers[2]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_purged_meanwhile_stays_away() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[KIB, 20 * KIB, 20 * KIB, 20 * KIB, 20 * KIB, 20 * KIB]);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "").await;
    let layers = image.layer_digests();
    let gate = hub.gate(On::blob().get().name("team/app"), 2_000);
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &layers[0]).await;
    gate.wait_for(2).await;
    let purged = larder.run(&["purge", "hub/team/app:1"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    ends(&larder, "unwanted").await;
    eventually("no transfer runs", async || larder.stats().await["fills_running"] == 0).await;
    gate.open();
    another_comes(&hub, &larder, 2).await;
    for digest in &layers[1..] {
        assert!(!larder.object(digest).exists(), "{digest}");
    }
    let images = get(format!("{}/api/images", larder.admin_url())).await.json();
    assert!(!images.to_string().contains("team/app"), "{images}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_ends_what_comes_in_by_the_one_before() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[KIB, 200 * KIB, 200 * KIB]);
    hub.push_image("team/app", "1", &image);
    let mut larder = larder(&hub, "").await;
    let layers = image.layer_digests();
    let gate = hub.gate(On::blob().get().name("team/app"), 2_000);
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &layers[0]).await;
    gate.wait_for(2).await;
    larder.write_config(RepositoryConfig::new("hub").set("prefetch = \"off\"").upstream(&hub));
    ends(&larder, "unwanted").await;
    eventually("no transfer runs", async || larder.stats().await["fills_running"] == 0).await;
    gate.open();
    assert!(layers[1..].iter().all(|digest| !larder.object(digest).exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_quota_is_for_clients() {
    let rate_limit = Some(RateLimit { pulls: 1, ..RateLimit::default() });
    let hub = Hub::start(Options { rate_limit, ..Options::default() }).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "").await;
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &image.layer_digests()[0]).await;
    ends(&larder, "resting").await;
    assert_eq!(gets(&hub, &image.layer_digests()[1]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_larger_than_the_cache_drives_nothing_out() {
    let hub = Hub::start(Options::default()).await;
    let (small, large) = (image(1), Image::with_layers(2, &[100 * KIB, 1500 * KIB, 1500 * KIB, 1500 * KIB]));
    hub.push_image("team/small", "1", &small);
    hub.push_image("team/large", "1", &large);
    let config = RepositoryConfig::new("hub").default_prefetch().upstream(&hub);
    let larder = Larder::start(format!("[cache]\nmax_size = \"4MiB\"\n{config}")).await;
    manifest(&larder, "team/small", "1").await;
    blob(&larder, "team/small", &small.layer_digests()[0]).await;
    is_whole(&larder, &small).await;
    manifest(&larder, "team/large", "1").await;
    blob(&larder, "team/large", &large.layer_digests()[0]).await;
    ends(&larder, "too_large").await;
    is_whole(&larder, &small).await;
    assert!(larder.metrics().await.contains("larder_evictions_total 0\n"));
    assert_eq!(gets(&hub, &large.layer_digests()[1]), 0);

    // Nor does one that would fit alone, and leave no room for others.
    let more_than_half = Image::with_layers(3, &[100 * KIB, 1200 * KIB, 1200 * KIB]);
    hub.push_image("team/half", "1", &more_than_half);
    manifest(&larder, "team/half", "1").await;
    blob(&larder, "team/half", &more_than_half.layer_digests()[0]).await;
    eventually("it is left", async || ended(&larder, "too_large").await == 2).await;
    is_whole(&larder, &small).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_had_is_not_asked_for_again() {
    let hub = Hub::start(Options::default()).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let missing = &image.layer_digests()[1];
    hub.fault(On::blob().reference(missing), Fault::status(404));
    let larder = larder(&hub, "").await;
    manifest(&larder, "team/app", "1").await;
    blob(&larder, "team/app", &image.layer_digests()[0]).await;
    ends(&larder, "failed").await;
    another_comes(&hub, &larder, 2).await;
    assert_eq!(gets(&hub, missing), 1, "{}", hub.summary());
    let lines = larder.log().matches("the rest of an image did not come in").count();
    assert_eq!(lines, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_begin_with_the_manifest_and_off_begins_never() {
    let hub = Hub::start(Options::default()).await;
    let (early, never) = (image(1), image(2));
    let index = Index::new(3, &["linux/amd64"]);
    hub.push_image("team/early", "1", &early);
    hub.push_image("team/never", "1", &never);
    hub.push_index("team/index", "1", &index);
    let layers = RepositoryConfig::new("hub").set("prefetch = \"layers\"").upstream(&hub);
    let off = RepositoryConfig::new("off").set("prefetch = \"off\"").upstream(&hub);
    let larder = Larder::start(format!("{layers}{off}")).await;
    assert_eq!(get(larder.manifest_url("off/team/never", "1")).await.status, 200);
    assert!(get(larder.blob_url("off/team/never", &never.layer_digests()[0])).await.complete());
    assert_eq!(head(larder.manifest_url("hub/team/early", "1")).await.status, 200);
    manifest(&larder, "team/index", "1").await;
    another_comes(&hub, &larder, 4).await;
    assert_eq!(gets(&hub, &never.layer_digests()[1]), 0);
    assert_eq!(gets(&hub, &early.layer_digests()[0]), 0);
    assert_eq!(hub.count_on(On::manifest().reference(&index.images[0].manifest.digest)), 0);
    manifest(&larder, "team/early", "1").await;
    is_whole(&larder, &early).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_with_the_credentials_of_the_client_and_nobody_else_may_read_it() {
    let options = Options::with_basic("me", "mine").user("you", "yours").private("team/app", "me");
    let hub = Hub::start(options).await;
    let image = image(1);
    hub.push_image("team/app", "1", &image);
    let larder = larder(&hub, "client_credentials = \"pass\"").await;
    let ask = async |pair: &str, url: String| {
        let login = format!("Basic {}", BASE64_STANDARD.encode(pair));
        request("GET", url).header("authorization", login).send().await
    };
    let layers = image.layer_digests();
    assert_eq!(ask("me:mine", larder.manifest_url("hub/team/app", "1")).await.status, 200);
    assert!(ask("me:mine", larder.blob_url("hub/team/app", &layers[0])).await.complete());
    is_whole(&larder, &image).await;
    ends(&larder, "whole").await;
    let mine = format!("Basic {}", BASE64_STANDARD.encode("me:mine"));
    for request in hub.requests().iter().filter(|request| layers[1..].iter().any(|of| request.path.ends_with(of))) {
        // A question without credentials finds out whether it is for everybody.
        assert!(["", mine.as_str()].contains(&request.header("authorization").unwrap_or_default()), "{request:?}");
    }
    for digest in all(&image) {
        assert_eq!(ask("you:yours", larder.blob_url("hub/team/app", &digest)).await.status, 403);
        assert!(ask("me:mine", larder.blob_url("hub/team/app", &digest)).await.complete());
        assert_eq!(gets(&hub, &digest), 1, "{}", hub.summary());
    }
    assert!(!larder.log().contains("mine") && !larder.log().contains(&mine));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pulled_by_the_proxy_door_is_whole_too() {
    let scene = Proxied::start_with(Options::default(), "", ["prefetch = \"pulled\"", ""], "").await;
    let image = image(1);
    scene.hub.push_image("team/app", "1", &image);
    let browser = scene.browser();
    assert_eq!(browser.get(&scene.manifest("team/app", "1")).await.status, 200);
    assert!(browser.get(&scene.blob("team/app", &image.layer_digests()[0])).await.complete());
    is_whole(&scene.larder, &image).await;
}
