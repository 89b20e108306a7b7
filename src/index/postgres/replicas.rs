//! Which replicas are alive, by the clock of the database: those of the replicas may be hours apart.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::super::{IndexError, Life, Replica, Timestamp};
use super::values::{signed, unsigned, values};
use crate::oci::Digest;

const ANNOUNCE: &str = "INSERT INTO larder.replicas (address, epoch, holder, alive_until) \
    VALUES ($1, $2, $4, now() + $3 * interval '1 millisecond') ON CONFLICT (address) DO UPDATE \
    SET epoch = excluded.epoch, holder = excluded.holder, alive_until = excluded.alive_until";
/// Another process may be at the address by now.
const LEAVE: &str = "DELETE FROM larder.replicas WHERE address = $1 AND epoch = $2";
/// What nobody has heard of for a day.
const FORGET: &str = "DELETE FROM larder.replicas WHERE alive_until < now() - interval '1 day'";
const ALIVE: &str = "SELECT address, epoch, (extract(epoch FROM alive_until) * 1000)::bigint, \
        (extract(epoch FROM alive_until - now()) * 1000)::bigint \
    FROM larder.replicas WHERE alive_until > now() ORDER BY address LIMIT $1";
const HOLDERS: &str = "SELECT r.address, r.epoch FROM larder.digests AS d JOIN larder.objects AS o USING (id) \
    JOIN larder.replicas AS r USING (holder) WHERE d.digest = $1 AND o.holder <> $2 AND r.alive_until > now() LIMIT $3";
/// Most replicas that are asked whether they still have an object.
const MOST_HOLDERS: i64 = 4;
/// Most replicas that are looked at: many times what a database serves.
const MOST: i64 = 4_096;

/// Says that a replica is alive for so long; with no time at all, that it leaves.
pub async fn announce(client: &Client, holder: i32, me: &Replica, alive: Duration) -> Result<(), IndexError> {
    let epoch = me.epoch.cast_signed();
    if alive.is_zero() {
        client.execute_typed(LEAVE, values![me.address => TEXT, epoch => INT8]).await?;
        return Ok(());
    }
    let milliseconds = signed(u64::try_from(alive.as_millis()).unwrap_or(u64::MAX));
    client
        .execute_typed(ANNOUNCE, values![me.address => TEXT, epoch => INT8, milliseconds => INT8, holder => INT4])
        .await?;
    client.execute_typed(FORGET, &[]).await?;
    Ok(())
}

/// Returns the replicas that are alive.
pub async fn alive(client: &Client) -> Result<Vec<Life>, IndexError> {
    let life = |row: &Row| {
        let (until, left) = (Timestamp(row.try_get(2)?), Duration::from_millis(unsigned(row, 3)?));
        Ok(Life { replica: replica(row)?, until, left })
    };
    client.query_typed(ALIVE, values![MOST => INT8]).await?.iter().map(life).collect()
}

/// Returns some of the other replicas that are alive and have an object stored.
pub async fn holders(client: &Client, holder: i32, digest: &Digest) -> Result<Vec<Replica>, IndexError> {
    let raw = digest.as_raw();
    let list = values![raw => BYTEA, holder => INT4, MOST_HOLDERS => INT8];
    client.query_typed(HOLDERS, list).await?.iter().map(replica).collect()
}

fn replica(row: &Row) -> Result<Replica, IndexError> {
    Ok(Replica { address: row.try_get(0)?, epoch: row.try_get::<_, i64>(1)?.cast_unsigned() })
}
