//! podman: no `?ns=`, no HEAD; the mirror's location replaces the prefix.

use std::path::Path;

use super::{
    process::{Failure, program},
    storage::Storage,
};

/// A podman with its own storage.
pub struct Podman {
    storage: Storage,
}

impl Podman {
    /// One that sees a directory as `/etc/containers`.
    pub fn seeing(etc: &Path) -> Self {
        Self { storage: Storage::seeing(etc) }
    }

    /// One that pulls `docker.io/…` from the mirror at `address` (`127.0.0.1:PORT`).
    pub fn with_mirror(address: &str) -> Self {
        Self { storage: Storage::with_mirror(address) }
    }

    /// One that knows no mirror.
    pub fn without_mirror() -> Self {
        Self { storage: Storage::new() }
    }

    /// One that goes through a proxy.
    pub fn behind(proxy: &str) -> Self {
        Self { storage: Storage::behind(proxy) }
    }

    /// Pulls `HOST/NAME:TAG` over plain HTTP with `user:password`, if any.
    pub async fn pull_as(&self, reference: &str, credentials: Option<&str>) -> Result<(), Failure> {
        self.pull_with(&["--tls-verify=false"], reference, credentials).await
    }

    /// As `pull_as` over TLS, with the authority and perhaps the certificate of a directory.
    pub async fn pull_by_tls(&self, reference: &str, trust: &Path, credentials: Option<&str>) -> Result<(), Failure> {
        let trust = trust.to_str().expect("temporary paths are UTF-8");
        self.pull_with(&["--cert-dir", trust], reference, credentials).await
    }

    async fn pull_with(&self, tls: &[&str], reference: &str, credentials: Option<&str>) -> Result<(), Failure> {
        let policy = self.storage.file("policy.json");
        let credentials: Vec<_> = credentials.iter().flat_map(|&pair| ["--creds", pair]).collect();
        let options = ["pull", "--quiet", "--signature-policy", &policy];
        self.podman(&[&options, tls, &credentials, &[reference]].concat()).await.map(drop)
    }

    /// Pulls `docker.io/…`; returns the image's id.
    pub async fn pull(&self, reference: &str) -> Result<String, Failure> {
        let policy = self.storage.file("policy.json");
        self.podman(&["pull", "--quiet", "--signature-policy", &policy, reference]).await
    }

    /// Removes an image, its layers included.
    pub async fn remove(&self, reference: &str) -> Result<(), Failure> {
        self.podman(&["rmi", reference]).await?;
        match self.podman(&["images", "--all", "--quiet"]).await?.as_str() {
            "" => Ok(()),
            left => Err(Failure::new(format!("podman still holds {left}"))),
        }
    }

    async fn podman(&self, arguments: &[&str]) -> Result<String, Failure> {
        let tmpdir = self.storage.file("tmp");
        let own = ["--tmpdir", &tmpdir, "--events-backend", "none", "--cgroup-manager", "cgroupfs"];
        self.storage.run(&program("podman", "podman"), own.into_iter().chain(arguments.iter().copied())).await
    }
}
