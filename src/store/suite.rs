//! Tests what each [`Store`] promises, on all of them.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;

use super::simulated::Simulated;
use super::*;
use crate::clock;
use crate::oci::Algorithm;
use crate::spool::Spool;
use crate::work::Pool;

fn pool() -> Pool {
    Pool::new("a test", 8, Duration::from_secs(60))
}

/// Returns a directory with a spool, and the stores to try.
fn stores() -> (tempfile::TempDir, Spool, Vec<Arc<dyn Store>>) {
    let dir = tempfile::tempdir().expect("a directory");
    let spool = Spool::new(dir.path().join("partial"), pool());
    let disk = Disk::open(dir.path(), pool()).expect("a store");
    let local = LocalStore::new(disk, pool(), pool(), pool());
    (dir, spool, vec![Arc::new(local), Arc::new(Simulated::default())])
}

fn digest(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

async fn listed(store: &dyn Store) -> HashSet<(Digest, u64)> {
    let (mut list, mut found) = (store.list(), HashSet::new());
    while let Some(listed) = list.next().await {
        let listed = listed.expect("listed");
        found.insert((listed.digest, listed.size));
    }
    found
}

#[tokio::test]
async fn what_is_put_is_there_until_it_is_removed() {
    let (_dir, _, stores) = stores();
    for store in stores {
        let digests: Vec<_> = [&b"one"[..], b"", b"three"].map(digest).into();
        assert!(store.open(&digests[0]).await.expect("readable").is_none());
        assert!(store.put(&digests[0], Bytes::from_static(b"one")).await.expect("stored"));
        assert!(store.put(&digests[1], Bytes::new()).await.expect("stored"));
        assert!(store.put(&digests[2], Bytes::from_static(b"three")).await.expect("stored"));
        assert!(!store.put(&digests[0], Bytes::from_static(b"one")).await.expect("stored"), "it was there");

        let object = store.open(&digests[2]).await.expect("readable").expect("there");
        assert!(object.size == 5 && object.is_sealed);
        assert_eq!(object.read(1, 3).await.expect("read"), b"hre"[..]);
        assert!(object.read(3, 3).await.is_err(), "beyond the end");
        assert!(object.is_intact(&digests[2], |_| true).await.expect("read"));
        assert!(!object.is_intact(&digests[0], |_| true).await.expect("read"));
        let empty = store.open(&digests[1]).await.expect("readable").expect("there");
        assert!(empty.size == 0 && empty.read(0, 0).await.expect("read").is_empty());

        let all: HashSet<_> = digests.iter().copied().zip([3, 0, 5]).collect();
        assert_eq!(listed(&*store).await, all);
        assert!(store.contains(&digests[0]).await.expect("known"));
        store.remove(&digests[..2]).await.expect("removed");
        store.remove(&digests[..2]).await.expect("what is not there is no error");
        assert!(!store.contains(&digests[0]).await.expect("known"));
        assert_eq!(listed(&*store).await, HashSet::from([(digests[2], 5)]));
        // A reader that has the object open goes on.
        assert_eq!(object.read(0, 5).await.expect("read"), b"three"[..]);
        store.clear().await.expect("cleared");
        assert_eq!(listed(&*store).await, HashSet::new());
        assert_eq!(object.read(0, 5).await.expect("read"), b"three"[..]);
        store.check().await.expect("well");
        let capacity = store.capacity().await.expect("known");
        assert!(capacity.free <= capacity.total && !capacity.is_full());
    }
}

#[tokio::test]
async fn a_download_is_an_object_only_once_it_is_published() {
    let (dir, spool, stores) = stores();
    for store in stores {
        let content = vec![7; 100_000];
        let digest = digest(&content);
        let (partial, _) = spool.open(&digest, true).await.expect("a file");
        // The download is longer than the object: only what was verified is published.
        let longer = [&content[..], b"more"].concat();
        partial.write(&partial.new_slot(), 0, 0, vec![longer.into()]).await.expect("written");
        assert!(store.open(&digest).await.expect("readable").is_none());
        assert!(store.publish(partial, &digest, 100_000).await.expect("published"));
        let object = store.open(&digest).await.expect("readable").expect("there");
        assert!(object.size == 100_000 && object.is_sealed);
        assert!(object.is_intact(&digest, |_| true).await.expect("read"));
        assert_eq!(std::fs::read_dir(dir.path().join("partial")).expect("readable").count(), 0);
        // Read into buffers, the object is the same.
        let unmapped = object.clone().unmapped();
        assert!(unmapped.mapping().is_none());
        assert_eq!(unmapped.read(99_000, 1_000).await.expect("read"), vec![7; 1_000]);
        // The same object stored again is not new.
        let (partial, _) = spool.open(&digest, true).await.expect("a file");
        partial.write(&partial.new_slot(), 0, 0, vec![content.into()]).await.expect("written");
        assert!(!store.publish(partial, &digest, 100_000).await.expect("published"));
    }
}

#[tokio::test]
async fn a_seal_can_be_broken_and_made_again() {
    let (_dir, _, stores) = stores();
    for store in stores {
        let digest = digest(b"content");
        store.put(&digest, Bytes::from_static(b"content")).await.expect("stored");
        let open = async || store.open(&digest).await.expect("readable").expect("there");
        store.unseal(&open().await).await.expect("unsealed");
        assert!(!open().await.is_sealed);
        store.seal(&open().await, &digest).await.expect("sealed");
        assert!(open().await.is_sealed);
    }
}

#[tokio::test]
async fn an_object_that_is_asked_for_all_the_time_is_gone_as_soon_as_it_is_removed() {
    let (_dir, _, stores) = stores();
    for store in stores {
        let digest = digest(b"content");
        let ask_often = async || {
            store.put(&digest, Bytes::from_static(b"content")).await.expect("stored");
            for _ in 0..20 {
                assert!(store.open(&digest).await.expect("readable").is_some());
            }
        };
        ask_often().await;
        store.remove(&[digest]).await.expect("removed");
        assert!(store.open(&digest).await.expect("readable").is_none());
        ask_often().await;
        store.clear().await.expect("cleared");
        assert!(store.open(&digest).await.expect("readable").is_none());
        // The same of an object that is found damaged.
        ask_often().await;
        let object = store.open(&digest).await.expect("readable").expect("there");
        store.unseal(&object).await.expect("unsealed");
        assert!(!store.open(&digest).await.expect("readable").expect("there").is_sealed);
    }
}

#[tokio::test]
async fn reading_can_be_broken_off() {
    let (_dir, _, stores) = stores();
    for store in stores {
        let digest = digest(b"content");
        store.put(&digest, Bytes::from_static(b"content")).await.expect("stored");
        let object = store.open(&digest).await.expect("readable").expect("there");
        let error = object.is_intact(&digest, |_| false).await.expect_err("broken off");
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        // A list that nobody reads any more ends its task; the store can be used.
        drop(store.list());
        assert_eq!(listed(&*store).await.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_stands_still_ends() {
    let (sender, receiver) = mpsc::channel(1);
    let mut list = Walk(receiver);
    let listed = Listed { digest: digest(b"one"), size: 3, since: clock::wall() };
    sender.send(Ok(listed)).await.expect("it is read");
    assert_eq!(list.next().await.expect("one").expect("listed"), listed);
    let asked = tokio::time::Instant::now();
    assert_eq!(list.next().await.expect("told").expect_err("late").kind(), io::ErrorKind::TimedOut);
    assert!(asked.elapsed() <= Duration::from_secs(60));
    assert!(list.next().await.is_none() && sender.is_closed());
}
