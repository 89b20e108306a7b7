//! Larders that share a database and a bucket: each knows what the bucket has, and no file of another is taken for its own.

use futures_util::TryStreamExt;

use super::super::unseen;
use super::*;
use crate::index::{Generation, TagEntry};

async fn write(index: &PostgresIndex, writes: Vec<Write>) {
    index.apply(writes).await.expect("queued");
    index.flush().await.expect("written");
}

/// Two stores with one bucket, and one with another bucket.
fn three() -> [PostgresIndex; 3] {
    let database = database(server());
    let open = |store, bucket| open_sharing(Way::Pooled, &database, store, bucket);
    [open("one", BUCKET), open("two", BUCKET), open("three", "http://s3/other/")]
}

fn uploaded(number: u32, generation: Generation) -> Write {
    Write::Uploaded { digest: object(number), generation }
}

/// The upload that an index names for an object; `None`: it knows no such object; `Some(None)`: it has only a file.
async fn upload_of(index: &PostgresIndex, number: u32) -> Option<Option<Generation>> {
    index.object(&object(number)).await.expect("read").map(|entry| entry.generation)
}

/// The objects that a ledger learns of at its start, each with whether it is in the bucket, and whether it has a file here.
async fn known_at_start(index: &PostgresIndex) -> Vec<(Digest, bool, bool)> {
    let known = Arc::new(Mutex::new(Vec::new()));
    let all = known.clone();
    let each: TakeObject =
        Box::new(move |of| all.lock().expect("no panic").push((of.digest, of.is_uploaded, of.has_file)));
    index.objects_by_use(false, each).await.expect("read");
    in_order(known.lock().expect("no panic").clone())
}

fn in_order(mut known: Vec<(Digest, bool, bool)>) -> Vec<(Digest, bool, bool)> {
    known.sort_by(|one, other| one.0.as_raw().cmp(other.0.as_raw()));
    known
}

#[tokio::test]
async fn each_sees_what_the_others_upload_and_takes_no_file_of_theirs_for_stored() {
    let [one, two, elsewhere] = three();
    let generation = Generation::new().expect("random numbers");
    write(&one, vec![stored(1), stored(2), uploaded(1, generation)]).await;
    for index in [&one, &two] {
        assert_eq!(upload_of(index, 1).await, Some(Some(generation)));
    }
    assert_eq!((upload_of(&one, 2).await, upload_of(&two, 2).await), (Some(None), None), "a file of one alone");
    assert_eq!(upload_of(&elsewhere, 1).await, None, "that is in another bucket");
    let of = |numbers: &[u32]| numbers.iter().map(|&number| object(number)).collect::<HashSet<_>>();
    for (index, numbers) in [(&one, &[1, 2][..]), (&two, &[1]), (&elsewhere, &[])] {
        let stored = index.stored_of([1, 2, 3].map(object).into()).await.expect("read");
        assert_eq!(stored, of(numbers));
    }
    assert_eq!(known_at_start(&one).await, in_order(vec![(object(1), true, true), (object(2), false, true)]));
    assert_eq!(known_at_start(&two).await, [(object(1), true, false)]);

    // The other pulls it, too: the upload that is there counts.
    let late = Generation::new().expect("random numbers");
    write(&two, vec![stored(1), uploaded(1, late)]).await;
    assert_eq!((upload_of(&one, 1).await, upload_of(&two, 1).await), (Some(Some(generation)), Some(Some(generation))));
}

#[tokio::test]
async fn a_file_that_goes_stays_in_the_bucket_and_what_is_evicted_from_there_goes_from_all_who_have_it() {
    let [one, two, elsewhere] = three();
    let generation = Generation::new().expect("random numbers");
    let visible = Write::Visible { viewer: Viewer::own("r"), digest: object(1) };
    write(&one, vec![stored(1), uploaded(1, generation), visible]).await;
    write(&two, vec![stored(1)]).await;
    write(&elsewhere, vec![stored(1)]).await;
    // The tier of one evicts the file.
    write(&one, vec![Write::DropUploaded { digest: object(1), generation: None }]).await;
    assert_eq!((upload_of(&one, 1).await, upload_of(&two, 1).await), (Some(Some(generation)), Some(Some(generation))));
    // One takes it out of the bucket; not by another upload's number.
    let other = Generation::new().expect("random numbers");
    write(&one, vec![Write::DropUploaded { digest: object(1), generation: Some(other) }]).await;
    assert_eq!(upload_of(&one, 1).await, Some(Some(generation)));
    write(&one, vec![Write::DropUploaded { digest: object(1), generation: Some(generation) }]).await;
    assert_eq!((upload_of(&one, 1).await, upload_of(&two, 1).await), (None, None), "also its file");
    assert_eq!(upload_of(&elsewhere, 1).await, Some(None), "that has another bucket");
    write(&elsewhere, vec![Write::DropUploaded { digest: object(1), generation: None }]).await;
    assert!(!two.is_visible(&Viewer::own("r"), &object(1)).await.expect("read"), "nobody has it");
    assert_eq!(stray(&one).await, [0, 0, 0, 0]);
}

