//! Which storages behind registries sent which objects, so that a redirect there means something while they are down.

use quick_cache::sync::Cache;
use url::Url;

use crate::fingerprint;
use crate::oci::Digest;

/// Objects remembered; the least asked for go first.
const ENTRIES: usize = 100_000;

/// What was sent from where, verified.
pub struct Storages(Cache<Storage, ()>);

/// An object at its place in a storage; without the query, which is another one for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Storage([u8; 32]);

impl Default for Storages {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Storages {
    /// The object came from there and was verified.
    pub fn sent(&self, storage: Storage) {
        self.0.insert(storage, ());
    }

    pub fn know(&self, storage: Storage) -> bool {
        self.0.get(&storage).is_some()
    }
}

impl Storage {
    pub fn of(digest: &Digest, url: &Url) -> Self {
        let origin = url.origin().ascii_serialization();
        Self(fingerprint::of(&[digest.to_string().as_bytes(), origin.as_bytes(), url.path().as_bytes()]))
    }
}
