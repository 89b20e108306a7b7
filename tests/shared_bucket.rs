//! Promise: several Larders that share an index in PostgreSQL and a bucket have one content: what one has uploaded comes
//! back for all with the upstream down, is sent to the bucket once, and what leaves the bucket leaves all.

use crate::support::bucket::{Op, S3};
use crate::support::postgres::Postgres;
use crate::support::{Hub, Larder, Options, RepositoryConfig, blob, eventually, get};

const MIB: usize = 1 << 20;
const NAME: &str = "hub/team/app";

struct Scene {
    postgres: Postgres,
    hub: Hub,
    s3: S3,
    larders: [Larder; 2],
}

/// Two Larders behind one upstream; `lines` follow the table of the bucket.
async fn scene(lines: &str) -> Scene {
    let postgres = Postgres::start();
    postgres.create("larder");
    let (hub, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let repository = RepositoryConfig::new("hub").upstream_with(&hub, "parallel = 1");
    let url = postgres.bouncer_url("larder");
    let config = format!("[index]\nurl = \"{url}\"\n{}\n{repository}", s3.config(lines));
    let larders = [Larder::start(&config).await, Larder::start(&config).await];
    Scene { postgres, hub, s3, larders }
}

/// Waits until a Larder counts so many objects in the bucket.
async fn counts(larder: &Larder, objects: usize) {
    let line = format!("larder_s3_objects {objects}");
    eventually("it is known what the bucket has", async || larder.metrics().await.lines().any(|found| found == line))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_has_uploaded_comes_back_for_all_and_a_purge_takes_it_from_all() {
    let mut scene = scene("").await;
    let content = blob(1, MIB);
    let digest = scene.hub.push_blob("team/app", content.clone());
    let [one, other] = &scene.larders;
    assert_eq!(get(one.blob_url(NAME, &digest)).await.body, content);
    for larder in [one, other] {
        counts(larder, 1).await;
    }
    assert!(!other.object(&digest).exists(), "it is in the bucket, and has no file there");

    scene.hub.stop().await;
    let answer = get(other.blob_url(NAME, &digest)).await;
    assert!(answer.complete() && answer.body == content, "{} {}", answer.status, answer.text());
    assert!(answer.header("cache-status").contains("storage"), "{}", answer.header("cache-status"));
    eventually("it has a file, too", async || other.object(&digest).exists()).await;
    assert_eq!((scene.s3.count(Op::Put), scene.s3.count(Op::Get)), (1, 1), "it was sent once");

    let purged = other.run(&["purge", "--all", "--admin", &other.admin_url()]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    eventually("the key is gone", async || scene.s3.keys().is_empty()).await;
    for larder in [one, other] {
        eventually("the file is gone", async || !larder.object(&digest).exists()).await;
        counts(larder, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_evicted_from_the_bucket_goes_from_all() {
    let scene = scene("[cache]\nmax_size = \"3MiB\"").await;
    let [one, other] = &scene.larders;
    let mut blobs = Vec::new();
    for number in 0..3 {
        let digest = scene.hub.push_blob("team/app", blob(number, MIB));
        for larder in [one, other] {
            assert!(get(larder.blob_url(NAME, &digest)).await.complete());
            counts(larder, blobs.len() + 1).await;
        }
        blobs.push(digest);
    }
    let last = scene.hub.push_blob("team/app", blob(3, MIB));
    assert!(get(other.blob_url(NAME, &last)).await.complete());
    eventually("the bucket has no more than it may", async || scene.s3.keys().len() <= 3 && scene.s3.has(&last)).await;
    let gone: Vec<_> = blobs.iter().filter(|digest| !scene.s3.has(digest)).collect();
    assert!(!gone.is_empty());
    for larder in [one, other] {
        for digest in &gone {
            eventually("the file is gone", async || !larder.object(digest).exists()).await;
        }
        counts(larder, 4 - gone.len()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_leaves_the_tier_leaves_the_bucket_what_it_has_and_nobody_is_sent_for_it() {
    let mut scene = scene("tier_size = \"3MiB\"\n[cache]\nmin_free = 0").await;
    let [one, other] = &scene.larders;
    let mut blobs = Vec::new();
    for number in 0..6 {
        let digest = scene.hub.push_blob("team/app", blob(number, MIB));
        assert!(get(one.blob_url(NAME, &digest)).await.complete());
        blobs.push(digest);
        for larder in [one, other] {
            counts(larder, blobs.len()).await;
        }
    }
    let rows = |of: &str| scene.postgres.sql("larder", &format!("SELECT count(*) FROM larder.objects WHERE {of}"));
    eventually("the rows of files go with them", async || {
        rows("generation IS NULL").parse::<usize>().is_ok_and(|rows| rows <= 3)
    })
    .await;
    assert_eq!(rows("generation IS NOT NULL"), "6");
    scene.hub.stop().await;
    for (number, digest) in (0..).zip(&blobs) {
        for larder in [one, other] {
            assert_eq!(get(larder.blob_url(NAME, digest)).await.body, blob(number, MIB));
        }
    }
}
