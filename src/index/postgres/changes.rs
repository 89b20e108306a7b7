//! Changes that the other Larders have to hear of, each written in the transaction that makes it.
//!
//! Numbers of rows are given out before a transaction ends, so that a lower one may be seen after a higher one. Changes
//! are therefore read in the order of their transactions, and only those before the first transaction that still runs
//! (PostgreSQL, "Transaction ID and Snapshot Information Functions": `pg_snapshot_xmin`).

use tokio_postgres::Client;

use super::super::{Change, IndexError, Mark};
use super::values::values;
use crate::oci::Digest;

const PURGED: i16 = 0;
const PURGED_ALL: i16 = 1;
const PINS: i16 = 2;

const NOTE: &str = "INSERT INTO larder.changes (holder, kind, digests) VALUES ($1, $2, $3)";
/// Who was away for longer does not rely on them.
const FORGET: &str = "DELETE FROM larder.changes WHERE noted_at < now() - interval '1 day'";
const NOW: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text";
const CHANGES: &str = "SELECT transaction::text, id, holder, kind, digests FROM larder.changes \
    WHERE (transaction, id) > (($1)::xid8, $2) AND transaction < pg_snapshot_xmin(pg_current_snapshot()) \
    ORDER BY transaction, id LIMIT $3";
/// Most changes that are read at once, each with some hundred digests at most.
const AT_ONCE: i64 = 64;

/// Notes that something was taken out, and these objects with it.
pub async fn note_purge(client: &Client, holder: i32, digests: &[Digest]) -> Result<(), IndexError> {
    note(client, holder, PURGED, digests).await
}

/// Notes that all was taken out.
pub async fn note_purge_of_all(client: &Client, holder: i32) -> Result<(), IndexError> {
    note(client, holder, PURGED_ALL, &[]).await
}

/// Notes that pins have changed.
pub async fn note_pins(client: &Client, holder: i32) -> Result<(), IndexError> {
    note(client, holder, PINS, &[]).await
}

async fn note(client: &Client, holder: i32, kind: i16, digests: &[Digest]) -> Result<(), IndexError> {
    let raws: Vec<_> = digests.iter().map(Digest::as_raw).collect();
    client.execute_typed(NOTE, values![holder => INT4, kind => INT2, raws => BYTEA_ARRAY]).await?;
    Ok(())
}

/// Forgets changes that all have heard of.
pub async fn forget(client: &Client) -> Result<(), IndexError> {
    client.execute_typed(FORGET, &[]).await?;
    Ok(())
}

/// Returns the changes of others behind `since`, and how far changes are known then; without `since`, only the latter.
pub async fn since(client: &Client, holder: i32, since: Option<Mark>) -> Result<(Vec<Change>, Mark), IndexError> {
    let now: u64 = number(client.query_typed_one(NOW, &[]).await?.try_get(0)?)?;
    // Whatever comes, its transaction has not ended yet.
    let current = Mark { transaction: now.saturating_sub(1), number: i64::MAX };
    let Some(mut mark) = since else {
        return Ok((Vec::new(), current));
    };
    if mark.transaction > now {
        // The database counts anew: it was restored from a copy.
        return Ok((vec![Change::Unknown], current));
    }
    let transaction = mark.transaction.to_string();
    let list = values![transaction => TEXT, mark.number => INT8, AT_ONCE => INT8];
    let mut changes = Vec::new();
    for row in client.query_typed(CHANGES, list).await? {
        mark = Mark { transaction: number(row.try_get(0)?)?, number: row.try_get(1)? };
        if row.try_get::<_, i32>(2)? == holder {
            continue;
        }
        let raws: Vec<&[u8]> = row.try_get(4)?;
        changes.push(match row.try_get(3)? {
            PURGED => Change::Purged(raws.into_iter().filter_map(Digest::from_raw).collect()),
            PURGED_ALL => Change::PurgedAll,
            PINS => Change::Pins,
            // Of a later Larder.
            _ => Change::Unknown,
        });
    }
    Ok((changes, mark))
}

fn number(text: &str) -> Result<u64, IndexError> {
    text.parse().map_err(|_| IndexError::Server("a transaction has no number".to_owned()))
}
