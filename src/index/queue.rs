//! The queue of what writes to an index: bounded by count and by bytes. What does not fit is counted.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::{IndexError, Write};

/// Most writes that wait.
const WRITES: usize = 16 * 1024;
/// Most memory that these writes take, in bytes.
const BYTES: u64 = 32 << 20;
/// Most of that memory for writes that only help in an outage.
const SPARE_BYTES: u64 = 24 << 20;

/// One thing for the writer to do.
// Nearly all of them are writes, which a box for each would only make slower.
#[allow(clippy::large_enum_variant)]
pub enum Task<C> {
    Write(Write),
    /// A change for whose result a caller waits.
    Change(C),
    Flush(oneshot::Sender<()>),
    /// Ends the thread. Answered when everything is on disk that is ever going to be.
    Close(oneshot::Sender<()>),
}

/// The queue.
pub struct Tasks<C> {
    state: Mutex<State<C>>,
    /// Notified when there is something to do.
    work: Condvar,
    /// The same, for a task.
    task: Notify,
    /// Notified when there is room for more.
    room: Condvar,
    /// The same, for tasks.
    task_room: Notify,
}

impl<C> Default for Tasks<C> {
    fn default() -> Self {
        let state = State { tasks: VecDeque::new(), writes: 0, bytes: 0, is_closed: false };
        let (work, room) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::new(state), work, task: Notify::new(), room, task_room: Notify::new() }
    }
}

struct State<C> {
    tasks: VecDeque<Task<C>>,
    writes: usize,
    bytes: u64,
    is_closed: bool,
}

impl<C> State<C> {
    fn is_full(&self, weight: u64, most: u64) -> bool {
        self.writes >= WRITES || self.bytes + weight > most
    }

    /// Returns whether a write of upkeep has to wait. One larger than all that may wait is let in alone.
    fn has_no_room(&self, weight: u64) -> bool {
        !self.is_closed && self.writes > 0 && self.is_full(weight, BYTES)
    }

    fn push(&mut self, write: Write, weight: u64) {
        self.writes += 1;
        self.bytes += weight;
        self.tasks.push_back(Task::Write(write));
    }
}

impl<C> Tasks<C> {
    /// Adds a write if there is room for it.
    pub fn offer(&self, write: Write) -> Result<(), IndexError> {
        let weight = write.weight();
        let most = if write.is_spare() { SPARE_BYTES } else { BYTES };
        let mut state = self.state();
        if state.is_closed {
            return Err(IndexError::Closed);
        }
        if state.is_full(weight, most) {
            return Err(IndexError::Full);
        }
        state.push(write, weight);
        drop(state);
        self.woken();
        Ok(())
    }

    /// Adds a write; waits while there is no room.
    pub fn put(&self, write: Write) -> Result<(), IndexError> {
        let weight = write.weight();
        let waited = self.room.wait_while(self.state(), |state| state.has_no_room(weight));
        self.push(waited.unwrap_or_else(PoisonError::into_inner), write, weight)
    }

    /// Adds a write; waits while there is no room, without blocking, until `enough` ends.
    pub async fn put_within(&self, write: Write, enough: impl Future<Output = ()>) -> Result<(), IndexError> {
        let weight = write.weight();
        let mut enough = pin!(enough);
        loop {
            // Waits from here on, so that room which is made a moment later is noticed.
            let mut room = pin!(self.task_room.notified());
            room.as_mut().enable();
            {
                let state = self.state();
                if !state.has_no_room(weight) {
                    return self.push(state, write, weight);
                }
            }
            tokio::select! {
                () = room => {}
                () = &mut enough => return self.offer(write),
            }
        }
    }

    fn push(&self, mut state: MutexGuard<'_, State<C>>, write: Write, weight: u64) -> Result<(), IndexError> {
        if state.is_closed {
            return Err(IndexError::Closed);
        }
        state.push(write, weight);
        drop(state);
        self.woken();
        Ok(())
    }

    /// Adds a task for which a caller waits. There are no more such tasks than callers that wait.
    pub fn add(&self, task: Task<C>) -> Result<(), IndexError> {
        let mut state = self.state();
        if state.is_closed {
            return Err(IndexError::Closed);
        }
        state.tasks.push_back(task);
        drop(state);
        self.woken();
        Ok(())
    }

