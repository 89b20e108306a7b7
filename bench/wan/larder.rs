//! The release binary as a child process, with a cache directory of its own that is empty.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::Result;
use crate::client::Client;
use crate::upstream::Upstream;

/// A running Larder; killed when it is dropped.
pub struct Larder {
    child: Child,
    door: String,
    authority: PathBuf,
    _directory: TempDir,
}

impl Larder {
    /// Starts one and waits until it listens.
    pub fn start(upstream: &Upstream, max_age: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("larder.toml");
        let (registry, authority) = (upstream.registry, upstream.authority.display());
        let keys = std::env::var("UPSTREAM_KEYS").unwrap_or_default();
        let text = format!(
            "[repository.hub]\nmax_age = \"{max_age}\"\n\
             [[repository.hub.upstream]]\nurl = \"https://{registry}\"\nserver_ca_bundle = \"{authority}\"\n{keys}\n"
        );
        fs::write(&config, text)?;
        let binary = std::env::var_os("LARDER").unwrap_or_else(|| "target/release/larder".into());
        let mut child = Command::new(binary)
            .args(["serve".as_ref(), "--config".as_ref(), config.as_os_str()])
            .envs([("LARDER_SERVER__LISTEN", "127.0.0.1:0"), ("LARDER_ADMIN__LISTEN", "127.0.0.1:0")])
            .env("LARDER_CACHE__MIN_FREE", "0")
            .env("LARDER_CACHE__DIR", directory.path().join("cache"))
            .envs([("LARDER_LOGGING__FORMAT", "json"), ("LARDER_LOGGING__ACCESS", "false")])
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().ok_or("no standard error")?);
        // Killed from now on, whatever fails.
        let mut larder =
            Self { child, door: String::new(), authority: upstream.authority.clone(), _directory: directory };
        let mut line = String::new();
        while larder.door.is_empty() {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                return Err("larder ended while it was starting".into());
            }
            let record: serde_json::Value = serde_json::from_str(&line)?;
            if record["fields"]["door"] == "registry" {
                record["fields"]["address"].as_str().unwrap_or_default().clone_into(&mut larder.door);
            }
        }
        // Whoever writes to a pipe that nobody reads waits.
        let to_terminal = std::env::var_os("LARDER_LOGGING__LEVEL").is_some();
        std::thread::spawn(move || match to_terminal {
            true => std::io::copy(&mut log, &mut std::io::stderr()),
            false => std::io::copy(&mut log, &mut std::io::sink()),
        });
        Ok(larder)
    }

    /// Returns a new client of it, as of another node.
    pub fn client(&self) -> Result<Client> {
        Client::of_larder(&self.door, &self.authority)
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        // One that has ended already has no process to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
