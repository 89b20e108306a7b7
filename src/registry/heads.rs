//! Answers of upstreams to HEAD requests for content that is not cached. Each is kept for a moment, so that many HEAD
//! requests for the same content cause one request upstream.

use std::time::Duration;

use quick_cache::sync::Cache;

use crate::clock::Instant;
use crate::oci::MediaType;
use crate::routing::Target;
use crate::upstream::WhoId;

/// How long an answer is reused.
const LIFE: Duration = Duration::from_secs(1);
/// Most answers that are kept.
const ENTRIES: usize = 1_024;

/// An upstream's answer to a HEAD request.
#[derive(Clone, Debug)]
pub struct Said {
    /// Set for manifests only.
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
    /// Returns the answer, if it is still fresh, for `page` of a target's name.
    pub fn recall(&self, target: &Target, page: &str) -> Option<Said> {
        let (until, said) = self.0.get(&key(target, page))?;
        (Instant::now() < until).then_some(said)
    }

    /// Keeps an answer for `page` of a target's name.
    pub fn remember(&self, target: &Target, page: &str, said: Said) {
        self.0.insert(key(target, page), (Instant::now() + LIFE, said));
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.0.clear();
    }
}

fn key(target: &Target, page: &str) -> Key {
    (target.repository.config.asked_as(), format!("{}/{page}", target.name), target.who.id())
}
