//! Registries decide by repository who may read: whoever may read one blob of it may read all. So a client that its
//! upstream showed blobs of a name need not be asked about for each further one, as long as all of this is so:
//!
//! - the client was shown at least two blobs of that very name lately, one of which is a layer (a config comes first, and
//!   some give configs to everybody);
//! - it was shown, lately and under that name, a manifest that names the blob;
//! - the upstream sent the blob, or showed that it has it, to somebody under that very name within a day.
//!
//! A manifest alone gives no right: its author may name what he may not read. But the upstream has the blob under the name
//! only if whoever put it there could read it. All of it is known of trusted upstreams alone, where there is one, in memory, and nothing that
//! follows from it is a proof of its own, so that no consent renews itself. That a day is the limit is for names that are
//! given to somebody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::cache::Manifest;
use crate::oci::Digest;
use crate::oci::manifest::{ChildKind, Outline};
use crate::routing::Target;
use crate::upstream::WhoId;

/// Blobs whose names are remembered.
const BLOBS: usize = 50_000;
/// How long it is remembered that the upstream has a blob under a name.
const OF_NAME: Duration = Duration::from_secs(24 * 3600);
/// Clients, and names for each, of which it is remembered what they were shown.
const CLIENTS: usize = 10_000;
/// And the memory for that.
const BYTES: u64 = 16 << 20;
/// Manifests that are remembered for one client and name, the last ones.
const MANIFESTS: usize = 8;
/// Most blobs of a manifest for it to be remembered.
const NAMED: usize = 1_000;

type Key = (String, String, WhoId);

/// What was shown under names.
pub struct ByName {
    /// When the upstream last had a blob under a name.
    blobs: Cache<(String, String, Digest), Instant>,
    shown: Cache<Key, Arc<Shown>, ByLength>,
}

/// What one client was shown of one name.
#[derive(Clone, Default)]
struct Shown {
    /// The last two blobs, which are not the same.
    blobs: Vec<(Digest, Instant)>,
    /// Manifests, with what they name.
    manifests: Vec<(Digest, Arc<[Digest]>, Instant)>,
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, Arc<Shown>> for ByLength {
    fn weight(&self, (repository, name, _): &Key, shown: &Arc<Shown>) -> u64 {
        let named: usize = shown.manifests.iter().map(|(_, named, _)| 128 + named.len() * size_of::<Digest>()).sum();
        512 + (repository.len() + name.len() + named) as u64
    }
}

impl Default for ByName {
    fn default() -> Self {
        Self { blobs: Cache::new(BLOBS), shown: Cache::with_weighter(CLIENTS, BYTES, ByLength) }
    }
}

impl ByName {
    /// The upstream gave a blob to who asked, or showed that it has it.
    pub fn blob_shown(&self, target: &Target, digest: &Digest) {
        if !is_usable(target) {
            return;
        }
        let (repository, name, who) = key(target);
        self.blobs.insert((repository.clone(), name.clone(), *digest), Instant::now());
        let key = (repository, name, who);
        let mut shown = self.shown.get(&key).map(|shown| (*shown).clone()).unwrap_or_default();
        shown.blobs.retain(|(known, _)| known != digest);
        shown.blobs.push((*digest, Instant::now()));
        let surplus = shown.blobs.len().saturating_sub(2);
        shown.blobs.drain(..surplus);
        self.shown.insert(key, Arc::new(shown));
    }

    /// The upstream gave a manifest to who asked, or showed that it has it, at this time.
    pub fn manifest_shown(&self, target: &Target, manifest: &Manifest, at: Instant) {
        if !is_usable(target) {
            return;
        }
        let key = key(target);
        let mut shown = self.shown.get(&key).map(|shown| (*shown).clone()).unwrap_or_default();
        let known = shown.manifests.iter().position(|(known, ..)| *known == manifest.digest);
        let named: Arc<[Digest]> = match known {
            Some(known) => shown.manifests.remove(known).1,
            None => {
                let children = Outline::read(&manifest.bytes).children;
                let blobs = children.iter().filter(|child| child.kind == ChildKind::Blob);
                blobs.map(|child| child.digest).collect()
            }
        };
        if named.is_empty() || named.len() > NAMED {
            return;
        }
        shown.manifests.push((manifest.digest, named, at));
        let surplus = shown.manifests.len().saturating_sub(MANIFESTS);
        shown.manifests.drain(..surplus);
        self.shown.insert(key, Arc::new(shown));
    }

    /// The upstream refused something of the name: nothing follows any more from what it showed before.
    pub fn refused(&self, target: &Target) {
        self.shown.remove(&key(target));
    }

    /// Whether who asks may read a blob, as it follows from what it was shown of the name.
    pub fn follows(&self, target: &Target, digest: &Digest) -> bool {
        let Some(life) = target.repository.config.client_consent.filter(|_| is_usable(target)) else {
            return false;
        };
        let (repository, name, who) = key(target);
        let Some(shown) = self.shown.get(&(repository.clone(), name.clone(), who)) else {
            return false;
        };
        let is_of_now = |at: &Instant| at.elapsed() < life;
        let is_open = shown.blobs.len() == 2 && shown.blobs.iter().all(|(_, at)| is_of_now(at));
        let is_named = shown.manifests.iter().any(|(_, named, at)| is_of_now(at) && named.contains(digest));
        is_open && is_named && self.blobs.get(&(repository, name, *digest)).is_some_and(|at| at.elapsed() < OF_NAME)
    }

    /// What was shown by upstreams that may be others now.
    pub fn clear(&self) {
        self.blobs.clear();
        self.shown.clear();
    }
}

/// Whether one upstream alone, which is trusted, decides for a client: what one of several shows says nothing of the same
/// name at another.
pub fn is_usable(target: &Target) -> bool {
    target.repository.is_trusted && target.who.is_client() && target.repository.upstreams.len() == 1
}

fn key(target: &Target) -> Key {
    (target.repository.config.asked_as(), target.name.to_string(), target.who.id())
}
