//! What podman, buildah and skopeo have in common: the configuration of their shared library, in a directory of their
//! own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::process::{Failure, Invocation};

/// A port that never answers, for what must not be reached.
const CLOSED: &str = "127.0.0.1:1";

/// The home of one such client: configuration, storage, everything.
pub struct Storage {
    directory: TempDir,
    /// URL of the proxy for everything.
    proxy: Option<String>,
    /// What it sees as `/etc/containers`, instead of a `registries.conf` of its own.
    etc: Option<PathBuf>,
}

impl Storage {
    /// A client that knows no mirror.
    pub fn new() -> Self {
        Self::with_registries("unqualified-search-registries = []\n")
    }

    /// A client that pulls `docker.io` from the mirror at `address` (`127.0.0.1:PORT`), by path prefix, and for which
    /// Docker Hub itself is a closed port of this machine.
    pub fn with_mirror(address: &str) -> Self {
        Self::with_registries(&format!(
            "unqualified-search-registries = []\n\
             [[registry]]\n\
             prefix = \"docker.io\"\n\
             location = \"{CLOSED}\"\n\
             insecure = true\n\
             [[registry.mirror]]\n\
             location = \"{address}/docker.io\"\n\
             insecure = true\n"
        ))
    }

    /// A client that knows no mirror and goes through a proxy.
    pub fn behind(proxy: &str) -> Self {
        Self { proxy: Some(proxy.to_owned()), ..Self::new() }
    }

    /// A client that sees a directory as `/etc/containers`, and gets to no other machine.
    pub fn seeing(etc: &Path) -> Self {
        Self { etc: Some(etc.to_owned()), ..Self::behind("http://127.0.0.1:1") }
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it, as text.
    pub fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// Runs a program with this configuration.
    pub async fn run<'a>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<String, Failure> {
        let proxy = self.proxy.as_deref().unwrap_or_default();
        let run = match &self.etc {
            Some(etc) => Invocation::new(program, arguments).env("RIG_CONTAINERS", etc),
            None => Invocation::new(program, arguments).env("CONTAINERS_REGISTRIES_CONF", self.file("registries.conf")),
        };
        run.env("HTTPS_PROXY", proxy)
            .env("HTTP_PROXY", proxy)
            .env("HOME", self.path())
            .env("CONTAINERS_CONF", "/dev/null")
            .env("CONTAINERS_STORAGE_CONF", self.file("storage.conf"))
            .env("REGISTRY_AUTH_FILE", self.file("auth.json"))
            .with_private_containers()
            .run()
            .await
    }

    fn with_registries(registries: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("larder-client-").tempdir().expect("a temporary directory");
        let storage = Self { directory, proxy: None, etc: None };
        let [root, runroot] = ["storage", "run"].map(|name| storage.file(name));
        // vfs works on every file system, and without mounts to clean up.
        let store = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{root}\"\nrunroot = \"{runroot}\"\n");
        for (name, content) in [
            ("registries.conf", registries),
            ("storage.conf", &store),
            ("auth.json", "{}"),
            ("policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#),
        ] {
            fs::write(storage.path().join(name), content).expect("the client's configuration is written");
        }
        storage
    }
}
