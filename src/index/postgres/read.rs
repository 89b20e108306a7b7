//! What is read for one answer.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio_postgres::Client;

use super::super::catalog::begin_behind;
use super::super::{
    ImageName, IndexError, ListKey, Listing, ObjectEntry, TagEntry, TagKey, TakeObject, Timestamp, UrlEntry,
    UsedObject, Viewer,
};
use super::values::{Mine, before_zero, digest, generation, raws, signed, unsigned, values};
use crate::oci::{Digest, MediaType, Reference};

pub(super) const TAG: &str = "SELECT digest, media_type, size, checked_at FROM larder.tags \
    WHERE repository = $1 AND name = $2 AND tag = $3 AND shelf = $4";

/// See [`super::super::Index::tag`]; the other functions likewise.
pub async fn tag(client: &Client, key: &TagKey) -> Result<Option<TagEntry>, IndexError> {
    let list = values![key.repository => TEXT, key.name => TEXT, key.tag => TEXT, key.shelf => TEXT];
    let Some(row) = client.query_typed_opt(TAG, list).await? else {
        return Ok(None);
    };
    Ok(Some(TagEntry {
        digest: digest(&row, 0)?,
        media_type: MediaType::new(row.try_get::<_, String>(1)?),
        size: unsigned(&row, 2)?,
        checked_at: Timestamp(row.try_get(3)?),
    }))
}

pub(super) const OBJECT: &str = "SELECT size, media_type, stored_at, generation FROM larder.digests JOIN larder.objects USING (id) \
    WHERE digest = $1 AND holder = ANY($2)";

pub async fn object(client: &Client, mine: Mine, object: &Digest) -> Result<Option<ObjectEntry>, IndexError> {
    let (raw, holders) = (object.as_raw(), mine.all());
    let mut found = None;
    for row in client.query_typed(OBJECT, values![raw => BYTEA, holders => INT4_ARRAY]).await? {
        let entry = ObjectEntry {
            size: unsigned(&row, 0)?,
            media_type: row.try_get::<_, Option<String>>(1)?.map(MediaType::new),
            stored_at: Timestamp(row.try_get(2)?),
            generation: generation(&row, 3)?,
        };
        found = Some(match found {
            None => entry,
            Some(other) => both(entry, other),
        });
    }
    Ok(found)
}

/// Returns what two rows say of an object: that of its file, and that of the bucket.
pub(super) fn both(one: ObjectEntry, other: ObjectEntry) -> ObjectEntry {
    let (uploaded, file) = if one.generation.is_some() { (one, other) } else { (other, one) };
    ObjectEntry {
        // A file may be damaged; what comes from the bucket has to have this size.
        size: uploaded.size,
        media_type: file.media_type.or(uploaded.media_type),
        stored_at: file.stored_at.min(uploaded.stored_at),
        generation: uploaded.generation,
    }
}

pub(super) const VISIBLE: &str = "SELECT 1 FROM larder.digests JOIN larder.visibility ON object = id \
    WHERE digest = $1 AND repository = $2 AND scope = $3";

pub async fn is_visible(client: &Client, viewer: &Viewer, object: &Digest) -> Result<bool, IndexError> {
    let scope = viewer.scope.number();
    let list = values![object.as_raw() => BYTEA, viewer.repository => TEXT, scope => INT2];
    Ok(client.query_typed_opt(VISIBLE, list).await?.is_some())
}

pub(super) const KNOWS_NAME: &str = "SELECT 1 FROM ( \
        SELECT $3::bytea AS digest UNION ALL SELECT above.digest FROM larder.digests AS this \
        JOIN larder.edges ON child = this.id JOIN larder.digests AS above ON above.id = parent WHERE this.digest = $3 \
    ) AS wanted WHERE EXISTS (SELECT 1 FROM larder.manifests AS m \
            WHERE m.repository = $1 AND m.name = $2 AND m.digest = wanted.digest) \
        OR EXISTS (SELECT 1 FROM larder.tags AS t \
            WHERE t.digest = wanted.digest AND t.repository = $1 AND t.name = $2) LIMIT 1";

pub async fn knows_name(client: &Client, repository: &str, name: &str, object: &Digest) -> Result<bool, IndexError> {
    let list = values![repository => TEXT, name => TEXT, object.as_raw() => BYTEA];
    Ok(client.query_typed_opt(KNOWS_NAME, list).await?.is_some())
}

