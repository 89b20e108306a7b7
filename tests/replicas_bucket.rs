//! Promise: replicas that share a bucket, too, behave as one cache with one content: each object is fetched once and sent
//! to the bucket once, whoever dies meanwhile, and whatever becomes of the bucket, the index and the clocks.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::clients::Radosgw;
use crate::replicas::{MIB, SOON, Scene, expect, expect_rest, metric, scene_of_clocks};
use crate::support::bucket::{Op, S3, S3Fault};
use crate::support::{Fault, Larder, On, blob, client, eventually, request, within};

const NAME: &str = "hub/team/app";
/// One that is sent in two parts.
const LARGE: usize = 20 * MIB;
/// Longer than it takes until nobody counts on a replica that died, and its uploads are another's.
const TAKEN_OVER: Duration = Duration::from_secs(60);
const NOW: [&str; 3] = ["+0"; 3];

async fn scene(lines: &str) -> (Scene, S3) {
    let s3 = S3::start().await;
    (scene_of_clocks("", &s3.config(lines), NOW).await, s3)
}

/// Waits until all replicas count so many objects in the bucket.
async fn all_count(scene: &Scene, objects: u64) {
    for replica in &scene.replicas {
        eventually("it is known what the bucket has", async || metric(replica, "larder_s3_objects").await == objects)
            .await;
    }
}

/// Sixty clients pull each of these over all replicas, while the upstream is held at half.
async fn pull_by_sixty(scene: &Scene, contents: &[Bytes]) -> Vec<String> {
    let mut digests = Vec::new();
    for content in contents {
        let digest = scene.hub.push_blob("team/app", content.clone());
        let gate = scene.hub.gate(On::blob().get().reference(&digest), content.len() as u64 / 2);
        let url = |at: usize| scene.replicas[at % 3].blob_url(NAME, &digest);
        let mut clients = join_all((0..60).map(|at| client::open(url(at)))).await;
        gate.reached().await;
        for client in &mut clients {
            assert_eq!(client.read_exact(4096).await, content[..4096]);
        }
        gate.open();
        join_all(clients.into_iter().map(|client| expect_rest(client, content.slice(4096..)))).await;
        assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
        digests.push(digest);
    }
    digests
}

/// Without the upstream and without their files, all replicas serve these: they come back from the bucket.
async fn come_back(scene: &mut Scene, digests: &[String], contents: &[Bytes]) {
    scene.hub.stop().await;
    for replica in &mut scene.replicas {
        replica.stop().await;
        std::fs::remove_dir_all(replica.dir().join("blobs")).expect("there are files");
        replica.restart().await;
    }
    for (digest, content) in digests.iter().zip(contents) {
        join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, digest), content))).await;
    }
}

