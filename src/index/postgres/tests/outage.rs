//! The server hangs, is killed, is not there at the start, refuses the login.

use super::super::super::{ObjectEntry, Timestamp};
use super::*;
use crate::oci::{Algorithm, MediaType};

fn object(number: u32) -> Digest {
    Digest::of(Algorithm::Sha256, &number.to_be_bytes())
}

fn stored(number: u32) -> Write {
    let media_type = Some(MediaType::new("m"));
    Write::Object { digest: object(number), entry: ObjectEntry { size: 10, media_type, stored_at: Timestamp(1) } }
}

/// Waits until the server is known to be well or away.
async fn until(index: &PostgresIndex, is_well: bool) {
    let mut states = index.server.states();
    let reached = states.wait_for(|state| (*state == State::Well) == is_well && *state != State::Starting);
    drop(tokio::time::timeout(Duration::from_secs(60), reached).await.expect("in time").expect("it is open"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_hangs_or_is_gone_writes_wait_and_are_written_when_it_is_back() {
    let server = Postgres::start();
    for (way, is_killed) in [(Way::Direct, false), (Way::Pooled, false), (Way::Direct, true), (Way::Pooled, true)] {
        let database = database(&server);
        let url = if matches!(way, Way::Direct) { server.url(&database) } else { server.bouncer_url(&database) };
        let index = open_at(&url, "store", Duration::from_secs(2));
        until(&index, true).await;
        index.note(stored(1));
        index.flush().await.expect("written");
        if is_killed {
            server.kill()
        } else {
            server.stop()
        }
        // The first read waits until its deadline, if it has to; the others wait no more.
        let mut late = 0;
        for _ in 0..20 {
            let asked = Instant::now();
            assert!(index.object(&object(1)).await.is_err(), "{way:?} {is_killed}");
            late += u32::from(asked.elapsed() >= Duration::from_secs(1));
        }
        assert!(late <= 2, "{way:?} {is_killed}: {late} reads waited");
        for number in 2..5_000 {
            index.note(stored(number));
        }
        assert!(index.flush().await.is_err());
        index.apply(vec![stored(5_000)]).await.expect("upkeep does not wait for a server that is away");
        assert_eq!(index.dropped(), 0);
        if is_killed {
            server.restart()
        } else {
            server.go_on()
        }
        until(&index, true).await;
        // A short deadline for reads is none for 5,000 writes.
        while index.flush().await.is_err() {}
        for number in [1, 2, 4_999, 5_000] {
            let mut found = index.object(&object(number)).await;
            // A connection that was broken is noticed when it is used.
            while found.is_err() {
                found = index.object(&object(number)).await;
            }
            assert!(found.expect("read").is_some(), "{way:?} {is_killed} {number}");
        }
        assert_eq!(index.dropped(), 0);
        index.close().await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_at_the_start_is_used_when_it_comes_and_what_waits_is_bounded() {
    let server = Postgres::start();
    let database = database(&server);
    server.kill();
    let index = open_at(&server.url(&database), "store", Duration::from_secs(2));
    until(&index, false).await;
    let error = index.check().await.expect_err("it is away").to_string();
    assert!(error.starts_with("index.url: error connecting to server"), "{error}");
    for number in 0..20_000 {
        index.note(stored(number));
    }
    let dropped = index.dropped();
    assert!((3_000..4_000).contains(&dropped), "16 Ki and a batch wait: {dropped} were dropped");
    server.restart();
    until(&index, true).await;
    while index.flush().await.is_err() {}
    assert_eq!(server.sql(&database, "SELECT count(*) FROM larder.objects"), (20_000 - dropped).to_string());

    // A stop while it is away ends soon.
    server.kill();
    let _ = index.check().await;
    until(&index, false).await;
    index.note(stored(1));
    index.close().await.expect("closed");
    assert_eq!(index.dropped(), dropped + 1);
}

#[tokio::test]
async fn a_login_or_a_database_that_is_wrong_is_said_with_what_to_do() {
    let server = server();
    server.sql("postgres", "CREATE ROLE stranger LOGIN PASSWORD 'secret'");
    let database = database(server);
    let at = |database: &str, user: &str, password: &str| {
        let url = server.url(database).replace("user=larder", &format!("user={user}"));
        let config = index_server(&url, Secret::new(password)).expect("a server");
        let pool = Pool::new("a test", 8, Duration::from_secs(60));
        PostgresIndex::with_deadline(&config, "store".to_owned(), pool, Duration::from_secs(60)).expect("an index")
    };
    for (index, parts) in [
        (at(&database, "stranger", "wrong-password"), ["password authentication failed", "index.password_file"]),
        (at(&database, "stranger", "secret"), ["permission denied", "CREATE SCHEMA larder AUTHORIZATION"]),
        (at("nowhere", "larder", ""), ["\"nowhere\" does not exist", "create the database"]),
    ] {
        let error = index.check().await.expect_err("it cannot be used").to_string();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains("wrong-password"), "{error}");
    }
    server.sql(&database, "CREATE SCHEMA larder AUTHORIZATION stranger");
    at(&database, "stranger", "secret").check().await.expect("well");
}
