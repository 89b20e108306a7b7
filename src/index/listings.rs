//! Lists of tags and referrers, for when the upstream is down. Clients can request any number of pages. So the lists
//! are kept within a number of bytes, which the names share: the name with the most bytes loses lists first.

use bytes::Bytes;
use rusqlite::{OptionalExtension, Transaction, params};

use super::{IndexError, ListKey, Listing, Sqlite, Timestamp};
use crate::oci::{Algorithm, Digest, MediaType};

/// Bytes that a row takes beside its texts and body, in the table and its indexes.
const ROW: u64 = 512;

impl ListKey {
    /// Returns whether the page is less than the whole list.
    pub(super) fn is_part(&self) -> bool {
        self.page.contains('?')
    }

    /// Returns what stands for the page where the page itself may be too long for a key.
    pub(super) fn page_hash(&self) -> Vec<u8> {
        Digest::of(Algorithm::Sha256, self.page.as_bytes()).as_raw().to_vec()
    }
}

impl Listing {
    /// Returns the bytes that the list takes, in memory or on disk.
    pub fn weight(&self, key: &ListKey) -> u64 {
        let texts = [self.link.as_ref(), self.filters_applied.as_ref()];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        let media_type = self.media_type.as_ref().map_or(0, |media_type| media_type.as_str().len());
        // The key is in the table, and in its two indexes.
        let key = 3 * (key.repository.len() + key.name.len()) + 2 * key.page.len();
        ROW + (self.body.len() + texts + media_type + key) as u64
    }
}

impl Sqlite {
    /// Returns a list as it was last seen, if it takes at most `room` bytes; else [`IndexError::TooLarge`] says how
    /// many it takes. Blocks.
    pub fn listing(&self, key: &ListKey, room: u64) -> Result<Option<Listing>, IndexError> {
        const SQL: &str = "SELECT bytes, media_type, link, filters_applied, checked_at, body FROM listings \
                           WHERE repository = ?1 AND name = ?2 AND page = ?3";
        let found = self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let row = statement.query_row(params![key.repository, key.name, key.page], |row| {
                let bytes = row.get(0)?;
                // Checked before the body is read.
                if bytes > room {
                    return Ok(Err(IndexError::TooLarge(bytes)));
                }
                Ok(Ok(Listing {
                    media_type: row.get::<_, Option<String>>(1)?.map(MediaType::new),
                    link: row.get(2)?,
                    filters_applied: row.get(3)?,
                    checked_at: Timestamp(row.get(4)?),
                    body: Bytes::from(row.get::<_, Vec<u8>>(5)?),
                }))
            });
            row.optional()
        })?;
        found.transpose()
    }
}

/// Notes a list.
pub(super) fn put(transaction: &Transaction<'_>, key: &ListKey, listing: &Listing) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO listings \
        (repository, name, page, is_part, checked_at, bytes, media_type, link, filters_applied, body) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
        ON CONFLICT (repository, name, page) DO UPDATE SET is_part = excluded.is_part, \
            checked_at = excluded.checked_at, bytes = excluded.bytes, media_type = excluded.media_type, \
            link = excluded.link, filters_applied = excluded.filters_applied, body = excluded.body";
    let values = params![
        key.repository,
        key.name,
        key.page,
        key.is_part(),
        listing.checked_at.0,
        listing.weight(key),
        listing.media_type.as_ref().map(MediaType::as_str),
        listing.link,
        listing.filters_applied,
        &listing.body[..]
    ];
    transaction.prepare_cached(SQL)?.execute(values).map(drop)
}

pub(super) const LARGEST: &str =
    "SELECT repository, name FROM shares WHERE kind = 'listings' ORDER BY amount DESC LIMIT 1";
pub(super) const NEXT: &str = "SELECT id, bytes FROM listings WHERE repository = ?1 AND name = ?2 \
    ORDER BY is_part DESC, checked_at LIMIT 1";

