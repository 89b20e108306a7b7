//! Uploads that are left to the other Larders that share the bucket: each is looked at again after a while, or once those
//! are gone whose upload it is.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::oci::Digest;

/// How long an upload is left to others.
const TIME: Duration = Duration::from_secs(300);
/// Most objects that are kept. Further ones are found by the next look at the files.
const MOST: usize = 1 << 16;
/// How often to look whether the others are gone, and at how many objects.
pub const LOOK: Duration = Duration::from_secs(5);
const LOOKED_AT: usize = 1_000;

/// Objects that others are to upload.
#[derive(Default)]
pub struct LeftUploads {
    /// Each with the time at which to look whether they have; in the order of that.
    waiting: VecDeque<(Instant, Digest)>,
    /// When they were last looked at.
    looked: Option<Instant>,
}

impl LeftUploads {
    /// Leaves the upload of an object to others.
    pub fn add(&mut self, digest: Digest, now: Instant) {
        if self.waiting.len() < MOST {
            self.waiting.push_back((now + TIME, digest));
        }
    }

    /// Takes those out that are to be looked at now: they were left to others for long enough, or `is_mine` says that they
    /// are this Larder's by now. Called more often than [`LOOK`], takes none.
    pub fn due(&mut self, now: Instant, is_mine: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        if self.looked.is_some_and(|looked| now < looked + LOOK) {
            return Vec::new();
        }
        self.looked = Some(now);
        let late = self.waiting.partition_point(|(at, _)| *at <= now);
        let mut due: Vec<_> = self.waiting.drain(..late).map(|(_, digest)| digest).collect();
        let mut looked_at = 0;
        self.waiting.retain(|(_, digest)| {
            looked_at += 1;
            let is_due = looked_at <= LOOKED_AT && is_mine(digest);
            if is_due {
                due.push(*digest);
            }
            !is_due
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::Sha256([number; 32])
    }

    #[test]
    fn an_upload_is_this_ones_when_the_others_are_gone_or_had_it_for_long_enough() {
        let (mut left, begin) = (LeftUploads::default(), Instant::now());
        left.add(digest(1), begin);
        left.add(digest(2), begin + LOOK);
        assert_eq!(left.due(begin, |_| false), []);
        assert_eq!(left.due(begin + LOOK / 2, |_| true), [], "it was looked at a moment ago");
        assert_eq!(left.due(begin + LOOK, |object| *object == digest(2)), [digest(2)]);
        left.add(digest(3), begin + 2 * LOOK);
        assert_eq!(left.due(begin + TIME, |_| false), [digest(1)]);
        assert_eq!(left.due(begin + TIME + LOOK, |_| false), []);
        assert_eq!(left.due(begin + TIME + 2 * LOOK, |_| false), [digest(3)]);
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let (mut left, now) = (LeftUploads::default(), Instant::now());
        (0..MOST + 10).for_each(|_| left.add(digest(1), now));
        assert_eq!(left.due(now + TIME, |_| false).len(), MOST);
    }
}
