//! Which storages behind registries sent which objects. So a redirect to a storage can count as proof while the storage
//! is down.

use quick_cache::sync::Cache;
use url::Url;

use crate::fingerprint;
use crate::oci::Digest;

/// Most objects remembered; the least asked for are evicted first.
const ENTRIES: usize = 100_000;

/// The objects that storages sent, each verified.
pub struct Storages(Cache<Storage, ()>);

/// A fingerprint of an object and of its URL in a storage, without the query, which differs for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Storage([u8; 32]);

impl Default for Storages {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Storages {
    /// Notes that the storage sent this object, and that the object was verified.
    pub fn sent(&self, storage: Storage) {
        self.0.insert(storage, ());
    }

    /// Returns whether the storage sent this object before.
    pub fn know(&self, storage: Storage) -> bool {
        self.0.get(&storage).is_some()
    }
}

impl Storage {
    /// Makes the fingerprint of an object at a URL.
    pub fn of(digest: &Digest, url: &Url) -> Self {
        let origin = url.origin().ascii_serialization();
        Self(fingerprint::of(&[digest.to_string().as_bytes(), origin.as_bytes(), url.path().as_bytes()]))
    }
}
