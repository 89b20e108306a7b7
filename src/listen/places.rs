//! The connections of one door: how many may be open, and which one is closed when a new connection finds no place.
//!
//! An idle connection yields to one that wants something: first those of the address with the most connections, among
//! these the one that has been idle for longest. A connection with a running response is left alone, unless its client
//! has taken none of it for a while.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::pace::Pace;
use crate::auth::counted_as;

/// How long a new connection has for its first request, however few places are left.
const JUST_MADE: Duration = Duration::from_secs(1);
/// A tunnel yields when no bytes pass through it for this long.
const SILENT_TUNNEL: Duration = Duration::from_secs(30);
/// A client yields when it takes no byte of its response for this long.
const STUCK: Duration = Duration::from_secs(10);
/// Most connections of all addresses that wait.
const MOST_WAITING: usize = 64;
/// How long a connection waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a waiting connection looks for a free place, or for a connection that may be closed for it.
const LOOK: Duration = Duration::from_millis(100);

/// The places of one door.
#[derive(Debug)]
pub struct Places {
    most: usize,
    /// Accepted connections that wait because their address has many. Each entry tells its connection to give up.
    waiting: Mutex<VecDeque<Arc<AtomicBool>>>,
    open: Mutex<HashMap<u64, Open>>,
    freed: Notify,
}

#[derive(Debug)]
struct Open {
    address: IpAddr,
    pace: Arc<Pace>,
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    /// Creates places for `most` connections, at least one.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), waiting: Mutex::default(), open: Mutex::default(), freed: Notify::new() })
    }

    /// Waits until one more connection may be open. Closes an idle one if necessary.
    pub async fn wait_for_room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.open().len() < self.most {
                return;
            }
            self.relieve();
            // A connection that is told to close frees its place a moment later.
            let _ = tokio::time::timeout(LOOK, freed).await;
        }
    }

    /// Returns whether an address may have one more connection. When most places are taken by connections that do not
    /// yield now, an address that has many of these gets no more: the last places are for others.
    pub fn admits(&self, address: IpAddr) -> bool {
        let (address, now) = (counted_as(address), Instant::now());
        let open = self.open();
        let is_scarce = open.len() >= (self.most * 3).div_ceil(4);
        let busy = || open.values().filter(|open| yields_for(&open.pace, now).is_none());
        !is_scarce
            || busy().count() < (self.most * 3).div_ceil(4)
            || busy().filter(|open| open.address == address).count() < self.most.div_ceil(16)
    }

    /// Makes a connection wait whose address is not admitted now. If too many wait, the one that has waited for longest
    /// has to give up.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        let has_to_go = Arc::<AtomicBool>::default();
        let mut waiting = self.waiting();
        waiting.push_back(has_to_go.clone());
        if waiting.len() > self.most.div_ceil(2).min(MOST_WAITING)
            && let Some(longest) = waiting.pop_front()
        {
            longest.store(true, Ordering::Relaxed);
        }
        Waiting { places: self.clone(), has_to_go }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Arc<AtomicBool>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the connection that will be missed least to close. Returns whether there is one.
    pub fn relieve(&self) -> bool {
        let now = Instant::now();
        let open = self.open();
        let mut by_address = HashMap::<IpAddr, usize>::new();
        open.values().for_each(|open| *by_address.entry(open.address).or_default() += 1);
        let yields = open.values().filter_map(|open| Some((open, yields_for(&open.pace, now)?)));
        let missed_least = yields.max_by_key(|(open, (rank, rests))| {
            (*rank, by_address.get(&open.address).copied().unwrap_or_default(), *rests)
        });
        missed_least.inspect(|(open, _)| open.pace.close()).is_some()
    }

    /// Takes a place for a connection.
    pub fn enter(self: &Arc<Self>, address: IpAddr, pace: Arc<Pace>) -> Place {
        let number = pace.number();
        self.open().insert(number, Open { address: counted_as(address), pace });
        Place { places: self.clone(), number }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that waits until its address is admitted.
#[derive(Debug)]
pub struct Waiting {
    places: Arc<Places>,
    has_to_go: Arc<AtomicBool>,
}

impl Waiting {
    /// Waits for at most `PATIENCE`. Returns whether the address is admitted.
    pub async fn until_admitted(self, address: IpAddr) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !self.places.admits(address) {
            if Instant::now() >= deadline || self.has_to_go.load(Ordering::Relaxed) {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.places.waiting().retain(|waiting| !Arc::ptr_eq(waiting, &self.has_to_go));
    }
}

/// Returns how readily a connection yields (idle ones before stuck ones), and for how long it has done nothing. `None`:
/// it does not yield.
fn yields_for(pace: &Pace, now: Instant) -> Option<(u8, Duration)> {
    if pace.is_closing() {
        return None;
    }
    let rests_after = if pace.is_tunnel() { SILENT_TUNNEL } else { JUST_MADE };
    match (pace.idle_for(now), pace.stuck_for(now)) {
        (Some(idle), _) if idle >= rests_after => Some((1, idle)),
        (None, Some(stuck)) if stuck >= STUCK => Some((0, stuck)),
        _ => None,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.open().remove(&self.number);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    struct Connection {
        pace: Arc<Pace>,
        _place: Place,
    }

    fn connect(places: &Arc<Places>, last: u8) -> Connection {
        let pace = Arc::<Pace>::default();
        Connection { _place: places.enter(address(last), pace.clone()), pace }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_of_the_address_with_the_most_yields_and_a_busy_one_does_not() {
        let places = Places::new(4);
        let lonely = connect(&places, 1);
        let busy = connect(&places, 2);
        let running = busy.pace.begin();
        tokio::time::advance(Duration::from_secs(60)).await;
        let crowd = [connect(&places, 3), connect(&places, 3)];
        assert!(places.relieve() && lonely.pace.is_closing(), "those just made are left alone");
        drop(lonely);
        tokio::time::advance(JUST_MADE).await;
        assert!(places.relieve() && places.relieve() && !places.relieve());
        assert!(crowd.iter().all(|one| one.pace.is_closing()) && !busy.pace.is_closing());
        drop(running);
        tokio::time::advance(JUST_MADE).await;
        assert!(places.relieve() && busy.pace.is_closing());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_whose_connections_are_all_busy_does_not_get_the_last_places() {
        let places = Places::new(32);
        let mut open = Vec::new();
        while open.len() < 32 && places.admits(address(1)) {
            let one = connect(&places, 1);
            open.push((one.pace.begin(), one));
        }
        assert_eq!(open.len(), 24);
        for expected in [true, true, false] {
            assert_eq!(places.admits(address(2)), expected);
            let one = connect(&places, 2);
            open.push((one.pace.begin(), one));
        }
        open.drain(..4).for_each(drop);
        assert!(places.admits(address(1)), "some have left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_yields_after_a_while() {
        let places = Places::new(1);
        let stuck = connect(&places, 1);
        let mut answer = stuck.pace.begin().answer(Full::new(Bytes::from_static(b"x")));
        let piece = answer.frame().await.expect("a frame").expect("no error");
        tokio::time::advance(STUCK - Duration::from_secs(1)).await;
        assert!(!places.relieve());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(places.relieve() && stuck.pace.is_closing());
        drop(piece);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_for_a_place_that_becomes_free() {
        let places = Places::new(1);
        let idle = connect(&places, 1);
        let newcomer = {
            let places = places.clone();
            tokio::spawn(async move { places.wait_for_room().await })
        };
        idle.pace.closed().await;
        drop(idle);
        newcomer.await.expect("no panic");
        assert!(places.open().is_empty());
    }
}
