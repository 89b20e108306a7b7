//! A [`Batch`] as SQL: a statement for each table, with a list of values for each column.
//!
//! Two replicas may write at once. So no statement writes what another has read: rows are put there or changed in one
//! step (`ON CONFLICT`). Rows are locked in the order of their keys, and tables always in the same order, so that two
//! transactions do not wait for each other in a circle; where they do all the same, the server breaks one off, and it is
//! done anew.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;

use super::super::IndexError;
use super::super::bounds::MAX_VISIBLE;
use super::super::names::RESOLUTION;
use super::super::urls::MAX_VARIANTS;
use super::batch::{Batch, ObjectChange, Put, Raw};
use super::changes::{OfBucket, note_of_bucket, note_tags};
use super::values::{Mine, signed, values, without_zeros};

/// The numbers of digests.
type Numbers = HashMap<Raw, i64>;

/// How often digests are looked up again that another transaction has removed meanwhile.
const LOOKUPS: usize = 4;

const NUMBERS: &str = "SELECT digest, id FROM larder.digests WHERE digest = ANY($1) ORDER BY digest FOR KEY SHARE";
const NUMBER: &str = "INSERT INTO larder.digests (digest) SELECT * FROM unnest($1) ON CONFLICT DO NOTHING";
const PUT_OBJECTS: &str = "INSERT INTO larder.objects AS known (id, holder, size, media_type, stored_at, last_use, \
        generation) \
    SELECT id, $1, size, media_type, stored_at, last_use, generation \
    FROM unnest($2, $3, $4, $5, $6, $7) AS w (id, size, media_type, stored_at, last_use, generation) \
    ON CONFLICT (id, holder) DO UPDATE SET size = excluded.size, \
        media_type = coalesce(excluded.media_type, known.media_type), last_use = excluded.last_use, \
        generation = excluded.generation";
/// The same, of an object that another index had.
const TAKE_IN_OBJECTS: &str = "INSERT INTO larder.objects AS known (id, holder, size, media_type, stored_at, last_use, \
        generation) \
    SELECT id, $1, size, media_type, stored_at, last_use, generation \
    FROM unnest($2, $3, $4, $5, $6, $7) AS w (id, size, media_type, stored_at, last_use, generation) \
    ON CONFLICT (id, holder) DO UPDATE SET media_type = coalesce(known.media_type, excluded.media_type), \
        last_use = greatest(known.last_use, excluded.last_use), \
        generation = coalesce(known.generation, excluded.generation)";
/// Whoever uses an object uses it in the bucket, too; and of what was stored anew, the bucket's row learns what it is. All
/// rows in one statement: where each locked some of them in an order of its own, two would wait for each other. A clock
/// that is wrong neither takes back what others have used nor keeps an object for ever.
const USE_OBJECTS: &str = "WITH locked AS MATERIALIZED (SELECT o.id, o.holder, w.at, w.media_type \
        FROM unnest($3, $4, $5, $6) AS w (id, at, media_type, is_stored) JOIN larder.objects AS o USING (id) \
        WHERE o.holder = ANY($1) AND (o.holder <> $2 OR NOT w.is_stored) \
        ORDER BY o.id, o.holder FOR NO KEY UPDATE OF o) \
    UPDATE larder.objects AS o SET media_type = coalesce(locked.media_type, o.media_type), \
        last_use = CASE WHEN o.holder = $2 THEN locked.at \
            ELSE greatest(o.last_use, least(locked.at, larder.microseconds() / 1000)) END \
    FROM locked WHERE o.id = locked.id AND o.holder = locked.holder";
const PUT_EDGES: &str = "INSERT INTO larder.edges (parent, child) SELECT * FROM unnest($1, $2) ON CONFLICT DO NOTHING";
const PUT_VISIBLE: &str = "INSERT INTO larder.visibility (object, scope, repository) SELECT * FROM unnest($1, $2, $3) \
    ON CONFLICT DO NOTHING RETURNING object";
