//! Tests what each [`Index`] promises, on all of them.

use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt;

use super::postgres::tests as trial;
use super::simulated::Simulated;
use super::*;
use crate::work::Pool;

/// Returns the directories of indexes, and the indexes to try: in PostgreSQL directly, by way of PgBouncer, and of a Larder
/// with a bucket.
fn indexes() -> (Vec<tempfile::TempDir>, Vec<Arc<dyn Index>>) {
    let (dirs, mut indexes) = with_bucket();
    indexes.extend([trial::Way::Direct, trial::Way::Pooled].map(|way| Arc::new(trial::open(way)) as Arc<dyn Index>));
    (dirs, indexes)
}

/// The same, of Larders with a bucket: others note nothing of uploads in PostgreSQL.
fn with_bucket() -> (Vec<tempfile::TempDir>, Vec<Arc<dyn Index>>) {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let pool = Pool::new("a test", 8, Duration::from_secs(60));
    let local = LocalIndex::new(Sqlite::open(dirs[0].path()).expect("an index"), pool.clone(), pool);
    let simulated = Simulated::open(dirs[1].path());
    let pooled = trial::open_with_bucket(trial::Way::Pooled);
    (dirs, vec![Arc::new(local), Arc::new(simulated), Arc::new(pooled)])
}

fn object(byte: u8) -> Digest {
    Digest::Sha256([byte; 32])
}

fn key(name: &str, tag: &str) -> TagKey {
    TagKey { repository: "r".to_owned(), shelf: String::new(), name: name.to_owned(), tag: tag.to_owned() }
}

fn tag_entry(digest: Digest) -> TagEntry {
    TagEntry { digest, media_type: MediaType::new("m"), size: 10, checked_at: Timestamp(5) }
}

fn object_entry() -> ObjectEntry {
    ObjectEntry { size: 10, media_type: Some(MediaType::new("m")), stored_at: Timestamp(1), generation: None }
}

fn pin(tag: &str) -> ImageName {
    let reference = tag.parse().map(Reference::Tag).expect("a tag");
    ImageName { repository: "r".to_owned(), name: "a".to_owned(), reference }
}

/// Puts an image `r/name:1` into an index: a manifest that leads to layers, shown to Larder's own credentials.
async fn put_image(index: &dyn Index, name: &str, manifest: u8, layers: &[u8]) {
    for byte in layers.iter().copied().chain([manifest]) {
        index.note(Write::Object { digest: object(byte), entry: object_entry() });
        index.note(Write::Visible { viewer: Viewer::own("r"), digest: object(byte) });
    }
    let children = layers.iter().map(|&byte| object(byte)).collect();
    index.note(Write::Edges { parent: object(manifest), children });
    index.note(Write::Tag { key: key(name, "1"), entry: tag_entry(object(manifest)) });
    index.flush().await.expect("written");
}

#[tokio::test]
async fn what_is_noted_is_read() {
    let (_dirs, indexes) = indexes();
    for index in &indexes {
        put_image(&**index, "a", 1, &[2, 3]).await;
        assert_eq!(index.tag(&key("a", "1")).await.expect("read"), Some(tag_entry(object(1))));
        assert_eq!(index.tag(&key("a", "2")).await.expect("read"), None);
        assert_eq!(index.object(&object(2)).await.expect("read"), Some(object_entry()));
        for (viewer, is_shown) in [(Viewer::own("r"), true), (Viewer::new("r", Scope::Public), false)] {
            assert_eq!(index.is_visible(&viewer, &object(2)).await.expect("read"), is_shown);
        }
        for (name, byte, is_known) in [("a", 1, true), ("a", 2, true), ("a", 9, false), ("b", 1, false)] {
            assert_eq!(index.knows_name("r", name, &object(byte)).await.expect("read"), is_known, "{name} {byte}");
        }
        let named = index.names(vec![object(1), object(2), object(9)]).await.expect("read");
        assert_eq!(named, ["r/a:1", "r/a:1"], "nothing is known of the last");
        assert_eq!(index.catalog(vec!["r".to_owned()], String::new(), 10).await.expect("read"), ["r/a"]);
        let page = index.images(String::new(), 10).await.expect("read");
        let images: Vec<_> = page.images.iter().map(|image| (image.reference.as_str(), image.objects)).collect();
        assert_eq!((images, page.next), (vec![("r/a:1", 3)], None));
        index.note(Write::DropTag { key: key("a", "1") });
        index.flush().await.expect("written");
        assert_eq!(index.tag(&key("a", "1")).await.expect("read"), None);
        index.check().await.expect("well");
        index.verify().await.expect("well");
        assert!(!index.was_damaged() && index.dropped() == 0);
    }
}

