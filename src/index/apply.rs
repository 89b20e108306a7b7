//! Writes to the index, as SQL.

use rusqlite::{Transaction, params};

use super::bounds::MAX_VISIBLE;
use super::{Generation, Viewer, Write, listings, names, urls};
use crate::oci::{Digest, MediaType};

/// Makes one write.
pub fn apply(transaction: &Transaction<'_>, write: Write) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(values).map(drop);
    match write {
        Write::Object { digest, entry } => run(
            "INSERT INTO objects (digest, size, media_type, stored_at, last_use, generation) \
             VALUES (?1, ?2, ?3, ?4, ?4, ?5) \
             ON CONFLICT (digest) DO UPDATE SET size = ?2, media_type = coalesce(?3, media_type), last_use = ?4, \
                 generation = coalesce(?5, generation)",
            params![
                digest.as_raw(),
                entry.size,
                entry.media_type.as_ref().map(MediaType::as_str),
                entry.stored_at.0,
                entry.generation
            ],
        ),
        Write::Tag { key, entry } => run(
            "INSERT INTO tags (repository, name, tag, digest, media_type, size, checked_at, shelf, is_listed) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, EXISTS (SELECT 1 FROM visibility \
                 WHERE repository = ?1 AND scope IN (0, 2) AND digest = ?4)) \
             ON CONFLICT (repository, name, tag, shelf) DO UPDATE SET digest = excluded.digest, \
                 media_type = excluded.media_type, size = excluded.size, checked_at = excluded.checked_at, \
                 is_listed = excluded.is_listed",
            params![
                key.repository,
                key.name,
                key.tag,
                entry.digest.as_raw(),
                entry.media_type.as_str(),
                entry.size,
                entry.checked_at.0,
                key.shelf
            ],
        ),
        // Nobody shares this index.
        Write::TellTag { .. } => Ok(()),
        Write::DropTag { key } => run(
            "DELETE FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3 AND shelf = ?4",
            params![key.repository, key.name, key.tag, key.shelf],
        ),
        Write::Manifest { repository, name, digest, at } => names::put(transaction, &repository, &name, &digest, at),
        Write::Visible { viewer, digest } => put_visible(transaction, &viewer, &digest),
        Write::Edges { parent, children } => children.iter().try_for_each(|child| {
            run("INSERT OR IGNORE INTO edges (parent, child) VALUES (?1, ?2)", params![parent.as_raw(), child.as_raw()])
        }),
        Write::Listing { key, listing } => listings::put(transaction, &key, &listing),
        Write::Url { key, entry } => urls::put(transaction, &key, &entry),
        Write::DropUrl { key, variant } => urls::drop_one(transaction, &key, &variant),
        Write::Used { digest, at } => {
            run("UPDATE objects SET last_use = ?2 WHERE digest = ?1", params![digest.as_raw(), at.0])
        }
        Write::DropObject { digest } => FORGET.iter().try_for_each(|sql| run(sql, params![digest.as_raw()])),
        Write::Uploaded { .. } | Write::NotUploaded { .. } | Write::DropUploaded { .. } => {
            apply_upload(transaction, write)
        }
    }
}

/// Makes a write about what is in the bucket.
fn apply_upload(transaction: &Transaction<'_>, write: Write) -> rusqlite::Result<()> {
    const NOTE: &str = "UPDATE objects SET generation = ?2 WHERE digest = ?1 AND generation IS NULL";
    const TAKE_BACK: &str = "UPDATE objects SET generation = NULL WHERE digest = ?1 AND generation = ?2";
    const IS_ANOTHER: &str = "SELECT 1 FROM objects WHERE digest = ?1 AND generation IS NOT ?2";
    let run = |sql: &str, digest: &Digest, generation: &Generation| {
        transaction.prepare_cached(sql)?.execute(params![digest.as_raw(), generation]).map(drop)
    };
    match write {
        Write::Uploaded { digest, generation } => run(NOTE, &digest, &generation),
        Write::NotUploaded { digest, generation } => run(TAKE_BACK, &digest, &generation),
        Write::DropUploaded { digest, generation } => {
            match transaction.prepare_cached(IS_ANOTHER)?.exists(params![digest.as_raw(), generation])? {
                true => Ok(()),
                false => apply(transaction, Write::DropObject { digest }),
            }
        }
        _ => Ok(()),
    }
}

/// The SQL that forgets an object whose file is gone. A tag of the object would lead to nothing.
const FORGET: [&str; 6] = [
    "DELETE FROM urls WHERE digest = ?1",
    "DELETE FROM objects WHERE digest = ?1",
    "DELETE FROM visibility WHERE digest = ?1",
    "DELETE FROM edges WHERE parent = ?1",
    "DELETE FROM manifests WHERE digest = ?1",
    "DELETE FROM tags WHERE digest = ?1",
];

/// Notes that an object is visible to a viewer. If it is visible to very many, another viewer has to ask its upstream
/// again.
fn put_visible(transaction: &Transaction<'_>, viewer: &Viewer, digest: &Digest) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT OR IGNORE INTO visibility (repository, scope, digest) VALUES (?1, ?2, ?3)";
    const OTHERS: &str = "DELETE FROM visibility WHERE digest = ?3 AND (repository, scope) IN \
        (SELECT repository, scope FROM visibility WHERE digest = ?3 AND (repository, scope) <> (?1, ?2) \
         ORDER BY random() LIMIT max(0, (SELECT count(*) FROM visibility WHERE digest = ?3) - ?4))";
    let Viewer { repository, scope } = viewer;
    if transaction.prepare_cached(INSERT)?.execute(params![repository, scope, digest.as_raw()])? > 0 {
        transaction.prepare_cached(OTHERS)?.execute(params![repository, scope, digest.as_raw(), MAX_VISIBLE])?;
    }
    Ok(())
}
