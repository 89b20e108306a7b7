//! What was written through the proxy door is not served as it was before (RFC 9111, section 4.4).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use quick_cache::sync::Cache;

use crate::index::{TagKey, Timestamp};
use crate::oci::{Algorithm, Digest};
use crate::routing::Target;

/// Writes that are remembered.
const ENTRIES: usize = 8_192;

/// When something was written, by what stands for it.
pub struct Written {
    by_page: Cache<Digest, SystemTime>,
    /// Whether anything was: caches are for reading, and each hit looks here.
    has_any: AtomicBool,
}

impl Default for Written {
    fn default() -> Self {
        Self { by_page: Cache::new(ENTRIES), has_any: AtomicBool::new(false) }
    }
}

impl Written {
    /// A URL was written to.
    pub fn note_url(&self, url: &str) {
        self.note(url);
    }

    /// A tag of a name was pushed or deleted.
    pub fn note_tag(&self, repository: &str, name: &str, tag: &str) {
        self.note(&tag_of(repository, name, tag));
    }

    /// Something of a name was pushed or deleted, so that its lists may be others by now.
    pub fn note_name(&self, repository: &str, name: &str) {
        self.note(&lists_of(repository, name));
    }

    fn note(&self, what: &str) {
        self.by_page.insert(Digest::of(Algorithm::Sha256, what.as_bytes()), SystemTime::now());
        self.has_any.store(true, Ordering::Release);
    }

    fn has_any(&self) -> bool {
        self.has_any.load(Ordering::Acquire)
    }

    /// Whether a URL was written to at a time or later.
    pub fn was_url_written(&self, url: &str, at: SystemTime) -> bool {
        self.since(url, at)
    }

    /// Whether a tag was pushed or deleted since it was looked at.
    pub fn was_tag_written(&self, key: &TagKey, at: Timestamp) -> bool {
        self.has_any() && self.since(&tag_of(&key.repository, &key.name, &key.tag), at.to_system_time())
    }

    /// Whether a list of a name may be another by now.
    pub fn was_list_written(&self, target: &Target, at: Timestamp) -> bool {
        self.has_any() && self.since(&lists_of(target.repository.prefix(), target.name.as_str()), at.to_system_time())
    }

    fn since(&self, what: &str, time: SystemTime) -> bool {
        let written = |what: &str| self.by_page.get(&Digest::of(Algorithm::Sha256, what.as_bytes()));
        self.has_any() && written(what).is_some_and(|written| time <= written)
    }
}

/// What stands for a tag, whichever client asks.
fn tag_of(repository: &str, name: &str, tag: &str) -> String {
    format!("tag of {repository} {name}:{tag}")
}

/// What stands for all lists of a name.
fn lists_of(repository: &str, name: &str) -> String {
    format!("lists of {repository} {name}")
}
