//! Content of other URLs than registries': found by the URL, stored like any object.

use std::sync::Arc;

use super::{Cache, FillReader, Origin, Party};
use crate::failure::Failure;
use crate::index::{UrlEntry, Viewer, Write};
use crate::oci::Digest;

/// Under what name it is noted who may see such content: no repository.
const BY_URL: &str = " by URL";
/// Answers kept in memory of one URL.
const MAX_VARIANTS: usize = 16;

impl Cache {
    /// What is stored of the URL that `key` stands for, the newest first.
    pub async fn urls(&self, key: &Digest) -> Result<Arc<Vec<UrlEntry>>, Failure> {
        if let Some(entries) = self.hot.urls.get(key) {
            return Ok(entries);
        }
        let entries = Arc::new(self.read(self.index.urls(key)).await?);
        self.hot.urls.insert(*key, entries.clone());
        Ok(entries)
    }

    /// Notes an answer, in the place of the one it is a newer variant of.
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

    /// Begins to bring in what a URL has now, or joins the fill that does; `None` where no place is free.
    pub fn fill_url(
        self: &Arc<Self>,
        key: Digest,
        party: Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> Option<FillReader> {
        self.begin_now(&Viewer::own(BY_URL), key, party, origin)
    }
}