#[tokio::test]
async fn a_list_is_read_where_there_is_room_for_it() {
    let (_dirs, indexes) = indexes();
    let key = ListKey { repository: "r".to_owned(), name: "a".to_owned(), page: "tags/list".to_owned() };
    let listing = Listing {
        body: Bytes::from(vec![b' '; 1000]),
        media_type: None,
        link: Some("</v2/>".to_owned()),
        filters_applied: None,
        checked_at: Timestamp(7),
    };
    for index in &indexes {
        assert_eq!(index.listing(&key, 10_000).await.expect("read"), None);
        index.note(Write::Listing { key: key.clone(), listing: listing.clone() });
        index.flush().await.expect("written");
        assert_eq!(index.listing(&key, 10_000).await.expect("read"), Some(listing.clone()));
        assert!(matches!(index.listing(&key, 100).await, Err(IndexError::TooLarge(bytes)) if bytes >= 1000));
    }
}

#[tokio::test]
async fn the_newest_answer_of_a_url_comes_first() {
    let (_dirs, indexes) = indexes();
    let entry = |variant: u8| UrlEntry {
        variant: [variant; 32],
        digest: object(variant),
        head: Bytes::from_static(b"head"),
        stored_at: Timestamp(i64::from(variant)),
    };
    for index in &indexes {
        for variant in [1, 3, 2] {
            index.note(Write::Url { key: object(9), entry: entry(variant) });
        }
        index.note(Write::DropUrl { key: object(9), variant: [2; 32] });
        index.flush().await.expect("written");
        assert_eq!(index.urls(&object(9)).await.expect("read"), [entry(3), entry(1)]);
    }
}

#[tokio::test]
async fn what_is_pinned_leads_to_all_that_it_consists_of() {
    let (_dirs, indexes) = indexes();
    for index in &indexes {
        put_image(&**index, "a", 1, &[2, 3]).await;
        assert!(index.set_pin(pin("1"), true).await.expect("pinned"));
        assert!(!index.set_pin(pin("1"), true).await.expect("pinned already"));
        assert_eq!(index.pins().await.expect("read"), [pin("1")]);
        let all: HashSet<_> = [1, 2, 3].map(object).into();
        let by_name = index.pinned(Vec::new(), Box::new(|_| true)).await.expect("read");
        assert_eq!(by_name, (all.clone(), true));
        assert!(index.set_pin(pin("1"), false).await.expect("unpinned"));
        assert_eq!(index.pins().await.expect("read"), []);
        for (name, found) in [("a", all), ("b", HashSet::new())] {
            let by_tag = index.pinned(vec!["r".to_owned()], Box::new(move |key| key.name == name)).await.expect("read");
            assert_eq!(by_tag, (found, false), "{name}");
        }
    }
}

#[tokio::test]
async fn objects_come_by_their_use_and_with_who_may_see_them() {
    let (_dirs, indexes) = indexes();
    for index in &indexes {
        put_image(&**index, "a", 1, &[2, 3]).await;
        let used =
            [(1, 30), (2, 10), (3, 20)].map(|(byte, at)| Write::Used { digest: object(byte), at: Timestamp(at) });
        index.apply(used.into()).await.expect("queued");
        index.flush().await.expect("written");
        for with_repositories in [false, true] {
            let found = Arc::new(Mutex::new(Vec::new()));
            let all = found.clone();
            let each: TakeObject = Box::new(move |object| {
                let UsedObject { digest, size, last_use, repositories, is_uploaded, has_file } = object;
                all.lock().expect("no panic").push((digest, size, last_use, repositories.to_owned()));
                assert!(!is_uploaded && has_file);
            });
            index.objects_by_use(with_repositories, each).await.expect("read");
            let seen_by = if with_repositories { "r" } else { "" };
            let expected =
                [(2, 10), (3, 20), (1, 30)].map(|(byte, at)| (object(byte), 10, Timestamp(at), seen_by.to_owned()));
            assert_eq!(*found.lock().expect("no panic"), expected);
        }
    }
}

