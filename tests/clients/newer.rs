//! Clients of today that no Debian package brings: `./test` installs them from Python's and Node's registries.
//!
//! Each pulls by both doors with all there, then without fetching anything again, and then with the upstream gone; what
//! it has written is the upstream's, byte for byte.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    artifacts::{Files, chart, files, image, template},
    process::{Failure, Invocation, program},
    pulls,
    registry::Registry,
    through_proxy,
};

/// Where a client finds the upstream's names.
struct Place {
    host: String,
    /// What is before a name.
    prefix: &'static str,
    /// The proxy's URL and the authority to trust.
    proxy: Option<(String, PathBuf)>,
}

/// A client.
#[derive(Clone, Copy)]
enum Client {
    /// One of `python/pull.py`, by its name there.
    Python(&'static str),
    /// docker-registry-client.
    Node,
    /// The command line of Dev Containers, which applies a template.
    DevContainers,
}

impl Client {
    /// Pulls into a directory.
    async fn pull(self, place: &Place, name: &str, tag: &str, into: &Path) -> Result<(), Failure> {
        let scheme = if place.proxy.is_some() { "https" } else { "http" };
        let (name, into_path) = (format!("{}{name}", place.prefix), into.to_str().expect("temporary paths are UTF-8"));
        let what = [scheme, &place.host, &name, tag, into_path];
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let path = |path: PathBuf| path.into_os_string().into_string().expect("paths are UTF-8");
        let home = TempDir::new().expect("a temporary directory");
        let invocation = match self {
            Self::Python(client) => {
                let script = path(own.join("python/pull.py"));
                let arguments = [&[script.as_str(), client], &what[..]].concat();
                Invocation::new(&installed("python/bin/python3"), arguments)
            }
            Self::Node => {
                let script = path(own.join("node/pull.js"));
                let client = path(installed("node/node_modules/docker-registry-client"));
                let arguments = [&[script.as_str(), &client], &what[..]].concat();
                Invocation::new(&program("node", "npm"), arguments)
            }
            Self::DevContainers => {
                let command = path(installed("node/node_modules/@devcontainers/cli/devcontainer.js"));
                // It takes plain HTTP from this name alone.
                let host = place.host.replace("127.0.0.1", "localhost");
                let template = format!("{host}/{name}:{tag}");
                let temporary = path(home.path().join("tmp"));
                let apply = ["templates", "apply", "--tmp-dir", &temporary, "-w", into_path, "-t", &template];
                Invocation::new(&program("node", "npm"), [&[command.as_str()], &apply[..]].concat())
            }
        };
        let (proxy, authority) = match &place.proxy {
            Some((proxy, authority)) => (proxy.as_str(), authority.as_path()),
            None => ("", Path::new("")),
        };
        let trust = ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "DRCA_CACERTS", "NODE_EXTRA_CA_CERTS"];
        let through = ["HTTPS_PROXY", "https_proxy"];
        // What the machine has for its own use.
        let others = ["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];
        let environment = trust.map(|name| (name, authority)).into_iter();
        environment
            .chain(through.map(|name| (name, Path::new(proxy))))
            .chain(others.map(|name| (name, Path::new(""))))
            .chain([("HOME", home.path())])
            .fold(invocation, |invocation, (name, value)| invocation.env(name, value))
            .run()
            .await
            .map(drop)
    }

    /// As [`Client::pull`], and it is what it is in the registry.
    async fn pull_all(self, place: &Place, name: &str, tag: &str, expected: &Files) {
        let into = TempDir::new().expect("a temporary directory");
        self.pull(place, name, tag, into.path()).await.unwrap();
        let mut written = Files::new();
        read(into.path(), into.path(), &mut written);
        let sizes = |files: &Files| files.iter().map(|(path, bytes)| (path.clone(), bytes.len())).collect::<Vec<_>>();
        assert_eq!(sizes(&written), sizes(expected));
        assert!(written == *expected, "other bytes than the upstream's");
    }
}

/// A file that `./test` has installed.
///
/// # Panics
/// When it has not.
fn installed(path: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients").join(path);
    assert!(file.exists(), "`{}` is missing; ./test installs it", file.display());
    file
}

/// Adds all files below a directory.
fn read(root: &Path, directory: &Path, files: &mut Files) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("a directory").path();
        if path.is_dir() {
            read(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("below it").to_str().expect("UTF-8").to_owned();
            files.insert(name, fs::read(&path).expect("a file"));
        }
    }
}

/// Pulls by the registry door, by prefix.
async fn by_the_registry_door(client: Client, name: &str, tag: &str, prepare: impl AsyncFn(&Registry) -> Files) {
    let mut scene = pulls::Scene::set("").await;
    let expected = prepare(scene.registry()).await;
    let place = Place { host: scene.mirror(), prefix: "docker.io/", proxy: None };
    let asked = format!("/v2/{name}/manifests/{tag}");
    let pull = async || client.pull_all(&place, name, tag, &expected).await;
    scene.pull_cold_then_warm_then_without_upstream(&asked, pull).await;
}

/// Pulls by the proxy door, by the registry's own name.
async fn by_the_proxy_door(client: Client, name: &str, tag: &str, prepare: impl AsyncFn(&Registry) -> Files) {
    let mut scene = through_proxy::Scene::set().await;
    let expected = prepare(scene.registry()).await;
    let trust = TempDir::new().expect("a temporary directory");
    scene.trust(trust.path());
    let proxy = Some((scene.proxy(), trust.path().join("ca.crt")));
    let place = Place { host: scene.host(), prefix: "", proxy };
    let pull = async || client.pull_all(&place, name, tag, &expected).await;
    scene.pull_cold_then_warm_then_without_upstream(pull).await;
}

/// Tests of clients by both doors: client, and name and tag of what is pushed.
macro_rules! clients {
    ($($module:ident: $client:expr, $name:literal, $tag:literal, $prepare:ident;)*) => {
        $(mod $module {
            use super::*;

            #[tokio::test]
            async fn pulls_by_the_registry_door_and_again_with_the_upstream_gone() {
                by_the_registry_door($client, $name, $tag, $prepare).await;
            }

            #[tokio::test]
            async fn pulls_by_the_proxy_door_and_again_with_the_upstream_gone() {
                by_the_proxy_door($client, $name, $tag, $prepare).await;
            }
        })*
    };
}

clients! {
    oras_py: Client::Python("oras"), "library/files", "1", files;
    python_dxf: Client::Python("dxf"), "library/shelf", "1", image;
    docker_registry_client_async: Client::Python("drca"), "library/shelf", "1", image;
    helm: Client::Python("helm"), "library/pantry", "1.0.0", chart;
    docker_registry_client: Client::Node, "library/shelf", "1", image;
    dev_containers: Client::DevContainers, "library/kitchen", "1", template;
}
