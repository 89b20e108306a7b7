//! skopeo: copies from the mirror by its own address and path prefix, without being told that it is a mirror.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::{
    process::{Failure, program},
    storage::Storage,
};

/// A skopeo.
pub struct Skopeo {
    storage: Storage,
}

impl Skopeo {
    /// One that sees a directory as `/etc/containers`.
    pub fn seeing(etc: &Path) -> Self {
        Self { storage: Storage::seeing(etc) }
    }

    /// One that talks plain HTTP to whom it is told to.
    pub fn new() -> Self {
        Self { storage: Storage::new() }
    }

    /// One that goes through a proxy.
    pub fn behind(proxy: &str) -> Self {
        Self { storage: Storage::behind(proxy) }
    }

    /// Copies `HOST/NAME:TAG`, and all that is listed if it is an index, into a directory that is removed at once;
    /// returns its manifest or index. skopeo checks all digests.
    pub async fn copy_all(&self, reference: &str) -> Result<Vec<u8>, Failure> {
        let copy = TempDir::new_in(self.storage.path()).expect("a temporary directory");
        let (from, to) = (format!("docker://{reference}"), format!("dir:{}", copy.path().display()));
        self.skopeo(&["copy", "--all", "--src-tls-verify=false", &from, &to]).await?;
        fs::read(copy.path().join("manifest.json"))
            .map_err(|error| Failure::new(format!("skopeo left no manifest: {error}")))
    }

    /// Copies `HOST/NAME:TAG` with TLS, or as its configuration says, into a directory that is removed at once.
    pub async fn copy(&self, reference: &str) -> Result<(), Failure> {
        self.copy_with(&[], reference, None).await
    }

    /// Copies `HOST/NAME:TAG` with `user:password`, if any, into a directory that is removed at once.
    pub async fn copy_as(&self, reference: &str, credentials: Option<&str>) -> Result<(), Failure> {
        self.copy_with(&["--src-tls-verify=false"], reference, credentials).await
    }

    /// As `copy_as` over TLS, with the authority and perhaps the certificate of a directory.
    pub async fn copy_by_tls(&self, reference: &str, trust: &Path, credentials: Option<&str>) -> Result<(), Failure> {
        let trust = trust.to_str().expect("temporary paths are UTF-8");
        self.copy_with(&["--src-cert-dir", trust], reference, credentials).await
    }

    async fn copy_with(&self, tls: &[&str], reference: &str, credentials: Option<&str>) -> Result<(), Failure> {
        let copy = TempDir::new_in(self.storage.path()).expect("a temporary directory");
        let (from, to) = (format!("docker://{reference}"), format!("dir:{}", copy.path().display()));
        let credentials: Vec<_> = credentials.iter().flat_map(|&pair| ["--src-creds", pair]).collect();
        self.skopeo(&[&["copy"], tls, &credentials, &[&from, &to]].concat()).await.map(drop)
    }

    /// Copies from any place, such as `oci:DIRECTORY:TAG`, to `HOST/NAME:TAG`, byte for byte.
    pub async fn push_all(&self, from: &str, reference: &str) -> Result<(), Failure> {
        let to = format!("docker://{reference}");
        self.skopeo(&["copy", "--all", "--preserve-digests", "--dest-tls-verify=false", from, &to]).await.map(drop)
    }

    /// The manifest or index of `HOST/NAME:TAG` as the registry has it.
    pub async fn inspect_raw(&self, reference: &str) -> Result<String, Failure> {
        let from = format!("docker://{reference}");
        self.skopeo(&["inspect", "--raw", "--tls-verify=false", &from]).await
    }

    /// What `skopeo list-tags` says of `HOST/NAME`, page by page.
    pub async fn list_tags(&self, name: &str) -> Result<String, Failure> {
        self.skopeo(&["list-tags", "--tls-verify=false", &format!("docker://{name}")]).await
    }

    /// Copies from any place to any other.
    pub async fn carry(&self, how: &[&str], from: &str, to: &str) -> Result<(), Failure> {
        let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        self.skopeo(&[&["copy"], &plain[..], how, &[from, to]].concat()).await.map(drop)
    }

    async fn skopeo(&self, arguments: &[&str]) -> Result<String, Failure> {
        let policy = self.storage.file("policy.json");
        let own = ["--policy", policy.as_str()];
        self.storage.run(&program("skopeo", "skopeo"), own.into_iter().chain(arguments.iter().copied())).await
    }
}