#[tokio::test]
async fn what_the_bucket_loses_leaves_the_files_that_there_are() {
    let [one, two, _] = three();
    let generation = Generation::new().expect("random numbers");
    write(&one, vec![stored(1), uploaded(1, generation)]).await;
    write(&one, vec![Write::DropUploaded { digest: object(1), generation: None }]).await;
    // One, which has a file that it has noted nowhere, finds that it is gone from the bucket.
    write(&one, vec![Write::NotUploaded { digest: object(1), generation }]).await;
    assert_eq!((upload_of(&one, 1).await, upload_of(&two, 1).await), (Some(None), None));
    // It is uploaded again. The other has a file, and one finds once more that it is gone there, and has none.
    let again = Generation::new().expect("random numbers");
    write(&one, vec![uploaded(1, again)]).await;
    write(&two, vec![stored(1)]).await;
    let lose = Write::NotUploaded { digest: object(1), generation: again };
    write(&one, vec![lose, Write::DropUploaded { digest: object(1), generation: None }]).await;
    assert_eq!((upload_of(&one, 1).await, upload_of(&two, 1).await), (None, Some(None)));
    assert_eq!(stray(&one).await, [0, 0, 0, 0]);
}

async fn news(index: &PostgresIndex, mark: &mut Option<Mark>) -> Vec<Change> {
    let (changes, known) = index.changes(mark.take()).await.expect("told");
    *mark = Some(known);
    changes
}

#[tokio::test]
async fn what_becomes_of_the_bucket_is_told_to_those_who_share_it() {
    let [one, two, elsewhere] = three();
    let marks = &mut [None, None, None];
    for (index, mark) in [&one, &two, &elsewhere].into_iter().zip(&mut *marks) {
        assert_eq!(news(index, mark).await, []);
    }
    let [first, second, third] = [(); 3].map(|()| Generation::new().expect("random numbers"));
    write(&one, vec![stored(1), stored(2), uploaded(1, first), uploaded(2, second), uploaded(2, third)]).await;
    let told = news(&two, &mut marks[1]).await;
    let all = told.iter().flat_map(|change| match change {
        Change::Uploaded(objects) => objects.clone(),
        other => panic!("{other:?}"),
    });
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(digest, _)| *digest != object(1));
    assert_eq!(all, [(object(1), 10), (object(2), 10)], "each once");
    let entry = ObjectEntry { size: 7, media_type: None, stored_at: Timestamp(1), generation: Some(third) };
    write(&one, vec![Write::Object { digest: object(3), entry }]).await;
    write(&one, vec![Write::NotUploaded { digest: object(1), generation: first }]).await;
    write(&one, vec![Write::DropUploaded { digest: object(2), generation: Some(second) }]).await;
    let expected = [
        Change::Uploaded(vec![(object(3), 7)]),
        Change::NotUploaded(vec![object(1)]),
        Change::Evicted(vec![object(2)]),
    ];
    assert_eq!(news(&two, &mut marks[1]).await, expected);
    assert_eq!(news(&one, &mut marks[0]).await, [], "one's own");
    assert_eq!(news(&elsewhere, &mut marks[2]).await, [], "of another bucket");
}

#[tokio::test]
async fn one_of_those_who_share_a_bucket_keeps_it_until_it_says_so_no_more() {
    let database = database(server());
    let open = |store, bucket| open_sharing(Way::Pooled, &database, store, bucket);
    let [one, two, elsewhere] = [open("one", BUCKET), open("two", BUCKET), open("three", "http://s3/other/")];
    let long = Duration::from_secs(600);
    let keep = async |index: &PostgresIndex| index.keep_bucket(long).await.expect("answered");
    assert!(keep(&one).await && !keep(&two).await && keep(&elsewhere).await);
    assert!(keep(&one).await, "it says so again");
    server().sql(&database, "UPDATE larder.holders SET kept_until = now() - interval '1 second'");
    assert!(keep(&two).await && !keep(&one).await);
    two.keep_bucket(Duration::ZERO).await.expect("answered");
    assert!(keep(&one).await, "the other has given it up");
}

