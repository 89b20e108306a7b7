//! Keeps the index within its bounds. The rows of a table are counted anew when as many writes have come as the bound
//! may be exceeded by: a counter in a row of its own would make all writers wait for each other.

use std::time::Duration;

use tokio_postgres::Client;

use super::super::urls::ROW;
use super::super::{Bounds, IndexError};
use super::server::{Server, Work};
use super::values::{signed, values};

/// Rows of tags or of names that go in one step.
const ROWS: i64 = 2_000;
/// Lists or URLs that go in one step.
const LARGE_ROWS: i64 = 100;
/// How long a step may take.
const STEP: Duration = Duration::from_secs(10);
/// The fewest writes between two counts.
const FEWEST: u64 = 32;
/// Bytes of the smallest row of a list or a URL.
const SMALLEST: u64 = 512;

/// When to count next.
#[derive(Default)]
pub struct Counts {
    /// Writes since the last count.
    written: u64,
}

impl Counts {
    /// Notes that so many writes were made.
    pub fn wrote(&mut self, count: u64) {
        self.written += count;
    }

    /// If so much was written that there may be too much, counts, and removes what is too much, in steps.
    pub async fn keep_within(&mut self, server: &Server, bounds: &Bounds) {
        // A list or a URL may be of any size, so these are counted in rows of the smallest.
        let rows = bounds.names.min(bounds.lists / SMALLEST).min(bounds.urls / SMALLEST);
        if self.written < (rows / 16).clamp(FEWEST, 4_096) {
            return;
        }
        self.written = 0;
        for kind in [Kind::Tags, Kind::Manifests, Kind::Listings, Kind::Urls] {
            if let Err(error) = drop_surplus(server, kind, bounds).await {
                tracing::debug!(%error, "the index cannot be kept within its bounds now");
            }
        }
    }
}

/// What is bounded.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Tags,
    Manifests,
    Listings,
    Urls,
}

impl Kind {
    fn table(self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::Manifests => "manifests",
            Self::Listings => "listings",
            Self::Urls => "urls",
        }
    }

    /// Returns the SQL that counts what there is.
    fn total(self) -> String {
        match self {
            Self::Tags | Self::Manifests => format!("SELECT count(*) FROM larder.{}", self.table()),
            Self::Listings => "SELECT coalesce(sum(bytes), 0)::bigint FROM larder.listings".to_owned(),
            Self::Urls => format!("SELECT coalesce(sum(length(head) + {ROW}), 0)::bigint FROM larder.urls"),
        }
    }

    fn bound(self, bounds: &Bounds) -> u64 {
        match self {
            Self::Tags | Self::Manifests => bounds.names,
            Self::Listings => bounds.lists,
            Self::Urls => bounds.urls,
        }
    }

    /// Removes a step of the oldest; `surplus` is how much is to go at most.
    fn drop_some(self, client: &Client, surplus: i64) -> Work<'_, i64> {
        match self {
            Self::Tags | Self::Manifests => Box::pin(drop_rows(client, self.table(), surplus)),
            Self::Listings => Box::pin(drop_lists(client, surplus)),
            Self::Urls => Box::pin(drop_urls(client, surplus)),
        }
    }
}

/// Removes what there is beyond the bound, and a sixteenth more, so that this does not come with each write.
async fn drop_surplus(server: &Server, kind: Kind, bounds: &Bounds) -> Result<(), IndexError> {
    let sql = kind.total();
    let total = server
        .read(STEP, move |client| {
            let sql = sql.clone();
            Box::pin(async move { Ok(client.query_typed_one(&sql, &[]).await?.try_get::<_, i64>(0)?) })
        })
        .await?;
    let bound = signed(kind.bound(bounds));
    if total <= bound {
        return Ok(());
    }
    tracing::info!(kind = kind.table(), total, bound, "the index has too much of a kind; the oldest of it is dropped");
    let mut surplus = total - (bound - bound / 16);
    while surplus > 0 {
        let gone = server.change(STEP, move |client| kind.drop_some(client, surplus)).await?;
        if gone == 0 {
            // All that is left is pinned.
            break;
        }
        surplus -= gone;
    }
    Ok(())
}

