//! The ledger: what is stored, what is reserved, and what the limits are. Pure arithmetic; it touches no disk.

use std::collections::HashSet;
use std::sync::Arc;

use super::clock::Seconds;
use super::evict::{Class, Evictor};
use super::gone::Why;
use super::limits::Limits;
use crate::config::Limit;
use crate::oci::Digest;

/// When objects have to go, this share (in hundredths) of the limit goes in addition, so that not every object that
/// comes in has to wait for another to go.
const SPARE: u64 = 5;
/// Bytes of the index that do not count: an empty index with its log takes about as much.
const INDEX_FOR_FREE: u64 = 2 << 20;
/// Bytes of the disk that objects never get, so that the index can be written on a full disk. Less on a small disk.
const FOR_THE_INDEX: u64 = 1 << 20;

/// Bytes of a small object, as most manifests and configurations are.
const SMALL: u64 = 16 << 10;

/// The disk as it was when Larder last looked at it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub total: u64,
    pub free: u64,
    /// Bytes that the index takes.
    pub index: u64,
    /// Bytes that the files of running fills take already.
    pub running: u64,
    /// Bytes that downloads take which no fill continues.
    pub abandoned: u64,
    /// [`Ledger::released`] before the look.
    pub released: u64,
}

/// What is stored, what is reserved, and what is allowed.
pub struct Ledger {
    pub(super) evictor: Evictor,
    /// The objects in the bucket, whether or not they have a file here; `None`: there is no bucket.
    pub(super) bucket: Option<Evictor>,
    /// Objects that must never go, stored or not.
    pub(super) pinned: HashSet<Digest>,
    /// Whether images are pinned by name, known or not.
    has_named_pins: bool,
    limits: Arc<Limits>,
    /// Whether the index was read: before that, the stored objects are not known.
    is_loaded: bool,
    /// Bytes that running fills will need in all.
    reserved: u64,
    /// Bytes that were given back since the start: shows which numbers of a look are out of date.
    released: u64,
    /// The last look at the disk.
    look: Option<Look>,
    /// Bytes that were reserved since that look, given back or not.
    granted: u64,
}

/// Too little room for any object, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// How much more would have to go or be allowed.
    pub missing: u64,
    /// What is free on the filesystem.
    pub free: u64,
    /// What has to stay free.
    pub min_free: u64,
    /// The key that limits what files take.
    pub key: &'static str,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { missing, free, min_free, key } = self;
        if free < min_free {
            write!(
                f,
                "{free} bytes are free on the disk of cache.dir, less than cache.min_free ({min_free} bytes), and "
            )?;
            write!(f, "nothing more can be evicted; make room for {missing} bytes, or set cache.min_free lower")
        } else {
            write!(f, "{key} is used up by what may not be evicted; raise it by {missing} bytes, or unpin images")
        }
    }
}

/// A step towards room for one object.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// All bytes are reserved.
    Reserved,
    /// These objects have to go first. `is_enough`: all bytes are reserved then.
    Evict { victims: Vec<Digest>, is_enough: bool },
    /// All objects that may go are not enough.
    NoRoom,
}

impl Ledger {
    /// Creates the ledger of a cache of which nothing is known yet.
    pub fn new(limits: Arc<Limits>) -> Self {
        Self {
            evictor: Evictor::new(limits.classes.count()),
            bucket: limits.bucket_size.map(|_| Evictor::new(limits.classes.count())),
            pinned: HashSet::new(),
            has_named_pins: false,
            limits,
            is_loaded: false,
            reserved: 0,
            released: 0,
            look: None,
            granted: 0,
        }
    }

    /// Returns the limits.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Sets other limits. Returns whether the index has to be read anew, because objects are kept for other times.
    pub fn set_limits(&mut self, limits: Arc<Limits>) -> bool {
        let is_read_anew = self.limits.classes != limits.classes;
        self.limits = limits;
        if is_read_anew {
            self.begin_anew();
        }
        is_read_anew
    }

    /// Forgets all objects: the index is to be read anew.
    pub fn begin_anew(&mut self) {
        self.is_loaded = false;
        self.evictor = Evictor::new(self.limits.classes.count());
        self.bucket = self.bucket.as_ref().map(|_| Evictor::new(self.limits.classes.count()));
    }

    /// Returns whether the index was read.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// Notes that the index was read.
    pub fn set_loaded(&mut self) {
        self.is_loaded = true;
    }

