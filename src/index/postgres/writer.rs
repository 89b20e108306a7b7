//! The writing task: takes what is queued, and writes each batch in one transaction. While the server is away, the
//! batch waits, and the queue behind it fills up to its bounds.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::queue::{Losses, Task, Tasks};
use super::super::{Bounds, IndexError, Write};
use super::apply::apply;
use super::batch::batches;
use super::bounds::Counts;
use super::server::{Server, State, is_away};

/// Most writes in one transaction.
const BATCH: usize = 512;
/// About the most bytes of the writes in one transaction.
const BATCH_BYTES: u64 = 1 << 20;
/// How long one transaction may take.
const WRITE: Duration = Duration::from_secs(10);
/// How often the task looks, while the server is away, whether Larder ends.
const LOOK: Duration = Duration::from_millis(250);
/// How often a batch is tried that the server takes, but not in time or not beside others.
const TRIES: u32 = 10;

/// What the task and the callers of the index share.
#[derive(Default)]
pub struct Shared {
    pub tasks: Tasks<Infallible>,
    pub losses: Losses,
    bounds: Mutex<Bounds>,
    is_ending: AtomicBool,
    /// The number of this Larder's store.
    pub holder: AtomicI32,
}

impl Shared {
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
            let Err(error) = self.write_piece(piece).await else {
                continue;
            };
            if piece.len() > 1 && !is_away(&error) {
                let (first, second) = piece.split_at(piece.len() / 2);
                pieces.extend([second, first]);
                continue;
            }
            self.shared.losses.count(piece.len() as u64);
            tracing::error!(%error, count = piece.len(), "changes to the index were lost");
        }
    }

    /// Makes writes in one transaction; waits while the server is away, unless Larder ends.
    async fn write_piece(&self, writes: &[Write]) -> Result<(), IndexError> {
        if writes.is_empty() {
            return Ok(());
        }
        let batches = Arc::new(batches(writes));
        let mut tries = 0;
        loop {
            self.wait_for_server().await?;
            let (batches, holder) = (batches.clone(), self.shared.holder.load(Ordering::Relaxed));
            let time = if self.is_ending() { self.server.soon } else { WRITE };
            let written = self
                .server
                .change(time, move |client| {
                    let batches = batches.clone();
                    Box::pin(async move {
                        for batch in batches.iter() {
                            apply(client, holder, batch).await?;
                        }
                        Ok(())
                    })
                })
                .await;
            let Err(error) = written else {
                return Ok(());
            };
            tries += 1;
            let is_away = is_away(&error);
            if (is_away && self.is_ending()) || (!is_away && (!is_passing(&error) || tries >= TRIES)) {
                return Err(error);
            }
        }
    }

    /// Waits until the server answers. Fails if Larder ends before that.
    async fn wait_for_server(&self) -> Result<(), IndexError> {
        let mut states = self.server.states();
        loop {
            let well = states.wait_for(|state| *state == State::Well);
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

/// Returns whether the same may succeed a moment later: another transaction was in the way, or it took too long.
fn is_passing(error: &IndexError) -> bool {
    let IndexError::Postgres(error) = error else {
        return false;
    };
    // 40: broken off for the sake of another; 55P03: a lock was held too long; 57014: the statement's deadline.
    error.code().is_some_and(|code| code.code().starts_with("40") || ["55P03", "57014"].contains(&code.code()))
}
