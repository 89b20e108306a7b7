//! All rows of a table, page by page; see [`super::super::Index::rows`]. And rows of another index.

use std::collections::HashMap;

use tokio_postgres::{Client, Row as SqlRow};

use super::super::{
    IndexError, ListKey, Listing, ObjectEntry, Row, RowKey, Scope, Table, TagEntry, TagKey, Timestamp, UrlEntry,
    Viewer, Write,
};
use super::batch::Batch;
use super::read::both;
use super::values::{Mine, digest, generation, unsigned, values};
use crate::oci::{Digest, MediaType};

const OBJECTS: &str = "SELECT page.digest, o.size, o.media_type, o.stored_at, o.generation, o.last_use, o.holder \
    FROM (SELECT d.id, d.digest FROM larder.digests AS d WHERE d.digest > $1 \
        AND EXISTS (SELECT 1 FROM larder.objects AS held WHERE held.id = d.id AND held.holder = ANY($2)) \
        ORDER BY d.digest LIMIT $3) AS page \
    JOIN larder.objects AS o ON o.id = page.id AND o.holder = ANY($2) ORDER BY page.digest";
const EDGES: &str = "SELECT above.digest, below.digest FROM larder.digests AS above \
    JOIN larder.edges ON parent = above.id JOIN larder.digests AS below ON below.id = child \
    WHERE above.digest >= $1 AND (above.digest > $1 OR below.digest > $2) \
    ORDER BY above.digest, below.digest LIMIT $3";
const VISIBILITY: &str = "SELECT d.digest, v.repository, v.scope FROM larder.digests AS d \
    JOIN larder.visibility AS v ON v.object = d.id \
    WHERE d.digest >= $1 AND (d.digest > $1 OR (v.repository, v.scope) > ($2, $3)) \
    ORDER BY d.digest, v.repository, v.scope LIMIT $4";
const MANIFESTS: &str = "SELECT digest, repository, name, noted_at FROM larder.manifests \
    WHERE (repository, name, digest) > ($1, $2, $3) ORDER BY repository, name, digest LIMIT $4";
const URLS: &str = "SELECT key, variant, digest, head, stored_at FROM larder.urls \
    WHERE (key, variant) > ($1, $2) ORDER BY key, variant LIMIT $3";
/// Lists of which an earlier version has kept only a hash of the page cannot be told to another index: they are learnt
/// again.
const LISTINGS: &str = "SELECT repository, name, path, media_type, link, filters_applied, checked_at, body \
    FROM larder.listings WHERE path IS NOT NULL AND (repository, name, path) > ($1, $2, $3) \
    ORDER BY repository, name, path LIMIT $4";
const TAGS: &str = "SELECT digest, repository, name, tag, shelf, media_type, size, checked_at FROM larder.tags \
    WHERE (repository, name, tag, shelf) > ($1, $2, $3, $4) ORDER BY repository, name, tag, shelf LIMIT $5";

/// Returns at most `count` rows of a table behind a key, in order.
pub async fn rows(
    client: &Client,
    mine: Mine,
    table: Table,
    behind: &RowKey,
    count: usize,
) -> Result<Vec<Row>, IndexError> {
    let ([repository, name, third, shelf], [raw, other]) = (&behind.texts, &behind.raws);
    let (scope, count, holders) = (behind.scope, i64::try_from(count).unwrap_or(i64::MAX), mine.all());
    let found = match table {
        Table::Objects => {
            client.query_typed(OBJECTS, values![raw => BYTEA, holders => INT4_ARRAY, count => INT8]).await?
        }
        Table::Edges => client.query_typed(EDGES, values![raw => BYTEA, other => BYTEA, count => INT8]).await?,
        Table::Visibility => {
            let list = values![raw => BYTEA, repository => TEXT, scope => INT2, count => INT8];
            client.query_typed(VISIBILITY, list).await?
        }
        Table::Manifests => {
            let list = values![repository => TEXT, name => TEXT, raw => BYTEA, count => INT8];
            client.query_typed(MANIFESTS, list).await?
        }
        Table::Urls => client.query_typed(URLS, values![raw => BYTEA, other => BYTEA, count => INT8]).await?,
        Table::Listings => {
            let list = values![repository => TEXT, name => TEXT, third => TEXT, count => INT8];
            client.query_typed(LISTINGS, list).await?
        }
        Table::Tags => {
            let list = values![repository => TEXT, name => TEXT, third => TEXT, shelf => TEXT, count => INT8];
            client.query_typed(TAGS, list).await?
        }
    };
    match table {
        Table::Objects => objects(&found, mine),
        _ => found.iter().map(|row| read(table, row)).collect(),
    }
}

