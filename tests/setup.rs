//! `larder setup` shows, writes and takes back what makes a client pull through the cache, and breaks nothing that is
//! there. That the clients really do: `clients/set_up.rs`.

mod versions;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::larder::Ran;
use crate::support::{Authority, Larder};

const URL: &str = "http://10.0.0.7:5000";
const CLIENTS: [&str; 7] = ["docker", "containerd", "podman", "buildkit", "k3s", "rke2", "kind"];

/// The root of a client's file system, and a Larder whose commands work on it.
struct Scene {
    larder: Larder,
    root: TempDir,
}

/// What there is to a file: mode, owner, group, and content.
type Tree = BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)>;

impl Scene {
    fn set(files: &[(&str, &str)]) -> Self {
        let scene = Self { larder: Larder::builder().prepare(), root: TempDir::new().expect("a directory") };
        files.iter().for_each(|(path, text)| scene.put(path, text));
        scene
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}; {:?}", self.names()))
    }

    fn names(&self) -> Vec<String> {
        self.tree().into_keys().map(|path| path.display().to_string()).collect()
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        read(self.root.path(), self.root.path(), &mut tree);
        tree
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let root = self.root.path().to_str().expect("temporary paths are UTF-8");
        self.larder.run(&[&["setup"], arguments, &["--root", root]].concat()).await
    }

    async fn fine(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        ran.stdout
    }

    async fn write(&self, arguments: &[&str]) -> String {
        self.fine(&[arguments, &["--write", "--url", URL]].concat()).await
    }

    /// Nothing is written, and the reason is told.
    async fn refused(&self, arguments: &[&str], reasons: &[&str]) {
        let before = self.tree();
        let ran = self.run(&[arguments, &["--write", "--url", URL]].concat()).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        for reason in reasons {
            assert!(ran.stderr.contains(reason), "no {reason:?} in {ran:?}");
        }
        assert_eq!(self.tree(), before, "something was written");
    }
}

fn read(root: &Path, folder: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let is = fs::symlink_metadata(&path).expect("there");
        let content = match (is.is_dir(), is.is_symlink()) {
            (true, _) => Vec::new(),
            (_, true) => fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes(),
            _ => fs::read(&path).expect("readable"),
        };
        let name = path.strip_prefix(root).expect("below it").to_owned();
        tree.insert(name, (is.mode(), is.uid(), is.gid(), content));
        if is.is_dir() {
            read(root, &path, tree);
        }
    }
}

#[tokio::test]
async fn each_client_is_shown_first_then_set_up_once_and_taken_back_to_the_byte() {
    for client in CLIENTS {
        let scene = Scene::set(&[]);
        let shown = scene.fine(&[client, "--url", URL]).await;
        assert!(shown.contains("nothing is written yet: add --write"), "{shown}");
        assert_eq!(scene.names(), Vec::<String>::new(), "{client}");

        scene.write(&[client]).await;
        let written = scene.tree();
        for (path, (mode, _, _, content)) in &written {
            let is_note = path.to_string_lossy().contains("setup");
            let (content, mode) = (String::from_utf8_lossy(content), mode & 0o777);
            assert!(is_note || shown.contains(&*content), "{client} did not show {}", path.display());
            assert!(mode == 0o644 || mode == 0o755, "{} has mode {mode:o}", path.display());
        }

        let again = scene.write(&[client]).await;
        assert!(again.contains("nothing to do"), "{again}");
        assert_eq!(scene.tree(), written, "{client}: the second time changes nothing");

        scene.fine(&[client, "--undo"]).await;
        assert_eq!(scene.names(), Vec::<String>::new(), "{client}");
        let again = scene.fine(&[client, "--undo"]).await;
        assert!(again.contains("nothing to undo"), "{again}");
    }
}

