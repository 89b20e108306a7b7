use std::os::unix::fs::FileExt;

use super::*;

#[test]
fn an_object_is_there_only_once_it_is_published() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path()).expect("a store");
    let digest = Digest::of(Algorithm::Sha256, b"content");
    let (partial, _) = disk.open_partial(&digest).expect("a file");
    partial.data().file.write_all_at(b"content", 0).expect("written");
    assert!(disk.get(&digest).expect("readable").is_none());

    partial.data().file.write_all_at(b"more", 7).expect("written");
    assert!(disk.publish(&partial, &digest, 7).expect("published"));
    assert_eq!(disk.get(&digest).expect("readable").map(|stored| stored.size), Some(7));
    assert_eq!(fs::read_dir(dir.path().join("partial")).expect("readable").count(), 0);
    assert!(disk.remove(&digest).expect("removed"));
    assert!(!disk.remove(&digest).expect("nothing to remove"));
}

#[test]
fn readers_of_one_object_share_its_file_and_see_what_becomes_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path()).expect("a store");
    let content = vec![7; 100_000];
    let digest = Digest::of(Algorithm::Sha256, &content);
    let get = || disk.get(&digest).expect("readable");
    disk.put(&digest, &content).expect("stored");
    let first = get().expect("there");
    assert!(Arc::ptr_eq(&first.file, &get().expect("there").file));
    // A file that was touched is seen to be, and one that is gone is not found.
    fs::write(disk.path(&digest), &content).expect("written");
    assert!(!get().expect("there").is_sealed);
    disk.remove(&digest).expect("removed");
    assert!(get().is_none());
    disk.put(&digest, &content).expect("stored again");
    assert!(!Arc::ptr_eq(&first.file, &get().expect("there").file));
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

#[test]
fn who_writes_to_an_object_breaks_its_seal() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path()).expect("a store");
    let digest = Digest::of(Algorithm::Sha256, b"content");
    let get = || disk.get(&digest).expect("readable").expect("there");
    disk.put(&digest, b"content").expect("stored");
    assert!(get().is_sealed && Disk::is_intact(&get(), &digest, |_| true).expect("read"));

    fs::write(disk.path(&digest), b"CONTENT").expect("written");
    assert!(!get().is_sealed && !Disk::is_intact(&get(), &digest, |_| true).expect("read"));

    // A copy that lost its times is found intact and sealed again.
    fs::write(disk.path(&digest), b"content").expect("written");
    assert!(!get().is_sealed && Disk::is_intact(&get(), &digest, |_| true).expect("read"));
    let seconds = |stored: &Stored| stored.since.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let before = get();
    disk.seal(&before, &digest).expect("sealed");
    assert!(get().is_sealed);
    assert_eq!(seconds(&get()), seconds(&before));
}

#[test]
fn partial_downloads_are_listed_with_the_disk_they_take() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path()).expect("a store");
    let digest = Digest::of(Algorithm::Sha512, b"content");
    let (partial, _) = disk.open_partial(&digest).expect("a file");
    partial.data().file.write_all_at(&[1; 100_000], 0).expect("written");
    fs::write(dir.path().join("partial/put-1"), "no download").expect("written");
    let found = disk.partials().expect("listed");
    assert_eq!(found.iter().map(|partial| partial.digest).collect::<Vec<_>>(), [digest]);
    assert!(found[0].bytes >= 100_000);
    disk.remove_partial(&digest).expect("removed");
    assert_eq!(disk.partials().expect("listed"), []);
}

#[test]
fn removed_folders_are_made_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path()).expect("a store");
    for folder in ["blobs", "partial"] {
        fs::remove_dir_all(dir.path().join(folder)).expect("removed");
    }
    disk.for_each(|_, _, _| ()).expect("empty");
    assert_eq!(disk.partials().expect("empty"), []);
    disk.check().expect("writable");
    let digest = Digest::of(Algorithm::Sha256, b"content");
    assert!(disk.put(&digest, b"content").expect("stored"));
    assert!(disk.get(&digest).expect("readable").is_some());
}

#[test]
fn only_abandoned_partials_are_cleared() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::open(dir.path()).expect("a store");
    drop(disk.open_partial(&Digest::Sha256([1; 32])).expect("a file"));
    let left = || fs::read_dir(dir.path().join("partial")).expect("readable").count();
    fs::write(dir.path().join("partial/put-1"), "being written").expect("written");
    disk.clear_partials(Duration::from_secs(3600)).expect("cleared");
    assert_eq!(left(), 3, "the file, its journal, and the one that is being written");
    disk.clear_partials(Duration::ZERO).expect("cleared");
    assert_eq!(left(), 0);
}

#[test]
fn one_directory_serves_one_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Disk::open(dir.path()).expect("a store");
    assert!(matches!(Disk::open(dir.path()), Err(StoreError::InUse { .. })));
    drop(first);
    assert!(Disk::open(dir.path()).is_ok());
}
