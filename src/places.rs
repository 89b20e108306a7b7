//! Places for work that leads upstream: transfers, the connections for blobs of one upstream, questions, forwarded
//! requests. Places are shared out so that no client and no upstream can take those that others need.
//!
//! Work that finds no place waits. A free place goes to the upstream with the fewest running transfers, and among its
//! clients to the one with the fewest.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// How many transfers may wait, for each place. Further ones are turned away.
const WAITING: usize = 4;
/// One in this many places stays free of work that no client waits for.
const SPARED: usize = 4;

/// How many of all places each party may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    pub source: usize,
    pub client: usize,
    /// For one client at one source.
    pub pair: usize,
    /// For all sources together that only clients name.
    pub unnamed: usize,
    /// For one client at those sources.
    pub unnamed_client: usize,
}

impl Shares {
    /// Returns the shares of `most` places for many sources: a source may have three quarters, and a client half.
    pub fn of_many(most: usize) -> Self {
        Self {
            source: (most * 3).div_ceil(4),
            client: most.div_ceil(2),
            pair: (most * 3).div_ceil(8),
            unnamed: most.div_ceil(4),
            unnamed_client: most.div_ceil(8),
        }
    }

    /// Returns the shares of `most` places at one source: a client may have three quarters.
    pub fn of_one(most: usize) -> Self {
        let client = (most * 3).div_ceil(4);
        Self { source: most, client, pair: client, unnamed: most, unnamed_client: client }
    }
}

/// The client that a transfer is for, and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The repository or host that the transfer comes from.
    pub source: Arc<str>,
    /// The client that asked first; `None`: no particular client.
    pub client: Option<IpAddr>,
    /// Whether the configuration names the source; `false` if only a client of the proxy door names it.
    pub is_named: bool,
}

/// The places and the parties that have them. Clones share them.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    most: usize,
    shares: Shares,
    running: usize,
    /// Running transfers from sources that only clients name.
    unnamed: usize,
    by_source: HashMap<Arc<str>, usize>,
    by_client: HashMap<IpAddr, usize>,
    by_pair: HashMap<(Arc<str>, IpAddr), usize>,
    waiting: Vec<Waiting>,
    next: u64,
    /// How many transfers that nobody reads are asked to give up their place.
    wanted: usize,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    party: Party,
    granted: oneshot::Sender<Place>,
}

/// A place; dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    state: Arc<Mutex<State>>,
    party: Party,
}

/// The error that no place became free in time, or that too many transfers wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPlace;

impl Places {
    /// Creates places for work at many sources.
    pub fn new(most: usize) -> Self {
        Self::shared(most, Shares::of_many(most.max(1)))
    }

    /// Creates places at one source.
    pub fn of_one(most: usize) -> Self {
        Self::shared(most, Shares::of_one(most.max(1)))
    }

    fn shared(most: usize, shares: Shares) -> Self {
        Self(Arc::new(Mutex::new(State {
            most: most.max(1),
            shares,
            running: 0,
            unnamed: 0,
            by_source: HashMap::new(),
            by_client: HashMap::new(),
            by_pair: HashMap::new(),
            waiting: Vec::new(),
            next: 0,
            wanted: 0,
        })))
    }

    /// Waits for a place, at most for `patience`.
    pub async fn take(&self, party: Party, patience: Duration) -> Result<Place, NoPlace> {
        if let Some(place) = self.take_now(party.clone()) {
            return Ok(place);
        }
        let (number, granted) = {
            let mut state = self.state();
            if !state.may_wait(&party) {
                return Err(NoPlace);
            }
            let (granted, place) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.waiting.push(Waiting { number, party, granted });
            state.wanted += 1;
            (number, place)
        };
        let leaving = Leaving { places: self, number };
        let waited = tokio::time::timeout(patience, granted).await;
        drop(leaving);
        waited.map_err(|_| NoPlace)?.map_err(|_| NoPlace)
    }