fn contents() -> Vec<Bytes> {
    let sizes = [LARGE, MIB, 2 * MIB, LARGE + 1, 300_000, 100_000];
    (0..).zip(sizes).map(|(seed, size)| blob(seed, size)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_is_fetched_once_and_sent_to_the_bucket_once_and_is_there_for_all() {
    let (mut scene, s3) = scene("").await;
    let contents = contents();
    let digests = pull_by_sixty(&scene, &contents).await;
    all_count(&scene, 6).await;
    eventually("each is there once", async || digests.iter().all(|digest| s3.has(digest))).await;
    // Where a replica was too slow to answer on a busy machine, another may have begun, too.
    let sent = s3.count(Op::Put) + s3.count(Op::Begin);
    assert!((6..9).contains(&sent), "{sent} uploads of 6 objects");
    come_back(&mut scene, &digests, &contents).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_real_server_each_object_is_fetched_once_and_there_for_all() {
    let ceph = Radosgw::start().await;
    let mut scene = scene_of_clocks("", &ceph.config(""), NOW).await;
    let contents = contents();
    let digests = pull_by_sixty(&scene, &contents).await;
    all_count(&scene, 6).await;
    // What was sent twice where an answer came late is deleted afterwards.
    eventually("each is there once", async || ceph.keys().await.len() == 6).await;
    come_back(&mut scene, &digests, &contents).await;
    let purged = purge_all(&scene.replicas[1]).await;
    assert_eq!(purged, Some(0));
    assert!(ceph.keys().await.is_empty());
}

async fn purge_all(replica: &Larder) -> Option<i32> {
    replica.run(&["purge", "--all", "--admin", &replica.admin_url()]).await.code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_killed_in_the_middle_is_missed_neither_by_clients_nor_by_the_bucket() {
    let (mut scene, s3) = scene("").await;
    let content = blob(7, LARGE);
    let digest = scene.hub.push_blob("team/app", content.clone());
    let gate = scene.hub.gate(On::blob().get(), 18 * MIB as u64);
    let open = scene.replicas.iter().map(|replica| client::open(replica.blob_url(NAME, &digest)));
    let mut clients = join_all(open).await;
    gate.reached().await;
    eventually("the first part is sent", async || s3.count(Op::Part) > 0).await;
    let home = scene.home().await;
    for client in &mut clients {
        client.read_exact(17 * MIB).await;
    }
    scene.replicas[home].kill9();
    scene.hub.clear_faults();
    for (at, client) in clients.into_iter().enumerate() {
        if at != home {
            expect_rest(client, content.slice(17 * MIB..)).await;
        }
    }
    let sent = scene.hub.bytes_sent(&digest);
    assert!(sent < 2 * content.len() as u64, "less than one further transfer: {sent}\n{}", scene.hub.summary());
    within(TAKEN_OVER, "another has sent it to the bucket", async || s3.has(&digest)).await;
    let key = s3.key_of(&digest).expect("one key");
    assert_eq!(s3.content(&key), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_index_is_away_it_is_one_transfer_and_all_is_published_when_it_is_back() {
    let (scene, s3) = scene("").await;
    let before = blob(1, MIB);
    let known = scene.hub.push_blob("team/app", before.clone());
    expect(scene.replicas[0].blob_url(NAME, &known), &before).await;
    all_count(&scene, 1).await;
    scene.postgres.stop();
    expect(scene.replicas[0].blob_url(NAME, &known), &before).await;
    let contents: Vec<_> = (20..26).map(|seed| blob(seed, MIB)).collect();
    for content in &contents {
        let digest = scene.hub.push_blob("team/app", content.clone());
        join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, &digest), content))).await;
        assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
    }
    scene.postgres.go_on();
    all_count(&scene, 7).await;
    eventually("one copy of each", async || s3.keys().len() == 7).await;
    let rows = || scene.postgres.sql("larder", "SELECT count(*) FROM larder.objects WHERE generation IS NOT NULL");
    assert_eq!(rows(), "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_bucket_is_unwell_hits_come_from_disk_misses_go_through_and_nothing_is_wrong() {
    let (scene, s3) = scene("").await;
    let contents: Vec<_> = (0..3).map(|seed| blob(seed, MIB)).collect();
    let mut digests = Vec::new();
    for content in &contents {
        let digest = scene.hub.push_blob("team/app", content.clone());
        join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, &digest), content))).await;
        digests.push(digest);
    }
    all_count(&scene, 3).await;
    let unwell = [
        vec![(Op::Get, S3Fault::Refuse(503, "SlowDown")), (Op::Put, S3Fault::Refuse(503, "SlowDown"))],
        vec![(Op::Get, S3Fault::WrongBytes), (Op::Complete, S3Fault::Lie), (Op::Put, S3Fault::Lie)],
        vec![(Op::Get, S3Fault::Truncate), (Op::Complete, S3Fault::ErrorIn200)],
        vec![(Op::Get, S3Fault::Hang), (Op::Part, S3Fault::Hang)],
    ];
    for (seed, faults) in (10..).step_by(10).zip(unwell) {
        faults.into_iter().for_each(|(op, fault)| s3.fault(op, fault));
        for (digest, content) in digests.iter().zip(&contents) {
            join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, digest), content))).await;
        }
        for size in [MIB, LARGE] {
            let content = blob(seed, size);
            let digest = scene.hub.push_blob("team/app", content.clone());
            let pulls = scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, &digest), &content));
            join_all(pulls).await;
            assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
        }
        s3.heal();
    }
    // What is said to be in the bucket is there, as it should be.
    let rows =
        "SELECT encode(digest, 'hex') FROM larder.digests JOIN larder.objects USING (id) WHERE generation IS NOT NULL";
    let named = || scene.postgres.sql("larder", rows).lines().map(str::to_owned).collect::<Vec<_>>();
    eventually("no row names what is not there", async || {
        named().iter().all(|hex| s3.keys().iter().any(|key| key.contains(&hex[hex.len() - 64..])))
    })
    .await;
}

