//! Which objects go when room is needed: the least recently used first. Pure and synchronous; it says
//! what to remove and others act.
//!
//! One entry an object, in a list ordered by use whose links are positions, with a hash table of
//! positions beside it: every step takes the same time whatever is stored, and an object costs about
//! a hundred bytes.

use hashbrown::HashTable;

use crate::oci::Digest;

/// Seconds since 1970: enough for the order of use.
pub type Seconds = u32;

const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Entry {
    digest: Digest,
    /// Found on disk since the last [`Evictor::begin_census`].
    is_seen: bool,
    older: u32,
    newer: u32,
    last_use: Seconds,
    size: u64,
}

/// All stored objects in the order of their last use.
#[derive(Debug)]
pub struct Evictor {
    entries: Vec<Entry>,
    free: Vec<u32>,
    positions: HashTable<u32>,
    oldest: u32,
    newest: u32,
    bytes: u64,
}

impl Default for Evictor {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            positions: HashTable::new(),
            oldest: NONE,
            newest: NONE,
            bytes: 0,
        }
    }
}

impl Evictor {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn objects(&self) -> usize {
        self.positions.len()
    }

    /// An object is stored, last used at `now`; one that is known gets the new size and use.
    pub fn insert(&mut self, digest: Digest, size: u64, now: Seconds) {
        self.remove(&digest);
        let entry = Entry { digest, is_seen: true, older: NONE, newer: NONE, last_use: now, size };
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
        self.link_newest(at);
    }

    /// An object was used. Returns when it was last used before; `None` if it is not known.
    pub fn touch(&mut self, digest: &Digest, now: Seconds) -> Option<Seconds> {
        let at = self.position(digest)?;
        self.unlink(at);
        self.link_newest(at);
        Some(std::mem::replace(&mut self.entries[at as usize].last_use, now))
    }

    /// Forgets an object; returns its size.
    pub fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let entries = &self.entries;
        let is_it = |&at: &u32| entries[at as usize].digest == *digest;
        let (at, _) = self.positions.find_entry(hash(digest), is_it).ok()?.remove();
        self.unlink(at);
        self.free.push(at);
        let size = self.entries[at as usize].size;
        self.bytes -= size;
        Some(size)
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn contains(&self, digest: &Digest) -> bool {
        self.position(digest).is_some()
    }

    /// Takes out the least recently used objects until `bytes` are free, or nothing is left.
    pub fn make_room(&mut self, bytes: u64) -> Vec<Digest> {
        let mut victims = Vec::new();
        let mut freed = 0;
        while freed < bytes && self.oldest != NONE {
            let digest = self.entries[self.oldest as usize].digest;
            freed += self.remove(&digest).unwrap_or_default();
            victims.push(digest);
        }
        victims
    }

    /// Takes out the objects last used before `since`.
    pub fn expire(&mut self, since: Seconds) -> Vec<Digest> {
        let mut expired = Vec::new();
        while self.oldest != NONE && self.entries[self.oldest as usize].last_use < since {
            let digest = self.entries[self.oldest as usize].digest;
            self.remove(&digest);
            expired.push(digest);
        }
        expired
    }

