//! A queue for work of which only a little may run at once. The address with the fewest turns so far goes first, so a
//! flood of logins from one address keeps no other address waiting.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The queue, which hands out turns.
pub struct Turns {
    state: Mutex<State>,
    most_waiting: usize,
}

struct State {
    free: usize,
    /// The logins that wait, by rank, then in the order in which they came.
    waiting: BTreeMap<(u32, u64), oneshot::Sender<Turn>>,
    next: u64,
}

/// The right to work, until it is dropped.
pub struct Turn(Arc<Turns>);

/// A place in the queue. When it is dropped, it leaves the queue.
struct Waiting {
    turns: Arc<Turns>,
    key: (u32, u64),
    told: oneshot::Receiver<Turn>,
}

impl Turns {
    /// Makes a queue: `at_once` turns may be held at once, and `most_waiting` logins may wait.
    pub fn new(at_once: usize, most_waiting: usize) -> Arc<Self> {
        let state = State { free: at_once, waiting: BTreeMap::new(), next: 0 };
        Arc::new(Self { state: Mutex::new(state), most_waiting })
    }

    /// Waits for a turn; the lowest rank goes first. `None`: too many of the same or a lower rank wait already.
    pub async fn take(self: &Arc<Self>, rank: u32) -> Option<Turn> {
        let mut waiting = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Some(Turn(self.clone()));
            }
            if state.waiting.len() >= self.most_waiting {
                let last = state.waiting.last_entry()?;
                if last.key().0 <= rank {
                    return None;
                }
                last.remove();
            }
            let (tell, told) = oneshot::channel();
            let key = (rank, state.next);
            state.next += 1;
            state.waiting.insert(key, tell);
            Waiting { turns: self.clone(), key, told }
        };
        (&mut waiting.told).await.ok()
    }

    fn hand_on(self: &Arc<Self>) {
        let next = {
            let mut state = self.lock();
            let next = state.waiting.pop_first();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some((_, tell)) = next {
            // If the waiting login was given up meanwhile, its turn is dropped here, which hands the turn on.
            drop(tell.send(Turn(self.clone())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.hand_on();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.turns.lock().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Returns the order in which logins of these ranks get their turns when all of them wait.
    fn order(ranks: &[u32]) -> Vec<usize> {
        let turns = Turns::new(1, 100);
        let running = turns.take(0).now_or_never().flatten().expect("it is free");
        let mut waiting: Vec<_> = ranks.iter().map(|&rank| Some(Box::pin(turns.take(rank)))).collect();
        let mut poll = |order: &mut Vec<usize>| {
            let mut served = Vec::new();
            for (at, place) in waiting.iter_mut().enumerate() {
                if let Some(turn) = place.as_mut().and_then(|waits| waits.now_or_never()) {
                    served.push(turn.expect("a turn"));
                    *place = None;
                    order.push(at);
                }
            }
            served
        };
        let mut order = Vec::new();
        assert!(poll(&mut order).is_empty(), "it is taken");
        drop(running);
        while order.len() < ranks.len() {
            let served = poll(&mut order);
            assert_eq!(served.len(), 1, "one at a time");
        }
        order
    }

    #[test]
    fn who_had_least_goes_first_and_else_who_came_first() {
        // Twenty logins of one address, then one each of two others.
        let flood: Vec<u32> = (0..20).collect();
        assert_eq!(order(&[&flood[..], &[0, 0]].concat())[..4], [0, 20, 21, 1]);
        assert_eq!(order(&[3, 0, 3, 1]), [1, 3, 0, 2]);
    }

    #[test]
    fn who_leaves_takes_no_turn_along() {
        let turns = Turns::new(1, 100);
        let running = turns.take(0).now_or_never().flatten().expect("it is free");
        let mut left = Box::pin(turns.take(0));
        let mut told = Box::pin(turns.take(0));
        let mut last = Box::pin(turns.take(0));
        for waits in [&mut left, &mut told, &mut last] {
            assert!(waits.now_or_never().is_none());
        }
        drop(left);
        drop(running);
        // This login was given a turn, and leaves before it notices.
        drop(told);
        let turn = last.now_or_never().flatten().expect("a turn");
        drop(turn);
        assert!(turns.take(0).now_or_never().flatten().is_some());
        assert_eq!(turns.lock().waiting.len(), 0);
    }

    #[test]
    fn when_too_many_wait_the_last_one_goes() {
        let turns = Turns::new(1, 2);
        let running = turns.take(0).now_or_never().flatten().expect("it is free");
        let mut waiting = [5, 7].map(|rank| Box::pin(turns.take(rank)));
        for waits in &mut waiting {
            assert!(waits.now_or_never().is_none());
        }
        assert!(turns.take(7).now_or_never().expect("told at once").is_none());
        let mut first = Box::pin(turns.take(0));
        assert!((&mut first).now_or_never().is_none());
        let [five, seven] = waiting;
        assert!(seven.now_or_never().expect("told at once").is_none(), "it made room");
        drop(running);
        assert!(first.now_or_never().flatten().is_some());
        assert!(five.now_or_never().flatten().is_some());
    }
}
