//! Compares the bucket with the index, at the start and once a day: nothing is lost or left over.
//!
//! - A key without a row, and an upload that was never completed, is what a crash or a server that failed left: both go
//!   once they are a day old, unless the upload still runs.
//! - An index that was begun anew knows nothing of what is in the bucket. So until an index was compared with the bucket
//!   once from the first key to the last, keys without a row are taken in, and none goes. The index itself notes that it
//!   was: nothing else tells how far a comparison came that broke off, or whether others have written meanwhile.
//! - A row whose key is gone is dropped, so that the content is fetched again; if the file is here, it is uploaded again.
//!
//! A list may lack what was stored a moment ago, so that each key that is missing there is asked for by itself. The age
//! of a key is that by the server's own clock. Lifecycle rules, which some servers do not have, are not needed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::clock::now;
use super::desk::Upkeep;
use crate::index::{IndexError, ObjectEntry, Timestamp, Write};
use crate::oci::Digest;
use crate::s3::{Bucket, Kind, Listed, S3Error, Unfinished, Upload};

/// How often the bucket is swept.
const PERIOD: Duration = Duration::from_secs(24 * 3600);
/// How long to wait after a sweep that failed.
const AGAIN: Duration = Duration::from_secs(600);
/// What is older than this and belongs to nothing goes.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// Why a sweep broke off.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("the bucket: {0}")]
    Bucket(#[from] S3Error),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Store(#[from] std::io::Error),
    #[error("the index did not take in what the bucket has")]
    NotNoted,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Swept {
    /// Keys that were found.
    keys: u64,
    /// Keys that belong to no row, and were deleted.
    rowless: u64,
    /// Uploads that were never completed, and were aborted.
    unfinished: u64,
    /// Rows whose key was gone.
    lost: u64,
    /// Keys that were taken in by an index that knew none.
    adopted: u64,
}

/// Sweeps again and again, for as long as the process lives.
pub async fn run(upkeep: Arc<Upkeep>, bucket: Bucket) {
    upkeep.loaded().await;
    loop {
        upkeep.keeping().begins().await;
        let pause = match sweep(&upkeep, &bucket).await {
            Ok(Swept { keys, rowless, unfinished, lost, adopted }) if rowless + unfinished + lost + adopted > 0 => {
                tracing::info!(
                    keys,
                    rowless,
                    unfinished,
                    lost,
                    adopted,
                    "the bucket was brought in line with the index"
                );
                PERIOD
            }
            Ok(_) => PERIOD,
            Err(error) => {
                tracing::warn!(%error, "the bucket cannot be compared with the index now");
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn sweep(upkeep: &Upkeep, bucket: &Bucket) -> Result<Swept, SweepError> {
    let mut swept = Swept::default();
    let (index, place) = (&upkeep.parts().index, bucket.place());
    let compared_with = index.compared_with().await?;
    let mut is_known = compared_with.as_ref() == Some(&place);
    let was_known = is_known;
    if !is_known && compared_with.is_some() {
        // Rows of that bucket go now: should it come back, its keys are taken in again.
        index.set_compared_with(None).await?;
    }
    upkeep.ledger().begin_bucket_census();
    let mut keys = bucket.list();
    while let Some(listed) = keys.next().await {
        swept.keys += 1;
        let listed = listed?;
        // A purge of everything may have come meanwhile: what it left is not taken in.
        is_known = is_known || index.compared_with().await?.as_ref() == Some(&place);
        if is_known || !adopt(upkeep, &listed, &mut swept).await? {
            look_at(upkeep, bucket, &listed, is_known, &mut swept).await?;
        }
    }
    let not_seen = upkeep.ledger().keys_not_seen();
    for digest in not_seen {
        swept.lost += u64::from(look_for(upkeep, bucket, &digest).await?);
    }
    if !was_known {
        index.set_compared_with(Some(place)).await?;
        tracing::info!(keys = swept.keys, "the index was compared with the whole bucket");
    }
    match bucket.unfinished().await {
        Ok(unfinished) => {
            let is_left = |upload: &&Unfinished| {
                let runs = upload.upload.as_ref().is_some_and(|upload| upkeep.is_uploading(upload));
                !runs && upload.age.is_some_and(|age| age > OLD)
            };
            for upload in unfinished.iter().filter(is_left) {
                bucket.abort_unfinished(upload).await?;
                swept.unfinished += 1;
            }
        }
        // The probe at the start has told what follows.
        Err(error) if error.kind() == Kind::Unsupported => {}
        Err(error) => return Err(error.into()),
    }
    upkeep.publish_totals();
    Ok(swept)
}

/// Takes in a key that the index does not know. Returns whether it did. Who may see the object is learnt from the
/// upstreams, and so is whether it is a manifest.
async fn adopt(upkeep: &Upkeep, listed: &Listed, swept: &mut Swept) -> Result<bool, SweepError> {
    let Some(Upload { digest, generation }) = listed.upload.filter(|upload| !upkeep.is_uploading(upload)) else {
        return Ok(false);
    };
    let index = &upkeep.parts().index;
    let known = index.object(&digest).await?;
    if known.as_ref().is_some_and(|known| known.generation.is_some() || known.size != listed.size) {
        return Ok(false);
    }
    let stored_at = known.map_or_else(Timestamp::now, |known| known.stored_at);
    let entry = ObjectEntry { size: listed.size, media_type: None, stored_at, generation: Some(generation) };
    index.apply(vec![Write::Object { digest, entry }]).await?;
    // Writes may be lost; and the next key may be of the same object.
    index.flush().await?;
    if index.object(&digest).await?.is_none_or(|entry| entry.generation.is_none()) {
        return Err(SweepError::NotNoted);
    }
    let highest = upkeep.ledger().limits().classes.count() - 1;
    upkeep.ledger().known_uploaded(digest, listed.size, highest, now());
    swept.adopted += 1;
    Ok(true)
}

/// Looks at a key of the bucket. `is_known`: a key without a row goes once it is old.
async fn look_at(
    upkeep: &Upkeep,
    bucket: &Bucket,
    listed: &Listed,
    is_known: bool,
    swept: &mut Swept,
) -> Result<(), SweepError> {
    let is_old = listed.age.is_some_and(|age| age > OLD);
    let Some(Upload { digest, generation }) = listed.upload else {
        if listed.is_probe && is_old {
            bucket.delete_listed(listed).await?;
        }
        return Ok(());
    };
    let entry = upkeep.parts().index.object(&digest).await?;
    match entry {
        Some(entry) if entry.generation == Some(generation) => {
            if entry.size != listed.size {
                // Bytes that cannot have this digest.
                tracing::error!(%digest, size = listed.size, "an object in the bucket has another size than it had");
                lose(upkeep, &digest, &entry).await?;
                bucket.delete_listed(listed).await?;
                swept.lost += 1;
            } else if !upkeep.ledger().key_seen(&digest) {
                let highest = upkeep.ledger().limits().classes.count() - 1;
                upkeep.ledger().known_uploaded(digest, entry.size, highest, now());
            }
        }
        _ if is_old && is_known && !upkeep.is_uploading(&Upload { digest, generation }) => {
            bucket.delete_listed(listed).await?;
            swept.rowless += 1;
        }
        _ => {}
    }
    Ok(())
}

/// Looks for the key of an object that was not in the list. Returns whether it is gone.
async fn look_for(upkeep: &Upkeep, bucket: &Bucket, digest: &Digest) -> Result<bool, SweepError> {
    let Some(entry) = upkeep.parts().index.object(digest).await? else {
        upkeep.ledger().not_uploaded(digest, now());
        return Ok(false);
    };
    let Some(generation) = entry.generation else {
        upkeep.ledger().not_uploaded(digest, now());
        return Ok(false);
    };
    if bucket.size(&Upload { digest: *digest, generation }).await? == Some(entry.size) {
        return Ok(false);
    }
    tracing::warn!(%digest, "an object is gone from the bucket");
    lose(upkeep, digest, &entry).await?;
    Ok(true)
}

/// Notes that an object is no longer in the bucket. If it has no file here, it is forgotten.
async fn lose(upkeep: &Upkeep, digest: &Digest, entry: &ObjectEntry) -> Result<(), SweepError> {
    let (digest, Some(generation)) = (*digest, entry.generation) else {
        return Ok(());
    };
    let is_here = upkeep.parts().store.contains(&digest).await?;
    upkeep.ledger().not_uploaded(&digest, now());
    // Others that share the bucket may have a file.
    upkeep.apply(vec![Write::NotUploaded { digest, generation }]).await;
    if !is_here {
        upkeep.forget_files(&[digest]).await;
        upkeep.parts().cached.gone(&[digest].into());
    }
    Ok(())
}

impl Upkeep {
    /// Notes that what an upload brought is gone, or is not what it was: the object is fetched again.
    pub async fn lost(&self, upload: &Upload) {
        let entry = self.parts().index.object(&upload.digest).await;
        let Ok(Some(entry)) = entry.map(|entry| entry.filter(|entry| entry.generation == Some(upload.generation)))
        else {
            return;
        };
        if let Err(error) = lose(self, &upload.digest, &entry).await {
            tracing::warn!(digest = %upload.digest, %error, "an object that the bucket lost cannot be forgotten yet");
        }
    }
}
