//! Pinned objects: never evicted, whatever their age. An image is pinned by a regex of its repository or by name, and
//! with it everything that its manifest leads to.

use std::collections::HashMap;

use crate::config::{Config, Pattern};
use crate::index::TagKey;

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

    /// Returns the repositories that have rules.
    pub fn repositories(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}
