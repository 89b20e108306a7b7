//! Promises with a bucket (`[storage.s3]`): what was pulled is kept there, comes back from there with the upstream down,
//! and a bucket that fails costs no client anything.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::bucket::{Op, S3, S3Fault, SECRET_KEY};
use crate::support::{
    Fault, Hub, Image, Larder, On, Options, RepositoryConfig, blob, client, eventually, get, head, repository_config,
    request,
};

const MIB: usize = 1 << 20;
const NAME: &str = "hub/team/app";
pub const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Scene {
    pub hub: Hub,
    pub s3: S3,
    pub larder: Larder,
    pub digest: String,
    pub content: bytes::Bytes,
}

/// A blob of `size` bytes behind a Larder with a bucket.
pub async fn scene(size: usize, lines: &str) -> Scene {
    let (hub, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let content = blob(1, size);
    let digest = hub.push_blob("team/app", content.clone());
    let repository = RepositoryConfig::new("hub").upstream_with(&hub, "parallel = 1");
    let larder = Larder::start(format!("{}{repository}", s3.config(lines))).await;
    Scene { hub, s3, larder, digest, content }
}

impl Scene {
    pub fn url(&self) -> String {
        self.larder.blob_url(NAME, &self.digest)
    }

    /// Pulls the blob, which is then in the bucket, and known to be there.
    pub async fn pull(&self) {
        let answer = get(self.url()).await;
        assert!(answer.complete() && answer.body == self.content, "{}", answer.status);
        self.is_uploaded(1).await;
    }

    pub async fn is_uploaded(&self, objects: u64) {
        let line = format!("larder_s3_objects {objects}");
        eventually("the objects are in the bucket", async || {
            self.larder.metrics().await.lines().any(|found| found == line)
        })
        .await;
    }

    /// Removes the files of the cache directory, as the bounded tier does.
    pub fn empty_tier(&self) {
        std::fs::remove_file(self.larder.object(&self.digest)).expect("the file is there");
    }

    /// Stops Larder and takes its index and its files away; what is in the bucket is two days old then.
    pub async fn lose_index(&mut self) {
        self.s3.age(2 * DAY);
        self.larder.stop().await;
        std::fs::remove_file(self.larder.dir().join("larder.db")).expect("there is an index");
        self.empty_tier();
    }

    /// Waits until the index was once compared with the bucket from the first key to the last.
    pub async fn is_compared(&self) {
        eventually("the index is compared", async || self.larder.log().contains("compared with the whole bucket"))
            .await;
    }

    /// Waits until a comparison changed something and came to its end.
    pub async fn is_swept(&self) {
        eventually("the bucket is swept", async || self.larder.log().contains("brought in line with the index")).await;
    }

    fn reason(answer: &client::Answer) -> (String, String) {
        (answer.header("x-cache").to_owned(), answer.header("cache-status").to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_is_in_the_bucket_and_comes_back_with_the_upstream_down_for_one_request() {
    let mut scene = scene(4 * MIB, "").await;
    scene.pull().await;
    let key = scene.s3.key_of(&scene.digest).expect("one key");
    assert!(key.starts_with("p/blobs/sha256/"), "{key}");
    assert_eq!(scene.s3.content(&key), scene.content);

    scene.hub.stop().await;
    scene.empty_tier();
    let gate = scene.s3.hold(Op::Get);
    let clients: Vec<_> = (0..20).map(|_| tokio::spawn(get(scene.url()))).collect();
    eventually("all clients wait for one transfer", async || {
        scene.larder.stats().await["coalesced"].as_u64() == Some(19)
    })
    .await;
    gate.send_replace(true);
    for answer in join_all(clients).await {
        let answer = answer.expect("no panic");
        assert!(answer.complete() && answer.body == scene.content);
        let (hit, why) = Scene::reason(&answer);
        assert_eq!(hit, "HIT");
        assert!(why.contains("hit") && why.contains("storage"), "{why}");
    }
    assert_eq!(scene.s3.count(Op::Get), 1);
    // From now on it is in the cache directory again.
    eventually("it is stored", async || scene.larder.has_stored(std::slice::from_ref(&scene.digest)).await).await;
    scene.s3.fault(Op::Get, S3Fault::Refuse(503, "SlowDown"));
    assert_eq!(get(scene.url()).await.body, scene.content);
    let stats = scene.larder.stats().await;
    assert_eq!((&stats["stores"], &stats["misses"]), (&1.into(), &1.into()), "what comes back is no new object");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_is_sent_in_parts_while_it_comes_in() {
    let scene = scene(40 * MIB, "").await;
    let gate = scene.hub.gate(On::blob().get(), 36 * MIB as u64);
    let client = client::open(scene.url()).await;
    // The upstream has not sent all: two parts of 16 MiB are there, and sent.
    eventually("parts are sent", async || scene.s3.count(Op::Part) >= 2).await;
    assert!(scene.s3.keys().is_empty(), "nothing is complete before the digest matched");
    gate.open();
    assert!(client.read_to_end().await.complete());
    scene.is_uploaded(1).await;
    let key = scene.s3.key_of(&scene.digest).expect("one key");
    assert_eq!(scene.s3.content(&key), scene.content);
    assert_eq!((scene.s3.count(Op::Part), scene.s3.count(Op::Put)), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_fails_leaves_nothing_in_the_bucket() {
    let scene = scene(40 * MIB, "").await;
    scene.hub.fault(On::blob().get(), Fault::WrongBytes);
    let answer = get(scene.url()).await;
    assert!(!answer.complete());
    eventually("the upload is aborted", async || scene.s3.count(Op::Begin) > 0 && scene.s3.unfinished().is_empty())
        .await;
    assert_eq!((scene.s3.keys(), scene.s3.count(Op::Complete)), (Vec::<String>::new(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_known_without_asking_the_bucket_or_the_upstream() {
    let mut scene = scene(MIB, "").await;
    scene.pull().await;
    scene.hub.stop().await;
    scene.empty_tier();
    let before = (scene.s3.count(Op::Head), scene.s3.count(Op::Get));
    let answer = head(scene.url()).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "1048576"));
    assert!(answer.header("cache-status").contains("storage"), "{:?}", Scene::reason(&answer));
    assert_eq!((scene.s3.count(Op::Head), scene.s3.count(Op::Get)), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_blob_comes_back_from_the_bucket() {
    let mut scene = scene(4 * MIB, "").await;
    scene.pull().await;
    scene.hub.stop().await;
    scene.empty_tier();
    let answer = request("GET", scene.url()).header("range", "bytes=3000000-3000099").send().await;
    assert_eq!((answer.status, &answer.body[..]), (206, &scene.content[3_000_000..3_000_100]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_files_are_gone_is_pulled_from_the_bucket() {
    let (mut hub, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let keys = RepositoryConfig::new("hub").set("max_age = \"1h\"").upstream(&hub);
    let mut larder = Larder::start(format!("{}{keys}", s3.config(""))).await;
    let all = async |larder: &Larder| {
        let manifest = get(larder.manifest_url(NAME, "1")).await;
        assert_eq!(manifest.status, 200, "{}", manifest.text());
        for digest in image.layer_digests().into_iter().chain([image.config_digest()]) {
            let answer = get(larder.blob_url(NAME, &digest)).await;
            assert_eq!((answer.status, crate::support::sha256(&answer.body)), (200, digest));
        }
        manifest
    };
    let first = all(&larder).await;
    eventually("all is in the bucket", async || larder.metrics().await.contains("larder_s3_objects 4\n")).await;
    larder.stop().await;
    hub.stop().await;
    std::fs::remove_dir_all(larder.dir().join("blobs")).expect("the files are there");
    larder.restart().await;
    let again = all(&larder).await;
    assert_eq!((&again.body, again.header("content-type")), (&first.body, first.header("content-type")));
}

/// What the bucket does, and nothing wrong is served.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_bucket_fails_the_upstream_serves() {
    for fault in [
        S3Fault::Refuse(503, "SlowDown"),
        S3Fault::Refuse(403, "RequestTimeTooSkewed"),
        S3Fault::Truncate,
        S3Fault::Trickle,
        S3Fault::Hang,
    ] {
        // A new one for each: a bucket that fails rests, and is not asked for a while.
        let scene = scene(4 * MIB, "").await;
        scene.pull().await;
        scene.empty_tier();
        scene.hub.take_requests();
        scene.s3.fault(Op::Get, fault.clone());
        let answer = get(scene.url()).await;
        assert!(answer.complete() && answer.body == scene.content, "{fault:?}");
        assert_eq!(scene.hub.count_on(On::blob().get()), 1, "{fault:?}: {}", scene.hub.summary());
        assert_eq!(scene.s3.count(Op::Get), 1, "{fault:?}: the bucket was asked, and once");
        eventually("it is stored", async || scene.larder.has_stored(std::slice::from_ref(&scene.digest)).await).await;
        assert_eq!(scene.s3.keys().len(), 1, "{fault:?}: nothing of it was lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_from_the_bucket_that_breaks_goes_on_from_the_upstream_where_it_was() {
    let scene = scene(4 * MIB, "").await;
    scene.pull().await;
    scene.empty_tier();
    scene.hub.take_requests();
    scene.s3.fault(Op::Get, S3Fault::Truncate);
    let answer = get(scene.url()).await;
    assert!(answer.complete() && answer.body == scene.content);
    // Each break is at half of what was asked for; no byte came twice.
    let sent = scene.hub.bytes_sent(&scene.digest) - scene.content.len() as u64;
    assert!(sent < scene.content.len() as u64 / 2 + 1, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_the_bucket_reach_no_client_whole_and_are_deleted() {
    let scene = scene(300_000, "").await;
    scene.pull().await;
    let key = scene.s3.key_of(&scene.digest).expect("one key");
    scene.s3.put(&key, &blob(2, 300_000));
    scene.empty_tier();
    let answer = get(scene.url()).await;
    assert!(!answer.complete() || answer.body == scene.content, "a client took wrong content for whole");
    eventually("the wrong content is deleted", async || !scene.s3.keys().contains(&key)).await;
    let again = get(scene.url()).await;
    assert!(again.complete() && again.body == scene.content);
    eventually("the right content is in the bucket", async || scene.s3.has(&scene.digest)).await;
    let key = scene.s3.key_of(&scene.digest).expect("one key");
    assert_eq!(scene.s3.content(&key), scene.content);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_bucket_lost_is_fetched_from_upstream_and_uploaded_again() {
    let scene = scene(300_000, "").await;
    scene.pull().await;
    scene.s3.delete(&scene.s3.key_of(&scene.digest).expect("one key"));
    scene.empty_tier();
    let answer = get(scene.url()).await;
    assert!(answer.complete() && answer.body == scene.content);
    eventually("it is in the bucket again", async || scene.s3.has(&scene.digest)).await;
}

/// Pulls are served meanwhile, and what could not be uploaded is uploaded when the bucket is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_keeps_nobody_waiting_and_gets_everything_later() {
    let mut scene = scene(300_000, "").await;
    // Whatever it is asked, it does not answer; a pull does not take as long as any request to it.
    for op in [Op::Get, Op::Head, Op::Put, Op::List, Op::ListUploads, Op::Begin] {
        scene.s3.fault(op, S3Fault::Hang);
    }
    scene.larder.restart().await;
    let answer = request("GET", scene.url()).deadline(Duration::from_secs(15)).send().await;
    assert!(answer.complete() && answer.body == scene.content);
    scene.s3.stop();
    scene.s3.heal();
    scene.larder.restart().await;
    let answer = get(scene.url()).await;
    assert!(answer.complete() && answer.body == scene.content);
    assert_eq!(get(format!("{}/readyz", scene.larder.admin_url())).await.status, 200);
    eventually("the bucket is known to fail", async || scene.larder.log().contains("the bucket fails")).await;
    eventually("the diagnosis says so", async || {
        let diagnosis = get(format!("{}/api/diagnosis", scene.larder.admin_url())).await;
        diagnosis.text().contains("the bucket larder fails")
    })
    .await;
    assert_eq!(get(scene.url()).await.body, scene.content);
    scene.s3.restart().await;
    scene.is_uploaded(1).await;
    assert!(scene.s3.has(&scene.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_server_acknowledged_and_lost_is_not_believed() {
    for fault in [S3Fault::Lie, S3Fault::ErrorIn200] {
        let scene = scene(20 * MIB, "").await;
        scene.s3.fault(Op::Complete, fault.clone());
        assert!(get(scene.url()).await.complete());
        // It is given up once a HEAD, or the answer itself, has told what became of it.
        eventually("it is given up", async || scene.s3.count(Op::Abort) > 0).await;
        assert!(
            scene.s3.count(Op::Complete) > 0 && scene.s3.count(Op::Head) == usize::from(matches!(fault, S3Fault::Lie))
        );
        assert!(scene.larder.metrics().await.contains("larder_s3_objects 0\n"), "{fault:?}");
        scene.s3.heal();
        // What failed for no passing reason is found again after half a minute.
        let mut scene = scene;
        scene.larder.restart().await;
        scene.is_uploaded(1).await;
        scene.hub.stop().await;
        scene.empty_tier();
        assert_eq!(get(scene.url()).await.body, scene.content, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kill_left_unfinished_is_swept_and_the_object_is_uploaded_anew() {
    let mut scene = scene(40 * MIB, "").await;
    let gate = scene.hub.gate(On::blob().get(), 36 * MIB as u64);
    let client = client::open(scene.url()).await;
    eventually("parts are sent", async || scene.s3.count(Op::Part) >= 2).await;
    scene.larder.kill9();
    drop(client);
    gate.open();
    assert_eq!((scene.s3.unfinished().len(), scene.s3.keys().len()), (1, 0));
    scene.s3.age(2 * DAY);
    let young = "p/blobs/sha256/young".to_owned();
    scene.s3.begin(&young);
    scene.larder.restart().await;
    scene.is_swept().await;
    assert_eq!(scene.s3.unfinished(), [young], "only the old one is aborted");
    scene.pull().await;
    assert_eq!(scene.s3.content(&scene.s3.key_of(&scene.digest).expect("one key")), scene.content);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_belong_to_nothing_go_once_they_are_a_day_old_and_others_stay() {
    let mut scene = scene(300_000, "").await;
    scene.pull().await;
    scene.is_compared().await;
    let key = scene.s3.key_of(&scene.digest).expect("one key");
    let (folder, _) = key.rsplit_once('.').expect("a generation");
    let rowless = format!("{folder}.{}", "0".repeat(32));
    scene.s3.put(&rowless, &scene.content);
    scene.s3.put("p/blobs/sha256/mine", b"of somebody else");
    scene.s3.put("elsewhere/mine", b"of somebody else");
    scene.s3.age(2 * DAY);
    let young = format!("{folder}.{}", "1".repeat(32));
    scene.s3.put(&young, &scene.content);
    scene.larder.restart().await;
    scene.is_swept().await;
    let left = scene.s3.keys();
    assert!(!left.contains(&rowless), "{left:?}");
    for kept in [&key, &young, &"p/blobs/sha256/mine".to_owned(), &"elsewhere/mine".to_owned()] {
        assert!(left.contains(kept), "{kept} of {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_key_is_gone_is_found_by_the_comparison() {
    let mut scene = scene(300_000, "").await;
    scene.pull().await;
    // The file is here: it is uploaded again.
    scene.s3.delete(&scene.s3.key_of(&scene.digest).expect("one key"));
    scene.larder.restart().await;
    eventually("it is in the bucket again", async || scene.s3.has(&scene.digest)).await;
    scene.is_uploaded(1).await;
    // The file is gone, too: it is no longer in the cache.
    scene.larder.stop().await;
    scene.s3.delete(&scene.s3.key_of(&scene.digest).expect("one key"));
    scene.empty_tier();
    scene.larder.restart().await;
    scene.is_uploaded(0).await;
    scene.hub.take_requests();
    assert!(get(scene.url()).await.complete());
    assert_eq!(scene.hub.count_on(On::blob().get()), 1, "it came from upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_index_it_takes_the_bucket_in_again() {
    let mut scene = scene(300_000, "").await;
    scene.pull().await;
    let key = scene.s3.key_of(&scene.digest).expect("one key");
    scene.lose_index().await;
    scene.larder.restart().await;
    scene.is_uploaded(1).await;
    scene.hub.take_requests();
    let answer = get(scene.url()).await;
    assert!(answer.complete() && answer.body == scene.content);
    assert_eq!(scene.hub.count_on(On::blob().get()), 0, "the upstream was asked for no bytes: {}", scene.hub.summary());
    assert_eq!(scene.s3.keys(), [key]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_takes_the_row_the_key_and_the_file() {
    let mut scene = scene(300_000, "").await;
    for is_running in [true, false] {
        scene.pull().await;
        if !is_running {
            scene.larder.stop().await;
        }
        let purged = scene.larder.run(&["purge", "--all"]).await;
        assert_eq!(purged.code, Some(0), "{purged:?}");
        assert_eq!(scene.s3.keys(), Vec::<String>::new());
        assert!(!scene.larder.object(&scene.digest).exists());
        scene.larder.restart().await;
        scene.is_uploaded(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_stay_within_the_size_of_the_tier_and_nothing_is_lost() {
    let (mut hub, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let blobs: Vec<_> = (0..6).map(|number| hub.push_blob("team/app", blob(number, MIB))).collect();
    let config = s3.config("tier_size = \"3MiB\"\n[cache]\nmin_free = 0");
    let larder = Larder::start(format!("{config}\n{}", repository_config("hub", &[&hub]))).await;
    for (number, digest) in blobs.iter().enumerate() {
        assert!(get(larder.blob_url(NAME, digest)).await.complete());
        let line = format!("larder_s3_objects {}\n", number + 1);
        eventually("it is in the bucket", async || larder.metrics().await.contains(&line)).await;
    }
    eventually("the files take no more than they may", async || {
        larder.stats().await["current_size"].as_u64().is_some_and(|size| size <= 3 * MIB as u64)
    })
    .await;
    assert!(!larder.object(&blobs[0]).exists(), "the least recently used goes first");
    assert_eq!(larder.stats().await["evictions"], 0, "nothing has left the cache");
    hub.stop().await;
    for (number, digest) in (0..).zip(&blobs) {
        assert_eq!(get(larder.blob_url(NAME, digest)).await.body, blob(number, MIB));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn max_size_bounds_what_is_in_the_bucket() {
    let (hub, s3) = (Hub::start(Options::default()).await, S3::start().await);
    let config = s3.config("[cache]\nmax_size = \"3MiB\"");
    let larder = Larder::start(format!("{config}\n{}", repository_config("hub", &[&hub]))).await;
    for number in 0..5 {
        let digest = hub.push_blob("team/app", blob(number, MIB));
        assert!(get(larder.blob_url(NAME, &digest)).await.complete());
        eventually("it was uploaded", async || s3.count(Op::Put) as u64 > number).await;
    }
    eventually("the bucket has no more than it may", async || {
        s3.keys().len() <= 3 && larder.stats().await["evictions"].as_u64() >= Some(2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_to_the_bucket_for_blobs_where_the_configuration_says_so() {
    let mut scene = scene(300_000, "redirect = true").await;
    scene.pull().await;
    assert_eq!(get(scene.url()).await.status, 200, "what is here is served from here");
    scene.hub.stop().await;
    scene.empty_tier();
    let sent = get(scene.url()).await;
    assert_eq!((sent.status, sent.header("x-cache")), (307, "HIT"));
    let link = sent.header("location").to_owned();
    assert!(link.starts_with(&format!("http://{}/larder/p/blobs/", scene.s3.address())), "{link}");
    assert_eq!(get(&link).await.body, scene.content);
    let part = request("GET", &link).header("range", "bytes=100-199").send().await;
    assert_eq!((part.status, &part.body[..]), (206, &scene.content[100..200]));
    let answer = head(scene.url()).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "300000"), "HEAD is answered here");
    let log = scene.larder.log();
    assert!(!log.contains(SECRET_KEY) && !log.contains("X-Amz-Signature"), "a link lets in whoever has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_cannot_do_is_said_in_plain_words() {
    let s3 = S3::without_list_of_uploads().await;
    let hub = Hub::start(Options::default()).await;
    let mut larder = Larder::start(format!("{}{}", s3.config(""), repository_config("hub", &[&hub]))).await;
    let words = "Listing unfinished uploads fails: the server does not know this request (501 NotImplemented). \
                 Uploads that a crash leaves unfinished stay; a lifecycle rule";
    eventually("the probe says so", async || larder.log().contains(words)).await;
    for (fault, words) in [
        (S3Fault::Refuse(404, "NoSuchBucket"), "the bucket does not exist; create it"),
        (S3Fault::Refuse(403, "SignatureDoesNotMatch"), "secret_access_key_file does not belong to access_key_id"),
        (S3Fault::Refuse(403, "RequestTimeTooSkewed"), "set the clock"),
    ] {
        s3.fault(Op::Put, fault);
        larder.restart().await;
        eventually(words, async || larder.log().contains(words)).await;
        let doctor = larder.run(&["doctor"]).await;
        assert!(doctor.stdout.contains(words), "{doctor:?}");
    }
    assert!(!larder.log().contains(SECRET_KEY));
}
