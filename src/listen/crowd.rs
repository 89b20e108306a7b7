//! How many connections each address has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::counted_as;

/// Counts connections by address; an IPv6 address counts with its /64.
#[derive(Debug)]
pub struct Crowd {
    /// `None`: any number.
    limit: Option<usize>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection, counted until this is dropped.
#[derive(Debug)]
pub struct Counted(Option<(Arc<Crowd>, IpAddr)>);

impl Crowd {
    pub fn new(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    /// Counts a connection; `None` if the address has as many as it may.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Counted> {
        let Some(limit) = self.limit else {
            return Some(Counted(None));
        };
        let address = counted_as(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Counted(Some((self.clone(), address))))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some((crowd, address)) = self.0.take() else {
            return;
        };
        let mut open = crowd.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&address);
            }
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
}
