//! What Larders that share an index hear of each other.

use futures_util::TryStreamExt;

use super::*;
use crate::oci::Reference;

fn replica(name: &str, epoch: u64) -> Replica {
    Replica { address: format!("http://{name}:17082"), epoch }
}

async fn news(index: &PostgresIndex, mark: &mut Option<Mark>) -> Vec<Change> {
    let (changes, known) = index.changes(mark.take()).await.expect("told");
    *mark = Some(known);
    changes
}

async fn purge(index: &PostgresIndex, purge: Purge) {
    index.purge(purge).try_collect::<Vec<_>>().await.expect("purged");
}

#[tokio::test]
async fn who_is_alive_is_told_by_the_clock_of_the_server_and_forgotten_when_it_leaves() {
    for way in [Way::Direct, Way::Pooled] {
        let database = database(server());
        let (one, other) = (open_in(server(), way, &database, "one"), open_in(server(), way, &database, "other"));
        let (first, second) = (replica("a", u64::MAX), replica("b", 7));
        one.announce(&first, Duration::from_secs(600)).await.expect("noted");
        other.announce(&second, Duration::from_secs(600)).await.expect("noted");
        assert_eq!(other.replicas().await.expect("told"), [first.clone(), second.clone()]);
        // Another process is at the address: the one before has nothing to take back there.
        let third = replica("b", 8);
        other.announce(&third, Duration::from_secs(600)).await.expect("noted");
        other.announce(&second, Duration::ZERO).await.expect("noted");
        assert_eq!(one.replicas().await.expect("told"), [first.clone(), third.clone()]);
        one.announce(&first, Duration::ZERO).await.expect("noted");
        assert_eq!(one.replicas().await.expect("told"), [third]);
        // Whose time is over is not alive.
        server().sql(&database, "UPDATE larder.replicas SET alive_until = now() - interval '1 second'");
        assert_eq!(one.replicas().await.expect("told"), []);
    }
}

#[tokio::test]
async fn who_has_an_object_stored_is_known_of_those_that_are_alive() {
    let database = database(server());
    let open = |name| open_in(server(), Way::Pooled, &database, name);
    let (one, other, dead) = (open("one"), open("other"), open("dead"));
    for (index, name) in [(&one, "one"), (&other, "other"), (&dead, "dead")] {
        index.announce(&replica(name, 1), Duration::from_secs(600)).await.expect("noted");
        index.apply(vec![stored(1)]).await.expect("noted");
        index.flush().await.expect("written");
    }
    dead.announce(&replica("dead", 1), Duration::ZERO).await.expect("noted");
    assert_eq!(one.holders(&object(1)).await.expect("told"), [replica("other", 1)], "itself is not meant");
    assert_eq!(one.holders(&object(2)).await.expect("told"), []);
}

#[tokio::test]
async fn each_purge_and_pin_of_another_is_told_once_and_ones_own_never() {
    for way in [Way::Direct, Way::Pooled] {
        let database = database(server());
        let (one, other) = (open_in(server(), way, &database, "one"), open_in(server(), way, &database, "other"));
        let image =
            ImageName { repository: "hub".to_owned(), name: "a".to_owned(), reference: Reference::Digest(object(1)) };
        let (mut mine, mut theirs) = (None, None);
        assert_eq!(news(&one, &mut mine).await, [], "what was before is not told");
        assert_eq!(news(&other, &mut theirs).await, []);
        one.set_pin(image.clone(), true).await.expect("pinned");
        assert_eq!(news(&other, &mut theirs).await, [Change::Pins]);
        one.set_pin(image, false).await.expect("not pinned");
        let (repository, name) = ("hub".to_owned(), "a".to_owned());
        let manifest = Write::Manifest { repository: repository.clone(), name, digest: object(1), at: Timestamp(1) };
        one.apply(vec![stored(1), manifest]).await.expect("noted");
        let viewer = Viewer::new("hub", crate::index::Scope::Own);
        one.apply(vec![Write::Visible { viewer, digest: object(1) }]).await.expect("noted");
        one.flush().await.expect("written");
        purge(&one, Purge::Repository(repository)).await;
        purge(&one, Purge::All).await;
        let changes = news(&other, &mut theirs).await;
        assert_eq!(changes.first(), Some(&Change::Pins));
        assert!(changes.contains(&Change::Purged(vec![object(1)])), "{changes:?}");
        assert_eq!(changes.last(), Some(&Change::PurgedAll));
        assert_eq!(news(&other, &mut theirs).await, [], "once");
        assert_eq!(news(&one, &mut mine).await, []);
    }
}

