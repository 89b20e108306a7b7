//! What is in the bucket of `[storage.s3]`, as the ledger counts it. Pure arithmetic.
//!
//! With a bucket, `cache.max_size`, `ttl` and pins are about the objects in the bucket, and the files in the cache
//! directory are a tier in front of it: the file of an object that is in the bucket may go at any time.

use super::clock::Seconds;
use super::evict::{Class, Evictor};
use super::ledger::{self, Ledger};
use super::limits::Limits;
use crate::oci::Digest;

impl Ledger {
    /// Returns whether there is a bucket.
    pub fn has_bucket(&self) -> bool {
        self.bucket.is_some()
    }

    /// Returns whether the content of an object is in the bucket.
    pub fn is_uploaded(&self, digest: &Digest) -> bool {
        self.bucket.as_ref().is_some_and(|bucket| bucket.contains(digest))
    }

    /// Returns the count and the bytes of the objects in the bucket.
    pub fn bucket_totals(&self) -> (usize, u64) {
        self.bucket.as_ref().map_or((0, 0), |bucket| (bucket.objects(), bucket.bytes()))
    }

    /// Notes an object of which the index says that it is in the bucket.
    pub fn known_uploaded(&mut self, digest: Digest, size: u64, class: Class, last_use: Seconds) {
        let is_pinned = self.pinned.contains(&digest);
        if let Some(bucket) = self.bucket.as_mut().filter(|bucket| !bucket.contains(&digest)) {
            bucket.insert(digest, size, last_use, class, is_pinned);
        }
    }

    /// Notes that an object that has a file here is in the bucket, too.
    pub fn uploaded(&mut self, digest: Digest, size: u64, now: Seconds) {
        let highest = self.limits().classes.count() - 1;
        let class = self.evictor.find(&digest).map_or(highest, |(_, class, _)| class);
        self.known_uploaded(digest, size, class, now);
        self.evictor.set_pinned(&digest, false, now);
    }

    /// Notes that another Larder has brought an object into the bucket, which is visible in `repositories`, a line each. If
    /// none is known, it is kept for as long as any.
    pub fn uploaded_elsewhere(&mut self, digest: Digest, size: u64, repositories: &str, now: Seconds) {
        if !repositories.is_empty() {
            let class = self.limits().classes.longest(repositories);
            let here = self.evictor.find(&digest).map_or(0, |(_, class, _)| class);
            self.known_uploaded(digest, size, class.max(here), now);
        }
        self.uploaded(digest, size, now);
    }

    /// Notes that an object is no longer in the bucket.
    pub fn not_uploaded(&mut self, digest: &Digest, now: Seconds) {
        if self.bucket.as_mut().and_then(|bucket| bucket.remove(digest)).is_some() {
            self.evictor.set_pinned(digest, self.pinned.contains(digest), now);
        }
    }

    /// Returns whether an object has a file here.
    pub fn has_file(&self, digest: &Digest) -> bool {
        self.evictor.contains(digest)
    }

    /// Notes that the file of an object is gone.
    pub fn remove_file(&mut self, digest: &Digest) {
        self.evictor.remove(digest);
    }

    /// Takes in the file of an object in the bucket, as a comparison with the files finds it. Returns its size.
    pub(super) fn take_in_file(&mut self, digest: &Digest) -> Option<u64> {
        let (size, class, last_use) = self.bucket.as_ref()?.find(digest)?;
        self.evictor.insert(*digest, size, last_use, class, false);
        Some(size)
    }

    /// Returns at most `most` objects that are not in the bucket and have a file here.
    pub fn not_yet_uploaded(&self, most: usize) -> Vec<Digest> {
        let Some(bucket) = &self.bucket else {
            return Vec::new();
        };
        self.evictor.digests().filter(|digest| !bucket.contains(digest)).take(most).copied().collect()
    }

