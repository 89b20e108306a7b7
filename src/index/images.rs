//! Cached content, seen as images: names and tags, and the objects that they consist of.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::sqlite::{digest, read_digest};
use super::{Image, ImageName, IndexError, Sqlite, TagKey, Timestamp};
use crate::oci::{Digest, MediaType, Reference};

/// Most rows and objects that are looked at for one page. A page ends before it is full if few of these are images.
const LOOKED_AT: usize = 200_000;

/// A page of the list of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePage {
    pub images: Vec<Image>,
    /// The reference behind which the next page begins; `None` on the last page.
    pub next: Option<String>,
}

impl Sqlite {
    /// Returns at most `count` images whose manifest is stored, in the order of their references, behind the reference
    /// `last`. Manifests that were requested by digest are listed, too, unless a tag of the same name or another stored
    /// manifest leads to them. Blocks.
    pub fn images(&self, last: &str, count: usize) -> Result<ImagePage, IndexError> {
        self.images_within(last, count, LOOKED_AT)
    }

    fn images_within(&self, last: &str, count: usize, most: usize) -> Result<ImagePage, IndexError> {
        self.read(|connection| {
            let (mut tags, mut manifests) = (connection.prepare_cached(TAGS)?, connection.prepare_cached(MANIFESTS)?);
            let (mut tags, mut manifests) = (tags.query(params![last])?, manifests.query(params![last])?);
            let (mut tag, mut manifest) = (next_row(&mut tags)?, next_row(&mut manifests)?);
            let (mut page, mut sizes) = (ImagePage::default(), Sizes::new(connection));
            let mut rows = 0;
            loop {
                // Takes the tag or the manifest, whichever comes first.
                let is_tag = match (&tag, &manifest) {
                    (None, None) => return Ok(page),
                    (Some(tag), Some(manifest)) => tag.reference <= manifest.reference,
                    (tag, _) => tag.is_some(),
                };
                let (next, others) = if is_tag { (&mut tag, &mut tags) } else { (&mut manifest, &mut manifests) };
                let Some(mut row) = std::mem::replace(next, next_row(others)?) else {
                    return Ok(page);
                };
                rows += 1;
                // The same tag on other shelves: the newest row whose manifest is stored is shown.
                while let Some(other) = next.take_if(|next| next.is_same_tag(&row)) {
                    rows += 1;
                    row = row.newer(other);
                    *next = next_row(others)?;
                }
                let reference = row.reference.clone();
                if let Some(image) = row.into_image(&mut sizes)? {
                    page.images.push(image);
                }
                if page.images.len() >= count || rows + sizes.looked_at > most {
                    page.next = Some(reference);
                    return Ok(page);
                }
            }
        })
    }

    /// Returns the manifests of the given images, as far as they are known. Blocks.
    pub fn manifests_of(&self, images: &[ImageName]) -> Result<Vec<Digest>, IndexError> {
        let mut manifests = Vec::with_capacity(images.len());
        for ImageName { repository, name, reference } in images {
            match reference {
                Reference::Digest(digest) => manifests.push(*digest),
                Reference::Tag(tag) => {
                    const SQL: &str =
                        "SELECT DISTINCT digest FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3";
                    let found = self.read(|connection| {
                        let mut statement = connection.prepare_cached(SQL)?;
                        let rows = statement.query_map(params![repository, name, tag.as_str()], read_digest)?;
                        rows.collect::<rusqlite::Result<Vec<_>>>()
                    });
                    manifests.extend(found?);
                }
            }
        }
        Ok(manifests)
    }

    /// Gives all tags of a repository and their manifests to `each`. Blocks.
    pub fn tags_of(&self, repository: &str, mut each: impl FnMut(TagKey, Digest)) -> Result<(), IndexError> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT digest, name, tag, shelf FROM tags WHERE repository = ?1")?;
            let mut rows = statement.query(params![repository])?;
            while let Some(row) = rows.next()? {
                let (name, tag, shelf) = (row.get(1)?, row.get(2)?, row.get(3)?);
                each(TagKey { repository: repository.to_owned(), shelf, name, tag }, read_digest(row)?);
            }
            Ok(())
        })
    }

    /// Returns the given manifests and all that they lead to, stored or not. Blocks.
    pub fn below(&self, roots: Vec<Digest>) -> Result<HashSet<Digest>, IndexError> {
        self.read(|connection| below(connection, roots))
    }
}

const CHILDREN: &str = "SELECT child FROM edges WHERE parent = ?1";

fn below(connection: &Connection, roots: Vec<Digest>) -> rusqlite::Result<HashSet<Digest>> {
    let mut children = connection.prepare_cached(CHILDREN)?;
    let mut found = HashSet::new();
    let mut open = roots;
    while let Some(object) = open.pop() {
        if found.insert(object) {
            let mut rows = children.query(params![object.as_raw()])?;
            while let Some(row) = rows.next()? {
                open.push(read_digest(row)?);
            }
        }
    }
    Ok(found)
}

