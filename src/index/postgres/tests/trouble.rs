//! The server answers, and something is in the way: it takes no changes, connections or locks are held, it is slow.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::super::super::TagEntry;
use super::super::errors::{Trouble, trouble_of};
use super::super::server::{State, in_time};
use super::outage::until;
use super::*;

const SLEEP: &str = "SELECT pg_sleep(600)";

/// Asks again and again until the answer is yes.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(90), "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Collects what becomes of the server of an index.
fn watch(index: &PostgresIndex) -> Arc<Mutex<Vec<State>>> {
    let seen = Arc::<Mutex<Vec<State>>>::default();
    let (all, mut states) = (seen.clone(), index.server.states());
    tokio::spawn(async move {
        while states.changed().await.is_ok() {
            let state = states.borrow_and_update().clone();
            all.lock().unwrap_or_else(PoisonError::into_inner).push(state);
        }
    });
    seen
}

fn count(seen: &Mutex<Vec<State>>, is_it: impl Fn(&State) -> bool) -> usize {
    seen.lock().expect("no panic").iter().filter(|state| is_it(state)).count()
}

fn is_away(state: &State) -> bool {
    matches!(state, State::Away(_))
}

/// Returns how many statements sleep in the server.
fn sleeping(server: &Postgres) -> String {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE query = '{SLEEP}' AND state = 'active'");
    server.sql("postgres", &sql)
}

fn sleep(index: &PostgresIndex, time: Duration) -> impl Future<Output = Result<(), IndexError>> + use<> {
    let server = index.server.clone();
    async move { server.read(time, |client| Box::pin(async move { Ok(client.batch_execute(SLEEP).await?) })).await }
}

