//! Lines of the log about content that came from the cache, or did not.

use crate::registry::respond::CacheState;

/// Logs how the cache answered a request.
pub fn tell(state: &CacheState, path: &str) {
    match state {
        CacheState::Hit { .. } | CacheState::Confirmed { .. } => tracing::info!(path, "cache hit"),
        CacheState::Miss(_) => tracing::info!(path, "cache miss"),
        CacheState::Stale { why, .. } => tracing::info!(path, %why, "cache hit, of an old copy"),
    }
}
