//! A reverse proxy in front of Larder: Debian's `nginx`.

use std::{fs, net::SocketAddr};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{
    process::{Daemon, Failure, program},
    registry::free_port,
};

/// A running nginx; dropping it ends it and removes everything.
pub struct Nginx {
    address: SocketAddr,
    daemon: Option<Daemon>,
    directory: TempDir,
}

impl Nginx {
    /// Starts one that passes everything to `upstream`, with more directives for that, and waits until it listens.
    pub async fn start(upstream: SocketAddr, directives: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("larder-nginx-").tempdir().expect("a temporary directory");
        let mut nginx = Self { address: upstream, daemon: None, directory };
        let mut failure = None;
        // The port is free when it is looked for, not necessarily when nginx binds it.
        for _ in 0..5 {
            nginx.address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            match nginx.try_start(upstream, directives).await {
                Ok(()) => return nginx,
                Err(error) => failure = Some(error),
            }
        }
        panic!("{failure:?}");
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn try_start(&mut self, upstream: SocketAddr, directives: &str) -> Result<(), Failure> {
        let root = self.directory.path();
        let file = root.join("nginx.conf");
        let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String =
            kinds.iter().map(|kind| format!("{kind}_temp_path {}/{kind};\n", root.display())).collect();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}\
             server {{\nlisten {};\nlocation / {{\nproxy_pass http://{upstream};\n{directives}\n}}\n}}\n}}\n",
            root.display(),
            self.address,
        );
        fs::write(&file, text).expect("nginx's configuration is written");
        let file = file.to_str().expect("temporary paths are UTF-8");
        let binary = program("nginx", "nginx");
        let mut daemon = Daemon::spawn(&binary, ["-e", "stderr", "-c", file], &[], &root.join("log"))
            .map_err(|error| Failure::new(format!("nginx does not start: {error}")))?;
        daemon.wait_until(|| async { TcpStream::connect(self.address).await.is_ok() }).await?;
        self.daemon = Some(daemon);
        Ok(())
    }
}
