//! Promise: the Helm chart renders to what Kubernetes takes, what it writes is a configuration that Larder takes, and each
//! of its values is documented. Helm 4 renders it (`tests/clients/chart.py`).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::delivery::file;
use crate::support::Larder;

/// Renders the chart as the release `shop` in the namespace `tools`.
fn rendered(values: &Value) -> Result<Vec<Value>, String> {
    rendered_text(&values.to_string())
}

/// The same with values as people write them.
fn rendered_text(values: &str) -> Result<Vec<Value>, String> {
    let python = file("target/clients/python/bin/python3");
    let mut command = Command::new(python);
    command.arg(file("tests/clients/chart.py")).arg(file("deploy/helm/larder"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("./test installs it");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(values.as_bytes()).expect("taken");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{values}: {}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    match told["error"].as_str() {
        Some(error) => Err(error.to_owned()),
        None => Ok(told["documents"].as_array().expect("a list").clone()),
    }
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

/// All that can be turned on.
fn all_of_it() -> Value {
    json!({
        "replicas": 3,
        "cluster": {"enabled": true, "tokenSecret": {"name": "token"}},
        "index": {"url": "postgres://larder@127.0.0.1/larder", "passwordSecret": {"name": "db"}},
        "tls": {"secretName": "mirror-tls"},
        "secrets": ["hub", "s3"],
        "config": "[storage.s3]\nbucket = \"larder\"\nendpoint = \"https://s3.example.com\"\naccess_key_id = \"me\"\n\
                   secret_access_key_file = \"/etc/larder/secrets/s3/secret-key\"\n[repository.\"docker.io\"]\nmax_age = \"5m\"\n[[repository.\"docker.io\".upstream]]\nurl = \
                   \"https://registry-1.docker.io\"\nusername = \"me\"\npassword_file = \"/etc/larder/secrets/hub/password\"",
        "metrics": {"enabled": true, "readers": ["10.0.0.0/8", "loopback"], "serviceMonitor": {"enabled": true}},
        "ingress": {"enabled": true, "host": "mirror.example.com", "tlsSecretName": "mirror-tls"},
        "networkPolicy": {"enabled": true},
        "service": {"type": "NodePort", "nodePort": 30500},
        "nodes": {"enabled": true, "tier": {"enabled": true}, "caSecretName": "ca", "registries": ["docker.io"]},
    })
}

#[test]
fn it_renders_to_what_kubernetes_takes() {
    let plain = rendered(&json!({})).expect("rendered");
    let kinds = |documents: &[Value]| {
        let mut kinds: Vec<_> =
            documents.iter().map(|document| document["kind"].as_str().expect("a kind").to_owned()).collect();
        kinds.sort();
        kinds
    };
    let version = &of_kind(&plain, "StatefulSet")[0]["metadata"]["labels"]["app.kubernetes.io/version"];
    assert_eq!(version, env!("CARGO_PKG_VERSION"), "the chart is that of this Larder");
    assert_eq!(kinds(&plain), ["ConfigMap", "Notes", "Service", "Service", "ServiceAccount", "StatefulSet"]);
    let all = rendered(&all_of_it()).expect("rendered");
    for kind in ["DaemonSet", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"] {
        assert_eq!(of_kind(&all, kind).len(), 1, "{kind}");
    }
    assert!(of_kind(&all, "Secret").is_empty(), "the one that is named is taken");
    let own = rendered(&json!({"replicas": 2, "cluster": {"enabled": true}, "index": {"url": "postgres://a@b/c"}}));
    let own = own.expect("rendered");
    let token = of_kind(&own, "Secret")[0]["data"]["token"].as_str().expect("a token").len();
    assert!(token >= 64, "48 letters and digits, in base64");
    // No pod may do more than it has to, or sees the tokens of the cluster.
    for documents in [&plain, &all] {
        for workload in of_kind(documents, "StatefulSet").into_iter().chain(of_kind(documents, "DaemonSet")) {
            let pod = &workload["spec"]["template"]["spec"];
            assert_eq!(pod["automountServiceAccountToken"], false);
            assert_eq!(pod["enableServiceLinks"], false);
            for container in pod["containers"].as_array().expect("containers") {
                let context = &container["securityContext"];
                assert_eq!(
                    (&context["readOnlyRootFilesystem"], &context["allowPrivilegeEscalation"]),
                    (&json!(true), &json!(false))
                );
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
            }
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_what_to_do() {
    for (values, part) in [
        (json!({"replicas": 2}), "cluster.enabled=true"),
        (json!({"cluster": {"enabled": true}}), "index.url"),
        (json!({"metrics": {"enabled": true}}), "metrics.readers"),
        (json!({"nodes": {"enabled": true}}), "nodes.url"),
        (json!({"ingress": {"enabled": true}}), "ingress.host"),
        (json!({"replica": 2}), "replica"),
        (json!({"persistence": {"siez": "1Gi"}}), "siez"),
        (json!({"nodes": {"client": "docker"}}), "client"),
        (json!({"index": {"url": "postgres://larder:secret@db/larder"}}), "url"),
    ] {
        let error = rendered(&values).expect_err("refused");
        assert!(error.contains(part), "{values}: {error}");
    }
}

#[test]
fn the_values_on_its_page_can_be_used() {
    let page = include_str!("../docs/helm.md");
    let blocks: Vec<_> = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 4);
    for block in blocks {
        let documents = rendered_text(block).unwrap_or_else(|error| panic!("{block}: {error}"));
        assert_eq!(of_kind(&documents, "StatefulSet").len(), 1);
    }
}

/// Writes a file that a secret would bring.
fn secret(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, text).expect("written");
}

/// Runs a command with the environment and files of a container; what would be at `/etc/larder` is in `folder`.
async fn run_as(container: &Value, folder: &Path, arguments: &[&str]) -> crate::support::Ran {
    let here = folder.to_str().expect("text");
    let place = |text: &str| text.replace("/etc/larder", here).replace("$(POD_NAME)", "shop-larder-0");
    let variables = container["env"].as_array().cloned().unwrap_or_default();
    let variables: BTreeMap<String, String> = variables
        .iter()
        .filter_map(|variable| Some((variable["name"].as_str()?.to_owned(), place(variable["value"].as_str()?))))
        .collect();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Larder::builder().prepare().run_in(folder, &variables, arguments).await
}

#[tokio::test]
async fn what_it_writes_is_a_configuration_that_larder_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    for (name, text) in [
        ("index/password", "secret"),
        ("cluster/token", "0123456789abcdef0123456789abcdef"),
        ("secrets/hub/password", "secret"),
        ("secrets/s3/secret-key", "secret"),
    ] {
        secret(here, name, text);
    }
    let certified = rcgen::generate_simple_self_signed(vec!["mirror.example.com".to_owned()]).expect("a certificate");
    secret(here, "tls/tls.crt", &certified.cert.pem());
    secret(here, "tls/tls.key", &certified.signing_key.serialize_pem());
    secret(here, "ca/ca.crt", &certified.cert.pem());
    for values in [json!({}), all_of_it()] {
        let documents = rendered(&values).expect("rendered");
        for map in of_kind(&documents, "ConfigMap") {
            let is_tier = map["metadata"]["name"].as_str().expect("a name").ends_with("-tier");
            let text = map["data"]["larder.toml"].as_str().expect("a text");
            secret(here, "config/larder.toml", &text.replace("/etc/larder", here.to_str().expect("text")));
            let kind = if is_tier { "DaemonSet" } else { "StatefulSet" };
            let containers = &of_kind(&documents, kind)[0]["spec"]["template"]["spec"]["containers"];
            let containers = containers.as_array().expect("containers");
            let container = containers.iter().find(|container| container["args"][0] == "serve").expect("a cache");
            let file = here.join("config/larder.toml");
            let checked = run_as(container, here, &["config", "check", "--config", file.to_str().expect("text")]).await;
            assert_eq!(checked.code, Some(0), "{checked:?}\n{text}");
            assert!(!checked.stderr.contains("warning"), "{checked:?}");
        }
    }
}

#[tokio::test]
async fn what_it_runs_on_nodes_writes_their_files_and_takes_them_back() {
    for (client, file) in [
        ("containerd", "etc/containerd/certs.d/docker.io/hosts.toml"),
        ("k3s", "etc/rancher/k3s/registries.yaml"),
        ("rke2", "etc/rancher/rke2/registries.yaml"),
        ("podman", "etc/containers/registries.conf.d"),
    ] {
        let values = json!({"nodes": {
            "enabled": true, "client": client, "url": "http://127.0.0.1:30500", "registries": ["docker.io"],
        }});
        let documents = rendered(&values).expect("rendered");
        let pod = &of_kind(&documents, "DaemonSet")[0]["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let node = tempfile::tempdir().expect("a folder");
        // Only what is mounted is there.
        for mount in container["volumeMounts"].as_array().expect("mounts") {
            let path = mount["mountPath"].as_str().expect("a path").strip_prefix("/host/").expect("of the node");
            std::fs::create_dir_all(node.path().join(path)).expect("made");
        }
        let root = format!("--root={}", node.path().display());
        let arguments =
            container["args"].as_array().expect("arguments").iter().map(|argument| argument.as_str().expect("text"));
        let arguments: Vec<_> =
            arguments.map(|argument| if argument.starts_with("--root=") { root.as_str() } else { argument }).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        let command = command.args(&arguments).env_clear().current_dir(node.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        // It tells what it has written, and stays.
        let mut told = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut told, &mut line).expect("a line");
        let written = node.path().join(file);
        crate::support::eventually("it is written", async || written.exists()).await;
        assert!(child.try_wait().expect("asked").is_none(), "it stays");
        let stopped = Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
        assert!(stopped.success());
        std::io::copy(&mut told, &mut std::io::sink()).expect("read");
        assert!(child.wait().expect("ended").success());
        assert!(
            !written.exists() || written.is_dir() && written.read_dir().expect("a folder").next().is_none(),
            "{client}"
        );
    }
}

/// The paths of all values, as `nodes.tier.port`.
fn paths(schema: &Value, path: &str, found: &mut Vec<String>) {
    match schema["properties"].as_object() {
        Some(properties) => properties.iter().for_each(|(key, below)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            paths(below, &path, found);
        }),
        None => found.push(path.to_owned()),
    }
}

#[test]
fn each_value_is_on_the_page() {
    let schema = std::fs::read_to_string(file("deploy/helm/larder/values.schema.json")).expect("readable");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let page = include_str!("../docs/helm.md");
    let mut all = Vec::new();
    paths(&schema, "", &mut all);
    assert!(all.len() > 60, "{all:?}");
    let missing: Vec<_> = all.iter().filter(|path| *path != "global" && !page.contains(&format!("`{path}`"))).collect();
    assert!(missing.is_empty(), "docs/helm.md says nothing of {missing:?}");
}