#[tokio::test]
async fn a_purge_takes_what_nothing_else_leads_to() {
    let (_dirs, indexes) = indexes();
    for index in &indexes {
        put_image(&**index, "a", 1, &[2, 3]).await;
        put_image(&**index, "b", 4, &[3, 5]).await;
        let purge = Purge::Name { repository: "r".to_owned(), name: "a".to_owned() };
        let steps: Vec<_> = index.purge(purge).try_collect().await.expect("purged");
        let gone: HashSet<_> = steps.iter().flat_map(|step| step.digests.iter().copied()).collect();
        assert_eq!(gone, [1, 2].map(object).into());
        assert_eq!(steps.iter().map(|step| step.objects).sum::<u64>(), 2);
        assert_eq!(index.tag(&key("a", "1")).await.expect("read"), None);
        assert_eq!(index.tag(&key("b", "1")).await.expect("read"), Some(tag_entry(object(4))));
        assert_eq!(index.object(&object(2)).await.expect("read"), None);
        assert_eq!(index.object(&object(3)).await.expect("read"), Some(object_entry()));

        let steps: Vec<_> = index.purge(Purge::All).try_collect().await.expect("purged");
        assert_eq!(steps.iter().map(|step| step.objects).sum::<u64>(), 3);
        assert_eq!(index.images(String::new(), 10).await.expect("read").images, []);
    }
}

/// The uploads that the index names for these objects.
async fn uploads_of(index: &dyn Index, bytes: &[u8]) -> Vec<Option<Generation>> {
    let mut uploads = Vec::new();
    for &byte in bytes {
        uploads.push(index.object(&object(byte)).await.expect("read").and_then(|entry| entry.generation));
    }
    uploads
}

#[tokio::test]
async fn the_first_upload_of_an_object_counts_and_goes_only_by_its_own_number() {
    let (_dirs, indexes) = with_bucket();
    let [first, second] = [(); 2].map(|()| Generation::new().expect("random numbers"));
    for index in &indexes {
        put_image(&**index, "a", 1, &[2, 3]).await;
        let uploaded = |byte, generation| Write::Uploaded { digest: object(byte), generation };
        // Of an object without a row nothing is noted: it was purged while its upload ran.
        let writes = vec![uploaded(2, first), uploaded(2, second), uploaded(3, second), uploaded(9, first)];
        index.apply(writes).await.expect("queued");
        // The object comes in once more, from upstream.
        index.note(Write::Object { digest: object(2), entry: object_entry() });
        index.flush().await.expect("written");
        assert_eq!(uploads_of(&**index, &[1, 2, 3, 9]).await, [None, Some(first), Some(second), None]);

        let not_uploaded = |byte, generation| Write::NotUploaded { digest: object(byte), generation };
        index.apply(vec![not_uploaded(2, second), not_uploaded(3, second)]).await.expect("queued");
        index.flush().await.expect("written");
        assert_eq!(uploads_of(&**index, &[2, 3]).await, [Some(first), None]);

        let gone = |byte, generation| Write::DropUploaded { digest: object(byte), generation };
        index.apply(vec![gone(2, Some(second)), gone(2, None), gone(3, None)]).await.expect("queued");
        index.flush().await.expect("written");
        assert_eq!(
            uploads_of(&**index, &[2]).await,
            [Some(first)],
            "another upload than the one that goes, and a file"
        );
        assert_eq!(index.object(&object(3)).await.expect("read"), None, "it had only a file");
        index.apply(vec![gone(2, Some(first))]).await.expect("queued");
        index.flush().await.expect("written");
        assert_eq!(index.object(&object(2)).await.expect("read"), None);
        assert!(!index.is_visible(&Viewer::own("r"), &object(2)).await.expect("read"));
    }
}

#[tokio::test]
async fn it_is_known_with_which_bucket_the_index_was_compared() {
    let (_dirs, indexes) = indexes();
    for index in &indexes {
        assert_eq!(index.compared_with().await.expect("read"), None);
        for bucket in [Some("http://s3/one/".to_owned()), Some("http://s3/other/".to_owned()), None] {
            index.set_compared_with(bucket.clone()).await.expect("written");
            assert_eq!(index.compared_with().await.expect("read"), bucket);
        }
    }
}

