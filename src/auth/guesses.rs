//! Counts wrong logins by address; an address with too many has to wait. Each login takes a place before it is
//! compared, so that no more logins than the limit are compared, however many come at once.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;

use super::{ClientAddress, NotNow};
use crate::clock::Instant;

/// Wrong logins that one address may try in one minute.
pub const GUESSES: u32 = 20;
/// Wrong logins that all addresses of one /48 of IPv6 together may try in one minute: a site has one /48, and with it
/// 65,536 networks to guess from.
pub const OF_A_SITE: u32 = 200;
/// The time after which the counts begin again at 0.
pub const MINUTE: Duration = Duration::from_secs(60);
/// Logins of one address that may be refused without a comparison in one minute. After that even a login that is known
/// from this address is refused: each of the refused logins could be a guess at it.
const UNSEEN: u32 = 500;
/// Most addresses and sites counted at the same time. An attacker with enough addresses to evict counts gains nothing:
/// that many addresses may try 200,000 logins a minute anyway.
const COUNTED: usize = 10_000;

/// Wrong logins by address.
pub struct Guesses(Cache<Counted, Arc<Mutex<Tally>>>);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Counted {
    Address(ClientAddress),
    /// A /48 of IPv6.
    Site([u16; 3]),
}

impl Counted {
    fn limit(self) -> u32 {
        match self {
            Self::Address(_) => GUESSES,
            Self::Site(_) => OF_A_SITE,
        }
    }
}

#[derive(Default)]
struct Tally {
    /// When the first login of this minute was wrong or refused.
    since: Option<Instant>,
    wrong: u32,
    /// Logins that are being compared now.
    running: u32,
    /// Logins refused without a comparison.
    unseen: u32,
}

impl Tally {
    /// Returns how much of this minute is left. In the next minute all counts begin at 0.
    fn left(&mut self) -> Duration {
        let left = self.since.map_or(MINUTE, |since| MINUTE.saturating_sub(since.elapsed()));
        if !left.is_zero() {
            return left;
        }
        (self.since, self.wrong, self.unseen) = (None, 0, 0);
        MINUTE
    }

    /// Returns how many logins count already, or why no further login is compared.
    fn look(&mut self, limit: u32) -> Result<u32, NotNow> {
        let left = self.left();
        if self.wrong + self.running < limit {
            return Ok(self.wrong + self.running);
        }
        self.unseen = self.unseen.saturating_add(1);
        self.since.get_or_insert_with(Instant::now);
        Err(if self.wrong >= limit { NotNow::Guessing(left) } else { NotNow::Crowded })
    }
}

/// A login that is being compared. When it is dropped, it no longer counts.
pub struct Attempt {
    taken: Vec<Arc<Mutex<Tally>>>,
    /// How many logins of the same address or site counted before this login.
    pub rank: u32,
}

impl Attempt {
    /// Notes that the login was wrong: it counts for the rest of the minute.
    pub fn was_wrong(self) {
        for tally in &self.taken {
            let mut tally = lock(tally);
            tally.wrong += 1;
            tally.since.get_or_insert_with(Instant::now);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.taken.iter().for_each(|tally| lock(tally).running -= 1);
    }
}

impl Default for Guesses {
    fn default() -> Self {
        Self(Cache::new(COUNTED))
    }
}

impl Guesses {
    /// Checks whether an address may try a further login.
    pub fn may_guess(&self, address: ClientAddress) -> Result<(), NotNow> {
        for (tally, limit) in self.tallies(address) {
            lock(&tally).look(limit)?;
        }
        Ok(())
    }

    /// Takes a place for a login that is to be compared.
    pub fn reserve(&self, address: ClientAddress) -> Result<Attempt, NotNow> {
        let mut place = Attempt { taken: Vec::new(), rank: 0 };
        for (tally, limit) in self.tallies(address) {
            let mut counted = lock(&tally);
            place.rank = place.rank.max(counted.look(limit)?);
            counted.running += 1;
            drop(counted);
            place.taken.push(tally);
        }
        Ok(place)
    }