    /// Returns a place if one is free now.
    pub fn take_now(&self, party: Party) -> Option<Place> {
        let mut state = self.state();
        let is_next = state.waiting.iter().all(|waiting| !state.may_run(&waiting.party)) && state.may_run(&party);
        is_next.then(|| {
            state.begin(&party);
            Place { state: self.0.clone(), party }
        })
    }

    /// Returns a place for work that no client waits for, if nothing waits and a client who comes next still finds a
    /// place. A single place is given to such work, too: see [`Self::should_yield`].
    pub fn take_spare(&self, party: Party) -> Option<Place> {
        let mut state = self.state();
        let may_run = state.has_spare() && state.may_run(&party);
        may_run.then(|| {
            state.begin(&party);
            Place { state: self.0.clone(), party }
        })
    }

    /// Returns whether there is a place for work that no client waits for.
    pub fn has_spare(&self) -> bool {
        self.state().has_spare()
    }

    /// Returns whether a transfer that nobody reads has to give up its place now. After `true`, that transfer has to
    /// end.
    pub fn should_yield(&self) -> bool {
        let mut state = self.state();
        let is_wanted = state.wanted > 0 && !state.waiting.is_empty();
        state.wanted -= usize::from(is_wanted);
        is_wanted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a transfer from the waiting ones, also when its task is dropped.
struct Leaving<'a> {
    places: &'a Places,
    number: u64,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut state = self.places.state();
        state.waiting.retain(|waiting| waiting.number != self.number);
        state.wanted = state.wanted.min(state.waiting.len());
    }
}

impl State {
    fn has_spare(&self) -> bool {
        let is_spare = self.most - self.running > self.most.div_ceil(SPARED) || self.running == 0;
        self.waiting.is_empty() && is_spare
    }

    /// Returns whether a transfer may begin, by the shares of its kind, source and client.
    fn may_run(&self, party: &Party) -> bool {
        let Shares { source, client, pair, unnamed, unnamed_client } = self.shares;
        let of_source = count(&self.by_source, &party.source);
        let of_client = party.client.map_or(0, |client| count(&self.by_client, &client));
        let of_pair = party.client.map_or(0, |client| count(&self.by_pair, &(party.source.clone(), client)));
        let is_fair = of_source < source && of_client < client && of_pair < pair;
        let is_fair_unnamed = self.unnamed < unnamed && of_client < unnamed_client;
        self.running < self.most && is_fair && (party.is_named || is_fair_unnamed)
    }

    /// Returns whether a transfer may wait. One client or one source cannot have all waiting transfers.
    fn may_wait(&self, party: &Party) -> bool {
        let most = self.most * WAITING;
        let waiting = |is_same: &dyn Fn(&Party) -> bool| self.waiting.iter().filter(|w| is_same(&w.party)).count();
        self.waiting.len() < most
            && waiting(&|other| other.source == party.source) < most.div_ceil(2)
            && (party.client.is_none() || waiting(&|other| other.client == party.client) < most.div_ceil(4))
    }

    fn begin(&mut self, party: &Party) {
        self.running += 1;
        self.unnamed += usize::from(!party.is_named);
        *self.by_source.entry(party.source.clone()).or_default() += 1;
        if let Some(client) = party.client {
            *self.by_client.entry(client).or_default() += 1;
            *self.by_pair.entry((party.source.clone(), client)).or_default() += 1;
        }
    }

    fn end(&mut self, party: &Party) {
        self.running -= 1;
        self.unnamed -= usize::from(!party.is_named);
        leave(&mut self.by_source, &party.source);
        if let Some(client) = party.client {
            leave(&mut self.by_client, &client);
            leave(&mut self.by_pair, &(party.source.clone(), client));
        }
    }

