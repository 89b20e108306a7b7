//! The index answers as that in SQLite does, whose answers are held against their plain definitions.

use std::future::Future;

use futures_util::TryStreamExt;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::super::super::graph::{NAMES, OBJECTS, REPOSITORIES, TAGS, graphs, object};
use super::super::super::purge::tests::purges;
use super::super::super::{ImageOrder, LocalIndex, Scope, Sqlite, UsedObject};
use super::*;
use crate::work::Pool;

/// Runs a test of an index that is used again and again, empty each time.
struct Trial {
    runtime: Runtime,
    index: PostgresIndex,
}

impl Trial {
    fn new(open: fn(Way) -> PostgresIndex) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let index = runtime.block_on(async { open(Way::Pooled) });
        Self { runtime, index }
    }

    /// Returns both indexes with these writes.
    fn written(&self, writes: Vec<Write>) -> (tempfile::TempDir, LocalIndex) {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = Pool::new("a test", 8, Duration::from_secs(60));
        let local = LocalIndex::new(Sqlite::open(dir.path()).expect("an index"), pool.clone(), pool);
        self.run(async {
            let clear = self.index.server.change(LONG, |client| {
                Box::pin(async move {
                    let sql = "TRUNCATE larder.digests, larder.objects, larder.edges, larder.visibility, larder.tags, \
                        larder.manifests, larder.listings, larder.urls, larder.pins";
                    Ok(client.batch_execute(sql).await?)
                })
            });
            clear.await.expect("empty");
            for index in [&local as &dyn Index, &self.index] {
                index.apply(writes.clone()).await.expect("queued");
                index.flush().await.expect("written");
            }
        });
        (dir, local)
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

fn places() -> impl Iterator<Item = (String, String)> {
    REPOSITORIES.iter().flat_map(|repository| NAMES.iter().map(|name| (repository.to_string(), name.to_string())))
}

/// Asserts that both indexes tell the same of each object, tag and name.
async fn assert_same(local: &LocalIndex, other: &PostgresIndex) {
    for digest in (0..OBJECTS).map(object) {
        assert_eq!(other.object(&digest).await.expect("read"), local.object(&digest).await.expect("read"));
        for repository in REPOSITORIES {
            for scope in [Scope::Own, Scope::ByClients, Scope::Public] {
                let viewer = Viewer::new(repository, scope);
                let shown = other.is_visible(&viewer, &digest).await.expect("read");
                assert_eq!(shown, local.is_visible(&viewer, &digest).await.expect("read"), "{viewer} {digest}");
            }
        }
        let named = [other.names(vec![digest]).await.expect("read"), local.names(vec![digest]).await.expect("read")];
        // Any of several names will do; that of an image comes first.
        let is_image = |name: &String| name.ends_with(":1") || name.ends_with(":v-2");
        let kinds = named.map(|names| names.first().map(is_image));
        assert_eq!(kinds[0], kinds[1]);
    }
    for (repository, name) in places() {
        for digest in (0..3).map(object) {
            let known = other.knows_name(&repository, &name, &digest).await.expect("read");
            assert_eq!(known, local.knows_name(&repository, &name, &digest).await.expect("read"));
        }
        for (tag, shelf) in TAGS.iter().flat_map(|tag| ["", " by clients"].map(|shelf| (tag, shelf))) {
            let key = TagKey {
                repository: repository.clone(),
                shelf: shelf.to_owned(),
                name: name.clone(),
                tag: tag.to_string(),
            };
            assert_eq!(other.tag(&key).await.expect("read"), local.tag(&key).await.expect("read"));
        }
    }
    let all = || REPOSITORIES.iter().map(|repository| repository.to_string()).collect::<Vec<_>>();
    let pinned = [
        other.pinned(all(), Box::new(|key| key.tag == "1")).await.expect("read"),
        local.pinned(all(), Box::new(|key| key.tag == "1")).await.expect("read"),
    ];
    assert_eq!(pinned[0], pinned[1]);
    let every: Vec<_> = (0..OBJECTS).map(object).collect();
    let stored = other.stored_of(every.clone()).await.expect("read");
    assert_eq!(stored, local.stored_of(every).await.expect("read"));
    assert_eq!(uses(other).await, uses(local).await);
    let images = [other.images(String::new(), 1_000).await, local.images(String::new(), 1_000).await];
    let [one, two] = images.map(|page| page.expect("read"));
    assert_eq!(one, two);
}

/// An object's digest, size, use and viewers, and whether it is in the bucket.
type Use = (Digest, u64, i64, Vec<String>, bool);

/// Returns all objects, in order.
async fn uses(index: &dyn Index) -> Vec<Use> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let all = found.clone();
    let each: TakeObject = Box::new(move |object| {
        let mut repositories: Vec<_> = object.repositories.lines().map(str::to_owned).collect();
        repositories.sort();
        let UsedObject { digest, size, last_use, is_uploaded, .. } = object;
        all.lock().expect("no panic").push((digest, size, last_use.0, repositories, is_uploaded));
    });
    index.objects_by_use(true, each).await.expect("read");
    let mut found = found.lock().expect("no panic").clone();
    assert!(found.is_sorted_by_key(|(_, _, at, ..)| *at));
    found.sort_by(|one, other| one.0.as_raw().cmp(other.0.as_raw()));
    found
}

