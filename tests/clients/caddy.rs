//! A reverse proxy in front of Larder: Debian's `caddy`.

use std::{fs, net::SocketAddr};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{
    process::{Daemon, Failure, program},
    registry::free_port,
};

/// A running Caddy; dropping it ends it and removes everything.
pub struct Caddy {
    address: SocketAddr,
    _daemon: Daemon,
    _directory: TempDir,
}

impl Caddy {
    /// Starts one with a site that `site` writes for its address, and waits until it listens.
    pub async fn start(site: impl Fn(SocketAddr) -> String) -> Self {
        let mut failure = None;
        // The port is free when it is looked for, not necessarily when Caddy binds it.
        for _ in 0..5 {
            match Self::try_start(&site).await {
                Ok(caddy) => return caddy,
                Err(error) => failure = Some(error),
            }
        }
        panic!("{failure:?}");
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn try_start(site: &impl Fn(SocketAddr) -> String) -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("larder-caddy-").tempdir().expect("a temporary directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let file = directory.path().join("Caddyfile");
        fs::write(&file, format!("{{\n\tadmin off\n}}\n{}\n", site(address)))
            .expect("Caddy's configuration is written");
        let path = |path: &std::path::Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
        let home = path(directory.path());
        let environment = [("HOME", home.as_str()), ("XDG_DATA_HOME", &home), ("XDG_CONFIG_HOME", &home)];
        let arguments = ["run", "--adapter", "caddyfile", "--config", &path(&file)];
        let binary = program("caddy", "caddy");
        let mut daemon = Daemon::spawn(&binary, arguments, &environment, &directory.path().join("log"))
            .map_err(|error| Failure::new(format!("Caddy does not start: {error}")))?;
        daemon.wait_until(|| async { TcpStream::connect(address).await.is_ok() }).await?;
        Ok(Self { address, _daemon: daemon, _directory: directory })
    }
}