/// If an object is visible to very many, another viewer has to ask its upstream again; the new ones stay.
const HIDE_OTHERS: &str = "DELETE FROM larder.visibility AS v USING ( \
        SELECT object, scope, repository, row_number() OVER (PARTITION BY object ORDER BY (object, scope, repository) \
            IN (SELECT * FROM unnest($1, $2, $3)) DESC, random()) AS place \
        FROM larder.visibility WHERE object = ANY($1)) AS ranked \
    WHERE ranked.place > $4 AND (v.object, v.scope, v.repository) = (ranked.object, ranked.scope, ranked.repository)";
const PUT_TAGS: &str = "INSERT INTO larder.tags (repository, name, tag, shelf, digest, media_type, size, checked_at) \
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) \
    ON CONFLICT (repository, name, tag, shelf) DO UPDATE SET digest = excluded.digest, \
        media_type = excluded.media_type, size = excluded.size, checked_at = excluded.checked_at";
const DROP_TAGS: &str = "DELETE FROM larder.tags WHERE (repository, name, tag, shelf) IN ( \
    SELECT t.repository, t.name, t.tag, t.shelf FROM larder.tags AS t \
        JOIN unnest($1, $2, $3, $4) AS w (repository, name, tag, shelf) USING (repository, name, tag, shelf) \
        ORDER BY 1, 2, 3, 4 FOR UPDATE OF t)";
const PUT_MANIFESTS: &str = "INSERT INTO larder.manifests AS known (repository, name, digest, noted_at) \
    SELECT * FROM unnest($1, $2, $3, $4) \
    ON CONFLICT (repository, name, digest) DO UPDATE SET noted_at = excluded.noted_at \
        WHERE known.noted_at < excluded.noted_at - $5";
const PUT_LISTINGS: &str = "INSERT INTO larder.listings \
        (repository, name, page, is_part, checked_at, bytes, media_type, link, filters_applied, body, path) \
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
    ON CONFLICT (repository, name, page) DO UPDATE SET is_part = excluded.is_part, \
        checked_at = excluded.checked_at, bytes = excluded.bytes, media_type = excluded.media_type, \
        link = excluded.link, filters_applied = excluded.filters_applied, body = excluded.body, path = excluded.path";
const PUT_URLS: &str = "INSERT INTO larder.urls (key, variant, digest, head, stored_at) \
    SELECT * FROM unnest($1, $2, $3, $4, $5) \
    ON CONFLICT (key, variant) DO UPDATE SET digest = excluded.digest, head = excluded.head, \
        stored_at = excluded.stored_at";
const DROP_URLS: &str = "DELETE FROM larder.urls WHERE (key, variant) IN ( \
    SELECT u.key, u.variant FROM larder.urls AS u JOIN unnest($1, $2) AS w (key, variant) USING (key, variant) \
        ORDER BY 1, 2 FOR UPDATE OF u)";
/// Drops the oldest answers of URLs that have too many.
const DROP_VARIANTS: &str = "DELETE FROM larder.urls AS u USING ( \
        SELECT key, variant, row_number() OVER (PARTITION BY key ORDER BY stored_at DESC) AS place \
        FROM larder.urls WHERE key = ANY($1)) AS ranked \
    WHERE ranked.place > $2 AND (u.key, u.variant) = (ranked.key, ranked.variant)";

/// Makes the writes of a batch, in a transaction that is open. Those about uploads are [`super::uploads`]'.
pub async fn apply(client: &Client, mine: Mine, batch: &Batch) -> Result<(), IndexError> {
    if !batch.dropped.is_empty() {
        // Locked once, by the stronger lock: two that both have the weaker one would wait for each other.
        let dropped = batch.dropped.iter().map(Vec::as_slice).collect();
        return drop_objects(client, mine.own, dropped).await;
    }
    let numbers = numbers(client, batch).await?;
    put_objects(client, mine, batch, &numbers).await?;
    put_edges(client, batch, &numbers).await?;
    put_visible(client, batch, &numbers).await?;
    put_tags(client, batch).await?;
    note_tags(client, mine.own, &batch.told).await?;
    put_manifests(client, batch).await?;
    put_urls(client, batch).await?;
    put_listings(client, batch).await
}

