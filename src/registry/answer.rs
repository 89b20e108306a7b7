//! What a request is answered with.

use http::Response;

use super::respond::CacheState;
use crate::body::Body;

/// An answer and what the statistics say of it.
pub struct Answer {
    pub response: Response<Body>,
    pub state: CacheState,
}