#[tokio::test]
async fn how_an_object_is_used_by_any_is_known_to_all() {
    let [one, two, _] = three();
    let generation = Generation::new().expect("random numbers");
    write(&one, vec![stored(1), uploaded(1, generation)]).await;
    let visible = |repository| Write::Visible { viewer: Viewer::own(repository), digest: object(1) };
    write(&two, vec![visible("a"), visible("b"), Write::Used { digest: object(1), at: Timestamp(70) }]).await;
    let uses = one.uses(vec![object(1), object(2)]).await.expect("read");
    let used = uses.get(&object(1)).expect("it is known");
    let mut repositories: Vec<_> = used.repositories.lines().collect();
    repositories.sort_unstable();
    assert_eq!((uses.len(), used.last_use, repositories), (1, Timestamp(70), vec!["a", "b"]));
    // A clock that is wrong takes nothing back, and keeps nothing for ever.
    let known = async |at| {
        write(&two, vec![Write::Used { digest: object(1), at: Timestamp(at) }]).await;
        one.uses(vec![object(1)]).await.expect("read")[&object(1)].last_use
    };
    assert_eq!(known(5).await, Timestamp(70));
    let late = known(i64::MAX / 2).await;
    assert!(late > Timestamp(70) && late <= Timestamp::now(), "{late:?}");
}