    /// Returns the waiting transfer that is next: of those whose shares allow it, the one whose source has the fewest
    /// transfers, then the one whose client has the fewest.
    fn next(&self) -> Option<usize> {
        let may_run = self.waiting.iter().enumerate().filter(|(_, waiting)| self.may_run(&waiting.party));
        let order = |waiting: &Waiting| {
            let of_client = waiting.party.client.map_or(0, |client| count(&self.by_client, &client));
            (count(&self.by_source, &waiting.party.source), of_client, waiting.number)
        };
        may_run.min_by_key(|(_, waiting)| order(waiting)).map(|(at, _)| at)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut undelivered = Vec::new();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.end(&self.party);
            while let Some(at) = state.next() {
                let Waiting { party, granted, .. } = state.waiting.swap_remove(at);
                state.begin(&party);
                let place = Place { state: self.state.clone(), party };
                // If the receiver has left, the place comes back and is dropped outside the lock.
                undelivered.extend(granted.send(place).err());
            }
            state.wanted = state.wanted.min(state.waiting.len());
        }
        drop(undelivered);
    }
}

fn count<K: Eq + Hash>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or(0)
}

fn leave<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn party(source: &str, client: u8, is_named: bool) -> Party {
        Party { source: source.into(), client: Some(Ipv4Addr::new(192, 0, 2, client).into()), is_named }
    }

    fn take_now(places: &Places, party: Party) -> Option<Place> {
        places.take_now(party)
    }

    fn is_empty(places: &Places) -> bool {
        let state = places.state();
        state.running == 0
            && state.unnamed == 0
            && state.by_source.is_empty()
            && state.by_client.is_empty()
            && state.by_pair.is_empty()
            && state.waiting.is_empty()
            && state.wanted == 0
    }

    #[tokio::test(start_paused = true)]
    async fn no_source_and_no_client_takes_the_last_places() {
        let places = Places::new(64);
        let mut held: Vec<_> = (0..100).filter_map(|at| take_now(&places, party("slow", at, true))).collect();
        assert_eq!(held.len(), 48, "three quarters for one source");
        held.extend((0..100).filter_map(|_| take_now(&places, party("quick", 1, true))));
        assert_eq!(held.len(), 64);
        drop(held);
        let greedy: Vec<_> = (0..100).filter_map(|at| take_now(&places, party(&format!("{at}"), 1, true))).collect();
        assert_eq!(greedy.len(), 32, "half for one client");
        assert!(take_now(&places, party("any", 2, true)).is_some());
        drop(greedy);
        let patient: Vec<_> = (0..100).filter_map(|_| take_now(&places, party("slow", 1, true))).collect();
        assert_eq!(patient.len(), 24, "three eighths for one client at one source");
        assert!(take_now(&places, party("quick", 1, true)).is_some(), "it gets other things meanwhile");
        drop(patient);
        assert!(is_empty(&places));
    }

    #[tokio::test(start_paused = true)]
    async fn sources_that_only_clients_name_have_a_small_share() {
        let places = Places::new(64);
        let one: Vec<_> = (0..100).filter_map(|at| take_now(&places, party(&format!("{at}"), 1, false))).collect();
        assert_eq!(one.len(), 8, "an eighth for one client");
        let all: Vec<_> = (2..100).filter_map(|at| take_now(&places, party(&format!("{at}"), at, false))).collect();
        assert_eq!(one.len() + all.len(), 16, "a quarter for all");
        assert!(take_now(&places, party("hub", 1, true)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn at_one_source_a_client_alone_has_three_quarters() {
        let places = Places::of_one(64);
        let one: Vec<_> = (0..100).filter_map(|_| take_now(&places, party("a", 1, true))).collect();
        let other: Vec<_> = (0..100).filter_map(|_| take_now(&places, party("a", 2, true))).collect();
        assert_eq!((one.len(), other.len()), (48, 16));
        drop((one, other));
        assert!(take_now(&Places::of_one(1), party("a", 1, true)).is_some());
        assert!(is_empty(&places));
    }

    #[tokio::test(start_paused = true)]
    async fn a_free_place_goes_to_the_source_and_the_client_with_the_fewest() {
        let places = Places::new(4);
        let mut held: Vec<_> = [("a", 1), ("a", 2), ("b", 1), ("a", 3)]
            .into_iter()
            .map(|(source, client)| take_now(&places, party(source, client, true)).expect("a place"))
            .collect();
        let waits = |source: &str, client: u8| {
            let (places, party) = (places.clone(), party(source, client, true));
            tokio::spawn(async move { places.take(party, PATIENCE).await })
        };
        let first = waits("a", 4);
        tokio::task::yield_now().await;
        let (second, third) = (waits("b", 1), waits("b", 9));
        tokio::task::yield_now().await;
        assert!(take_now(&places, party("c", 7, true)).is_none(), "who comes later waits, too");
        drop(held.pop());
        let got = third.await.expect("no panic").expect("a place");
        drop(held.pop());
        let more = second.await.expect("no panic").expect("a place");
        drop((got, more));
        drop(first.await.expect("no panic").expect("a place"));
        drop(held);
        assert!(is_empty(&places));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_without_end_and_not_too_many_wait() {
        let places = Places::new(1);
        let held = take_now(&places, party("a", 1, true)).expect("a place");
        assert_eq!(places.take(party("b", 2, true), PATIENCE).await.err(), Some(NoPlace));
        assert!(places.state().waiting.is_empty(), "who has left does not wait");
        let waits = |source: &'static str, client: u8| {
            let places = places.clone();
            tokio::spawn(async move { places.take(party(source, client, true), PATIENCE).await.map(drop) })
        };
        let refused = |source: &'static str, client: u8| {
            let taken = places.take(party(source, client, true), PATIENCE).now_or_never();
            assert_eq!(taken.expect("at once").err(), Some(NoPlace), "{source} {client}");
        };
        let mut waiting = vec![waits("b", 1)];
        tokio::task::yield_now().await;
        refused("c", 1);
        waiting.push(waits("b", 2));
        tokio::task::yield_now().await;
        refused("b", 3);
        waiting.extend([waits("c", 3), waits("c", 4)]);
        tokio::task::yield_now().await;
        refused("d", 9);
        drop(held);
        for waiting in waiting {
            assert_eq!(waiting.await.expect("no panic"), Ok(()));
        }
        assert!(is_empty(&places));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_nobody_waits_for_leaves_places_free() {
        let nobody = || Party { client: None, ..party("a", 1, true) };
        for (most, spare) in [(1, 1), (2, 1), (4, 3), (64, 48)] {
            let places = Places::of_one(most);
            let held: Vec<_> = (0..100).filter_map(|_| places.take_spare(nobody())).collect();
            assert_eq!(held.len(), spare, "of {most}");
            assert_eq!(take_now(&places, party("a", 2, true)).is_some(), most > 1, "of {most}");
            drop(held);
            assert!(is_empty(&places));
        }
        let places = Places::new(2);
        let held: Vec<_> = (0..2).filter_map(|at| take_now(&places, party("a", at, true))).collect();
        let waiting = {
            let places = places.clone();
            tokio::spawn(async move { places.take(party("b", 9, true), PATIENCE).await })
        };
        tokio::task::yield_now().await;
        drop(held);
        assert!(waiting.await.expect("no panic").is_ok());
        assert!(places.take_spare(nobody()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_transfers_yield_as_others_wait() {
        let places = Places::new(2);
        let held: Vec<_> = (0..2).filter_map(|at| take_now(&places, party("a", at, true))).collect();
        assert!(!places.should_yield(), "nobody waits");
        let waiting = {
            let places = places.clone();
            tokio::spawn(async move { places.take(party("b", 9, true), PATIENCE).await })
        };
        tokio::task::yield_now().await;
        assert!(places.should_yield() && !places.should_yield(), "one is enough");
        drop(held);
        assert!(waiting.await.expect("no panic").is_ok());
        assert!(!places.should_yield());
    }
}
