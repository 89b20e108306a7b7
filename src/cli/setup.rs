//! `larder setup`: the configuration of clients.

pub mod address;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CommandError;
use crate::config::{self, Config, Sources};
use crate::program::{self, Reads};
use crate::setup::{self, Client, Owner, Root, SetupError, Target, Version, Wish};
use address::Found;
use report::Told;

/// Longest time until a client says its version.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Setup {
    /// The client
    #[arg(value_parser = client_parser())]
    client: Client,
    /// Write the files; without this they are only shown. A file that changes keeps its owner and mode, and the file
    /// from before stays beside it
    #[arg(long, conflicts_with = "undo")]
    write: bool,
    /// Take back, to the byte, what --write has written
    #[arg(long)]
    undo: bool,
    /// With --write: wait until told to stop (SIGTERM), then take it back; for a container on a node
    #[arg(long, requires = "write")]
    stay: bool,
    /// The root of the client's file system, if it is not this one's
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The cache as the client reaches it. Without this: `server.public_url` of the configuration, or the address at
    /// which it listens
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Only this registry, such as docker.io; may be given several times. Without this all repositories of the
    /// configuration, and where a client can ask the cache for every registry, all registries
    #[arg(long = "registry", value_name = "HOST")]
    registries: Vec<String>,
    /// Certificates (PEM) of the authority that the cache's certificate is from, if clients do not trust it already
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The client's version, if it cannot be found out
    #[arg(long, value_name = "VERSION")]
    client_version: Option<Version>,
    /// Your own files in ~/.config, for clients that run without root, instead of the machine's in /etc
    #[arg(long)]
    user: bool,
    /// With buildkit: buildx's own file for new builders (~/.docker/buildx) instead of that of a buildkitd
    #[arg(long)]
    buildx: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

fn client_parser() -> impl TypedValueParser<Value = Client> {
    PossibleValuesParser::new(Client::ALL.map(Client::name))
        .try_map(|name| Client::ALL.into_iter().find(|client| client.name() == name).ok_or("no such client"))
}

