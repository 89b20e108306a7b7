//! The answer to a request.

use http::Response;

use super::respond::CacheState;
use crate::body::Body;

/// A response and how the cache answered the request, for the statistics.
pub struct Answer {
    pub response: Response<Body>,
    pub state: CacheState,
}
