//! Cached content, seen as images: names and tags, and the objects that they consist of.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::sqlite::{digest, read_digest};
use super::{Image, ImageName, IndexError, Sqlite, TagKey, Timestamp};
use crate::oci::{Digest, MediaType, Reference};

/// Most rows and objects that are looked at for one page. A page ends before it is full if few of these are images.
const LOOKED_AT: usize = 200_000;

/// Most rows that are looked at to find the images that were used last, and most objects to find the largest.
const SORTED: usize = 15_000;

/// A page of the list of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePage {
    pub images: Vec<Image>,
    /// The reference behind which the next page begins; `None` on the last page.
    pub next: Option<String>,
}

/// Which images come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageOrder {
    #[default]
    Reference,
    LastUse,
    Size,
}

/// Which images to find.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSearch {
    /// A part of the reference, in any case of letters; if empty, all.
    pub text: String,
    pub order: ImageOrder,
    /// In the order of references: the reference behind which to begin.
    pub last: String,
    /// Most images.
    pub count: usize,
}

impl Sqlite {
    /// Returns at most `count` images whose manifest is stored, in the order of their references, behind the reference
    /// `last`. Manifests that were requested by digest are listed, too, unless a tag of the same name or another stored
    /// manifest leads to them. Blocks.
    pub fn images(&self, last: &str, count: usize) -> Result<ImagePage, IndexError> {
        self.images_within(last, "", count, LOOKED_AT)
    }

    /// Finds images. In another order than that of references, there is one page, and `next` is set if not all were
    /// looked at: then others may come before these. Blocks.
    pub fn find_images(&self, search: &ImageSearch) -> Result<ImagePage, IndexError> {
        let ImageSearch { text, order, last, count } = search;
        match order {
            ImageOrder::Reference => self.images_within(last, text, *count, LOOKED_AT),
            ImageOrder::LastUse => self.used_last(text, *count, SORTED),
            ImageOrder::Size => {
                let ImagePage { mut images, next } = self.images_within("", text, usize::MAX, SORTED)?;
                images.sort_by_key(|image| std::cmp::Reverse(image.bytes));
                images.truncate(*count);
                Ok(ImagePage { images, next })
            }
        }
    }

    fn images_within(&self, last: &str, text: &str, count: usize, most: usize) -> Result<ImagePage, IndexError> {
        self.read(|connection| {
            let (mut tags, mut manifests) = (connection.prepare_cached(TAGS)?, connection.prepare_cached(MANIFESTS)?);
            let mut rows = Merged::new(tags.query(params![last, text])?, manifests.query(params![last, text])?)?;
            let (mut page, mut sizes) = (ImagePage::default(), Sizes::new(connection));
            while let Some(row) = rows.next()? {
                let reference = row.reference.clone();
                if let Some(image) = row.into_image(&mut sizes)? {
                    page.images.push(image);
                }
                if page.images.len() >= count || rows.looked_at + sizes.looked_at > most {
                    page.next = Some(reference);
                    return Ok(page);
                }
            }
            Ok(page)
        })
    }

    fn used_last(&self, text: &str, count: usize, most: usize) -> Result<ImagePage, IndexError> {
        self.read(|connection| {
            let (mut tags, mut manifests) = (connection.prepare_cached(TAGS)?, connection.prepare_cached(MANIFESTS)?);
            let mut rows = Merged::new(tags.query(params!["", text])?, manifests.query(params!["", text])?)?;
            let (mut found, mut next) = (Vec::new(), None);
            let shorten = |found: &mut Vec<Row>| {
                found.sort_by_key(|row| std::cmp::Reverse(row.last_use));
                found.truncate(count);
            };
            while let Some(row) = rows.next()? {
                if rows.looked_at > most {
                    next = Some(row.reference);
                    break;
                }
                found.extend(Some(row).filter(|row| row.last_use.is_some()));
                if found.len() > 2 * count {
                    shorten(&mut found);
                }
            }
            shorten(&mut found);
            let mut sizes = Sizes::new(connection);
            let images = found.into_iter().filter_map(|row| row.into_image(&mut sizes).transpose());
            Ok(ImagePage { images: images.collect::<rusqlite::Result<_>>()?, next })
        })
    }

    /// Returns which of these objects are stored. Blocks.
    pub fn stored_of(&self, objects: &[Digest]) -> Result<HashSet<Digest>, IndexError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT 1 FROM objects WHERE digest = ?1")?;
            let mut stored = HashSet::new();
            for object in objects {
                if statement.exists(params![object.as_raw()])? {
                    stored.insert(*object);
                }
            }
            Ok(stored)
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

/// Tags, and whether their manifests are stored, in the order of the references of images: those behind `?1` that have
/// `?2` in them.
const TAGS: &str = "SELECT tags.repository || '/' || tags.name || ':' || tags.tag, tags.repository, tags.name, tags.digest, \
        tags.media_type, tags.checked_at, objects.last_use \
    FROM tags LEFT JOIN objects ON objects.digest = tags.digest \
    WHERE tags.repository || '/' || tags.name || ':' || tags.tag > ?1 \
        AND (?2 = '' OR instr(lower(tags.repository || '/' || tags.name || ':' || tags.tag), ?2)) \
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
        AND (?2 = '' OR instr(manifests.repository || '/' || manifests.name \
            || CASE length(manifests.digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(manifests.digest)), ?2)) \
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
        let Extent { objects, bytes, missing, children } = sizes.below(self.digest)?;
        Ok(Some(Image {
            reference: self.reference,
            repository: self.repository,
            name: self.name,
            digest: self.digest,
            media_type: self.media_type.map(MediaType::new),
            objects,
            bytes,
            missing,
            children,
            checked_at: self.checked_at.map(Timestamp),
            last_use: Timestamp(last_use),
        }))
    }
}