    /// Returns the count and the bytes of the objects that have a file here.
    pub fn totals(&self) -> (usize, u64) {
        (self.evictor.objects(), self.evictor.bytes())
    }

    // What is stored.

    /// Notes that an object came in.
    pub fn stored(&mut self, digest: Digest, size: u64, class: Class, now: Seconds) {
        // What is in the bucket, too, may go from here.
        let is_pinned = self.pinned.contains(&digest) && !self.is_uploaded(&digest);
        self.evictor.insert(digest, size, now, class, is_pinned);
    }

    /// Notes an object that the index knows. An object that was stored since the start is newer than its row.
    pub fn known(&mut self, digest: Digest, size: u64, class: Class, last_use: Seconds) {
        if !self.evictor.contains(&digest) {
            self.stored(digest, size, class, last_use);
        }
    }

    /// Notes that an object is to be kept at least as long as `class` says.
    pub fn raise(&mut self, digest: &Digest, class: Class, now: Seconds) {
        self.evictor.raise(digest, class, now);
        self.bucket.iter_mut().for_each(|bucket| bucket.raise(digest, class, now));
    }

    /// Notes that an object was used. Returns when it was used before; `None` if the object is not known.
    pub fn touch(&mut self, digest: &Digest, now: Seconds) -> Option<Seconds> {
        let before = self.evictor.touch(digest, now);
        self.bucket.as_mut().and_then(|bucket| bucket.touch(digest, now)).or(before)
    }

    /// Forgets objects.
    pub fn remove(&mut self, digests: &[Digest]) {
        for digest in digests {
            self.evictor.remove(digest);
            self.bucket.iter_mut().for_each(|bucket| _ = bucket.remove(digest));
        }
    }

    /// Forgets all objects.
    pub fn clear(&mut self) {
        self.evictor.clear();
        self.bucket.iter_mut().for_each(Evictor::clear);
    }

    /// Begins a comparison with the files.
    pub fn begin_census(&mut self) {
        self.evictor.begin_census();
    }

    /// Notes that an object's file was found. Returns the size with which the object was known.
    pub fn seen(&mut self, digest: &Digest) -> Option<u64> {
        self.evictor.seen(digest).or_else(|| self.take_in_file(digest))
    }

    /// Returns the objects that were not found since the census began, and apart from them those that are in the bucket and
    /// need no file; with `is_removed`, it is forgotten that they have one.
    pub fn end_census(&mut self, is_removed: bool) -> (Vec<Digest>, Vec<Digest>) {
        let missing = self.evictor.end_census(is_removed);
        missing.into_iter().partition(|digest| !self.is_uploaded(digest))
    }

    // Pinned objects.

