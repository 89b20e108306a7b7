//! buildah: the same library as podman's, another way through it.

use std::path::Path;

use super::{
    process::{Failure, program},
    storage::Storage,
};

/// A buildah with its own storage.
pub struct Buildah {
    storage: Storage,
}

impl Buildah {
    /// One that sees a directory as `/etc/containers`.
    pub fn seeing(etc: &Path) -> Self {
        Self { storage: Storage::seeing(etc) }
    }

    /// One that pulls `docker.io/…` from the mirror at `address` (`127.0.0.1:PORT`).
    pub fn with_mirror(address: &str) -> Self {
        Self { storage: Storage::with_mirror(address) }
    }

    /// Pulls `docker.io/…`; returns the image's id.
    pub async fn pull(&self, reference: &str) -> Result<String, Failure> {
        let policy = self.storage.file("policy.json");
        self.buildah(&["pull", "--quiet", "--signature-policy", &policy, reference]).await
    }

    /// Removes an image, its layers included.
    pub async fn remove(&self, reference: &str) -> Result<(), Failure> {
        self.buildah(&["rmi", reference]).await?;
        match self.buildah(&["images", "--all", "--quiet"]).await?.as_str() {
            "" => Ok(()),
            left => Err(Failure::new(format!("buildah still holds {left}"))),
        }
    }

    async fn buildah(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.storage.run(&program("buildah", "buildah"), arguments.iter().copied()).await
    }
}
