//! All that an index knows, table by table and page by page: to bring it into another index.

use rusqlite::{Params, Row as SqlRow, params};

use super::sqlite::{digest, read_digest};
use super::{IndexError, ListKey, Listing, ObjectEntry, Scope, Sqlite, TagEntry, TagKey, Timestamp, UrlEntry, Viewer};
use crate::oci::{Digest, MediaType};

/// The tables of an index. Pins are few: [`super::Index::pins`] has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Objects,
    Edges,
    Visibility,
    Manifests,
    Urls,
    Listings,
    Tags,
}

impl Table {
    /// All of them, in an order in which no row leads to what is not there yet: tags come last.
    pub const ALL: [Self; 7] =
        [Self::Objects, Self::Edges, Self::Visibility, Self::Manifests, Self::Urls, Self::Listings, Self::Tags];

    /// How many rows are read at once: of lists, which may be large, few.
    pub fn page(self) -> usize {
        match self {
            Self::Listings => 4,
            Self::Urls => 200,
            _ => 1_000,
        }
    }
}

/// A row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    Object {
        digest: Digest,
        entry: ObjectEntry,
        last_use: Timestamp,
        /// Whether it has a file here. An index of one Larder does not tell so of what is in the bucket.
        has_file: bool,
    },
    Edge {
        parent: Digest,
        child: Digest,
    },
    Visible {
        viewer: Viewer,
        digest: Digest,
    },
    Manifest {
        repository: String,
        name: String,
        digest: Digest,
        at: Timestamp,
    },
    Url {
        key: Digest,
        entry: UrlEntry,
    },
    Listing {
        key: ListKey,
        listing: Listing,
    },
    Tag {
        key: TagKey,
        entry: TagEntry,
    },
}

/// The key of a row, in whose order the rows of its table are. That of no row is before all.
#[derive(Clone, Debug, Default)]
pub struct RowKey {
    pub(super) texts: [String; 4],
    pub(super) raws: [Vec<u8>; 2],
    pub(super) scope: i16,
}

impl Row {
    /// Returns the key: the next page begins behind that of the last row.
    pub fn key(&self) -> RowKey {
        let raw = |digest: &Digest| digest.as_raw().to_vec();
        let text = |text: &str| text.to_owned();
        let none = RowKey::default;
        match self {
            Self::Object { digest, .. } => RowKey { raws: [raw(digest), Vec::new()], ..none() },
            Self::Edge { parent, child } => RowKey { raws: [raw(parent), raw(child)], ..none() },
            Self::Visible { viewer: Viewer { repository, scope }, digest } => RowKey {
                texts: [text(repository), String::new(), String::new(), String::new()],
                raws: [raw(digest), Vec::new()],
                scope: scope.number(),
            },
            Self::Manifest { repository, name, digest, .. } => RowKey {
                texts: [text(repository), text(name), String::new(), String::new()],
                raws: [raw(digest), Vec::new()],
                ..none()
            },
            Self::Url { key, entry } => RowKey { raws: [raw(key), entry.variant.to_vec()], ..none() },
            Self::Listing { key: ListKey { repository, name, page }, .. } => {
                RowKey { texts: [text(repository), text(name), text(page), String::new()], ..none() }
            }
            Self::Tag { key: TagKey { repository, name, tag, shelf }, .. } => {
                RowKey { texts: [text(repository), text(name), text(tag), text(shelf)], ..none() }
            }
        }
    }

    /// Returns the object without which the row means nothing.
    pub fn object(&self) -> Option<&Digest> {
        match self {
            Self::Object { digest, .. } | Self::Visible { digest, .. } | Self::Manifest { digest, .. } => Some(digest),
            Self::Edge { parent, .. } => Some(parent),
            Self::Url { entry, .. } => Some(&entry.digest),
            Self::Tag { entry, .. } => Some(&entry.digest),
            Self::Listing { .. } => None,
        }
    }
}

