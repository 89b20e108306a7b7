//! Real clients, a real registry, real images: the rig for the promises that only they can check.
//!
//! Each client keeps all its state in a temporary directory and can reach nothing but this machine: where it would turn
//! to Docker Hub after a failure of the mirror, it finds a closed port. The rig needs root, as dockerd does, and the
//! Debian packages in `packages.txt`, and what `./test` installs of the lists in `python` and `node`; without them the tests
//! fail and say what to install.

mod acme;
mod artifacts;
mod buildah;
mod caddy;
mod chromium;
mod containerd;
mod docker;
mod haproxy;
mod http;
mod images;
mod logins;
mod new_user;
mod newer;
mod nginx;
mod pebble;
mod podman;
mod process;
mod pulls;
mod radosgw;
mod registry;
mod set_up;
mod skopeo;
mod storage;
mod through_proxy;

pub use caddy::Caddy;
pub use chromium::Chromium;
pub use docker::Dockerd;
pub use haproxy::Haproxy;
pub use nginx::Nginx;
use process::Failure;
pub use process::{Daemon, Invocation, program};
pub use radosgw::Radosgw;

/// What skopeo says of the tags of `HOST/NAME`.
pub async fn skopeo_lists_tags(name: &str) -> Result<String, process::Failure> {
    skopeo::Skopeo::new().list_tags(name).await
}

/// Copies an image with skopeo, with `user:password` if any.
pub async fn skopeo_copies_as(reference: &str, credentials: Option<&str>) -> Result<(), Failure> {
    skopeo::Skopeo::new().copy_as(reference, credentials).await
}

/// Copies an image, with all that is listed if it is an index, from one of skopeo's transports to another, byte for byte.
pub async fn skopeo_carries(from: &str, to: &str) -> Result<(), Failure> {
    skopeo::Skopeo::new().carry(&["--all", "--preserve-digests"], from, to).await
}

/// Copies the image for this machine from one of skopeo's transports to another.
pub async fn skopeo_takes_one(from: &str, to: &str) -> Result<(), Failure> {
    skopeo::Skopeo::new().carry(&[], from, to).await
}

/// Pulls an image with podman, with `user:password` if any.
pub async fn podman_pulls_as(reference: &str, credentials: Option<&str>) -> Result<(), Failure> {
    podman::Podman::without_mirror().pull_as(reference, credentials).await
}
