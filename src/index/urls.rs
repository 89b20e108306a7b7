//! What was stored of other URLs than registries'.

use bytes::Bytes;
use rusqlite::{Transaction, params};

use super::sqlite::digest;
use super::{Index, IndexError, Timestamp};
use crate::oci::Digest;

/// Answers kept; a client can ask for any number of queries, so the oldest go.
const MAX_URLS: usize = 200_000;
/// And of one URL.
const MAX_VARIANTS: usize = 16;

/// An answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlEntry {
    /// Stands for what the answer depends on in the request.
    pub variant: [u8; 32],
    /// Of the body.
    pub digest: Digest,
    /// All else, as the caller writes it.
    pub head: Bytes,
    pub stored_at: Timestamp,
}

impl Index {
    /// The answers of the URL that `key` stands for, the newest first. Blocks.
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

pub(super) fn put(transaction: &Transaction<'_>, key: &Digest, entry: &UrlEntry) -> rusqlite::Result<()> {
    const INSERT: &str =
        "INSERT OR REPLACE INTO urls (key, variant, digest, head, stored_at) VALUES (?1, ?2, ?3, ?4, ?5)";
    const OTHERS: &str = "DELETE FROM urls WHERE key = ?1 AND variant NOT IN \
                          (SELECT variant FROM urls WHERE key = ?1 ORDER BY stored_at DESC LIMIT ?2)";
    let values = params![key.as_raw(), entry.variant, entry.digest.as_raw(), &entry.head[..], entry.stored_at.0];
    transaction.prepare_cached(INSERT)?.execute(values)?;
    let most = i64::try_from(MAX_VARIANTS).unwrap_or(i64::MAX);
    transaction.prepare_cached(OTHERS)?.execute(params![key.as_raw(), most]).map(drop)
}

pub(super) fn drop_one(transaction: &Transaction<'_>, key: &Digest, variant: &[u8; 32]) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM urls WHERE key = ?1 AND variant = ?2";
    transaction.prepare_cached(SQL)?.execute(params![key.as_raw(), variant]).map(drop)
}

pub(super) fn drop_oldest(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM urls WHERE stored_at < \
                       (SELECT stored_at FROM urls ORDER BY stored_at DESC LIMIT 1 OFFSET ?1)";
    let kept = i64::try_from(MAX_URLS - 1).unwrap_or(i64::MAX);
    transaction.prepare_cached(SQL)?.execute(params![kept]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::{Purge, Write};
    use super::*;
    use crate::oci::Algorithm;

    fn entry(variant: u8, at: i64) -> UrlEntry {
        let digest = Digest::of(Algorithm::Sha256, &[variant]);
        UrlEntry { variant: [variant; 32], digest, head: Bytes::from(vec![variant]), stored_at: Timestamp(at) }
    }

    #[tokio::test]
    async fn the_newest_answers_of_a_url_are_kept_until_their_content_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Index::open(dir.path()).expect("opened");
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
        index.purge(Purge::All).await.expect("purged");
        assert_eq!(index.urls(&key).expect("read"), []);
    }
}
