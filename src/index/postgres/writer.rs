//! The writing task: takes what is queued, and writes each batch in one transaction. While the server is away or takes
//! no changes, the batch waits, and the queue behind it fills up to its bounds.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::queue::{Losses, Task, Tasks};
use super::super::{Bounds, IndexError, Write};
use super::apply::apply;
use super::batch::{Batch, batches};
use super::bounds::Counts;
use super::errors::{Trouble, trouble_of};
use super::server::{Server, State};
use super::uploads;
use super::values::Mine;
use crate::clock::Instant;

/// Most writes in one transaction.
const BATCH: usize = 512;
/// About the most bytes of the writes in one transaction.
const BATCH_BYTES: u64 = 1 << 20;
/// How long one transaction may take.
const WRITE: Duration = Duration::from_secs(10);
/// How often the task looks, while the server is away, whether Larder ends.
const LOOK: Duration = Duration::from_millis(250);
/// How often writes are tried that the server takes, but not in time or not beside others.
const TRIES: u32 = 10;
/// How long the task waits before it tries the same again; twice as long each time.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the task and the callers of the index share.
#[derive(Default)]
pub struct Shared {
    pub tasks: Tasks<Infallible>,
    pub losses: Losses,
    bounds: Mutex<Bounds>,
    is_ending: AtomicBool,
    /// As the server last told them.
    mine: Mutex<Mine>,
}

impl Shared {
    /// Returns the holders whose objects this Larder serves.
    pub fn mine(&self) -> Mine {
        *self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_mine(&self, mine: Mine) {
        *self.mine.lock().unwrap_or_else(PoisonError::into_inner) = mine;
    }

    pub fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    fn bounds(&self) -> Bounds {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the task when it has written what is queued, or cannot. `done` is answered then.
    pub fn end(&self, done: oneshot::Sender<()>) -> Result<(), IndexError> {
        self.is_ending.store(true, Ordering::Relaxed);
        self.tasks.add(Task::Close(done))
    }
}

/// The task.
pub struct Writer {
    server: Server,
    shared: Arc<Shared>,
    counts: Counts,
}

/// Some writes, who waits for them, and whether they are the last.
type Next = (Vec<Write>, Option<oneshot::Sender<()>>, bool);

impl Writer {
    /// Starts the task.
    pub fn start(server: Server, shared: Arc<Shared>) {
        let writer = Self { server, shared, counts: Counts::default() };
        tokio::spawn(writer.run());
    }

    async fn run(mut self) {
        // Also if the task is dropped, nobody waits for it any more.
        let _closing = Closing(self.shared.clone());
        loop {
            let (writes, done, is_end) = self.next().await;
            let count = writes.len() as u64;
            self.write(writes).await;
            if is_end {
                // Takes nothing more before the caller hears of it.
                self.shared.tasks.close();
            }
            let _ = done.map(|done| done.send(()));
            if is_end {
                return;
            }
            self.counts.wrote(count);
            let bounds = self.shared.bounds();
            self.counts.keep_within(&self.server, &bounds).await;
        }
    }

    /// Waits for something to do.
    async fn next(&self) -> Next {
        let tasks = &self.shared.tasks;
        let (mut writes, mut bytes) = (Vec::new(), 0);
        let mut next = tasks.take(Some(Duration::ZERO));
        if next.is_none() {
            self.shared.losses.end_burst();
            next = Some(tasks.next().await);
        }
        while let Some(task) = next {
            match task {
                Task::Write(write) => {
                    bytes += write.weight();
                    writes.push(write);
                }
                Task::Flush(done) => return (writes, Some(done), false),
                Task::Close(done) => return (writes, Some(done), true),
                Task::Change(never) => match never {},
            }
            if writes.len() >= BATCH || bytes >= BATCH_BYTES {
                break;
            }
            next = tasks.take(Some(Duration::ZERO));
        }
        (writes, None, false)
    }

    /// Makes writes. If the server takes them, but refuses one, only that one is lost.
    async fn write(&self, mut writes: Vec<Write>) {
        let bounds = self.shared.bounds();
        writes.retain(|write| bounds.admit(write));
        let mut pieces = vec![&writes[..]];
        while let Some(piece) = pieces.pop() {
            match self.write_piece(piece).await {
                Ok(()) => {}
                Err((Then::Halves, _)) => {
                    let (first, second) = piece.split_at(piece.len() / 2);
                    pieces.extend([second, first]);
                }
                Err((_, error)) => {
                    self.shared.losses.count(piece.len() as u64);
                    tracing::error!(%error, count = piece.len(), "changes to the index were lost");
                }
            }
        }
    }

    /// Makes writes; waits while the server is away or takes none, unless Larder ends. An error comes with what is to
    /// be done next.
    ///
    /// Each batch is a transaction of its own: one that refers to objects and behind that drops some would want a
    /// stronger lock of rows than it has, and two of them would wait for each other
    /// (<https://www.postgresql.org/docs/15/explicit-locking.html#LOCKING-DEADLOCKS>). Where it breaks off in between, all are
    /// made again in their order, which comes to the same.
    async fn write_piece(&self, writes: &[Write]) -> Result<(), (Then, IndexError)> {
        for batch in batches(writes).into_iter().filter(|batch| batch.writes > 0) {
            let (batch, mut tries) = (Arc::new(batch), 0);
            while let Err(error) = self.write_batch(&batch).await {
                tries += 1;
                let trouble = trouble_of(&error);
                match Then::of(trouble, writes.len(), tries, self.is_ending()) {
                    Then::Again => {
                        if matches!(trouble, Trouble::Refused | Trouble::Blocked | Trouble::Slow) {
                            self.server.refuses(error.to_string());
                        }
                        self.pause(tries).await;
                    }
                    next => return Err((next, error)),
                }
            }
            self.server.takes_changes();
        }
        Ok(())
    }

    async fn write_batch(&self, batch: &Arc<Batch>) -> Result<(), IndexError> {
        self.wait_for_server().await?;
        let (batch, mine) = (batch.clone(), self.shared.mine());
        let time = if self.is_ending() { self.server.soon } else { WRITE };
        let written = self.server.change(time, move |client| {
            let batch = batch.clone();
            Box::pin(async move {
                if batch.uploads.is_empty() {
                    apply(client, mine, &batch).await
                } else {
                    uploads::change(client, mine, &batch).await
                }
            })
        });
        written.await
    }

    /// Waits before the next try: longer each time, and not when Larder ends.
    async fn pause(&self, tries: u32) {
        let pause = PAUSE.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_ending() {
            tokio::time::sleep_until(until.min(Instant::now() + LOOK)).await;
        }
    }

    /// Waits until the server answers. Fails if Larder ends before that.
    async fn wait_for_server(&self) -> Result<(), IndexError> {
        let mut states = self.server.states();
        loop {
            let well = states.wait_for(|state| matches!(state, State::Well | State::Refusing(_)));
            match tokio::time::timeout(LOOK, well).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(IndexError::Closed),
                Err(_) if self.is_ending() => {
                    let why = self.server.trouble().unwrap_or_else(|| "it was not asked yet".to_owned());
                    return Err(IndexError::Away(why));
                }
                Err(_) => {}
            }
        }
    }

    fn is_ending(&self) -> bool {
        self.shared.is_ending.load(Ordering::Relaxed)
    }
}

/// Closes the queue when the task ends, however it ends.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.tasks.close();
    }
}

