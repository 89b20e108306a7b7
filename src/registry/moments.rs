//! One pull asks for a tag more than once: by HEAD for its digest, then by GET for its manifest. The upstream's answer
//! to the HEAD also serves the GET, so that the client gets exactly the manifest whose digest it was told. Each new
//! pull asks the upstream again.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::request::Parts;
use quick_cache::sync::Cache;

use crate::auth::counted_client;
use crate::clock::Instant;
use crate::index::TagKey;
use crate::oci::Tag;
use crate::routing::Target;
use crate::upstream::WhoId;

/// How long an answer serves the next request of a pull.
pub const MOMENT: Duration = Duration::from_secs(1);
/// Most pulls that are remembered at once.
const ENTRIES: usize = 4_096;

/// Pulls that will ask for a tag again: by tag, credentials and client address.
pub struct Moments {
    pulls: Cache<(TagKey, WhoId, Option<IpAddr>), Instant>,
    /// Whether there was ever an entry. Some clients never ask twice, and then no lookup is needed.
    has_any: AtomicBool,
}

impl Default for Moments {
    fn default() -> Self {
        Self { pulls: Cache::new(ENTRIES), has_any: AtomicBool::new(false) }
    }
}

impl Moments {
    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.pulls.clear();
    }

    /// Notes that the pull of this request will ask for a tag next.
    pub fn will_go_on(&self, request: &Parts, target: &Target, tag: &Tag) {
        let key = (target.tag_key(tag), target.who.id(), counted_client(request));
        self.pulls.insert(key, Instant::now());
        self.has_any.store(true, Ordering::Release);
    }

    /// Returns whether an earlier request of the same pull announced this request. Removes the announcement.
    pub fn goes_on(&self, request: &Parts, target: &Target, tag: &Tag) -> bool {
        if !self.has_any.load(Ordering::Acquire) {
            return false;
        }
        let key = (target.tag_key(tag), target.who.id(), counted_client(request));
        self.pulls.remove(&key).is_some_and(|(_, since)| since.elapsed() < MOMENT)
    }
}
