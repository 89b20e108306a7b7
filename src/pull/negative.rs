//! Remembering for a short while that something does not exist.

use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::routing::Target;
use crate::failure::{Failure, FailureKind};

/// Absences kept at most; a client can ask for any number of names.
const ENTRIES: usize = 10_000;

/// Confirmed absences, by repository and page.
pub struct Negative(Cache<(String, String), (Instant, Failure)>);

impl Default for Negative {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Negative {
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

    /// Remembers a failure that is a confirmed absence; others pass.
    pub fn remember(&self, target: &Target, page: &str, failure: &Failure) {
        let life = target.repository.config.tags.negative_max_age;
        if failure.kind == FailureKind::NotFound && life > Duration::ZERO {
            self.0.insert(key(target, page), (Instant::now() + life, failure.clone()));
        }
    }
}

fn key(target: &Target, page: &str) -> (String, String) {
    (target.repository.prefix().to_owned(), format!("{}/{page}", target.name))
}
