//! A balancer in front of Larder: Debian's `haproxy`.

use std::{fs, net::SocketAddr};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{
    process::{Daemon, Failure, program},
    registry::free_port,
};

/// A running HAProxy; dropping it ends it and removes everything.
pub struct Haproxy {
    address: SocketAddr,
    _daemon: Daemon,
    _directory: TempDir,
}

impl Haproxy {
    /// Starts one that passes everything to `upstream`, and waits until it listens. `frontend`: lines about clients;
    /// `server`: more words behind the server's address, such as `send-proxy`.
    pub async fn start(upstream: SocketAddr, frontend: &str, server: &str) -> Self {
        let mut failure = None;
        // The port is free when it is looked for, not necessarily when HAProxy binds it.
        for _ in 0..5 {
            match Self::try_start(upstream, frontend, server).await {
                Ok(haproxy) => return haproxy,
                Err(error) => failure = Some(error),
            }
        }
        panic!("{failure:?}");
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn try_start(upstream: SocketAddr, frontend: &str, server: &str) -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("larder-haproxy-").tempdir().expect("a temporary directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let file = directory.path().join("haproxy.cfg");
        let text = format!(
            "defaults\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             listen larder\n  bind {address}\n{frontend}\n  server larder {upstream} {server}\n"
        );
        fs::write(&file, text).expect("HAProxy's configuration is written");
        let file = file.to_str().expect("temporary paths are UTF-8");
        let mut daemon =
            Daemon::spawn(&program("haproxy", "haproxy"), ["-db", "-f", file], &[], &directory.path().join("log"))
                .map_err(|error| Failure::new(format!("HAProxy does not start: {error}")))?;
        daemon.wait_until(|| async { TcpStream::connect(address).await.is_ok() }).await?;
        Ok(Self { address, _daemon: daemon, _directory: directory })
    }
}
