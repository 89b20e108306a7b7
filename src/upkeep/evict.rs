//! Decides which objects go when room is needed: the least recently used first. Pure and synchronous: it names the
//! objects, and its callers remove them.
//!
//! Each object has one entry, in lists ordered by use, whose links are positions. A hash table of positions is beside
//! them. So every step takes the same time however much is stored, and an object costs about a hundred bytes. There is
//! one list for each time that objects are kept unused (a repository may have its own), and one for pinned objects.

use hashbrown::HashTable;

use super::clock::Seconds;
use crate::oci::Digest;

/// How long objects are kept unused, as a rank: objects of a higher class are kept longer.
pub type Class = u8;

/// The position that stands for no entry.
const NONE: u32 = u32::MAX;

/// Filesystems give files whole blocks, of this many bytes nearly everywhere.
const BLOCK: u64 = 4096;

/// Returns the disk space that an object of `size` bytes takes: an object of a single byte takes a block, too.
pub fn on_disk(size: u64) -> u64 {
    size.max(1).checked_next_multiple_of(BLOCK).unwrap_or(size)
}

/// The entry of one object.
#[derive(Clone, Debug)]
struct Entry {
    digest: Digest,
    /// Whether the file was found since the last [`Evictor::begin_census`].
    is_seen: bool,
    is_pinned: bool,
    class: Class,
    /// The position of the entry that was used next before this one, in its list.
    older: u32,
    /// The position of the entry that was used next after this one.
    newer: u32,
    last_use: Seconds,
    size: u64,
}

/// The two ends of a list.
#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
}

const EMPTY: List = List { oldest: NONE, newest: NONE };

/// All stored objects, in the order of their last use.
#[derive(Debug)]
pub struct Evictor {
    entries: Vec<Entry>,
    /// Positions in `entries` that are free.
    free: Vec<u32>,
    positions: HashTable<u32>,
    /// The lists, by class; the last one holds pinned objects.
    lists: Vec<List>,
    bytes: u64,
    /// The disk space that all objects take.
    taken: u64,
    /// The disk space that pinned objects take.
    pinned: u64,
}

impl Evictor {
    /// Creates an evictor for so many classes.
    pub fn new(classes: Class) -> Self {
        let lists = vec![EMPTY; usize::from(classes) + 1];
        let positions = HashTable::new();
        Self { entries: Vec::new(), free: Vec::new(), positions, lists, bytes: 0, taken: 0, pinned: 0 }
    }

    /// Returns the bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the disk space that all objects take.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Returns the disk space that objects take which are not pinned.
    pub fn evictable(&self) -> u64 {
        self.taken - self.pinned
    }

    /// Returns how many objects there are.
    pub fn objects(&self) -> usize {
        self.positions.len()
    }

