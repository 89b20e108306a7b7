//! Several Larders share one database.

use futures_util::TryStreamExt;

use super::super::super::TagEntry;
use super::*;
use crate::oci::MediaType;

fn key(tag: &str) -> TagKey {
    TagKey { repository: "r".to_owned(), shelf: String::new(), name: "a".to_owned(), tag: tag.to_owned() }
}

fn tag(tag: &str, number: u32) -> Write {
    let entry = TagEntry { digest: object(number), media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
    Write::Tag { key: key(tag), entry }
}

fn visible(number: u32) -> Write {
    Write::Visible { viewer: Viewer::own("r"), digest: object(number) }
}

async fn write(index: &dyn Index, writes: impl IntoIterator<Item = Write>) {
    index.apply(writes.into_iter().collect()).await.expect("queued");
    index.flush().await.expect("written");
}

fn pair() -> [PostgresIndex; 2] {
    let database = database(server());
    ["one", "other"].map(|store| open_in(server(), Way::Pooled, &database, store))
}

#[tokio::test]
async fn what_one_learns_the_other_knows_and_each_has_its_own_objects() {
    let [one, other] = pair();
    let edges = Write::Edges { parent: object(1), children: vec![object(2)] };
    write(&one, [stored(1), stored(2), visible(1), visible(2), edges, tag("1", 1)]).await;
    assert!(other.tag(&key("1")).await.expect("read").is_some());
    assert!(other.is_visible(&Viewer::own("r"), &object(2)).await.expect("read"));
    assert!(other.knows_name("r", "a", &object(2)).await.expect("read"));
    assert_eq!(other.catalog(vec!["r".to_owned()], String::new(), 9).await.expect("read"), ["r/a"]);
    assert_eq!(other.object(&object(1)).await.expect("read"), None, "it is not in its store");
    assert_eq!(other.images(String::new(), 9).await.expect("read").images, []);

    // The other pulls the manifest, and the first loses all.
    write(&other, [stored(1), visible(1)]).await;
    assert_eq!(other.images(String::new(), 9).await.expect("read").images[0].objects, 1);
    write(&one, [1, 2].map(|number| Write::DropObject { digest: object(number) })).await;
    assert_eq!(one.object(&object(1)).await.expect("read"), None);
    assert!(one.tag(&key("1")).await.expect("read").is_some(), "the other still has what it leads to");
    assert!(!other.is_visible(&Viewer::own("r"), &object(2)).await.expect("read"), "nobody has this one");
    write(&other, [Write::DropObject { digest: object(1) }]).await;
    assert_eq!(one.tag(&key("1")).await.expect("read"), None);
    assert_eq!(stray(&one).await, [0, 0, 0, 0]);
}

#[tokio::test]
async fn a_purge_by_one_is_a_purge_for_all() {
    let [one, other] = pair();
    for index in [&one, &other] {
        write(index, [stored(1), visible(1), tag("1", 1)]).await;
    }
    let purge = Purge::Name { repository: "r".to_owned(), name: "a".to_owned() };
    let steps: Vec<Purged> = one.purge(purge).try_collect().await.expect("purged");
    let digests: Vec<_> = steps.iter().flat_map(|step| step.digests.clone()).collect();
    assert_eq!((digests, steps.iter().map(|step| step.objects).sum::<u64>()), (vec![object(1)], 1));
    assert_eq!(other.tag(&key("1")).await.expect("read"), None);
    assert_eq!(other.object(&object(1)).await.expect("read"), None);
    assert_eq!(stray(&one).await, [0, 0, 0, 0]);
}

/// Each writes the same rows in another order: where one waits for the other in a circle, the server breaks one off.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_write_the_same_rows_at_once_and_nothing_is_lost() {
    const ROUNDS: u32 = 30;
    const MANY: u32 = 120;
    let own = |at: u32, round: u32| 1_000 + at * ROUNDS + round;
    let database = database(server());
    let indexes: Vec<_> =
        (0..4).map(|number| Arc::new(open_in(server(), Way::Pooled, &database, &format!("{}", number % 2)))).collect();
    let writing = indexes.iter().enumerate().map(|(at, index)| {
        let (index, at) = (index.clone(), u32::try_from(at).expect("small"));
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let mut numbers: Vec<_> = (0..MANY).map(|number| (number * 7 + round * 13 + at * 31) % MANY).collect();
                if at % 2 == 0 {
                    numbers.reverse();
                }
                let of = |number: u32| {
                    let name = (number % 5).to_string();
                    let edges = Write::Edges { parent: object(number), children: vec![object(number + 1)] };
                    let used = Write::Used { digest: object(number), at: Timestamp(i64::from(round)) };
                    [stored(number), visible(number), edges, tag(&name, number), used]
                };
                write(&*index, numbers.iter().copied().flat_map(of)).await;
                // What nobody else writes or drops: a write that is lost once is missed at the end.
                write(&*index, [stored(own(at, round)), visible(own(at, round))]).await;
                if round % 3 == at % 3 {
                    let gone = numbers.iter().take(9).map(|number| Write::DropObject { digest: object(*number) });
                    write(&*index, gone).await;
                }
                if round == ROUNDS / 2 && at == 0 {
                    let name = Purge::Name { repository: "r".to_owned(), name: "a".to_owned() };
                    let _: Vec<Purged> = index.purge(name).try_collect().await.expect("purged");
                }
            }
        })
    });
    for written in futures_util::future::join_all(writing).await {
        written.expect("no panic");
    }
    for (at, index) in indexes.iter().enumerate() {
        assert_eq!(index.dropped(), 0);
        let at = u32::try_from(at).expect("small");
        for round in 0..ROUNDS {
            let number = own(at, round);
            assert!(index.object(&object(number)).await.expect("read").is_some(), "{at} {round}");
            for other in &indexes {
                assert!(other.is_visible(&Viewer::own("r"), &object(number)).await.expect("read"), "{at} {round}");
            }
        }
    }
    // Numbers that were in use when the last that needed them went.
    indexes[0].verify().await.expect("compared");
    assert_eq!(stray(&indexes[0]).await, [0, 0, 0, 0]);
}