/// Returns the numbers of the batch's digests, and makes those that are needed. Their rows stay until the end of the
/// transaction.
async fn numbers(client: &Client, batch: &Batch) -> Result<Numbers, IndexError> {
    let needed = batch.numbered();
    let mut wanted: Vec<&[u8]> = needed.iter().copied().chain(batch.held()).map(Vec::as_slice).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut found = Numbers::new();
    for lookup in 0..LOOKUPS {
        if wanted.is_empty() {
            break;
        }
        let rows = client.query_typed(NUMBERS, values![wanted => BYTEA_ARRAY]).await?;
        for row in &rows {
            found.insert(row.try_get(0)?, row.try_get(1)?);
        }
        // What is left is what is needed and missing: others may number it, or remove it, at the same time.
        wanted = needed.iter().filter(|digest| !found.contains_key(**digest)).map(|digest| digest.as_slice()).collect();
        if lookup + 1 < LOOKUPS && !wanted.is_empty() {
            client.execute_typed(NUMBER, values![wanted => BYTEA_ARRAY]).await?;
        }
    }
    if wanted.is_empty() { Ok(found) } else { Err(IndexError::Server("digests cannot be numbered".to_owned())) }
}

async fn put_objects(client: &Client, mine: Mine, batch: &Batch, numbers: &Numbers) -> Result<(), IndexError> {
    // In the order of their numbers, in which rows are locked.
    let mut changes: Vec<_> =
        batch.objects.iter().filter_map(|(digest, change)| Some((*numbers.get(digest)?, change))).collect();
    changes.sort_unstable_by_key(|(id, _)| *id);
    let puts = changes.iter().filter_map(|(id, change)| Some((*id, change.put.as_ref()?, None, *change)));
    let sql = if batch.is_of_another { TAKE_IN_OBJECTS } else { PUT_OBJECTS };
    put_rows(client, sql, mine.own, puts.collect()).await?;
    if let Some(bucket) = mine.bucket {
        let found = changes.iter().filter_map(|(id, change)| {
            let (put, generation) = change.found.as_ref()?;
            Some((*id, put, Some(generation.to_string()), *change))
        });
        put_rows(client, sql, bucket, found.collect()).await?;
        let found = batch.objects.iter().filter_map(|(digest, change)| Some((digest, &change.found.as_ref()?.0)));
        let uploaded = found.map(|(digest, put)| (digest.clone(), signed(put.size))).collect();
        note_of_bucket(client, mine.own, bucket, OfBucket { uploaded, ..OfBucket::default() }).await?;
    }
    // The rows of another index say themselves when each was used.
    if batch.is_of_another { Ok(()) } else { use_objects(client, mine, &changes).await }
}

/// A row of an object: its number, what it is, its upload, and what else becomes of the object.
type Row<'a> = (i64, &'a Put, Option<String>, &'a ObjectChange);

/// Puts rows of a holder.
async fn put_rows(client: &Client, sql: &str, holder: i32, rows: Vec<Row<'_>>) -> Result<(), IndexError> {
    if rows.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = rows.iter().map(|(id, ..)| *id).collect();
    let sizes: Vec<_> = rows.iter().map(|(_, put, ..)| signed(put.size)).collect();
    let types: Vec<_> = rows.iter().map(|(_, put, ..)| put.media_type.as_deref()).collect();
    let stored: Vec<_> = rows.iter().map(|(_, put, ..)| put.stored_at).collect();
    let used: Vec<_> = rows.iter().map(|(_, put, _, change)| change.last_use.unwrap_or(put.stored_at)).collect();
    let uploads: Vec<_> = rows.iter().map(|(_, _, generation, _)| generation.as_deref()).collect();
    let list = values![holder => INT4, ids => INT8_ARRAY, sizes => INT8_ARRAY, types => TEXT_ARRAY,
        stored => INT8_ARRAY, used => INT8_ARRAY, uploads => TEXT_ARRAY];
    client.execute_typed(sql, list).await?;
    Ok(())
}

