//! Stored answers of URLs that are not a registry's.

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::sqlite::digest;
use super::{IndexError, Sqlite, Timestamp};
use crate::oci::Digest;

/// Most answers that are kept of one URL.
pub(super) const MAX_VARIANTS: usize = 16;
/// Bytes that a row takes beside its head, in the table and its indexes, as `totals` counts them.
pub(super) const ROW: u64 = 512;

/// An answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlEntry {
    /// Stands for the parts of the request that the answer depends on.
    pub variant: [u8; 32],
    /// The digest of the body.
    pub digest: Digest,
    /// Everything else, in the caller's format.
    pub head: Bytes,
    pub stored_at: Timestamp,
}

impl Sqlite {
    /// Returns the answers of the URL that `key` stands for, the newest first. Blocks.
    pub fn urls(&self, key: &Digest) -> Result<Vec<UrlEntry>, IndexError> {
        const SQL: &str = "SELECT digest, variant, head, stored_at FROM urls WHERE key = ?1 ORDER BY stored_at DESC";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let rows = statement.query_map(params![key.as_raw()], |row| {
                Ok(UrlEntry {
                    digest: digest(row.get_ref(0)?)?,
                    variant: row.get(1)?,
                    head: Bytes::from(row.get::<_, Vec<u8>>(2)?),
                    stored_at: Timestamp(row.get(3)?),
                })
            })?;
            rows.collect()
        })
    }
}

/// Notes an answer, and drops the oldest answers of a URL that has too many.
pub(super) fn put(transaction: &Transaction<'_>, key: &Digest, entry: &UrlEntry) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT INTO urls (key, variant, digest, head, stored_at) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (key, variant) DO UPDATE SET digest = excluded.digest, head = excluded.head, \
             stored_at = excluded.stored_at";
    const OTHERS: &str = "DELETE FROM urls WHERE key = ?1 AND variant NOT IN \
                          (SELECT variant FROM urls WHERE key = ?1 ORDER BY stored_at DESC LIMIT ?2)";
    let values = params![key.as_raw(), entry.variant, entry.digest.as_raw(), &entry.head[..], entry.stored_at.0];
    transaction.prepare_cached(INSERT)?.execute(values)?;
    let most = i64::try_from(MAX_VARIANTS).unwrap_or(i64::MAX);
    transaction.prepare_cached(OTHERS)?.execute(params![key.as_raw(), most]).map(drop)
}

/// Drops one answer.
pub(super) fn drop_one(transaction: &Transaction<'_>, key: &Digest, variant: &[u8; 32]) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM urls WHERE key = ?1 AND variant = ?2";
    transaction.prepare_cached(SQL)?.execute(params![key.as_raw(), variant]).map(drop)
}

pub(super) const OLDEST: &str = "SELECT key, variant, length(head) FROM urls ORDER BY stored_at LIMIT 1";

/// Removes the oldest answers until `bytes` or `most` answers are gone: clients can request any number of queries.
/// Returns whether any answer was removed.
pub(super) fn drop_some(transaction: &Transaction<'_>, bytes: u64, most: usize) -> rusqlite::Result<bool> {
    const DELETE: &str = "DELETE FROM urls WHERE key = ?1 AND variant = ?2";
    let (mut oldest, mut delete) = (transaction.prepare_cached(OLDEST)?, transaction.prepare_cached(DELETE)?);
    let (mut dropped, mut freed) = (0, 0);
    while dropped < most && freed < bytes {
        let row = |row: &Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, u64>(2)?));
        let Some((key, variant, head)) = oldest.query_row([], row).optional()? else {
            break;
        };
        delete.execute(params![key, variant])?;
        dropped += 1;
        freed += head + ROW;
    }
    Ok(dropped > 0)
}

#[cfg(test)]
mod tests {
    use super::super::{Bounds, Purge, Write};
    use super::*;
    use crate::oci::Algorithm;

    fn entry(variant: u8, at: i64) -> UrlEntry {
        let digest = Digest::of(Algorithm::Sha256, &[variant]);
        UrlEntry { variant: [variant; 32], digest, head: Bytes::from(vec![variant]), stored_at: Timestamp(at) }
    }

    #[tokio::test]
    async fn the_newest_answers_of_a_url_are_kept_until_their_content_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("opened");
        let key = Digest::of(Algorithm::Sha256, b"key");
        for at in 0..20 {
            index.write(Write::Url { key, entry: entry(at, i64::from(at)) });
        }
        index.flush().await.expect("written");
        let kept: Vec<_> = index.urls(&key).expect("read").iter().map(|entry| entry.variant[0]).collect();
        assert_eq!(kept, (4..20).rev().collect::<Vec<_>>());
        index.write(Write::DropObject { digest: entry(19, 0).digest });
        index.write(Write::DropUrl { key, variant: [18; 32] });
        index.flush().await.expect("written");
        assert_eq!(index.urls(&key).expect("read")[0].variant[0], 17);
        index.purge(&Purge::All, drop).expect("purged");
        assert_eq!(index.urls(&key).expect("read"), []);
    }
    #[tokio::test]
    async fn answers_keep_to_their_bytes_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("opened");
        index.keep_within(Bounds { urls: 1 << 20, ..Bounds::default() });
        let key = |number: i64| Digest::of(Algorithm::Sha256, &number.to_le_bytes());
        for number in 0..1_000 {
            let entry = UrlEntry { head: Bytes::from(vec![b' '; 10_000]), ..entry(1, number) };
            index.write(Write::Url { key: key(number), entry });
            if number % 20 == 0 {
                index.flush().await.expect("written");
            }
        }
        index.flush().await.expect("written");
        let kept = (0..1_000).filter(|&number| !index.urls(&key(number)).expect("read").is_empty());
        let kept: Vec<_> = kept.collect();
        assert!((85..=125).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept, (1_000 - kept.len() as i64..1_000).collect::<Vec<_>>());
    }
}