fn url(server: &Postgres, way: Way, database: &str) -> String {
    if matches!(way, Way::Direct) { server.url(database) } else { server.bouncer_url(database) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_can_only_be_read_is_away_until_it_can_be_written_to() {
    let server = Postgres::start();
    let set = |to: &str| {
        server.sql("postgres", &format!("ALTER SYSTEM SET default_transaction_read_only = {to}"));
        server.sql("postgres", "SELECT pg_reload_conf()");
    };
    for way in [Way::Direct, Way::Pooled] {
        let database = database(&server);
        let index = open_at(&url(&server, way, &database), "store", Duration::from_secs(60));
        index.check().await.expect("well");
        let (seen, before) = (watch(&index), server.log());
        let since = |text: &str| server.log().matches(text).count() - before.matches(text).count();
        set("on");
        let mut number = 0;
        eventually("it is away", || {
            number += 1;
            index.note(stored(number));
            server.sql("postgres", "SELECT 1");
            index.server_trouble().is_some()
        })
        .await;
        let why = index.check().await.expect_err("it is away").to_string();
        assert!(why.contains("read-only") && why.contains("lead to the primary"), "{why}");
        eventually("it is looked at", || since("FROM larder.holders WHERE name = $1 FOR KEY SHARE") >= 6).await;
        assert_eq!(count(&seen, |state| *state == State::Well), 0, "{way:?}: it comes and goes");
        let writes = since("FROM larder.digests WHERE digest = ANY($1) ORDER BY digest FOR KEY SHARE");
        assert!((1..4).contains(&writes), "{way:?}: {writes} batches were tried");
        set("off");
        until(&index, true).await;
        index.flush().await.expect("written");
        assert_eq!(server.sql(&database, "SELECT count(*) FROM larder.objects"), number.to_string());
        assert_eq!(index.dropped(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_writes_is_read_and_gets_them_later() {
    let server = Postgres::start();
    for (way, code) in [(Way::Direct, "53100"), (Way::Pooled, "42501")] {
        let database = database(&server);
        let index = open_at(&url(&server, way, &database), "store", Duration::from_secs(60));
        index.note(stored(1));
        index.flush().await.expect("written");
        let seen = watch(&index);
        let trigger = format!(
            "CREATE FUNCTION larder.refuse() RETURNS trigger LANGUAGE plpgsql \
             AS $$ BEGIN RAISE EXCEPTION 'no room for {code}' USING ERRCODE = '{code}'; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON larder.objects EXECUTE FUNCTION larder.refuse()"
        );
        server.sql(&database, &trigger);
        (2..1_000).for_each(|number| index.note(stored(number)));
        let no_room = format!("no room for {code}");
        eventually("it is said", || index.server_trouble().is_some_and(|why| why.contains(&no_room))).await;
        for _ in 0..200 {
            assert!(index.object(&object(1)).await.expect("it is read").is_some());
        }
        assert!(index.flush().await.is_err(), "nobody waits for it");
        index.apply(vec![stored(1_000)]).await.expect("queued");
        let tries = server.log().matches(&no_room).count();
        assert!(tries < 20, "{tries} batches were tried");
        server.sql(&database, "DROP TRIGGER refuse ON larder.objects");
        until(&index, true).await;
        index.flush().await.expect("written");
        assert_eq!(server.sql(&database, "SELECT count(*) FROM larder.objects"), "1000");
        assert_eq!((index.dropped(), count(&seen, is_away)), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_statement_or_many_at_once_are_no_outage_and_end_in_the_server_too() {
    let server = Postgres::start();
    for way in [Way::Direct, Way::Pooled] {
        let database = database(&server);
        let index = open_at(&url(&server, way, &database), "store", Duration::from_secs(3));
        until(&index, true).await;
        let seen = watch(&index);
        let error = sleep(&index, Duration::from_secs(2)).await.expect_err("it is too slow").to_string();
        assert!(error.contains("statement timeout"), "{way:?}: {error}");
        assert_eq!(sleeping(&server), "0");
        if matches!(way, Way::Direct) {
            let all: Vec<_> = (0..8).map(|_| tokio::spawn(sleep(&index, LONG))).collect();
            eventually("all connections are in use", || sleeping(&server) == "8").await;
            let busy = index.object(&object(1)).await.expect_err("there is none for it");
            assert!(matches!(busy, IndexError::Busy), "{busy}");
            let end = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
            server.sql("postgres", end);
            for ended in join_all(all).await {
                ended.expect("no panic").expect_err("it was ended");
            }
        }
        index.object(&object(1)).await.expect("read");
        assert_eq!((count(&seen, is_away), index.server_trouble()), (0, None), "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_late_makes_larder_look_and_a_server_that_answers_is_not_away() {
    let server = Postgres::start();
    let database = database(&server);
    let index = open_in(&server, Way::Direct, &database, "store");
    until(&index, true).await;
    let seen = watch(&index);
    // Each look reads the version.
    let sql = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'version'";
    let looks = || server.sql(&database, sql).parse::<u64>().expect("a number");
    let before = looks();
    // No statement of it reaches the server, which could not give up by itself.
    let late = || index.server.read(Duration::from_millis(20), |_| Box::pin(std::future::pending::<Result<(), _>>()));
    let begun = Instant::now();
    assert!(matches!(late().await, Err(IndexError::Late)));
    eventually("it has looked", || looks() > before).await;
    // However often there is reason to, it looks twice a second.
    for _ in 0..100 {
        assert!(matches!(late().await, Err(IndexError::Late)));
    }
    let looks = looks() - before;
    assert!(u128::from(looks) <= begun.elapsed().as_millis() / 500 + 3, "{looks} looks");
    index.check().await.expect("well");
    assert_eq!(count(&seen, is_away), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_held_for_long_is_no_outage_and_costs_no_write() {
    let server = Postgres::start();
    let database = database(&server);
    let (index, other) =
        (open_in(&server, Way::Direct, &database, "store"), open_in(&server, Way::Direct, &database, "x"));
    index.check().await.expect("well");
    let seen = watch(&index);
    let (is_held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (held, released, holder) = (is_held.clone(), release.clone(), other.server.clone());
    let holding = tokio::spawn(async move {
        let hold = holder.change(ALL, move |client| {
            let (held, released) = (held.clone(), released.clone());
            Box::pin(async move {
                let lock = "SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE larder.objects";
                client.batch_execute(lock).await?;
                held.notify_one();
                released.notified().await;
                Ok(())
            })
        });
        hold.await
    });
    is_held.notified().await;
    let key = TagKey { repository: "r".to_owned(), shelf: String::new(), name: "a".to_owned(), tag: "1".to_owned() };
    let entry = TagEntry { digest: object(1), media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
    (1..1_000).for_each(|number| index.note(stored(number)));
    // Behind what is blocked. Before it, the task might take and write it alone.
    index.note(Write::Tag { key: key.clone(), entry });
    eventually("it is said", || index.server_trouble().is_some_and(|why| why.contains("lock timeout"))).await;
    assert!(index.tag(&key).await.expect("it is read").is_none());
    let tries = Arc::new(AtomicU32::new(0));
    let counted = tries.clone();
    let blocked = index.server.change(Duration::from_secs(2), move |client| {
        counted.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(client.batch_execute("LOCK TABLE larder.objects").await?) })
    });
    assert_eq!(trouble_of(&blocked.await.expect_err("it is held")), Trouble::Blocked);
    assert_eq!(tries.load(Ordering::Relaxed), 1, "the last try would have no time left");
    release.notify_one();
    holding.await.expect("no panic").expect("unlocked");
    until(&index, true).await;
    index.flush().await.expect("written");
    assert_eq!(server.sql(&database, "SELECT count(*) FROM larder.objects"), "999");
    assert!(index.tag(&key).await.expect("read").is_some());
    assert_eq!((index.dropped(), count(&seen, is_away)), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_that_waits_for_room_goes_on_when_the_server_turns_out_to_be_away() {
    let server = Postgres::start();
    let database = database(&server);
    let index = Arc::new(open_at(&server.url(&database), "store", Duration::from_secs(2)));
    // No connection begins while the server is stopped, which would be left out.
    eventually("the first look is over", || index.bytes.load(Ordering::Relaxed) > 0).await;
    index.check().await.expect("well");
    server.stop();
    let mut number = 0;
    while index.dropped() == 0 {
        number += 1;
        index.note(stored(number));
    }
    // The task may still take one batch; there is no room for the rest.
    let upkeep = index.clone();
    let upkeep = tokio::spawn(async move { upkeep.apply((0..2_000).map(stored).collect()).await });
    assert!(index.check().await.is_err());
    until(&index, false).await;
    let waited = tokio::time::timeout(Duration::from_secs(20), upkeep).await;
    waited.expect("it waits no more").expect("no panic").expect("queued as far as there is room");
    assert!(index.dropped() > 1_000);
    server.go_on();
}

/// Nothing can be said to a connection whose answer is still to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_of_which_a_part_is_late_ends_at_once() {
    let server = Postgres::start();
    for way in [Way::Direct, Way::Pooled] {
        let database = database(&server);
        let index = open_at(&url(&server, way, &database), "store", Duration::from_secs(60));
        let late = index.server.change(LONG, |client| {
            let sleep = async { Ok(client.batch_execute(SLEEP).await?) };
            Box::pin(in_time(Duration::from_millis(300), sleep))
        });
        assert!(matches!(late.await, Err(IndexError::Late)));
        assert_eq!(sleeping(&server), "1", "{way:?}: it was waited for");
        server.sql(
            "postgres",
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%sleep(600)'",
        );
    }
}

#[tokio::test]
async fn a_transaction_sees_what_was_written_before_each_statement_whatever_the_default_is() {
    let database = database(server());
    server().sql("postgres", &format!("ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'"));
    let index = open_in(server(), Way::Direct, &database, "store");
    let change = index.server.change(LONG, |client| Box::pin(level_of(client))).await.expect("asked");
    let read = index.server.read(LONG, |client| Box::pin(level_of(client))).await.expect("asked");
    assert_eq!((change.as_str(), read.as_str()), ("read committed", "read committed"));
}

async fn level_of(client: &Client) -> Result<String, IndexError> {
    let sql = "SELECT current_setting('transaction_isolation')";
    Ok(client.query_typed_one(sql, &[]).await?.try_get(0)?)
}

/// A file whose readers wait until this is dropped.
struct Hanging {
    file: PathBuf,
    pipe: PathBuf,
    _dir: tempfile::TempDir,
}

impl Hanging {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, pipe) = (dir.path().join("file"), dir.path().join("pipe"));
        let made = Command::new("mkfifo").arg(&file).status().expect("mkfifo");
        assert!(made.success());
        std::fs::hard_link(&file, &pipe).expect("linked");
        Self { file, pipe, _dir: dir }
    }
}

impl Drop for Hanging {
    /// Lets those go on that wait, else the runtime would wait for them.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        // Opened in both ways, a pipe waits for nobody.
        if let Ok(mut pipe) = std::fs::OpenOptions::new().read(true).write(true).open(&self.pipe) {
            let _ = pipe.write_all(b"secret\n");
        }
    }
}

/// As of a file system of the network that hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_file_of_the_password_hangs_the_last_one_is_used() {
    let server = Postgres::start();
    let database = database(&server);
    server.sql("postgres", "CREATE ROLE stranger LOGIN PASSWORD 'secret'");
    server.sql(&database, "CREATE SCHEMA larder AUTHORIZATION stranger");
    let hanging = Hanging::new();
    let url = server.url(&database).replace("user=larder", "user=stranger");
    let mut config = index_server(&url, Secret::new("secret")).expect("a server");
    config.password_file = Some(hanging.file.clone());
    let index = PostgresIndex::with_deadline(&config, store("store"), Duration::from_secs(60)).expect("an index");
    let answered = join_all((0..20).map(|_| index.check())).await;
    assert!(answered.iter().all(Result::is_ok), "{answered:?}");
}
