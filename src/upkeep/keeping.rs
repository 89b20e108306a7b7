//! Which of the Larders that share a bucket keeps it within its limits and compares it with the index: the one that said so
//! first, for as long as it goes on to say so. A Larder that shares its bucket with nobody always does.
//!
//! Two that both believe it, for a moment, evict too much, and do no other harm: rows and keys go only by the number of an
//! upload.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::index::Index;

/// How long it is said for.
const TIME: Duration = Duration::from_secs(30);
/// How often it is said.
const AGAIN: Duration = Duration::from_secs(10);

/// Until when this Larder keeps the bucket.
#[derive(Debug)]
pub struct Keeping(watch::Sender<Option<Instant>>);

impl Default for Keeping {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Keeping {
    /// Returns whether this Larder keeps the bucket now.
    pub fn is_on(&self) -> bool {
        is_on(*self.0.borrow())
    }

    /// Waits until this Larder keeps the bucket.
    pub async fn begins(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|until| is_on(*until)).await;
    }

    /// Says again and again that this Larder keeps the bucket, if no other does; for as long as the process lives.
    pub async fn run(&self, index: &dyn Index) {
        loop {
            let asked = Instant::now();
            match index.keep_bucket(TIME).await {
                Ok(is_kept) => {
                    if self.is_on() != is_kept {
                        tracing::debug!(is_kept, "which Larder keeps the bucket within its limits has changed");
                    }
                    self.0.send_replace(is_kept.then(|| asked + TIME));
                }
                // It ends when its time is over.
                Err(error) => tracing::debug!(%error, "whether this Larder keeps the bucket cannot be found out"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn is_on(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() < until)
}
