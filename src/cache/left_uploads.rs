//! Uploads that are left to the other Larders that share the bucket: each is looked at again after a while, or once those
//! are gone whose upload it is.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use crate::clock::Instant;
use crate::oci::Digest;

/// How long an upload is left to others.
const TIME: Duration = Duration::from_secs(300);
/// Most objects that are kept. Further ones are found by the next look at the files.
const MOST: usize = 1 << 16;
/// How often to look whether the others are gone, and at how many objects.
pub const LOOK: Duration = Duration::from_secs(5);
const LOOKED_AT: usize = 4_000;

/// Objects that others are to upload.
#[derive(Default)]
pub struct LeftUploads {
    /// Each with the time at which to look whether they have; in the order of that.
    waiting: VecDeque<(Instant, Digest)>,
    all: HashSet<Digest>,
    /// How many of them the last look has passed.
    passed: usize,
    /// When they were last looked at.
    looked: Option<Instant>,
}

impl LeftUploads {
    /// Leaves the upload of an object to others.
    pub fn add(&mut self, digest: Digest, now: Instant) {
        if self.waiting.len() < MOST && self.all.insert(digest) {
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
        // Each look goes on where the last one ended.
        let from = if self.passed < self.waiting.len() { self.passed } else { 0 };
        let (looked_at, mut place) = (from..from + LOOKED_AT, 0);
        self.waiting.retain(|(_, digest)| {
            let is_due = looked_at.contains(&place) && is_mine(digest);
            place += 1;
            if is_due {
                due.push(*digest);
            }
            !is_due
        });
        self.passed = looked_at.end;
        due.iter().for_each(|digest| _ = self.all.remove(digest));
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

    fn numbered(number: usize) -> Digest {
        Digest::of(crate::oci::Algorithm::Sha256, &number.to_le_bytes())
    }

    #[test]
    fn no_more_wait_than_there_is_room_for_and_each_once() {
        let (mut left, now) = (LeftUploads::default(), Instant::now());
        (0..MOST + 10).for_each(|number| left.add(numbered(number), now));
        left.add(numbered(0), now);
        assert_eq!(left.due(now + TIME, |_| false).len(), MOST);
        left.add(numbered(0), now);
        assert_eq!(left.due(now + 2 * TIME, |_| false), [numbered(0)], "it may come again");
    }

    #[test]
    fn all_are_looked_at_in_turn() {
        let (mut left, begin) = (LeftUploads::default(), Instant::now());
        (0..2 * LOOKED_AT + 1).for_each(|number| left.add(numbered(number), begin));
        let last = numbered(2 * LOOKED_AT);
        let looks = (0..3).map(|look| left.due(begin + look * LOOK, |object| *object == last)).collect::<Vec<_>>();
        assert_eq!(looks, [vec![], vec![], vec![last]]);
    }
}
