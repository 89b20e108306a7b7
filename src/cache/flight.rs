//! One piece of work for many callers that want its result at the same time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tracing::Instrument;

use crate::failure::{Failure, FailureKind};
use crate::observe::trace::{self, SpanRef};

/// The work under way, by its key.
#[derive(Debug)]
pub struct Flights<K, T>(Arc<Mutex<Running<K, T>>>);

type Running<K, T> = HashMap<K, Flight<T>>;

/// The result to come, and the span of the work.
#[derive(Debug)]
struct Flight<T> {
    result: watch::Receiver<Option<Result<T, Failure>>>,
    span: Option<SpanRef>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Returns the result of the work for `key`: of the work under way, else of `work`. The work goes on when its
    /// callers leave. The second value tells whether this call began the work.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> (Result<T, Failure>, bool)
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let (mut result, is_first) = self.begin(key, work);
        let value = result.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        // Only a panic of the work ends the channel without a value.
        let value = value.unwrap_or_else(|| Err(Failure::new(FailureKind::Storage, "the work broke off unexpectedly")));
        (value, is_first)
    }

    /// Returns whether work for `key` is under way.
    pub fn is_running(&self, key: &K) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Begins the work for `key` unless it is under way, without waiting for it. The second value tells whether this
    /// call began the work.
    pub fn begin<F>(&self, key: K, work: impl FnOnce() -> F) -> (watch::Receiver<Option<Result<T, Failure>>>, bool)
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(&key) {
            trace::joins(flight.span.as_ref());
            return (flight.result.clone(), false);
        }
        let (done, result) = watch::channel(None);
        let span = trace::step("ask once for all");
        running.insert(key.clone(), Flight { result: result.clone(), span: trace::reference(&span) });
        let landed = Landed { running: self.0.clone(), key };
        let work = work();
        let landing = async move {
            let value = work.await;
            // Removed from the map before the result is seen: a caller that comes now begins anew.
            drop(landed);
            done.send_replace(Some(value));
        };
        tokio::spawn(landing.instrument(span));
        (result, true)
    }
}

/// Removes work from the map when it is dropped.
struct Landed<K: Eq + Hash, T> {
    running: Arc<Mutex<Running<K, T>>>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Landed<K, T> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_waiters_share_one_piece_of_work() {
        let flights = Flights::<u8, usize>::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let ask = || {
            flights.run(1, || {
                let begun = begun.clone();
                async move {
                    tokio::task::yield_now().await;
                    Ok(begun.fetch_add(1, Ordering::SeqCst))
                }
            })
        };
        let ((one, first), (two, second)) = tokio::join!(ask(), ask());
        assert_eq!((one.ok(), two.ok()), (Some(0), Some(0)));
        assert!(first && !second);
        assert_eq!(ask().await.0.ok(), Some(1), "a later caller begins anew");
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_leaves() {
        let flights = Flights::<u8, ()>::default();
        let (done, finished) = tokio::sync::oneshot::channel();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        {
            let waiting = flights.run(1, || async move {
                gone.await.ok();
                done.send(()).ok();
                Ok(())
            });
            tokio::pin!(waiting);
            assert!(futures_util::FutureExt::now_or_never(waiting.as_mut()).is_none());
        }
        go.send(()).expect("the work still waits");
        finished.await.expect("the work was finished");
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_not_a_hang() {
        let flights = Flights::<u8, ()>::default();
        let (result, _) = flights.run(1, || async { panic!("on purpose") }).await;
        assert_eq!(result.expect_err("an error").kind, FailureKind::Storage);
        assert!(flights.0.lock().expect("not poisoned").is_empty());
    }
}