/// For each client: its file as somebody has written it, and as it is then.
const EXISTING: [(&str, &str, &str, &str); 6] = [
    (
        "docker",
        "etc/docker/daemon.json",
        "{\n    \"log-driver\": \"local\",\n    \"registry-mirrors\": [\"https://old.example\"]\n}",
        "{\n    \"insecure-registries\": [\"10.0.0.7:5000\"],\n    \"log-driver\": \"local\",\n    \"registry-mirrors\": [\"http://10.0.0.7:5000\", \"https://old.example\"]\n}",
    ),
    (
        "containerd",
        "etc/containerd/config.toml",
        "# by kubeadm\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = 'x' # keep\n",
        "# by kubeadm\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = 'x' # keep\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
    ),
    (
        "containerd",
        "etc/containerd/certs.d/docker.io/hosts.toml",
        "server = \"https://x\" # mine\n[host.\"https://y\"]\n",
        "server = \"https://x\" # mine\n[host.\"http://10.0.0.7:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n\n[host.\"https://y\"]\n",
    ),
    (
        "buildkit",
        "etc/buildkit/buildkitd.toml",
        "debug = true # yes\n[registry.\"docker.io\"]\n  mirrors = [\"old.example\"] # old\n",
        "debug = true # yes\n[registry.\"docker.io\"]\n  mirrors = [\"10.0.0.7:5000\", \"old.example\"] # old\n\n[registry.\"10.0.0.7:5000\"]\nhttp = true\n",
    ),
    (
        "k3s",
        "etc/rancher/k3s/registries.yaml",
        "# ours\nmirrors:\n    docker.io: # hub\n        endpoint: [\"https://x\"]\n",
        "# ours\nmirrors:\n    \"docker.io\":\n      endpoint:\n        - \"http://10.0.0.7:5000\"\n    docker.io: # hub\n",
    ),
    (
        "podman",
        "etc/containers/registries.conf.d/larder.conf",
        "# by hand\n",
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"10.0.0.7:5000/docker.io\"\ninsecure = true\n",
    ),
];

#[tokio::test]
async fn what_a_file_says_stays_with_its_owner_and_mode_and_comes_back_to_the_byte() {
    for (client, path, before, after) in EXISTING {
        if client == "k3s" {
            continue;
        }
        let scene = Scene::set(&[(path, before)]);
        fs::set_permissions(scene.path(path), fs::Permissions::from_mode(0o640)).expect("changed");
        std::os::unix::fs::chown(scene.path(path), Some(1234), Some(4321)).expect("the tests run as root");
        let tree = scene.tree();
        scene.write(&[client, "--registry", "docker.io"]).await;
        assert_eq!(scene.text(path), after, "{client}");
        let is = fs::metadata(scene.path(path)).expect("there");
        assert_eq!((is.mode() & 0o777, is.uid(), is.gid()), (0o640, 1234, 4321), "{client}");
        assert_eq!(scene.text(&format!("{path}.larder-backup")), before);

        let written = scene.tree();
        assert!(scene.write(&[client, "--registry", "docker.io"]).await.contains("nothing to do"));
        assert_eq!(scene.tree(), written, "{client}");
        scene.fine(&[client, "--undo"]).await;
        assert_eq!(scene.tree(), tree, "{client}");
    }
}

