use super::*;
use crate::index::{ImageName, Purge, Purged, Scope};
use crate::oci::Reference;

fn object(byte: u8) -> Digest {
    Digest::Sha256([byte; 32])
}

fn open() -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().expect("a directory");
    let index = Sqlite::open(dir.path()).expect("an index");
    (dir, index)
}

fn key(name: &str, tag: &str) -> TagKey {
    TagKey { repository: "r".to_owned(), shelf: String::new(), name: name.to_owned(), tag: tag.to_owned() }
}

fn entry(digest: Digest) -> TagEntry {
    TagEntry { digest, media_type: MediaType::new("m"), size: 3, checked_at: Timestamp(5) }
}

/// Purges. Returns all that was removed, in order.
fn take_out(index: &Sqlite, purge: Purge) -> Purged {
    let mut all = Purged::default();
    index.purge(&purge, |step| all.add(step)).expect("purged");
    all.digests.sort_unstable_by(|one, other| one.as_raw().cmp(other.as_raw()));
    all
}

/// Puts an image `r/name:tag` into an index: a manifest with layers.
fn put_image(index: &Sqlite, name: &str, tag: &str, manifest: u8, layers: &[u8]) {
    for byte in layers.iter().copied().chain([manifest]) {
        let entry = ObjectEntry { size: 10, media_type: None, stored_at: Timestamp(1), generation: None };
        index.write(Write::Object { digest: object(byte), entry });
        index.write(Write::Visible { viewer: Viewer::own("r"), digest: object(byte) });
    }
    let children = layers.iter().map(|&byte| object(byte)).collect();
    index.write(Write::Edges { parent: object(manifest), children });
    index.write(Write::Tag { key: key(name, tag), entry: entry(object(manifest)) });
}

#[tokio::test]
async fn what_was_written_is_read_after_reopening() {
    let (dir, index) = open();
    put_image(&index, "a", "1", 1, &[2]);
    index.flush().await.expect("written");
    drop(index);
    let index = Sqlite::open(dir.path()).expect("an index");
    assert_eq!(index.tag(&key("a", "1")).expect("read"), Some(entry(object(1))));
    assert_eq!(index.tag(&key("a", "2")).expect("read"), None);
    assert!(index.is_visible(&Viewer::own("r"), &object(2)).expect("read"));
    assert!(!index.is_visible(&Viewer::own("other"), &object(2)).expect("read"));
    assert_eq!(index.totals().expect("read"), Totals { objects: 2, bytes: 20 });
    assert_eq!(index.catalog(&["r".to_owned()], "", 10).expect("read"), ["r/a"]);
}

#[tokio::test]
async fn purging_a_tag_keeps_what_others_refer_to() {
    let (_dir, index) = open();
    put_image(&index, "a", "1", 1, &[10, 11]);
    put_image(&index, "b", "1", 2, &[11, 12]);
    let tag = Reference::Tag("1".parse().expect("a tag"));
    let purge = Purge::Reference { repository: "r".to_owned(), name: "a".to_owned(), reference: tag };
    let purged = take_out(&index, purge.clone());
    assert_eq!((purged.digests.clone(), purged.objects, purged.bytes), (vec![object(1), object(10)], 2, 20));
    assert!(purged.is_any());
    assert!(!take_out(&index, purge).is_any(), "there is nothing left of it");
    assert_eq!(index.totals().expect("read").objects, 3);
    assert!(index.tag(&key("a", "1")).expect("read").is_none());
    assert!(index.tag(&key("b", "1")).expect("read").is_some());
}

#[tokio::test]
async fn purging_an_index_takes_its_platforms_along() {
    let (_dir, index) = open();
    put_image(&index, "a", "1", 1, &[2]);
    index.write(Write::Edges { parent: object(2), children: vec![object(3)] });
    index.write(Write::Manifest {
        repository: "r".to_owned(),
        name: "a".to_owned(),
        digest: object(2),
        at: Timestamp(1),
    });
    let purge = Purge::Reference {
        repository: "r".to_owned(),
        name: "a".to_owned(),
        reference: Reference::Tag("1".parse().expect("a tag")),
    };
    let purged = take_out(&index, purge);
    assert_eq!(purged.digests, [object(1), object(2), object(3)]);
    assert!(index.catalog(&["r".to_owned()], "", 10).expect("read").is_empty());
}

#[tokio::test]
async fn purging_a_repository_keeps_what_another_may_see() {
    let (_dir, index) = open();
    put_image(&index, "a", "1", 1, &[10, 11]);
    index.write(Write::Visible { viewer: Viewer::own("other"), digest: object(10) });
    let purged = take_out(&index, Purge::Repository("r".to_owned()));
    assert_eq!(purged.digests, [object(1), object(11)]);
    let purged = take_out(&index, Purge::All);
    assert_eq!(purged.digests, [object(10)]);
}

