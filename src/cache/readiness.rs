//! Whether content can be stored and looked up now. Probes ask this; they do not wait long, and the disk may hang.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::flight::Flights;
use crate::failure::{Failure, FailureKind};

/// How long a caller waits for a probe. After that, the result of the probe before is the answer. Probes of Kubernetes
/// wait one second by default.
const PATIENCE: Duration = Duration::from_millis(800);

/// The running probe, and the result of the last one.
#[derive(Default)]
pub struct Readiness {
    probes: Flights<(), ()>,
    last: Arc<Mutex<Option<Result<(), Failure>>>>,
}

impl Readiness {
    /// Returns the result of `probe`, which runs once for all callers at the same time and has a deadline of its own.
    pub async fn check<F>(&self, probe: impl FnOnce() -> F) -> Result<(), Failure>
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let last = self.last.clone();
        let noted = || {
            let probe = probe();
            async move {
                let found = probe.await;
                *lock(&last) = Some(found.clone());
                found
            }
        };
        let unknown =
            || Failure::new(FailureKind::Storage, "the cache directory has not answered yet; look at its disk");
        match tokio::time::timeout(PATIENCE, self.probes.run((), noted)).await {
            Ok((found, _)) => found,
            Err(_) => lock(&self.last).clone().unwrap_or_else(|| Err(unknown())),
        }
    }
}

fn lock(last: &Mutex<Option<Result<(), Failure>>>) -> MutexGuard<'_, Option<Result<(), Failure>>> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn failed() -> Failure {
        Failure::new(FailureKind::Storage, "no space left on it")
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_of_a_slow_disk_is_told_in_time_what_it_was_before() {
        let readiness = Readiness::default();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let slow = async move {
            let _ = released.await;
            Ok(())
        };
        let asked = Instant::now();
        assert!(readiness.check(|| slow).await.is_err(), "nothing is known yet");
        assert!(asked.elapsed() < Duration::from_secs(1));
        // This call joins the same probe.
        let (joined, ()) = tokio::join!(readiness.check(async || Err(failed())), async { drop(release) });
        assert!(joined.is_ok());
        let asked = Instant::now();
        assert!(readiness.check(std::future::pending).await.is_ok(), "as the probe before");
        assert!(asked.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn each_probe_is_asked_anew() {
        let readiness = Readiness::default();
        assert!(readiness.check(async || Err(failed())).await.is_err());
        assert!(readiness.check(async || Ok(())).await.is_ok());
    }
}