#[tokio::test]
async fn an_entry_of_k3s_for_all_registries_comes_beside_those_that_are_there() {
    let path = "etc/rancher/k3s/registries.yaml";
    let scene = Scene::set(&[(path, EXISTING[4].2)]);
    let tree = scene.tree();
    let ran = scene.run(&["k3s", "--url", URL, "--write"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let expected = "# ours\nmirrors:\n    \"*\":\n      endpoint:\n        - \"http://10.0.0.7:5000\"\n    docker.io: # hub\n        endpoint: [\"https://x\"]\n";
    assert_eq!(scene.text(path), expected);
    assert!(ran.stderr.contains("an entry for docker.io, which goes before \"*\""), "{ran:?}");
    scene.fine(&["k3s", "--undo"]).await;
    assert_eq!(scene.tree(), tree);
}

#[tokio::test]
async fn a_file_that_cannot_be_changed_safely_is_left_and_it_says_what_to_do() {
    for (client, path, text, reasons) in [
        (
            "docker",
            "etc/docker/daemon.json",
            "{ \"debug\": true, }",
            &["/etc/docker/daemon.json", "trailing comma"][..],
        ),
        ("docker", "etc/docker/daemon.json", "{ \"registry-mirrors\": \"x\" }", &["`registry-mirrors` is no list"]),
        ("containerd", "etc/containerd/config.toml", "version = 2\n[plugins\n", &["config.toml cannot be read"]),
        (
            "containerd",
            "etc/containerd/config.toml",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://x\"]\n",
            &["it has mirrors of [plugins.\"io.containerd.grpc.v1.cri\".registry]", "take it out"],
        ),
        (
            "containerd",
            "etc/containerd/config.toml",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.x.tls]\nca_file = \"/x\"\n",
            &["configs.….tls"],
        ),
        (
            "buildkit",
            "etc/buildkit/buildkitd.toml",
            "registry = { \"docker.io\" = { http = true } }\n",
            &["add this by hand", "mirrors = [\"10.0.0.7:5000\"]"],
        ),
        (
            "k3s",
            "etc/rancher/k3s/registries.yaml",
            "mirrors: {}\n",
            &["add this by hand", "      - \"http://10.0.0.7:5000\""],
        ),
        (
            "rke2",
            "etc/rancher/rke2/registries.yaml",
            "mirrors:\n  \"*\":\n    endpoint: []\n",
            &["another entry for \"*\""],
        ),
        ("rke2", "etc/rancher/rke2/registries.yaml", "mirrors: [\n", &["registries.yaml cannot be read"]),
        ("docker", "etc/docker/certs.d/_default/hosts.toml", "[host\n", &["hosts.toml cannot be read"]),
    ] {
        Scene::set(&[(path, text)]).refused(&[client], reasons).await;
    }
}

#[tokio::test]
async fn another_address_takes_the_place_of_the_first_and_undo_still_brings_back_what_was_there() {
    let scene = Scene::set(&[("etc/docker/daemon.json", "{ \"debug\": true }")]);
    let tree = scene.tree();
    scene.write(&["docker"]).await;
    scene.fine(&["docker", "--write", "--url", "http://10.0.0.8:5000"]).await;
    let texts = scene.text("etc/docker/daemon.json") + &scene.text("etc/docker/certs.d/_default/hosts.toml");
    assert!(texts.contains("10.0.0.8") && !texts.contains("10.0.0.7"), "{texts}");
    // What is not needed any more goes.
    scene.fine(&["docker", "--write", "--url", URL, "--client-version", "27.0", "--registry", "docker.io"]).await;
    assert!(!scene.path("etc/docker/certs.d/_default/hosts.toml").exists());
    assert!(scene.text("etc/docker/daemon.json").contains("10.0.0.7"));
    scene.fine(&["docker", "--undo"]).await;
    assert_eq!(scene.tree(), tree);
}

#[tokio::test]
async fn what_somebody_has_changed_since_is_not_taken_back_until_it_is_as_it_was() {
    let (json, hosts) = ("etc/docker/daemon.json", "etc/docker/certs.d/_default/hosts.toml");
    let scene = Scene::set(&[(json, "{ \"debug\": true }")]);
    let tree = scene.tree();
    scene.write(&["docker"]).await;
    let (ours, our_hosts) = (scene.text(json), scene.text(hosts));
    scene.put(json, &ours.replace("true", "false"));
    scene.put(hosts, "# mine\n");
    scene.put("etc/docker/certs.d/note", "of somebody else");
    let ran = scene.run(&["docker", "--undo"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("left /etc/docker/daemon.json: it was changed since; from before it is /etc/docker/daemon.json.larder-backup"), "{ran:?}");
    assert!(ran.stdout.contains("left /etc/docker/certs.d/_default/hosts.toml: it was changed since"), "{ran:?}");
    assert!(scene.text(json).contains("false") && scene.text(hosts) == "# mine\n");

    scene.put(json, &ours);
    scene.put(hosts, &our_hosts);
    let said = scene.fine(&["docker", "--undo"]).await;
    assert!(said.contains("left /etc/docker/certs.d: setup had made it, and something else is in it now"), "{said}");
    fs::remove_dir_all(scene.path("etc/docker/certs.d")).expect("removed");
    assert_eq!(scene.tree(), tree);
}

#[tokio::test]
async fn nothing_outside_the_root_is_written() {
    let outside = TempDir::new().expect("a directory");
    let scene = Scene::set(&[]);
    fs::create_dir_all(scene.path("etc")).expect("made");
    symlink(outside.path(), scene.path("etc/docker")).expect("linked");
    fs::create_dir_all(scene.path("data")).expect("made");
    symlink("/data/daemon.json", scene.path("data/link")).expect("linked");
    scene.write(&["docker"]).await;
    assert_eq!(fs::read_dir(outside.path()).expect("a folder").count(), 0);
    // The link means what it means for who has this root.
    let inside = outside.path().strip_prefix("/").expect("absolute").join("daemon.json");
    assert!(scene.root.path().join(inside).exists(), "{:?}", scene.names());
}

#[tokio::test]
async fn a_link_to_a_file_stays_a_link() {
    let scene = Scene::set(&[("data/daemon.json", "{}")]);
    fs::create_dir_all(scene.path("etc/docker")).expect("made");
    symlink("../../data/daemon.json", scene.path("etc/docker/daemon.json")).expect("linked");
    let tree = scene.tree();
    scene.write(&["docker"]).await;
    assert!(scene.path("etc/docker/daemon.json").is_symlink());
    assert!(scene.text("data/daemon.json").contains(URL));
    scene.fine(&["docker", "--undo"]).await;
    assert_eq!(scene.tree(), tree);
}

#[tokio::test]
async fn who_may_not_write_is_told_the_file_and_what_helps() {
    let root = TempDir::new().expect("a directory");
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("changed");
    let larder = Larder::builder().through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]).prepare();
    fs::set_permissions(larder.home(), fs::Permissions::from_mode(0o755)).expect("changed");
    let root_path = root.path().to_str().expect("temporary paths are UTF-8");
    let ran = larder.run(&["setup", "docker", "--root", root_path, "--url", URL, "--write"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("/etc: permission denied") && ran.stderr.contains("sudo"), "{ran:?}");
    assert_eq!(fs::read_dir(root.path()).expect("a folder").count(), 0);

    // To be shown it needs no rights, also where only hints are in folders of others.
    fs::create_dir_all(root.path().join("root/.config/containers")).expect("made");
    fs::set_permissions(root.path().join("root"), fs::Permissions::from_mode(0o700)).expect("changed");
    for client in CLIENTS {
        let ran = larder.run(&["setup", client, "--root", root_path, "--url", URL]).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[tokio::test]
async fn the_address_is_that_of_the_configuration_and_it_says_which() {
    let show = async |config: &str, arguments: &[&str]| {
        let larder = Larder::builder().config(config).prepare();
        let root = TempDir::new().expect("a directory");
        let root = root.path().to_str().expect("temporary paths are UTF-8");
        larder.run(&[&["setup", "podman", "--json", "--root", root], arguments].concat()).await
    };
    let public = "[server]\npublic_url = \"https://mirror.example.com\"";
    let json = show(public, &[]).await.json();
    assert_eq!((&json["url"], &json["url_from"]), (&"https://mirror.example.com".into(), &"server.public_url".into()));
    assert!(json.to_string().contains("--ca FILE") && !json.to_string().contains("insecure"), "{json}");
    let json = show(public, &["--url", URL]).await.json();
    assert_eq!((&json["url"], &json["url_from"]), (&URL.into(), &"--url".into()));
    let json = show(public, &["--url", "http://127.0.0.1:5000"]).await.json();
    assert!(json["warnings"][0].as_str().expect("a text").contains("a client elsewhere needs another"), "{json}");

    let ran = show("[server]\nlisten = \"127.0.0.1:0\"", &[]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stdout.contains("leaves the port open; name the cache with --url"), "{ran:?}");
    for (arguments, reason) in [
        (&["--url", "10.0.0.7:5000"][..], "write for example https://"),
        (&["--url", URL, "--registry", "quay.oi"], "no repository is for it; there are docker.io, "),
        (&["--url", URL, "--ca", "/nowhere"], "is plain HTTP"),
        (&["--url", "https://mirror.example.com", "--ca", "/nowhere"], "--ca /nowhere: No such file"),
        (&["--url", URL, "--buildx"], "--buildx is for buildkit"),
    ] {
        let ran = show("", arguments).await;
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.json()["error"].as_str().expect("a text").contains(reason), "{reason}: {ran:?}");
    }
}

#[tokio::test]
async fn a_loopback_address_is_warned_of_where_the_client_is_elsewhere() {
    for (arguments, words) in [
        (&["kind"][..], "a node of kind runs in a container"),
        (&["buildkit", "--buildx"], "--driver-opt network=host"),
        (&["k3s"], "a client elsewhere needs another"),
    ] {
        let scene = Scene::set(&[]);
        for (url, is_warned) in [("http://127.0.0.1:5000", true), ("http://localhost:5000", true), (URL, false)] {
            let ran = scene.run(&[arguments, &["--url", url]].concat()).await;
            assert_eq!(ran.stderr.contains(words), is_warned, "{url}: {ran:?}");
        }
    }
}

#[tokio::test]
async fn the_listening_address_is_used_where_nothing_else_is_said() {
    let folder = TempDir::new().expect("a directory");
    let run = async |listen: &str| {
        let root = folder.path().join("root");
        fs::create_dir_all(&root).expect("made");
        let root = root.to_str().expect("temporary paths are UTF-8");
        let environment = [("LARDER_SERVER__LISTEN", listen)];
        let larder = Larder::builder().prepare();
        larder.run_in(folder.path(), &environment, &["setup", "buildkit", "--json", "--root", root]).await.json()
    };
    let json = run("10.1.2.3:5000").await;
    assert_eq!((&json["url"], &json["url_from"]), (&"http://10.1.2.3:5000".into(), &"server.listen".into()));
    let json = run("0.0.0.0:5000").await;
    assert_eq!(json["url"], "http://127.0.0.1:5000");
    assert!(json["warnings"].to_string().contains("listens at all addresses"), "{json}");
    assert!(json["warnings"].to_string().contains("there is no larder.toml here"), "{json}");
}

#[tokio::test]
async fn the_registries_are_those_of_the_configuration() {
    let config = "[server]\nbuiltin_repositories = false\n[repository.\"hub\"]\nnamespace = [\"docker.io\", \"index.docker.io\"]\n[[repository.\"hub\".upstream]]\nurl = \"https://registry-1.docker.io\"\n[repository.\"acme\"]\nnamespace = \"registry.acme.example:5000\"\n[[repository.\"acme\".upstream]]\nurl = \"https://registry.acme.example:5000\"";
    let larder = Larder::builder().config(config).prepare();
    let root = TempDir::new().expect("a directory");
    let path = root.path().to_str().expect("temporary paths are UTF-8");
    let ran = larder.run(&["setup", "podman", "--root", path, "--url", URL, "--write"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let text = fs::read_to_string(root.path().join("etc/containers/registries.conf.d/larder.conf")).expect("written");
    let says: toml::Table = text.parse().expect("TOML");
    let registries = says["registry"].as_array().expect("a list");
    let of = |at: usize| (registries[at]["prefix"].as_str(), registries[at]["mirror"][0]["location"].as_str());
    assert_eq!(registries.len(), 2, "{text}");
    assert_eq!(of(0), (Some("docker.io"), Some("10.0.0.7:5000/hub")));
    assert_eq!(of(1), (Some("registry.acme.example:5000"), Some("10.0.0.7:5000/acme")));
}

#[tokio::test]
async fn podman_keeps_what_another_file_says_of_a_registry() {
    let other = "[[registry]]\nlocation = \"ghcr.io\"\nblocked = true\n[[registry]]\nlocation = \"quay.io\"\n[[registry]]\nprefix = \"docker.io/acme\"\nlocation = \"x.example\"\n";
    let scene = Scene::set(&[("etc/containers/registries.conf.d/50-mine.conf", other)]);
    let ran = scene.run(&["podman", "--url", URL, "--write"]).await;
    let text = scene.text("etc/containers/registries.conf.d/larder.conf");
    assert!(!text.contains("ghcr.io") && text.contains("quay.io"), "{text}");
    assert!(ran.stderr.contains("50-mine.conf has a [[registry]] for ghcr.io"), "{ran:?}");
    assert!(ran.stderr.contains("location = \"10.0.0.7:5000/ghcr.io\""), "{ran:?}");
    assert!(ran.stderr.contains("50-mine.conf has a [[registry]] for docker.io/acme, which goes before"), "{ran:?}");
}

#[tokio::test]
async fn a_private_authority_goes_where_each_client_looks_for_it_without_its_key() {
    let home = TempDir::new().expect("a directory");
    let authority = Authority::new(home.path(), "ours");
    let certificate = fs::read_to_string(authority.file()).expect("written");
    let certificate = certificate.replace("\r\n", "\n");
    let both = home.path().join("both.pem");
    fs::write(&both, format!("{certificate}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
        .expect("written");
    let ca = both.to_str().expect("temporary paths are UTF-8");
    let host = "mirror.example.com:5443";
    let url = format!("https://{host}");
    for (client, file, named_in) in [
        ("docker", format!("etc/docker/certs.d/{host}/ca.crt"), Some("etc/docker/certs.d/_default/hosts.toml")),
        (
            "containerd",
            format!("etc/containerd/certs.d/{host}/ca.crt"),
            Some("etc/containerd/certs.d/_default/hosts.toml"),
        ),
        ("podman", format!("etc/containers/certs.d/{host}/ca.crt"), None),
        ("buildkit", "etc/buildkit/larder-ca.crt".to_owned(), Some("etc/buildkit/buildkitd.toml")),
        ("k3s", "etc/rancher/k3s/larder-ca.crt".to_owned(), Some("etc/rancher/k3s/registries.yaml")),
        ("rke2", "etc/rancher/rke2/larder-ca.crt".to_owned(), Some("etc/rancher/rke2/registries.yaml")),
        ("kind", format!("larder-kind/certs.d/{host}/ca.crt"), None),
    ] {
        let scene = Scene::set(&[]);
        scene.fine(&[client, "--write", "--url", &url, "--ca", ca]).await;
        assert_eq!(scene.text(&file), certificate, "{client}");
        if let Some(named_in) = named_in {
            let text = scene.text(named_in);
            assert!(text.contains(&format!("\"/{file}\"")), "{client}: {text}");
            assert!(!text.contains("http = true") && !text.contains("insecure"), "{client}: {text}");
        }
        scene.fine(&[client, "--undo"]).await;
        assert_eq!(scene.names(), Vec::<String>::new(), "{client}");
    }
    let hosts = Scene::set(&[]);
    hosts.fine(&["kind", "--write", "--url", &url, "--ca", ca]).await;
    let text = hosts.text("larder-kind/certs.d/_default/hosts.toml");
    assert!(text.contains(&format!("ca = \"/etc/containerd/certs.d/{host}/ca.crt\"")), "{text}");
}

#[tokio::test]
async fn the_authority_at_the_end_of_the_caches_own_chain_goes_to_clients() {
    let home = TempDir::new().expect("a directory");
    let authority = Authority::new(home.path(), "ours");
    let signed = authority.issue("mirror.example.com");
    let of_ours = fs::read_to_string(authority.file()).expect("written");
    let leaf = fs::read_to_string(&signed.certificate).expect("written");
    for (chain, public, authority) in [
        (leaf.clone() + &of_ours, true, Some(&of_ours)),
        // A public authority is not in the chain.
        (leaf.clone(), true, None),
        (leaf, false, None),
    ] {
        fs::write(home.path().join("chain.pem"), chain).expect("written");
        let public_url = if public { "public_url = \"https://mirror.example.com\"\n" } else { "" };
        let config = format!(
            "[server]\n{public_url}[server.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n",
            home.path().join("chain.pem").display(),
            signed.key.display()
        );
        let larder = Larder::builder().config(config).prepare();
        let root = TempDir::new().expect("a directory");
        let root = root.path().to_str().expect("temporary paths are UTF-8");
        let ran = larder.run(&["setup", "podman", "--json", "--root", root]).await;
        if !public {
            // No address tells the name that the certificate is for.
            assert_eq!(ran.code, Some(2), "{ran:?}");
            assert!(ran.stdout.contains("set server.public_url"), "{ran:?}");
            continue;
        }
        let json = ran.json();
        let files = json["files"].as_array().expect("a list");
        let path = "/etc/containers/certs.d/mirror.example.com/ca.crt";
        let written = files.iter().find(|file| file["path"] == path).map(|file| file["content"].as_str());
        let expected = authority.map(|text| text.replace("\r\n", "\n"));
        assert_eq!(written.flatten(), expected.as_deref(), "{json}");
        assert_eq!(json["warnings"].to_string().contains("--ca FILE"), expected.is_none(), "{json}");
    }
}

#[tokio::test]
async fn a_user_gets_files_of_his_own() {
    let home = TempDir::new().expect("a directory");
    let root = TempDir::new().expect("a directory");
    let (home, root_path) = (home.path(), root.path().to_str().expect("temporary paths are UTF-8"));
    let larder = Larder::builder().prepare();
    for (client, option, file) in [
        ("docker", "--user", ".config/docker/daemon.json"),
        ("podman", "--user", ".config/containers/registries.conf.d/larder.conf"),
        ("buildkit", "--user", ".config/buildkit/buildkitd.toml"),
        ("buildkit", "--buildx", ".docker/buildx/buildkitd.default.toml"),
    ] {
        let arguments = ["setup", client, option, "--root", root_path, "--url", URL];
        let environment = [("HOME", "/home/me")];
        let ran = larder.run_in(home, &environment, &[&arguments[..], &["--write"]].concat()).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(root.path().join("home/me").join(file).exists(), "{ran:?}");
        assert!(!root.path().join("etc").exists() && !root.path().join("var").exists());
        let undone: Vec<_> = arguments[..5].iter().copied().chain(["--undo"]).collect();
        let ran = larder.run_in(home, &environment, &undone).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(fs::read_dir(root.path()).expect("a folder").count(), 0, "{client} {option}");
    }
}
