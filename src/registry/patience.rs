//! How long a request waits for its upstream, so that no response is late.
//!
//! With a copy to serve, the response begins within 3 s, and the request to the upstream goes on in the background.
//! Without a copy, a response or a truthful error begins within 25 s: containerd 2.3 gives up after 30 s (containerd
//! 574a60700).

use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quick_cache::sync::Cache;

use crate::access::{Refusal, Wanted};
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::routing::Target;
use crate::upstream::Upstream;

/// How long a request waits for the check of a tag or list that it has a copy of.
pub const WITH_COPY: Duration = Duration::from_millis(2500);
/// The same wait for a while after a check took too long.
const WHILE_LAGGING: Duration = Duration::from_millis(200);
/// How long [`WHILE_LAGGING`] applies after a check took too long.
const LAGGING: Duration = Duration::from_secs(10);
/// Most repositories that are remembered as lagging.
const ENTRIES: usize = 1_024;

/// The repositories whose upstreams took too long lately.
pub struct Lagging(Cache<String, Instant>);

impl Default for Lagging {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Lagging {
    /// Returns how long to wait for a check of a target that has a copy.
    pub fn patience(&self, target: &Target) -> Duration {
        let is_lagging = self.0.get(target.repository.prefix()).is_some_and(|until| Instant::now() < until);
        if is_lagging { WHILE_LAGGING } else { WITH_COPY }
    }

    /// Notes whether a check took too long.
    pub fn note(&self, target: &Target, is_lagging: bool) {
        let prefix = target.repository.prefix();
        if is_lagging {
            self.0.insert(prefix.to_owned(), Instant::now() + LAGGING);
        } else if self.0.get(prefix).is_some() {
            self.0.remove(prefix);
        }
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.0.clear();
    }
}

/// Returns the failure of a check that takes too long while there is a copy.
pub fn too_slow(target: &Target, after: Duration) -> Failure {
    let label = target.repository.upstreams.iter().next().map_or("the upstream", Upstream::label);
    let message = format!("{label}: did not answer within {:.1} s; the question goes on", after.as_secs_f32());
    Failure::new(FailureKind::Timeout, message)
}

/// Returns the answer to a client, or a truthful error if the upstream takes too long. `is_own_fault` tells whether the
/// request waited for places of Larder's own. The answer is in a box: it is large, and each call that it is passed
/// through by value has room for it.
pub async fn in_time<T>(
    target: &Target,
    wanted: Wanted,
    answer: BoxFuture<'_, Result<T, Refusal>>,
    is_own_fault: impl FnOnce() -> bool,
) -> Result<T, Refusal> {
    let mut answer = answer;
    // Nearly all answers from memory are there at once, and need no timer.
    if let Poll::Ready(answered) = futures_util::poll!(&mut answer) {
        return answered;
    }
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
