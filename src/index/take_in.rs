//! Takes in rows of another index. What is here and newer stays, so that the same rows may come again, and rows of an
//! older index, too.

use rusqlite::{Connection, OptionalExtension, Params, Transaction, params};

use super::apply::apply;
use super::{IndexError, Row, Sqlite, Write};
use crate::oci::MediaType;

impl Sqlite {
    /// Takes in rows, all or none, and waits until they are written. Blocks.
    pub fn take_in(&self, rows: Vec<Row>) -> Result<(), IndexError> {
        self.change_blocking(move |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            rows.into_iter().try_for_each(|row| take_in(&transaction, row))?;
            Ok(transaction.commit()?)
        })
    }
}

fn take_in(transaction: &Transaction<'_>, row: Row) -> rusqlite::Result<()> {
    const OBJECT: &str = "INSERT INTO objects (digest, size, media_type, stored_at, last_use, generation) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
        ON CONFLICT (digest) DO UPDATE SET media_type = coalesce(media_type, excluded.media_type), \
            last_use = max(last_use, excluded.last_use), generation = coalesce(generation, excluded.generation)";
    const TAG: &str = "SELECT checked_at FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3 AND shelf = ?4";
    const LISTING: &str = "SELECT checked_at FROM listings WHERE repository = ?1 AND name = ?2 AND page = ?3";
    const URL: &str = "SELECT stored_at FROM urls WHERE key = ?1 AND variant = ?2";
    match row {
        Row::Object { digest, entry, last_use, .. } => {
            let media_type = entry.media_type.as_ref().map(MediaType::as_str);
            let values =
                params![digest.as_raw(), entry.size, media_type, entry.stored_at.0, last_use.0, entry.generation];
            transaction.prepare_cached(OBJECT)?.execute(values).map(drop)
        }
        Row::Edge { parent, child } => apply(transaction, Write::Edges { parent, children: vec![child] }),
        Row::Visible { viewer, digest } => apply(transaction, Write::Visible { viewer, digest }),
        Row::Manifest { repository, name, digest, at } => {
            apply(transaction, Write::Manifest { repository, name, digest, at })
        }
        Row::Url { key, entry } => {
            match is_newer(transaction, URL, params![key.as_raw(), entry.variant], entry.stored_at.0)? {
                true => apply(transaction, Write::Url { key, entry }),
                false => Ok(()),
            }
        }
        Row::Listing { key, listing } => {
            let place = params![key.repository, key.name, key.page];
            match is_newer(transaction, LISTING, place, listing.checked_at.0)? {
                true => apply(transaction, Write::Listing { key, listing }),
                false => Ok(()),
            }
        }
        Row::Tag { key, entry } => {
            let place = params![key.repository, key.name, key.tag, key.shelf];
            match is_newer(transaction, TAG, place, entry.checked_at.0)? {
                true => apply(transaction, Write::Tag { key, entry }),
                false => Ok(()),
            }
        }
    }
}

/// Returns whether a row of this time is newer than the one that is here.
fn is_newer(transaction: &Transaction<'_>, sql: &str, place: impl Params, at: i64) -> rusqlite::Result<bool> {
    let here = transaction.prepare_cached(sql)?.query_row(place, |row| row.get::<_, i64>(0)).optional()?;
    Ok(here.is_none_or(|here| here < at))
}
