//! What is told of running fills.

use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Duration;

use super::{Fill, Fills, Phase};
use crate::oci::Digest;

/// How far one fill is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The digest, or at the proxy door the key that stands for a URL.
    pub key: Digest,
    /// The repository for which it was begun (its prefix).
    pub repository: String,
    pub phase: &'static str,
    /// Bytes that are there.
    pub present: u64,
    /// Bytes of the whole object, if known.
    pub size: Option<u64>,
    /// Requests that read it.
    pub readers: usize,
    /// Whether it was begun before any client asked for the object.
    pub is_behind: bool,
    /// How long it has been running.
    pub since: Duration,
    /// The position of the upstream that answered last, in the order in which the repository asks its upstreams.
    pub source: Option<usize>,
}

impl Fill {
    fn progress(&self, key: Digest) -> Progress {
        let state = self.state.borrow();
        let phase = match &state.phase {
            Phase::Opening => "opening",
            Phase::Growing => "growing",
            Phase::Verified => "storing",
            Phase::Passing { .. } => "passing",
            Phase::Failed(_) => "failed",
        };
        let source = self.source.load(Ordering::Relaxed);
        Progress {
            key,
            repository: self.viewer.repository.clone(),
            phase,
            present: state.present.len().max(state.passed.end),
            size: state.size,
            readers: self.readers.load(Ordering::Relaxed),
            is_behind: self.is_behind(),
            since: self.begun.elapsed(),
            source: source.checked_sub(1),
        }
    }
}

impl Fills {
    /// Returns how far the running fills are, the oldest first.
    pub fn progress(&self) -> Vec<Progress> {
        let fills: Vec<_> = {
            let fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            fills.iter().filter_map(|(key, fill)| Some((*key, Weak::upgrade(fill)?))).collect()
        };
        let mut all: Vec<_> = fills.iter().map(|(key, fill)| fill.progress(*key)).collect();
        all.sort_by_key(|progress| std::cmp::Reverse(progress.since));
        all
    }
}