#[tokio::test]
async fn who_was_not_there_for_a_month_is_forgotten_with_what_only_it_had_and_may_come_back() {
    let database = database(server());
    let open = |store, bucket| open_sharing(Way::Pooled, &database, store, bucket);
    let [one, two] = [open("one", BUCKET), open("two", "http://s3/other/")];
    let tag = |tag: &str, number| {
        let key =
            TagKey { repository: "r".to_owned(), shelf: String::new(), name: "a".to_owned(), tag: tag.to_owned() };
        let entry =
            TagEntry { digest: object(number), media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
        (key.clone(), Write::Tag { key, entry })
    };
    let [(common, noted), (lost, noted_too)] = [tag("common", 1), tag("lost", 2)];
    write(&one, vec![stored(1), noted, noted_too]).await;
    let generation = Generation::new().expect("random numbers");
    // More than one step.
    write(&two, (1..1_100).map(stored).collect()).await;
    write(&two, vec![uploaded(2, generation)]).await;
    let names = |and: &str| server().sql(&database, &format!("SELECT count(*) FROM larder.holders WHERE {and}"));
    let age = |days| {
        let sql = "UPDATE larder.holders SET seen_at = now() - interval '";
        server().sql(&database, &format!("{sql}{days} days' WHERE name IN ('two', 'bucket http://s3/other/')"));
    };
    age(29);
    unseen::forget(&two.server).await;
    assert_eq!(names("true"), "4");
    age(31);
    // One that comes back in the middle has to compare its bucket anew.
    two.set_compared_with(Some("http://s3/other/".to_owned())).await.expect("written");
    let step = async || one.server.change(LONG, |client| Box::pin(unseen::step(client))).await.expect("done");
    assert!(step().await);
    assert_eq!(names("compared_with IS NOT NULL"), "1", "its store goes first");
    while names("compared_with IS NOT NULL") == "1" {
        assert!(step().await);
    }
    assert_eq!(names("name LIKE '%other%'"), "1", "it is not forgotten yet");
    unseen::forget(&one.server).await;
    assert_eq!((names("name LIKE '%other%' OR name = 'two'"), names("true")), ("0".to_owned(), "2".to_owned()));
    assert!(one.tag(&common).await.expect("read").is_some());
    assert!(one.tag(&lost).await.expect("read").is_none(), "it would lead to nothing");
    assert_eq!(server().sql(&database, "SELECT count(*) FROM larder.objects"), "1");
    assert_eq!(stray(&one).await, [0, 0, 0, 0]);
    drop(two);
    let back = open("two", "http://s3/other/");
    write(&back, vec![stored(2)]).await;
    assert_eq!((upload_of(&back, 2).await, names("true").as_str()), (Some(None), "4"));
    // Who is there says so from time to time.
    age(1);
    drop(back);
    let back = open("two", "http://s3/other/");
    back.check().await.expect("well");
    assert_eq!(names("seen_at < now() - interval '1 hour'"), "0");
}

#[tokio::test]
async fn a_purge_tells_the_uploads_of_all_and_what_was_purged_is_not_uploaded_afterwards() {
    let [one, two, elsewhere] = three();
    let [first, second, third] = [(); 3].map(|()| Generation::new().expect("random numbers"));
    write(&one, vec![stored(1), uploaded(1, first)]).await;
    write(&two, vec![stored(2), uploaded(2, second)]).await;
    write(&elsewhere, vec![stored(3), uploaded(3, third)]).await;
    let steps: Vec<Purged> = one.purge(Purge::All).try_collect().await.expect("purged");
    let uploads: HashSet<_> = steps.iter().flat_map(|step| step.uploads.iter().copied()).collect();
    assert_eq!(uploads, [(object(1), first), (object(2), second)].into(), "that of another bucket is not its own");
    assert_eq!(steps.iter().map(|step| step.objects).sum::<u64>(), 2);
    // An upload ran meanwhile.
    write(&two, vec![uploaded(2, third)]).await;
    for index in [&one, &two, &elsewhere] {
        assert_eq!(known_at_start(index).await, []);
    }
    assert_eq!(stray(&one).await, [0, 0, 0, 0]);
}

#[tokio::test]
async fn what_one_finds_in_the_bucket_all_know_and_that_it_was_compared() {
    let [one, two, elsewhere] = three();
    let generation = Generation::new().expect("random numbers");
    // As the comparison takes in a key that no row names.
    let entry = ObjectEntry { size: 10, media_type: None, stored_at: Timestamp(1), generation: Some(generation) };
    write(&one, vec![Write::Object { digest: object(1), entry }]).await;
    one.set_compared_with(Some(BUCKET.to_owned())).await.expect("written");
    assert_eq!(upload_of(&two, 1).await, Some(Some(generation)));
    assert_eq!(two.compared_with().await.expect("read").as_deref(), Some(BUCKET));
    assert_eq!(elsewhere.compared_with().await.expect("read"), None);
    // It turns out to be a manifest, which is still known once the file has left the tier.
    write(&two, vec![stored(1), Write::DropUploaded { digest: object(1), generation: None }]).await;
    let entry = one.object(&object(1)).await.expect("read").expect("it is known");
    assert_eq!((entry.media_type, entry.generation), (Some(MediaType::new("m")), Some(generation)));
    let uses = |at| vec![Write::Used { digest: object(1), at: Timestamp(at) }];
    write(&two, uses(7)).await;
    let used = one.server.read(LONG, |client| {
        Box::pin(async move {
            Ok(client.query_typed_one("SELECT max(last_use) FROM larder.objects", &[]).await?.try_get::<_, i64>(0)?)
        })
    });
    assert_eq!(used.await.expect("read"), 7);
}

/// The first to say who has a file are replicas, of which the bucket is none.
#[tokio::test]
async fn the_bucket_is_no_replica_that_has_a_file() {
    let [one, two, _] = three();
    for (index, name) in [(&one, "one"), (&two, "two")] {
        let replica = Replica { address: format!("http://{name}:17082"), epoch: 1 };
        index.announce(&replica, Duration::from_secs(600)).await.expect("noted");
    }
    let generation = Generation::new().expect("random numbers");
    write(&one, vec![stored(1), uploaded(1, generation)]).await;
    write(&one, vec![Write::DropUploaded { digest: object(1), generation: None }]).await;
    assert_eq!(two.holders(&object(1)).await.expect("told"), []);
    write(&one, vec![stored(1)]).await;
    assert_eq!(two.holders(&object(1)).await.expect("told").len(), 1);
}

/// Writes of one kind, so that they are one transaction with many rows.
fn all(of: impl Fn(u32) -> Write) -> Vec<Write> {
    (0..60).map(of).collect()
}

/// Each writes rows that the other writes, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_that_use_and_upload_the_same_objects_do_not_wait_for_each_other_in_a_circle() {
    let server = Postgres::start();
    let database = database(&server);
    let indexes = ["one", "two"].map(|store| {
        let names = Names { store: store.to_owned(), bucket: Some(BUCKET.to_owned()) };
        Arc::new(open_of(&url_of(&server, Way::Direct, &database), names, Duration::from_secs(60)))
    });
    let working = (0..).zip(&indexes).map(|(at, index): (u32, _)| {
        let index = index.clone();
        tokio::spawn(async move {
            for round in 0..12_u32 {
                let generation = Generation::new().expect("random numbers");
                write(&index, all(stored)).await;
                write(&index, all(|number| uploaded(number, generation))).await;
                for at in 0..6 {
                    let at = Timestamp(i64::from(10 * round + at));
                    write(&index, all(|number| Write::Used { digest: object(number), at })).await;
                }
                let gone = (round % 3 == at).then_some(generation);
                let drop = |number| Write::DropUploaded { digest: object(number), generation: gone };
                write(&index, all(drop)).await;
            }
        })
    });
    for worked in futures_util::future::join_all(working).await {
        worked.expect("no panic");
    }
    for index in &indexes {
        assert_eq!(index.dropped(), 0);
    }
    let log = server.log();
    assert!(!log.contains("deadlock detected"), "{log}");
    indexes[0].verify().await.expect("compared");
    assert_eq!(stray(&indexes[0]).await, [0, 0, 0, 0]);
}
