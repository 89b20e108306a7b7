//! containerd: a private one, told of the mirror by a hosts directory, so that its requests carry `?ns=docker.io`.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::process::{Daemon, Failure, Invocation, program};

/// A containerd and its `ctr`; dropping it ends it and removes everything.
pub struct Containerd {
    daemon: Daemon,
    /// After the daemon: fields are dropped in this order.
    directory: TempDir,
}

impl Containerd {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        Self::try_start().await.unwrap()
    }

    /// A hosts directory with one entry, `host` (`docker.io`, or `_default` for all of them), that sends everything to
    /// the mirror at `address` (`127.0.0.1:PORT`) and nothing to the registry itself.
    pub fn hosts_directory(&self, host: &str, address: &str) -> String {
        let hosts = self.directory.path().join(format!("hosts-{host}"));
        let text = format!(
            "server = \"http://{address}\"\n\
             [host.\"http://{address}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::create_dir_all(hosts.join(host)).expect("the hosts directory is made");
        fs::write(hosts.join(host).join("hosts.toml"), text).expect("hosts.toml is written");
        hosts.to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// A hosts directory for `docker.io` whose mirror speaks TLS: with the file of its authority, and perhaps the
    /// files of a certificate to show.
    pub fn tls_hosts_directory(
        &self,
        name: &str,
        address: &str,
        authority: &Path,
        own: Option<(&Path, &Path)>,
    ) -> String {
        let hosts = self.directory.path().join(format!("hosts-{name}"));
        let client = own.map_or_else(String::new, |(certificate, key)| {
            format!("client = [[\"{}\", \"{}\"]]\n", certificate.display(), key.display())
        });
        let text = format!(
            "server = \"https://{address}\"\n\
             [host.\"https://{address}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n\
             ca = \"{}\"\n{client}",
            authority.display()
        );
        fs::create_dir_all(hosts.join("docker.io")).expect("the hosts directory is made");
        fs::write(hosts.join("docker.io").join("hosts.toml"), text).expect("hosts.toml is written");
        hosts.to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// Adds an `Authorization` to what is asked of the mirror of a hosts directory.
    pub fn set_authorization(&self, hosts_directory: &str, address: &str, authorization: &str) {
        let file = Path::new(hosts_directory).join("docker.io/hosts.toml");
        let text = fs::read_to_string(&file).expect("there is a hosts.toml");
        let header = format!("{text}[host.\"https://{address}\".header]\nauthorization = \"{authorization}\"\n");
        fs::write(&file, header).expect("hosts.toml is written");
    }

    /// As `pull`, with `user:password`.
    pub async fn pull_as(&self, reference: &str, hosts_directory: &str, credentials: &str) -> Result<(), Failure> {
        let options = ["images", "pull", "--snapshotter", "native", "--hosts-dir", hosts_directory];
        let arguments: Vec<_> = options.into_iter().chain(["--user", credentials, reference]).collect();
        self.ctr(&arguments).await.map(drop)
    }

    /// Pulls and unpacks an image.
    pub async fn pull(&self, reference: &str, hosts_directory: &str) -> Result<(), Failure> {
        let pull = ["images", "pull", "--snapshotter", "native", "--hosts-dir", hosts_directory, reference];
        self.ctr(&pull).await.map(drop)
    }

    /// Removes an image with its content and its snapshots.
    pub async fn remove(&self, reference: &str) -> Result<(), Failure> {
        self.ctr(&["images", "remove", "--sync", reference]).await?;
        self.ctr(&["content", "prune", "references"]).await?;
        match self.ctr(&["content", "list", "--quiet"]).await?.as_str() {
            "" => Ok(()),
            left => Err(Failure::new(format!("containerd still holds {left}"))),
        }
    }

    /// Returns what it says of its version.
    pub async fn version() -> Result<String, Failure> {
        Invocation::new(&program("containerd", "containerd"), ["--version"]).run().await
    }

    /// Returns the folder of registries of a root's `config.toml`, as a containerd reads that: in `config dump`.
    pub async fn registries_of(root: &Path) -> Result<String, Failure> {
        let file = root.join("etc/containerd/config.toml");
        let file = file.to_str().expect("temporary paths are UTF-8");
        let dump = Invocation::new(&program("containerd", "containerd"), ["--config", file, "config", "dump"]);
        let dumped: toml::Table = dump.run().await?.parse().map_err(|error| Failure::new(format!("{error}")))?;
        // 1.x and 2.x name the table in two ways.
        let plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];
        let found =
            plugins.iter().find_map(|plugin| dumped["plugins"].get(plugin)?.get("registry")?.get("config_path"));
        found.and_then(|path| path.as_str()).map(str::to_owned).ok_or_else(|| Failure::new(format!("{dumped}")))
    }

    async fn try_start() -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("larder-containerd-").tempdir().expect("a temporary directory");
        let root = directory.path();
        let at = root.display();
        let configuration = format!(
            "version = 2\n\
             root = '{at}/root'\n\
             state = '{at}/state'\n\
             temp = '{at}/temp'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n\
             [grpc]\n\
             address = '{at}/sock'\n\
             [ttrpc]\n\
             address = '{at}/sock.ttrpc'\n"
        );
        fs::write(root.join("config.toml"), configuration).expect("containerd's configuration is written");
        let configuration = root.join("config.toml");
        let arguments = ["--config", configuration.to_str().expect("temporary paths are UTF-8")];
        let daemon = Daemon::spawn(&program("containerd", "containerd"), arguments, &[], &root.join("log"))
            .map_err(|error| Failure::new(format!("containerd does not start: {error}")))?;
        let mut containerd = Self { daemon, directory };
        let root = containerd.directory.path();
        containerd.daemon.wait_until(|| async { ctr(root, &["version"]).run().await.is_ok() }).await?;
        Ok(containerd)
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<String, Failure> {
        ctr(self.directory.path(), arguments).run().await.map_err(|failure| failure.with_log_of(&self.daemon))
    }
}

/// The client of the containerd that lives in `root`.
fn ctr(root: &Path, arguments: &[&str]) -> Invocation {
    let socket = root.join("sock");
    let own = ["--address", socket.to_str().expect("temporary paths are UTF-8"), "--namespace", "larder"];
    Invocation::new(&program("ctr", "containerd"), own.into_iter().chain(arguments.iter().copied())).env("HOME", root)
}