/// Notes that objects were used, or stored anew, in the rows that were not just put.
async fn use_objects(client: &Client, mine: Mine, changes: &[(i64, &ObjectChange)]) -> Result<(), IndexError> {
    let is_meant = |change: &ObjectChange| change.found.is_none() && (change.put.is_none() || mine.bucket.is_some());
    let used = changes.iter().filter(|(_, change)| is_meant(change));
    let used: Vec<_> = used.filter_map(|(id, change)| Some((*id, change.last_use?, change.put.as_ref()))).collect();
    if used.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = used.iter().map(|(id, ..)| *id).collect();
    let at: Vec<_> = used.iter().map(|(_, at, _)| *at).collect();
    let types: Vec<_> = used.iter().map(|(_, _, put)| put.and_then(|put| put.media_type.as_deref())).collect();
    let is_stored: Vec<_> = used.iter().map(|(_, _, put)| put.is_some()).collect();
    let holders = mine.all();
    let list = values![holders => INT4_ARRAY, mine.own => INT4, ids => INT8_ARRAY, at => INT8_ARRAY,
        types => TEXT_ARRAY, is_stored => BOOL_ARRAY];
    client.execute_typed(USE_OBJECTS, list).await?;
    Ok(())
}

async fn put_edges(client: &Client, batch: &Batch, numbers: &Numbers) -> Result<(), IndexError> {
    let edges = batch.edges.iter();
    let mut edges: Vec<_> =
        edges.filter_map(|(parent, child)| Some((*numbers.get(parent)?, *numbers.get(child)?))).collect();
    if edges.is_empty() {
        return Ok(());
    }
    edges.sort_unstable();
    let (parents, children): (Vec<_>, Vec<_>) = edges.into_iter().unzip();
    client.execute_typed(PUT_EDGES, values![parents => INT8_ARRAY, children => INT8_ARRAY]).await?;
    Ok(())
}

async fn put_visible(client: &Client, batch: &Batch, numbers: &Numbers) -> Result<(), IndexError> {
    let visible = batch.visible.iter();
    let mut visible: Vec<_> = visible
        .filter_map(|(digest, scope, repository)| Some((*numbers.get(digest)?, repository.as_str(), *scope)))
        .collect();
    if visible.is_empty() {
        return Ok(());
    }
    visible.sort_unstable();
    let objects: Vec<_> = visible.iter().map(|(object, ..)| *object).collect();
    let scopes: Vec<_> = visible.iter().map(|(.., scope)| *scope).collect();
    let repositories: Vec<_> = visible.iter().map(|(_, repository, _)| *repository).collect();
    let list = values![objects => INT8_ARRAY, scopes => INT2_ARRAY, repositories => TEXT_ARRAY];
    if client.query_typed(PUT_VISIBLE, list).await?.is_empty() {
        return Ok(());
    }
    let most = i64::from(MAX_VISIBLE);
    let list = values![objects => INT8_ARRAY, scopes => INT2_ARRAY, repositories => TEXT_ARRAY, most => INT8];
    client.execute_typed(HIDE_OTHERS, list).await?;
    Ok(())
}

/// Returns a statement that puts rows; of rows of another index, only those that are newer than what is here.
fn newer<'a>(batch: &Batch, sql: &'a str, table: &str, time: &str) -> Cow<'a, str> {
    match batch.is_of_another {
        true => Cow::Owned(format!("{sql} WHERE larder.{table}.{time} < excluded.{time}")),
        false => Cow::Borrowed(sql),
    }
}

