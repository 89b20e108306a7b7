//! Stores and buckets that no Larder has used for a month: what is known of them goes, and with that the tags of what only
//! they had. A Larder that comes back later takes in its files and keys anew, by its comparisons.

use tokio_postgres::Client;

use super::super::IndexError;
use super::apply::drop_objects;
use super::server::{LONG, Server};
use super::values::values;

/// One that was not used for so long; each says once an hour that it is ([`super::schema`]), and whoever comes back waits
/// for the step that runs. A bucket of which a part is forgotten has to be compared anew, before keys without a row go.
const UNSEEN: &str = "UPDATE larder.holders SET compared_with = NULL \
    WHERE id = (SELECT id FROM larder.holders WHERE seen_at < now() - interval '30 days' ORDER BY id LIMIT 1) \
        AND seen_at < now() - interval '30 days' RETURNING id, name";
const ROWS: &str = "SELECT digest FROM larder.objects JOIN larder.digests USING (id) WHERE holder = $1 LIMIT $2";
const FORGET: &str = "DELETE FROM larder.holders WHERE id = $1";
/// Objects that are forgotten in one transaction.
const STEP: i64 = 1_000;

/// Forgets who was not there for long. What fails is done by the next call.
pub async fn forget(server: &Server) {
    loop {
        match server.change(LONG, |client| Box::pin(step(client))).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(%error, "stores that nobody uses any more cannot be forgotten yet");
                return;
            }
        }
    }
}

/// Forgets some objects of one, or one that has none. Returns whether there may be more to do.
pub(super) async fn step(client: &Client) -> Result<bool, IndexError> {
    let Some(row) = client.query_typed_opt(UNSEEN, &[]).await? else {
        return Ok(false);
    };
    let (holder, name) = (row.try_get::<_, i32>(0)?, row.try_get::<_, String>(1)?);
    let rows = client.query_typed(ROWS, values![holder => INT4, STEP => INT8]).await?;
    let raws = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<&[u8]>, _>>()?;
    if !raws.is_empty() {
        drop_objects(client, holder, raws).await?;
        return Ok(true);
    }
    client.execute_typed(FORGET, values![holder => INT4]).await?;
    tracing::info!(name, "a store that nobody has used for 30 days is forgotten");
    Ok(true)
}