/// Removes lists until `bytes` or `most` lists are gone: from the name with the most bytes, its parts before the whole
/// list, and the oldest first. So a name loses what it has beyond an equal share, and no name can drive out the lists
/// of other names. Returns whether any list was removed.
pub(super) fn drop_some(transaction: &Transaction<'_>, bytes: u64, most: usize) -> rusqlite::Result<bool> {
    let mut largest = transaction.prepare_cached(LARGEST)?;
    let mut next = transaction.prepare_cached(NEXT)?;
    let mut delete = transaction.prepare_cached("DELETE FROM listings WHERE id = ?1")?;
    let (mut dropped, mut freed) = (0, 0);
    while dropped < most && freed < bytes {
        let name = largest.query_row([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
        let Some((repository, name)) = name.optional()? else {
            break;
        };
        let page = next.query_row(params![repository, name], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, u64>(1)?)));
        let Some((id, bytes)) = page.optional()? else {
            break;
        };
        delete.execute(params![id])?;
        dropped += 1;
        freed += bytes;
    }
    Ok(dropped > 0)
}

#[cfg(test)]
mod tests {
    use super::super::{Bounds, Write};
    use super::*;

    fn key(name: &str, page: &str) -> ListKey {
        ListKey { repository: "r".to_owned(), name: name.to_owned(), page: page.to_owned() }
    }

    fn listing(bytes: usize, at: i64) -> Listing {
        Listing {
            body: Bytes::from(vec![b' '; bytes]),
            media_type: None,
            link: None,
            filters_applied: None,
            checked_at: Timestamp(at),
        }
    }

    fn is_there(index: &Sqlite, key: &ListKey) -> bool {
        index.listing(key, u64::MAX).expect("read").is_some()
    }

    fn open(lists: u64) -> (tempfile::TempDir, Sqlite) {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("an index");
        index.keep_within(Bounds { lists, ..Bounds::default() });
        (dir, index)
    }

    #[tokio::test]
    async fn lists_keep_to_their_bytes_and_the_name_with_the_most_gives_first() {
        let (_dir, index) = open(1 << 20);
        for name in ["a", "b", "c"] {
            index.write(Write::Listing { key: key(name, "tags/list"), listing: listing(20_000, 1) });
        }
        index.write(Write::Listing { key: key("flood", "tags/list"), listing: listing(50_000, 2) });
        for n in 0..100 {
            let page = format!("tags/list?n={n}");
            index.write(Write::Listing { key: key("flood", &page), listing: listing(50_000, 3 + n) });
            // What goes beyond the bounds goes behind the answer to a flush.
            index.flush().await.expect("written");
            index.flush().await.expect("settled");
            let total: u64 = index
                .read(|connection| connection.query_row("SELECT sum(bytes) FROM listings", [], |row| row.get(0)))
                .expect("read");
            assert!(total <= 1 << 20, "{total}");
        }
        for name in ["a", "b", "c"] {
            assert!(is_there(&index, &key(name, "tags/list")), "{name}");
        }
        // Of the name that was flooded, the newest parts and the whole list are left.
        assert!(is_there(&index, &key("flood", "tags/list")) && is_there(&index, &key("flood", "tags/list?n=99")));
        assert!(!is_there(&index, &key("flood", "tags/list?n=0")));
    }

    #[tokio::test]
    async fn a_list_that_is_larger_than_all_may_be_is_not_kept() {
        let (_dir, index) = open(100_000);
        index.write(Write::Listing { key: key("a", "tags/list"), listing: listing(1_000, 1) });
        index.write(Write::Listing { key: key("b", "tags/list"), listing: listing(200_000, 2) });
        index.flush().await.expect("written");
        assert!(is_there(&index, &key("a", "tags/list")) && !is_there(&index, &key("b", "tags/list")));
    }

    #[tokio::test]
    async fn a_list_is_read_only_where_there_is_room_for_it() {
        let (_dir, index) = open(1 << 20);
        let key = key("a", "tags/list");
        index.write(Write::Listing { key: key.clone(), listing: listing(5_000, 1) });
        index.flush().await.expect("written");
        let refused = index.listing(&key, 4_000);
        assert!(matches!(refused, Err(IndexError::TooLarge(5_000..6_000))), "{refused:?}");
        assert!(index.listing(&key, 6_000).expect("read").is_some());
    }
}
