//! The bucket of `[storage.s3]` as the cache knows it: what the index says of an object that is there, and how the bucket
//! did lately.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;

use super::hot::MAX_MANIFEST;
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::index::ObjectEntry;
use crate::oci::{Digest, MediaType};
use crate::s3::{Bucket, Kind, S3Error, Upload};
use crate::upkeep::Upkeep;

/// How long the bucket is asked last, after it did not answer.
const REST: Duration = Duration::from_secs(5);

/// How long the read of a manifest takes at most, whatever its size: the upstreams are next.
const MANIFEST: Duration = Duration::from_secs(5);

/// The bucket, and how it did lately.
#[derive(Debug)]
pub struct KnownBucket {
    pub bucket: Bucket,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rests_until: Option<Instant>,
    /// Why the last request failed.
    trouble: Option<String>,
}

/// An object that is in the bucket.
#[derive(Clone, Debug)]
pub struct InBucket {
    pub upload: Upload,
    /// In bytes.
    pub size: u64,
    /// Set for manifests.
    pub media_type: Option<MediaType>,
    pub since: SystemTime,
}

impl InBucket {
    /// Reads a row of the index; `None` if the object is not in the bucket.
    pub fn of(digest: &Digest, entry: ObjectEntry) -> Option<Self> {
        let ObjectEntry { size, media_type, stored_at, generation } = entry;
        let upload = Upload { digest: *digest, generation: generation? };
        Some(Self { upload, size, media_type, since: stored_at.to_system_time() })
    }
}

impl KnownBucket {
    pub fn new(bucket: Bucket) -> Self {
        Self { bucket, state: Mutex::default() }
    }

    /// Notes that a request failed. A key that is absent is no failure of the bucket.
    pub fn failed(&self, error: &S3Error) {
        if error.kind() == Kind::Absent {
            return;
        }
        let mut state = self.state();
        if error.is_passing() {
            state.rests_until = Some(Instant::now() + REST);
        }
        let is_news = state.trouble.replace(error.to_string()).is_none();
        drop(state);
        if is_news {
            tracing::warn!(bucket = self.bucket.name(), %error, "the bucket fails; what is in cache.dir is served, the rest comes from the upstreams");
        }
    }

    /// Notes that a request went well.
    pub fn works(&self) {
        let mut state = self.state();
        state.rests_until = None;
        let was_in_trouble = state.trouble.take().is_some();
        drop(state);
        if was_in_trouble {
            tracing::info!(bucket = self.bucket.name(), "the bucket answers again");
        }
    }

    /// Returns whether the bucket did not answer a moment ago.
    pub fn rests(&self) -> bool {
        self.state().rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Returns why the bucket fails.
    pub fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a manifest that is in the bucket; `None` if it cannot be had from there now.
    pub async fn manifest(&self, found: &InBucket, upkeep: &Upkeep) -> Option<Bytes> {
        if found.size > MAX_MANIFEST || self.rests() {
            return None;
        }
        let read = async {
            let mut got = self.bucket.get(&found.upload, 0, None).await?;
            let mut bytes = BytesMut::new();
            while let Some(piece) = got.body.try_next().await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > found.size {
                    break;
                }
            }
            Ok(bytes.freeze())
        };
        let digest = found.upload.digest;
        let read = tokio::time::timeout(MANIFEST, read).await;
        match read.unwrap_or_else(|_| Err(S3Error::late(MANIFEST))) {
            Ok(bytes) if Digest::of(digest.algorithm(), &bytes) == digest => {
                self.works();
                Some(bytes)
            }
            Ok(_) => {
                self.has_wrong_content(&found.upload, upkeep).await;
                None
            }
            Err(error) => {
                self.could_not_give(&found.upload, &error, upkeep).await;
                None
            }
        }
    }

    /// Notes that an object could not be had.
    pub async fn could_not_give(&self, upload: &Upload, error: &S3Error, upkeep: &Upkeep) {
        self.failed(error);
        if error.kind() == Kind::Absent {
            tracing::warn!(digest = %upload.digest, "an object is gone from the bucket; it is fetched from upstream");
            upkeep.lost(upload).await;
        }
    }

    /// Takes out an object whose bytes in the bucket do not have its digest.
    pub async fn has_wrong_content(&self, upload: &Upload, upkeep: &Upkeep) {
        tracing::error!(digest = %upload.digest, "the bucket has wrong content; it is deleted and fetched from upstream");
        upkeep.lost(upload).await;
        if let Err(error) = self.bucket.delete(upload).await {
            tracing::warn!(digest = %upload.digest, %error, "wrong content in the bucket cannot be deleted yet");
        }
    }
}

/// Returns the failure for an object that the bucket does not give.
pub fn failure(error: S3Error) -> Failure {
    let kind = match error.kind() {
        Kind::Absent => FailureKind::NotFound,
        Kind::Late => FailureKind::Timeout,
        Kind::Wrong => FailureKind::WrongContent,
        _ => FailureKind::Unavailable,
    };
    let is_passing = error.is_passing();
    Failure::of(kind, "the bucket", error).passing(is_passing)
}
