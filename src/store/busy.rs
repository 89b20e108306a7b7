//! Objects that are asked for all the time: their files are not looked at for each request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Body, Object};
use crate::clock::Instant;
use crate::oci::Digest;

/// How long a look at an object's file holds for an object that is asked for all the time. A file that somebody removes
/// or changes is noticed after that.
const HOLDS: Duration = Duration::from_millis(100);
/// How often an object has to be asked for within that time. A request that comes alone is answered by a look at the
/// file.
const BUSY: u32 = 8;
/// Most objects, each with a descriptor and a mapping.
const MOST: usize = 64;
/// Most bytes of the objects that are in memory.
const MOST_BYTES: u64 = 4 << 20;

/// Open objects and when their files were last looked at, by their digests.
#[derive(Debug, Default)]
pub struct BusyObjects(Mutex<HashMap<Digest, Looked>>);

#[derive(Debug)]
struct Looked {
    object: Object,
    /// When the first of `times` was.
    since: Instant,
    /// How often the file was looked at.
    times: u32,
}

impl Looked {
    fn holds(&self) -> bool {
        self.since.elapsed() < HOLDS
    }
}

impl BusyObjects {
    /// Returns an object whose file need not be looked at now. Quick.
    pub fn find(&self, digest: &Digest) -> Option<Object> {
        let table = self.table();
        let looked = table.get(digest).filter(|looked| looked.times >= BUSY && looked.holds())?;
        Some(looked.object.clone())
    }

    /// Notes that an object's file was looked at.
    pub fn looked_at(&self, digest: &Digest, object: &Object) {
        let mut table = self.table();
        // Files may take a moment to close, so they are dropped behind the lock.
        let mut dropped = Vec::new();
        match table.get_mut(digest).filter(|looked| looked.holds()) {
            Some(looked) => {
                looked.times += 1;
                dropped.push(std::mem::replace(&mut looked.object, object.clone()));
            }
            None => {
                dropped.extend(table.extract_if(|_, looked| !looked.holds()).map(|(_, looked)| looked.object));
                let bytes: u64 = table.values().map(|looked| in_memory(&looked.object)).sum();
                if table.len() < MOST && bytes + in_memory(object) <= MOST_BYTES {
                    table.insert(*digest, Looked { object: object.clone(), since: Instant::now(), times: 1 });
                }
            }
        }
        drop(table);
        drop(dropped);
    }

    /// Forgets an object that is removed or changed.
    pub fn forget(&self, digest: &Digest) {
        let forgotten = self.table().remove(digest);
        drop(forgotten);
    }

    /// Forgets all objects.
    pub fn forget_all(&self) {
        let forgotten = std::mem::take(&mut *self.table());
        drop(forgotten);
    }

    /// Forgets the objects that nobody asks for any more, so that their files are closed.
    pub fn forget_old(&self) {
        let old: Vec<_> = self.table().extract_if(|_, looked| !looked.holds()).collect();
        drop(old);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Digest, Looked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how many bytes of an object are in memory.
fn in_memory(object: &Object) -> u64 {
    match &object.body {
        Body::Read(bytes, _) => bytes.len() as u64,
        Body::Mapped(..) | Body::ToRead(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock;

    fn object(bytes: usize) -> Object {
        let body = Body::Read(Bytes::from(vec![1; bytes]), None);
        Object { size: bytes as u64, since: clock::wall(), is_sealed: true, body }
    }

    fn digest(number: u8) -> Digest {
        Digest::Sha256([number; 32])
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_object_that_is_asked_for_all_the_time_is_not_looked_at_and_not_for_long() {
        let (busy, object) = (BusyObjects::default(), object(3));
        for _ in 0..BUSY {
            assert!(busy.find(&digest(1)).is_none());
            busy.looked_at(&digest(1), &object);
        }
        assert_eq!(busy.find(&digest(1)).map(|found| found.size), Some(3));
        tokio::time::advance(HOLDS).await;
        assert!(busy.find(&digest(1)).is_none(), "it is looked at again");
        // Few requests in a long time do not add up.
        for _ in 0..2 * BUSY {
            busy.looked_at(&digest(1), &object);
            tokio::time::advance(HOLDS / 4).await;
        }
        assert!(busy.find(&digest(1)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_object_is_forgotten_at_once() {
        let (busy, object) = (BusyObjects::default(), object(3));
        for _ in 0..BUSY {
            busy.looked_at(&digest(1), &object);
        }
        busy.forget(&digest(1));
        assert!(busy.find(&digest(1)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_objects_that_are_kept_open_are_few_and_go_when_nobody_asks_for_them() {
        let busy = BusyObjects::default();
        let kept = || busy.table().len();
        for number in 0..=255 {
            busy.looked_at(&digest(number), &object(3));
        }
        assert_eq!(kept(), MOST);
        tokio::time::advance(HOLDS).await;
        busy.looked_at(&digest(1), &object(MOST_BYTES as usize));
        assert_eq!(kept(), 1, "the others are old");
        busy.looked_at(&digest(2), &object(1));
        assert_eq!(kept(), 1, "that many bytes are enough");
        tokio::time::advance(HOLDS).await;
        busy.forget_old();
        assert_eq!(kept(), 0);
    }
}
