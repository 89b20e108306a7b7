//! Cached content, seen as images: names and tags, and the objects that they consist of.

pub(super) mod extent;
pub(super) mod rows;

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::sqlite::read_digest;
use super::{Image, ImageName, IndexError, Sqlite, TagKey};
use crate::oci::{Digest, Reference};
use extent::{CHILDREN, Sizes};
use rows::{Row, Statements, rows_of};

/// Most rows and objects that are looked at for one page. A page ends before it is full if few of these are images.
pub(super) const LOOKED_AT: usize = 200_000;

/// Most rows that are looked at to find the images that were used last, and most objects to find the largest.
pub(super) const SORTED: usize = 8_000;

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
            let mut statements = Statements::new(connection, text)?;
            let mut rows = statements.rows(last, text)?;
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
            let of_few = if text.is_empty() { None } else { used_last_of_few(connection, text, most)? };
            let (mut rows, next) = match of_few {
                Some(rows) => (rows, None),
                None => used_last_of_all(connection, text, count, most)?,
            };
            rows.truncate(count);
            let mut sizes = Sizes::new(connection);
            let images = rows.into_iter().filter_map(|row| row.into_image(&mut sizes).transpose());
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

/// Returns the rows that have a text in their references, the last used first; `None` if there are more than `most`.
fn used_last_of_few(connection: &Connection, text: &str, most: usize) -> rusqlite::Result<Option<Vec<Row>>> {
    let mut statements = Statements::new(connection, text)?;
    let (mut rows, mut found) = (statements.rows("", text)?, Vec::new());
    while let Some(row) = rows.next()? {
        if rows.looked_at > most {
            return Ok(None);
        }
        found.extend(Some(row).filter(|row| row.last_use.is_some()));
    }
    found.sort_by_key(|row| std::cmp::Reverse(row.last_use));
    Ok(Some(found))
}

/// Stored manifests, the last used first.
const USED_LAST: &str = "SELECT digest FROM objects WHERE media_type IS NOT NULL ORDER BY last_use DESC";

/// Returns the first rows, at least `count` if there are so many, of those that were used last and have a text in their
/// references. Ends when `most` rows were looked at; then the second value is the last of them.
fn used_last_of_all(
    connection: &Connection,
    text: &str,
    count: usize,
    most: usize,
) -> rusqlite::Result<(Vec<Row>, Option<String>)> {
    let mut manifests = connection.prepare_cached(USED_LAST)?;
    let (mut manifests, mut found, mut looked_at) = (manifests.query([])?, Vec::new(), 0);
    while let Some(manifest) = manifests.next()? {
        let rows = rows_of(connection, &read_digest(manifest)?)?;
        looked_at += 1 + rows.len();
        let last = rows.last().map(|row| row.reference.clone());
        found.extend(rows.into_iter().filter(|row| row.reference.to_lowercase().contains(text)));
        if found.len() >= count {
            break;
        }
        if looked_at > most {
            return Ok((found, Some(last.unwrap_or_default())));
        }
    }
    Ok((found, None))
}

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

#[cfg(test)]
mod tests;
