//! Writes through the proxy door. Copies from before a write are not served (RFC 9111, section 4.4).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use quick_cache::sync::Cache;

use crate::clock;
use crate::index::{TagKey, Timestamp};
use crate::oci::{Algorithm, Digest};
use crate::routing::Target;

/// Most writes that are remembered.
const ENTRIES: usize = 8_192;

/// The time of each write, by a digest that stands for the written page.
pub struct Written {
    by_page: Cache<Digest, SystemTime>,
    /// Whether there was ever a write. Most caches are only read from, and each hit looks here.
    has_any: AtomicBool,
}

impl Default for Written {
    fn default() -> Self {
        Self { by_page: Cache::new(ENTRIES), has_any: AtomicBool::new(false) }
    }
}

impl Written {
    /// Notes a write to a URL.
    pub fn note_url(&self, url: &str) {
        self.note(url);
    }

    /// Notes that a tag of a name was pushed or deleted.
    pub fn note_tag(&self, repository: &str, name: &str, tag: &str) {
        self.note(&tag_of(repository, name, tag));
    }

    /// Notes that a manifest of a name was pushed or deleted, so that the lists of the name may have changed.
    pub fn note_name(&self, repository: &str, name: &str) {
        self.note(&lists_of(repository, name));
    }

    fn note(&self, what: &str) {
        self.by_page.insert(Digest::of(Algorithm::Sha256, what.as_bytes()), clock::wall());
        self.has_any.store(true, Ordering::Release);
    }

    fn has_any(&self) -> bool {
        self.has_any.load(Ordering::Acquire)
    }

    /// Returns whether a URL was written to at the time `at` or later.
    pub fn was_url_written(&self, url: &str, at: SystemTime) -> bool {
        self.since(url, at)
    }

    /// Returns whether a tag was pushed or deleted since it was checked at `at`.
    pub fn was_tag_written(&self, key: &TagKey, at: Timestamp) -> bool {
        self.has_any() && self.since(&tag_of(&key.repository, &key.name, &key.tag), at.to_system_time())
    }

    /// Returns whether a list of a name may have changed since `at`.
    pub fn was_list_written(&self, target: &Target, at: Timestamp) -> bool {
        self.has_any() && self.since(&lists_of(target.repository.prefix(), target.name.as_str()), at.to_system_time())
    }

    fn since(&self, what: &str, time: SystemTime) -> bool {
        let written = |what: &str| self.by_page.get(&Digest::of(Algorithm::Sha256, what.as_bytes()));
        self.has_any() && written(what).is_some_and(|written| time <= written)
    }
}

/// Returns the text that stands for a tag, whichever client asks.
fn tag_of(repository: &str, name: &str, tag: &str) -> String {
    format!("tag of {repository} {name}:{tag}")
}

/// Returns the text that stands for all lists of a name.
fn lists_of(repository: &str, name: &str) -> String {
    format!("lists of {repository} {name}")
}
