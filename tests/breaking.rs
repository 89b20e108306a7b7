//! Promise: an upstream that keeps breaking a transfer off is asked a few times more, with longer and longer pauses, and
//! then no more: not by the transfer, and not by the readers that go past the store.

use crate::support::{
    Fault, Hub, Larder, On, Options, Origin, Page, blob, eventually, get, head, repository_config, request,
};

/// Requests upstream that one request of a client may cost at most when each answer breaks off almost at once.
const FEW: usize = 16;

/// Waits until nothing comes in any more.
async fn rests(larder: &Larder) {
    eventually("the transfer ends", async || larder.stats().await["fills_running"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_gives_one_byte_a_connection_is_asked_a_few_times_and_no_more() {
    let hub = Hub::start(Options::default()).await;
    let digest = hub.push_blob("team/app", blob(1, 300_000));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::blob().get(), Fault::Short { after: 1 });
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert!(!answer.complete() || answer.status == 502, "{} {:?}", answer.status, answer.error);
    rests(&larder).await;
    let asked = hub.count_on(On::blob());
    assert!((2..=FEW).contains(&asked), "{asked} requests");

    // It is worth another try as soon as it is well again.
    hub.clear_faults();
    assert_eq!(get(larder.blob_url("hub/team/app", &digest)).await.body, blob(1, 300_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_often_and_brings_much_each_time_goes_on_to_the_end() {
    let hub = Hub::start(Options::default()).await;
    let digest = hub.push_blob("team/app", blob(1, 24 << 20));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::blob().get(), Fault::Short { after: 1 << 20 });
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert!(answer.complete() && answer.body == blob(1, 24 << 20), "{:?}", answer.error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_cannot_be_kept_is_not_asked_for_without_end_either() {
    let hub = Hub::start(Options::default()).await;
    let digest = hub.push_blob("team/app", blob(1, 3 << 20));
    let config = format!("[cache]\nmin_free = 0\nmax_size = \"1MiB\"\n{}", repository_config("hub", &[&hub]));
    let larder = Larder::start(config).await;
    hub.fault(On::blob().get(), Fault::Short { after: 1 });
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert!(!answer.complete() || answer.status == 502, "{} {:?}", answer.status, answer.error);
    rests(&larder).await;
    let asked = hub.count_on(On::blob());
    assert!((2..=2 * FEW).contains(&asked), "{asked} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_always_breaks_at_the_same_byte_is_asked_a_few_times_and_no_more() {
    let origin = Origin::http().await;
    let config = format!(
        "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n[allowlist]\ndomains = [\"{}\"]\n[cache]\npatterns = [\"\\\\.tgz$\"]",
        origin.address()
    );
    let larder = Larder::start(config).await;
    let page = Page::new(blob(1, 300_000)).header("cache-control", "max-age=3600").header("etag", "\"1\"");
    let (page, open) = page.breaks_after(100_000);
    open.send_replace(true);
    origin.put("/a.tgz", page);
    let answer = request("GET", origin.url("/a.tgz")).through_proxy(larder.door("proxy")).send().await;
    assert!(!answer.complete(), "{}", answer.status);
    rests(&larder).await;
    let asked = origin.take_requests().len();
    assert!((2..=FEW).contains(&asked), "{asked} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_upstream_serves_where_the_first_gives_one_byte_a_connection() {
    let (hub, other) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let digest = hub.push_blob("team/app", blob(1, 3_000_000));
    other.push_blob("team/app", blob(1, 3_000_000));
    let larder = Larder::start(repository_config("hub", &[&hub, &other])).await;
    hub.fault(On::blob().get(), Fault::Short { after: 1 });
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert!(answer.complete() && answer.body == blob(1, 3_000_000), "{:?}", answer.error);
    let asked = hub.count_on(On::blob());
    assert!(asked <= FEW, "{asked} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_what_is_not_cached_are_not_all_passed_on() {
    let hub = Hub::start(Options::default()).await;
    let image = crate::support::Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let manifest = larder.manifest_url("hub/team/app", &image.manifest.digest);
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    for url in [manifest, layer] {
        hub.take_requests();
        for _ in 0..100 {
            let answer = head(&url).await;
            assert_eq!(answer.status, 200);
            assert!(!answer.header("content-length").is_empty() && !answer.header("etag").is_empty());
        }
        let asked = hub.requests().len();
        assert!(asked <= 20, "{asked} requests for one hundred");
    }
    assert_eq!(larder.stats().await["stores"], 0, "a HEAD downloads nothing");
}