/// Reads objects, each from the row of its file, that of the bucket, or both.
fn objects(found: &[SqlRow], mine: Mine) -> Result<Vec<Row>, IndexError> {
    let (mut rows, mut places) = (Vec::<Row>::new(), HashMap::<Digest, usize>::new());
    for row in found {
        let digest = digest(row, 0)?;
        let entry = ObjectEntry {
            size: unsigned(row, 1)?,
            media_type: row.try_get::<_, Option<String>>(2)?.map(MediaType::new),
            stored_at: Timestamp(row.try_get(3)?),
            generation: generation(row, 4)?,
        };
        let (last_use, is_file) = (Timestamp(row.try_get(5)?), row.try_get::<_, i32>(6)? == mine.own);
        match places.get(&digest).and_then(|&place| rows.get_mut(place)) {
            Some(Row::Object { entry: known, last_use: last, has_file, .. }) => {
                *known = both(known.clone(), entry);
                *last = last_use.max(*last);
                *has_file |= is_file;
            }
            _ => {
                places.insert(digest, rows.len());
                rows.push(Row::Object { digest, entry, last_use, has_file: is_file });
            }
        }
    }
    Ok(rows)
}

fn read(table: Table, row: &SqlRow) -> Result<Row, IndexError> {
    Ok(match table {
        Table::Edges => Row::Edge { parent: digest(row, 0)?, child: digest(row, 1)? },
        Table::Visibility => {
            let unknown = || IndexError::Server("a row has no scope where one belongs".to_owned());
            let scope = Scope::of_number(row.try_get(2)?).ok_or_else(unknown)?;
            Row::Visible { viewer: Viewer::new(row.try_get::<_, String>(1)?, scope), digest: digest(row, 0)? }
        }
        Table::Manifests => Row::Manifest {
            repository: row.try_get(1)?,
            name: row.try_get(2)?,
            digest: digest(row, 0)?,
            at: Timestamp(row.try_get(3)?),
        },
        Table::Urls => {
            let no_hash = |_| IndexError::Server("a row of a URL has no hash where one belongs".to_owned());
            let entry = UrlEntry {
                variant: row.try_get::<_, &[u8]>(1)?.try_into().map_err(no_hash)?,
                digest: digest(row, 2)?,
                head: row.try_get::<_, Vec<u8>>(3)?.into(),
                stored_at: Timestamp(row.try_get(4)?),
            };
            Row::Url { key: digest(row, 0)?, entry }
        }
        Table::Listings => {
            let key = ListKey { repository: row.try_get(0)?, name: row.try_get(1)?, page: row.try_get(2)? };
            let listing = Listing {
                media_type: row.try_get::<_, Option<String>>(3)?.map(MediaType::new),
                link: row.try_get(4)?,
                filters_applied: row.try_get(5)?,
                checked_at: Timestamp(row.try_get(6)?),
                body: row.try_get::<_, Vec<u8>>(7)?.into(),
            };
            Row::Listing { key, listing }
        }
        Table::Objects | Table::Tags => {
            let key = TagKey {
                repository: row.try_get(1)?,
                name: row.try_get(2)?,
                tag: row.try_get(3)?,
                shelf: row.try_get(4)?,
            };
            let media_type = MediaType::new(row.try_get::<_, String>(5)?);
            let (size, checked_at) = (unsigned(row, 6)?, Timestamp(row.try_get(7)?));
            Row::Tag { key, entry: TagEntry { digest: digest(row, 0)?, media_type, size, checked_at } }
        }
    })
}

/// Returns rows of another index as a batch, which leaves what is here and newer.
pub fn batch(rows: Vec<Row>) -> Batch {
    let mut batch = Batch { is_of_another: true, ..Batch::default() };
    for row in rows {
        match row {
            Row::Object { digest, entry, last_use, has_file } => {
                if has_file {
                    let entry = ObjectEntry { generation: None, ..entry.clone() };
                    batch.add(&Write::Object { digest, entry });
                }
                if entry.generation.is_some() {
                    batch.add(&Write::Object { digest, entry });
                }
                batch.add(&Write::Used { digest, at: last_use });
            }
            Row::Edge { parent, child } => batch.add(&Write::Edges { parent, children: vec![child] }),
            Row::Visible { viewer, digest } => batch.add(&Write::Visible { viewer, digest }),
            Row::Manifest { repository, name, digest, at } => {
                batch.add(&Write::Manifest { repository, name, digest, at });
            }
            Row::Url { key, entry } => batch.add(&Write::Url { key, entry }),
            Row::Listing { key, listing } => batch.add(&Write::Listing { key, listing }),
            Row::Tag { key, entry } => batch.add(&Write::Tag { key, entry }),
        }
    }
    batch
}