    /// Notes that an object is stored and was last used at `now`. A known object gets the new size and use.
    pub fn insert(&mut self, digest: Digest, size: u64, now: Seconds, class: Class, is_pinned: bool) {
        self.remove(&digest);
        let class = class.min(self.highest_class());
        let entry = Entry { digest, is_seen: true, is_pinned, class, older: NONE, newer: NONE, last_use: now, size };
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
            }
        };
        let entries = &self.entries;
        self.positions.insert_unique(hash(&digest), at, |&at| hash(&entries[at as usize].digest));
        self.bytes += size;
        self.taken += on_disk(size);
        self.pinned += if is_pinned { on_disk(size) } else { 0 };
        self.link_newest(at);
    }

    /// Notes that an object was used. Returns when it was last used before; `None` if the object is not known.
    pub fn touch(&mut self, digest: &Digest, now: Seconds) -> Option<Seconds> {
        let at = self.position(digest)?;
        let before = self.entries[at as usize].last_use;
        self.relink(at, |entry| entry.last_use = now);
        Some(before)
    }

    /// Notes that an object is to be kept at least as long as `class` says; that counts as a use.
    pub fn raise(&mut self, digest: &Digest, class: Class, now: Seconds) {
        let class = class.min(self.highest_class());
        if let Some(at) = self.position(digest).filter(|&at| self.entries[at as usize].class < class) {
            self.relink(at, |entry| *entry = Entry { class, last_use: now, ..entry.clone() });
        }
    }

    /// Notes that an object must never go, or may go again; a change counts as a use.
    pub fn set_pinned(&mut self, digest: &Digest, is_pinned: bool, now: Seconds) {
        if let Some(at) = self.position(digest).filter(|&at| self.entries[at as usize].is_pinned != is_pinned) {
            self.relink(at, |entry| *entry = Entry { is_pinned, last_use: now, ..entry.clone() });
            let taken = on_disk(self.entries[at as usize].size);
            self.pinned = if is_pinned { self.pinned + taken } else { self.pinned - taken };
        }
    }

    fn relink(&mut self, at: u32, change: impl FnOnce(&mut Entry)) {
        self.unlink(at);
        change(&mut self.entries[at as usize]);
        self.link_newest(at);
    }

    /// Forgets an object. Returns its size.
    pub fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let entries = &self.entries;
        let is_it = |&at: &u32| entries[at as usize].digest == *digest;
        let (at, _) = self.positions.find_entry(hash(digest), is_it).ok()?.remove();
        self.unlink(at);
        self.free.push(at);
        let Entry { size, is_pinned, .. } = self.entries[at as usize];
        self.bytes -= size;
        self.taken -= on_disk(size);
        self.pinned -= if is_pinned { on_disk(size) } else { 0 };
        Some(size)
    }

    /// Forgets all objects.
    pub fn clear(&mut self) {
        *self = Self::new(self.highest_class() + 1);
    }

    /// Returns whether an object is known.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.position(digest).is_some()
    }

    /// Returns the size, the class and the last use of an object.
    pub fn find(&self, digest: &Digest) -> Option<(u64, Class, Seconds)> {
        let entry = &self.entries[self.position(digest)? as usize];
        Some((entry.size, entry.class, entry.last_use))
    }

    /// Returns all objects, in no order.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.positions.iter().map(|&at| &self.entries[at as usize].digest)
    }

    /// Returns at most `most` objects of a class that may go, with their last uses, the least recently used first.
    pub fn oldest(&self, class: Class, most: usize) -> impl Iterator<Item = (Digest, Seconds)> + '_ {
        let first = self.lists_that_may_go().nth(usize::from(class)).map_or(NONE, |list| list.oldest);
        let next = |entry: &&Entry| self.entries.get(entry.newer as usize);
        let entries = std::iter::successors(self.entries.get(first as usize), next);
        entries.take(most).map(|entry| (entry.digest, entry.last_use))
    }

    /// Takes out the least recently used objects until `bytes` of disk are free, but at most `most` objects. Busy
    /// objects count as used now.
    pub fn make_room(
        &mut self,
        bytes: u64,
        most: usize,
        now: Seconds,
        is_busy: impl Fn(&Digest) -> bool,
    ) -> Vec<Digest> {
        let mut victims = Vec::new();
        let mut freed = 0;
        // Looks at each object once.
        for _ in 0..self.objects() {
            let oldest = self.lists_that_may_go().filter(|list| list.oldest != NONE).map(|list| list.oldest);
            let is_enough = freed >= bytes || victims.len() >= most;
            let Some(at) = oldest.min_by_key(|&at| self.entries[at as usize].last_use).filter(|_| !is_enough) else {
                break;
            };
            let digest = self.entries[at as usize].digest;
            if is_busy(&digest) {
                self.touch(&digest, now);
                continue;
            }
            freed += self.remove(&digest).map_or(0, on_disk);
            victims.push(digest);
        }
        victims
    }

    /// Takes out at most `most` objects of a class that were last used before `since`.
    pub fn expire(
        &mut self,
        class: Class,
        since: Seconds,
        now: Seconds,
        most: usize,
        is_busy: impl Fn(&Digest) -> bool,
    ) -> Vec<Digest> {
        let mut expired = Vec::new();
        // Busy objects get a later use than this.
        let since = since.min(now);
        while expired.len() < most
            && let Some(entry) = self.entries.get(self.lists[usize::from(class)].oldest as usize)
            && entry.last_use < since
        {
            let digest = entry.digest;
            if is_busy(&digest) {
                self.touch(&digest, now);
                continue;
            }
            self.remove(&digest);
            expired.push(digest);
        }
        expired
    }

    /// Begins a comparison with the files on disk.
    pub fn begin_census(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.is_seen = false);
    }

    /// Notes that an object's file was found. Returns the size with which the object was known.
    pub fn seen(&mut self, digest: &Digest) -> Option<u64> {
        let at = self.position(digest)?;
        let entry = &mut self.entries[at as usize];
        entry.is_seen = true;
        Some(entry.size)
    }

    /// Returns the objects that were not found since the census began; with `is_removed`, they are forgotten.
    pub fn end_census(&mut self, is_removed: bool) -> Vec<Digest> {
        let entries = &self.entries;
        let unseen = self.positions.iter().map(|&at| &entries[at as usize]).filter(|entry| !entry.is_seen);
        let gone: Vec<_> = unseen.map(|entry| entry.digest).collect();
        for digest in gone.iter().filter(|_| is_removed) {
            self.remove(digest);
        }
        gone
    }

    fn position(&self, digest: &Digest) -> Option<u32> {
        let is_it = |&at: &u32| self.entries[at as usize].digest == *digest;
        self.positions.find(hash(digest), is_it).copied()
    }

    fn highest_class(&self) -> Class {
        Class::try_from(self.lists.len().saturating_sub(2)).unwrap_or(Class::MAX)
    }

    /// Returns the lists of objects that may go.
    fn lists_that_may_go(&self) -> impl Iterator<Item = &List> {
        self.lists.iter().take(self.lists.len() - 1)
    }

    fn list(&mut self, at: u32) -> &mut List {
        let entry = &self.entries[at as usize];
        let list = if entry.is_pinned { self.lists.len() - 1 } else { usize::from(entry.class) };
        &mut self.lists[list]
    }

    fn link_newest(&mut self, at: u32) {
        let before = std::mem::replace(&mut self.list(at).newest, at);
        self.entries[at as usize].older = before;
        self.entries[at as usize].newer = NONE;
        match before {
            NONE => self.list(at).oldest = at,
            before => self.entries[before as usize].newer = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Entry { older, newer, .. } = self.entries[at as usize];
        match older {
            NONE => self.list(at).oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.list(at).newest = older,
            newer => self.entries[newer as usize].older = older,
        }
    }
}

