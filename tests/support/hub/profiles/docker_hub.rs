//! Docker Hub.
//!
//! - The token service is on another host of the same domain, tokens hold for 300 s (`docs.docker.com/registry/spec/auth`).
//! - HEAD is free, GET of a manifest counts: `RateLimit-*` and `Docker-RateLimit-Source` (`docs.docker.com/docker-hub/usage`).
//! - 429 comes as JSON for pulls, and as text for too many requests of any kind (distribution/distribution#3270).
//! - Blobs: 307 to a CDN that refuses `Authorization`. No referrers API is promised.

use super::{Again, Limit, Profile};
use crate::support::hub::Options;

pub fn profile() -> Profile {
    Profile {
        limit: Limit {
            headers: &[("content-type", "text/plain"), ("retry-after", "2")],
            body: "Too Many Requests (HAP429).\n",
            again: Again::Seconds(2),
        },
        ..Profile::new("library/alpine", Options::docker_hub())
    }
}
