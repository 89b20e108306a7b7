//! Pinned objects: never evicted, whatever their age. An image is pinned by a regex of its repository or by name, and
//! with it everything that its manifest leads to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::config::{Config, Pattern};
use crate::index::{ImageName, Index, IndexError, TagKey};
use crate::oci::Digest;

/// The regexes on `NAME:TAG`, by repository.
#[derive(Debug)]
pub struct Rules(HashMap<String, Vec<Pattern>>);

impl Rules {
    /// Takes the regexes from the configuration.
    pub fn new(config: &Config) -> Self {
        let pinning = config.repositories.iter().filter(|repository| !repository.pin.is_empty());
        Self(pinning.map(|repository| (repository.prefix.clone(), repository.pin.clone())).collect())
    }

    /// Returns whether the configuration pins a tag.
    pub fn match_tag(&self, key: &TagKey) -> bool {
        let patterns = self.0.get(&key.repository).map_or(&[][..], Vec::as_slice);
        if patterns.is_empty() {
            return false;
        }
        let text = format!("{}:{}", key.name, key.tag);
        patterns.iter().any(|pattern| pattern.is_match(&text))
    }

    /// Returns all objects of pinned images, as far as their manifests are known: of images that the rules match, and
    /// of the images `named`.
    pub async fn closure(
        self: &Arc<Self>,
        index: &dyn Index,
        named: Vec<ImageName>,
    ) -> Result<HashSet<Digest>, IndexError> {
        let mut roots = index.manifests_of(named).await?;
        for repository in self.0.keys() {
            let rules = self.clone();
            roots.extend(index.tags_of(repository, Box::new(move |key| rules.match_tag(key))).await?);
        }
        index.below(roots).await
    }
}
