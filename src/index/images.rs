//! What is cached, seen as images: names and tags, and what they consist of.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::sqlite::{digest, read_digest};
use super::{Image, ImageName, Index, IndexError, TagKey, Timestamp};
use crate::oci::{Digest, MediaType, Reference};

impl Index {
    /// At most `count` images whose manifest is stored, in the order of their references, behind the
    /// reference `last`. Manifests that were asked for by digest are listed too, unless a tag of the
    /// same name or another stored manifest leads to them. Blocks.
    pub fn images(&self, last: &str, count: usize) -> Result<Vec<Image>, IndexError> {
        const SQL: &str = "
            SELECT repository, name, reference, digest, media_type, checked_at, last_use FROM (
                SELECT repository, name, ':' || tag AS reference, digest, tags.media_type, max(checked_at) AS checked_at,
                    last_use
                FROM tags JOIN objects USING (digest) GROUP BY repository, name, tag
                UNION ALL
                SELECT repository, name,
                    CASE length(digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(digest)),
                    digest, objects.media_type, NULL, last_use
                FROM manifests JOIN objects USING (digest)
                WHERE NOT EXISTS (SELECT 1 FROM tags WHERE tags.digest = manifests.digest
                        AND tags.repository = manifests.repository AND tags.name = manifests.name)
                    AND NOT EXISTS (SELECT 1 FROM edges JOIN objects AS above ON above.digest = edges.parent
                        WHERE edges.child = manifests.digest))
            WHERE repository || '/' || name || reference > ?1
            ORDER BY repository || '/' || name || reference LIMIT ?2";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let mut rows = statement.query(params![last, i64::try_from(count).unwrap_or(i64::MAX)])?;
            let mut images = Vec::new();
            while let Some(row) = rows.next()? {
                let (repository, name): (String, String) = (row.get(0)?, row.get(1)?);
                let manifest = digest(row.get_ref(3)?)?;
                let (objects, bytes) = stored_below(connection, manifest)?;
                images.push(Image {
                    reference: format!("{repository}/{name}{}", row.get::<_, String>(2)?),
                    repository,
                    name,
                    digest: manifest,
                    media_type: row.get::<_, Option<String>>(4)?.map(MediaType::new),
                    objects,
                    bytes,
                    checked_at: row.get::<_, Option<i64>>(5)?.map(Timestamp),
                    last_use: Timestamp(row.get(6)?),
                });
            }
            Ok(images)
        })
    }

    /// The manifests of the given images, as far as they are known. Blocks.
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

    /// All tags of a repository and the manifests they name. Blocks.
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

    /// The given manifests and all that they lead to, stored or not. Blocks.
    pub fn below(&self, roots: Vec<Digest>) -> Result<HashSet<Digest>, IndexError> {
        self.read(|connection| below(connection, roots))
    }
}

fn below(connection: &Connection, roots: Vec<Digest>) -> rusqlite::Result<HashSet<Digest>> {
    let mut children = connection.prepare_cached("SELECT child FROM edges WHERE parent = ?1")?;
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

/// Count and bytes of what is stored of an image.
fn stored_below(connection: &Connection, manifest: Digest) -> rusqlite::Result<(u64, u64)> {
    let mut size = connection.prepare_cached("SELECT size FROM objects WHERE digest = ?1")?;
    let (mut objects, mut bytes) = (0, 0);
    for object in below(connection, vec![manifest])? {
        let mut rows = size.query(params![object.as_raw()])?;
        if let Some(row) = rows.next()? {
            objects += 1;
            bytes += row.get::<_, u64>(0)?;
        }
    }
    Ok((objects, bytes))
}
