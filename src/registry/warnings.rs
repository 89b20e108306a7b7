//! Warnings of upstreams about manifests. They are for people, and of the moment: kept in memory, and passed on as long as
//! the upstream said nothing else, also while it is not asked.

use std::sync::atomic::{AtomicBool, Ordering};

use http::header::WARNING;
use http::{HeaderMap, HeaderValue};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::routing::Target;
use crate::upstream::{Who, WhoId};

const ENTRIES: usize = 4_096;
/// And the memory for them.
const BYTES: u64 = 4 << 20;

/// By repository, name with tag or digest, and who was warned.
pub struct Warnings {
    by_page: Cache<Key, Vec<HeaderValue>, ByLength>,
    /// Whether there ever was one: most upstreams never warn of anything.
    has_any: AtomicBool,
}

type Key = (String, String, WhoId);

impl Default for Warnings {
    fn default() -> Self {
        Self { by_page: Cache::with_weighter(ENTRIES, BYTES, ByLength), has_any: AtomicBool::new(false) }
    }
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, Vec<HeaderValue>> for ByLength {
    fn weight(&self, (repository, page, _): &Key, warnings: &Vec<HeaderValue>) -> u64 {
        let texts: usize = warnings.iter().map(|warning| 64 + warning.len()).sum();
        256 + (repository.len() + page.len() + texts) as u64
    }
}

impl Warnings {
    /// What an upstream's answer about a tag or digest warned of, which may be nothing.
    pub fn note(&self, target: &Target, reference: &str, warnings: Vec<HeaderValue>) {
        if warnings.is_empty() && !self.has_any.load(Ordering::Relaxed) {
            return;
        }
        let key = key(target, reference, &target.who);
        if warnings.is_empty() {
            self.by_page.remove(&key);
        } else {
            self.has_any.store(true, Ordering::Relaxed);
            self.by_page.insert(key, warnings);
        }
    }

    /// Adds what there is to say about a manifest that is answered with, asked for by one reference or two.
    pub fn add_to(&self, headers: &mut HeaderMap, target: &Target, references: &[&str]) {
        if !self.has_any.load(Ordering::Relaxed) {
            return;
        }
        for reference in references {
            // What is said to everybody is for who logs in, too.
            let keys = [&target.who, &Who::Anonymous].map(|who| key(target, reference, who));
            let warnings = keys.iter().find_map(|key| self.by_page.get(key)).unwrap_or_default();
            for warning in warnings {
                if !headers.get_all(WARNING).iter().any(|known| known == warning) {
                    headers.append(WARNING, warning);
                }
            }
        }
    }

    /// Forgets all: the upstreams may be others now.
    pub fn clear(&self) {
        self.by_page.clear();
    }
}

fn key(target: &Target, reference: &str, who: &Who) -> Key {
    (target.repository.prefix().to_owned(), format!("{}/{reference}", target.name), who.id())
}
