//! Promise: never a wrong byte. What is stored was verified, and no client gets to the end of content
//! that is wrong.

use std::path::Path;

use crate::support::{Fault, Hub, Image, Larder, On, Options, blob, client, eventually, get, repository_config};

const MIB: usize = 1 << 20;

/// The complete objects below a cache directory.
fn stored_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.join("blobs")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_reach_no_client_whole_and_the_next_upstream_serves() {
    let (bad, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let content = blob(1, 4 * MIB);
    let digest = bad.push_blob("team/app", content.clone());
    good.push_blob("team/app", content.clone());
    bad.fault(On::blob().get(), Fault::WrongBytes);
    // The second upstream waits, so that what the cache holds of the first can be looked at.
    let hold = good.hold(On::blob().get());
    let larder = Larder::start(&repository_config("hub", &[&bad, &good])).await;
    let url = larder.blob_url("hub/team/app", &digest);

    let client = client::open(&url).await;
    hold.wait_for(1).await;
    assert_eq!(stored_files(&larder.dir()), Vec::<std::path::PathBuf>::new());
    hold.open();
    let answer = client.read_to_end().await;
    // It read of the first copy, so it cannot be given the second: its response is aborted.
    assert!(!answer.complete(), "a client took a corrupt object for whole");
    assert!(answer.body.len() < content.len());

    let again = get(&url).await;
    assert!(again.complete());
    assert_eq!(again.body, content);
    assert_eq!(bad.count_on(On::blob().get()), 1);
    assert_eq!(good.count_on(On::blob().get()), 1);
    eventually("the blob is stored", async || larder.stats().await["stores"] == 1).await;
    assert_eq!(get(&url).await.body, content);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_sent_wrong_bytes_is_not_asked_for_them_again() {
    let (bad, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let digest = bad.push_blob("team/app", blob(1, 30_000));
    good.push_blob("team/app", blob(1, 30_000));
    bad.fault(On::blob().get(), Fault::WrongBytes);
    let larder = Larder::start(&repository_config("hub", &[&bad, &good])).await;
    for round in 1..4 {
        assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
        eventually("the blob is stored", async || larder.stats().await["stores"] == round).await;
        assert_eq!(larder.run(&["purge", "--all"]).await.code, Some(0));
    }
    assert_eq!((bad.count_on(On::blob().get()), good.count_on(On::blob().get())), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_small_object_are_replaced_unseen() {
    let (bad, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let content = blob(1, 30_000);
    let digest = bad.push_blob("team/app", content.clone());
    good.push_blob("team/app", content.clone());
    bad.fault(On::blob().get(), Fault::WrongBytes);
    let larder = Larder::start(&repository_config("hub", &[&bad, &good])).await;
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert_eq!((answer.status, answer.body), (200, content));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_told_a_wrong_size_is_not_given_so_much_of_the_right_content() {
    let (bad, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let content = blob(1, 30_000);
    let digest = good.push_blob("team/app", content.clone());
    bad.fault(On::blob().get(), Fault::HtmlInstead);
    let gate = bad.gate(On::blob().get(), 1);
    let larder = Larder::start(&repository_config("hub", &[&bad, &good])).await;
    let url = larder.blob_url("hub/team/app", &digest);
    let client = client::open(&url).await;
    assert_eq!(client.header("content-length"), "36");
    gate.open();
    let answer = client.read_to_end().await;
    assert!(!answer.complete(), "{} of 30000 bytes were given as the whole", answer.body.len());
    let again = get(&url).await;
    assert!(again.complete() && again.body == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_answer_is_not_passed_on_before_it_is_verified() {
    let (bad, good) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let content = blob(1, 30_000);
    let digest = good.push_blob("team/app", content.clone());
    bad.fault(On::blob().get(), Fault::reply(200, &[], ""));
    let larder = Larder::start(&repository_config("hub", &[&bad, &good])).await;
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert_eq!((answer.status, answer.body), (200, content));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_from_the_only_upstream_are_not_kept() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, MIB);
    let digest = hub.push_blob("team/app", content.clone());
    let fault = hub.fault(On::blob().get(), Fault::WrongBytes);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let url = larder.blob_url("hub/team/app", &digest);
    assert!(!get(&url).await.complete());
    assert_eq!(stored_files(&larder.dir()), Vec::<std::path::PathBuf>::new());
    fault.lift();
    assert_eq!(get(&url).await.body, content);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_breaks_off_is_resumed_unseen() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, 8 * MIB);
    let digest = hub.push_blob("team/app", content.clone());
    hub.fault(On::blob().get().times(1), Fault::Short { after: 5 * MIB });
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert!(answer.complete());
    assert_eq!(answer.body, content);
    assert_eq!(hub.bytes_sent(&digest), content.len() as u64, "each byte once: {}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_upstream_goes_on_in_the_middle() {
    let (first, second) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let content = blob(1, 8 * MIB);
    let digest = first.push_blob("team/app", content.clone());
    second.push_blob("team/app", content.clone());
    first.fault(On::blob().get().times(1), Fault::Short { after: 3 * MIB });
    first.fault(On::blob().ranged(), Fault::status(503));
    let larder = Larder::start(&repository_config("hub", &[&first, &second])).await;
    let answer = get(larder.blob_url("hub/team/app", &digest)).await;
    assert!(answer.complete());
    assert_eq!(answer.body, content);
    assert_eq!(second.bytes_sent(&digest), 5 * MIB as u64, "{}", second.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_only_complete_content_is_served() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let content = blob(9, 8 * MIB);
    let digest = hub.push_blob("team/app", content.clone());
    let mut larder = Larder::start(&repository_config("hub", &[&hub])).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let layer = &image.layer_digests()[0];
    assert_eq!(get(larder.blob_url("hub/team/app", layer)).await.status, 200);
    eventually("both are stored", async || larder.stats().await["stores"] == 2).await;

    let gate = hub.gate(On::blob().get().reference(&digest).times(1), 4 << 20);
    let half = client::open(larder.blob_url("hub/team/app", &digest)).await;
    gate.reached().await;
    larder.kill9();
    drop(half);
    larder.restart().await;

    let answer = get(larder.blob_url("hub/team/app", layer)).await;
    assert_eq!(answer.header("x-cache"), "HIT");
    assert_eq!(answer.body, image.layers[0]);
    assert_eq!(get(larder.blob_url("hub/team/app", &digest)).await.body, content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_stops_no_start_and_no_pull() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let mut larder = Larder::start(&repository_config("hub", &[&hub])).await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    larder.stop().await;
    for entry in std::fs::read_dir(larder.dir()).expect("readable") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension.to_string_lossy().starts_with("db")) {
            std::fs::write(path, vec![0x5a; 10_000]).expect("damaged");
        }
    }
    larder.restart().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.body, image.manifest.bytes);
    assert!(larder.log().contains("the index is damaged"));
}
