//! Changes that the other Larders have to hear of, each written in the transaction that makes it.
//!
//! A transaction may end after another that began later, so that what is new is not always behind what is known. Changes
//! are therefore read from a while back each time, without those that are known. (The end of all older transactions, as
//! `pg_snapshot_xmin` tells it, would have to wait for those of other databases, too.)

use std::collections::BTreeSet;

use tokio_postgres::{Client, Row};

use super::super::{Change, IndexError, Mark, TagKey};
use super::batch::TagPlace;
use super::values::{Mine, values};
use crate::oci::Digest;

const PURGED: i16 = 0;
const PURGED_ALL: i16 = 1;
const PINS: i16 = 2;
const UPLOADED: i16 = 3;
const NOT_UPLOADED: i16 = 4;
const EVICTED: i16 = 5;
const TAGS: i16 = 6;

const NOTE: &str = "INSERT INTO larder.changes (holder, kind, digests) VALUES ($1, $2, $3)";
const NOTE_OF_BUCKET: &str =
    "INSERT INTO larder.changes (holder, kind, digests, bucket, sizes) VALUES ($1, $2, $3, $4, $5)";
const NOTE_OF_TAGS: &str = "INSERT INTO larder.changes (holder, kind, digests, tags) VALUES ($1, $2, '{}', $3)";
/// Who was away for longer than a day does not rely on them.
const FORGET: &str = "DELETE FROM larder.changes WHERE noted_at < larder.microseconds() - 86400000000";
const NOW: &str = "SELECT larder.microseconds()";
const KNOWN: &str = "SELECT id, noted_at FROM larder.changes WHERE noted_at > $1";
const NEWS: &str = "SELECT id, noted_at, holder, kind, digests, sizes, bucket IS NULL OR bucket = $4, tags \
    FROM larder.changes WHERE noted_at > $1 AND id <> ALL ($2) ORDER BY noted_at, id LIMIT $3";
/// Most changes that are read at once, each with some hundred digests at most.
const AT_ONCE: i64 = 256;
/// Microseconds after its begin by which a transaction that makes a change has ended: more than any may take.
const LONGEST: i64 = 120_000_000;

/// Notes that something was taken out, and these objects with it.
pub async fn note_purge(client: &Client, holder: i32, digests: &[Digest]) -> Result<(), IndexError> {
    note(client, holder, PURGED, digests).await
}

/// Notes that all was taken out.
pub async fn note_purge_of_all(client: &Client, holder: i32) -> Result<(), IndexError> {
    note(client, holder, PURGED_ALL, &[]).await
}

/// Notes that pins have changed.
pub async fn note_pins(client: &Client, holder: i32) -> Result<(), IndexError> {
    note(client, holder, PINS, &[]).await
}

/// Notes that something new is known of tags.
pub async fn note_tags(client: &Client, holder: i32, tags: &BTreeSet<TagPlace>) -> Result<(), IndexError> {
    if tags.is_empty() {
        return Ok(());
    }
    let texts: Vec<&str> = tags.iter().flat_map(|(a, b, c, d)| [a, b, c, d]).map(String::as_str).collect();
    client.execute_typed(NOTE_OF_TAGS, values![holder => INT4, TAGS => INT2, texts => TEXT_ARRAY]).await?;
    forget(client).await
}

/// What has become of a bucket in one transaction.
#[derive(Debug, Default)]
pub struct OfBucket {
    /// What was uploaded, with its bytes.
    pub uploaded: Vec<(Vec<u8>, i64)>,
    /// What the bucket has lost.
    pub lost: Vec<Vec<u8>>,
    /// What was evicted from it.
    pub evicted: Vec<Vec<u8>>,
}

