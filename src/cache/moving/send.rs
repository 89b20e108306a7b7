//! Stores the content of an object at the new place, which has it only if it has its digest.

use std::io;

use super::content::{Content, ReadError, again};
use crate::cache::opened::Folder;
use crate::cache::uploads::{PART, part_of};
use crate::oci::{Algorithm, Digest};
use crate::random::NoRandomness;
use crate::s3::{Bucket, Kind, Multipart, S3Error, Upload};

/// Bytes of a file that are written at a time; smaller objects are written as a whole.
const PIECE: u64 = 1 << 20;
/// How often an object is sent to a bucket that takes it and does not have it then.
const SENT: u32 = 3;

/// Why an object did not come to the new place.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It cannot be read at the old place.
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Bucket(#[from] S3Error),
    #[error("it acknowledged {0} and does not have it")]
    Lost(Digest),
    #[error("{0}")]
    Disk(io::Error),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Uploads an object; `open` opens its content, from the beginning each time. Returns the upload that the bucket is known to
/// have.
pub async fn to_bucket(bucket: &Bucket, open: impl Fn() -> Content) -> Result<Upload, SendError> {
    let mut sent = 1;
    loop {
        let content = open();
        let (size, upload) = (content.size, Upload::new(content.digest)?);
        let result = match size <= PART {
            true => put(bucket, &upload, content).await,
            false => in_parts(bucket, &upload, content).await,
        };
        // Whatever was answered: an error may come after the object was made.
        let is_unsure = match &result {
            Ok(()) => true,
            Err(SendError::Bucket(error)) => error.is_passing() || error.kind() == Kind::Wrong,
            Err(_) => false,
        };
        if is_unsure && size_of(bucket, &upload).await? == Some(size) {
            return Ok(upload);
        }
        if let Err(error) = bucket.delete(&upload).await {
            tracing::debug!(digest = %upload.digest, %error, "what an upload left cannot be deleted; the sweep does it later");
        }
        match result {
            // An upload that was acknowledged, or answered with an error in good words.
            Ok(()) if sent < SENT => sent += 1,
            Err(SendError::Bucket(error)) if sent < SENT && error.kind() == Kind::Wrong => sent += 1,
            Ok(()) => return Err(SendError::Lost(upload.digest)),
            Err(error) => return Err(error),
        }
    }
}

/// Returns the size of what an upload brought; `None` if it is not there.
pub async fn size_of(bucket: &Bucket, upload: &Upload) -> Result<Option<u64>, S3Error> {
    let mut tries = 1;
    loop {
        match bucket.size(upload).await {
            Ok(size) => return Ok(size),
            Err(error) => tries = again(tries, error).await?,
        }
    }
}

async fn put(bucket: &Bucket, upload: &Upload, mut content: Content) -> Result<(), SendError> {
    let pieces = content.read(content.size).await?;
    content.finish()?;
    let mut tries = 1;
    while let Err(error) = bucket.put(upload, pieces.clone()).await {
        tries = again(tries, error).await?;
    }
    Ok(())
}

async fn in_parts(bucket: &Bucket, upload: &Upload, content: Content) -> Result<(), SendError> {
    let (size, mut tries) = (content.size, 1);
    let mut multipart = loop {
        match bucket.begin(upload).await {
            Ok(multipart) => break multipart,
            Err(error) => tries = again(tries, error).await?,
        }
    };
    let sent = match send_parts(bucket, &mut multipart, content).await {
        Ok(()) => complete(bucket, upload, &multipart, size).await.map_err(SendError::from),
        Err(error) => Err(error),
    };
    if sent.is_err()
        && let Err(error) = bucket.abort(&multipart).await
    {
        tracing::debug!(digest = %upload.digest, %error, "an upload cannot be aborted; the sweep does it later");
    }
    sent
}

/// Makes the parts an object. Whatever is answered, the object may be there.
async fn complete(bucket: &Bucket, upload: &Upload, multipart: &Multipart, size: u64) -> Result<(), S3Error> {
    let mut tries = 1;
    while let Err(error) = bucket.complete(multipart).await {
        if size_of(bucket, upload).await? == Some(size) {
            return Ok(());
        }
        tries = again(tries, error).await?;
    }
    Ok(())
}

/// Sends all parts; fails behind the last one if they do not have the digest, and then nothing is completed.
async fn send_parts(bucket: &Bucket, multipart: &mut Multipart, mut content: Content) -> Result<(), SendError> {
    let part = part_of(content.size);
    loop {
        let pieces = content.read(part).await?;
        if pieces.is_empty() {
            return Ok(content.finish()?);
        }
        let mut tries = 1;
        while let Err(error) = bucket.send(multipart, pieces.clone()).await {
            tries = again(tries, error).await?;
        }
    }
}

/// Stores an object in a directory.
pub async fn to_folder(folder: &Folder, mut content: Content) -> Result<(), SendError> {
    let (digest, size) = (content.digest, content.size);
    if size <= PIECE {
        let bytes = content.read(size).await?.concat();
        content.finish()?;
        return folder.store.put(&digest, bytes.into()).await.map(drop).map_err(SendError::Disk);
    }
    // A key of its own: what a fill of the same object has left is not touched.
    let key = Digest::of(Algorithm::Sha256, format!("moved {digest}").as_bytes());
    let (partial, _) = folder.spool.open(&key, false).await.map_err(SendError::Disk)?;
    let slot = partial.new_slot();
    let written = async {
        partial.allocate(size).await.map_err(SendError::Disk)?;
        let mut at = 0;
        loop {
            let pieces = content.read(PIECE).await?;
            if pieces.is_empty() {
                return Ok(content.finish()?);
            }
            at = partial.write(&slot, 0, at, pieces).await.map_err(SendError::Disk)?;
        }
    };
    match written.await {
        Ok(()) => folder.store.publish(partial, &digest, size).await.map(drop).map_err(SendError::Disk),
        Err(error) => {
            if let Err(error) = partial.discard().await {
                tracing::warn!(%digest, %error, "cannot remove a download");
            }
            Err(error)
        }
    }
}
