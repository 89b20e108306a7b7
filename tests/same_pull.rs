//! Promise: what one pull asks twice the upstream is asked once, and every pull asks it.

use crate::support::{Fault, Hub, Image, Larder, On, Options, RepositoryConfig, eventually, get, head, request};

const NAME: &str = "team/app";

async fn scene(options: Options, keys: &str) -> (Hub, Larder, Image) {
    let hub = Hub::start(options).await;
    let image = Image::new(1);
    hub.push_image(NAME, "1", &image);
    let larder = Larder::start(RepositoryConfig::new("hub").set(keys).upstream(&hub)).await;
    (hub, larder, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_behind_a_head_of_the_same_pull_asks_nothing() {
    let (mut hub, larder, image) = scene(Options::default(), "").await;
    let tag = larder.manifest_url("hub/team/app", "1");
    for _ in 0..3 {
        hub.take_requests();
        let told = head(&tag).await;
        let given = get(&tag).await;
        assert_eq!((told.status, &given.body), (200, &image.manifest.bytes));
        assert_eq!(hub.count_on(On::manifest().head()), 1, "{}", hub.summary());
    }
    // The next one is of another pull, and so is one of another client.
    hub.take_requests();
    assert_eq!(get(&tag).await.status, 200);
    assert_eq!(hub.count_on(On::manifest().head()), 1, "{}", hub.summary());
    assert_eq!(head(&tag).await.status, 200);
    let moved = Image::new(2);
    hub.push_image(NAME, "1", &moved);
    let other = request("GET", &tag).from("127.0.0.2".parse().expect("an address")).send().await;
    assert_eq!(other.body, moved.manifest.bytes, "another client is told what is so now");
    // After a failure the upstream is asked again.
    hub.stop().await;
    assert_eq!(head(&tag).await.header("x-cache"), "STALE");
    hub.restart().await;
    let third = Image::new(3);
    hub.push_image(NAME, "1", &third);
    eventually("the upstream is asked again", async || get(&tag).await.body == third.manifest.bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absence_ends_though_it_is_asked_for_all_the_time() {
    let (hub, larder, image) = scene(Options::default(), "negative_max_age = \"1s\"").await;
    let (tag, layer) =
        (larder.manifest_url("hub/team/app", "2"), larder.blob_url("hub/team/new", &image.layer_digests()[0]));
    assert_eq!((get(&tag).await.status, get(&layer).await.status), (404, 404));
    hub.push_image(NAME, "2", &image);
    hub.push_image("team/new", "2", &image);
    eventually("the tag is there", async || get(&tag).await.status == 200).await;
    eventually("the layer is there", async || get(&layer).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn that_there_is_no_list_of_referrers_is_remembered() {
    let options = Options { referrers: false, ..Options::default() };
    let (hub, larder, image) = scene(options, "negative_max_age = \"1h\"").await;
    let subject = &image.manifest.digest;
    for filter in ["", "?artifactType=application/vnd.example.sbom"] {
        for _ in 0..3 {
            let list = get(format!("{}/v2/hub/team/app/referrers/{subject}{filter}", larder.url())).await;
            assert_eq!((list.status, list.json()["manifests"].clone()), (200, serde_json::json!([])));
        }
    }
    assert_eq!((hub.count_on(On::referrers()), hub.count_on(On::manifest())), (1, 1), "{}", hub.summary());
    // A failure is no absence.
    let other = Image::new(2);
    hub.push_image(NAME, "2", &other);
    let url = format!("{}/v2/hub/team/app/referrers/{}", larder.url(), other.manifest.digest);
    let fault = hub.fault(On::referrers(), Fault::status(500));
    assert_eq!(get(&url).await.status, 502);
    fault.lift();
    hub.configure(|options| options.referrers = true);
    hub.push_untagged(NAME, &Image::referrer(&other.manifest, "application/vnd.example.sbom", 5));
    eventually("the list comes", async || get(&url).await.status == 200).await;
}
