//! Transfers that were opened before a client asks for the blob: of the layers of an image, once the client asks for its
//! configuration. Over a long line, to ask a registry for a blob, to connect to the storage that it redirects to and to
//! ask there takes longer than many a layer.
//!
//! Nothing of such a transfer is read before a fill takes it: of what the upstream sends, no more is under way than the
//! buffers of a connection hold. A transfer that no fill takes soon, or whose connection clients need, is closed: who
//! only looks at an image, and who pulls lazily, brings nothing in.
//!
//! A transfer is only for a fill of the same blob in the same repository and under the same name, with the credentials
//! with which the upstream was asked, so the upstream has agreed to it as to any other.
//!
//! Locks: `entries` and `transfer` are each taken alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::cache::Transfer;
use crate::failure::Failure;
use crate::observe::trace::SpanRef;
use crate::oci::Digest;
use crate::upstream::WhoId;

/// Most transfers that are open ahead at once, of all clients.
const MOST: usize = 64;
/// How long a transfer waits for a fill.
const LIFE: Duration = Duration::from_secs(5);
/// How often it is looked whether its connection is needed.
const LOOK: Duration = Duration::from_millis(100);

/// A repository, a name, a blob and whose credentials.
pub type Key = (String, String, Digest, WhoId);

/// The transfers that are open ahead, with what the origins of the blobs learnt when they opened them.
pub struct Ahead<S> {
    entries: Mutex<HashMap<Key, Arc<Opened<S>>>>,
}

/// A transfer that is being opened, or is open.
pub struct Opened<S> {
    /// What its origin has learnt.
    pub learnt: S,
    /// The span within which it is opened.
    pub span: Option<SpanRef>,
    transfer: Mutex<Option<Result<Transfer, Failure>>>,
    /// Whether the upstream has answered.
    is_answered: watch::Sender<bool>,
    /// Whether a fill has taken it.
    is_taken: watch::Sender<bool>,
}

impl<S> Default for Ahead<S> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

impl<S> Ahead<S> {
    /// Registers a transfer that is about to be opened. Returns `None` if there is one, or if there are too many.
    pub fn begin(&self, key: Key, learnt: S, span: Option<SpanRef>) -> Option<Arc<Opened<S>>> {
        let mut entries = self.entries();
        if entries.len() >= MOST || entries.contains_key(&key) {
            return None;
        }
        let (is_answered, is_taken) = (watch::Sender::new(false), watch::Sender::new(false));
        let opened = Arc::new(Opened { learnt, span, transfer: Mutex::default(), is_answered, is_taken });
        entries.insert(key, opened.clone());
        Some(opened)
    }

    /// Takes a transfer for a fill: it is for no other.
    pub fn take(&self, key: &Key) -> Option<Arc<Opened<S>>> {
        let opened = self.entries().remove(key)?;
        opened.is_taken.send_replace(true);
        Some(opened)
    }

    /// Forgets a transfer, unless another one has its place.
    pub fn end(&self, key: &Key, ended: &Arc<Opened<S>>) {
        let mut entries = self.entries();
        if entries.get(key).is_some_and(|opened| Arc::ptr_eq(opened, ended)) {
            entries.remove(key);
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.entries().clear();
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Arc<Opened<S>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Opened<S> {
    /// Notes how the upstream answered.
    pub fn answered(&self, answer: Result<Transfer, Failure>) {
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.is_answered.send_replace(true);
    }

    /// Waits until a fill has taken it, or it has waited for long enough, or its connection is needed.
    pub async fn wait(&self, is_needed: impl Fn() -> bool) {
        let mut taken = self.is_taken.subscribe();
        let is_needed = async {
            while !is_needed() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            // The sender lives as long as `self`.
            _ = taken.wait_for(|is_taken| *is_taken) => {}
            _ = tokio::time::timeout(LIFE, is_needed) => {}
        }
    }

    /// Waits for the upstream's answer. Whoever opens it has a deadline.
    pub async fn transfer(&self) -> Option<Result<Transfer, Failure>> {
        let _ = self.is_answered.subscribe().wait_for(|is_answered| *is_answered).await;
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::failure::FailureKind;
    use crate::oci::Algorithm;
    use crate::upstream::Who;

    fn key(number: usize) -> Key {
        let digest = Digest::of(Algorithm::Sha256, &number.to_be_bytes());
        ("hub".to_owned(), "app".to_owned(), digest, Who::Anonymous.id())
    }

    #[tokio::test]
    async fn so_many_are_open_ahead_and_no_more_and_each_is_taken_once() {
        let ahead = Ahead::default();
        let opened: Vec<_> = (0..MOST).map(|number| ahead.begin(key(number), (), None).expect("room")).collect();
        assert!(ahead.begin(key(MOST), (), None).is_none(), "too many");
        opened[3].answered(Err(Failure::new(FailureKind::NotFound, "gone")));
        let taken = ahead.take(&key(3)).expect("it is there");
        assert!(ahead.take(&key(3)).is_none() && ahead.begin(key(4), (), None).is_none(), "once");
        assert!(matches!(taken.transfer().await, Some(Err(failure)) if failure.kind == FailureKind::NotFound));
        let next = ahead.begin(key(3), (), None).expect("room");
        // The end of the one before is not the end of the next.
        ahead.end(&key(3), &taken);
        assert!(ahead.begin(key(3), (), None).is_none());
        ahead.end(&key(3), &next);
        assert!(ahead.take(&key(3)).is_none());
        ahead.clear();
        assert!(ahead.take(&key(0)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_no_fill_takes_is_closed_soon_and_at_once_where_it_is_in_the_way() {
        let ahead = Ahead::default();
        let opened = ahead.begin(key(0), (), None).expect("room");
        let began = tokio::time::Instant::now();
        opened.wait(|| false).await;
        assert_eq!(began.elapsed(), LIFE);
        let (is_needed, began) = (AtomicBool::new(false), tokio::time::Instant::now());
        let later = async {
            tokio::time::sleep(LIFE / 2).await;
            is_needed.store(true, Ordering::Relaxed);
        };
        tokio::join!(opened.wait(|| is_needed.load(Ordering::Relaxed)), later);
        assert!(began.elapsed() < LIFE);
        let (opened, began) = (ahead.begin(key(1), (), None).expect("room"), tokio::time::Instant::now());
        drop(ahead.take(&key(1)));
        opened.wait(|| false).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
