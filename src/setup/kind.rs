//! kind: a configuration for a new cluster, whose nodes see a folder of this machine as containerd's folder of
//! registries (kind.sigs.k8s.io, "Configuration", `extraMounts` and `containerdConfigPatches`; the patch as in
//! "Local Registry" there). The nodes' `config.toml` is of version 2 or migrated from it.

use std::path::Path;

use super::hosts::{self, Mirror};
use super::{Found, Plan, SetupError, Version, Wish};

/// Where the nodes see the folder.
const IN_NODE: &str = "/etc/containerd/certs.d";
/// The version of containerd that knows the capability `referrers`.
const KNOWS_REFERRERS: Version = Version(2, 2, 0);

pub fn plan(wish: &Wish, found: &dyn Found) -> Result<Plan, SetupError> {
    let mut plan = Plan::default();
    let certs = wish.target.folder.join("certs.d");
    let host = &wish.cache.host;
    plan.add_authority(&wish.cache, certs.join(host).join("ca.crt"));
    let authority = wish.cache.authority.as_ref().map(|_| format!("{IN_NODE}/{host}/ca.crt"));
    let has_referrers = wish.version.is_some_and(|version| version >= KNOWS_REFERRERS);
    let mirror = Mirror { cache: &wish.cache, has_referrers, authority };
    hosts::add(&mut plan, found, &certs, &mirror, &wish.registries, !wish.is_limited)?;
    let file = wish.target.folder.join("kind.yaml");
    plan.add(&file, cluster(&certs));
    if wish.cache.is_loopback {
        plan.warn("a node of kind runs in a container, where a loopback address is its own: let Larder listen at an address that the nodes reach, and name it with --url, such as http://172.18.0.1:5000 (docker network inspect kind)");
    }
    plan.then(format!("kind create cluster --config {}", file.display()));
    plan.then("A cluster that exists does not change. For further nodes repeat `extraMounts` below each");
    Ok(plan)
}

fn cluster(certs: &Path) -> String {
    let folder = serde_json::Value::from(certs.display().to_string());
    format!(
        "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
containerdConfigPatches:
  - |-
    [plugins.\"io.containerd.grpc.v1.cri\".registry]
      config_path = \"{IN_NODE}\"
nodes:
  - role: control-plane
    extraMounts:
      - hostPath: {folder}
        containerPath: {IN_NODE}
        readOnly: true
"
    )
}