impl Sqlite {
    /// Returns at most `count` rows of a table behind a key, in order. Blocks.
    pub fn rows(&self, table: Table, behind: &RowKey, count: usize) -> Result<Vec<Row>, IndexError> {
        let ([repository, name, third, shelf], [raw, other], scope) = (&behind.texts, &behind.raws, behind.scope);
        match table {
            Table::Objects => self.select(
                "SELECT digest, size, media_type, stored_at, generation, last_use FROM objects WHERE digest > ?1 \
                 ORDER BY digest LIMIT ?2",
                params![raw, count],
                read_object,
            ),
            Table::Edges => self.select(
                "SELECT parent, child FROM edges WHERE (parent, child) > (?1, ?2) ORDER BY parent, child LIMIT ?3",
                params![raw, other, count],
                |row| Ok(Row::Edge { parent: read_digest(row)?, child: digest(row.get_ref(1)?)? }),
            ),
            Table::Visibility => self.select(
                "SELECT digest, repository, scope FROM visibility WHERE (digest, repository, scope) > (?1, ?2, ?3) \
                 ORDER BY digest, repository, scope LIMIT ?4",
                params![raw, repository, scope, count],
                read_visible,
            ),
            Table::Manifests => self.select(
                "SELECT repository, name, digest, noted_at FROM manifests \
                 WHERE (repository, name, digest) > (?1, ?2, ?3) ORDER BY repository, name, digest LIMIT ?4",
                params![repository, name, raw, count],
                |row| {
                    let (repository, name, at) = (row.get(0)?, row.get(1)?, Timestamp(row.get(3)?));
                    Ok(Row::Manifest { repository, name, digest: digest(row.get_ref(2)?)?, at })
                },
            ),
            Table::Urls => self.select(
                "SELECT key, variant, digest, head, stored_at FROM urls WHERE (key, variant) > (?1, ?2) \
                 ORDER BY key, variant LIMIT ?3",
                params![raw, other, count],
                read_url,
            ),
            Table::Listings => self.select(
                "SELECT repository, name, page, media_type, link, filters_applied, checked_at, body FROM listings \
                 WHERE (repository, name, page) > (?1, ?2, ?3) ORDER BY repository, name, page LIMIT ?4",
                params![repository, name, third, count],
                read_listing,
            ),
            Table::Tags => self.select(
                "SELECT repository, name, tag, shelf, digest, media_type, size, checked_at FROM tags \
                 WHERE (repository, name, tag, shelf) > (?1, ?2, ?3, ?4) ORDER BY repository, name, tag, shelf \
                 LIMIT ?5",
                params![repository, name, third, shelf, count],
                read_tag,
            ),
        }
    }

    fn select(
        &self,
        sql: &str,
        values: impl Params,
        row: impl FnMut(&SqlRow<'_>) -> rusqlite::Result<Row>,
    ) -> Result<Vec<Row>, IndexError> {
        self.read(|connection| connection.prepare_cached(sql)?.query_map(values, row)?.collect())
    }
}

fn read_object(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let entry = ObjectEntry {
        size: row.get(1)?,
        media_type: row.get::<_, Option<String>>(2)?.map(MediaType::new),
        stored_at: Timestamp(row.get(3)?),
        generation: row.get(4)?,
    };
    let has_file = entry.generation.is_none();
    Ok(Row::Object { digest: read_digest(row)?, entry, last_use: Timestamp(row.get(5)?), has_file })
}

fn read_visible(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let unknown = || rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Integer, "no scope".into());
    let scope = Scope::of_number(row.get(2)?).ok_or_else(unknown)?;
    Ok(Row::Visible { viewer: Viewer::new(row.get::<_, String>(1)?, scope), digest: read_digest(row)? })
}

fn read_url(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let entry = UrlEntry {
        variant: row.get(1)?,
        digest: digest(row.get_ref(2)?)?,
        head: row.get::<_, Vec<u8>>(3)?.into(),
        stored_at: Timestamp(row.get(4)?),
    };
    Ok(Row::Url { key: read_digest(row)?, entry })
}

fn read_listing(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let listing = Listing {
        media_type: row.get::<_, Option<String>>(3)?.map(MediaType::new),
        link: row.get(4)?,
        filters_applied: row.get(5)?,
        checked_at: Timestamp(row.get(6)?),
        body: row.get::<_, Vec<u8>>(7)?.into(),
    };
    Ok(Row::Listing { key: ListKey { repository: row.get(0)?, name: row.get(1)?, page: row.get(2)? }, listing })
}

fn read_tag(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let key = TagKey { repository: row.get(0)?, name: row.get(1)?, tag: row.get(2)?, shelf: row.get(3)? };
    let entry = TagEntry {
        digest: digest(row.get_ref(4)?)?,
        media_type: MediaType::new(row.get::<_, String>(5)?),
        size: row.get(6)?,
        checked_at: Timestamp(row.get(7)?),
    };
    Ok(Row::Tag { key, entry })
}
