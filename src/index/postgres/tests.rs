//! Tests the index on a real server, directly and by way of PgBouncer in transaction mode.

#[path = "../../../tests/support/postgres.rs"]
mod support;

mod others;
mod outage;
mod plans;
mod same;
mod shared_bucket;
mod together;
mod trouble;

use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

pub use support::Postgres;

use super::super::Timestamp;
use super::*;
use crate::config::{Secret, index_server};
use crate::oci::{Algorithm, MediaType};

/// How the index reaches the server.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Direct,
    Pooled,
}

/// Returns the server that all tests share which do it no harm.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

/// Makes a database on a server. Returns its name.
pub fn database(server: &Postgres) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("trial_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    server.create(&name);
    name
}

/// Returns the object with this number.
fn object(number: u32) -> Digest {
    Digest::of(Algorithm::Sha256, &number.to_be_bytes())
}

/// Stores the object with this number.
fn stored(number: u32) -> Write {
    let media_type = Some(MediaType::new("m"));
    Write::Object {
        digest: object(number),
        entry: ObjectEntry { size: 10, media_type, stored_at: Timestamp(1), generation: None },
    }
}

/// Opens an index in a database of its own.
pub fn open(way: Way) -> PostgresIndex {
    let database = database(server());
    open_in(server(), way, &database, "store")
}

/// Opens an index in a database of its own, of a Larder with a bucket.
pub fn open_with_bucket(way: Way) -> PostgresIndex {
    let database = database(server());
    open_sharing(way, &database, "store", BUCKET)
}

/// Opens an index for a store in a database.
pub fn open_in(server: &Postgres, way: Way, database: &str, store: &str) -> PostgresIndex {
    open_at(&url_of(server, way, database), store, Duration::from_secs(60))
}

/// A bucket.
pub const BUCKET: &str = "http://s3/larder/";

/// Opens an index for a store and a bucket in a database.
fn open_sharing(way: Way, database: &str, store: &str, bucket: &str) -> PostgresIndex {
    let names = Names { store: store.to_owned(), bucket: Some(bucket.to_owned()) };
    open_of(&url_of(server(), way, database), names, Duration::from_secs(60))
}

fn url_of(server: &Postgres, way: Way, database: &str) -> String {
    match way {
        Way::Direct => server.url(database),
        Way::Pooled => server.bouncer_url(database),
    }
}

/// Opens an index at a URL. `soon`: how long a call that a client waits for may take.
pub fn open_at(url: &str, store: &str, soon: Duration) -> PostgresIndex {
    open_of(url, self::store(store), soon)
}

/// The names of a store without a bucket.
fn store(name: &str) -> Names {
    Names { store: name.to_owned(), bucket: None }
}

fn open_of(url: &str, names: Names, soon: Duration) -> PostgresIndex {
    let config = index_server(url, Secret::default()).expect("a server");
    PostgresIndex::with_deadline(&config, names, soon).expect("an index")
}

/// Returns what is wrong with the numbers of digests: those that nothing needs, and rows that have none.
pub async fn stray(index: &PostgresIndex) -> Vec<i64> {
    const SQL: [&str; 4] = [
        "SELECT count(*) FROM larder.digests AS d WHERE NOT EXISTS (SELECT 1 FROM larder.objects WHERE id = d.id) \
            AND NOT EXISTS (SELECT 1 FROM larder.edges WHERE parent = d.id OR child = d.id) \
            AND NOT EXISTS (SELECT 1 FROM larder.visibility WHERE object = d.id)",
        "SELECT count(*) FROM larder.edges WHERE NOT EXISTS (SELECT 1 FROM larder.digests WHERE id = parent) \
            OR NOT EXISTS (SELECT 1 FROM larder.digests WHERE id = child)",
        "SELECT count(*) FROM larder.visibility WHERE NOT EXISTS (SELECT 1 FROM larder.digests WHERE id = object)",
        "SELECT count(*) FROM larder.objects AS o WHERE NOT EXISTS (SELECT 1 FROM larder.digests WHERE id = o.id)",
    ];
    let mut counts = Vec::new();
    for sql in SQL {
        let count = index.server.read(LONG, move |client| {
            Box::pin(async move { Ok(client.query_typed_one(sql, &[]).await?.try_get::<_, i64>(0)?) })
        });
        counts.push(count.await.expect("counted"));
    }
    counts
}
