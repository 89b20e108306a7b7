//! The limits of the configuration on what is kept, in one piece that a change replaces.

use std::sync::Arc;
use std::time::Duration;

use super::classes::Classes;
use super::pins::Rules;
use crate::config::{self, Amount, Config};

/// The limits of the configuration on what is kept.
pub struct Limits {
    /// Most that files take: `cache.max_size`, or `storage.s3.tier_size` where there is a bucket.
    pub disk_size: Amount,
    /// Most that the objects in the bucket take; `None`: there is no bucket.
    pub bucket_size: Option<Amount>,
    pub min_free: Amount,
    pub partial_ttl: Duration,
    pub classes: Classes,
    pub rules: Arc<Rules>,
}

impl Limits {
    /// Returns the key that limits what files take.
    pub fn disk_key(&self) -> &'static str {
        if self.bucket_size.is_some() { "storage.s3.tier_size" } else { "cache.max_size" }
    }

    /// Takes the limits from the configuration. `has_bucket`: whether there is a bucket, which a change of the
    /// configuration brings or takes away only with the next start.
    pub fn new(config: &Config, has_bucket: bool) -> Self {
        let config::Policy::Lru = config.cache.policy;
        Self {
            disk_size: match has_bucket {
                true => config.s3.as_ref().map_or(Amount::None, |s3| s3.tier_size),
                false => config.cache.max_size,
            },
            bucket_size: has_bucket.then_some(config.cache.max_size),
            min_free: config.cache.min_free,
            partial_ttl: config.cache.partial_ttl,
            classes: Classes::new(config),
            rules: Arc::new(Rules::new(config)),
        }
    }
}