const TEXT: &str =
    "[ar:@/-]{0,2}|x/b|v-2|s:1/a|0{6,9}|0[1-9]0[1-9]{3}|(01){3,4}|sha256:010101|@sha256:0|_|%|r_a|a%|\\\\";
const LAST: [&str; 14] = ["", "a", "r", "r/", "r/a", "r/a-", "r/a-b", "r/b", "r/x", "r/x/", "r/x/a", "s", "s:1/a", "z"];

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 48, ..ProptestConfig::default() }
}

/// Returns writes of a Larder without a bucket.
fn graph() -> BoxedStrategy<Vec<Write>> {
    graphs().prop_map(|graph| graph.0).boxed()
}

/// Returns writes of a Larder with a bucket: some objects are uploaded; of some the file has left the tier in front of the
/// bucket; those in the bucket are used once more, and some objects are stored once more.
fn in_bucket() -> BoxedStrategy<Vec<Write>> {
    let some = || prop::collection::btree_set(0..OBJECTS, 0..usize::from(OBJECTS));
    let all = (graphs(), some(), some(), some()).prop_map(|(graph, uploaded, evicted, again)| {
        let upload = |&number: &u8| {
            let generation = format!("{number:032x}").parse().expect("a generation");
            Write::Uploaded { digest: object(number), generation }
        };
        let evict = |&number: &u8| Write::DropUploaded { digest: object(number), generation: None };
        let using = |&number: &u8| Write::Used { digest: object(number), at: Timestamp(100 + i64::from(number)) };
        let entry = ObjectEntry {
            size: 10,
            media_type: Some(MediaType::new("m")),
            stored_at: Timestamp(200),
            generation: None,
        };
        let mut writes = graph.0;
        writes.extend(uploaded.iter().map(upload));
        writes.extend(evicted.iter().map(evict));
        writes.extend(uploaded.iter().map(using));
        writes.extend(again.iter().map(|&number| Write::Object { digest: object(number), entry: entry.clone() }));
        writes
    });
    all.boxed()
}

#[test]
fn lists_searches_and_catalogs_are_the_same() {
    same_lists(&Trial::new(open), graph());
}

#[test]
fn lists_searches_and_catalogs_are_the_same_with_a_bucket() {
    same_lists(&Trial::new(open_with_bucket), in_bucket());
}

fn same_lists(trial: &Trial, writes: BoxedStrategy<Vec<Write>>) {
    proptest!(cases(), |(writes in writes, text in TEXT, last in prop::sample::select(&LAST[..]), count in 1..6_usize,
        asked in 1..8_u8)| {
        let (_dir, local) = trial.written(writes);
        let indexes: [&dyn Index; 2] = [&local, &trial.index];
        trial.run(async {
            assert_same(&local, &trial.index).await;
            let search = |order, count| ImageSearch { text: text.clone(), order, last: last.to_owned(), count };
            let mut found = Vec::new();
            for index in indexes {
                let page = index.find_images(search(ImageOrder::Reference, count)).await.expect("read");
                let asked = (0..3).filter(|at| asked >> at & 1 == 1).map(|at| REPOSITORIES[at].to_owned()).collect();
                let catalog = index.catalog(asked, last.to_owned(), count).await.expect("read");
                // Of several with the same use or size, any come first.
                let used = index.find_images(search(ImageOrder::LastUse, count)).await.expect("read");
                let used: Vec<_> = used.images.into_iter().map(|image| image.last_use).collect();
                let large = index.find_images(search(ImageOrder::Size, count)).await.expect("read");
                let large: Vec<_> = large.images.into_iter().map(|image| image.bytes).collect();
                found.push((page, catalog, used, large));
            }
            assert_eq!(found[1], found[0]);
        });
    });
}

#[test]
fn purges_take_out_the_same() {
    same_purges(&Trial::new(open), graph());
}

#[test]
fn purges_take_out_the_same_with_a_bucket() {
    same_purges(&Trial::new(open_with_bucket), in_bucket());
}

fn same_purges(trial: &Trial, writes: BoxedStrategy<Vec<Write>>) {
    proptest!(cases(), |(writes in writes, purge in purges())| {
        let (_dir, local) = trial.written(writes);
        let indexes: [&dyn Index; 2] = [&local, &trial.index];
        trial.run(async {
            let mut found = Vec::new();
            for index in indexes {
                let steps: Vec<Purged> = index.purge(purge.clone()).try_collect().await.expect("purged");
                let mut all = Purged::default();
                steps.into_iter().for_each(|step| all.add(step));
                all.digests.sort_unstable_by(|one, other| one.as_raw().cmp(other.as_raw()));
                all.uploads.sort_unstable_by(|(one, _), (other, _)| one.as_raw().cmp(other.as_raw()));
                found.push(all);
            }
            assert_eq!(found[1], found[0]);
            assert_same(&local, &trial.index).await;
            assert_eq!(stray(&trial.index).await, [0, 0, 0, 0], "no number is left that nothing needs");
        });
    });
}
