//! Remembering for a short while that something does not exist, or is not for who asked.

use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::failure::{Failure, FailureKind};
use crate::routing::Target;
use crate::upstream::WhoId;

/// Absences kept, about; a client can ask for any number of names.
const ENTRIES: usize = 10_000;
/// And the memory for them: names are as long as clients make them, and messages as upstreams do.
const BYTES: u64 = 8 << 20;

/// Confirmed absences and denials, by repository, page and who was told.
pub struct Absences(Cache<Key, (Instant, Failure), ByLength>);

type Key = (String, String, WhoId);

impl Default for Absences {
    fn default() -> Self {
        Self(Cache::with_weighter(ENTRIES, BYTES, ByLength))
    }
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, (Instant, Failure)> for ByLength {
    fn weight(&self, (repository, page, _): &Key, (_, failure): &(Instant, Failure)) -> u64 {
        256 + (repository.len() + page.len() + failure.message().len()) as u64
    }
}

impl Absences {
    /// Forgets all: the upstreams may be others now.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// The failure that is remembered for `page` of a target's repository.
    pub fn recall(&self, target: &Target, page: &str) -> Result<(), Failure> {
        let key = key(target, page);
        match self.0.get(&key) {
            Some((until, failure)) if Instant::now() < until => Err(failure),
            Some(_) => {
                self.0.remove(&key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Remembers a failure that is a confirmed absence or a denial for `life`; others pass. A client that is denied asks
    /// again at once, in other ways and with another token: that changes nothing upstream.
    pub fn remember(&self, target: &Target, page: &str, life: Duration, failure: &Failure) {
        // A blob may be refused by the storage behind the registry, where a signature ended: that is over with the next.
        let is_denial = failure.kind == FailureKind::Denied && !page.starts_with("blobs/");
        let is_final = failure.kind == FailureKind::NotFound || is_denial;
        let (key, now) = (key(target, page), Instant::now());
        // What is told from memory does not renew it.
        let is_known = self.0.get(&key).is_some_and(|(until, _)| now < until);
        if is_final && life > Duration::ZERO && !is_known {
            self.0.insert(key, (now + life, failure.clone()));
        }
    }
}

fn key(target: &Target, page: &str) -> Key {
    (target.repository.config.asked_as(), format!("{}/{page}", target.name), target.who.id())
}
