//! Remembers which upstream sent wrong content under a digest, so that the next fill of the digest begins with another
//! upstream.

use std::time::Duration;

use quick_cache::sync::Cache;

use crate::clock::Instant;
use crate::oci::Digest;

/// How long a rejection is remembered: long enough to help, short enough for an upstream to be repaired meanwhile.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// Most digests that are remembered, counted for each repository.
const ENTRIES: usize = 10_000;

/// Rejected upstreams (a bit for each position) by repository and digest.
pub struct Rejected(Cache<(String, Digest), (Instant, u64)>);

impl Default for Rejected {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Rejected {
    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Notes that an upstream sent wrong content under a digest.
    pub fn reject(&self, repository: &str, digest: &Digest, upstream: usize) {
        let key = (repository.to_owned(), *digest);
        let before = self.bits(&key);
        // Upstreams at positions beyond the number of bits are not remembered.
        let bit = 1u64.checked_shl(u32::try_from(upstream).unwrap_or(u32::MAX)).unwrap_or(0);
        self.0.insert(key, (Instant::now() + LIFE, before | bit));
    }

    /// Returns the upstreams, of `count`, that sent wrong content lately. Returns none if all did: then any of them may
    /// send the right content by now.
    pub fn of(&self, repository: &str, digest: &Digest, count: usize) -> Vec<usize> {
        let bits = self.bits(&(repository.to_owned(), *digest));
        let rejected: Vec<_> = (0..count.min(64)).filter(|at| bits >> at & 1 == 1).collect();
        if rejected.len() == count { Vec::new() } else { rejected }
    }

    fn bits(&self, key: &(String, Digest)) -> u64 {
        self.0.get(key).filter(|(until, _)| Instant::now() < *until).map_or(0, |(_, bits)| bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_upstream_is_left_out_until_all_are_bad() {
        let rejected = Rejected::default();
        let digest = Digest::Sha256([1; 32]);
        assert_eq!(rejected.of("r", &digest, 3), [0; 0]);
        rejected.reject("r", &digest, 1);
        rejected.reject("r", &digest, 2);
        rejected.reject("r", &digest, 99);
        assert_eq!(rejected.of("r", &digest, 3), [1, 2]);
        assert_eq!(rejected.of("other", &digest, 3), [0; 0]);
        rejected.reject("r", &digest, 0);
        assert_eq!(rejected.of("r", &digest, 3), [0; 0]);
    }
}
