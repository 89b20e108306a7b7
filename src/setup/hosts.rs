//! `hosts.toml`, by which containerd and Docker find the mirrors of a registry: docs/hosts.md of containerd, and
//! `core/remotes/docker/config/hosts.go` there.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::toml_text::{self, list, quoted};
use super::{Cache, Found, Plan, Registry, SetupError};

/// The folder for all registries that have none of their own. containerd knows it from 1.6.17 on.
pub const DEFAULT: &str = "_default";

/// The mirror in a `hosts.toml`.
pub struct Mirror<'a> {
    pub cache: &'a Cache,
    /// Whether the client knows the capability `referrers`. One that does not ignores the whole file.
    pub has_referrers: bool,
    /// The file of the cache's authority, if it has one of its own.
    pub authority: Option<String>,
}

impl Mirror<'_> {
    fn capabilities(&self) -> Vec<&'static str> {
        let all = ["pull", "resolve", "referrers"];
        all.into_iter().filter(|&name| name != "referrers" || self.has_referrers).collect()
    }

    /// Returns the table of the mirror.
    pub fn text(&self) -> String {
        let (url, capabilities) = (quoted(&self.cache.url()), list(self.capabilities()));
        let authority = self.authority.as_ref().map_or_else(String::new, |file| format!("ca = {}\n", quoted(file)));
        format!("[host.{url}]\ncapabilities = {capabilities}\n{authority}")
    }

    /// Returns the content of a file with this mirror in front of all others.
    fn file_with(&self, path: &Path, before: Option<&str>) -> Result<String, SetupError> {
        let Some(before) = before.filter(|text| !text.trim().is_empty()) else {
            return Ok(self.text());
        };
        let says = toml_text::read(path, before)?;
        let url = self.cache.url();
        if toml_text::get(&says, &["host", &url]).is_some() {
            let authority = self.authority.as_ref().map(|file| (vec!["host", &url, "ca"], Value::String(file.clone())));
            let capabilities = (vec!["host", url.as_str(), "capabilities"], list(self.capabilities()));
            let settings: Vec<_> = authority.into_iter().chain([capabilities]).collect();
            return toml_text::set(path, before, &settings, &self.text());
        }
        let ours: Table = toml_text::read(path, &self.text())?;
        let mut expected = says;
        let hosts = expected.entry("host").or_insert_with(|| Value::Table(Table::new()));
        if let (Some(hosts), Some(Value::Table(ours))) = (hosts.as_table_mut(), ours.get("host")) {
            hosts.extend(ours.clone());
        }
        // Mirrors are tried in the order in which they are written.
        toml_text::insert(path, before, "[host", &self.text(), &expected)
    }
}

/// Adds the files of the folder of registries. `is_for_all`: one file for all registries; a registry that has a folder
/// of its own goes before that.
pub fn add(
    plan: &mut Plan,
    found: &dyn Found,
    folder: &Path,
    mirror: &Mirror<'_>,
    registries: &[Registry],
    is_for_all: bool,
) -> Result<(), SetupError> {
    if is_for_all {
        add_file(plan, found, folder.join(DEFAULT), mirror)?;
    }
    for registry in registries {
        let names = own_names(&registry.name);
        let existing: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
        let mut is_there = false;
        for own in existing {
            let entries = found.names(&own)?;
            if entries.iter().any(|name| name == "hosts.toml") {
                add_file(plan, found, own, mirror)?;
                is_there = true;
            } else if let Some(name) = entries.first() {
                plan.warn(format!(
                    "{} has {name} and no hosts.toml: {} is pulled past the cache while the folder is there. With a hosts.toml there its certificates are no longer read by themselves; name them in that",
                    own.display(),
                    registry.name
                ));
                is_there = true;
            }
        }
        if !is_there && !is_for_all {
            add_file(plan, found, folder.join(&registry.name), mirror)?;
        }
    }
    Ok(())
}

fn add_file(plan: &mut Plan, found: &dyn Found, folder: PathBuf, mirror: &Mirror<'_>) -> Result<(), SetupError> {
    let path = folder.join("hosts.toml");
    let before = found.text(&path)?;
    let text = mirror.file_with(&path, before.as_deref())?;
    plan.add(path, text);
    Ok(())
}

/// The names of a registry's own folder (`hostPaths` in containerd).
fn own_names(registry: &str) -> Vec<String> {
    match registry.rsplit_once(':') {
        Some((host, port)) => vec![format!("{host}_{port}_"), registry.to_owned()],
        None => vec![registry.to_owned()],
    }
}