    /// Parts files that are to go into copies of what is in the bucket, with their bytes, and the only ones there are.
    pub fn part_files(&self, files: &[Digest]) -> (Vec<Digest>, u64, Vec<Digest>) {
        let Some(bucket) = &self.bucket else {
            return (Vec::new(), 0, files.to_vec());
        };
        let (copies, only): (Vec<_>, Vec<_>) = files.iter().partition(|digest| bucket.contains(digest));
        let bytes = copies.iter().filter_map(|digest| Some(bucket.find(digest)?.0)).sum();
        (copies, bytes, only)
    }

    /// Returns the objects that might be the next to leave the bucket, with their last uses: more than `most`.
    pub fn next_to_leave_bucket(&self, most: usize, now: Seconds) -> Vec<(Digest, Seconds)> {
        let (limits, Some(bucket)) = (self.limits(), &self.bucket) else {
            return Vec::new();
        };
        let is_over = bucket.taken() > most_in_bucket(limits);
        let classes = limits.classes.iter().flat_map(|(class, ttl)| {
            let since = ledger::since(ttl, now);
            bucket.oldest(class, most).filter(move |(_, at)| is_over || since.is_some_and(|since| *at < since))
        });
        classes.collect()
    }

    /// Notes when an object in the bucket was last used by any Larder, and in which repositories it is visible, a line each.
    /// Returns whether that was news.
    pub fn used_elsewhere(&mut self, digest: &Digest, at: Seconds, repositories: &str) -> bool {
        let class = if repositories.is_empty() { 0 } else { self.limits().classes.longest(repositories) };
        let Some(bucket) = &mut self.bucket else {
            return false;
        };
        let Some((_, known_class, known)) = bucket.find(digest) else {
            return false;
        };
        let at = at.max(known);
        match class > known_class {
            true => bucket.raise(digest, class, at),
            false if at > known => drop(bucket.touch(digest, at)),
            false => return false,
        }
        true
    }

    /// Takes at most `most` objects out of the bucket that were not used for as long as their class keeps them, then
    /// those beyond `max_size`, the least recently used first. Returns them, and the bytes of those beyond `max_size`.
    pub fn shrink_bucket(
        &mut self,
        most: usize,
        now: Seconds,
        is_busy: impl Fn(&Digest) -> bool,
    ) -> (Vec<Digest>, Vec<Digest>, u64) {
        let limits = self.limits().clone();
        let Some(bucket) = &mut self.bucket else {
            return (Vec::new(), Vec::new(), 0);
        };
        let expired = ledger::expire(bucket, &limits, most, now, &is_busy);
        let beyond = bucket.taken().saturating_sub(most_in_bucket(&limits));
        let before = bucket.bytes();
        let evicted = match beyond {
            0 => Vec::new(),
            beyond => bucket.make_room(beyond, most - expired.len(), now, is_busy),
        };
        let bytes = before - bucket.bytes();
        (expired, evicted, bytes)
    }

    /// Begins a comparison with the keys of the bucket.
    pub fn begin_bucket_census(&mut self) {
        self.bucket.iter_mut().for_each(Evictor::begin_census);
    }

    /// Notes that an object's key was found. Returns whether the object was known to be in the bucket.
    pub fn key_seen(&mut self, digest: &Digest) -> bool {
        self.bucket.as_mut().is_some_and(|bucket| bucket.seen(digest).is_some())
    }

    /// Returns the objects whose keys were not found since the comparison began.
    pub fn keys_not_seen(&mut self) -> Vec<Digest> {
        self.bucket.as_mut().map(|bucket| bucket.end_census(false)).unwrap_or_default()
    }
}

