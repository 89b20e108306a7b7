//! The limits of the configuration on what is kept, in one piece that a change replaces.

use std::sync::Arc;
use std::time::Duration;

use super::classes::Classes;
use super::pins::Rules;
use crate::config::{self, Amount, Config};

/// The limits of the configuration on what is kept.
pub struct Limits {
    pub max_size: Amount,
    pub min_free: Amount,
    pub partial_ttl: Duration,
    pub classes: Classes,
    pub rules: Arc<Rules>,
}

impl Limits {
    pub fn new(config: &Config) -> Self {
        let config::Policy::Lru = config.cache.policy;
        Self {
            max_size: config.cache.max_size,
            min_free: config.cache.min_free,
            partial_ttl: config.cache.partial_ttl,
            classes: Classes::new(config),
            rules: Arc::new(Rules::new(config)),
        }
    }
}
