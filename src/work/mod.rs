//! Runs blocking work off the async threads: files and the index.
//!
//! A [`Pool`] is for one kind of work. It bounds the threads that this kind takes, so that work of one kind on a disk
//! that hangs starves no other kind. It also bounds how long a caller waits. The work itself cannot be stopped: it
//! keeps its thread until the kernel returns, but nobody waits for it any more.
//!
//! The pools share the runtime's blocking threads, of which there are 512. All pools together have fewer places, so
//! that there is a thread for each place.

mod file;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub use file::{Hashing, ReadFile};

/// How long callers wait while work runs whose caller has given up: the disk is known to hang.
const HURRY: Duration = Duration::from_millis(250);

/// Threads for one kind of work; clones share them.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kind: &'static str,
    places: Arc<Semaphore>,
    patience: Duration,
    /// How many pieces of work run though their callers have given up.
    overdue: AtomicUsize,
}

/// A place in a [`Pool`], for work whose caller waits for the place and for the work separately.
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Why work has no result.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    #[error("{kind} took longer than {patience:?}")]
    Late { kind: &'static str, patience: Duration },
    #[error("{kind} broke off: {why}")]
    BrokeOff { kind: &'static str, why: String },
}

impl From<Unfinished> for io::Error {
    fn from(unfinished: Unfinished) -> Self {
        let kind = match unfinished {
            Unfinished::Late { .. } => io::ErrorKind::TimedOut,
            Unfinished::BrokeOff { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, unfinished)
    }
}

impl Pool {
    /// Creates a pool. `kind`: the subject of error messages ("reading the cache directory"). `places`: how many pieces
    /// of this work run at once. `patience`: how long a caller waits for a place and the work together.
    pub fn new(kind: &'static str, places: usize, patience: Duration) -> Self {
        let overdue = AtomicUsize::new(0);
        Self(Arc::new(Shared { kind, places: Arc::new(Semaphore::new(places)), patience, overdue }))
    }

    /// Runs `work` on a thread of the pool. The work goes on when the caller leaves.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfinished> {
        let patience = if self.is_overdue() { HURRY.min(self.0.patience) } else { self.0.patience };
        let deadline = Instant::now() + patience;
        let late = || Unfinished::Late { kind: self.0.kind, patience };
        let place = tokio::time::timeout_at(deadline, self.place()).await.map_err(|_| late())??;
        let running = Arc::new(Running { shared: self.0.clone(), state: AtomicU8::new(WAITED_FOR) });
        let ending = Ending(running.clone());
        let task = tokio::task::spawn_blocking(move || {
            let (_ending, _place) = (ending, place);
            work()
        });
        match tokio::time::timeout_at(deadline, task).await {
            Ok(result) => result.map_err(|error| self.broke_off(&error)),
            Err(_) => {
                running.give_up();
                Err(late())
            }
        }
    }

    /// Like [`Self::run`], for work on files.
    pub async fn run_io<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.run(work).await?
    }

    /// Waits for a place, without a deadline.
    pub async fn place(&self) -> Result<Place, Unfinished> {
        let place = self.0.places.clone().acquire_owned().await;
        place.map(|permit| Place { _permit: permit }).map_err(|error| self.broke_off(&error))
    }

    /// Runs `work` to its end, in a place that the caller has waited for.
    pub async fn run_at<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let task = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        task.await.map_err(|error| self.broke_off(&error))?
    }

    /// Returns whether work runs whose caller has given up.
    pub fn is_overdue(&self) -> bool {
        self.0.overdue.load(Ordering::Relaxed) > 0
    }

    fn broke_off(&self, why: &dyn std::fmt::Display) -> Unfinished {
        Unfinished::BrokeOff { kind: self.0.kind, why: why.to_string() }
    }
}

/// The caller waits for the work.
const WAITED_FOR: u8 = 0;
/// The caller has given up, and the work still runs.
const GIVEN_UP: u8 = 1;
/// The work has ended.
const ENDED: u8 = 2;

/// One piece of work, shared by its caller and its thread.
struct Running {
    shared: Arc<Shared>,
    /// [`WAITED_FOR`], [`GIVEN_UP`] or [`ENDED`].
    state: AtomicU8,
}

impl Running {
    /// Notes that the caller waits no longer.
    fn give_up(&self) {
        // Counted first, so that the thread never subtracts work that is not counted yet.
        self.shared.overdue.fetch_add(1, Ordering::Relaxed);
        if self.state.swap(GIVEN_UP, Ordering::AcqRel) == ENDED {
            self.shared.overdue.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Held by the thread until the work ends, also by a panic.
struct Ending(Arc<Running>);

impl Drop for Ending {
    fn drop(&mut self) {
        if self.0.state.swap(ENDED, Ordering::AcqRel) == GIVEN_UP {
            self.0.shared.overdue.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_hangs_is_given_up_and_takes_no_more_threads_than_places() {
        let pool = Pool::new("a test", 2, Duration::from_millis(50));
        let (release, hold) = mpsc::channel::<()>();
        let hold = Arc::new(std::sync::Mutex::new(hold));
        for _ in 0..2 {
            let hold = hold.clone();
            let hung = pool.run(move || drop(hold.lock().map(|hold| hold.recv()))).await;
            assert!(matches!(hung, Err(Unfinished::Late { .. })), "{hung:?}");
        }
        assert!(pool.is_overdue());
        let queued = pool.run(|| ()).await;
        assert!(matches!(queued, Err(Unfinished::Late { .. })), "there is no third thread: {queued:?}");

        // Other kinds of work go on.
        Pool::new("another test", 1, Duration::from_secs(20)).run(|| ()).await.expect("its own thread");

        // When the disk is well again, so is the pool.
        drop(release);
        while pool.is_overdue() {
            tokio::task::yield_now().await;
        }
        // A busy machine may be late, too.
        while pool.run(|| ()).await.is_err() {}
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_frees_its_place() {
        let pool = Pool::new("a test", 1, Duration::from_secs(20));
        let broken = pool.run(|| panic!("on purpose")).await;
        assert!(matches!(broken, Err(Unfinished::BrokeOff { .. })));
        assert_eq!(pool.run(|| 1).await.expect("a place"), 1);
        assert!(!pool.is_overdue());
    }
}