/// Very many manifests may share a layer; a few are enough to find a name.
const NAMES: &str = "SELECT coalesce( \
        (SELECT t.repository || '/' || t.name || ':' || t.tag FROM larder.tags AS t \
            WHERE t.digest = ANY(above.digests) LIMIT 1), \
        (SELECT m.repository || '/' || m.name FROM larder.manifests AS m WHERE m.digest = ANY(above.digests) LIMIT 1)) \
    FROM unnest($1) WITH ORDINALITY AS w (digest, place) CROSS JOIN LATERAL ( \
        SELECT array_prepend(w.digest, ARRAY(SELECT above.digest FROM larder.digests AS this \
            JOIN larder.edges ON child = this.id JOIN larder.digests AS above ON above.id = parent \
            WHERE this.digest = w.digest LIMIT 8)) AS digests) AS above \
    ORDER BY w.place";

pub async fn names(client: &Client, objects: &[Digest]) -> Result<Vec<String>, IndexError> {
    let raws = raws(objects);
    let rows = client.query_typed(NAMES, values![raws => BYTEA_ARRAY]).await?;
    let names = rows.iter().filter_map(|row| row.try_get::<_, Option<String>>(0).transpose());
    Ok(names.collect::<Result<_, _>>()?)
}

const LISTING_BYTES: &str = "SELECT bytes FROM larder.listings WHERE repository = $1 AND name = $2 AND page = $3";
/// The body comes only if it takes no more than there is room for.
pub(super) const LISTING: &str = "SELECT media_type, link, filters_applied, checked_at, body FROM larder.listings \
    WHERE repository = $1 AND name = $2 AND page = $3 AND bytes <= $4";

pub async fn listing(client: &Client, key: &ListKey, room: u64) -> Result<Option<Listing>, IndexError> {
    let (page, room) = (key.page_hash(), signed(room));
    let list = values![key.repository => TEXT, key.name => TEXT, page => BYTEA, room => INT8];
    let Some(row) = client.query_typed_opt(LISTING, list).await? else {
        return match client.query_typed_opt(LISTING_BYTES, &list[..3]).await? {
            Some(row) => Err(IndexError::TooLarge(unsigned(&row, 0)?)),
            None => Ok(None),
        };
    };
    Ok(Some(Listing {
        media_type: row.try_get::<_, Option<String>>(0)?.map(MediaType::new),
        link: row.try_get(1)?,
        filters_applied: row.try_get(2)?,
        checked_at: Timestamp(row.try_get(3)?),
        body: Bytes::from(row.try_get::<_, Vec<u8>>(4)?),
    }))
}

pub(super) const URLS: &str =
    "SELECT digest, variant, head, stored_at FROM larder.urls WHERE key = $1 ORDER BY stored_at DESC";

pub async fn urls(client: &Client, key: &Digest) -> Result<Vec<UrlEntry>, IndexError> {
    let rows = client.query_typed(URLS, values![key.as_raw() => BYTEA]).await?;
    let entry = |row: &tokio_postgres::Row| {
        let variant: &[u8] = row.try_get(1)?;
        let no_hash = |_| IndexError::Server("a row of a URL has no hash where one belongs".to_owned());
        Ok(UrlEntry {
            digest: digest(row, 0)?,
            variant: variant.try_into().map_err(no_hash)?,
            head: Bytes::from(row.try_get::<_, Vec<u8>>(2)?),
            stored_at: Timestamp(row.try_get(3)?),
        })
    };
    rows.iter().map(entry).collect()
}

/// Returns the SQL of the first listed name of the repository `$1` behind a name.
fn next_name(behind: &str) -> String {
    let of = |table: &str| {
        format!(
            "(SELECT n.name FROM larder.{table} AS n WHERE n.repository = $1 AND n.name > {behind} \
                AND EXISTS (SELECT 1 FROM larder.digests AS d JOIN larder.visibility AS v ON v.object = d.id \
                    WHERE d.digest = n.digest AND v.repository = n.repository AND v.scope <> 1) \
              ORDER BY n.name LIMIT 1)"
        )
    };
    format!("SELECT least({}, {})", of("tags"), of("manifests"))
}

/// Returns at most `count` listed names of one repository behind `last`, by going from name to name.
async fn names_behind(client: &Client, repository: &str, last: &str, count: usize) -> Result<Vec<String>, IndexError> {
    let sql = format!(
        "WITH RECURSIVE found(name) AS (({}) UNION ALL SELECT ({}) FROM found WHERE found.name IS NOT NULL) \
         SELECT name FROM found WHERE name IS NOT NULL LIMIT $3",
        next_name("$2"),
        next_name("found.name")
    );
    let (last, count) = (before_zero(last), i64::try_from(count).unwrap_or(i64::MAX));
    let rows = client.query_typed(&sql, values![repository => TEXT, last => TEXT, count => INT8]).await?;
    let path = |row: &tokio_postgres::Row| Ok(format!("{repository}/{}", row.try_get::<_, &str>(0)?));
    rows.iter().map(path).collect()
}

