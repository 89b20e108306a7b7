//! Promise: what a client of the proxy door learns of one upstream is not what a repository of several upstreams says of a
//! tag. Content is one, by its digest.

use crate::support::{Answer, Fault, Hub, Image, Larder, On, Options, RepositoryConfig, eventually, get, request};

const NAME: &str = "team/app";

struct Scene {
    /// In order.
    first: Hub,
    second: Hub,
    larder: Larder,
}

/// A repository of two upstreams. `keys`: of the repository; `proxy`: of the door.
async fn scene(keys: &str, proxy: &str) -> Scene {
    let (first, second) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let repository = RepositoryConfig::new("hub").set(keys).upstream(&first).upstream(&second);
    let door = format!("[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n{proxy}");
    let larder = Larder::builder().config(repository).config(door).keep_ports().start().await;
    Scene { first, second, larder }
}

impl Scene {
    async fn at_registry(&self, reference: &str) -> Answer {
        get(self.larder.manifest_url(&format!("hub/{NAME}"), reference)).await
    }

    async fn at_proxy(&self, hub: &Hub, reference: &str) -> Answer {
        let url = format!("{}/v2/{NAME}/manifests/{reference}", hub.url());
        request("GET", url).through_proxy(self.larder.door("proxy")).send().await
    }
}

const DOORS: [&str; 2] = ["", "client_credentials = \"ignore\""];

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_one_upstream_is_not_that_of_all() {
    for door in DOORS {
        let scene = scene("max_age = \"1h\"", door).await;
        let (new, old) = (Image::new(1), Image::new(2));
        scene.first.push_image(NAME, "1", &new);
        scene.second.push_image(NAME, "1", &old);
        assert_eq!(scene.at_proxy(&scene.second, "1").await.body, old.manifest.bytes);
        assert_eq!(scene.at_registry("1").await.body, new.manifest.bytes, "{door}");
        // Nor the other way round, nor of each other.
        assert_eq!(scene.at_proxy(&scene.second, "1").await.body, old.manifest.bytes, "{door}");
        assert_eq!(scene.at_proxy(&scene.first, "1").await.body, new.manifest.bytes, "{door}");
        assert_eq!(scene.at_registry("1").await.body, new.manifest.bytes, "{door}");
        // What it names is one for all.
        let digests = [&new.manifest.digest, &old.manifest.digest];
        for digest in digests {
            assert_eq!(scene.at_registry(digest).await.header("x-cache"), "HIT", "{door}");
        }
        // People see an image once, whoever asked for it.
        let images = get(format!("{}/api/images", scene.larder.admin_url())).await.json();
        let tagged = images["images"]
            .as_array()
            .expect("images")
            .iter()
            .filter(|image| image["reference"] == format!("hub/{NAME}:1"));
        assert_eq!(tagged.count(), 1, "{images}");
        let purged =
            request("DELETE", format!("{}/api/cache?reference=hub/{NAME}:1", scene.larder.admin_url())).send().await;
        assert_eq!(purged.status, 200);
        for hub in [&scene.first, &scene.second] {
            hub.fault(On::any(), Fault::Drop);
        }
        for answer in [
            scene.at_registry("1").await,
            scene.at_proxy(&scene.first, "1").await,
            scene.at_proxy(&scene.second, "1").await,
        ] {
            assert_eq!(answer.status, 502, "{door}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_for_outages_is_that_of_who_is_asked() {
    for door in DOORS {
        let mut scene = scene("on_upstream_404 = \"drop\"", door).await;
        let (new, old) = (Image::new(1), Image::new(2));
        scene.first.push_image(NAME, "1", &new);
        scene.first.push_image(NAME, "2", &new);
        scene.second.push_image(NAME, "2", &old);
        for tag in ["1", "2"] {
            assert_eq!(scene.at_registry(tag).await.body, new.manifest.bytes);
        }
        // The other one does not have it, or has something else.
        assert_eq!(scene.at_proxy(&scene.second, "1").await.status, 404);
        assert_eq!(scene.at_proxy(&scene.second, "2").await.body, old.manifest.bytes);
        scene.first.stop().await;
        scene.second.stop().await;
        for round in ["before", "after"] {
            for tag in ["1", "2"] {
                let stale = scene.at_registry(tag).await;
                assert_eq!(
                    (stale.header("x-cache"), stale.body.clone()),
                    ("STALE", new.manifest.bytes.clone()),
                    "{round} {door} {tag}"
                );
            }
            if door != DOORS[0] {
                let stale = scene.at_proxy(&scene.second, "2").await;
                assert_eq!(
                    (stale.header("x-cache"), stale.body.clone()),
                    ("STALE", old.manifest.bytes.clone()),
                    "{round} {door}"
                );
            }
            scene.larder.restart().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_one_upstream_at_the_same_time_gets_no_answer_of_another() {
    let scene = scene("negative_max_age = \"1h\"", DOORS[1]).await;
    let (new, old) = (Image::new(1), Image::new(2));
    scene.first.push_image(NAME, "1", &new);
    scene.second.push_image(NAME, "1", &old);
    let held = scene.first.hold(On::manifest());
    let registry = async { scene.at_registry("1").await };
    let proxied = async {
        eventually("the first is asked", async || scene.first.count_on(On::manifest()) > 0).await;
        let answer = scene.at_proxy(&scene.second, "1").await;
        held.open();
        answer
    };
    let (registry, proxied) = tokio::join!(registry, proxied);
    assert_eq!((registry.body, proxied.body), (new.manifest.bytes, old.manifest.bytes.clone()));
    // What none of them has is remembered of all, and not of one that has it by now.
    assert_eq!(scene.at_registry("2").await.status, 404);
    scene.second.push_image(NAME, "2", &old);
    assert_eq!(scene.at_registry("2").await.status, 404, "it is remembered");
    assert_eq!(scene.at_proxy(&scene.second, "2").await.body, old.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_of_one_upstream_is_not_held_against_another() {
    let scene = scene("", DOORS[1]).await;
    let image = Image::with_layers(1, &[200_000]);
    let digest = image.layer_digests()[0].clone();
    for hub in [&scene.first, &scene.second] {
        hub.push_image(NAME, "1", &image);
    }
    let wrong = scene.second.fault(On::blob().get(), Fault::WrongBytes);
    let url = format!("{}/v2/{NAME}/blobs/{digest}", scene.second.url());
    let broken = request("GET", url).through_proxy(scene.larder.door("proxy")).send().await;
    assert!(!broken.complete() || broken.status >= 400);
    wrong.lift();
    scene.second.take_requests();
    assert_eq!(get(scene.larder.blob_url(&format!("hub/{NAME}"), &digest)).await.body, image.blobs()[1]);
    assert_eq!(scene.second.count_on(On::blob().get()), 0, "the first one is in order: {}", scene.second.summary());
}