    /// Begins to compare with what is on disk.
    pub fn begin_census(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.is_seen = false);
    }

    /// An object's file was found. Returns whether the object was known with this size.
    pub fn seen(&mut self, digest: &Digest, size: u64) -> bool {
        let Some(at) = self.position(digest) else {
            return false;
        };
        let entry = &mut self.entries[at as usize];
        entry.is_seen = true;
        entry.size == size
    }

    /// Takes out what was not found since the census began.
    pub fn end_census(&mut self) -> Vec<Digest> {
        let entries = &self.entries;
        let unseen = self.positions.iter().map(|&at| &entries[at as usize]).filter(|entry| !entry.is_seen);
        let gone: Vec<_> = unseen.map(|entry| entry.digest).collect();
        for digest in &gone {
            self.remove(digest);
        }
        gone
    }

    fn position(&self, digest: &Digest) -> Option<u32> {
        let is_it = |&at: &u32| self.entries[at as usize].digest == *digest;
        self.positions.find(hash(digest), is_it).copied()
    }

    fn link_newest(&mut self, at: u32) {
        let before = self.newest;
        self.entries[at as usize].older = before;
        self.entries[at as usize].newer = NONE;
        match before {
            NONE => self.oldest = at,
            before => self.entries[before as usize].newer = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Entry { older, newer, .. } = self.entries[at as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
    }
}

/// A digest is as good a hash as there is.
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
        Insert(u8, u64),
        Touch(u8),
        Remove(u8),
        MakeRoom(u64),
        Expire(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..20, 0u64..100).prop_map(|(number, size)| Step::Insert(number, size)),
            (0u8..20).prop_map(Step::Touch),
            (0u8..20).prop_map(Step::Remove),
            (0u64..200).prop_map(Step::MakeRoom),
            (0u32..60).prop_map(Step::Expire),
        ]
    }

    proptest! {
        /// Against a plain list of number, size and last use, the oldest first.
        #[test]
        fn it_behaves_as_a_list_in_the_order_of_use(steps in prop::collection::vec(step(), 0..60)) {
            let mut evictor = Evictor::default();
            let mut model: Vec<(u8, u64, u32)> = Vec::new();
            for (now, step) in steps.into_iter().enumerate() {
                let now = now as u32;
                let at = |model: &Vec<(u8, u64, u32)>, number: u8| model.iter().position(|entry| entry.0 == number);
                match step {
                    Step::Insert(number, size) => {
                        evictor.insert(digest(number), size, now);
                        if let Some(at) = at(&model, number) {
                            model.remove(at);
                        }
                        model.push((number, size, now));
                    }
                    Step::Touch(number) => {
                        let before = evictor.touch(&digest(number), now);
                        let found = at(&model, number).map(|at| model.remove(at));
                        prop_assert_eq!(before, found.map(|entry| entry.2));
                        model.extend(found.map(|entry| (number, entry.1, now)));
                    }
                    Step::Remove(number) => {
                        let removed = evictor.remove(&digest(number));
                        let found = at(&model, number).map(|at| model.remove(at));
                        prop_assert_eq!(removed, found.map(|entry| entry.1));
                    }
                    Step::MakeRoom(bytes) => {
                        let victims = evictor.make_room(bytes);
                        let mut freed = 0;
                        let count = model.iter().take_while(|entry| { let goes = freed < bytes; freed += entry.1; goes }).count();
                        let expected: Vec<_> = model.drain(..count).map(|entry| digest(entry.0)).collect();
                        prop_assert_eq!(victims, expected);
                    }
                    Step::Expire(since) => {
                        let expired = evictor.expire(since);
                        let count = model.iter().take_while(|entry| entry.2 < since).count();
                        let expected: Vec<_> = model.drain(..count).map(|entry| digest(entry.0)).collect();
                        prop_assert_eq!(expired, expected);
                    }
                }
                prop_assert_eq!(evictor.objects(), model.len());
                prop_assert_eq!(evictor.bytes(), model.iter().map(|entry| entry.1).sum::<u64>());
            }
        }
    }

    #[test]
    fn a_census_finds_what_is_gone() {
        let mut evictor = Evictor::default();
        (0..3).for_each(|number| evictor.insert(digest(number), 10, 1));
        evictor.begin_census();
        assert!(evictor.seen(&digest(0), 10));
        assert!(!evictor.seen(&digest(1), 11), "another size");
        assert!(!evictor.seen(&digest(9), 10), "not known");
        // What is stored meanwhile is there.
        evictor.insert(digest(4), 10, 2);
        assert_eq!(evictor.end_census(), [digest(2)]);
        assert_eq!(evictor.objects(), 3);
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 96, "{}", size_of::<Entry>());
    }
}
