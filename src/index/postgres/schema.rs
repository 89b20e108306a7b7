//! The tables, and their versions.

use tokio_postgres::Client;

use super::super::IndexError;
use super::server::Server;
use super::values::{Mine, values};
use crate::clock::Instant;

/// The steps from each version to the next.
pub(super) const MIGRATIONS: [&str; 3] =
    [include_str!("migrations/1.sql"), include_str!("migrations/2.sql"), include_str!("migrations/3.sql")];

/// The lock under which the tables are made. It belongs to the transaction: a pooler cannot give it to others with the
/// connection, as it would a lock of the session, and it is gone when the transaction ends, however that ends.
const LOCK: i64 = 0x6c61_7264_6572;

/// `to_regclass` would say what this transaction knew of the schema when it began, also if another has made it since.
const IS_THERE: &str = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class AS c \
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'larder' AND c.relname = 'version')";
const VERSION: &str = "SELECT version FROM larder.version";
const SET_VERSION: &str = "UPDATE larder.version SET version = $1";
const ADD_HOLDER: &str = "INSERT INTO larder.holders (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";
/// The lock shows whether the server can be written to: one that can only be read refuses it
/// (<https://www.postgresql.org/docs/15/hot-standby.html#HOT-STANDBY-USERS>: "because row locks cannot be taken without
/// updating the underlying data files"). Of all locks of rows, this one is in the way of the fewest.
const HOLDER: &str = "SELECT id FROM larder.holders WHERE name = $1 FOR KEY SHARE";

/// The names of the holders whose objects a Larder serves.
#[derive(Clone, Debug)]
pub struct Names {
    /// That of its own store.
    pub store: String,
    /// What tells its bucket from all others.
    pub bucket: Option<String>,
}

/// Says that a holder is in use, and which bucket a store has. Behind [`HOLDER`], nobody forgets it meanwhile.
const SEEN: &str = "UPDATE larder.holders SET bucket = $2, seen_at = now() \
    WHERE id = $1 AND (bucket IS DISTINCT FROM $2 OR seen_at < now() - interval '1 hour')";

/// Brings the tables to the version that this Larder knows. Several replicas may do so at the same time. Returns the
/// numbers of the holders, unless the server can only be read. Also works while the server is said to be away, by
/// `deadline`.
pub async fn prepare(server: &Server, deadline: Instant, names: &Names) -> Result<Mine, IndexError> {
    let names = names.clone();
    server
        .look(deadline, move |client| {
            let names = names.clone();
            Box::pin(async move {
                migrate(client).await?;
                let own = number(client, &names.store).await?;
                let bucket = match &names.bucket {
                    // No name of a store has a space.
                    Some(place) => Some(number(client, &format!("bucket {place}")).await?),
                    None => None,
                };
                client.execute_typed(SEEN, values![own => INT4, bucket => INT4]).await?;
                if let Some(bucket) = bucket {
                    client.execute_typed(SEEN, values![bucket => INT4, None::<i32> => INT4]).await?;
                }
                Ok(Mine { own, bucket })
            })
        })
        .await
}

/// Returns the number of a holder; a new one gets one.
async fn number(client: &Client, name: &str) -> Result<i32, IndexError> {
    if let Some(row) = client.query_typed_opt(HOLDER, values![name => TEXT]).await? {
        return Ok(row.try_get(0)?);
    }
    client.execute_typed(ADD_HOLDER, values![name => TEXT]).await?;
    Ok(client.query_typed_one(HOLDER, values![name => TEXT]).await?.try_get(0)?)
}

async fn migrate(client: &Client) -> Result<(), IndexError> {
    if version(client).await? == MIGRATIONS.len() {
        return Ok(());
    }
    client.execute_typed("SELECT pg_advisory_xact_lock($1)", values![LOCK => INT8]).await?;
    // Another replica may have made the tables while this one waited.
    let version = version(client).await?;
    if version > MIGRATIONS.len() {
        return Err(IndexError::Later { found: version, known: MIGRATIONS.len() });
    }
    if version == MIGRATIONS.len() {
        return Ok(());
    }
    // An administrator may have made the schema, so that the user need not be allowed to.
    let has_schema = client.query_typed_opt("SELECT 1 FROM pg_namespace WHERE nspname = 'larder'", &[]).await?;
    if has_schema.is_none() {
        client.batch_execute("CREATE SCHEMA larder").await?;
    }
    for migration in &MIGRATIONS[version..] {
        client.batch_execute(migration).await?;
    }
    let version = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    client.execute_typed(SET_VERSION, values![version => INT4]).await?;
    tracing::info!(version, "the tables of the index were made");
    Ok(())
}

/// Returns the version of the tables; 0 if there are none.
async fn version(client: &Client) -> Result<usize, IndexError> {
    if !client.query_typed_one(IS_THERE, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let version: i32 = client.query_typed_one(VERSION, &[]).await?.try_get(0)?;
    Ok(usize::try_from(version).unwrap_or(0))
}
