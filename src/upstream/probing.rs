//! Looking in the background whether an upstream that did not answer in time is back, so that no client has to wait to
//! find out.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::transport::Transport;

/// For an upstream to answer a look.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether somebody looks.
#[derive(Debug, Default)]
pub struct Probing(AtomicBool);

impl Probing {
    /// Begins to look, if nobody does yet.
    pub fn begin(&self, transport: &Weak<Transport>) {
        if !self.0.swap(true, Ordering::AcqRel) {
            tokio::spawn(look(transport.clone()));
        }
    }

    fn end(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Asks after each rest, until the upstream answers or nobody asks for it any more.
async fn look(transport: Weak<Transport>) {
    while let Some(until) = transport.upgrade().and_then(|transport| transport.health().watch()) {
        tokio::time::sleep_until(until.into()).await;
        let Some(transport) = transport.upgrade() else {
            return;
        };
        if !transport.health().goes_on_watching() {
            break;
        }
        transport.look(PATIENCE).await;
        if transport.health().resting(Instant::now()).is_none() {
            break;
        }
    }
    if let Some(transport) = transport.upgrade() {
        transport.probing.end();
    }
}