/// What each does is done anew where the server breaks it off, so that only the server tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_that_drop_the_same_objects_do_not_wait_for_each_other_in_a_circle() {
    let server = Postgres::start();
    let database = database(&server);
    let indexes = ["one", "other"].map(|store| open_in(&server, Way::Direct, &database, store));
    let gone = |number| Write::DropObject { digest: object(number) };
    for _ in 0..20 {
        let both = |writes: Vec<Write>| {
            futures_util::future::join_all(indexes.iter().map(move |index| write(index, writes.clone())))
        };
        both((0..60).map(stored).collect()).await;
        both((0..60).map(gone).collect()).await;
        both((0..60).map(stored).collect()).await;
        // What refers to objects, and the loss of the same objects right behind it.
        both((0..60).map(|number| tag(&number.to_string(), number)).chain((0..60).map(gone)).collect()).await;
    }
    let log = server.log();
    assert!(!log.contains("deadlock detected"), "{log}");
}

#[tokio::test]
async fn numbers_that_nothing_needs_go_when_the_index_is_compared() {
    let database = database(server());
    let index = open_in(server(), Way::Direct, &database, "store");
    write(&index, [stored(1), visible(2), Write::Edges { parent: object(3), children: vec![object(4)] }]).await;
    let left = "INSERT INTO larder.digests (digest) SELECT sha256(n::text::bytea) FROM generate_series(1, 25000) AS n";
    server().sql(&database, left);
    assert_eq!(stray(&index).await, [25_000, 0, 0, 0]);
    index.verify().await.expect("compared");
    assert_eq!(stray(&index).await, [0, 0, 0, 0]);
    assert_eq!(server().sql(&database, "SELECT count(*) FROM larder.digests"), "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_that_start_at_once_make_the_tables_once() {
    let database = database(server());
    let indexes: Vec<_> = (0..8).map(|number| open_in(server(), Way::Pooled, &database, &number.to_string())).collect();
    for index in &indexes {
        index.check().await.expect("well");
    }
    assert_eq!(server().sql(&database, "SELECT version FROM larder.version"), schema::MIGRATIONS.len().to_string());
    assert_eq!(server().sql(&database, "SELECT count(*) FROM larder.holders"), "8");
}

#[tokio::test]
async fn tables_of_a_later_larder_are_left_alone() {
    let database = database(server());
    open_in(server(), Way::Direct, &database, "store").check().await.expect("well");
    server().sql(&database, "UPDATE larder.version SET version = 9");
    let later = open_in(server(), Way::Direct, &database, "store");
    let error = later.check().await.expect_err("it cannot be read").to_string();
    assert!(error.contains("version 9") && error.contains("later Larder"), "{error}");
}

#[tokio::test]
async fn what_the_server_refuses_is_lost_alone() {
    let index = open(Way::Pooled);
    // Longer than a row of an index may be, and nothing that could be packed.
    let long: String = (0..400).map(|number| object(number).hex()).collect();
    let poison = tag(&long, 1);
    let zero = tag("a\0b", 1);
    let writes = (0..40).map(|number| tag(&number.to_string(), 1));
    write(&index, writes.chain([poison, zero]).chain((40..80).map(|number| tag(&number.to_string(), 1)))).await;
    assert_eq!(index.dropped(), 2);
    for number in 0..80 {
        assert!(index.tag(&key(&number.to_string())).await.expect("read").is_some(), "{number}");
    }
}

#[tokio::test]
async fn texts_that_the_database_cannot_hold_are_no_error() {
    let index = open(Way::Pooled);
    let media_type = Some(MediaType::new("m\0n"));
    let entry = ObjectEntry { size: 1, media_type, stored_at: Timestamp(1), generation: None };
    let page = format!("tags/list?last={}", "x".repeat(100_000));
    let list = ListKey { repository: "r".to_owned(), name: "a".to_owned(), page };
    let listing = Listing {
        body: bytes::Bytes::from_static(b"[]"),
        media_type: None,
        link: None,
        filters_applied: None,
        checked_at: Timestamp(1),
    };
    let writes = [
        Write::Object { digest: object(1), entry },
        visible(1),
        tag("1", 1),
        Write::Listing { key: list.clone(), listing: listing.clone() },
    ];
    write(&index, writes).await;
    let entry = index.object(&object(1)).await.expect("read").expect("it is there");
    assert_eq!(entry.media_type, Some(MediaType::new("mn")));
    assert_eq!(index.listing(&list, 1 << 20).await.expect("read"), Some(listing));
    let find = |text: &str, last: &str| {
        let (text, last) = (text.to_owned(), last.to_owned());
        index.find_images(ImageSearch { text, last, count: 9, ..ImageSearch::default() })
    };
    assert_eq!(find("a\0", "").await.expect("read").images, []);
    assert_eq!(find("", "r/a\0").await.expect("read").images.len(), 1, "it comes behind that");
    let names = index.catalog(vec!["r".to_owned()], "r/\0".to_owned(), 9).await.expect("read");
    assert_eq!(names, ["r/a"]);
}

#[tokio::test]
async fn what_is_too_much_goes_the_oldest_first_and_pinned_names_stay() {
    let index = open(Way::Pooled);
    index.keep_within(Bounds { names: 1_000, lists: 1 << 20, urls: 1 << 20, ..Bounds::default() });
    let reference = crate::oci::Reference::Digest(object(1));
    let pin = ImageName { repository: "flood".to_owned(), name: "pinned".to_owned(), reference };
    index.set_pin(pin, true).await.expect("pinned");
    let named = |name: &str, number: u32| Write::Manifest {
        repository: "flood".to_owned(),
        name: name.to_owned(),
        digest: object(number),
        at: Timestamp(i64::from(number)),
    };
    let old = |repository: &str, name: &str, number: u32| {
        let key = TagKey { repository: repository.to_owned(), ..key(name) };
        let entry = TagEntry {
            digest: object(1),
            media_type: MediaType::new("m"),
            size: 1,
            checked_at: Timestamp(i64::from(number)),
        };
        Write::Tag { key, entry }
    };
    write(&index, [old("quiet", "old", 0), named("pinned", 0)]).await;
    for begin in (1..3_000).step_by(100) {
        let writes = (begin..begin + 100)
            .flat_map(|number| [old("flood", &number.to_string(), number), named("made-up", number)]);
        write(&index, writes).await;
    }
    for number in 0..400_u32 {
        let listing = Listing {
            body: bytes::Bytes::from(vec![b' '; 10_000]),
            media_type: None,
            link: None,
            filters_applied: None,
            checked_at: Timestamp(i64::from(number)),
        };
        let name = if number == 0 { "quiet" } else { "flood" };
        let list = ListKey { repository: "r".to_owned(), name: name.to_owned(), page: format!("tags/list?n={number}") };
        let entry = UrlEntry {
            variant: [1; 32],
            digest: object(1),
            head: bytes::Bytes::from(vec![b' '; 10_000]),
            stored_at: Timestamp(i64::from(number)),
        };
        index
            .apply(vec![Write::Listing { key: list, listing }, Write::Url { key: object(number), entry }])
            .await
            .expect("queued");
    }
    index.flush().await.expect("written");
    // What is too much goes behind the answer to a flush, before the next is answered.
    index.flush().await.expect("settled");
    let count = |sql: &'static str| {
        let counted = index.server.read(LONG, move |client| {
            Box::pin(async move { Ok(client.query_typed_one(sql, &[]).await?.try_get::<_, i64>(0)?) })
        });
        async move { counted.await.expect("counted") }
    };
    for sql in ["SELECT count(*) FROM larder.tags", "SELECT count(*) FROM larder.manifests"] {
        let rows = count(sql).await;
        assert!((900..=1_100).contains(&rows), "{sql}: {rows}");
    }
    assert_eq!(count("SELECT count(*) FROM larder.tags WHERE repository = 'quiet'").await, 1);
    assert_eq!(count("SELECT count(*) FROM larder.manifests WHERE name = 'pinned'").await, 1);
    assert_eq!(count("SELECT count(*) FROM larder.tags WHERE tag = '2999'").await, 1);
    assert_eq!(count("SELECT count(*) FROM larder.tags WHERE tag = '1'").await, 0);
    for (sql, most) in [
        ("SELECT sum(bytes)::bigint FROM larder.listings", 2 << 20),
        ("SELECT sum(length(head) + 512)::bigint FROM larder.urls", 2 << 20),
    ] {
        let bytes = count(sql).await;
        assert!((600_000..most).contains(&bytes), "{sql}: {bytes}");
    }
    assert_eq!(count("SELECT count(*) FROM larder.listings WHERE name = 'quiet'").await, 1);
    assert!(index.urls(&object(0)).await.expect("read").is_empty());
    assert_eq!(index.urls(&object(399)).await.expect("read").len(), 1);
}