/// Removes the oldest rows of the repository with the most rows. Names with a pinned image stay.
async fn drop_rows(client: &Client, table: &'static str, surplus: i64) -> Result<i64, IndexError> {
    let (key, age) = match table {
        "tags" => ("repository, name, tag, shelf", "checked_at"),
        _ => ("repository, name, digest", "noted_at"),
    };
    let largest = format!("SELECT repository FROM larder.{table} GROUP BY 1 ORDER BY count(*) DESC");
    let delete = format!(
        "DELETE FROM larder.{table} WHERE ({key}) IN (SELECT {key} FROM larder.{table} AS t WHERE repository = $1 \
            AND NOT EXISTS (SELECT 1 FROM larder.pins WHERE pins.repository = t.repository AND pins.name = t.name) \
         ORDER BY {age} LIMIT $2 FOR UPDATE SKIP LOCKED)"
    );
    for row in client.query_typed(&largest, &[]).await? {
        let (repository, count): (String, _) = (row.try_get(0)?, surplus.min(ROWS));
        let gone = client.execute_typed(&delete, values![repository => TEXT, count => INT8]).await?;
        if gone > 0 {
            return Ok(signed(gone));
        }
    }
    Ok(0)
}

const LARGEST: &str =
    "SELECT repository, name, sum(bytes)::bigint FROM larder.listings GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 2";
const PAGES: &str = "SELECT page, bytes FROM larder.listings WHERE repository = $1 AND name = $2 \
    ORDER BY is_part DESC, checked_at LIMIT $3 FOR UPDATE SKIP LOCKED";
const DROP_PAGES: &str = "DELETE FROM larder.listings WHERE repository = $1 AND name = $2 AND page = ANY($3)";

/// Removes lists from the name with the most bytes, until another has the most: its parts before the whole list, and
/// the oldest first. So a name loses what it has beyond an equal share, and none drives out the lists of others.
async fn drop_lists(client: &Client, surplus: i64) -> Result<i64, IndexError> {
    let largest = client.query_typed(LARGEST, &[]).await?;
    let Some(first) = largest.first() else {
        return Ok(0);
    };
    let (repository, name, bytes): (String, String, i64) = (first.try_get(0)?, first.try_get(1)?, first.try_get(2)?);
    let next: i64 = largest.get(1).map_or(Ok(0), |row| row.try_get(2))?;
    let wanted = surplus.min(bytes - next);
    let (mut pages, mut freed) = (Vec::<Vec<u8>>::new(), 0);
    for row in client.query_typed(PAGES, values![repository => TEXT, name => TEXT, LARGE_ROWS => INT8]).await? {
        if freed > 0 && freed >= wanted {
            break;
        }
        pages.push(row.try_get(0)?);
        freed += row.try_get::<_, i64>(1)?;
    }
    client.execute_typed(DROP_PAGES, values![repository => TEXT, name => TEXT, pages => BYTEA_ARRAY]).await?;
    Ok(freed)
}

const OLDEST: &str = "SELECT key, variant, length(head)::bigint FROM larder.urls ORDER BY stored_at LIMIT $1 \
    FOR UPDATE SKIP LOCKED";
const DROP_URLS: &str = "DELETE FROM larder.urls WHERE (key, variant) IN (SELECT * FROM unnest($1, $2))";

/// Removes the oldest answers of URLs.
async fn drop_urls(client: &Client, surplus: i64) -> Result<i64, IndexError> {
    let (mut keys, mut variants, mut freed) = (Vec::<Vec<u8>>::new(), Vec::<Vec<u8>>::new(), 0);
    for row in client.query_typed(OLDEST, values![LARGE_ROWS => INT8]).await? {
        if freed >= surplus {
            break;
        }
        keys.push(row.try_get(0)?);
        variants.push(row.try_get(1)?);
        freed += row.try_get::<_, i64>(2)? + signed(ROW);
    }
    client.execute_typed(DROP_URLS, values![keys => BYTEA_ARRAY, variants => BYTEA_ARRAY]).await?;
    Ok(freed)
}