/// Returns the hash of a digest: its first bytes are as good a hash as any.
fn hash(digest: &Digest) -> u64 {
    let raw = digest.as_raw();
    u64::from_le_bytes(std::array::from_fn(|at| raw[at]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::Sha256(std::array::from_fn(|at| number.wrapping_mul(31).wrapping_add(at as u8)))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u64, Class),
        Touch(u8),
        Remove(u8),
        Raise(u8, Class),
        Pin(u8, bool),
        MakeRoom(u64, usize),
        Expire(Class, u32, usize),
    }

    const CLASSES: Class = 3;
    /// The numbers of objects that are being read.
    const BUSY: std::ops::Range<u8> = 17..20;

    fn step() -> impl Strategy<Value = Step> {
        let number = 0u8..20;
        let class = 0..CLASSES;
        prop_oneof![
            (number.clone(), 0u64..10_000, class.clone())
                .prop_map(|(number, size, class)| Step::Insert(number, size, class)),
            number.clone().prop_map(Step::Touch),
            number.clone().prop_map(Step::Remove),
            (number.clone(), class.clone()).prop_map(|(number, class)| Step::Raise(number, class)),
            (number, any::<bool>()).prop_map(|(number, is_pinned)| Step::Pin(number, is_pinned)),
            (0u64..30_000, 0usize..8).prop_map(|(bytes, most)| Step::MakeRoom(bytes, most)),
            (class, 0u32..60, 0usize..8).prop_map(|(class, since, most)| Step::Expire(class, since, most)),
        ]
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Modelled {
        number: u8,
        size: u64,
        last_use: u32,
        class: Class,
        is_pinned: bool,
    }

    /// Returns the objects that go, in this order; busy objects count as used instead.
    fn go(
        model: &mut Vec<Modelled>,
        now: u32,
        class: Option<Class>,
        mut may_go: impl FnMut(&Modelled) -> bool,
    ) -> Vec<Digest> {
        let mut gone = Vec::new();
        for entry in model.clone() {
            if entry.is_pinned || class.is_some_and(|class| entry.class != class) || !may_go(&entry) {
                continue;
            }
            model.retain(|other| other.number != entry.number);
            if BUSY.contains(&entry.number) {
                model.push(Modelled { last_use: now, ..entry });
            } else {
                gone.push(digest(entry.number));
            }
        }
        gone
    }

    proptest! {
        /// Compares the evictor with a plain list, the least recently used first.
        #[test]
        fn it_behaves_as_a_list_in_the_order_of_use(steps in prop::collection::vec(step(), 0..80)) {
            let mut evictor = Evictor::new(CLASSES);
            let mut model: Vec<Modelled> = Vec::new();
            let is_busy = |asked: &Digest| BUSY.clone().any(|number| digest(number) == *asked);
            for (now, step) in steps.into_iter().enumerate() {
                let now = now as u32;
                let take = |model: &mut Vec<Modelled>, number: u8| {
                    let at = model.iter().position(|entry| entry.number == number)?;
                    Some(model.remove(at))
                };
                match step {
                    Step::Insert(number, size, class) => {
                        evictor.insert(digest(number), size, now, class, false);
                        take(&mut model, number);
                        model.push(Modelled { number, size, last_use: now, class, is_pinned: false });
                    }
                    Step::Touch(number) => {
                        let before = evictor.touch(&digest(number), now);
                        let found = take(&mut model, number);
                        prop_assert_eq!(before, found.map(|entry| entry.last_use));
                        model.extend(found.map(|entry| Modelled { last_use: now, ..entry }));
                    }
                    Step::Remove(number) => {
                        let removed = evictor.remove(&digest(number));
                        prop_assert_eq!(removed, take(&mut model, number).map(|entry| entry.size));
                    }
                    Step::Raise(number, class) => {
                        evictor.raise(&digest(number), class, now);
                        if model.iter().any(|entry| entry.number == number && entry.class < class) {
                            let found = take(&mut model, number);
                            model.extend(found.map(|entry| Modelled { class, last_use: now, ..entry }));
                        }
                    }
                    Step::Pin(number, is_pinned) => {
                        evictor.set_pinned(&digest(number), is_pinned, now);
                        if model.iter().any(|entry| entry.number == number && entry.is_pinned != is_pinned) {
                            let found = take(&mut model, number);
                            model.extend(found.map(|entry| Modelled { is_pinned, last_use: now, ..entry }));
                        }
                    }
                    Step::MakeRoom(bytes, most) => {
                        let victims = evictor.make_room(bytes, most, now, is_busy);
                        let (mut freed, mut count) = (0, 0);
                        let expected = go(&mut model, now, None, |entry| {
                            let goes = freed < bytes && count < most;
                            if goes && !BUSY.contains(&entry.number) {
                                (freed, count) = (freed + on_disk(entry.size), count + 1);
                            }
                            goes
                        });
                        prop_assert_eq!(victims, expected);
                    }
                    Step::Expire(class, since, most) => {
                        let since = since.min(now);
                        let expired = evictor.expire(class, since, now, most, is_busy);
                        let mut count = 0;
                        let expected = go(&mut model, now, Some(class), |entry| {
                            let goes = entry.last_use < since && count < most;
                            count += usize::from(goes && !BUSY.contains(&entry.number));
                            goes
                        });
                        prop_assert_eq!(expired, expected);
                    }
                }
                prop_assert_eq!(evictor.objects(), model.len());
                prop_assert_eq!(evictor.bytes(), model.iter().map(|entry| entry.size).sum::<u64>());
                prop_assert_eq!(evictor.taken(), model.iter().map(|entry| on_disk(entry.size)).sum::<u64>());
                let evictable = model.iter().filter(|entry| !entry.is_pinned).map(|entry| on_disk(entry.size));
                prop_assert_eq!(evictor.evictable(), evictable.sum::<u64>());
            }
        }
    }

    #[test]
    fn a_census_finds_what_is_gone() {
        let mut evictor = Evictor::new(1);
        (0..3).for_each(|number| evictor.insert(digest(number), 10, 1, 0, false));
        evictor.begin_census();
        assert_eq!(evictor.seen(&digest(0)), Some(10));
        assert_eq!(evictor.seen(&digest(1)), Some(10));
        assert_eq!(evictor.seen(&digest(9)), None, "not known");
        // An object that is stored meanwhile counts as found.
        evictor.insert(digest(4), 10, 2, 0, false);
        assert_eq!(evictor.end_census(true), [digest(2)]);
        assert_eq!(evictor.objects(), 3);
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 96, "{}", size_of::<Entry>());
    }
}
