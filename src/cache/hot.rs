//! Data that is requested again and again, kept in bounded memory. It is never the only copy.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use crate::index::{ListKey, Listing, TagEntry, TagKey, Timestamp, UrlEntry, Viewer};
use crate::oci::{Digest, MediaType};

/// A verified manifest or index.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
    pub stored_at: Timestamp,
    /// What is the same in each answer with it.
    pub headers: ManifestHeaders,
}

/// Values of headers that are written once: a manifest in memory is asked for again and again.
#[derive(Clone, Debug)]
pub struct ManifestHeaders {
    /// The digest.
    pub digest: HeaderValue,
    /// The entity tag.
    pub etag: HeaderValue,
    /// The media type; `None` if it is none that a header can have.
    pub media_type: Option<HeaderValue>,
}

impl Manifest {
    /// Makes a manifest from bytes whose digest was verified.
    pub fn new(digest: Digest, media_type: MediaType, bytes: Bytes, stored_at: Timestamp) -> Self {
        let headers = ManifestHeaders {
            digest: digest.header(),
            etag: digest.etag(),
            media_type: HeaderValue::from_str(media_type.as_str()).ok(),
        };
        Self { digest, media_type, bytes, stored_at, headers }
    }
}

/// Objects larger than this, in bytes, are not read as manifests.
pub const MAX_MANIFEST: u64 = 8 << 20;

// Most bytes of each kind, keys included: names and media types are as long as clients and upstreams make them.
const MANIFEST_BYTES: u64 = 16 << 20;
const TAG_BYTES: u64 = 16 << 20;
const VISIBLE_BYTES: u64 = 8 << 20;
const NAME_BYTES: u64 = 8 << 20;
const LIST_BYTES: u64 = 16 << 20;
const URL_BYTES: u64 = 8 << 20;
// About how many entries there are of each kind: the library needs this estimate.
const ENTRIES: usize = 50_000;
const LISTS: usize = 256;
const URLS: usize = 4_096;
/// Bytes that an entry takes beside its texts.
const ENTRY: u64 = 128;

/// The caches in memory, one for each kind.
pub struct Hot {
    pub manifests: Cache<Digest, Arc<Manifest>, ByLength>,
    pub tags: Cache<TagKey, TagEntry, ByLength>,
    /// Which object is visible to which viewer.
    pub visible: Cache<(Viewer, Digest), (), ByLength>,
    /// Lists that the index may not have written yet.
    pub listings: Cache<ListKey, Listing, ByLength>,
    /// Repository, name and manifest: the upstream has the manifest under this name, and the index has been told.
    pub names: Cache<(String, String, Digest), (), ByLength>,
    /// The answers of a URL's server, by the key that stands for the URL.
    pub urls: Cache<Digest, Arc<Vec<UrlEntry>>, ByLength>,
}

impl Default for Hot {
    fn default() -> Self {
        Self {
            manifests: Cache::with_weighter(4_096, MANIFEST_BYTES, ByLength),
            tags: Cache::with_weighter(ENTRIES, TAG_BYTES, ByLength),
            visible: Cache::with_weighter(ENTRIES, VISIBLE_BYTES, ByLength),
            listings: Cache::with_weighter(LISTS, LIST_BYTES, ByLength),
            names: Cache::with_weighter(ENTRIES, NAME_BYTES, ByLength),
            urls: Cache::with_weighter(URLS, URL_BYTES, ByLength),
        }
    }
}

impl Hot {
    /// Forgets objects that are gone, and the tags and names that lead to them: these went with the objects, and are
    /// noted again.
    pub fn forget(&self, gone: &HashSet<Digest>) {
        gone.iter().for_each(|digest| drop(self.manifests.remove(digest)));
        self.tags.retain(|_, entry| !gone.contains(&entry.digest));
        self.names.retain(|(_, _, digest), ()| !gone.contains(digest));
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.manifests.clear();
        self.tags.clear();
        self.visible.clear();
        self.listings.clear();
        self.names.clear();
        self.urls.clear();
    }
}