#[tokio::test]
async fn a_purge_tells_which_uploads_belong_to_what_it_took_out() {
    let (_dirs, indexes) = with_bucket();
    let generation = Generation::new().expect("random numbers");
    for index in &indexes {
        put_image(&**index, "a", 1, &[2, 3]).await;
        index.apply(vec![Write::Uploaded { digest: object(3), generation }]).await.expect("queued");
        let steps: Vec<_> = index.purge(Purge::All).try_collect().await.expect("purged");
        let uploads: Vec<_> = steps.iter().flat_map(|step| step.uploads.iter().copied()).collect();
        assert_eq!(uploads, [(object(3), generation)]);
    }
}

#[tokio::test]
async fn changes_of_requests_never_wait_and_those_of_upkeep_are_never_dropped() {
    const MANY: u32 = 60_000;
    /// Later than the objects were stored.
    const USED: i64 = 1_000;
    let digest = |number: u32| {
        let mut raw = [0; 32];
        raw[..4].copy_from_slice(&number.to_be_bytes());
        Digest::Sha256(raw)
    };
    let (_dirs, indexes) = indexes();
    for index in &indexes {
        let changes = (0..MANY).map(|number| Write::Object { digest: digest(number), entry: object_entry() });
        index.apply(changes.collect()).await.expect("queued");
        for number in 0..MANY {
            index.note(Write::Used { digest: digest(number), at: Timestamp(USED) });
        }
        index.flush().await.expect("written");
        let count = Arc::new(Mutex::new((0, 0)));
        let counted = count.clone();
        let each: TakeObject = Box::new(move |object| {
            let mut count = counted.lock().expect("no panic");
            count.0 += 1;
            count.1 += u64::from(object.last_use == Timestamp(USED));
        });
        index.objects_by_use(false, each).await.expect("read");
        let (objects, used) = *count.lock().expect("no panic");
        assert_eq!(objects, MANY, "none was dropped");
        assert_eq!(used + index.dropped(), u64::from(MANY), "each use was written, or counted as dropped");
    }
}

#[tokio::test]
async fn what_comes_after_the_close_is_dropped_and_counted() {
    let (_dirs, indexes) = indexes();
    for index in &indexes {
        put_image(&**index, "a", 1, &[2]).await;
        index.close().await.expect("closed");
        index.note(Write::DropTag { key: key("a", "1") });
        assert_eq!(index.dropped(), 1);
        assert_eq!(index.tag(&key("a", "1")).await.expect("read"), Some(tag_entry(object(1))));
    }
}

/// Puts a row of each kind into an index, some of it in the bucket.
async fn put_all(index: &dyn Index) {
    put_image(index, "a", 1, &[2, 3]).await;
    put_image(index, "b", 4, &[2]).await;
    let generation = Generation::new().expect("random numbers");
    for viewer in [Viewer::new("r", Scope::ByClients), Viewer::new("other", Scope::Public)] {
        index.note(Write::Visible { viewer, digest: object(2) });
    }
    let (repository, name) = ("r".to_owned(), "c".to_owned());
    index.note(Write::Manifest { repository, name, digest: object(4), at: Timestamp(8) });
    let listing = Listing {
        body: Bytes::from_static(b"[]"),
        media_type: Some(MediaType::new("m")),
        link: Some("</v2/>".to_owned()),
        filters_applied: None,
        checked_at: Timestamp(7),
    };
    for page in ["tags/list", "referrers/x"] {
        let key = ListKey { repository: "r".to_owned(), name: "a".to_owned(), page: page.to_owned() };
        index.note(Write::Listing { key, listing: listing.clone() });
    }
    for variant in [1, 2] {
        let (head, stored_at) = (Bytes::from_static(b"head"), Timestamp(9));
        let entry = UrlEntry { variant: [variant; 32], digest: object(3), head, stored_at };
        index.note(Write::Url { key: object(9), entry });
    }
    let key = TagKey { shelf: " by clients".to_owned(), ..key("a", "2") };
    index.note(Write::Tag { key, entry: tag_entry(object(4)) });
    index.note(Write::Uploaded { digest: object(3), generation });
    for (byte, at) in [(1, 100), (2, 400), (3, 200), (4, 300)] {
        index.note(Write::Used { digest: object(byte), at: Timestamp(at) });
    }
    index.flush().await.expect("written");
}