    /// Returns whether an object must never go.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.pinned.contains(digest)
    }

    /// Returns whether images are pinned by name, known or not.
    pub fn has_named_pins(&self) -> bool {
        self.has_named_pins
    }

    /// Sets the objects that must never go.
    pub fn set_pinned(&mut self, pinned: HashSet<Digest>, has_named_pins: bool, now: Seconds) {
        let before = std::mem::replace(&mut self.pinned, pinned);
        self.has_named_pins = has_named_pins;
        let Self { evictor, bucket, pinned, .. } = self;
        let mut set = |digest: &Digest, is_pinned: bool| match bucket {
            Some(bucket) if bucket.contains(digest) => bucket.set_pinned(digest, is_pinned, now),
            _ => evictor.set_pinned(digest, is_pinned, now),
        };
        before.difference(pinned).for_each(|digest| set(digest, false));
        pinned.difference(&before).for_each(|digest| set(digest, true));
    }

    // Room.

    /// Notes the present state of the disk.
    pub fn looked(&mut self, look: Look) {
        self.look = Some(look);
        self.granted = 0;
    }

    /// Returns the last state of the disk; all zero before the first look.
    pub fn last_look(&self) -> Look {
        self.look.unwrap_or_default()
    }

    /// Returns whether so many bytes would not fit even into an empty cache.
    pub fn never_fits(&self, bytes: u64) -> bool {
        self.most().is_some_and(|most| bytes > most)
    }

    /// Returns the bytes that an empty disk would have for objects, by the limits; `None` before the first look.
    pub fn most(&self) -> Option<u64> {
        let Look { total, .. } = self.look?;
        let min_free = self.limits.min_free.of(total).unwrap_or(0).min(total);
        Some(self.limits.disk_size.of(total).unwrap_or(total).min(total - min_free))
    }

    /// Returns how many bytes have to go before `wanted` more bytes fit, by a state of the disk.
    pub fn needed(&self, wanted: u64, look: &Look) -> u64 {
        let (over_size, over_disk) = self.over(wanted, look);
        over_size.max(over_disk)
    }

    /// Returns which limit objects have to go for.
    pub fn why(&self, wanted: u64, look: &Look) -> Why {
        let (over_size, over_disk) = self.over(wanted, look);
        if over_disk > over_size { Why::MinFree } else { Why::MaxSize }
    }

    /// Returns by how many bytes `max_size` would be exceeded, and how many bytes the disk would lack.
    fn over(&self, wanted: u64, look: &Look) -> (u64, u64) {
        let Look { total, free, index, running, abandoned, released } = *look;
        let index = index.saturating_sub(INDEX_FOR_FREE);
        let used = self.evictor.taken() + self.reserved + abandoned;
        // The index keeps itself smaller than this; objects never make room for more of it.
        let over_size = self.limits.disk_size.of(total).map_or(0, |max| {
            let index = index.min(max / 2);
            (used + wanted + index).saturating_sub(max)
        });
        let for_the_index = if wanted > 0 { FOR_THE_INDEX.min(total / 16) } else { 0 };
        let min_free = self.limits.min_free.of(total).unwrap_or(0).max(for_the_index);
        // Reserved space that is not allocated yet (not every filesystem can allocate ahead) is free only for now.
        // `running` may include files of fills that ended since the look.
        let running = running.saturating_sub(self.released.saturating_sub(released));
        let promised = self.reserved.saturating_sub(running);
        (over_size, (min_free + wanted + promised).saturating_sub(free))
    }

    /// Returns why not even a small object could be stored, if that is so even after everything that may go has gone.
    /// `total`, `free`: bytes of the disk now.
    pub fn shortage(&self, total: u64, free: u64) -> Option<Shortage> {
        let look = Look { total, free, ..self.look.filter(|_| self.is_loaded)? };
        // What comes in at the moment can go once it is stored.
        let goes = self.evictor.evictable() + look.abandoned + self.reserved;
        let missing = self.needed(SMALL, &look).saturating_sub(goes);
        let min_free = self.limits.min_free.of(look.total).unwrap_or(0);
        (missing > 0).then_some(Shortage { missing, free: look.free, min_free, key: self.limits.disk_key() })
    }

    /// Reserves `wanted` bytes if there is plenty of room by the last look, without a new look: all bytes granted since
    /// then count twice. `false` does not mean that there is no room.
    pub fn reserve_at_once(&mut self, wanted: u64) -> bool {
        let Some(look) = self.look.filter(|_| self.is_loaded) else {
            return false;
        };
        let pessimistic = Look {
            free: look.free.saturating_sub(self.granted),
            running: 0,
            abandoned: look.abandoned + self.granted,
            ..look
        };
        let fits = self.needed(wanted, &pessimistic) == 0;
        if fits {
            self.reserve(wanted);
        }
        fits
    }

    fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
        self.granted += bytes;
    }

    /// Returns the bytes that were given back since the start.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// Returns the bytes that are reserved in all.
    #[cfg(test)]
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Gives reserved bytes back.
    pub fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
        self.released = self.released.saturating_add(bytes);
    }

    /// Takes the next step towards room for `wanted` bytes, of which `held` are reserved (the step changes this). At
    /// most `most` objects go in one step. Busy objects stay.
    pub fn step(
        &mut self,
        wanted: u64,
        held: &mut u64,
        look: &Look,
        most: usize,
        now: Seconds,
        is_busy: impl Fn(&Digest) -> bool,
    ) -> Step {
        let rest = wanted.saturating_sub(*held);
        let needs = self.needed(rest, look);
        // Room that is there already is reserved at once, so that nobody else takes it meanwhile.
        let part = rest.saturating_sub(needs);
        self.reserve(part);
        *held += part;
        if needs == 0 {
            return Step::Reserved;
        }
        // For an object that cannot fit, no other is removed.
        if self.evictor.evictable() < needs {
            return Step::NoRoom;
        }
        let (victims, freed) = self.evict(needs, most, now, is_busy);
        if victims.is_empty() {
            return Step::NoRoom;
        }
        // Counted by what the objects take, not by a new look at the disk: some filesystems count removed files as free
        // only later.
        let is_enough = freed >= needs;
        if is_enough {
            self.reserve(wanted.saturating_sub(*held));
            *held = wanted;
        }
        Step::Evict { victims, is_enough }
    }

    /// Takes out the least recently used objects until `bytes` of disk are free, but at most `most` objects. Returns
    /// them and their bytes on disk.
    pub fn evict(
        &mut self,
        bytes: u64,
        most: usize,
        now: Seconds,
        is_busy: impl Fn(&Digest) -> bool,
    ) -> (Vec<Digest>, u64) {
        let before = self.evictor.taken();
        let victims = self.evictor.make_room(bytes, most, now, is_busy);
        (victims, before - self.evictor.taken())
    }

    /// Returns how many bytes are to go in addition to those needed, once objects have to go.
    pub fn spare(&self, total: u64) -> u64 {
        self.limits.disk_size.of(total).unwrap_or(total).min(self.evictor.taken()) / 100 * SPARE
    }

    /// Takes out at most `most` files of objects that were not used for as long as their class keeps them.
    pub fn expire(&mut self, most: usize, now: Seconds, is_busy: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        expire(&mut self.evictor, &self.limits, most, now, is_busy)
    }
}