/// The one that keeps the bucket takes rows out, and its requests to delete keys come late: another keeps the bucket by
/// then, and an object has come in again.
#[tokio::test(flavor = "multi_thread")]
async fn when_another_begins_to_keep_the_bucket_nothing_that_came_in_again_is_deleted() {
    let (scene, s3) = scene("[cache]\nmax_size = \"3MiB\"").await;
    let keeper = || scene.postgres.sql("larder", "SELECT kept_by FROM larder.holders WHERE kept_until > now()");
    let contents: Vec<_> = (0..4).map(|seed| blob(seed, MIB)).collect();
    let mut digests = Vec::new();
    for content in &contents[..3] {
        let digest = scene.hub.push_blob("team/app", content.clone());
        join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, &digest), content))).await;
        digests.push(digest);
        all_count(&scene, digests.len() as u64).await;
    }
    let (first, open) = (keeper(), s3.hold(Op::Delete));
    let last = scene.hub.push_blob("team/app", contents[3].clone());
    expect(scene.replicas[0].blob_url(NAME, &last), &contents[3]).await;
    eventually("the keys are about to go", async || s3.count(Op::Delete) > 0).await;
    let gone = digests.iter().find(|digest| s3.key_of(digest).is_some() && rows_of(&scene, digest) == 0);
    let (gone, at) = (gone.expect("one was evicted"), digests.iter().position(|digest| Some(digest) == gone));
    let old = s3.key_of(gone).expect("its key is still there");
    // Another keeps the bucket from now on.
    let others =
        "UPDATE larder.holders SET kept_by = -1, kept_until = now() + interval '1 hour' WHERE kept_by IS NOT NULL";
    scene.postgres.sql("larder", others);
    assert_eq!(keeper(), "-1", "before, {first} kept it");
    for replica in &scene.replicas {
        eventually("the files are gone", async || !replica.object(gone).exists()).await;
    }
    // The object comes in again, and is sent to the bucket by another upload.
    let content = &contents[at.expect("one of these")];
    let key = || s3.keys().into_iter().find(|key| *key != old && key.contains(&gone["sha256:".len()..]));
    eventually("it is in the bucket again", async || {
        expect(scene.replicas[1].blob_url(NAME, gone), content).await;
        key().is_some()
    })
    .await;
    let new = key().expect("it is there");
    open.send_replace(true);
    s3.heal();
    eventually("the old key is gone", async || !s3.keys().contains(&old)).await;
    assert_eq!(s3.content(&new), *content, "the new one is not");
}