    /// Checks whether a login that is known from this address may be accepted.
    pub fn may_be_known(&self, address: ClientAddress) -> Result<(), NotNow> {
        let Some(tally) = self.0.get(&Counted::Address(address.counted())) else {
            return Ok(());
        };
        let mut tally = lock(&tally);
        let left = tally.left();
        if tally.unseen >= UNSEEN { Err(NotNow::Guessing(left)) } else { Ok(()) }
    }

    /// Returns the counts that a login of this address belongs to, with their limits.
    fn tallies(&self, address: ClientAddress) -> impl Iterator<Item = (Arc<Mutex<Tally>>, u32)> {
        let site = match address {
            ClientAddress::Known(IpAddr::V6(address)) => {
                let [a, b, c, ..] = address.segments();
                Some(Counted::Site([a, b, c]))
            }
            _ => None,
        };
        let counted = [Some(Counted::Address(address.counted())), site].into_iter().flatten();
        counted.map(|counted| {
            let Ok(tally) = self.0.get_or_insert_with(&counted, || Ok::<_, Infallible>(Arc::default()));
            (tally, counted.limit())
        })
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> ClientAddress {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn places_are_taken_before_it_is_known_who_is_wrong() {
        let guesses = Guesses::default();
        let mut places: Vec<_> = (0..GUESSES).map(|_| guesses.reserve(at("192.0.2.1")).expect("a place")).collect();
        assert!(places.iter().map(|place| place.rank).eq(0..GUESSES));
        assert!(matches!(guesses.reserve(at("192.0.2.1")), Err(NotNow::Crowded)));
        assert!(matches!(guesses.may_guess(at("192.0.2.1")), Err(NotNow::Crowded)));
        assert!(guesses.reserve(at("192.0.2.2")).is_ok());
        // A login that was right gives its place back.
        drop(places.pop());
        let place = guesses.reserve(at("192.0.2.1")).expect("a place");
        place.was_wrong();
        places.drain(..).for_each(Attempt::was_wrong);
        assert!(matches!(guesses.reserve(at("192.0.2.1")), Err(NotNow::Guessing(left)) if left <= MINUTE));
    }

    #[test]
    fn a_site_of_ipv6_has_a_limit_over_all_its_networks() {
        let guesses = Guesses::default();
        let mut compared = 0;
        for network in 0..100 {
            for host in 0..100 {
                if let Ok(place) = guesses.reserve(at(&format!("2001:db8:1:{network:x}::{host:x}"))) {
                    place.was_wrong();
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, OF_A_SITE);
        assert!(guesses.reserve(at("2001:db8:1:ffff::1")).is_err());
        assert!(guesses.reserve(at("2001:db8:2::1")).is_ok());
    }

    #[test]
    fn addresses_that_cannot_be_read_count_as_one_and_as_nobody_else() {
        let guesses = Guesses::default();
        for _ in 0..GUESSES {
            guesses.reserve(ClientAddress::Unknown).expect("a place").was_wrong();
        }
        assert!(guesses.reserve(ClientAddress::Unknown).is_err());
        assert!(guesses.reserve(at("127.0.0.1")).is_ok());
    }

    #[test]
    fn what_is_refused_unseen_is_counted_too() {
        let guesses = Guesses::default();
        for _ in 0..GUESSES {
            guesses.reserve(at("192.0.2.1")).expect("a place").was_wrong();
        }
        for _ in 0..UNSEEN {
            assert_eq!(guesses.may_be_known(at("192.0.2.1")), Ok(()));
            assert!(guesses.may_guess(at("192.0.2.1")).is_err());
        }
        assert!(guesses.may_be_known(at("192.0.2.1")).is_err());
        assert_eq!(guesses.may_be_known(at("192.0.2.2")), Ok(()));
    }
}