    /// Returns the next task; `None` if none comes within `patience`. Without `patience`, waits for one.
    pub fn take(&self, patience: Option<Duration>) -> Option<Task<C>> {
        let is_idle = |state: &mut State<C>| state.tasks.is_empty();
        let mut state = match patience {
            Some(patience) => {
                let waited = self.work.wait_timeout_while(self.state(), patience, is_idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.work.wait_while(self.state(), is_idle).unwrap_or_else(PoisonError::into_inner),
        };
        let task = state.tasks.pop_front()?;
        if let Task::Write(write) = &task {
            state.writes -= 1;
            state.bytes = state.bytes.saturating_sub(write.weight());
            drop(state);
            self.has_room();
        }
        Some(task)
    }

    /// Waits for the next task, without blocking. For one taker alone.
    pub async fn next(&self) -> Task<C> {
        loop {
            match self.take(Some(Duration::ZERO)) {
                Some(task) => return task,
                None => self.task.notified().await,
            }
        }
    }

    fn has_room(&self) {
        self.room.notify_all();
        self.task_room.notify_waiters();
    }

    fn woken(&self) {
        self.work.notify_one();
        self.task.notify_one();
    }

    /// Takes nothing more. Callers that wait for room or for an answer get an error.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let left = std::mem::take(&mut state.tasks);
        drop(state);
        drop(left);
        self.has_room();
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the writes that were lost.
#[derive(Debug, Default)]
pub struct Losses {
    /// In all.
    all: AtomicU64,
    /// Since that was last logged.
    in_burst: AtomicU64,
}

impl Losses {
    /// Returns how many writes were lost.
    pub fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// Counts lost writes whose loss is logged elsewhere.
    pub fn count(&self, count: u64) {
        self.all.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts lost writes. Logs a warning once, and no further one until the queue has been empty.
    pub fn add(&self, count: u64, why: &dyn std::fmt::Display) {
        self.count(count);
        if self.in_burst.fetch_add(count, Ordering::Relaxed) == 0 {
            tracing::warn!(%why, "changes to the index are dropped; they are learnt again");
        }
    }

    /// Logs how many writes were lost, now that the queue is empty.
    pub fn end_burst(&self) {
        let count = self.in_burst.swap(0, Ordering::Relaxed);
        if count > 0 {
            tracing::warn!(count, "the index has caught up; so many changes were dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{ListKey, Listing, Timestamp};
    use super::*;
    use crate::oci::Digest;

    fn used(number: u32) -> Write {
        let mut raw = [0; 32];
        raw[..4].copy_from_slice(&number.to_le_bytes());
        Write::Used { digest: Digest::Sha256(raw), at: Timestamp(0) }
    }

    fn list(bytes: usize) -> Write {
        let key = ListKey { repository: "r".to_owned(), name: "a".to_owned(), page: "tags/list".to_owned() };
        let listing = Listing {
            body: vec![0; bytes].into(),
            media_type: None,
            link: None,
            filters_applied: None,
            checked_at: Timestamp(0),
        };
        Write::Listing { key, listing }
    }

    #[test]
    fn what_waits_is_bounded_by_bytes_and_lists_leave_room_for_the_rest() {
        let tasks = Tasks::<()>::default();
        let taken = (0..100).filter(|_| tasks.offer(list(1 << 20)).is_ok()).count();
        assert_eq!(taken, 23, "24 MiB, with what each takes beside its body");
        assert!(matches!(tasks.offer(list(8 << 20)), Err(IndexError::Full)));
        tasks.offer(used(1)).expect("there is room for it");
        while tasks.take(Some(Duration::ZERO)).is_some() {}
        assert_eq!(tasks.state().bytes, 0);
        assert!(tasks.offer(list(8 << 20)).is_ok());
        assert!(matches!(tasks.offer(list(25 << 20)), Err(IndexError::Full)));
    }

    #[test]
    fn what_waits_is_bounded_by_count_and_who_waits_for_an_answer_is_let_in() {
        let tasks = Tasks::<()>::default();
        let taken = (0..20_000).filter(|&number| tasks.offer(used(number)).is_ok()).count();
        assert_eq!(taken, WRITES);
        tasks.add(Task::Flush(oneshot::channel().0)).expect("added");
    }

    #[test]
    fn upkeep_waits_for_room_and_loses_nothing() {
        let tasks = Arc::new(Tasks::<()>::default());
        let putting = tasks.clone();
        let upkeep = std::thread::spawn(move || (0..50_000).all(|number| putting.put(used(number)).is_ok()));
        for number in 0..50_000_u32 {
            match tasks.take(None) {
                Some(Task::Write(Write::Used { digest, .. })) => {
                    assert_eq!(digest.as_raw()[..4], number.to_le_bytes(), "in order");
                }
                _ => panic!("nothing else was put there"),
            }
            assert!(tasks.state().writes <= WRITES);
        }
        assert!(upkeep.join().expect("no panic"));
        // When the writing thread is gone, nobody waits for it.
        (0..).take_while(|&number| tasks.offer(used(number)).is_ok()).count();
        let putting = tasks.clone();
        let upkeep = std::thread::spawn(move || putting.put(used(0)));
        tasks.close();
        assert!(matches!(upkeep.join().expect("no panic"), Err(IndexError::Closed)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn upkeep_waits_for_room_without_a_thread_until_it_has_waited_enough() {
        let tasks = Arc::new(Tasks::<()>::default());
        let putting = tasks.clone();
        let upkeep = tokio::spawn(async move {
            for number in 0..50_000 {
                putting.put_within(used(number), std::future::pending()).await.expect("there will be room");
            }
        });
        for number in 0..50_000_u32 {
            match tasks.next().await {
                Task::Write(Write::Used { digest, .. }) => {
                    assert_eq!(digest.as_raw()[..4], number.to_le_bytes(), "in order");
                }
                _ => panic!("nothing else was put there"),
            }
            assert!(tasks.state().writes <= WRITES);
        }
        upkeep.await.expect("no panic");
        // Who has waited enough loses what finds no room.
        (0..).take_while(|&number| tasks.offer(used(number)).is_ok()).count();
        let enough = Arc::new(Notify::new());
        let (putting, waited) = (tasks.clone(), enough.clone());
        let upkeep = tokio::spawn(async move { putting.put_within(used(0), waited.notified()).await });
        enough.notify_one();
        assert!(matches!(upkeep.await.expect("no panic"), Err(IndexError::Full)));
        let putting = tasks.clone();
        let upkeep = tokio::spawn(async move { putting.put_within(used(0), std::future::pending()).await });
        tasks.close();
        assert!(matches!(upkeep.await.expect("no panic"), Err(IndexError::Closed)));
    }
}
