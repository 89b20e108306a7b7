//! Objects that are larger than all of the cache.

use std::time::Duration;

use quick_cache::sync::Cache as Bounded;

use crate::clock::Instant;
use crate::oci::Digest;

/// How long Larder remembers that an object can never fit.
const UNFIT: Duration = Duration::from_secs(60);

/// Most objects that are remembered.
const UNFIT_ENTRIES: usize = 1_024;

/// Objects that are larger than all of the cache, so that no further transfer is begun only to find that out.
pub struct Unfit(Bounded<Digest, Instant>);

impl Default for Unfit {
    fn default() -> Self {
        Self(Bounded::new(UNFIT_ENTRIES))
    }
}

impl Unfit {
    /// Returns whether an object was found to be larger than all of the cache a moment ago.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.get(digest).is_some_and(|until| Instant::now() < until)
    }

    /// Notes that an object is larger than all of the cache.
    pub fn add(&self, digest: Digest) {
        self.0.insert(digest, Instant::now() + UNFIT);
    }

    /// Forgets all: the limits may have changed.
    pub fn clear(&self) {
        self.0.clear();
    }
}