/// Reads all rows of an index, so many at a time.
async fn all_rows(index: &dyn Index, count: usize) -> Vec<Row> {
    let mut all = Vec::new();
    for table in Table::ALL {
        let mut behind = RowKey::default();
        loop {
            let page = index.rows(table, behind, count).await.expect("read");
            assert!(page.len() <= count);
            let Some(last) = page.last() else { break };
            behind = last.key();
            all.extend(page);
        }
    }
    all
}

/// Returns rows without what only an index that several share tells of an object.
fn without_files(mut rows: Vec<Row>) -> Vec<Row> {
    for row in &mut rows {
        if let Row::Object { has_file, entry, .. } = row {
            *has_file = entry.generation.is_none();
        }
    }
    rows
}

async fn by_use(index: &dyn Index) -> Vec<(Digest, Timestamp)> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let taken = found.clone();
    let each: TakeObject =
        Box::new(move |object| taken.lock().expect("no panic").push((object.digest, object.last_use)));
    index.objects_by_use(false, each).await.expect("read");
    found.lock().expect("no panic").clone()
}

#[tokio::test]
async fn all_rows_come_page_by_page_and_make_another_index_the_same() {
    let (_from_dirs, from) = with_bucket();
    for from in &from {
        put_all(&**from).await;
        let rows = all_rows(&**from, 1_000).await;
        assert_eq!(rows.len(), 4 + 3 + 6 + 1 + 2 + 2 + 3, "{rows:#?}");
        for count in [1, 2, 3] {
            assert_eq!(all_rows(&**from, count).await, rows, "{count} at a time");
        }
        let (_to_dirs, to) = with_bucket();
        for to in &to {
            for page in rows.chunks(5) {
                to.take_in(page.to_vec()).await.expect("taken in");
            }
            assert_eq!(without_files(all_rows(&**to, 3).await), without_files(rows.clone()));
            assert_eq!(by_use(&**to).await, by_use(&**from).await, "the order of eviction");
            // The same rows come again.
            to.take_in(rows.clone()).await.expect("taken in");
            assert_eq!(without_files(all_rows(&**to, 3).await), without_files(rows.clone()));
            assert_eq!(to.catalog(vec!["r".to_owned()], String::new(), 10).await.expect("read"), ["r/a", "r/b", "r/c"]);
        }
    }
}

#[tokio::test]
async fn what_is_here_and_newer_stays_where_rows_of_another_index_come() {
    let (_dirs, indexes) = with_bucket();
    for index in &indexes {
        put_all(&**index).await;
        let before = all_rows(&**index, 100).await;
        let mut older = before.clone();
        for row in &mut older {
            match row {
                Row::Object { entry, last_use, .. } => {
                    *last_use = last_use.before(Duration::from_millis(50));
                    entry.media_type = Some(MediaType::new("older"));
                    if entry.generation.is_some() {
                        entry.generation = Some(Generation::new().expect("random numbers"));
                    }
                }
                Row::Tag { entry, .. } => {
                    *entry = TagEntry { digest: object(8), checked_at: Timestamp(4), ..entry.clone() };
                }
                Row::Listing { listing, .. } => {
                    *listing =
                        Listing { body: Bytes::from_static(b"old"), checked_at: Timestamp(6), ..listing.clone() };
                }
                Row::Url { entry, .. } => {
                    *entry = UrlEntry { head: Bytes::from_static(b"old"), stored_at: Timestamp(8), ..entry.clone() };
                }
                Row::Manifest { at, .. } => *at = Timestamp(1),
                Row::Edge { .. } | Row::Visible { .. } => {}
            }
        }
        index.take_in(older).await.expect("taken in");
        assert_eq!(all_rows(&**index, 100).await, before);
        let newer = TagEntry { digest: object(4), checked_at: Timestamp(6), ..tag_entry(object(1)) };
        index.take_in(vec![Row::Tag { key: key("a", "1"), entry: newer.clone() }]).await.expect("taken in");
        assert_eq!(index.tag(&key("a", "1")).await.expect("read"), Some(newer));
    }
}
