//! Podman, Buildah, skopeo and CRI-O: a file in `registries.conf.d` (containers-registries.conf(5),
//! `pkg/sysregistriesv2` of containers/image). They send no `ns`; the repository is in the mirror's location.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::toml_text::quoted;
use super::{Found, Owner, Plan, Registry, SetupError, Wish};

const NAME: &str = "larder.conf";

pub fn plan(wish: &Wish, found: &dyn Found) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let base = match &wish.target.owner {
        Owner::Machine => PathBuf::from("/etc/containers"),
        Owner::User { config, .. } => config.join("containers"),
    };
    let others = others(found, &base)?;
    let mut blocks = Vec::new();
    for registry in &wish.registries {
        match others.iter().find(|(_, says)| configures(says, &registry.name)) {
            // Of two files with one prefix, one takes the place of the other, whole (`updateWithConfigurationFrom`).
            Some((path, _)) => plan.warn(format!(
                "{} has a [[registry]] for {}; it stays as it is, and its images come past the cache until you add below it:\n{}",
                path.display(),
                registry.name,
                mirror(wish, registry)
            )),
            None => blocks.push(block(wish, registry)),
        }
    }
    warn_of_parts(&mut plan, wish, &others);
    if !blocks.is_empty() {
        plan.add(base.join("registries.conf.d").join(NAME), blocks.join("\n"));
    }
    plan.add_authority(&wish.cache, base.join("certs.d").join(&wish.cache.host).join("ca.crt"));
    if wish.target.owner == Owner::Machine {
        plan.then(wish.target.reload());
        warn_of_users(&mut plan, found);
    }
    plan.then("Check it: podman pull docker.io/library/hello-world, then larder ls");
    Ok(plan)
}

/// A longer prefix goes before that of its registry.
fn warn_of_parts(plan: &mut Plan, wish: &Wish, others: &[(PathBuf, Table)]) {
    for (path, says) in others {
        for prefix in says.get("registry").and_then(Value::as_array).into_iter().flatten().filter_map(prefix_of) {
            let is_part = |name: &str| prefix.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
            if wish.registries.iter().any(|registry| is_part(&registry.name)) {
                plan.warn(format!(
                    "{} has a [[registry]] for {prefix}, which goes before that of its registry: its images come past the cache",
                    path.display()
                ));
            }
        }
    }
}

/// Returns what a `[[registry]]` is for: its prefix, or else its location.
fn prefix_of(registry: &Value) -> Option<&str> {
    let text = |key: &str| registry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    text("prefix").or_else(|| text("location"))
}

/// A user's own file takes the place of the machine's files (`newConfigWrapperWithHomeDir`).
fn warn_of_users(plan: &mut Plan, found: &dyn Found) {
    let homes = found.glance_at_names(Path::new("/home")).into_iter().map(|name| Path::new("/home").join(name));
    for home in homes.chain([PathBuf::from("/root")]) {
        let own = home.join(".config/containers/registries.conf");
        if found.glance(&own).is_some() {
            plan.warn(format!(
                "this user does not read the machine's files, but {}: larder setup podman --user",
                own.display()
            ));
        }
    }
}

/// A registry by its own name, with the cache as its mirror.
fn block(wish: &Wish, registry: &Registry) -> String {
    let name = quoted(&registry.name);
    format!("[[registry]]\nprefix = {name}\nlocation = {name}\n{}", mirror(wish, registry))
}

fn mirror(wish: &Wish, registry: &Registry) -> String {
    let location = quoted(&format!("{}/{}", wish.cache.host, registry.prefix));
    let insecure = if wish.cache.is_tls { "" } else { "insecure = true\n" };
    format!("[[registry.mirror]]\nlocation = {location}\n{insecure}")
}

/// Returns the other files about registries that a program reads. One that cannot be read has been in the way before.
fn others(found: &dyn Found, base: &Path) -> Result<Vec<(PathBuf, Table)>, SetupError> {
    let folder = base.join("registries.conf.d");
    let drop_ins = found.names(&folder)?.into_iter().filter(|name| name.ends_with(".conf") && name != NAME);
    let mut others = Vec::new();
    for path in [base.join("registries.conf")].into_iter().chain(drop_ins.map(|name| folder.join(name))) {
        let says = found.glance(&path).and_then(|text| text.parse().ok());
        others.extend(says.map(|says| (path, says)));
    }
    Ok(others)
}

/// Returns whether a file says more of a registry than its name.
fn configures(says: &Table, name: &str) -> bool {
    let mut registries = says.get("registry").and_then(Value::as_array).into_iter().flatten();
    registries.any(|registry| {
        let keys = registry.as_table().into_iter().flatten();
        let says_more = |(key, value): (&String, &Value)| match key.as_str() {
            "prefix" => false,
            "location" => value.as_str().is_some_and(|location| location != name),
            _ => true,
        };
        prefix_of(registry) == Some(name) && keys.into_iter().any(says_more)
    })
}