/// What to do with writes that the server has not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Try them again.
    Again,
    /// Try each half of them.
    Halves,
    Lost,
}

impl Then {
    /// `count`: of the writes; `tries`: how often they were tried.
    fn of(trouble: Trouble, count: usize, tries: u32, is_ending: bool) -> Self {
        let is_tried = tries >= TRIES;
        match trouble {
            Trouble::Away | Trouble::Refused | Trouble::Blocked | Trouble::Slow if is_ending => Self::Lost,
            Trouble::Away | Trouble::Refused | Trouble::Blocked => Self::Again,
            Trouble::Passing if !is_tried => Self::Again,
            Trouble::Slow if !is_tried && count == 1 => Self::Again,
            Trouble::Slow | Trouble::Passing | Trouble::Wrong if count > 1 => Self::Halves,
            Trouble::Slow | Trouble::Passing | Trouble::Wrong => Self::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_lost_only_where_they_can_never_be_made_or_larder_ends() {
        for trouble in [Trouble::Away, Trouble::Refused, Trouble::Blocked] {
            assert_eq!(Then::of(trouble, 512, 1_000, false), Then::Again, "{trouble:?}");
            assert_eq!(Then::of(trouble, 512, 1, true), Then::Lost, "{trouble:?}");
        }
        // Of many, some may be fast enough; a single one may be blocked.
        assert_eq!(Then::of(Trouble::Slow, 2, 1, false), Then::Halves);
        assert_eq!(Then::of(Trouble::Slow, 1, 1, false), Then::Again);
        assert_eq!(Then::of(Trouble::Slow, 1, TRIES, false), Then::Lost);
        assert_eq!(Then::of(Trouble::Slow, 512, 1, true), Then::Lost, "else a stop would wait for each of them");
        assert_eq!(Then::of(Trouble::Passing, 2, 1, true), Then::Again);
        assert_eq!(Then::of(Trouble::Passing, 2, TRIES, false), Then::Halves);
        assert_eq!(Then::of(Trouble::Wrong, 2, 1, true), Then::Halves);
        assert_eq!(Then::of(Trouble::Wrong, 1, 1, false), Then::Lost);
    }
}