/// Returns how much may be in the bucket. A share is no limit here: the configuration does not allow it.
fn most_in_bucket(limits: &Limits) -> u64 {
    limits.bucket_size.and_then(|size| size.of(u64::MAX)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn ledger(keys: &str) -> Ledger {
        let text = format!("[storage.s3]\nbucket = \"larder\"\n[cache]\nmin_free = 0\n{keys}\n");
        let config = crate::config::tests::parse(&text).expect("a configuration");
        let mut ledger = Ledger::new(Arc::new(Limits::new(&config, true)));
        ledger.set_loaded();
        ledger
    }

    fn digest(number: u8) -> Digest {
        Digest::Sha256([number; 32])
    }

    #[test]
    fn a_pin_holds_the_object_in_the_bucket_and_not_its_file() {
        let mut ledger = ledger("max_size = 8192");
        for number in 1..=2 {
            ledger.stored(digest(number), 4096, 0, 1);
        }
        ledger.set_pinned([digest(1)].into(), false, 1);
        assert_eq!(ledger.evict(8192, 9, 2, |_| false).0, [digest(2)], "the only copy of a pinned object");
        ledger.uploaded(digest(1), 4096, 3);
        assert_eq!(ledger.evict(8192, 9, 4, |_| false).0, [digest(1)], "its file may go once it is in the bucket");
        for number in 3..=5 {
            ledger.known_uploaded(digest(number), 4096, 0, u32::from(number));
        }
        let (expired, evicted, bytes) = ledger.shrink_bucket(9, 9, |_| false);
        assert_eq!((expired, evicted, bytes), (vec![], vec![digest(3), digest(4)], 8192));
        assert!(ledger.is_uploaded(&digest(1)), "a pinned object stays in the bucket");
    }

    #[test]
    fn what_another_has_used_is_not_the_next_to_leave_the_bucket() {
        let mut ledger = ledger("max_size = 8192");
        for number in 1..=2 {
            ledger.known_uploaded(digest(number), 4096, 0, u32::from(number));
        }
        assert!(ledger.next_to_leave_bucket(9, 9).is_empty(), "there is room");
        ledger.known_uploaded(digest(3), 4096, 0, 3);
        assert_eq!(ledger.next_to_leave_bucket(2, 9), [(digest(1), 1), (digest(2), 2)]);
        assert!(ledger.used_elsewhere(&digest(1), 5, "") && !ledger.used_elsewhere(&digest(1), 5, ""));
        assert_eq!(ledger.shrink_bucket(9, 9, |_| false).1, [digest(2)]);
    }

    #[test]
    fn what_others_uploaded_is_kept_as_long_as_the_repositories_want_in_which_it_is_visible() {
        let repository = |name: &str, ttl: &str| {
            format!("[repository.{name}]\nttl = \"{ttl}\"\n[[repository.{name}.upstream]]\nurl = \"https://r\"\n")
        };
        let mut ledger = ledger(&format!("{}{}", repository("short", "10s"), repository("long", "100s")));
        let soon = |ledger: &mut Ledger, now| ledger.shrink_bucket(9, now, |_| false).0;
        for (number, repositories) in [(1, "short"), (2, "short\nlong"), (3, "")] {
            ledger.uploaded_elsewhere(digest(number), 10, repositories, 0);
        }
        // A client saw it meanwhile where it is kept for longer.
        ledger.uploaded_elsewhere(digest(4), 10, "short", 0);
        assert!(ledger.used_elsewhere(&digest(4), 0, "long") && !ledger.used_elsewhere(&digest(4), 0, "long"));
        assert_eq!(soon(&mut ledger, 20), [digest(1)]);
        let mut late = soon(&mut ledger, 200);
        late.sort();
        assert_eq!(late, [2, 4].map(digest), "of what nobody is known to see, the longest time of any counts");
    }

    #[test]
    fn what_is_in_the_bucket_needs_no_file() {
        let mut ledger = ledger("");
        ledger.known_uploaded(digest(1), 10, 0, 1);
        ledger.known(digest(2), 10, 0, 1);
        ledger.begin_census();
        assert_eq!(ledger.seen(&digest(1)), Some(10), "a file of what is in the bucket is taken in");
        assert_eq!(ledger.end_census(true), (vec![digest(2)], vec![]));
        ledger.begin_census();
        assert_eq!(ledger.end_census(true), (vec![], vec![digest(1)]), "its file is gone, and it is in the bucket");
        assert_eq!((ledger.totals(), ledger.bucket_totals()), ((0, 0), (1, 10)));
        assert!(ledger.not_yet_uploaded(9).is_empty());
        ledger.stored(digest(3), 10, 0, 1);
        assert_eq!(ledger.not_yet_uploaded(9), [digest(3)]);
        ledger.begin_bucket_census();
        assert_eq!(ledger.keys_not_seen(), [digest(1)]);
    }
}
