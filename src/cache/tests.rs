//! Tests the cache on a store that is made slow, full, torn, hanging or lying.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::*;
use crate::clock;
use crate::config::tests::parse;
use crate::index::Viewer;
use crate::index::simulated as index_simulated;
use crate::oci::Algorithm;
use crate::s3::{S3Error, Upload, bucket_at};
use crate::store::simulated::{DEADLINE, Health, Simulated};

struct Scene {
    _dir: tempfile::TempDir,
    store: Simulated,
    index: index_simulated::Simulated,
    cache: Arc<Cache>,
}

async fn scene() -> Scene {
    let scene = scene_with("");
    tokio::spawn(scene.cache.clone().look_after());
    scene.cache.loaded().await;
    scene
}

/// A cache with a bucket at an address where nothing listens, that nothing looks after.
pub(super) fn cache_with_bucket() -> (tempfile::TempDir, Arc<Cache>) {
    let Scene { _dir: dir, cache, .. } = scene_with("[storage.s3]\nbucket = \"larder\"");
    (dir, cache)
}

fn scene_with(keys: &str) -> Scene {
    let dir = tempfile::tempdir().expect("a directory");
    let config = parse(&format!("[cache]\ndir = {:?}\n{keys}\n", dir.path())).expect("a configuration");
    let pool = || Pool::new("a test", 8, Duration::from_secs(3600));
    let store = Simulated::default();
    let index = index_simulated::Simulated::open(dir.path());
    let spool = Spool::new(dir.path().join("partial"), pool());
    let bucket = config.s3.as_ref().map(|_| bucket_at("http://127.0.0.1:1"));
    let stores = (Arc::new(store.clone()) as Arc<dyn Store>, bucket);
    let cache = Arc::new(Cache::of(&config, stores, spool, Arc::new(index.clone()), pool(), Arc::default()));
    Scene { _dir: dir, store, index, cache }
}

fn manifest(text: &str) -> Manifest {
    let bytes = Bytes::from(format!("{{\"schemaVersion\":2,\"text\":\"{text}\"}}"));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    Manifest::new(digest, MediaType::new("m"), bytes, Timestamp(1))
}

impl Scene {
    /// Brings a manifest in. The store may take it or not, by its health.
    async fn put(&self, text: &str) -> Digest {
        let manifest = manifest(text);
        let kept = self.cache.put_manifest(&Viewer::own("r"), manifest.clone()).await;
        assert_eq!(kept.bytes, manifest.bytes, "it is handed on whatever the store does");
        while !self.cache.pending.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        manifest.digest
    }