/// Notes what has become of a bucket.
pub async fn note_of_bucket(client: &Client, own: i32, bucket: i32, changed: OfBucket) -> Result<(), IndexError> {
    let OfBucket { uploaded, lost, evicted } = changed;
    let (uploaded, sizes): (Vec<_>, Vec<_>) = uploaded.into_iter().unzip();
    for (kind, raws, sizes) in [(UPLOADED, uploaded, Some(sizes)), (NOT_UPLOADED, lost, None), (EVICTED, evicted, None)]
    {
        if !raws.is_empty() {
            let list = values![own => INT4, kind => INT2, raws => BYTEA_ARRAY, bucket => INT4, sizes => INT8_ARRAY];
            client.execute_typed(NOTE_OF_BUCKET, list).await?;
        }
    }
    Ok(())
}

async fn note(client: &Client, holder: i32, kind: i16, digests: &[Digest]) -> Result<(), IndexError> {
    let raws: Vec<_> = digests.iter().map(Digest::as_raw).collect();
    client.execute_typed(NOTE, values![holder => INT4, kind => INT2, raws => BYTEA_ARRAY]).await?;
    Ok(())
}

/// Forgets changes that all have heard of.
pub async fn forget(client: &Client) -> Result<(), IndexError> {
    client.execute_typed(FORGET, &[]).await?;
    Ok(())
}

/// Returns the changes of others that `mark` does not know, and what is known then; without a mark, only the latter.
pub async fn since(client: &Client, mine: Mine, mark: Option<Mark>) -> Result<(Vec<Change>, Mark), IndexError> {
    let now: i64 = client.query_typed_one(NOW, &[]).await?.try_get(0)?;
    let Some(Mark { at, mut known }) = mark else {
        let from = now - LONGEST;
        let rows = client.query_typed(KNOWN, values![from => INT8]).await?;
        let known = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        return Ok((Vec::new(), Mark { at: now, known: known.collect::<Result<_, IndexError>>()? }));
    };
    // The clock of the server may have been set back.
    let (mut at, from) = (at.min(now), at.min(now) - LONGEST);
    known.retain(|(_, noted_at)| *noted_at > from);
    let numbers: Vec<i64> = known.iter().map(|(number, _)| *number).collect();
    let mut changes = Vec::new();
    let list = values![from => INT8, numbers => INT8_ARRAY, AT_ONCE => INT8, mine.bucket => INT4];
    for row in client.query_typed(NEWS, list).await? {
        let noted_at = row.try_get(1)?;
        known.push((row.try_get(0)?, noted_at));
        at = at.max(noted_at);
        // That of a bucket which is not there is neither true nor false.
        if row.try_get::<_, i32>(2)? != mine.own && row.try_get::<_, Option<bool>>(6)? == Some(true) {
            changes.push(change_of(&row)?);
        }
    }
    Ok((changes, Mark { at, known }))
}

fn change_of(row: &Row) -> Result<Change, IndexError> {
    let raws: Vec<&[u8]> = row.try_get(4)?;
    let sizes: Option<Vec<i64>> = row.try_get(5)?;
    let digests = || raws.iter().filter_map(|raw| Digest::from_raw(raw));
    let bytes = sizes.unwrap_or_default().into_iter().map(|size| u64::try_from(size).unwrap_or(0));
    Ok(match row.try_get(3)? {
        PURGED => Change::Purged(digests().collect()),
        PURGED_ALL => Change::PurgedAll,
        PINS => Change::Pins,
        TAGS => Change::Tags(tags_of(row)?),
        UPLOADED => Change::Uploaded(digests().zip(bytes).collect()),
        NOT_UPLOADED => Change::NotUploaded(digests().collect()),
        EVICTED => Change::Evicted(digests().collect()),
        // Of a later Larder.
        _ => Change::Unknown,
    })
}

/// Reads tags that stand there one after the other, each with four texts.
fn tags_of(row: &Row) -> Result<Vec<TagKey>, IndexError> {
    let texts: Option<Vec<String>> = row.try_get(7)?;
    let texts = texts.unwrap_or_default();
    let key = |texts: &[String]| match texts {
        [repository, name, tag, shelf] => {
            let [repository, name, tag, shelf] = [repository, name, tag, shelf].map(Clone::clone);
            Some(TagKey { repository, shelf, name, tag })
        }
        _ => None,
    };
    Ok(texts.chunks(4).filter_map(key).collect())
}