/// Rows of [`TAGS`] and [`MANIFESTS`] in the order of their references. Of one tag on several shelves there is one row.
struct Merged<'a> {
    tags: rusqlite::Rows<'a>,
    manifests: rusqlite::Rows<'a>,
    tag: Option<Row>,
    manifest: Option<Row>,
    /// Rows that were looked at.
    looked_at: usize,
}

impl<'a> Merged<'a> {
    fn new(mut tags: rusqlite::Rows<'a>, mut manifests: rusqlite::Rows<'a>) -> rusqlite::Result<Self> {
        let (tag, manifest) = (next_row(&mut tags)?, next_row(&mut manifests)?);
        Ok(Self { tags, manifests, tag, manifest, looked_at: 0 })
    }

    fn next(&mut self) -> rusqlite::Result<Option<Row>> {
        // Takes the tag or the manifest, whichever comes first.
        let is_tag = match (&self.tag, &self.manifest) {
            (Some(tag), Some(manifest)) => tag.reference <= manifest.reference,
            (tag, _) => tag.is_some(),
        };
        let (next, others) =
            if is_tag { (&mut self.tag, &mut self.tags) } else { (&mut self.manifest, &mut self.manifests) };
        let Some(mut row) = next.take() else {
            return Ok(None);
        };
        *next = next_row(others)?;
        self.looked_at += 1;
        // The same tag on other shelves: the newest row whose manifest is stored is shown.
        while let Some(other) = next.take_if(|next| next.is_same_tag(&row)) {
            self.looked_at += 1;
            row = row.newer(other);
            *next = next_row(others)?;
        }
        Ok(Some(row))
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

/// How much of an image is there.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    objects: u64,
    bytes: u64,
    missing: u64,
    children: Option<(u64, u64)>,
}

/// Counts the stored objects of images, and their bytes.
struct Sizes<'a> {
    connection: &'a Connection,
    /// The results, for images that other tags lead to as well.
    known: HashMap<Digest, Extent>,
    /// Objects that were looked at in all.
    looked_at: usize,
}

/// What is known of one object of an image.
struct Part {
    /// `None` if it is not stored.
    size: Option<u64>,
    is_blob: bool,
    children: Vec<Digest>,
}

impl<'a> Sizes<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { connection, known: HashMap::new(), looked_at: 0 }
    }

    fn below(&mut self, manifest: Digest) -> rusqlite::Result<Extent> {
        if let Some(known) = self.known.get(&manifest) {
            return Ok(*known);
        }
        let parts = self.parts(manifest)?;
        let mut extent = Extent::default();
        for part in parts.values() {
            match part.size {
                Some(size) => (extent.objects, extent.bytes) = (extent.objects + 1, extent.bytes + size),
                None => extent.missing += 1,
            }
        }
        extent.children = children_of(&parts, manifest);
        self.looked_at += parts.len();
        self.known.insert(manifest, extent);
        Ok(extent)
    }

    /// Returns a manifest and all that it leads to.
    fn parts(&self, manifest: Digest) -> rusqlite::Result<HashMap<Digest, Part>> {
        let mut object =
            self.connection.prepare_cached("SELECT size, media_type IS NULL FROM objects WHERE digest = ?1")?;
        let mut edges = self.connection.prepare_cached(CHILDREN)?;
        let (mut parts, mut open) = (HashMap::new(), vec![manifest]);
        while let Some(next) = open.pop() {
            if parts.contains_key(&next) {
                continue;
            }
            let row =
                object.query_row(params![next.as_raw()], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, bool>(1)?)));
            let row = row.optional()?;
            let is_blob = row.is_some_and(|(_, is_blob)| is_blob);
            let mut part = Part { size: row.map(|(size, _)| size), is_blob, children: Vec::new() };
            // An object that came as a blob leads nowhere, and most objects of an image are blobs.
            if !is_blob {
                let mut rows = edges.query(params![next.as_raw()])?;
                while let Some(row) = rows.next()? {
                    part.children.push(read_digest(row)?);
                }
            }
            open.extend(&part.children);
            parts.insert(next, part);
        }
        Ok(parts)
    }
}

/// Returns how many manifests below an index are there with all that they lead to, and how many there are in all; `None`
/// if `root` has no manifest below it, as far as is known.
fn children_of(parts: &HashMap<Digest, Part>, root: Digest) -> Option<(u64, u64)> {
    let children = &parts.get(&root)?.children;
    // A stored blob below it shows that it is an image; so does nothing but missing objects, as far as anybody knows.
    let is_manifest = |child: &Digest| parts.get(child).is_some_and(|part| part.size.is_some() && !part.is_blob);
    let is_blob = |child: &Digest| parts.get(child).is_some_and(|part| part.is_blob);
    if children.iter().any(is_blob) || !children.iter().any(is_manifest) {
        return None;
    }
    let is_whole = |child: &&Digest| {
        let (mut seen, mut open) = (HashSet::new(), vec![**child]);
        while let Some(next) = open.pop() {
            if !seen.insert(next) {
                continue;
            }
            match parts.get(&next) {
                Some(Part { size: Some(_), children, .. }) => open.extend(children),
                _ => return false,
            }
        }
        true
    };
    let whole = children.iter().filter(is_whole).count();
    Some((whole as u64, children.len() as u64))
}

#[cfg(test)]
mod tests;
