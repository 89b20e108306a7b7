//! What a client's configuration has to look like so that the client pulls through the cache: pure, given what is
//! found; and the writing and taking back of such files.

mod apply;
mod buildkit;
mod containerd;
mod docker;
mod found;
mod hosts;
mod json_text;
mod kind;
mod podman;
mod rancher;
mod record;
mod toml_text;
mod version;
mod yaml_text;

use std::path::{Path, PathBuf};

pub use apply::{Change, Changes, Step, Taken, prepare, undo};
pub use found::{Found, Root};
pub use version::{SHOWN, Version, installed, packages};

/// A client whose configuration Larder knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Docker,
    Containerd,
    Podman,
    Buildkit,
    K3s,
    Rke2,
    Kind,
}

impl Client {
    pub const ALL: [Self; 7] =
        [Self::Docker, Self::Containerd, Self::Podman, Self::Buildkit, Self::K3s, Self::Rke2, Self::Kind];

    /// Returns the name by which the command line knows the client.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Buildkit => "buildkit",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::Kind => "kind",
        }
    }
}

/// The cache as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    pub is_tls: bool,
    /// The host, with its port unless this is the usual one: `mirror.example.com`, `10.0.0.7:5000`.
    pub host: String,
    /// Whether only clients on the cache's own machine reach it.
    pub is_loopback: bool,
    /// The certificates, in PEM form, of the authority that clients do not trust by themselves.
    pub authority: Option<String>,
}

impl Cache {
    /// Returns the URL without a slash at the end.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_tls { "https" } else { "http" }, self.host)
    }
}

/// A registry that clients are to pull through the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// The host in the names of its images: `docker.io`.
    pub name: String,
    /// The prefix of its repository in the cache.
    pub prefix: String,
}

/// Whose configuration it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The whole machine's, in `/etc`.
    Machine,
    /// One user's, whose programs run without root.
    User {
        /// `$XDG_CONFIG_HOME`, or `.config` in the home directory.
        config: PathBuf,
        /// `$XDG_STATE_HOME`, or `.local/state` in the home directory.
        state: PathBuf,
    },
}

/// The client's configuration that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub client: Client,
    pub owner: Owner,
    /// For BuildKit: the folder of buildx's own files, whose new builders are meant instead of a `buildkitd`.
    pub buildx: Option<PathBuf>,
    /// For kind: the folder in which its files are made, as an absolute path.
    pub folder: PathBuf,
}

impl Target {
    /// Returns the command by which the client reads its files again.
    pub fn reload(&self) -> &'static str {
        let is_user = matches!(self.owner, Owner::User { .. });
        match self.client {
            Client::Docker if is_user => "systemctl --user reload docker",
            Client::Docker => "systemctl reload docker",
            Client::Containerd if is_user => "systemctl --user restart containerd",
            Client::Containerd => "systemctl restart containerd",
            Client::Podman => {
                "systemctl reload crio (CRI-O only; Podman, Buildah and skopeo read their files at each pull)"
            }
            Client::Buildkit if self.buildx.is_some() => "docker buildx create (a builder keeps what it was made with)",
            Client::Buildkit if is_user => "systemctl --user restart buildkit (or however buildkitd is started here)",
            Client::Buildkit => "systemctl restart buildkit (or however buildkitd is started here)",
            Client::K3s => "systemctl restart k3s (on agents: k3s-agent)",
            Client::Rke2 => "systemctl restart rke2-server (on agents: rke2-agent)",
            Client::Kind => "kind create cluster (a cluster that exists does not change)",
        }
    }

    /// Returns the file in which setup notes what it has written.
    fn record(&self) -> PathBuf {
        let folder = match &self.owner {
            Owner::Machine => Path::new("/var/lib"),
            Owner::User { state, .. } => state,
        };
        let name = match (self.client, &self.buildx) {
            (Client::Kind, _) => return self.folder.join("setup.json"),
            (_, Some(_)) => "buildx",
            (client, None) => client.name(),
        };
        folder.join("larder-setup").join(format!("{name}.json"))
    }
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wish {
    pub target: Target,
    pub cache: Cache,
    /// In the order of the configuration; never empty.
    pub registries: Vec<Registry>,
    /// Whether only these registries are meant, also where a client can send the requests for all registries.
    pub is_limited: bool,
    /// Whether a request that names no registry goes to Docker Hub's repository.
    pub is_hub_default: bool,
    /// The client's version, if it is known.
    pub version: Option<Version>,
}

