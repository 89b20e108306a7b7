//! containerd: `hosts.toml` in a folder that a table of `config.toml` names. docs/cri/registry.md of containerd, and
//! where things changed: `git grep` over its tags.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::hosts::{self, Mirror};
use super::toml_text::{self, get};
use super::{Found, Owner, Plan, SetupError, Version, Wish};

/// The first version that knows the folder `_default` (`hostPaths`).
const KNOWS_DEFAULT: Version = Version(1, 6, 17);
/// The first version whose `config.toml` may say `version = 3`, with other names of the tables.
const KNOWS_V3: Version = Version(2, 0, 0);
/// The first version that reads the folders without a key, and knows the capability `referrers`.
const READS_BY_ITSELF: Version = Version(2, 2, 0);

/// The folder that a new configuration names.
const FOLDER: &str = "certs.d";

pub fn plan(wish: &Wish, found: &dyn Found) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let base = match &wish.target.owner {
        Owner::Machine => PathBuf::from("/etc/containerd"),
        Owner::User { config, .. } => config.join("containerd"),
    };
    let usual = base.join(FOLDER);
    let file = base.join("config.toml");
    let before = found.text(&file)?.unwrap_or_default();
    let says = toml_text::read(&file, &before)?;
    let registry = Registry::of(&says, wish.version);
    registry.refuse_old_keys(&file, &says)?;

    let key = get(&says, &registry.key("config_path")).and_then(Value::as_str);
    let written = key.unwrap_or_default();
    let folder = written.split(':').next().filter(|folder| !folder.is_empty()).map_or(usual, PathBuf::from);
    if is_cri_off(&says) {
        plan.warn(format!(
            "{} turns the CRI plugin off (disabled_plugins): Kubernetes does not use this containerd; nerdctl reads {} all the same, ctr with --hosts-dir",
            file.display(),
            folder.display()
        ));
    } else if written.is_empty()
        // 2.2 takes an empty text for what is wanted, such as `containerd config default` of 2.0 writes it.
        && (key.is_some() || wish.version.is_none_or(|version| version < READS_BY_ITSELF))
    {
        add_config(&mut plan, wish, (&file, &before), &registry, &folder)?;
        warn_of_imports(&mut plan, found, &file, &says, &registry);
    }
    let authority = plan.add_authority(&wish.cache, folder.join(&wish.cache.host).join("ca.crt"));
    let has_referrers = wish.version.is_some_and(|version| version >= READS_BY_ITSELF);
    let knows_default = wish.version.is_none_or(|version| version >= KNOWS_DEFAULT);
    let mirror = Mirror { cache: &wish.cache, has_referrers, authority };
    hosts::add(&mut plan, found, &folder, &mirror, &wish.registries, knows_default && !wish.is_limited)?;
    if !knows_default {
        plan.warn("containerd before 1.6.17 knows no folder for all registries (_default): each has its own, and those that are not named here are pulled past the cache");
    }
    plan.then("containerd reads hosts.toml at each pull. Check it: crictl pull docker.io/library/hello-world:latest, then larder ls");
    Ok(plan)
}

/// The table of `config.toml` about registries.
struct Registry {
    version: i64,
    keys: [&'static str; 3],
}

impl Registry {
    fn of(says: &Table, client: Option<Version>) -> Self {
        // A file without a version is of version 1, unless it says nothing at all.
        let written = says.get("version").and_then(Value::as_integer);
        let fresh = if client.is_some_and(|client| client >= KNOWS_V3) { 3 } else { 2 };
        let version = written.unwrap_or(if says.is_empty() { fresh } else { 1 });
        let plugin = match version {
            ..=1 => "cri",
            2 => "io.containerd.grpc.v1.cri",
            3.. => "io.containerd.cri.v1.images",
        };
        Self { version, keys: ["plugins", plugin, "registry"] }
    }

    fn key<'a>(&self, name: &'a str) -> Vec<&'a str> {
        self.keys.into_iter().chain([name]).collect()
    }

    fn table(&self) -> String {
        match self.keys[1] {
            "cri" => "[plugins.cri.registry]".to_owned(),
            plugin => format!("[plugins.\"{plugin}\".registry]"),
        }
    }

    /// Fails where there are keys beside which containerd does not start with `config_path` (`ValidateImageConfig`).
    fn refuse_old_keys(&self, file: &Path, says: &Table) -> Result<(), SetupError> {
        let is_filled = |value: Option<&Value>| value.and_then(Value::as_table).is_some_and(|table| !table.is_empty());
        let configs = get(says, &self.key("configs")).and_then(Value::as_table);
        let has_tls = configs.is_some_and(|configs| configs.values().any(|config| config.get("tls").is_some()));
        let old = match (is_filled(get(says, &self.key("mirrors"))), has_tls) {
            (true, _) => "mirrors",
            (false, true) => "configs.….tls",
            (false, false) => return Ok(()),
        };
        let reason = format!(
            "it has {} of {}, and containerd does not start with that and `config_path`, by which all registries come from the cache; take it out, move what is still needed to a hosts.toml (docs/hosts.md of containerd), and try again",
            old,
            self.table()
        );
        Err(SetupError::InTheWay { path: file.to_owned(), reason })
    }
}

fn add_config(
    plan: &mut Plan,
    wish: &Wish,
    (file, before): (&Path, &str),
    registry: &Registry,
    folder: &Path,
) -> Result<(), SetupError> {
    let path = folder.display().to_string();
    let add = format!("{}\nconfig_path = {}\n", registry.table(), toml_text::quoted(&path));
    let text = if toml_text::read(file, before)?.is_empty() {
        let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        format!("{before}{gap}version = {}\n\n{add}", registry.version)
    } else {
        let setting = (registry.key("config_path"), Value::String(path));
        toml_text::set(file, before, &[setting], &add)?
    };
    plan.add(file, text);
    plan.then(format!("{} (once, for config.toml; running containers go on)", wish.target.reload()));
    Ok(())
}

fn is_cri_off(says: &Table) -> bool {
    let off = says.get("disabled_plugins").and_then(Value::as_array);
    let names = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];
    off.is_some_and(|off| off.iter().filter_map(Value::as_str).any(|name| names.contains(&name)))
}

/// In 1.x the table of a plugin in an imported file takes the place of the whole table (`mergeConfig`).
fn warn_of_imports(plan: &mut Plan, found: &dyn Found, file: &Path, says: &Table, registry: &Registry) {
    let imports = says.get("imports").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let folder = file.parent().unwrap_or(Path::new("/"));
    for import in imports {
        let import = folder.join(import);
        let (Some(parent), Some(pattern)) = (import.parent(), import.file_name().and_then(|name| name.to_str())) else {
            continue;
        };
        let (start, end) = pattern.split_once('*').unwrap_or((pattern, ""));
        let is_meant = |name: &String| match pattern.contains('*') {
            true => name.starts_with(start) && name.ends_with(end),
            false => name == pattern,
        };
        for name in found.glance_at_names(parent).iter().filter(|name| is_meant(name)) {
            let path = parent.join(name);
            let text = found.glance(&path).unwrap_or_default();
            let has_table = text.parse::<Table>().is_ok_and(|says| get(&says, &registry.keys[..2]).is_some());
            if has_table {
                plan.warn(format!(
                    "{} is imported and has the table [plugins.\"{}\"], too, which may take the place of that of config.toml: move `config_path` there",
                    path.display(),
                    registry.keys[1]
                ));
            }
        }
    }
}
