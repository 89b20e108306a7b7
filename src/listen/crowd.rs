//! Counts the connections of each address, and the running requests.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::counted_as;

/// Most running requests at one door, for all clients together: each holds buffers, and some wait for long.
const REQUESTS: usize = 16_384;
/// Most running requests of one address.
const REQUESTS_BY_ADDRESS: usize = REQUESTS / 2;

/// Counts connections and requests by address. An IPv6 address counts with its /64.
#[derive(Debug)]
pub struct Crowd {
    /// Most connections of one address; `None`: any number.
    limit: Option<usize>,
    open: Mutex<HashMap<IpAddr, Arc<Load>>>,
    requests: Arc<AtomicUsize>,
}

/// The open connections and running requests of one address.
#[derive(Debug)]
pub struct Load {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// The running requests of all addresses.
    all_requests: Arc<AtomicUsize>,
}

/// A connection that is counted until this value is dropped.
#[derive(Debug)]
pub struct Counted {
    crowd: Arc<Crowd>,
    address: IpAddr,
    load: Arc<Load>,
}

/// A request that is counted until this value is dropped.
#[derive(Debug)]
pub struct Request(Arc<Load>);

impl Crowd {
    /// Creates a count without connections. `limit`: most connections of one address; `None`: any number.
    pub fn new(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default(), requests: Arc::default() })
    }

    /// Counts a connection. Returns `None` if the address has as many as it may have.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Counted> {
        let address = counted_as(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let load = open.entry(address).or_insert_with(|| {
            let all_requests = self.requests.clone();
            Arc::new(Load { connections: AtomicUsize::new(0), requests: AtomicUsize::new(0), all_requests })
        });
        if self.limit.is_some_and(|limit| load.connections.load(Ordering::Relaxed) >= limit) {
            return None;
        }
        load.connections.fetch_add(1, Ordering::Relaxed);
        Some(Counted { crowd: self.clone(), address, load: load.clone() })
    }
}

impl Counted {
    /// Returns the load of the connection's address.
    pub fn load(&self) -> Arc<Load> {
        self.load.clone()
    }
}

impl Load {
    /// Counts a request. Returns `None` if too many are running.
    pub fn begin(self: &Arc<Self>) -> Option<Request> {
        let own = self.requests.fetch_add(1, Ordering::Relaxed);
        let all = self.all_requests.fetch_add(1, Ordering::Relaxed);
        let request = Request(self.clone());
        (own < REQUESTS_BY_ADDRESS && all < REQUESTS).then_some(request)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        self.0.all_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.crowd.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.load.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            open.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_so_many_and_others_as_many_too() {
        let crowd = Crowd::new(Some(2));
        let enter = |text: &str| crowd.enter(text.parse().expect("an address"));
        let (first, second) = (enter("192.0.2.1"), enter("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some() && enter("192.0.2.1").is_none());
        let _others = (enter("192.0.2.2").expect("another"), enter("2001:db8::1").expect("another"));
        let _more = enter("2001:db8::2").expect("the second of its network");
        assert!(enter("2001:db8::3").is_none());
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        drop(second);
        assert_eq!(crowd.open.lock().expect("not poisoned").len(), 2, "nothing is kept of who left");
        assert!(Crowd::new(None).enter("192.0.2.1".parse().expect("an address")).is_some());
    }

    #[test]
    fn one_address_does_not_take_all_requests_and_all_together_are_bounded() {
        let crowd = Crowd::new(None);
        let [one, two, three] = [1, 2, 3].map(|last| crowd.enter(IpAddr::from([192, 0, 2, last])).expect("a place"));
        let begin = |counted: &Counted| counted.load().begin();
        let first: Vec<_> = (0..REQUESTS).filter_map(|_| begin(&one)).collect();
        assert_eq!(first.len(), REQUESTS_BY_ADDRESS);
        let second: Vec<_> = (0..REQUESTS).filter_map(|_| begin(&two)).collect();
        assert_eq!(second.len(), REQUESTS - REQUESTS_BY_ADDRESS);
        assert!(begin(&three).is_none());
        drop(first);
        assert!(begin(&three).is_some());
        drop(second);
        assert_eq!(crowd.requests.load(Ordering::Relaxed), 0);
    }
}