/// A file as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The path as the client sees it: below the root.
    pub path: PathBuf,
    pub text: String,
}

/// How a client is set up.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub files: Vec<File>,
    /// What may keep the client from pulling through the cache.
    pub warnings: Vec<String>,
    /// What to do when the files are written, a command or a sentence each.
    pub next: Vec<String>,
}

impl Plan {
    fn add(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        self.files.push(File { path: path.into(), text: text.into() });
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    fn then(&mut self, text: impl Into<String>) {
        self.next.push(text.into());
    }

    /// Adds the file of the authority, if there is one. Returns its path.
    fn add_authority(&mut self, cache: &Cache, path: PathBuf) -> Option<String> {
        let authority = cache.authority.as_ref()?;
        let shown = path.display().to_string();
        self.add(path, authority.clone());
        Some(shown)
    }
}

/// Why a client cannot be set up, or its files not be taken back.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{}: permission denied; run this as root (sudo larder setup …), or for your own user with --user", .0.display())]
    NotPermitted(PathBuf),
    #[error("{}: {source}", .path.display())]
    Unusable { path: PathBuf, source: std::io::Error },
    #[error("{} is not the text of a configuration: it is larger than 64 MiB, or not UTF-8; move it away first", .0.display())]
    NoText(PathBuf),
    #[error("{} cannot be read, so it is left as it is: {reason}; mend it first", .path.display())]
    Broken { path: PathBuf, reason: String },
    /// The file is fine, and a change of it would not surely keep what it says.
    #[error("{} is left as it is: {reason}\nadd this by hand:\n{add}", .path.display())]
    ByHand { path: PathBuf, reason: String, add: String },
    /// The file says something that cannot stay.
    #[error("{} is left as it is: {reason}", .path.display())]
    InTheWay { path: PathBuf, reason: String },
}

impl SetupError {
    fn of(path: &Path, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::PermissionDenied => Self::NotPermitted(path.to_owned()),
            _ => Self::Unusable { path: path.to_owned(), source },
        }
    }
}

/// A machine of which nothing is known.
struct Nothing;

impl Found for Nothing {
    fn text(&self, _: &Path) -> Result<Option<String>, SetupError> {
        Ok(None)
    }

    fn names(&self, _: &Path) -> Result<Vec<String>, SetupError> {
        Ok(Vec::new())
    }
}

/// Says what a client needs on a machine of which nothing is known, for a page that shows it. A user there may have
/// files already, to which these lines belong. The registries are never empty.
pub fn lines(client: Client, version: Option<Version>, for_clients: Lines) -> Result<Plan, SetupError> {
    let Lines { cache, registries, is_hub_default } = for_clients;
    let target = Target { client, owner: Owner::Machine, buildx: None, folder: PathBuf::from("/opt/larder-kind") };
    let wish = Wish { target, cache, registries, is_limited: false, is_hub_default, version };
    plan(&wish, &Nothing)
}

/// What [`lines`] say.
#[derive(Clone, Debug)]
pub struct Lines {
    pub cache: Cache,
    pub registries: Vec<Registry>,
    pub is_hub_default: bool,
}

/// Says how a client is set up, given what is found. Writes nothing.
pub fn plan(wish: &Wish, found: &dyn Found) -> Result<Plan, SetupError> {
    match wish.target.client {
        Client::Docker => docker::plan(wish, found),
        Client::Containerd => containerd::plan(wish, found),
        Client::Podman => podman::plan(wish, found),
        Client::Buildkit => buildkit::plan(wish, found),
        Client::K3s | Client::Rke2 => rancher::plan(wish, found),
        Client::Kind => kind::plan(wish, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_each_client_name_the_cache() {
        for client in Client::ALL {
            let host = "10.0.0.7:5000".to_owned();
            let cache = Cache { is_tls: false, host, is_loopback: false, authority: None };
            let registry = Registry { name: "docker.io".to_owned(), prefix: "docker.io".to_owned() };
            let told = Lines { cache, registries: vec![registry], is_hub_default: true };
            let plan = lines(client, None, told).expect("nothing is in the way");
            assert!(plan.files.iter().any(|file| file.text.contains("10.0.0.7:5000")), "{client:?}: {plan:?}");
            assert!(!plan.next.is_empty(), "{client:?}");
        }
    }
}
