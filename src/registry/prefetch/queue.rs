//! Which image comes in next behind a pull. Pure; the caller passes the time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::oci::Digest;
use crate::upstream::WhoId;

/// Most images that wait. Further ones are left out: they come in with the next pull.
const WAITING: usize = 256;
/// Most images of one client that wait: its pulls keep nobody else's out.
const OF_ONE_CLIENT: usize = WAITING / 4;
/// How long an image may wait. Its credentials are kept for no longer; those of registries last about as long.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Images that come in at once, from all upstreams and from one.
const AT_ONCE: usize = 4;
const OF_ONE_UPSTREAM: usize = 2;

/// An image on its way in: repository, name, manifest, credentials.
type Key = (String, String, Digest, WhoId);

/// Images that wait, and what is known of those that come in.
pub struct Queue<J> {
    waiting: VecDeque<Waiting<J>>,
    /// Images that wait or come in.
    known: HashSet<Key>,
    /// Images that come in, by upstream.
    running: HashMap<Arc<str>, usize>,
}

struct Waiting<J> {
    job: J,
    slot: Slot,
    /// Who pulled.
    client: Option<IpAddr>,
    since: Instant,
}

/// What an image has of the queue until it has ended.
#[derive(Clone, Debug)]
pub struct Slot {
    pub key: Key,
    /// The upstream, as places are counted.
    pub source: Arc<str>,
}

/// What becomes of an image that is to come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Waits,
    /// It waits or comes in already.
    IsKnown,
    Full,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), known: HashSet::new(), running: HashMap::new() }
    }
}

impl<J> Queue<J> {
    /// Lets an image wait that a client pulled.
    pub fn admit(&mut self, job: J, slot: Slot, client: Option<IpAddr>, now: Instant) -> Admission {
        if self.known.contains(&slot.key) {
            return Admission::IsKnown;
        }
        let of_client = self.waiting.iter().filter(|waiting| waiting.client == client).count();
        if self.waiting.len() >= WAITING || of_client >= OF_ONE_CLIENT {
            return Admission::Full;
        }
        self.known.insert(slot.key.clone());
        self.waiting.push_back(Waiting { job, slot, client, since: now });
        Admission::Waits
    }

    /// Returns an image that is to come in now. [`Self::ended`] has to be called at its end.
    pub fn next(&mut self) -> Option<(J, Slot)> {
        if self.running.values().sum::<usize>() >= AT_ONCE {
            return None;
        }
        let of_source = |slot: &Slot| self.running.get(&slot.source).copied().unwrap_or_default();
        let at = self.waiting.iter().position(|waiting| of_source(&waiting.slot) < OF_ONE_UPSTREAM)?;
        let Waiting { job, slot, .. } = self.waiting.remove(at)?;
        *self.running.entry(slot.source.clone()).or_default() += 1;
        Some((job, slot))
    }

    /// Notes that an image has ended.
    pub fn ended(&mut self, slot: &Slot) {
        self.known.remove(&slot.key);
        if let Some(count) = self.running.get_mut(&slot.source) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(&slot.source);
            }
        }
    }

    /// Drops the images that have waited too long. Returns how many.
    pub fn drop_old(&mut self, now: Instant) -> usize {
        self.drop_if(|since| now.saturating_duration_since(since) >= PATIENCE)
    }

    /// Drops all images that wait. Returns how many.
    pub fn clear(&mut self) -> usize {
        self.drop_if(|_| true)
    }

    /// Returns whether no image waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn drop_if(&mut self, is_dropped: impl Fn(Instant) -> bool) -> usize {
        let before = self.waiting.len();
        let known = &mut self.known;
        self.waiting.retain(|waiting| {
            let stays = !is_dropped(waiting.since);
            if !stays {
                known.remove(&waiting.slot.key);
            }
            stays
        });
        before - self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::upstream::Who;

    fn slot(source: &str, image: usize) -> Slot {
        let digest = Digest::of(Algorithm::Sha256, &image.to_be_bytes());
        Slot { key: ("hub".to_owned(), "app".to_owned(), digest, Who::Anonymous.id()), source: source.into() }
    }

    /// The client that pulls an image of a test: each pulls as many as may wait.
    fn client(image: usize) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, u8::try_from(image / OF_ONE_CLIENT).expect("small")]))
    }

    #[test]
    fn so_many_images_wait_and_no_more_and_none_for_long() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for image in 0..WAITING {
            assert_eq!(queue.admit(image, slot("a", image), client(image), now), Admission::Waits);
            if image + 1 == OF_ONE_CLIENT {
                assert_eq!(queue.admit(9_999, slot("a", 9_999), client(0), now), Admission::Full, "it has its share");
            }
        }
        assert_eq!(queue.admit(0, slot("a", 0), client(0), now), Admission::IsKnown);
        assert_eq!(queue.admit(WAITING, slot("a", WAITING), client(WAITING), now), Admission::Full);
        assert_eq!(queue.drop_old(now + PATIENCE / 2), 0);
        assert_eq!(queue.drop_old(now + PATIENCE), WAITING);
        assert!(queue.is_empty() && queue.known.is_empty());
        assert_eq!(queue.admit(0, slot("a", 0), client(0), now), Admission::Waits, "it is forgotten");
        assert_eq!(queue.clear(), 1);
        assert!(queue.is_empty() && queue.known.is_empty());
    }

    #[test]
    fn few_images_come_in_at_once_and_fewer_from_one_upstream() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (image, source) in ["a", "a", "a", "b", "c", "d"].into_iter().enumerate() {
            queue.admit(image, slot(source, image), client(image), now);
        }
        let running: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(running.iter().map(|(image, _)| *image).collect::<Vec<_>>(), [0, 1, 3, 4]);
        assert_eq!(queue.admit(9, slot("a", 1), client(1), now), Admission::IsKnown, "it comes in");
        queue.ended(&running[2].1);
        assert_eq!(queue.next().map(|(image, _)| image), Some(5), "two come in from that upstream already");
        queue.ended(&running[0].1);
        assert_eq!(queue.next().map(|(image, _)| image), Some(2));
        assert_eq!(queue.admit(9, slot("a", 0), client(0), now), Admission::Waits, "it has ended");
    }
}
