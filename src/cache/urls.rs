//! Content of URLs that are not a registry's: found by the URL, stored like any object.

use std::sync::Arc;

use super::{Cache, FillReader, Origin, Party};
use crate::failure::Failure;
use crate::index::{UrlEntry, Viewer, Write};
use crate::oci::Digest;

/// The name, of no repository, under which the visibility of such content is noted.
const BY_URL: &str = " by URL";
/// Most answers of one URL that are kept in memory.
const MAX_VARIANTS: usize = 16;

impl Cache {
    /// Returns the stored answers of the URL that `key` stands for, the newest first.
    pub async fn urls(&self, key: &Digest) -> Result<Arc<Vec<UrlEntry>>, Failure> {
        if let Some(entries) = self.hot.urls.get(key) {
            return Ok(entries);
        }
        let entries = Arc::new(self.read(self.index.urls(key)).await?);
        self.hot.urls.insert(*key, entries.clone());
        Ok(entries)
    }

    /// Notes an answer. It replaces the stored answer of the same variant.
    pub async fn put_url(&self, key: Digest, entry: UrlEntry) {
        let before = self.urls(&key).await.unwrap_or_default();
        let others = before.iter().filter(|other| other.variant != entry.variant).cloned();
        let now = std::iter::once(entry.clone()).chain(others).take(MAX_VARIANTS).collect();
        self.hot.urls.insert(key, Arc::new(now));
        self.index.note(Write::Url { key, entry });
    }

    /// Forgets an answer.
    pub async fn drop_url(&self, key: Digest, variant: [u8; 32]) {
        let before = self.urls(&key).await.unwrap_or_default();
        let others = before.iter().filter(|other| other.variant != variant).cloned().collect();
        self.hot.urls.insert(key, Arc::new(others));
        self.index.note(Write::DropUrl { key, variant });
    }

    /// Begins a fill of what the URL has now, or joins the fill that runs; `None` if no place is free.
    pub fn fill_url(
        self: &Arc<Self>,
        key: Digest,
        party: Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> Option<FillReader> {
        self.begin_now(&Viewer::own(BY_URL), key, party, origin)
    }
}
