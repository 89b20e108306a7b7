//! k3s and RKE2: `registries.yaml`, of which they make containerd's files at their start (docs.k3s.io, "Private
//! Registry Configuration"; `pkg/agent/containerd/config.go` of k3s). They send `ns`.

use std::path::PathBuf;

use super::yaml_text::{self, Section};
use super::{Found, Plan, SetupError, Version, Wish};

pub fn plan(wish: &Wish, found: &dyn Found) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let name = wish.target.client.name();
    let folder = PathBuf::from("/etc/rancher").join(name);
    let file = folder.join("registries.yaml");
    let before = found.text(&file)?.unwrap_or_default();
    let endpoint = format!("  endpoint:\n    - {}\n", quoted(&wish.cache.url()));
    let is_for_all = !wish.is_limited && wish.version.is_none_or(knows_wildcard);
    let names: Vec<String> = match is_for_all {
        true => vec!["*".to_owned()],
        false => wish.registries.iter().map(|registry| registry.name.clone()).collect(),
    };
    let mirrors = names.into_iter().map(|name| (name, endpoint.clone())).collect();
    let mut sections = vec![Section { name: "mirrors", entries: mirrors }];
    if let Some(authority) = plan.add_authority(&wish.cache, folder.join("larder-ca.crt")) {
        let tls = format!("  tls:\n    ca_file: {}\n", quoted(&authority));
        sections.push(Section { name: "configs", entries: vec![(wish.cache.host.clone(), tls)] });
    }
    let text = yaml_text::with_sections(&file, &before, &sections)?;
    if is_for_all {
        // An entry of a registry's own goes before "*".
        for own in yaml_text::keys(&before, "mirrors").iter().filter(|key| *key != "*") {
            plan.warn(format!(
                "{} has an entry for {own}, which goes before \"*\": its images come past the cache unless you add {} to its `endpoint`",
                file.display(),
                quoted(&wish.cache.url())
            ));
        }
        if wish.version.is_none() {
            plan.warn(
                "\"*\" is known from v1.26.15, v1.27.12, v1.28.8 and v1.29.3 on; for an older one add --client-version",
            );
        }
    }
    plan.add(file, text);
    plan.then(wish.target.reload());
    plan.then("Each node needs the files. Check it: crictl pull docker.io/library/hello-world:latest, then larder ls");
    Ok(plan)
}

/// Returns whether a version knows `"*"` (docs.k3s.io: "as of the March 2024 releases").
fn knows_wildcard(version: Version) -> bool {
    let first = match (version.0, version.1) {
        (1, ..=25) => return false,
        (1, 26) => 15,
        (1, 27) => 12,
        (1, 28) => 8,
        (1, 29) => 3,
        _ => 0,
    };
    version.2 >= first
}

/// Returns a text in double quotes, as YAML and JSON write it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
