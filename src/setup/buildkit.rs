//! BuildKit: `buildkitd.toml` (docs/buildkitd.toml.md and `util/resolver` of moby/buildkit), or buildx's file for new
//! builders (`util/confutil/config.go` of docker/buildx). BuildKit sends `ns`.

use std::path::PathBuf;

use toml::{Table, Value};

use super::toml_text::{self, get, list, quoted};
use super::{Found, Owner, Plan, SetupError, Wish};

pub fn plan(wish: &Wish, found: &dyn Found) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let (folder, name) = match (&wish.target.buildx, &wish.target.owner) {
        (Some(folder), _) => (folder.clone(), "buildkitd.default.toml"),
        (None, Owner::Machine) => (PathBuf::from("/etc/buildkit"), "buildkitd.toml"),
        (None, Owner::User { config, .. }) => (config.join("buildkit"), "buildkitd.toml"),
    };
    let file = folder.join(name);
    let before = found.text(&file)?.unwrap_or_default();
    let says = toml_text::read(&file, &before)?;
    let host = wish.cache.host.as_str();
    let authority = plan.add_authority(&wish.cache, folder.join("larder-ca.crt"));

    let mut settings = Vec::new();
    for registry in &wish.registries {
        let keys = vec!["registry", registry.name.as_str(), "mirrors"];
        settings.push((keys.clone(), with_first(&says, &keys, host)));
    }
    if !wish.cache.is_tls {
        settings.push((vec!["registry", host, "http"], Value::Boolean(true)));
    }
    if let Some(authority) = &authority {
        let keys = vec!["registry", host, "ca"];
        settings.push((keys.clone(), with_first(&says, &keys, authority)));
    }
    let add = settings.iter().map(|(keys, value)| format!("[registry.{}]\n{} = {value}\n", quoted(keys[1]), keys[2]));
    let text = toml_text::set(&file, &before, &settings, &add.collect::<String>())?;
    plan.add(file.clone(), text);
    match &wish.target.buildx {
        Some(_) => {
            plan.then("docker buildx create --use --name cached (new builders take the file; a builder that exists keeps what it was made with)");
            if wish.cache.is_loopback {
                plan.warn("a builder runs in a container, where a loopback address is its own: name the cache with --url, or make the builder with --driver-opt network=host");
            }
        }
        None => plan.then(wish.target.reload()),
    }
    Ok(plan)
}

/// Returns the list with this text, in front if it was not there.
fn with_first(says: &Table, keys: &[&str], text: &str) -> Value {
    let known = get(says, keys).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let known: Vec<_> = known.collect();
    match known.contains(&text) {
        true => list(known),
        false => list([text].into_iter().chain(known)),
    }
}
