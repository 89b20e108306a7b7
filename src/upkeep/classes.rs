//! How long objects are kept unused: `cache.ttl`, or the `ttl` of their repository.

use std::collections::HashMap;

use super::evict::Class;
use crate::config::{Config, Limit};

/// All such times that the configuration names, the longest last, and which repository uses which.
#[derive(Debug, PartialEq, Eq)]
pub struct Classes {
    ttls: Vec<Limit>,
    by_repository: HashMap<String, Class>,
    default: Class,
}

/// Takes the times from the configuration.
impl Classes {
    pub fn new(config: &Config) -> Self {
        let of = |ttl: Option<Limit>| ttl.unwrap_or(config.cache.ttl);
        let mut ttls = vec![config.cache.ttl];
        ttls.extend(config.repositories.iter().map(|repository| of(repository.ttl)));
        ttls.sort();
        ttls.dedup();
        // Any further times share the last class.
        ttls.truncate(usize::from(Class::MAX) - 1);
        let rank = |ttl: Limit| {
            let at = ttls.iter().position(|&other| other == ttl).unwrap_or(ttls.len() - 1);
            Class::try_from(at).unwrap_or(Class::MAX)
        };
        let classes = config.repositories.iter().map(|own| (own.prefix.clone(), rank(of(own.ttl))));
        let by_repository = classes.collect();
        Self { by_repository, default: rank(config.cache.ttl), ttls }
    }

    /// Returns how many classes there are.
    pub fn count(&self) -> Class {
        Class::try_from(self.ttls.len()).unwrap_or(Class::MAX)
    }

    /// Returns the classes and their times.
    pub fn iter(&self) -> impl Iterator<Item = (Class, Limit)> + '_ {
        (0..).zip(self.ttls.iter().copied())
    }

    /// Returns the class of objects that a repository brought in.
    pub fn of(&self, repository: &str) -> Class {
        self.by_repository.get(repository).copied().unwrap_or(self.default)
    }

    /// Returns the class of an object that is visible in several repositories (a line each): the longest of theirs.
    pub fn longest(&self, repositories: &str) -> Class {
        repositories.lines().map(|repository| self.of(repository)).max().unwrap_or(self.default)
    }
}