pub async fn catalog(
    client: &Client,
    repositories: &[String],
    last: &str,
    count: usize,
) -> Result<Vec<String>, IndexError> {
    let last = before_zero(last);
    // All questions are sent at once.
    let asked = repositories.iter().filter_map(|repository| Some((repository, begin_behind(repository, last)?)));
    let found = asked.map(|(repository, begin)| names_behind(client, repository, begin, count));
    let mut names: Vec<_> = try_join_all(found).await?.into_iter().flatten().collect();
    names.sort_unstable();
    // Two repositories may have the same path.
    names.dedup();
    names.truncate(count);
    Ok(names)
}

const STORED: &str = "SELECT digest FROM larder.digests JOIN larder.objects USING (id) \
    WHERE digest = ANY($1) AND holder = ANY($2)";

pub async fn stored_of(client: &Client, mine: Mine, objects: &[Digest]) -> Result<HashSet<Digest>, IndexError> {
    let (raws, holders) = (raws(objects), mine.all());
    let rows = client.query_typed(STORED, values![raws => BYTEA_ARRAY, holders => INT4_ARRAY]).await?;
    rows.iter().map(|row| digest(row, 0)).collect()
}

pub async fn pins(client: &Client) -> Result<Vec<ImageName>, IndexError> {
    const SQL: &str = "SELECT repository, name, reference FROM larder.pins ORDER BY 1, 2, 3";
    let mut pins = Vec::new();
    for row in client.query_typed(SQL, &[]).await? {
        if let Ok(reference) = row.try_get::<_, &str>(2)?.parse::<Reference>() {
            pins.push(ImageName { repository: row.try_get(0)?, name: row.try_get(1)?, reference });
        }
    }
    Ok(pins)
}

const PIN: &str = "INSERT INTO larder.pins (repository, name, reference) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
const UNPIN: &str = "DELETE FROM larder.pins WHERE repository = $1 AND name = $2 AND reference = $3";

pub async fn set_pin(client: &Client, image: &ImageName, is_pinned: bool) -> Result<bool, IndexError> {
    let reference = image.reference.to_string();
    let list = values![image.repository => TEXT, image.name => TEXT, reference => TEXT];
    Ok(client.execute_typed(if is_pinned { PIN } else { UNPIN }, list).await? > 0)
}

const COMPARED: &str = "SELECT compared_with FROM larder.holders WHERE id = $1";
const SET_COMPARED: &str = "UPDATE larder.holders SET compared_with = $2 WHERE id = $1";

/// Returns the holder whose row tells with which bucket it was compared: all that share a bucket know of one comparison.
fn compared(mine: Mine) -> i32 {
    mine.bucket.unwrap_or(mine.own)
}

pub async fn compared_with(client: &Client, mine: Mine) -> Result<Option<String>, IndexError> {
    let holder = compared(mine);
    Ok(client.query_typed_one(COMPARED, values![holder => INT4]).await?.try_get(0)?)
}

pub async fn set_compared_with(client: &Client, mine: Mine, bucket: Option<&str>) -> Result<(), IndexError> {
    let holder = compared(mine);
    client.execute_typed(SET_COMPARED, values![holder => INT4, bucket => TEXT]).await?;
    Ok(())
}

const TAGS_NAMED: &str = "SELECT DISTINCT t.digest FROM larder.tags AS t \
    JOIN unnest($1, $2, $3) AS w (repository, name, tag) USING (repository, name, tag)";
const TAGS_OF: &str = "SELECT digest, name, tag, shelf FROM larder.tags \
    WHERE repository = $1 AND (name, tag, shelf) > ($2, $3, $4) ORDER BY name, tag, shelf LIMIT $5";

/// Returns the manifests of images that are pinned by name, and whether there are any such images.
pub async fn pinned_by_name(client: &Client) -> Result<(Vec<Digest>, bool), IndexError> {
    let named = pins(client).await?;
    let (mut roots, mut repositories, mut names, mut tags) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pin in &named {
        match &pin.reference {
            Reference::Digest(digest) => roots.push(*digest),
            Reference::Tag(tag) => {
                repositories.push(pin.repository.as_str());
                names.push(pin.name.as_str());
                tags.push(tag.as_str());
            }
        }
    }
    let list = values![repositories => TEXT_ARRAY, names => TEXT_ARRAY, tags => TEXT_ARRAY];
    for row in client.query_typed(TAGS_NAMED, list).await? {
        roots.push(digest(&row, 0)?);
    }
    Ok((roots, !named.is_empty()))
}

/// Returns a page of the tags of a repository behind `last`, with their manifests.
pub async fn tags_behind(client: &Client, last: &TagKey) -> Result<Vec<(TagKey, Digest)>, IndexError> {
    let count = i64::try_from(AT_ONCE).unwrap_or(i64::MAX);
    let list = values![last.repository => TEXT, last.name => TEXT, last.tag => TEXT, last.shelf => TEXT,
        count => INT8];
    let mut tags = Vec::new();
    for row in client.query_typed(TAGS_OF, list).await? {
        let (name, tag, shelf) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        tags.push((TagKey { repository: last.repository.clone(), shelf, name, tag }, digest(&row, 0)?));
    }
    Ok(tags)
}

