//! The clients on this host: whether they are set up for this cache.

use std::path::Path;

use super::Findings;
use crate::cli::setup::{address, is_set_up};
use crate::config::Config;
use crate::setup::Client;

/// The clients that are looked for, each with the program that shows that it is installed.
const CLIENTS: [(Client, &str); 5] = [
    (Client::Docker, "dockerd"),
    (Client::Containerd, "containerd"),
    (Client::Podman, "podman"),
    (Client::K3s, "k3s"),
    (Client::Rke2, "rke2"),
];
/// Where programs are.
const FOLDERS: [&str; 5] = ["usr/bin", "usr/local/bin", "usr/sbin", "opt/bin", "bin"];

/// Looks which clients are there, and whether each has what `larder setup` would write.
pub async fn check(config: &Config, root: &Path, findings: &mut Findings) {
    const CHECK: &str = "clients";
    let is_there = |program: &str| FOLDERS.iter().any(|folder| root.join(folder).join(program).exists());
    let cache = match address::find(config, None, None) {
        Ok(found) => found.cache,
        Err(error) => return findings.note(CHECK, format!("not looked at: {error}")),
    };
    let mut is_any = false;
    for (client, program) in CLIENTS {
        if !is_there(program) {
            continue;
        }
        is_any = true;
        let name = client.name();
        match is_set_up(config, root, client, cache.clone()).await {
            Ok(true) => findings.ok(CHECK, format!("{name} pulls through {}", cache.url())),
            Ok(false) => findings.note(
                CHECK,
                format!("{name} is here and does not pull through {}: `larder setup {name}` shows how", cache.url()),
            ),
            Err(error) => findings.warning(CHECK, format!("{name}: {error}")),
        }
    }
    if !is_any {
        findings.note(CHECK, "none is installed here; `larder setup` shows how others pull through this cache");
    }
}