/// A key of [`Hot::names`], to look it up.
#[derive(Hash)]
pub struct NameKey<'a>(pub &'a str, pub &'a str, pub &'a Digest);

impl Equivalent<(String, String, Digest)> for NameKey<'_> {
    fn equivalent(&self, (repository, name, digest): &(String, String, Digest)) -> bool {
        self.0 == repository && self.1 == name && self.2 == digest
    }
}

/// A key of [`Hot::visible`], to look it up.
#[derive(Hash)]
pub struct VisibleKey<'a>(pub &'a Viewer, pub &'a Digest);

impl Equivalent<(Viewer, Digest)> for VisibleKey<'_> {
    fn equivalent(&self, (viewer, digest): &(Viewer, Digest)) -> bool {
        self.0 == viewer && self.1 == digest
    }
}

/// Weighs an entry by the bytes that it takes.
#[derive(Clone)]
pub struct ByLength;

impl Weighter<Digest, Arc<Manifest>> for ByLength {
    fn weight(&self, _: &Digest, manifest: &Arc<Manifest>) -> u64 {
        manifest.bytes.len() as u64 + 600
    }
}

impl Weighter<TagKey, TagEntry> for ByLength {
    fn weight(&self, key: &TagKey, entry: &TagEntry) -> u64 {
        let texts =
            key.repository.len() + key.name.len() + key.tag.len() + key.shelf.len() + entry.media_type.as_str().len();
        2 * ENTRY + texts as u64
    }
}

impl Weighter<(Viewer, Digest), ()> for ByLength {
    fn weight(&self, (viewer, _): &(Viewer, Digest), (): &()) -> u64 {
        ENTRY + viewer.repository.len() as u64
    }
}

impl Weighter<(String, String, Digest), ()> for ByLength {
    fn weight(&self, (repository, name, _): &(String, String, Digest), (): &()) -> u64 {
        ENTRY + (repository.len() + name.len()) as u64
    }
}

impl Weighter<ListKey, Listing> for ByLength {
    fn weight(&self, key: &ListKey, listing: &Listing) -> u64 {
        listing.weight(key)
    }
}

impl Weighter<Digest, Arc<Vec<UrlEntry>>> for ByLength {
    fn weight(&self, _: &Digest, entries: &Arc<Vec<UrlEntry>>) -> u64 {
        200 + entries.iter().map(|entry| entry.head.len() as u64 + 200).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that a weight is within a bound, and a mebibyte for the rounding of shards.
    fn assert_within(weight: u64, bound: u64) {
        assert!(weight > bound / 2 && weight <= bound + (1 << 20), "{weight} of {bound}");
    }

    #[test]
    fn what_is_kept_in_memory_is_bounded_by_bytes_whatever_names_are_made_of() {
        let hot = Hot::default();
        let digest = |number: u32| Digest::of(crate::oci::Algorithm::Sha256, &number.to_le_bytes());
        let name = |number: u32| format!("{}{number:05}", "a".repeat(250));
        for number in 0..80_000 {
            let key =
                TagKey { repository: "r".to_owned(), name: name(number), tag: "t".repeat(128), shelf: String::new() };
            let media_type = MediaType::new("m".repeat(200));
            let entry = TagEntry { digest: digest(number), media_type, size: 1, checked_at: Timestamp(1) };
            hot.tags.insert(key, entry);
            hot.visible.insert((Viewer::own(name(number)), digest(number)), ());
            hot.names.insert(("r".to_owned(), name(number), digest(number)), ());
        }
        for number in 0..2_000 {
            let key = ListKey { repository: "r".to_owned(), name: name(number), page: "tags/list".to_owned() };
            let listing = Listing {
                body: Bytes::from(vec![b' '; 50_000]),
                media_type: None,
                link: None,
                filters_applied: None,
                checked_at: Timestamp(1),
            };
            hot.listings.insert(key, listing);
        }
        assert_within(hot.tags.weight(), TAG_BYTES);
        assert_within(hot.visible.weight(), VISIBLE_BYTES);
        assert_within(hot.names.weight(), NAME_BYTES);
        assert_within(hot.listings.weight(), LIST_BYTES);
    }
}