const BELOW: &str = "WITH RECURSIVE below(id) AS (SELECT id FROM larder.digests WHERE digest = ANY($1) \
        UNION SELECT child FROM larder.edges JOIN below ON parent = below.id) \
    SELECT digest FROM below JOIN larder.digests USING (id)";

/// Returns the given manifests and all that they lead to, stored or not.
pub async fn below(client: &Client, roots: &[Digest]) -> Result<HashSet<Digest>, IndexError> {
    let mut found: HashSet<_> = roots.iter().copied().collect();
    let raws = raws(roots);
    for row in client.query_typed(BELOW, values![raws => BYTEA_ARRAY]).await? {
        found.insert(digest(&row, 0)?);
    }
    Ok(found)
}

/// Rows that are read at once where all are read.
const AT_ONCE: usize = 5_000;

/// Begins to read all objects. The cursor belongs to the transaction, so it is the same behind a pooler.
pub async fn begin_objects(client: &Client, mine: Mine, with_repositories: bool) -> Result<(), IndexError> {
    let repositories = if with_repositories {
        "coalesce((SELECT string_agg(repository, chr(10)) FROM larder.visibility WHERE object = o.id), '')"
    } else {
        "''"
    };
    let Mine { own, bucket } = mine;
    let objects = match bucket {
        None => format!(
            "SELECT id, size, last_use, FALSE AS is_uploaded, TRUE AS has_file \
             FROM larder.objects WHERE holder = {own}"
        ),
        Some(bucket) => format!(
            "SELECT id, coalesce(max(size) FILTER (WHERE holder = {bucket}), max(size)) AS size, \
                max(last_use) AS last_use, bool_or(holder = {bucket}) AS is_uploaded, \
                bool_or(holder = {own}) AS has_file \
             FROM larder.objects WHERE holder IN ({own}, {bucket}) GROUP BY id"
        ),
    };
    let sql = format!(
        "DECLARE objects NO SCROLL CURSOR FOR SELECT digest, size, last_use, {repositories}, is_uploaded, has_file \
         FROM ({objects}) AS o JOIN larder.digests USING (id) ORDER BY last_use"
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Gives the next objects to `each`. Returns whether there may be more.
pub async fn next_objects(client: &Client, each: &Mutex<TakeObject>) -> Result<bool, IndexError> {
    let rows = client.query_typed(&format!("FETCH {AT_ONCE} FROM objects"), &[]).await?;
    let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
    for row in &rows {
        each(UsedObject {
            digest: digest(row, 0)?,
            size: unsigned(row, 1)?,
            last_use: Timestamp(row.try_get(2)?),
            repositories: row.try_get(3)?,
            is_uploaded: row.try_get(4)?,
            has_file: row.try_get(5)?,
        });
    }
    Ok(rows.len() == AT_ONCE)
}

/// Compares the parts of the index: edges and visibility belong to digests that have a number. What does not is removed.
/// Returns how many rows that were.
pub async fn verify(client: &Client) -> Result<u64, IndexError> {
    const STRAY: [&str; 4] = [
        "DELETE FROM larder.edges WHERE NOT EXISTS (SELECT 1 FROM larder.digests WHERE id = parent) \
            OR NOT EXISTS (SELECT 1 FROM larder.digests WHERE id = child)",
        "DELETE FROM larder.visibility WHERE NOT EXISTS (SELECT 1 FROM larder.digests WHERE id = object)",
        "DELETE FROM larder.objects WHERE NOT EXISTS (SELECT 1 FROM larder.digests WHERE digests.id = objects.id)",
        "DELETE FROM larder.objects WHERE NOT EXISTS (SELECT 1 FROM larder.holders WHERE holders.id = holder)",
    ];
    let mut stray = 0;
    for sql in STRAY {
        stray += client.execute_typed(sql, &[]).await?;
    }
    for table in ["tags", "manifests", "listings", "urls", "pins"] {
        client.query_typed_one(&format!("SELECT count(*) FROM larder.{table}"), &[]).await?;
    }
    Ok(stray)
}

/// Asks the server anything at all.
pub async fn check(client: &Client) -> Result<(), IndexError> {
    client.query_typed_one("SELECT version FROM larder.version", &[]).await?;
    Ok(())
}

const BYTES: &str = "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class \
    WHERE relnamespace = to_regnamespace('larder') AND relkind = 'r'";

/// Returns the bytes of disk that the tables take on the server, with their indexes.
pub async fn bytes(client: &Client) -> Result<u64, IndexError> {
    unsigned(&client.query_typed_one(BYTES, &[]).await?, 0)
}
