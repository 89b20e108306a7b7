//! The cache on a store that does as told: slow, full, torn, hanging, lying.

use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::config::tests::parse;
use crate::index::Viewer;
use crate::oci::Algorithm;
use crate::store::simulated::{DEADLINE, Health, Simulated};

struct Scene {
    _dir: tempfile::TempDir,
    store: Simulated,
    cache: Arc<Cache>,
}

async fn scene() -> Scene {
    let dir = tempfile::tempdir().expect("a directory");
    let config = parse(&format!("[cache]\ndir = {:?}\n", dir.path())).expect("a configuration");
    let pool = || Pool::new("a test", 8, Duration::from_secs(3600));
    let store = Simulated::default();
    let index = Index::open(dir.path()).expect("an index");
    let spool = Spool::new(dir.path().join("partial"), pool());
    let cache = Cache::of(&config, Arc::new(store.clone()), spool, index, (pool(), pool()), Arc::default());
    let cache = Arc::new(cache);
    tokio::spawn(cache.clone().look_after());
    cache.loaded().await;
    Scene { _dir: dir, store, cache }
}

fn manifest(text: &str) -> Manifest {
    let bytes = Bytes::from(format!("{{\"schemaVersion\":2,\"text\":\"{text}\"}}"));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    Manifest { digest, media_type: MediaType::new("m"), bytes, stored_at: Timestamp(1) }
}

impl Scene {
    /// A manifest comes in and is in the store or not, whatever its health.
    async fn put(&self, text: &str) -> Digest {
        let manifest = manifest(text);
        let kept = self.cache.put_manifest(&Viewer::own("r"), manifest.clone()).await;
        assert_eq!(kept.bytes, manifest.bytes, "it is handed on whatever the store does");
        while !self.cache.pending.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        manifest.digest
    }

    /// As a process that has just started finds it.
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
    // Behind the probe that still hangs.
    tokio::time::sleep(DEADLINE).await;
    scene.cache.check().await.expect("well again");
}