#[tokio::test]
async fn a_change_whose_transaction_ends_after_that_of_a_later_one_is_not_missed() {
    let database = database(server());
    let (one, other) =
        (open_in(server(), Way::Direct, &database, "one"), open_in(server(), Way::Direct, &database, "x"));
    let mut mark = None;
    news(&one, &mut mark).await;
    let (begun, may_end) = (oneshot::channel(), oneshot::channel::<()>());
    let (begun, has_begun) = begun;
    let begun = Arc::new(Mutex::new(Some(begun)));
    let (end, may_end) = may_end;
    let may_end = Arc::new(tokio::sync::Mutex::new(Some(may_end)));
    let (holder, server) = (other.mine().await.expect("known").own, other.server.clone());
    let slow = tokio::spawn(async move {
        let change = server.change(LONG, move |client| {
            let (begun, may_end) = (begun.clone(), may_end.clone());
            Box::pin(async move {
                changes::note_purge(client, holder, &[object(1)]).await?;
                if let Some(begun) = begun.lock().expect("free").take() {
                    let _ = begun.send(());
                }
                if let Some(may_end) = may_end.lock().await.take() {
                    let _ = may_end.await;
                }
                Ok(())
            })
        });
        change.await
    });
    has_begun.await.expect("begun");
    purge(&other, Purge::All).await;
    let seen = news(&one, &mut mark).await;
    assert_eq!(seen.last(), Some(&Change::PurgedAll));
    end.send(()).expect("it waits");
    slow.await.expect("no panic").expect("written");
    assert_eq!(news(&one, &mut mark).await, [Change::Purged(vec![object(1)])]);
}

#[tokio::test]
async fn a_lease_is_had_by_one_until_its_time_is_over_or_it_gives_it_back() {
    for way in [Way::Direct, Way::Pooled] {
        let database = database(server());
        let (one, other) = (open_in(server(), way, &database, "one"), open_in(server(), way, &database, "other"));
        let long = Duration::from_secs(600);
        let take = async |index: &PostgresIndex, name| index.take_lease(name, long).await.expect("told");
        assert_eq!((take(&one, "a").await, take(&other, "a").await), (Holder::Me, Holder::Other(None)));
        assert_eq!(take(&other, "b").await, Holder::Me, "each lease is one of its own");
        one.announce(&replica("one", 1), long).await.expect("noted");
        assert_eq!(take(&other, "a").await, Holder::Other(Some(replica("one", 1).address)));
        assert_eq!(take(&one, "a").await, Holder::Me, "it is taken again");
        server().sql(&database, "UPDATE larder.leases SET until = now() - interval '1 second'");
        assert_eq!((take(&other, "a").await, take(&one, "a").await), (Holder::Me, Holder::Other(None)));
        // What another has cannot be given back.
        one.take_lease("a", Duration::ZERO).await.expect("told");
        assert_eq!(take(&one, "a").await, Holder::Other(None));
        other.take_lease("a", Duration::ZERO).await.expect("told");
        assert_eq!(take(&one, "a").await, Holder::Me);
    }
}

#[tokio::test]
async fn who_knows_something_new_of_tags_tells_the_others_once_it_is_in_the_index() {
    let database = database(server());
    let open = |name| open_in(server(), Way::Pooled, &database, name);
    let (one, other) = (open("one"), open("other"));
    let (mut mine, mut theirs) = (None, None);
    assert_eq!((news(&one, &mut mine).await, news(&other, &mut theirs).await), (vec![], vec![]));
    let key = |tag: &str| TagKey { repository: "r".into(), shelf: "s".into(), name: "a/b".into(), tag: tag.into() };
    let entry = TagEntry { digest: object(1), media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
    let tag = |tag: &str| Write::Tag { key: key(tag), entry: entry.clone() };
    let tell = |tag: &str| Write::TellTag { key: key(tag) };
    one.apply(vec![tag("1"), tag("2"), tag("3"), tell("2"), tell("1"), tell("1")]).await.expect("noted");
    one.flush().await.expect("written");
    assert_eq!(news(&other, &mut theirs).await, [Change::Tags(vec![key("1"), key("2")])]);
    assert_eq!(other.tag(&key("1")).await.expect("read").map(|entry| entry.digest), Some(object(1)));
    assert_eq!((news(&one, &mut mine).await, news(&other, &mut theirs).await), (vec![], vec![]));
}
