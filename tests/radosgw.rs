//! The promises about the bucket, on a real S3 server: the object gateway of Ceph.

use crate::clients::Radosgw;
use crate::support::{Hub, Larder, Options, blob, eventually, get, repository_config, request};

const MIB: usize = 1 << 20;
const NAME: &str = "hub/team/app";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_is_kept_in_a_real_bucket_and_comes_back_from_there() {
    let (mut hub, ceph) = (Hub::start(Options::default()).await, Radosgw::start().await);
    // In one piece, in three parts, and empty.
    let contents = [blob(1, 300_000), blob(2, 40 * MIB), blob(3, 0)];
    let digests: Vec<_> = contents.iter().map(|content| hub.push_blob("team/app", content.clone())).collect();
    let repository = repository_config("hub", &[&hub]);
    let mut larder = Larder::start(format!("{}{repository}", ceph.config("prefix = \"p\""))).await;
    eventually("the probe finds nothing amiss", async || larder.log().contains("the bucket can do all that is needed"))
        .await;
    for (digest, content) in digests.iter().zip(&contents) {
        assert_eq!(get(larder.blob_url(NAME, digest)).await.body, content);
    }
    eventually("all is in the bucket", async || larder.metrics().await.contains("larder_s3_objects 3\n")).await;
    let keys = ceph.keys().await;
    assert!(keys.len() == 3 && keys.iter().all(|key| key.starts_with("p/blobs/sha256/")), "{keys:?}");

    hub.stop().await;
    larder.stop().await;
    std::fs::remove_dir_all(larder.dir().join("blobs")).expect("there are files");
    larder.restart().await;
    let part =
        request("GET", larder.blob_url(NAME, &digests[1])).header("range", "bytes=20000000-20000099").send().await;
    assert_eq!((part.status, &part.body[..]), (206, &contents[1][20_000_000..20_000_100]));
    for (digest, content) in digests.iter().zip(&contents) {
        let answer = get(larder.blob_url(NAME, digest)).await;
        assert!(answer.complete() && answer.body == content, "{digest}: {}", answer.status);
    }

    larder.write_config(format!("{}{repository}", ceph.config("prefix = \"p\"\nredirect = true")));
    std::fs::remove_file(larder.object(&digests[0])).expect("it came back");
    larder.restart().await;
    let sent = get(larder.blob_url(NAME, &digests[0])).await;
    assert_eq!(sent.status, 307, "{}", sent.text());
    assert_eq!(get(sent.header("location")).await.body, contents[0]);

    assert_eq!(larder.run(&["purge", "--all"]).await.code, Some(0));
    let keys = ceph.keys().await;
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_a_real_server_does_not_take_is_named_and_pulls_go_on() {
    let (hub, ceph) = (Hub::start(Options::default()).await, Radosgw::start().await);
    let content = blob(1, 300_000);
    let digest = hub.push_blob("team/app", content.clone());
    let config = format!("{}{}", ceph.config(""), repository_config("hub", &[&hub]));
    let larder = Larder::builder().config(config).clock("+1h").start().await;
    eventually("the log says what to do", async || larder.log().contains("set the clock")).await;
    for _ in 0..2 {
        assert_eq!(get(larder.blob_url(NAME, &digest)).await.body, content);
    }
    assert!(ceph.keys().await.is_empty());
}
