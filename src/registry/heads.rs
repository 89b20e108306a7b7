//! What an upstream said to a HEAD for content that is not cached. It is kept for a moment, so that many HEADs for the
//! same content are one request upstream.

use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use crate::oci::MediaType;
use crate::routing::Target;
use crate::upstream::WhoId;

/// How long an answer is used again.
const LIFE: Duration = Duration::from_secs(1);
/// Answers kept at most.
const ENTRIES: usize = 1_024;

/// An upstream's answer to a HEAD.
#[derive(Clone, Debug)]
pub struct Said {
    /// For manifests.
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
}

/// Answers by repository, page and the client's credentials.
pub struct Heads(Cache<Key, (Instant, Said)>);

type Key = (String, String, WhoId);

impl Default for Heads {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Heads {
    /// The answer of a moment ago about `page` of a target's name.
    pub fn recall(&self, target: &Target, page: &str) -> Option<Said> {
        let (until, said) = self.0.get(&key(target, page))?;
        (Instant::now() < until).then_some(said)
    }

    pub fn remember(&self, target: &Target, page: &str, said: Said) {
        self.0.insert(key(target, page), (Instant::now() + LIFE, said));
    }

    /// Forgets all: the upstreams may be others now.
    pub fn clear(&self) {
        self.0.clear();
    }
}

fn key(target: &Target, page: &str) -> Key {
    (target.repository.config.asked_as(), format!("{}/{page}", target.name), target.who.id())
}
