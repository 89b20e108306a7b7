//! Docker Engine. Up to 27, and later with the classic image store, it knows mirrors of Docker Hub alone, in
//! `daemon.json`. From 28 on `daemon/hosts.go` of moby reads `certs.d/_default/hosts.toml`: builds always, pulls with
//! the containerd image store; then mirrors of `daemon.json` do not count where `hosts.toml` has one.

use std::path::{Path, PathBuf};

use super::hosts::{self, Mirror};
use super::{Found, Owner, Plan, SetupError, Version, Wish, json_text};

/// The first version that reads `hosts.toml`: v27 has no `HostDirFromRoot`.
const READS_HOSTS: Version = Version(28, 0, 0);
/// The first version that knows `referrers` there: its go.mod has containerd 2.2.0, that of 29.0 has 2.1.5.
const KNOWS_REFERRERS: Version = Version(29, 1, 0);
/// The registry that `registry-mirrors` is for.
const HUB: &str = "docker.io";

/// Where options of the daemon are, beside `daemon.json`.
const UNITS: [&str; 4] = [
    "/etc/systemd/system/docker.service",
    "/etc/systemd/system/docker.service.d",
    "/lib/systemd/system/docker.service",
    "/etc/default/docker",
];

pub fn plan(wish: &Wish, found: &dyn Found) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let folder = match &wish.target.owner {
        Owner::Machine => PathBuf::from("/etc/docker"),
        Owner::User { config, .. } => config.join("docker"),
    };
    let file = folder.join("daemon.json");
    let before = found.text(&file)?;
    let reads_hosts = wish.version.is_none_or(|version| version >= READS_HOSTS);
    let has_containerd_store = before.as_deref().is_some_and(has_containerd_store);
    let certs = folder.join("certs.d");
    let authority = plan.add_authority(&wish.cache, certs.join(&wish.cache.host).join("ca.crt"));

    if reads_hosts {
        let has_referrers = wish.version.is_some_and(|version| version >= KNOWS_REFERRERS);
        let mirror = Mirror { cache: &wish.cache, has_referrers, authority };
        hosts::add(&mut plan, found, &certs, &mirror, &wish.registries, !wish.is_limited)?;
    }
    let is_hub_meant = wish.registries.iter().any(|registry| registry.name == HUB);
    if is_hub_meant && !(reads_hosts && has_containerd_store) {
        add_daemon_json(&mut plan, wish, found, &file, before.as_deref().unwrap_or_default())?;
    }
    if !(reads_hosts && has_containerd_store) {
        tell_limits(&mut plan, wish, reads_hosts);
    }
    warn_of_snap(&mut plan, wish, found);
    plan.then("Check it: docker pull docker.io/library/hello-world, then larder ls");
    Ok(plan)
}

/// Returns whether the configuration asks for the containerd image store.
fn has_containerd_store(text: &str) -> bool {
    let says: Option<serde_json::Value> = serde_json::from_str(text).ok();
    says.is_some_and(|says| says["features"]["containerd-snapshotter"] == true)
}

fn add_daemon_json(
    plan: &mut Plan,
    wish: &Wish,
    found: &dyn Found,
    file: &Path,
    before: &str,
) -> Result<(), SetupError> {
    let cache = &wish.cache;
    let mut wanted = vec![("registry-mirrors", cache.url())];
    // 127.0.0.0/8 and ::1 are insecure registries by themselves (moby, daemon/pkg/registry/config.go).
    if !cache.is_tls && !cache.is_loopback {
        wanted.push(("insecure-registries", cache.host.clone()));
    }
    plan.add(file, json_text::with_values(file, before, &wanted)?);
    let option = |text: &str| text.contains("--registry-mirror") || text.contains("--insecure-registry");
    for unit in UNITS.map(Path::new) {
        let drop_ins = found.glance_at_names(unit).into_iter().map(|name| unit.join(name));
        for path in drop_ins.chain([unit.to_owned()]) {
            if found.glance(&path).is_some_and(|text| option(&text)) {
                plan.warn(format!(
                    "{} has --registry-mirror or --insecure-registry: dockerd does not start with the same option there and in daemon.json; take it out there",
                    path.display()
                ));
            }
        }
    }
    if !wish.is_hub_default {
        plan.warn("the classic image store asks a mirror without saying for which registry, and here server.default_repository is not Docker Hub's repository: set it to \"docker.io\"");
    }
    plan.then(format!("{} (it reads daemon.json again; containers go on)", wish.target.reload()));
    Ok(())
}

fn tell_limits(plan: &mut Plan, wish: &Wish, reads_hosts: bool) {
    let Some(other) = wish.registries.iter().find(|registry| registry.name != HUB) else { return };
    let name = format!("docker pull {}/{}/NAME:TAG", wish.cache.host, other.prefix);
    plan.warn(match reads_hosts {
        true => format!(
            "with the classic image store (`docker info` says no driver-type io.containerd.snapshotter.v1) pulls from other registries than Docker Hub go past the cache; name it: {name}"
        ),
        false => format!(
            "this Docker knows mirrors of Docker Hub alone; for other registries name the cache: {name}"
        ),
    });
}

fn warn_of_snap(plan: &mut Plan, wish: &Wish, found: &dyn Found) {
    if wish.target.owner == Owner::Machine && !found.glance_at_names(Path::new("/var/snap/docker/current")).is_empty() {
        plan.warn("Docker is installed as a snap, too, which does not read /etc/docker: its daemon.json is /var/snap/docker/current/config/daemon.json; add the same lines there, and `snap restart docker`");
    }
}
