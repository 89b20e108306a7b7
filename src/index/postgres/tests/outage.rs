//! The server hangs, is killed, is not there at the start, refuses the login.

use super::super::server::State;
use super::*;

/// Waits until the server is known to be well or away.
pub async fn until(index: &PostgresIndex, is_well: bool) {
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
        PostgresIndex::with_deadline(&config, store("store"), Duration::from_secs(60)).expect("an index")
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

#[tokio::test]
async fn tls_is_used_and_the_certificate_checked_unless_the_url_says_otherwise() {
    let server = Postgres::start();
    let database = database(&server);
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).and_then(|params| params.self_signed(&key));
    let certificate = certificate.expect("a certificate");
    let port = server.listen_with_tls(&certificate.pem(), &key.serialize_pem());
    let at = |mode: &str, is_trusted: bool| {
        let url = format!("postgres://larder@127.0.0.1:{port}/{database}?sslmode={mode}");
        let mut config = index_server(&url, Secret::default()).expect("a server");
        if is_trusted && let Some(tls) = &mut config.tls {
            tls.roots = Some(vec![certificate.der().clone()]);
        }
        PostgresIndex::with_deadline(&config, store("store"), Duration::from_secs(60)).expect("an index")
    };
    let refused = at("verify-full", false).check().await.expect_err("nobody vouches for it").to_string();
    assert!(refused.contains("TLS") && refused.contains("certificate"), "{refused}");
    for (index, is_secret) in
        [(at("verify-full", true), true), (at("require", false), true), (at("disable", false), false)]
    {
        index.check().await.expect("well");
        let asked = index.server.read(LONG, |client| {
            Box::pin(async move {
                let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
                Ok(client.query_typed_one(sql, &[]).await?.try_get::<_, bool>(0)?)
            })
        });
        assert_eq!(asked.await.expect("read"), is_secret);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_closes_no_connection() {
    let database = database(server());
    let index = Arc::new(open_in(server(), Way::Direct, &database, "store"));
    until(&index, true).await;
    let many = |count: usize| {
        let index = index.clone();
        async move {
            let digests: Vec<_> = (0..count).map(|number| object(u32::try_from(number).expect("small"))).collect();
            futures_util::future::join_all(digests.iter().map(|digest| index.object(digest))).await
        }
    };
    assert!(many(100).await.iter().all(Result::is_ok));
    let sessions = format!(
        "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE datname = '{database}' \
        AND application_name = 'larder'"
    );
    let before = server().sql("postgres", &sessions);
    for _ in 0..50 {
        tokio::select! {
            biased;
            _ = many(20) => {}
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(many(100).await.iter().all(Result::is_ok));
    assert_eq!(server().sql("postgres", &sessions), before);
}

/// PgBouncer gives each statement outside a transaction, and each transaction, any of its four connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_whatever_connection_it_gives_answers() {
    let index = Arc::new(open(Way::Pooled));
    index.apply((0..100).map(stored).collect()).await.expect("queued");
    index.flush().await.expect("written");
    let asking = (0..60).map(|number| {
        let index = index.clone();
        tokio::spawn(async move {
            let key = TagKey {
                repository: "r".to_owned(),
                shelf: String::new(),
                name: "a".to_owned(),
                tag: number.to_string(),
            };
            let list =
                ListKey { repository: "r".to_owned(), name: "a".to_owned(), page: format!("tags/list?n={number}") };
            for _ in 0..5 {
                assert!(index.object(&object(number)).await.expect("read").is_some());
                index.tag(&key).await.expect("read");
                index.is_visible(&Viewer::own("r"), &object(number)).await.expect("read");
                index.urls(&object(number)).await.expect("read");
                index.listing(&list, 9).await.expect("read");
                index.names(vec![object(number)]).await.expect("read");
                index.catalog(vec!["r".to_owned()], String::new(), 9).await.expect("read");
                index.apply(vec![stored(number)]).await.expect("queued");
                index.images(String::new(), 9).await.expect("read");
            }
            index.pinned(vec!["r".to_owned()], Box::new(|_| true)).await.expect("read");
            index.objects_by_use(true, Box::new(|_| ())).await.expect("read");
        })
    });
    for asked in futures_util::future::join_all(asking).await {
        asked.expect("each is answered");
    }
    assert_eq!(index.dropped(), 0);
}

#[tokio::test]
async fn of_two_transactions_that_wait_for_each_other_both_are_done_in_the_end() {
    let index = open(Way::Pooled);
    for name in ["a", "b"] {
        let reference = crate::oci::Reference::Digest(object(1));
        let pin = ImageName { repository: "r".to_owned(), name: name.to_owned(), reference };
        index.set_pin(pin, true).await.expect("pinned");
    }
    let (meet, tries) = (Arc::new(tokio::sync::Barrier::new(2)), Arc::new(AtomicU32::new(0)));
    let change = |first: &'static str, second: &'static str| {
        let (meet, tries) = (meet.clone(), tries.clone());
        index.server.change(LONG, move |client| {
            let (meet, tries) = (meet.clone(), tries.clone());
            Box::pin(async move {
                const SQL: &str = "UPDATE larder.pins SET reference = $2 WHERE name = $1";
                let by = tries.fetch_add(1, Ordering::Relaxed);
                client.execute_typed(SQL, values::values![first => TEXT, first => TEXT]).await?;
                if by < 2 {
                    // Each has a row that the other wants.
                    meet.wait().await;
                }
                client.execute_typed(SQL, values::values![second => TEXT, first => TEXT]).await?;
                Ok(())
            })
        })
    };
    let (one, other) = tokio::join!(change("a", "b"), change("b", "a"));
    one.expect("done");
    other.expect("done");
    assert_eq!(tries.load(Ordering::Relaxed), 3, "the server broke one off");
}