async fn put_tags(client: &Client, batch: &Batch) -> Result<(), IndexError> {
    let puts: Vec<_> = batch.tags.iter().filter_map(|(place, value)| Some((place, value.as_ref()?))).collect();
    let drops: Vec<_> = batch.tags.iter().filter(|(_, value)| value.is_none()).map(|(place, _)| place).collect();
    if !puts.is_empty() {
        let (places, of): (Vec<_>, Vec<_>) = puts.into_iter().unzip();
        let [repositories, names, tags, shelves] = columns(&places);
        let digests: Vec<_> = of.iter().map(|value| value.digest.as_slice()).collect();
        let types: Vec<_> = of.iter().map(|value| value.media_type.as_str()).collect();
        let sizes: Vec<_> = of.iter().map(|value| signed(value.size)).collect();
        let checked: Vec<_> = of.iter().map(|value| value.checked_at).collect();
        let list = values![repositories => TEXT_ARRAY, names => TEXT_ARRAY, tags => TEXT_ARRAY, shelves => TEXT_ARRAY,
            digests => BYTEA_ARRAY, types => TEXT_ARRAY, sizes => INT8_ARRAY, checked => INT8_ARRAY];
        client.execute_typed(&newer(batch, PUT_TAGS, "tags", "checked_at"), list).await?;
    }
    if !drops.is_empty() {
        let [repositories, names, tags, shelves] = columns(&drops);
        let list = values![repositories => TEXT_ARRAY, names => TEXT_ARRAY, tags => TEXT_ARRAY, shelves => TEXT_ARRAY];
        client.execute_typed(DROP_TAGS, list).await?;
    }
    Ok(())
}

/// Returns the columns of the keys of tags.
fn columns<'a>(places: &[&'a super::batch::TagPlace]) -> [Vec<&'a str>; 4] {
    [
        places.iter().map(|place| place.0.as_str()).collect(),
        places.iter().map(|place| place.1.as_str()).collect(),
        places.iter().map(|place| place.2.as_str()).collect(),
        places.iter().map(|place| place.3.as_str()).collect(),
    ]
}

async fn put_manifests(client: &Client, batch: &Batch) -> Result<(), IndexError> {
    if batch.manifests.is_empty() {
        return Ok(());
    }
    let repositories: Vec<_> = batch.manifests.keys().map(|(repository, ..)| repository.as_str()).collect();
    let names: Vec<_> = batch.manifests.keys().map(|(_, name, _)| name.as_str()).collect();
    let digests: Vec<_> = batch.manifests.keys().map(|(.., digest)| digest.as_slice()).collect();
    let noted: Vec<_> = batch.manifests.values().copied().collect();
    let list = values![repositories => TEXT_ARRAY, names => TEXT_ARRAY, digests => BYTEA_ARRAY, noted => INT8_ARRAY,
        RESOLUTION => INT8];
    client.execute_typed(PUT_MANIFESTS, list).await?;
    Ok(())
}

async fn put_urls(client: &Client, batch: &Batch) -> Result<(), IndexError> {
    let puts: Vec<_> = batch.urls.iter().filter_map(|((key, _), entry)| Some((key, entry.as_ref()?))).collect();
    if !puts.is_empty() {
        let keys: Vec<_> = puts.iter().map(|(key, _)| key.as_slice()).collect();
        let variants: Vec<_> = puts.iter().map(|(_, entry)| &entry.variant[..]).collect();
        let digests: Vec<_> = puts.iter().map(|(_, entry)| entry.digest.as_raw()).collect();
        let heads: Vec<_> = puts.iter().map(|(_, entry)| &entry.head[..]).collect();
        let stored: Vec<_> = puts.iter().map(|(_, entry)| entry.stored_at.0).collect();
        let list = values![keys => BYTEA_ARRAY, variants => BYTEA_ARRAY, digests => BYTEA_ARRAY,
            heads => BYTEA_ARRAY, stored => INT8_ARRAY];
        client.execute_typed(&newer(batch, PUT_URLS, "urls", "stored_at"), list).await?;
    }
    let drops: Vec<_> = batch.urls.iter().filter(|(_, entry)| entry.is_none()).map(|(place, _)| place).collect();
    if !drops.is_empty() {
        let keys: Vec<_> = drops.iter().map(|(key, _)| key.as_slice()).collect();
        let variants: Vec<_> = drops.iter().map(|(_, variant)| &variant[..]).collect();
        client.execute_typed(DROP_URLS, values![keys => BYTEA_ARRAY, variants => BYTEA_ARRAY]).await?;
    }
    if !puts.is_empty() {
        let keys: Vec<_> = puts.iter().map(|(key, _)| key.as_slice()).collect();
        let most = i64::try_from(MAX_VARIANTS).unwrap_or(i64::MAX);
        client.execute_typed(DROP_VARIANTS, values![keys => BYTEA_ARRAY, most => INT8]).await?;
    }
    Ok(())
}