/// Takes out at most `most` objects that were not used for as long as their class keeps them.
pub(super) fn expire(
    evictor: &mut Evictor,
    limits: &Limits,
    most: usize,
    now: Seconds,
    is_busy: impl Fn(&Digest) -> bool,
) -> Vec<Digest> {
    let mut expired = Vec::new();
    for (class, ttl) in limits.classes.iter() {
        let Some(since) = since(ttl, now) else {
            continue;
        };
        expired.extend(evictor.expire(class, since, now, most - expired.len(), &is_busy));
    }
    expired
}

/// Returns since when objects that are kept for so long have to have been used; `None`: they are kept for ever.
pub(super) fn since(ttl: Limit, now: Seconds) -> Option<Seconds> {
    match ttl {
        Limit::Span(ttl) => Some(now.saturating_sub(Seconds::try_from(ttl.as_secs()).unwrap_or(Seconds::MAX))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::evict::on_disk;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ledger(keys: &str) -> Ledger {
        let config = crate::config::tests::parse(&format!("[cache]\n{keys}\n")).expect("a configuration");
        let mut ledger = Ledger::new(Arc::new(Limits::new(&config, false)));
        ledger.set_loaded();
        ledger
    }

    fn digest(number: u32) -> Digest {
        Digest::Sha256(std::array::from_fn(|at| (number >> (8 * (at % 4))) as u8))
    }

    /// On a filesystem that cannot allocate ahead (ext2, ZFS, some NFS), reserved space still counts as free.
    #[test]
    fn what_is_reserved_and_not_written_yet_is_not_free() {
        let mut ledger = ledger("max_size = \"none\"\nmin_free = \"100 MiB\"");
        let mut look = Look { total: 1000 * MIB, free: 300 * MIB, ..Look::default() };
        let mut reserve = |bytes: u64, look: &Look| {
            let mut held = 0;
            (ledger.step(bytes, &mut held, look, 16, 1, |_| false), held)
        };
        assert_eq!(reserve(150 * MIB, &look), (Step::Reserved, 150 * MIB));
        assert_eq!(reserve(51 * MIB, &look), (Step::NoRoom, 50 * MIB), "only as much as is left");
        // Written bytes are not free any more, and do not count twice.
        look = Look { free: 100 * MIB, running: 200 * MIB, ..look };
        assert_eq!(ledger.needed(0, &look), 0);
        assert_eq!(ledger.needed(MIB, &look), MIB);
    }

    /// The file of a fill that ended was counted as being written. That frees no space that other fills have yet to
    /// write to.
    #[test]
    fn what_a_fill_gives_back_is_not_free_by_a_look_from_before() {
        let mut ledger = ledger("max_size = \"none\"\nmin_free = \"100 MiB\"");
        let mut look = Look { total: 1000 * MIB, free: 300 * MIB, ..Look::default() };
        for _ in 0..2 {
            assert_eq!(ledger.step(100 * MIB, &mut 0, &look, 16, 1, |_| false), Step::Reserved);
        }
        // One fill has written all of its bytes, the other nothing.
        look = Look { free: 200 * MIB, running: 100 * MIB, ..look };
        assert_eq!(ledger.needed(0, &look), 0);
        ledger.release(100 * MIB);
        assert_eq!(ledger.needed(0, &look), 0);
        assert_eq!(ledger.needed(MIB, &look), MIB, "the other has yet to write");
    }

    #[test]
    fn plenty_of_room_is_found_without_a_look_and_only_as_often_as_it_is_there() {
        let mut ledger = ledger("max_size = \"100 MiB\"\nmin_free = \"0\"");
        assert!(!ledger.reserve_at_once(1), "nothing is known of the disk yet");
        let look = Look { total: 1000 * MIB, free: 500 * MIB, ..Look::default() };
        ledger.looked(look);
        let granted = (0..100).take_while(|_| ledger.reserve_at_once(MIB)).count() as u64;
        assert!((40..=100).contains(&granted), "{granted}");
        // Bytes that were granted and given back may be on disk all the same, until the next look.
        ledger.release(granted * MIB);
        assert!(!ledger.reserve_at_once(90 * MIB));
        ledger.looked(look);
        assert!(ledger.reserve_at_once(90 * MIB));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Ask(u64),
        AskAtOnce(u64),
        /// The fill that asked first writes all of its bytes and is stored.
        Store,
        /// The fill that asked first ends without storing anything.
        GiveUp,
        Look,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (1u64..40 * MIB).prop_map(|bytes| Event::Ask(on_disk(bytes))),
            3 => (1u64..40 * MIB).prop_map(|bytes| Event::AskAtOnce(on_disk(bytes))),
            3 => Just(Event::Store),
            1 => Just(Event::GiveUp),
            2 => Just(Event::Look),
        ]
    }

    proptest! {
        /// Whatever comes and goes: what is stored and what may still be written stays within `max_size` and leaves
        /// `min_free`, on a disk that allocates nothing ahead.
        #[test]
        fn the_limits_hold_whatever_comes(events in prop::collection::vec(event(), 0..200)) {
            let mut ledger = ledger("max_size = \"100 MiB\"\nmin_free = \"50 MiB\"");
            let total = 300 * MIB;
            // Other programs take 100 MiB.
            let free_for_us = 200 * MIB;
            let (mut fills, mut stored): (Vec<u64>, Vec<(Digest, u64)>) = (Vec::new(), Vec::new());
            let mut number = 0;
            let look = |stored: &[(Digest, u64)]| Look {
                total,
                free: free_for_us - stored.iter().map(|(_, bytes)| bytes).sum::<u64>(),
                ..Look::default()
            };
            for event in events {
                match event {
                    Event::Ask(bytes) => {
                        let mut held = 0;
                        loop {
                            match ledger.step(bytes, &mut held, &look(&stored), 4, 1, |_| false) {
                                Step::Reserved => {
                                    prop_assert_eq!(held, bytes);
                                    fills.push(bytes);
                                    break;
                                }
                                Step::NoRoom => {
                                    ledger.release(held);
                                    break;
                                }
                                Step::Evict { victims, is_enough } => {
                                    stored.retain(|(digest, _)| !victims.contains(digest));
                                    if is_enough {
                                        prop_assert_eq!(held, bytes);
                                        fills.push(bytes);
                                        break;
                                    }
                                }
                            }
                        }
                    }
                    Event::AskAtOnce(bytes) => {
                        if ledger.reserve_at_once(bytes) {
                            fills.push(bytes);
                        }
                    }
                    Event::Store if !fills.is_empty() => {
                        let bytes = fills.remove(0);
                        number += 1;
                        ledger.stored(digest(number), bytes, 0, number);
                        stored.push((digest(number), bytes));
                        ledger.release(bytes);
                    }
                    Event::GiveUp if !fills.is_empty() => ledger.release(fills.remove(0)),
                    Event::Store | Event::GiveUp => {}
                    Event::Look => ledger.looked(look(&stored)),
                }
                let kept: u64 = stored.iter().map(|(_, bytes)| bytes).sum();
                let coming: u64 = fills.iter().sum();
                prop_assert_eq!(ledger.reserved(), coming);
                prop_assert!(kept + coming <= 100 * MIB, "{} + {}", kept, coming);
                prop_assert!(kept + coming + 50 * MIB <= free_for_us);
            }
        }
    }
}
