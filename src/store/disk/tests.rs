use super::*;

fn pool() -> Pool {
    Pool::new("a test", 4, Duration::from_secs(60))
}

fn shares_file(one: &Object, other: &Object) -> bool {
    one.mapping().zip(other.mapping()).is_some_and(|(one, other)| Arc::ptr_eq(one, other))
}

#[test]
fn readers_of_one_object_share_its_file_and_see_what_becomes_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path(), pool()).expect("a store");
    let content = vec![7; 100_000];
    let digest = Digest::of(Algorithm::Sha256, &content);
    let get = || disk.get(&digest).expect("readable");
    disk.put(&digest, &content).expect("stored");
    let first = get().expect("there");
    assert!(shares_file(&first, &get().expect("there")));
    // A touched file is recognized, and a missing file is not found.
    fs::write(disk.path(&digest), &content).expect("written");
    assert!(!get().expect("there").is_sealed);
    disk.remove(&digest).expect("removed");
    assert!(get().is_none());
    disk.put(&digest, &content).expect("stored again");
    assert!(!shares_file(&first, &get().expect("there")));
    drop(first);
    for number in 0..1000u32 {
        let content = [&content[..], &number.to_le_bytes()].concat();
        let digest = Digest::of(Algorithm::Sha256, &content);
        disk.put(&digest, &content).expect("stored");
        disk.get(&digest).expect("readable").expect("there");
    }
    let known = disk.open.len();
    assert!(known <= 64, "{known} are remembered");
}

#[tokio::test]
async fn who_writes_to_an_object_breaks_its_seal() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path(), pool()).expect("a store");
    let digest = Digest::of(Algorithm::Sha256, b"content");
    let get = || disk.get(&digest).expect("readable").expect("there");
    disk.put(&digest, b"content").expect("stored");
    assert!(get().is_sealed && get().is_intact(&digest, |_| true).await.expect("read"));

    fs::write(disk.path(&digest), b"CONTENT").expect("written");
    assert!(!get().is_sealed && !get().is_intact(&digest, |_| true).await.expect("read"));

    // A copy that lost its times is found intact, and sealed again.
    fs::write(disk.path(&digest), b"content").expect("written");
    assert!(!get().is_sealed && get().is_intact(&digest, |_| true).await.expect("read"));
    let seconds = |stored: &Object| stored.since.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let before = get();
    disk.seal(&before, &digest).expect("sealed");
    assert!(get().is_sealed);
    assert_eq!(seconds(&get()), seconds(&before));
}

/// As a power cut leaves the file, on a disk that claimed to have written it: the time is that of the seal, but a part
/// of the content is missing.
#[test]
fn a_file_that_is_shorter_than_its_object_is_not_sealed_whatever_its_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path(), pool()).expect("a store");
    let digest = Digest::of(Algorithm::Sha256, b"content");
    disk.put(&digest, b"content").expect("stored");
    for length in [6, 3, 0] {
        let file = OpenOptions::new().write(true).open(disk.path(&digest)).expect("opened");
        let sealed_at = file.metadata().and_then(|metadata| metadata.modified()).expect("a time");
        file.set_len(length).expect("cut");
        file.set_times(FileTimes::new().set_modified(sealed_at)).expect("set");
        assert!(!disk.get(&digest).expect("readable").expect("there").is_sealed, "{length}");
    }
}

#[test]
fn removed_folders_are_made_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path(), pool()).expect("a store");
    for folder in ["blobs", "partial"] {
        fs::remove_dir_all(dir.path().join(folder)).expect("removed");
    }
    disk.for_each(|_| true).expect("empty");
    disk.check().expect("writable");
    let digest = Digest::of(Algorithm::Sha256, b"content");
    assert!(disk.put(&digest, b"content").expect("stored"));
    assert!(disk.get(&digest).expect("readable").is_some());
}

#[test]
fn one_directory_serves_one_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Disk::open(dir.path(), pool()).expect("a store");
    assert!(matches!(Disk::open(dir.path(), pool()), Err(StoreError::InUse { .. })));
    drop(first);
    assert!(Disk::open(dir.path(), pool()).is_ok());
}