fn rows_of(scene: &Scene, digest: &str) -> usize {
    let hex = &digest["sha256:".len()..];
    let sql = format!(
        "SELECT count(*) FROM larder.digests JOIN larder.objects USING (id) WHERE encode(digest, 'hex') LIKE '%{hex}'"
    );
    scene.postgres.sql("larder", &sql).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_while_it_keeps_the_bucket_another_does_then() {
    let (mut scene, s3) = scene("[cache]\nmax_size = \"3MiB\"").await;
    let keeper = |postgres: &crate::support::postgres::Postgres| {
        let sql = "SELECT s.name FROM larder.holders AS b JOIN larder.holders AS s ON s.id = b.kept_by \
                   WHERE b.kept_until > now()";
        postgres.sql("larder", sql)
    };
    let name = |replica: &Larder| {
        let file = replica.dir().join("store-name");
        std::fs::read_to_string(file).map(|name| name.trim().to_owned()).unwrap_or_default()
    };
    eventually("one keeps it", async || !keeper(&scene.postgres).is_empty()).await;
    let kept_by = keeper(&scene.postgres);
    let at = scene.replicas.iter().position(|replica| !name(replica).is_empty() && kept_by.contains(&name(replica)));
    let mut dead = scene.replicas.remove(at.expect("one of the replicas"));
    dead.kill9();
    // It would be so by itself within half a minute.
    scene.postgres.sql("larder", "UPDATE larder.holders SET kept_until = now() WHERE kept_until IS NOT NULL");
    for seed in 0..5 {
        let content = blob(seed, MIB);
        let digest = scene.hub.push_blob("team/app", content.clone());
        join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, &digest), &content))).await;
        within(TAKEN_OVER, "it is uploaded", async || s3.count(Op::Put) > usize::try_from(seed).expect("small")).await;
    }
    eventually("another keeps it", async || ![String::new(), kept_by.clone()].contains(&keeper(&scene.postgres))).await;
    eventually("the bucket is kept within its limits", async || s3.count(Op::Delete) > 1 && s3.keys().len() <= 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_restarted_one_after_the_other_and_no_pull_fails() {
    let (mut scene, s3) = scene("").await;
    scene.hub.fault(On::blob().get(), Fault::Throttle { bytes_per_second: 16 << 20, chunk: 64 << 10 });
    let mut pulled = Vec::new();
    for at in 0..3 {
        let content = blob(60 + at, LARGE);
        let digest = scene.hub.push_blob("team/app", content.clone());
        let open = scene.replicas.iter().map(|replica| client::open(replica.blob_url(NAME, &digest)));
        let mut clients = join_all(open).await;
        for client in &mut clients {
            client.read_exact(4096).await;
        }
        let pulls = join_all(clients.into_iter().map(|client| expect_rest(client, content.slice(4096..))));
        let at = usize::try_from(at).expect("small");
        let (_, exit) = tokio::join!(pulls, scene.replicas[at].stop());
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        let sent = scene.hub.bytes_sent(&digest);
        assert!(sent < 2 * content.len() as u64, "less than one further transfer: {sent}");
        scene.replicas[at].restart().await;
        scene.all_know_each_other(3).await;
        eventually("it is in the bucket once", async || s3.has(&digest)).await;
        pulled.push((digest, content));
    }
    scene.hub.stop().await;
    all_serve(&scene, &pulled).await;
}

async fn all_serve(scene: &Scene, pulled: &[(String, Bytes)]) {
    for (digest, content) in pulled {
        for replica in &scene.replicas {
            let answer = request("GET", replica.blob_url(NAME, digest)).deadline(SOON).send().await;
            assert!(answer.complete() && answer.body == content, "{}", answer.status);
        }
    }
}

/// A server takes no requests of a clock that is more than a quarter of an hour off (RequestTimeTooSkewed).
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_as_far_apart_as_a_server_bears_change_nothing() {
    let s3 = S3::start().await;
    let mut scene = scene_of_clocks("", &s3.config("[cache]\nmax_size = \"45MiB\""), ["-14m", "+0", "+14m"]).await;
    let mut pulled = Vec::new();
    for seed in 70..73 {
        let content = blob(seed, LARGE);
        let digest = scene.hub.push_blob("team/app", content.clone());
        join_all(scene.replicas.iter().map(|replica| expect(replica.blob_url(NAME, &digest), &content))).await;
        assert_eq!(scene.hub.count_on(On::blob().get().reference(&digest)), 1, "{}", scene.hub.summary());
        eventually("it is in the bucket once", async || s3.has(&digest)).await;
        pulled.push((digest, content));
    }
    eventually("one has left the bucket", async || s3.keys().len() == 2).await;
    // Which one was used last, each says by its own clock.
    pulled.retain(|(digest, _)| s3.has(digest));
    scene.hub.stop().await;
    all_serve(&scene, &pulled).await;
}
