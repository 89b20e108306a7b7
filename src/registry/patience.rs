//! How long a request waits for its upstream: no answer is late.
//!
//! With a copy to serve the answer begins within 3 s, and what was asked of the upstream goes on in the background. Without
//! one, an answer or a truthful error begins within 25 s: containerd 2.3 gives up after 30 (containerd 574a60700).

use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use crate::access::{Refusal, Wanted};
use crate::failure::{Failure, FailureKind};
use crate::routing::Target;
use crate::upstream::Upstream;

/// For a check, where there is a copy to serve.
pub const WITH_COPY: Duration = Duration::from_millis(2500);
/// The same for a while after a check took longer.
const WHILE_LAGGING: Duration = Duration::from_millis(200);
/// How long that is.
const LAGGING: Duration = Duration::from_secs(10);
const ENTRIES: usize = 1_024;

/// Which repositories' upstreams took too long lately.
pub struct Lagging(Cache<String, Instant>);

impl Default for Lagging {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Lagging {
    /// How long to wait for a check of a target where there is a copy.
    pub fn patience(&self, target: &Target) -> Duration {
        let is_lagging = self.0.get(target.repository.prefix()).is_some_and(|until| Instant::now() < until);
        if is_lagging { WHILE_LAGGING } else { WITH_COPY }
    }

    /// A check took too long, or did not.
    pub fn note(&self, target: &Target, is_lagging: bool) {
        let prefix = target.repository.prefix();
        if is_lagging {
            self.0.insert(prefix.to_owned(), Instant::now() + LAGGING);
        } else if self.0.get(prefix).is_some() {
            self.0.remove(prefix);
        }
    }

    pub fn clear(&self) {
        self.0.clear();
    }
}

/// What a check is that takes too long where there is a copy.
pub fn too_slow(target: &Target, after: Duration) -> Failure {
    let label = target.repository.upstreams.iter().next().map_or("the upstream", Upstream::label);
    let message = format!("{label}: did not answer within {:.1} s; the question goes on", after.as_secs_f32());
    Failure::new(FailureKind::Timeout, message)
}

/// An answer to a client, or a truthful error in its stead when the upstream takes too long. `is_own_fault`: whether the
/// request waited for places of our own.
pub async fn in_time<T>(
    target: &Target,
    wanted: Wanted,
    answer: impl Future<Output = Result<T, Refusal>>,
    is_own_fault: impl FnOnce() -> bool,
) -> Result<T, Refusal> {
    let patience = target.repository.upstreams.patience();
    let Ok(answered) = tokio::time::timeout(patience, answer).await else {
        let failure = if is_own_fault() {
            Failure::new(FailureKind::Busy, "too many transfers are under way; try again soon")
        } else {
            too_slow(target, patience)
        };
        return Err(Refusal::of(wanted)(failure));
    };
    answered
}
