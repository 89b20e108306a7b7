//! What is asked for again and again, kept in memory: bounded, and never the only copy.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::index::{Listing, TagEntry, TagKey, Timestamp, UrlEntry};
use crate::oci::{Digest, MediaType};

/// A manifest or index, verified.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
    pub stored_at: Timestamp,
}

/// Objects larger than this are not read as manifests.
pub const MAX_MANIFEST: u64 = 8 << 20;

const MANIFEST_BYTES: u64 = 16 << 20;
const ENTRIES: usize = 50_000;
const LISTINGS: usize = 128;
const URLS: usize = 4_096;
const URL_BYTES: u64 = 8 << 20;

pub struct Hot {
    pub manifests: Cache<Digest, Arc<Manifest>, ByLength>,
    pub tags: Cache<TagKey, TagEntry>,
    /// Repository and object: the repository's upstream has it.
    pub visible: Cache<(String, Digest), ()>,
    /// Repository and page: lists that the index may not have written yet.
    pub listings: Cache<(String, String), Listing>,
    /// Repository, name and manifest: the index has been told.
    pub noted: Cache<(String, String, Digest), ()>,
    /// By what stands for a URL: the answers of its server.
    pub urls: Cache<Digest, Arc<Vec<UrlEntry>>, ByLength>,
}

impl Default for Hot {
    fn default() -> Self {
        Self {
            manifests: Cache::with_weighter(4_096, MANIFEST_BYTES, ByLength),
            tags: Cache::new(ENTRIES),
            visible: Cache::new(ENTRIES),
            listings: Cache::new(LISTINGS),
            noted: Cache::new(ENTRIES),
            urls: Cache::with_weighter(URLS, URL_BYTES, ByLength),
        }
    }
}

impl Hot {
    pub fn clear(&self) {
        self.manifests.clear();
        self.tags.clear();
        self.visible.clear();
        self.listings.clear();
        self.noted.clear();
        self.urls.clear();
    }
}

#[derive(Clone)]
pub struct ByLength;

impl Weighter<Digest, Arc<Manifest>> for ByLength {
    fn weight(&self, _: &Digest, manifest: &Arc<Manifest>) -> u64 {
        manifest.bytes.len() as u64 + 200
    }
}

impl Weighter<Digest, Arc<Vec<UrlEntry>>> for ByLength {
    fn weight(&self, _: &Digest, entries: &Arc<Vec<UrlEntry>>) -> u64 {
        200 + entries.iter().map(|entry| entry.head.len() as u64 + 200).sum::<u64>()
    }
}