#[tokio::test]
async fn purging_a_shared_image_here_and_there_leaves_nothing() {
    let (_dir, index) = open();
    put_image(&index, "a", "1", 1, &[2]);
    for byte in [1, 2] {
        index.write(Write::Visible { viewer: Viewer::own("other"), digest: object(byte) });
    }
    let key = TagKey { repository: "other".to_owned(), ..key("a", "1") };
    index.write(Write::Tag { key, entry: entry(object(1)) });
    let tag = Reference::Tag("1".parse().expect("a tag"));
    let purge = Purge::Reference { repository: "r".to_owned(), name: "a".to_owned(), reference: tag };
    assert_eq!(take_out(&index, purge).objects, 0);
    assert!(!index.is_visible(&Viewer::own("r"), &object(2)).expect("read"));
    let purged = take_out(&index, Purge::Repository("other".to_owned()));
    assert_eq!(purged.digests, [object(1), object(2)]);
}

#[test]
fn a_damaged_index_does_not_stop_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("larder.db"), vec![0x5a; 8192]).expect("written");
    let index = Sqlite::open(dir.path()).expect("a new index");
    assert_eq!(index.totals().expect("read"), Totals::default());
    let names = std::fs::read_dir(dir.path()).expect("readable");
    let aside = names.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().contains("damaged"));
    assert_eq!(aside.count(), 1);
}

#[tokio::test]
async fn an_index_that_cannot_be_written_goes_on_in_memory() {
    let (dir, index) = open();
    put_image(&index, "a", "1", 1, &[2]);
    index.flush().await.expect("written");
    drop(index);
    let path = dir.path().join("larder.db");
    let index = Sqlite::open_in_memory(&path).expect("an index");
    assert_eq!(index.tag(&key("a", "1")).expect("read"), Some(entry(object(1))));
    put_image(&index, "b", "1", 3, &[4]);
    index.flush().await.expect("written");
    assert_eq!(index.tag(&key("b", "1")).expect("read"), Some(entry(object(3))));
    // An index in memory leaves nothing for the next one.
    let other = Sqlite::open_in_memory(&dir.path().join("none.db")).expect("an index");
    assert_eq!(other.totals().expect("read"), Totals { objects: 0, bytes: 0 });
    drop((index, other));
    let index = Sqlite::open(dir.path()).expect("an index");
    assert_eq!(index.tag(&key("b", "1")).expect("read"), None);
}

#[tokio::test]
async fn all_that_is_known_of_an_object_goes_with_it() {
    let (_dir, index) = open();
    put_image(&index, "a", "1", 1, &[2]);
    for digest in [object(1), object(2)] {
        index.write(Write::DropObject { digest });
    }
    index.flush().await.expect("written");
    assert_eq!(index.tag(&key("a", "1")).expect("read"), None);
    assert!(!index.is_visible(&Viewer::own("r"), &object(2)).expect("read"));
    assert_eq!(index.below(vec![object(1)]).expect("read").len(), 1);
    assert_eq!(index.catalog(&["r".to_owned()], "", 10).expect("read"), [""; 0]);
}

#[tokio::test]
async fn pins_are_kept_and_lead_to_all_that_an_image_is_made_of() {
    let (dir, index) = open();
    let pin = ImageName {
        repository: "r".to_owned(),
        name: "a".to_owned(),
        reference: Reference::Tag("1".parse().expect("a tag")),
    };
    assert!(index.set_pin(pin.clone(), true).expect("pinned"));
    assert!(!index.set_pin(pin.clone(), true).expect("pinned already"));
    drop(index);
    let index = Sqlite::open(dir.path()).expect("an index");
    let pins = index.pins().expect("read");
    assert_eq!(pins, std::slice::from_ref(&pin));
    assert_eq!(index.manifests_of(&pins).expect("read"), []);
    put_image(&index, "a", "1", 1, &[2, 3]);
    index.flush().await.expect("written");
    let manifests = index.manifests_of(&pins).expect("read");
    assert_eq!(index.below(manifests).expect("read"), [1, 2, 3].map(object).into());
    assert!(index.set_pin(pin, false).expect("unpinned"));
    assert_eq!(index.pins().expect("read"), []);
}

