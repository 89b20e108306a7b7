//! Objects whose upload was sent and came to nothing: each failure doubles the time for which the object is held back. A
//! bucket that takes uploads and does not confirm them must not be filled with copies.

use std::time::Duration;

use quick_cache::sync::Cache as Bounded;

use crate::clock::Instant;
use crate::oci::Digest;

/// The time for which an object is held back after the first failure, and the longest.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Most objects that are kept; further ones take the place of others.
const MOST: usize = 10_000;

/// Objects that are not to be uploaded for a while.
pub struct Holds(Bounded<Digest, Hold>);

#[derive(Clone, Copy)]
struct Hold {
    time: Duration,
    until: Instant,
}

impl Default for Holds {
    fn default() -> Self {
        Self(Bounded::new(MOST))
    }
}

impl Holds {
    /// Notes that the upload of an object came to nothing.
    pub fn add(&self, digest: &Digest, now: Instant) {
        let time = self.0.get(digest).map_or(FIRST, |hold| (2 * hold.time).min(LONGEST));
        self.0.insert(*digest, Hold { time, until: now + time });
    }

    /// Notes that an object was uploaded.
    pub fn remove(&self, digest: &Digest) {
        self.0.remove(digest);
    }

    /// Returns whether an object is not to be uploaded now.
    pub fn has(&self, digest: &Digest, now: Instant) -> bool {
        self.0.get(digest).is_some_and(|hold| now < hold.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_time_up_to_a_limit_and_success_ends_it() {
        let (holds, digest, mut now) = (Holds::default(), Digest::Sha256([1; 32]), Instant::now());
        assert!(!holds.has(&digest, now));
        for time in [30, 60, 120, 240, 480, 960, 1920, 3840, 7680, 15_360, 21_600, 21_600].map(Duration::from_secs) {
            holds.add(&digest, now);
            assert!(holds.has(&digest, now + time - Duration::from_secs(1)), "{time:?}");
            now += time;
            assert!(!holds.has(&digest, now), "{time:?}");
        }
        holds.add(&digest, now);
        holds.remove(&digest);
        assert!(!holds.has(&digest, now));
        holds.add(&digest, now);
        assert!(!holds.has(&digest, now + FIRST), "it begins anew");
    }
}
