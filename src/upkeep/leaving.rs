//! What uploads brought and no row names: it is deleted from the bucket, in a task of its own, since a server may take
//! long over it. What cannot be deleted, and what does not fit into the queue, is left to the sweep.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::index::Index;
use crate::s3::{Bucket, S3Error, Upload};

/// Most uploads that wait to be deleted. Further ones are left to the sweep.
pub const MOST: usize = 1 << 16;
/// Requests at once.
const AT_ONCE: usize = 8;
/// How many are taken at a time, and how long deleting them may take.
const BATCH: usize = 256;
const BATCH_PATIENCE: Duration = Duration::from_secs(300);
/// How long to wait after the server failed.
const PAUSE: Duration = Duration::from_secs(30);

/// Uploads that are to be deleted.
#[derive(Debug, Default)]
pub struct Leaving {
    queue: Mutex<VecDeque<Upload>>,
    added: Notify,
}

impl Leaving {
    /// Adds uploads that no row is to name.
    pub fn add(&self, uploads: Vec<Upload>) {
        let mut queue = self.queue();
        let room = MOST.saturating_sub(queue.len());
        queue.extend(uploads.into_iter().take(room));
        drop(queue);
        self.added.notify_one();
    }

    /// Deletes what comes, for as long as the process lives.
    pub async fn run(&self, index: &dyn Index, bucket: &Bucket) {
        loop {
            let batch = self.take();
            if batch.is_empty() {
                self.added.notified().await;
                continue;
            }
            let unnamed = unnamed(index, batch).await;
            let (left, failure) = delete(bucket, unnamed, BATCH_PATIENCE).await;
            match failure {
                Some(error) if error.is_passing() => {
                    tracing::warn!(%error, left = left.len(), "the bucket does not delete what is to go; trying again");
                    self.add(left);
                    tokio::time::sleep(PAUSE).await;
                }
                Some(error) => {
                    tracing::warn!(%error, left = left.len(), "the bucket refuses to delete what is to go; the sweep tries again");
                }
                None => {}
            }
        }
    }

    fn take(&self) -> Vec<Upload> {
        let mut queue = self.queue();
        let count = queue.len().min(BATCH);
        queue.drain(..count).collect()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Upload>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn waiting(&self) -> Vec<Upload> {
        self.queue().iter().copied().collect()
    }
}

/// Returns those uploads that no row names. An index that cannot be read may name any.
pub(super) async fn unnamed(index: &dyn Index, uploads: Vec<Upload>) -> Vec<Upload> {
    if let Err(error) = index.flush().await {
        tracing::warn!(%error, left = uploads.len(), "what no row names cannot be found out; the sweep deletes it");
        return Vec::new();
    }
    let mut unnamed = Vec::new();
    for upload in uploads {
        match index.object(&upload.digest).await {
            Ok(entry) if entry.as_ref().and_then(|entry| entry.generation) != Some(upload.generation) => {
                unnamed.push(upload);
            }
            Ok(_) => {
                tracing::debug!(digest = %upload.digest, "what was to be deleted from the bucket is wanted; it stays")
            }
            Err(error) => {
                tracing::warn!(digest = %upload.digest, %error, "whether a row names an upload cannot be found out; it stays");
            }
        }
    }
    unnamed
}

/// Deletes what uploads brought, for at most `patience`, and not beyond the first failure behind which others would only
/// wait, too. Returns those that are left, and why.
pub async fn delete(bucket: &Bucket, uploads: Vec<Upload>, patience: Duration) -> (Vec<Upload>, Option<S3Error>) {
    let (mut left, mut failure) = (uploads.iter().copied().collect::<HashSet<_>>(), None);
    let requests = uploads.into_iter().map(|upload| async move { (upload, bucket.delete(&upload).await) });
    let mut answers = stream::iter(requests).buffer_unordered(AT_ONCE);
    let deadline = Instant::now() + patience;
    loop {
        match tokio::time::timeout_at(deadline, answers.next()).await {
            Ok(Some((upload, Ok(())))) => drop(left.remove(&upload)),
            Ok(Some((_, Err(error)))) => {
                let is_passing = error.is_passing();
                failure = Some(error);
                if is_passing {
                    break;
                }
            }
            Ok(None) => break,
            Err(_) => {
                failure = Some(S3Error::late(patience));
                break;
            }
        }
    }
    (left.into_iter().collect(), failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::s3::bucket_at;

    /// Whoever waits for a purge waits for one deadline, and not for one for every eight keys.
    #[tokio::test(start_paused = true)]
    async fn a_bucket_that_hangs_is_waited_for_once() {
        // It takes connections and never answers.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let bucket = bucket_at(&format!("http://{}", listener.local_addr().expect("an address")));
        let uploads: Vec<_> =
            (0..100).map(|byte| Upload::new(Digest::Sha256([byte; 32])).expect("random numbers")).collect();
        for patience in [5, 60].map(Duration::from_secs) {
            let asked = Instant::now();
            let (left, failure) = delete(&bucket, uploads.clone(), patience).await;
            assert_eq!((left.len(), failure.is_some_and(|error| error.is_passing())), (100, true));
            assert!(asked.elapsed() <= Duration::from_secs(25), "{:?}", asked.elapsed());
        }
    }
}
