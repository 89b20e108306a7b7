//! Probes in the background whether an upstream that did not answer in time is back, so that no client has to wait to
//! find out.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::health::Health;
use crate::clock::Instant;

/// How long an upstream may take to answer a probe.
const PATIENCE: Duration = Duration::from_secs(10);

/// An upstream that can be probed.
pub trait Watched: Send + Sync + 'static {
    /// Returns the upstream's health, locked.
    fn health(&self) -> std::sync::MutexGuard<'_, Health>;

    /// Returns the state of the upstream's background task.
    fn probing(&self) -> &Probing;

    /// Sends a probe. The answer or the timeout is noted in the health.
    fn look(&self, patience: Duration) -> impl Future<Output = ()> + Send;
}

/// Whether the background task of one upstream runs.
#[derive(Debug, Default)]
pub struct Probing(AtomicBool);

impl Probing {
    /// Starts the background task, unless it runs already.
    pub fn begin<T: Watched>(&self, watched: &Weak<T>) {
        if !self.0.swap(true, Ordering::AcqRel) {
            tokio::spawn(look(watched.clone()));
        }
    }

    fn end(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Sends a probe after each rest, until the upstream answers or no request asks for the upstream any more.
async fn look<T: Watched>(watched: Weak<T>) {
    while let Some(until) = watched.upgrade().and_then(|watched| watched.health().watch()) {
        tokio::time::sleep_until(until).await;
        let Some(watched) = watched.upgrade() else {
            return;
        };
        if !watched.health().goes_on_watching() {
            break;
        }
        watched.look(PATIENCE).await;
        if watched.health().resting(Instant::now()).is_none() {
            break;
        }
    }
    if let Some(watched) = watched.upgrade() {
        watched.probing().end();
    }
}
