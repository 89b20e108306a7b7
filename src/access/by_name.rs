//! Registries grant read access by repository: a client that may read one blob of a repository may read all. So when an
//! upstream has shown blobs of a name to a client, the upstream need not be asked about each further blob, as long as
//! all of this holds:
//!
//! - The client was lately shown at least two blobs of that very name, one of which is a layer (a config comes first,
//!   and some registries give configs to everybody).
//! - The client was lately shown, under that name, a manifest that names the blob.
//! - Within a day, the upstream sent the blob, or showed that it has the blob, to some client under that very name.
//!
//! A manifest alone gives no right: its author may name blobs that he may not read. But the upstream has the blob under
//! the name only if the client that put it there could read it. All of this is noted in memory only, only for
//! repositories with a single upstream, and only if that upstream is trusted. What follows from it is no proof, so no
//! consent renews itself. The limit of a day is there because a name may be given to another owner.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::cache::Manifest;
use crate::clock::Instant;
use crate::oci::Digest;
use crate::oci::manifest::{ChildKind, Outline};
use crate::routing::Target;
use crate::upstream::WhoId;

/// Most blobs, with their names, that are remembered.
const BLOBS: usize = 50_000;
/// How long Larder remembers that the upstream has a blob under a name.
const OF_NAME: Duration = Duration::from_secs(24 * 3600);
/// Most pairs of client and name for which it is remembered what the client was shown.
const CLIENTS: usize = 10_000;
/// Most memory for that, in bytes.
const BYTES: u64 = 16 << 20;
/// Most manifests that are remembered for one client and name; the latest ones.
const MANIFESTS: usize = 8;
/// Most blobs of a manifest that is remembered.
const NAMED: usize = 1_000;

type Key = (String, String, WhoId);

/// What upstreams have shown under which names.
pub struct ByName {
    /// When the upstream last showed that it has a blob under a name.
    blobs: Cache<(String, String, Digest), Instant>,
    shown: Cache<Key, Arc<Shown>, ByLength>,
}

/// What one client was shown of one name.
#[derive(Clone, Default)]
struct Shown {
    /// The last two different blobs.
    blobs: Vec<(Digest, Instant)>,
    /// Manifests with the blobs that they name.
    manifests: Vec<(Digest, Named, Instant)>,
}

/// The blobs that a manifest names.
#[derive(Clone)]
struct Named {
    /// The config first, where there is one.
    blobs: Arc<[Digest]>,
    /// Where the layers begin among them.
    layers_from: usize,
}

impl Named {
    fn by(manifest: &Manifest) -> Self {
        let children = Outline::read(&manifest.bytes).children;
        let blobs = children.iter().filter(|child| child.kind != ChildKind::Manifest);
        let layers_from = blobs.clone().take_while(|child| child.kind == ChildKind::Config).count();
        Self { blobs: blobs.map(|child| child.digest).collect(), layers_from }
    }

    fn layers(&self) -> &[Digest] {
        &self.blobs[self.layers_from..]
    }
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, Arc<Shown>> for ByLength {
    fn weight(&self, (repository, name, _): &Key, shown: &Arc<Shown>) -> u64 {
        let named: usize =
            shown.manifests.iter().map(|(_, named, _)| 128 + named.blobs.len() * size_of::<Digest>()).sum();
        512 + (repository.len() + name.len() + named) as u64
    }
}

impl Default for ByName {
    fn default() -> Self {
        Self { blobs: Cache::new(BLOBS), shown: Cache::with_weighter(CLIENTS, BYTES, ByLength) }
    }
}

impl ByName {
    /// Notes that the upstream gave a blob to the client, or showed that it has the blob.
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

    /// Notes that at this time, the upstream gave a manifest to the client, or showed that it has the manifest.
    pub fn manifest_shown(&self, target: &Target, manifest: &Manifest, at: Instant) {
        if !is_usable(target) {
            return;
        }
        let key = key(target);
        let mut shown = self.shown.get(&key).map(|shown| (*shown).clone()).unwrap_or_default();
        let known = shown.manifests.iter().position(|(known, ..)| *known == manifest.digest);
        let named = match known {
            Some(known) => shown.manifests.remove(known).1,
            None => Named::by(manifest),
        };
        if named.blobs.is_empty() || named.blobs.len() > NAMED {
            return;
        }
        shown.manifests.push((manifest.digest, named, at));
        let surplus = shown.manifests.len().saturating_sub(MANIFESTS);
        shown.manifests.drain(..surplus);
        self.shown.insert(key, Arc::new(shown));
    }

    /// Notes that the upstream refused something of the name: nothing follows any more from what it showed before.
    pub fn refused(&self, target: &Target) {
        self.shown.remove(&key(target));
    }

    /// Returns whether the client may read a blob by what it was shown of the name.
    pub fn follows(&self, target: &Target, digest: &Digest) -> bool {
        let Some(life) = target.repository.config.client_consent.filter(|_| is_usable(target)) else {
            return false;
        };
        let (repository, name, who) = key(target);
        let Some(shown) = self.shown.get(&(repository.clone(), name.clone(), who)) else {
            return false;
        };
        let is_of_now = |at: &Instant| at.elapsed() < life;
        let manifests = || shown.manifests.iter().filter(|(_, _, at)| is_of_now(at)).map(|(_, named, _)| named);
        let is_layer = |blob: &Digest| manifests().any(|named| named.layers().contains(blob));
        let is_open = shown.blobs.len() == 2
            && shown.blobs.iter().all(|(_, at)| is_of_now(at))
            && shown.blobs.iter().any(|(blob, _)| is_layer(blob));
        let is_named = manifests().any(|named| named.blobs.contains(digest));
        is_open && is_named && self.blobs.get(&(repository, name, *digest)).is_some_and(|at| at.elapsed() < OF_NAME)
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.blobs.clear();
        self.shown.clear();
    }
}

/// Returns whether the client's credentials decide at a single, trusted upstream: what one of several upstreams shows
/// says nothing about the same name at another.
pub fn is_usable(target: &Target) -> bool {
    target.repository.is_trusted && target.who.is_client() && target.repository.upstreams.len() == 1
}

fn key(target: &Target) -> Key {
    (target.repository.config.asked_as(), target.name.to_string(), target.who.id())
}
