//! Looking in the background whether an upstream that did not answer in time is back, so that no client has to wait to
//! find out.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::health::Health;
use crate::clock::Instant;

/// For an upstream to answer a look.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is looked at.
pub trait Watched: Send + Sync + 'static {
    fn health(&self) -> std::sync::MutexGuard<'_, Health>;

    fn probing(&self) -> &Probing;

    /// Asks something; the answer, or that there is none in time, goes to the health.
    fn look(&self, patience: Duration) -> impl Future<Output = ()> + Send;
}

/// Whether somebody looks.
#[derive(Debug, Default)]
pub struct Probing(AtomicBool);

impl Probing {
    /// Begins to look, if nobody does yet.
    pub fn begin<T: Watched>(&self, watched: &Weak<T>) {
        if !self.0.swap(true, Ordering::AcqRel) {
            tokio::spawn(look(watched.clone()));
        }
    }

    fn end(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Asks after each rest, until the upstream answers or nobody asks for it any more.
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