async fn put_listings(client: &Client, batch: &Batch) -> Result<(), IndexError> {
    if batch.listings.is_empty() {
        return Ok(());
    }
    let (places, lists): (Vec<_>, Vec<_>) = batch.listings.iter().unzip();
    let repositories: Vec<_> = places.iter().map(|(repository, ..)| repository.as_str()).collect();
    let names: Vec<_> = places.iter().map(|(_, name, _)| name.as_str()).collect();
    let pages: Vec<_> = places.iter().map(|(.., page)| page.as_slice()).collect();
    let paths: Vec<_> = lists.iter().map(|(key, _)| without_zeros(&key.page)).collect();
    let parts: Vec<_> = lists.iter().map(|(key, _)| key.is_part()).collect();
    let checked: Vec<_> = lists.iter().map(|(_, listing)| listing.checked_at.0).collect();
    let bytes: Vec<_> = lists.iter().map(|(key, listing)| signed(listing.weight(key))).collect();
    let types: Vec<_> = lists.iter().map(|(_, list)| list.media_type.as_ref().map(|kind| kind.as_str())).collect();
    let links: Vec<_> = lists.iter().map(|(_, listing)| listing.link.as_deref()).collect();
    let filters: Vec<_> = lists.iter().map(|(_, listing)| listing.filters_applied.as_deref()).collect();
    let bodies: Vec<_> = lists.iter().map(|(_, listing)| &listing.body[..]).collect();
    let list = values![repositories => TEXT_ARRAY, names => TEXT_ARRAY, pages => BYTEA_ARRAY, parts => BOOL_ARRAY,
        checked => INT8_ARRAY, bytes => INT8_ARRAY, types => TEXT_ARRAY, links => TEXT_ARRAY, filters => TEXT_ARRAY,
        bodies => BYTEA_ARRAY, paths => TEXT_ARRAY];
    client.execute_typed(&newer(batch, PUT_LISTINGS, "listings", "checked_at"), list).await?;
    Ok(())
}

/// The statement that locks the numbers of digests, so that nothing new refers to them meanwhile.
pub const LOCK: &str = "SELECT id, digest FROM larder.digests WHERE digest = ANY($1) ORDER BY digest FOR UPDATE";
const DROP_OBJECTS: &str = "DELETE FROM larder.objects WHERE id = ANY($1) AND holder = $2";
const HELD: &str = "SELECT DISTINCT id FROM larder.objects WHERE id = ANY($1)";

