//! Leases: who does what only one may do at a time, by the clock of the database. One statement takes one; nothing depends
//! on the connection by which it was taken.

use std::time::Duration;

use tokio_postgres::Client;

use super::super::{Holder, IndexError};
use super::values::{signed, values};

/// A statement that waits for the row sees it afterwards as it is then; its `now()` is only earlier.
const TAKE: &str = "INSERT INTO larder.leases AS held (name, holder, until) \
    VALUES ($1, $2, now() + $3 * interval '1 millisecond') ON CONFLICT (name) DO UPDATE \
    SET holder = excluded.holder, until = excluded.until WHERE held.holder = excluded.holder OR held.until <= now()";
const GIVE_BACK: &str = "DELETE FROM larder.leases WHERE name = $1 AND holder = $2";
const WHO: &str = "SELECT (SELECT r.address FROM larder.replicas AS r WHERE r.holder = l.holder AND r.alive_until > now() \
    ORDER BY r.alive_until DESC LIMIT 1) FROM larder.leases AS l WHERE l.name = $1";

/// See [`super::super::Index::take_lease`]. A Larder that begins anew in the same directory has what it had before.
pub async fn take(client: &Client, own: i32, name: &str, time: Duration) -> Result<Holder, IndexError> {
    if time.is_zero() {
        client.execute_typed(GIVE_BACK, values![name => TEXT, own => INT4]).await?;
        return Ok(Holder::Other(None));
    }
    let milliseconds = signed(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    if client.execute_typed(TAKE, values![name => TEXT, own => INT4, milliseconds => INT8]).await? > 0 {
        return Ok(Holder::Me);
    }
    let row = client.query_typed_opt(WHO, values![name => TEXT]).await?;
    Ok(Holder::Other(row.map(|row| row.try_get(0)).transpose()?.flatten()))
}