/// Tags, and whether their manifests are stored, in the order of the references of images.
const TAGS: &str = "SELECT tags.repository || '/' || tags.name || ':' || tags.tag, tags.repository, tags.name, tags.digest, \
        tags.media_type, tags.checked_at, objects.last_use \
    FROM tags LEFT JOIN objects ON objects.digest = tags.digest \
    WHERE tags.repository || '/' || tags.name || ':' || tags.tag > ?1 \
    ORDER BY tags.repository || '/' || tags.name || ':' || tags.tag";

/// The same for manifests. Manifests that a tag of the name or a stored manifest leads to count as not stored.
const MANIFESTS: &str = "SELECT manifests.repository || '/' || manifests.name \
        || CASE length(manifests.digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(manifests.digest)), \
        manifests.repository, manifests.name, manifests.digest, objects.media_type, NULL, \
        CASE WHEN EXISTS (SELECT 1 FROM tags WHERE tags.digest = manifests.digest \
            AND tags.repository = manifests.repository AND tags.name = manifests.name) \
        OR EXISTS (SELECT 1 FROM edges JOIN objects AS above ON above.digest = edges.parent \
            WHERE edges.child = manifests.digest) THEN NULL ELSE objects.last_use END \
    FROM manifests LEFT JOIN objects ON objects.digest = manifests.digest \
    WHERE manifests.repository || '/' || manifests.name \
        || CASE length(manifests.digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(manifests.digest)) > ?1 \
    ORDER BY manifests.repository || '/' || manifests.name \
        || CASE length(manifests.digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(manifests.digest))";

/// A row of [`TAGS`] or [`MANIFESTS`].
struct Row {
    reference: String,
    repository: String,
    name: String,
    digest: Digest,
    media_type: Option<String>,
    checked_at: Option<i64>,
    /// Set if the image is to be shown.
    last_use: Option<i64>,
}

impl Row {
    fn is_same_tag(&self, other: &Self) -> bool {
        self.checked_at.is_some()
            && (&self.reference, &self.repository) == (&other.reference, &other.repository)
            && other.checked_at.is_some()
    }

    /// Returns the row that is shown, of two rows of one tag.
    fn newer(self, other: Self) -> Self {
        let rank = |row: &Self| (row.last_use.is_some(), row.checked_at);
        if rank(&other) > rank(&self) { other } else { self }
    }

    /// Returns the image, if it is to be shown.
    fn into_image(self, sizes: &mut Sizes<'_>) -> rusqlite::Result<Option<Image>> {
        let Some(last_use) = self.last_use else {
            return Ok(None);
        };
        let (objects, bytes) = sizes.below(self.digest)?;
        Ok(Some(Image {
            reference: self.reference,
            repository: self.repository,
            name: self.name,
            digest: self.digest,
            media_type: self.media_type.map(MediaType::new),
            objects,
            bytes,
            checked_at: self.checked_at.map(Timestamp),
            last_use: Timestamp(last_use),
        }))
    }
}

fn next_row(rows: &mut rusqlite::Rows<'_>) -> rusqlite::Result<Option<Row>> {
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    Ok(Some(Row {
        reference: row.get(0)?,
        repository: row.get(1)?,
        name: row.get(2)?,
        digest: digest(row.get_ref(3)?)?,
        media_type: row.get(4)?,
        checked_at: row.get(5)?,
        last_use: row.get(6)?,
    }))
}

/// Counts the stored objects of images, and their bytes.
struct Sizes<'a> {
    connection: &'a Connection,
    /// The results, for images that other tags lead to as well.
    known: HashMap<Digest, (u64, u64)>,
    /// Objects that were looked at in all.
    looked_at: usize,
}

impl<'a> Sizes<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { connection, known: HashMap::new(), looked_at: 0 }
    }

    fn below(&mut self, manifest: Digest) -> rusqlite::Result<(u64, u64)> {
        if let Some(known) = self.known.get(&manifest) {
            return Ok(*known);
        }
        let mut object =
            self.connection.prepare_cached("SELECT size, media_type IS NULL FROM objects WHERE digest = ?1")?;
        let mut children = self.connection.prepare_cached(CHILDREN)?;
        let (mut objects, mut bytes) = (0, 0);
        let (mut found, mut open) = (HashSet::new(), vec![manifest]);
        while let Some(next) = open.pop() {
            if !found.insert(next) {
                continue;
            }
            let row =
                object.query_row(params![next.as_raw()], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, bool>(1)?)));
            let row = row.optional()?;
            if let Some((size, _)) = row {
                objects += 1;
                bytes += size;
            }
            // An object that came as a blob leads nowhere, and most objects of an image are blobs.
            if !row.is_some_and(|(_, is_blob)| is_blob) {
                let mut rows = children.query(params![next.as_raw()])?;
                while let Some(row) = rows.next()? {
                    open.push(read_digest(row)?);
                }
            }
        }
        self.looked_at += found.len();
        self.known.insert(manifest, (objects, bytes));
        Ok((objects, bytes))
    }
}

#[cfg(test)]
mod tests;
