//! registry.k8s.io.
//!
//! - Anonymous. Manifests are 307 to another registry's host, blobs to buckets by region
//!   (kubernetes/registry.k8s.io, `cmd/archeio/docs/request-handling.md`).

use super::Profile;
use crate::support::hub::{ManifestsAt, Options, Redirect};

pub fn profile() -> Profile {
    let options =
        Options { redirect: Redirect::Absolute, manifests_at: ManifestsAt::OtherRegistry, ..Options::default() };
    Profile::new("pause", options)
}
