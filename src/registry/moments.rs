//! One pull asks for a tag more than once: by HEAD for its digest, then by GET for its manifest. What the upstream said to
//! the first is good for the second, which so gets just what it was told of. Each pull asks the upstream all the same.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::request::Parts;
use quick_cache::sync::Cache;

use crate::auth::counted_client;
use crate::index::TagKey;
use crate::oci::Tag;
use crate::routing::Target;
use crate::upstream::WhoId;

/// How long an answer is good for the next request of a pull.
pub const MOMENT: Duration = Duration::from_secs(1);
/// Pulls at once of which it is known that they go on.
const ENTRIES: usize = 4_096;

/// Pulls that will ask again for a tag: of which tag, as whom, from where.
pub struct Moments {
    pulls: Cache<(TagKey, WhoId, Option<IpAddr>), Instant>,
    /// Whether there ever was one: some clients never ask twice.
    has_any: AtomicBool,
}

impl Default for Moments {
    fn default() -> Self {
        Self { pulls: Cache::new(ENTRIES), has_any: AtomicBool::new(false) }
    }
}

impl Moments {
    /// Forgets all: the upstreams may be others now.
    pub fn clear(&self) {
        self.pulls.clear();
    }

    /// The pull of a request will ask for a tag next.
    pub fn will_go_on(&self, request: &Parts, target: &Target, tag: &Tag) {
        let key = (target.tag_key(tag), target.who.id(), counted_client(request));
        self.pulls.insert(key, Instant::now());
        self.has_any.store(true, Ordering::Release);
    }

    /// Whether a request is the one that an earlier one of its pull announced.
    pub fn goes_on(&self, request: &Parts, target: &Target, tag: &Tag) -> bool {
        if !self.has_any.load(Ordering::Acquire) {
            return false;
        }
        let key = (target.tag_key(tag), target.who.id(), counted_client(request));
        self.pulls.remove(&key).is_some_and(|(_, since)| since.elapsed() < MOMENT)
    }
}
