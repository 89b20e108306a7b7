//! Warnings of upstreams about manifests. They are for people and hold for the moment: they are kept in memory only,
//! and passed on until the upstream says something else, also while the upstream is not asked.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::WARNING;
use http::{HeaderMap, HeaderValue};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::routing::Target;
use crate::upstream::{Who, WhoId};

/// Most manifests whose warnings are kept.
const ENTRIES: usize = 4_096;
/// Most memory for warnings, in bytes.
const BYTES: u64 = 4 << 20;

/// Warnings by repository, name with tag or digest, and the credentials that were warned.
pub struct Warnings {
    by_page: Cache<Key, Vec<HeaderValue>, ByLength>,
    /// Whether there was ever a warning: most upstreams never warn, and then no lookup is needed.
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
    /// Notes the warnings of an upstream's answer about a tag or digest; an empty list removes earlier warnings.
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

    /// Adds the known warnings about a manifest to a response. `references`: the tag and the digest, or one of them,
    /// under which warnings may be noted.
    pub fn add_to(&self, headers: &mut HeaderMap, target: &Target, references: &[&dyn Display]) {
        if !self.has_any.load(Ordering::Relaxed) {
            return;
        }
        for reference in references {
            // A warning for requests without credentials also concerns clients that log in.
            let keys = [&target.who, &Who::Anonymous].map(|who| key(target, *reference, who));
            let warnings = keys.iter().find_map(|key| self.by_page.get(key)).unwrap_or_default();
            for warning in warnings {
                if !headers.get_all(WARNING).iter().any(|known| known == warning) {
                    headers.append(WARNING, warning);
                }
            }
        }
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.by_page.clear();
    }
}

fn key(target: &Target, reference: impl Display, who: &Who) -> Key {
    (target.repository.prefix().to_owned(), format!("{}/{reference}", target.name), who.id())
}