    /// Returns whether a process that has just started finds the manifest.
    async fn found(&self, digest: &Digest) -> Result<bool, Failure> {
        self.cache.hot.clear();
        Ok(self.cache.manifest(digest).await?.is_some())
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_full_or_failing_store_does_not_take_is_handed_on_and_kept_when_it_is_well() {
    let scene = scene().await;
    for health in [Health::Full, Health::Failing(io::ErrorKind::Other)] {
        scene.store.set(health);
        let digest = scene.put("first").await;
        assert!(scene.cache.metrics.unstored.get() > 0);
        scene.store.set(Health::Well);
        assert!(!scene.found(&digest).await.expect("readable"), "{health:?}");
    }
    let digest = scene.put("first").await;
    assert!(scene.found(&digest).await.expect("readable"));
}

#[tokio::test(start_paused = true)]
async fn what_was_torn_is_never_served_and_is_taken_out() {
    let scene = scene().await;
    scene.store.set(Health::Torn);
    let torn = scene.put("torn in the middle").await;
    scene.store.set(Health::Well);
    assert!(scene.store.contains(&torn).await.expect("known"), "half of it is there");
    assert!(scene.cache.stored(&torn).await.expect("readable").is_none());
    assert!(!scene.store.contains(&torn).await.expect("known"));
}

#[tokio::test(start_paused = true)]
async fn what_a_disk_lost_that_lied_about_its_syncs_is_never_served() {
    let scene = scene().await;
    scene.store.set(Health::Lying);
    let lost = scene.put("said to be durable").await;
    scene.store.set(Health::Well);
    let durable = scene.put("durable").await;
    assert!(scene.found(&lost).await.expect("readable"));
    scene.store.lose_power();
    assert!(scene.cache.stored(&lost).await.expect("readable").is_none(), "as a blob");
    assert!(!scene.found(&lost).await.expect("readable"), "as a manifest");
    assert!(scene.cache.stored(&durable).await.expect("readable").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_a_hanging_store_has_is_as_if_it_were_not_there_in_time() {
    let scene = scene().await;
    let digest = scene.put("stored").await;
    scene.store.set(Health::Hanging);
    let asked = Instant::now();
    assert_eq!(scene.cache.stored(&digest).await.map(drop).expect_err("late").kind, FailureKind::Storage);
    assert_eq!(scene.found(&digest).await.expect_err("late").kind, FailureKind::Storage);
    assert!(asked.elapsed() <= 3 * DEADLINE, "{:?}", asked.elapsed());
    assert!(scene.cache.check().await.is_err());
    scene.store.set(Health::Well);
    assert!(scene.found(&digest).await.expect("readable"), "and it was not taken for damaged");
    // Until the probe that still hangs has ended.
    tokio::time::sleep(DEADLINE).await;
    scene.cache.check().await.expect("well again");
}

const INDEX_ILLS: [index_simulated::Health; 3] =
    [index_simulated::Health::Failing, index_simulated::Health::Hanging, index_simulated::Health::Full];

#[tokio::test(start_paused = true)]
async fn an_index_that_fails_hangs_or_is_full_keeps_no_manifest_from_who_asked_for_it() {
    let scene = scene().await;
    for health in INDEX_ILLS {
        scene.index.set(health).await;
        let begun = Instant::now();
        let digest = scene.put(&format!("{health:?}")).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{health:?}: it took {:?}", begun.elapsed());
        // What came in is remembered, whatever the index does.
        assert!(scene.cache.is_visible(&Viewer::own("r"), &digest).await.expect("known"), "{health:?}");
        assert!(scene.cache.manifest(&digest).await.expect("readable").is_some(), "{health:?}");
        scene.index.set(index_simulated::Health::Well).await;
        assert!(scene.store.contains(&digest).await.expect("known"), "{health:?}: it is stored all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_ill_index_cannot_tell_is_an_error_in_time_and_no_answer() {
    let scene = scene().await;
    let digest = scene.put("shown to this repository").await;
    for health in [index_simulated::Health::Failing, index_simulated::Health::Hanging] {
        scene.cache.hot.clear();
        scene.index.set(health).await;
        let begun = Instant::now();
        let asked = scene.cache.is_visible(&Viewer::own("r"), &digest).await;
        assert!(asked.is_err(), "{health:?}: a right is not guessed");
        assert!(begun.elapsed() <= index_simulated::DEADLINE, "{health:?}: it took {:?}", begun.elapsed());
        // The first check of a hanging index gets the result of the probe before.
        let _ = scene.cache.check().await;
        tokio::time::sleep(index_simulated::DEADLINE).await;
        assert!(scene.cache.check().await.is_err(), "{health:?}: it is not ready");
        scene.index.set(index_simulated::Health::Well).await;
        assert!(scene.cache.is_visible(&Viewer::own("r"), &digest).await.expect("known"));
        tokio::time::sleep(Duration::from_secs(60)).await;
        scene.cache.check().await.expect("ready again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_breaks_off_is_an_error_and_a_later_one_takes_the_rest() {
    let scene = scene().await;
    let mut digests = Vec::new();
    for number in 0..200 {
        digests.push(scene.put(&format!("image {number}")).await);
    }
    let purge = || scene.cache.purge(Purge::Repository("r".to_owned()));
    scene.index.set(index_simulated::Health::Torn).await;
    assert!(purge().await.is_err());
    scene.index.set(index_simulated::Health::Well).await;
    scene.cache.hot.clear();
    for digest in &digests {
        // What is shown is stored, and what is not stored is not shown.
        let is_shown = scene.cache.is_visible(&Viewer::own("r"), digest).await.expect("known");
        assert!(!is_shown || scene.store.contains(digest).await.expect("known"));
    }
    purge().await.expect("purged");
    for digest in &digests {
        assert!(!scene.cache.is_visible(&Viewer::own("r"), digest).await.expect("known"));
    }
    // Files that lost their rows are found, and are purged with everything.
    scene.cache.upkeep.census(true).await.expect("counted");
    scene.cache.purge(Purge::All).await.expect("purged");
    for digest in &digests {
        assert!(!scene.store.contains(digest).await.expect("known"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_index_does_not_keep_the_files_from_being_purged() {
    let scene = scene().await;
    let digest = scene.put("on a full disk").await;
    scene.index.set(index_simulated::Health::Full).await;
    assert!(scene.cache.purge(Purge::All).await.is_err());
    assert!(!scene.store.contains(&digest).await.expect("known"), "room comes first");
    assert!(scene.cache.manifest(&digest).await.expect("readable").is_none(), "nor is it served from memory");
    scene.index.set(index_simulated::Health::Well).await;
    scene.cache.purge(Purge::All).await.expect("purged");
}

#[tokio::test(start_paused = true)]
async fn what_an_index_lost_that_lied_is_learnt_again_and_shown_to_nobody_meanwhile() {
    let scene = scene().await;
    let before = scene.put("before").await;
    scene.index.set(index_simulated::Health::Lying).await;
    let lost = scene.put("said to be durable").await;
    scene.index.flush().await.expect("it says so");
    assert!(scene.cache.index.object(&lost).await.expect("read").is_some());
    scene.index.lose_power().await;
    scene.cache.hot.clear();
    assert!(scene.cache.is_visible(&Viewer::own("r"), &before).await.expect("known"));
    assert!(!scene.cache.is_visible(&Viewer::own("r"), &lost).await.expect("known"), "its upstream is asked again");
    scene.cache.upkeep.census(true).await.expect("counted");
    scene.index.flush().await.expect("written");
    assert!(scene.cache.store.contains(&lost).await.expect("known"));
}

/// Has content that the cache knows.
struct Known(Bytes);

impl Origin for Known {
    fn open(&self, _: u64, _: Option<u64>, _: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        let (bytes, total) = (self.0.clone(), Some(self.0.len() as u64));
        let body = futures_util::stream::iter([Ok(bytes)]).boxed();
        std::future::ready(Ok(Transfer { source: Source(0), start: 0, total, body })).boxed()
    }

    fn parallel(&self) -> usize {
        1
    }

    fn broke(&self, _: Source, _: bool, _: &Failure) {}

    fn reject(&self, _: Source) {}

    fn received(&self, _: u64) {}

    fn is_known_content(&self) -> bool {
        true
    }

    fn stored<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, ()> {
        std::future::ready(()).boxed()
    }
}

/// No upstream has shown it: a client that an upstream let through for once gives nobody else a right to it.
#[tokio::test]
async fn what_only_comes_back_is_visible_to_nobody_by_that() {
    let scene = scene().await;
    let content = Bytes::from_static(b"content");
    let digest = Digest::of(Algorithm::Sha256, &content);
    let (viewer, party) = (Viewer::own("r"), Party { source: "r".into(), client: None, is_named: true });
    let (fill, _) = scene.cache.fill(&viewer, digest, party, || Arc::new(Known(content)));
    assert_eq!(fill.whole().await.expect("it comes"), Some(7));
    drop(fill);
    while scene.cache.running_fill(&digest).is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(scene.store.contains(&digest).await.expect("known"));
    scene.index.flush().await.expect("written");
    assert_eq!(scene.index.object(&digest).await.expect("read").map(|entry| entry.size), Some(7));
    assert!(!scene.cache.is_visible(&viewer, &digest).await.expect("read"));
}

/// An error that the bucket would not give now: it shows whether the bucket was asked since.
fn earlier() -> (S3Error, String) {
    let error = S3Error::late(Duration::from_secs(123));
    let text = error.to_string();
    (error, text)
}

#[tokio::test]
async fn a_bucket_that_rests_is_not_asked_for_what_is_only_there() {
    let (_dir, cache) = cache_with_bucket();
    let known = cache.bucket.clone().expect("a bucket");
    let upload = Upload::new(Digest::Sha256([1; 32])).expect("random numbers");
    let media_type = Some(MediaType::new("m"));
    let entry = ObjectEntry { size: 7, media_type, stored_at: Timestamp(1), generation: Some(upload.generation) };
    cache.index.apply(vec![Write::Object { digest: upload.digest, entry }]).await.expect("queued");
    cache.index.flush().await.expect("written");
    let (error, text) = earlier();
    known.failed(&error);
    assert!(cache.manifest(&upload.digest).await.expect("readable").is_none());
    assert_eq!(known.trouble(), Some(text.clone()), "for a manifest");
    let failure = cache.recalled(&upload.digest).await.err().expect("it cannot be had");
    assert!(failure.is_passing && failure.message().contains("a moment ago"), "{failure}");
    assert_eq!(known.trouble(), Some(text), "for anything");
}

/// An origin behind the bucket.
struct Next(Known);

impl Origin for Next {
    fn open(&self, from: u64, until: Option<u64>, is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        self.0.open(from, until, is_part)
    }

    fn parallel(&self) -> usize {
        self.0.parallel()
    }

    fn broke(&self, _: Source, _: bool, _: &Failure) {}

    fn reject(&self, _: Source) {}

    fn received(&self, _: u64) {}

    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()> {
        self.0.stored(digest, size)
    }
}

#[tokio::test]
async fn once_an_upstream_is_in_use_it_has_no_more_connections_than_it_may_and_its_content_is_new() {
    let (_dir, cache) = cache_with_bucket();
    let upload = Upload::new(Digest::Sha256([1; 32])).expect("random numbers");
    let found = InBucket { upload, size: 7, media_type: None, since: clock::wall() };
    let origin = cache.from_bucket(&found, Some(Arc::new(Next(Known(Bytes::from_static(b"content"))))));
    assert!(origin.parallel() > 1 && origin.is_known_content(), "the bucket comes first");
    let transfer = origin.open(0, None, false).await.expect("the upstream has it");
    assert_eq!((transfer.source, origin.parallel(), origin.is_known_content()), (Source(1), 1, false));
}

/// A copy had bytes of both, and was wrong.
#[tokio::test]
async fn what_the_bucket_has_is_deleted_only_where_all_wrong_bytes_were_its_own() {
    let (_dir, cache) = cache_with_bucket();
    let uploads = [1, 2].map(|byte| Upload::new(Digest::Sha256([byte; 32])).expect("random numbers"));
    for upload in &uploads {
        let generation = Some(upload.generation);
        let entry = ObjectEntry { size: 7, media_type: None, stored_at: Timestamp(1), generation };
        cache.index.apply(vec![Write::Object { digest: upload.digest, entry }]).await.expect("queued");
    }
    cache.index.flush().await.expect("written");
    let origins = uploads.map(|upload| {
        let found = InBucket { upload, size: 7, media_type: None, since: clock::wall() };
        cache.from_bucket(&found, Some(Arc::new(Next(Known(Bytes::from_static(b"content"))))))
    });
    origins[0].open(0, None, false).await.expect("the upstream has it");
    origins.iter().for_each(|origin| origin.reject(Source(0)));
    while cache.index.object(&uploads[1].digest).await.expect("read").is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(cache.index.object(&uploads[0].digest).await.expect("read").is_some());
}