#[tokio::test]
async fn an_object_is_noted_for_so_many_repositories_and_a_url_has_so_many_answers() {
    let index = open(Way::Pooled);
    let viewer = |number: u32| Viewer::own(format!("host-{number}.example"));
    write(&index, (0..1_000).map(|number| Write::Visible { viewer: viewer(number), digest: object(1) })).await;
    write(&index, [visible(1)]).await;
    assert!(index.is_visible(&Viewer::own("r"), &object(1)).await.expect("read"), "the newest is among them");
    let entry = |variant: u8| UrlEntry {
        variant: [variant; 32],
        digest: object(1),
        head: bytes::Bytes::new(),
        stored_at: Timestamp(i64::from(variant)),
    };
    write(&index, (0..20).map(|variant| Write::Url { key: object(1), entry: entry(variant) })).await;
    let kept: Vec<_> = index.urls(&object(1)).await.expect("read").iter().map(|entry| entry.variant[0]).collect();
    assert_eq!(kept, (4..20).rev().collect::<Vec<_>>());
    let count = index.server.read(LONG, |client| {
        Box::pin(async move {
            Ok(client.query_typed_one("SELECT count(*) FROM larder.visibility", &[]).await?.try_get::<_, i64>(0)?)
        })
    });
    assert_eq!(count.await.expect("counted"), 256);
}
