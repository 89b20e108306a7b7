//! Uploads whose rows are gone: what they brought is deleted from the bucket, in a task of its own, since a server may
//! take long over it. What cannot be deleted is left to the sweep.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Notify;

use crate::s3::{Bucket, S3Error, Upload};

/// Most uploads that wait to be deleted. Further ones are left to the sweep.
const MOST: usize = 1 << 16;
/// Requests at once.
const AT_ONCE: usize = 8;
/// How many are taken at a time.
const BATCH: usize = 256;
/// How long to wait after the server failed.
const PAUSE: Duration = Duration::from_secs(30);

/// Uploads that are to be deleted.
#[derive(Debug, Default)]
pub struct Leaving {
    queue: Mutex<VecDeque<Upload>>,
    added: Notify,
}

impl Leaving {
    /// Adds uploads whose rows are gone.
    pub fn add(&self, uploads: Vec<Upload>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST.saturating_sub(queue.len());
        queue.extend(uploads.into_iter().take(room));
        drop(queue);
        self.added.notify_one();
    }

    /// Deletes what comes, for as long as the process lives.
    pub async fn run(&self, bucket: &Bucket) {
        loop {
            let batch: Vec<_> = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let count = queue.len().min(BATCH);
                queue.drain(..count).collect()
            };
            if batch.is_empty() {
                self.added.notified().await;
                continue;
            }
            let (left, failure) = delete(bucket, batch).await;
            if let Some(error) = failure {
                tracing::warn!(%error, left = left.len(), "the bucket does not delete what was evicted; trying again");
                self.add(left);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Deletes what uploads brought. Returns those that are left, and why.
pub async fn delete(bucket: &Bucket, uploads: Vec<Upload>) -> (Vec<Upload>, Option<S3Error>) {
    let requests = uploads.into_iter().map(|upload| async move { (upload, bucket.delete(&upload).await) });
    let mut answers = stream::iter(requests).buffer_unordered(AT_ONCE);
    let (mut left, mut failure) = (Vec::new(), None);
    while let Some((upload, answer)) = answers.next().await {
        if let Err(error) = answer {
            left.push(upload);
            failure = Some(error);
        }
    }
    (left, failure)
}