/// Makes an index as it was before tags had shelves.
fn of_version_4(dir: &std::path::Path) -> Connection {
    let connection = Connection::open(dir.join("larder.db")).expect("made");
    for migration in &crate::index::open::MIGRATIONS[..4] {
        connection.execute_batch(migration).expect("applied");
    }
    connection.pragma_update(None, "user_version", 4).expect("written");
    let put = |table: &str, values: &str| {
        connection.execute(&format!("INSERT INTO {table} VALUES ({values})"), []).expect("written");
    };
    let raw = |digest: u8| format!("x'{}'", format!("{digest:02x}").repeat(32));
    for (tag, digest) in [("ours", 1), ("theirs", 2), ("both", 3)] {
        put("tags", &format!("'r', 'a', '{tag}', {}, 'x/y', 7, 5", raw(digest)));
    }
    for (repository, digest) in [("r", 1), ("r by clients", 2), ("r", 3), ("r by clients", 3), ("r in public", 2)] {
        put("visibility", &format!("'{repository}', {}", raw(digest)));
    }
    connection
}

#[tokio::test]
async fn tags_of_an_earlier_version_are_found_by_those_who_learnt_them() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(of_version_4(dir.path()));
    let index = Sqlite::open(dir.path()).expect("opened");
    assert!(!index.was_damaged());
    let by_clients = |tag: &str| TagKey { shelf: " by clients".to_owned(), ..key("a", tag) };
    for (tag, digest, is_theirs) in [("ours", 1, false), ("theirs", 2, true), ("both", 3, true)] {
        let entry = TagEntry { checked_at: Timestamp(5), ..entry(object(digest)) };
        let found = index.tag(&key("a", tag)).expect("read").map(|found| (found.digest, found.checked_at));
        assert_eq!(found, Some((entry.digest, entry.checked_at)), "{tag}");
        let found = index.tag(&by_clients(tag)).expect("read").map(|found| found.digest);
        assert_eq!(found, is_theirs.then_some(entry.digest), "{tag}");
    }
    // From there, each shelf changes by itself.
    index.write(Write::DropTag { key: by_clients("both") });
    index.write(Write::Tag { key: by_clients("theirs"), entry: entry(object(4)) });
    index.flush().await.expect("written");
    assert!(
        index.tag(&key("a", "both")).expect("read").is_some()
            && index.tag(&by_clients("both")).expect("read").is_none()
    );
    assert_eq!(index.tag(&key("a", "theirs")).expect("read").map(|found| found.digest), Some(object(2)));
    take_out(&index, Purge::Name { repository: "r".to_owned(), name: "a".to_owned() });
    assert_eq!(index.tag(&by_clients("theirs")).expect("read"), None);
}

/// Asserts which objects are visible to which viewers in an index that [`of_version_4`] made.
fn assert_shown_as_before(index: &Sqlite) {
    for (scope, shown) in [(Scope::Own, [1, 3].as_slice()), (Scope::ByClients, &[2, 3]), (Scope::Public, &[2])] {
        let is_shown = |digest: &u8| index.is_visible(&Viewer::new("r", scope), &object(*digest)).expect("read");
        assert_eq!((1..5).filter(is_shown).collect::<Vec<_>>(), shown, "{scope:?}");
    }
}

#[test]
fn who_may_see_what_in_an_index_of_an_earlier_version_is_told_by_its_scope() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(of_version_4(dir.path()));
    assert_shown_as_before(&Sqlite::open_in_memory(&dir.path().join("larder.db")).expect("opened"));
    assert_shown_as_before(&Sqlite::open(dir.path()).expect("opened"));
}

#[test]
fn an_index_of_an_earlier_version_that_cannot_be_written_is_read_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(of_version_4(dir.path()));
    let index = Sqlite::open_in_memory(&dir.path().join("larder.db")).expect("opened");
    let found = index.tag(&key("a", "ours")).expect("read").map(|found| found.digest);
    assert_eq!(found, Some(object(1)));
    assert!(index.is_visible(&Viewer::own("r"), &object(3)).expect("read"), "the tables behind it, too");
}

/// A task that still runs at a stop holds the index.
#[tokio::test]
async fn a_stop_leaves_all_of_it_in_the_file_while_somebody_still_holds_it() {
    let (dir, index) = open();
    put_image(&index, "a", "1", 1, &[2]);
    index.close().await.expect("closed");
    assert_eq!(std::fs::metadata(dir.path().join("larder.db-wal")).map_or(0, |log| log.len()), 0);
    let file = rusqlite::Connection::open(dir.path().join("larder.db")).expect("opened");
    let found = file.query_row("SELECT count(*) FROM tags WHERE tag = '1'", [], |row| row.get::<_, i64>(0));
    assert_eq!(found, Ok(1));
    // Later writes are dropped and counted.
    index.write(Write::Tag { key: key("a", "late"), entry: entry(object(1)) });
    assert_eq!(index.dropped(), 1);
}
