//! Remembers for a short time that something does not exist, or that a client may not read it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::routing::{Repository, Target};
use crate::upstream::WhoId;

/// Most absences that are kept, roughly: a client can ask for any number of names.
const ENTRIES: usize = 10_000;
/// Most memory for them, in bytes: clients choose the length of names, and upstreams that of messages.
const BYTES: u64 = 8 << 20;

/// Confirmed absences and denials, by repository, page and credentials.
pub struct Absences(Cache<Key, Absence, ByLength>);

type Key = (String, String, WhoId);

/// What is remembered.
#[derive(Clone)]
struct Absence {
    until: Instant,
    failure: Failure,
    /// The repository that was asked. After a change of the configuration there is another one, for which this does not
    /// count: a request that was under way during the change is remembered behind it.
    of: Weak<Repository>,
}

impl Absence {
    fn counts_for(&self, target: &Target) -> bool {
        Instant::now() < self.until && Weak::as_ptr(&self.of) == Arc::as_ptr(&target.repository)
    }
}

impl Default for Absences {
    fn default() -> Self {
        Self(Cache::with_weighter(ENTRIES, BYTES, ByLength))
    }
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, Absence> for ByLength {
    fn weight(&self, (repository, page, _): &Key, absence: &Absence) -> u64 {
        256 + (repository.len() + page.len() + absence.failure.message().len()) as u64
    }
}

impl Absences {
    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Fails with the failure that is remembered for `page` of a target's name, if there is one.
    pub fn recall(&self, target: &Target, page: &str) -> Result<(), Failure> {
        let key = key(target, page);
        match self.0.get(&key) {
            Some(absence) if absence.counts_for(target) => Err(absence.failure),
            // What has expired goes when there is no room for others, or with the next answer.
            Some(_) | None => Ok(()),
        }
    }

    /// Remembers a failure for `life` if it is a confirmed absence or a denial; other failures are not kept. A client
    /// that is denied asks again at once, in other ways and with another token, which changes nothing upstream.
    pub fn remember(&self, target: &Target, page: &str, life: Duration, failure: &Failure) {
        // The storage behind a registry may refuse a blob because a signature has expired; the next redirect brings a
        // new one.
        let is_denial = failure.kind == FailureKind::Denied && !page.starts_with("blobs/");
        let is_final = failure.kind == FailureKind::NotFound || is_denial;
        let key = key(target, page);
        // A failure that was recalled from memory does not renew its own entry.
        let is_known = self.0.get(&key).is_some_and(|absence| absence.counts_for(target));
        if is_final && life > Duration::ZERO && !is_known {
            let of = Arc::downgrade(&target.repository);
            self.0.insert(key, Absence { until: Instant::now() + life, failure: failure.clone(), of });
        }
    }
}

fn key(target: &Target, page: &str) -> Key {
    (target.repository.config.asked_as(), format!("{}/{page}", target.name), target.who.id())
}