/// Forgets objects whose files are gone: all about them, unless another store has them. A tag of the object would lead
/// to nothing.
pub async fn drop_objects(client: &Client, holder: i32, dropped: Vec<&[u8]>) -> Result<(), IndexError> {
    let rows = client.query_typed(LOCK, values![dropped => BYTEA_ARRAY]).await?;
    let mut ids = Numbers::new();
    for row in &rows {
        ids.insert(row.try_get(1)?, row.try_get(0)?);
    }
    let all: Vec<_> = ids.values().copied().collect();
    client.execute_typed(DROP_OBJECTS, values![all => INT8_ARRAY, holder => INT4]).await?;
    let rows = client.query_typed(HELD, values![all => INT8_ARRAY]).await?;
    let held = rows.iter().map(|row| row.try_get(0)).collect::<Result<BTreeSet<i64>, _>>()?;
    let is_gone = |digest: &&[u8]| ids.get(*digest).is_none_or(|id| !held.contains(id));
    let gone: Vec<_> = dropped.into_iter().filter(is_gone).collect();
    for table in ["tags", "manifests", "urls"] {
        let sql = format!("DELETE FROM larder.{table} WHERE digest = ANY($1)");
        client.execute_typed(&sql, values![gone => BYTEA_ARRAY]).await?;
    }
    let ids: Vec<_> = all.into_iter().filter(|id| !held.contains(id)).collect();
    forget(client, &ids).await
}

const HIDE: &str = "DELETE FROM larder.visibility WHERE object = ANY($1)";
const DROP_EDGES: &str = "DELETE FROM larder.edges WHERE parent = ANY($1) RETURNING child";
const LOCK_IDLE: &str = "SELECT id FROM larder.digests WHERE id = ANY($1) ORDER BY digest FOR UPDATE SKIP LOCKED";
/// Whether nothing needs a number.
macro_rules! unneeded {
    () => {
        "NOT EXISTS (SELECT 1 FROM larder.objects WHERE objects.id = digests.id) \
         AND NOT EXISTS (SELECT 1 FROM larder.visibility WHERE visibility.object = digests.id) \
         AND NOT EXISTS (SELECT 1 FROM larder.edges WHERE edges.parent = digests.id) \
         AND NOT EXISTS (SELECT 1 FROM larder.edges WHERE edges.child = digests.id)"
    };
}
/// A statement of its own behind [`LOCK_IDLE`]: it sees what those have written that had the rows before.
const SWEEP: &str = concat!("DELETE FROM larder.digests WHERE id = ANY($1) AND ", unneeded!());
const UNNEEDED: &str = concat!(
    "SELECT max(id), coalesce(array_agg(id) FILTER (WHERE is_unneeded), '{}') FROM (SELECT id, ",
    unneeded!(),
    " AS is_unneeded FROM larder.digests WHERE id > $1 ORDER BY id LIMIT $2) AS page"
);
/// Numbers that are looked at in one step.
const LOOKED_AT: i64 = 10_000;

/// Forgets who may see these objects and what they refer to, and the numbers that nothing needs any more.
pub async fn forget(client: &Client, ids: &[i64]) -> Result<(), IndexError> {
    if ids.is_empty() {
        return Ok(());
    }
    client.execute_typed(HIDE, values![ids => INT8_ARRAY]).await?;
    let rows = client.query_typed(DROP_EDGES, values![ids => INT8_ARRAY]).await?;
    let children = rows.iter().map(|row| row.try_get(0)).collect::<Result<BTreeSet<i64>, _>>()?;
    let unneeded: Vec<_> = children.into_iter().chain(ids.iter().copied()).collect();
    sweep(client, &unneeded).await
}

/// Removes those of these numbers that nothing needs.
pub async fn sweep(client: &Client, ids: &[i64]) -> Result<(), IndexError> {
    let rows = client.query_typed(LOCK_IDLE, values![ids => INT8_ARRAY]).await?;
    let idle = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    client.execute_typed(SWEEP, values![idle => INT8_ARRAY]).await?;
    Ok(())
}

/// Removes the next numbers behind `last` that nothing needs: such that were in use when their last row went. Returns
/// the last number that was looked at; `None`: there was none.
pub async fn sweep_behind(client: &Client, last: i64) -> Result<Option<i64>, IndexError> {
    let row = client.query_typed_one(UNNEEDED, values![last => INT8, LOOKED_AT => INT8]).await?;
    let (last, unneeded): (_, Vec<i64>) = (row.try_get(0)?, row.try_get(1)?);
    if !unneeded.is_empty() {
        sweep(client, &unneeded).await?;
    }
    Ok(last)
}