impl From<SetupError> for CommandError {
    fn from(error: SetupError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Runs `larder setup`.
pub async fn run(files: &[PathBuf], arguments: &Setup) -> Result<(), CommandError> {
    let target = arguments.target()?;
    let root = arguments.root()?;
    if arguments.undo {
        let taken = setup::undo(&root, &target)?;
        return report::taken(&target, taken, arguments.json);
    }
    let config = Config::load(files, config::environment()).map_err(|error| {
        CommandError::Usage(format!(
            "{error}\nthe configuration says which registries there are, and where the cache is"
        ))
    })?;
    let Found { cache, from, warnings } = address::find(&config, arguments.url.as_deref(), arguments.ca.as_deref())?;
    let registries = address::registries(&config, &arguments.registries)?;
    let version = arguments.version(&root, target.client).await?;
    let has_no_file = Sources::new(files, config::environment()).files().is_empty();
    let wish = Wish {
        target,
        cache,
        registries,
        is_limited: !arguments.registries.is_empty(),
        is_hub_default: address::is_hub_default(&config),
        version: version.as_ref().map(|(version, _)| *version),
    };
    let mut changes = setup::prepare(&root, &wish)?;
    changes.plan.warnings.splice(0..0, warnings);
    if has_no_file && arguments.url.is_none() {
        let warning = "there is no larder.toml here, so the address is the default one; on another machine than the cache's name the cache with --url";
        changes.plan.warnings.insert(0, warning.to_owned());
    }
    if wish.cache.is_loopback && arguments.is_elsewhere() {
        let warning = format!(
            "{} is an address of the cache's own machine; a client elsewhere needs another: --url",
            wish.cache.url()
        );
        changes.plan.warnings.insert(0, warning);
    }
    if arguments.write {
        changes.write(&root)?;
    }
    // Begun before anything is told, so that whoever reads it may stop this at once.
    let stops = arguments.stay.then(Stops::begin).transpose()?;
    let told = Told { wish: &wish, from: &from, version, changes: &changes, is_written: arguments.write };
    told.tell(arguments.json)?;
    match stops {
        Some(stops) => {
            stops.come().await;
            report::taken(&wish.target, setup::undo(&root, &wish.target)?, arguments.json)
        }
        None => Ok(()),
    }
}

/// The signals that end a command that stays.
struct Stops(Signal, Signal);

impl Stops {
    fn begin() -> Result<Self, CommandError> {
        let begin = |kind| signal(kind).map_err(|error| CommandError::Failed(error.to_string()));
        Ok(Self(begin(SignalKind::terminate())?, begin(SignalKind::interrupt())?))
    }

    async fn come(mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

impl Setup {
    fn target(&self) -> Result<Target, CommandError> {
        let usage = |message: &str| Err(CommandError::Usage(message.to_owned()));
        let can_be_of_user =
            matches!(self.client, Client::Docker | Client::Containerd | Client::Podman | Client::Buildkit);
        if self.user && !can_be_of_user {
            return usage(
                "--user is for docker, containerd, podman and buildkit; the other clients have only the machine's files",
            );
        }
        if self.buildx && self.client != Client::Buildkit {
            return usage("--buildx is for buildkit: larder setup buildkit --buildx");
        }
        let owner = if self.user || self.buildx { of_user()? } else { Owner::Machine };
        let buildx = if self.buildx { Some(buildx_folder()?) } else { None };
        let folder = self.root.as_deref().unwrap_or(Path::new("."));
        let folder = std::path::absolute(folder.join("larder-kind"));
        let folder = folder.map_err(|error| CommandError::Failed(error.to_string()))?;
        // `.` at its end would be part of the paths that are shown.
        let folder = folder.components().collect();
        Ok(Target { client: self.client, owner, buildx, folder })
    }

    /// Returns the root of the client's files. That of kind is ours: its nodes only see a folder of this machine.
    fn root(&self) -> Result<Root, CommandError> {
        let folder = match (&self.root, self.client) {
            (Some(folder), client) if client != Client::Kind => folder,
            _ => Path::new("/"),
        };
        Root::new(folder).map_err(|error| CommandError::Usage(format!("--root {}: {error}", folder.display())))
    }

    /// Returns whether the client surely runs on another machine, or in a container.
    fn is_elsewhere(&self) -> bool {
        // Those two say more of it themselves.
        self.root.is_some() && self.client != Client::Kind && !self.buildx
    }

    /// Returns the client's version, and how it was found.
    async fn version(&self, root: &Root, client: Client) -> Result<Option<(Version, &'static str)>, CommandError> {
        if let Some(version) = self.client_version {
            return Ok(Some((version, "--client-version")));
        }
        let program = match client {
            Client::Docker => Some(("dockerd", "dockerd --version")),
            Client::Containerd => Some(("containerd", "containerd --version")),
            Client::K3s => Some(("k3s", "k3s --version")),
            Client::Rke2 => Some(("rke2", "rke2 --version")),
            Client::Podman | Client::Buildkit | Client::Kind => None,
        };
        if let Some((program, shown)) = program.filter(|_| root.is_ours()) {
            let mut command = tokio::process::Command::new(program);
            command.arg("--version");
            // One that is not there, or not in the PATH, may be in the list of packages.
            let ran = program::run(command, &[], Reads::Output, PATIENCE).await;
            let said = ran.ok().filter(|ran| ran.is_success).and_then(|ran| ran.text().parse().ok());
            if let Some(version) = said {
                return Ok(Some((version, shown)));
            }
        }
        Ok(installed(client, root).await.map(|version| (version, "the installed package")))
    }
}

/// Returns the version of the client's Debian package below a root. Only dpkg's own commands read its list of packages
/// (<https://wiki.debian.org/DpkgConffileHandling>). Where there are none, the version is not known.
async fn installed(client: Client, root: &Root) -> Option<Version> {
    let packages = setup::packages(client);
    if packages.is_empty() {
        return None;
    }
    let mut command = tokio::process::Command::new("dpkg-query");
    command.arg("--root").arg(root.folder()).arg("--show").arg(format!("--showformat={}", setup::SHOWN)).args(packages);
    // It fails as soon as one of the packages is unknown, and still shows the others.
    let ran = program::run(command, &[], Reads::Output, PATIENCE).await.ok()?;
    setup::installed(client, &String::from_utf8_lossy(&ran.said))
}

/// Returns whether a client below `root` has all that setup would write for it. The error says why that is not known.
pub async fn is_set_up(
    config: &Config,
    root: &Path,
    client: Client,
    cache: setup::Cache,
) -> Result<bool, CommandError> {
    let arguments = Setup {
        client,
        write: false,
        stay: false,
        undo: false,
        root: Some(root.to_owned()).filter(|root| root != Path::new("/")),
        url: None,
        registries: Vec::new(),
        ca: None,
        client_version: None,
        user: false,
        buildx: false,
        json: false,
    };
    let root = arguments.root()?;
    let version = arguments.version(&root, client).await?;
    let wish = Wish {
        target: arguments.target()?,
        cache,
        registries: address::registries(config, &[])?,
        is_limited: false,
        is_hub_default: address::is_hub_default(config),
        version: version.map(|(version, _)| version),
    };
    Ok(setup::prepare(&root, &wish)?.steps.is_empty())
}

/// Returns a variable that is set.
fn variable(name: &str) -> Option<PathBuf> {
    let found = config::environment().find(|(known, value)| known == name && !value.is_empty());
    found.map(|(_, value)| PathBuf::from(value))
}

fn home() -> Result<PathBuf, CommandError> {
    variable("HOME").ok_or_else(|| CommandError::Usage("HOME is not set: whose files are meant?".to_owned()))
}

fn of_user() -> Result<Owner, CommandError> {
    let folder = |name: &str, usual: &str| match variable(name) {
        Some(folder) => Ok(folder),
        None => home().map(|home| home.join(usual)),
    };
    Ok(Owner::User { config: folder("XDG_CONFIG_HOME", ".config")?, state: folder("XDG_STATE_HOME", ".local/state")? })
}

/// Returns buildx's folder (`NewConfig` in `util/confutil/config.go` of docker/buildx).
fn buildx_folder() -> Result<PathBuf, CommandError> {
    match (variable("BUILDX_CONFIG"), variable("DOCKER_CONFIG")) {
        (Some(folder), _) => Ok(folder),
        (None, Some(folder)) => Ok(folder.join("buildx")),
        (None, None) => Ok(home()?.join(".docker/buildx")),
    }
}
