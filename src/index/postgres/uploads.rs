//! What is in the bucket: rows of the bucket's holder, which all replicas share.
//!
//! A row of a replica's own holder says that the file is in its cache directory, and one of the bucket's holder by which
//! upload the content is there. A replica that evicts a file, or has none, takes nothing from the others, and what the
//! bucket loses leaves them the files that they have. What is evicted from the bucket goes from all: a file that stayed
//! would be uploaded again. Each change is noted for the others, whose ledgers count what the bucket has.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::super::{IndexError, ObjectUse, Timestamp};
use super::apply::{LOCK, drop_objects};
use super::batch::{Batch, UploadChange};
use super::changes::{OfBucket, forget, note_of_bucket};
use super::values::{Mine, digest, raws, signed, values};
use crate::oci::Digest;

const NOTE: &str = "INSERT INTO larder.objects (id, holder, size, media_type, generation, stored_at, last_use) \
    SELECT o.id, $3, o.size, o.media_type, $4, o.stored_at, least(o.last_use, larder.microseconds() / 1000) \
    FROM larder.digests AS d JOIN larder.objects AS o ON o.id = d.id WHERE d.digest = $1 AND o.holder = $2 \
    ON CONFLICT (id, holder) DO NOTHING RETURNING size";
/// The file may have no row: it was found when it was known that the bucket has the object.
const PUT_FILE: &str = "INSERT INTO larder.objects (id, holder, size, media_type, stored_at, last_use) \
    SELECT o.id, $2, o.size, o.media_type, o.stored_at, o.last_use \
    FROM larder.digests AS d JOIN larder.objects AS o ON o.id = d.id \
    WHERE d.digest = $1 AND o.holder = $3 AND o.generation = $4 ON CONFLICT (id, holder) DO NOTHING";
const TAKE_OUT: &str = "DELETE FROM larder.objects AS o USING larder.digests AS d \
    WHERE d.id = o.id AND d.digest = $1 AND o.holder = $2 AND o.generation = $3";
const TAKE_FILES: &str = "DELETE FROM larder.objects AS o USING larder.digests AS d \
    WHERE d.id = o.id AND d.digest = $1 AND o.holder IN (SELECT id FROM larder.holders WHERE bucket = $2)";
const IS_KNOWN: &str =
    "SELECT 1 FROM larder.digests JOIN larder.objects USING (id) WHERE digest = $1 AND holder = ANY($2) LIMIT 1";

/// Notes what is in the bucket, and what no longer is.
pub async fn change(client: &Client, mine: Mine, batch: &Batch) -> Result<(), IndexError> {
    // Locked once, in order, and by the strongest lock that any of the changes needs. What others have written before, such
    // as a purge, is seen from here on.
    let all: Vec<_> = batch.uploads.keys().map(Vec::as_slice).collect();
    client.query_typed(LOCK, values![all => BYTEA_ARRAY]).await?;
    let mut changed = OfBucket::default();
    for (digest, changes) in &batch.uploads {
        for change in changes {
            match mine.bucket {
                Some(bucket) => change_one(client, (mine, bucket), digest, *change, &mut changed).await?,
                // Nothing is known of a bucket that is not there.
                None if *change == UploadChange::Gone(None) => {
                    drop_objects(client, mine.own, vec![digest.as_slice()]).await?
                }
                None => {}
            }
        }
    }
    match mine.bucket {
        Some(bucket) => note_of_bucket(client, mine.own, bucket, changed).await,
        None => Ok(()),
    }
}

async fn change_one(
    client: &Client,
    (mine, bucket): (Mine, i32),
    digest: &[u8],
    change: UploadChange,
    changed: &mut OfBucket,
) -> Result<(), IndexError> {
    let own = mine.own;
    match change {
        UploadChange::Noted(generation) => {
            let generation = generation.to_string();
            let list = values![digest => BYTEA, own => INT4, bucket => INT4, generation => TEXT];
            if let Some(row) = client.query_typed_opt(NOTE, list).await? {
                changed.uploaded.push((digest.to_vec(), row.try_get(0)?));
            }
        }
        UploadChange::TakenBack(generation) => {
            let generation = generation.to_string();
            let list = values![digest => BYTEA, own => INT4, bucket => INT4, generation => TEXT];
            client.execute_typed(PUT_FILE, list).await?;
            if take_out(client, bucket, digest, &generation).await? {
                changed.lost.push(digest.to_vec());
            }
        }
        UploadChange::Gone(Some(generation)) => {
            let is_out = take_out(client, bucket, digest, &generation.to_string()).await?;
            let holders = mine.all();
            let list = values![digest => BYTEA, holders => INT4_ARRAY];
            if is_out {
                client.execute_typed(TAKE_FILES, values![digest => BYTEA, bucket => INT4]).await?;
                changed.evicted.push(digest.to_vec());
            } else if client.query_typed_opt(IS_KNOWN, list).await?.is_some() {
                // Another upload, or a file that never was in the bucket.
                return Ok(());
            }
            drop_objects(client, own, vec![digest]).await?;
        }
        // What is in the bucket has a row of its own, which stays.
        UploadChange::Gone(None) => drop_objects(client, own, vec![digest]).await?,
    }
    Ok(())
}

/// Takes out what an upload brought. Returns whether it was there.
async fn take_out(client: &Client, bucket: i32, digest: &[u8], generation: &str) -> Result<bool, IndexError> {
    let list = values![digest => BYTEA, bucket => INT4, generation => TEXT];
    Ok(client.execute_typed(TAKE_OUT, list).await? > 0)
}

const KEEP: &str = "UPDATE larder.holders SET kept_by = $2, kept_until = now() + $3 * interval '1 millisecond' \
    WHERE id = $1 AND (kept_by = $2 OR kept_until IS NULL OR kept_until < now())";

/// See [`super::super::Index::keep_bucket`]. There is no number that tells one who kept it from the next: whoever believes
/// for too long that it still does evicts too much, and nothing else, as rows and keys go by the number of an upload.
pub async fn keep(client: &Client, mine: Mine, time: Duration) -> Result<bool, IndexError> {
    let Some(bucket) = mine.bucket else {
        return Ok(true);
    };
    let milliseconds = signed(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let list = values![bucket => INT4, mine.own => INT4, milliseconds => INT8];
    let is_kept = client.execute_typed(KEEP, list).await? > 0;
    if is_kept {
        forget(client).await?;
    }
    Ok(is_kept)
}

const USES: &str = "SELECT d.digest, max(o.last_use), \
        coalesce((SELECT string_agg(repository, chr(10)) FROM larder.visibility WHERE object = d.id), '') \
    FROM larder.digests AS d JOIN larder.objects AS o USING (id) \
    WHERE d.digest = ANY($1) AND o.holder = ANY($2) GROUP BY d.id";

/// See [`super::super::Index::uses`].
pub async fn uses(client: &Client, mine: Mine, objects: &[Digest]) -> Result<HashMap<Digest, ObjectUse>, IndexError> {
    let (raws, holders) = (raws(objects), mine.all());
    let rows = client.query_typed(USES, values![raws => BYTEA_ARRAY, holders => INT4_ARRAY]).await?;
    let of = |row: &Row| {
        let used = ObjectUse { last_use: Timestamp(row.try_get(1)?), repositories: row.try_get(2)? };
        Ok((digest(row, 0)?, used))
    };
    rows.iter().map(of).collect()
}
