//! Each version of a client gets what it reads, and the pages show the same.
//!
//! What they read: the sources are named beside the constants in `src/setup/`, with the tags of containerd and moby in
//! which it changed.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{Scene, URL};
use crate::support::Authority;

#[tokio::test]
async fn containerd_gets_the_table_the_folder_and_the_words_that_its_version_knows() {
    let (v2, v3) = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images");
    for (version, plugin, folder, has_referrers) in [
        ("1.6.0", Some((2, v2)), "docker.io", false),
        ("1.6.16", Some((2, v2)), "docker.io", false),
        ("1.6.17", Some((2, v2)), "_default", false),
        ("1.7.24", Some((2, v2)), "_default", false),
        ("2.0.0", Some((3, v3)), "_default", false),
        ("2.1.9", Some((3, v3)), "_default", false),
        ("2.2.0", None, "_default", true),
        ("2.3.1", None, "_default", true),
    ] {
        let scene = Scene::set(&[]);
        scene.write(&["containerd", "--client-version", version]).await;
        let config = scene.path("etc/containerd/config.toml");
        match plugin {
            Some((number, plugin)) => {
                let expected = format!(
                    "version = {number}\n\n[plugins.\"{plugin}\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
                );
                assert_eq!(fs::read_to_string(config).expect("written"), expected, "{version}");
            }
            None => assert!(!config.exists(), "{version} needs no key"),
        }
        let hosts = scene.text(&format!("etc/containerd/certs.d/{folder}/hosts.toml"));
        assert_eq!(hosts.contains("\"referrers\""), has_referrers, "{version}: {hosts}");
        assert_eq!(scene.path("etc/containerd/certs.d/ghcr.io").exists(), folder != "_default", "{version}");
    }
}

#[tokio::test]
async fn containerd_keeps_the_folder_and_the_version_that_its_file_names() {
    let files = [
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/opt/hosts:/etc/docker/certs.d\"\n",
            "opt/hosts",
        ),
        ("disabled_plugins = [\"cri\"]\n", "etc/containerd/certs.d"),
        (
            "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/other\"\n",
            "etc/other",
        ),
    ];
    for (config, folder) in files {
        let scene = Scene::set(&[("etc/containerd/config.toml", config)]);
        scene.write(&["containerd", "--client-version", "2.1"]).await;
        assert_eq!(scene.text("etc/containerd/config.toml"), config);
        assert!(scene.text(&format!("{folder}/_default/hosts.toml")).contains(URL));
    }
    // An empty folder is written by `containerd config default` of 2.0, and 2.2 takes it as it is.
    let empty = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = ''\n";
    for version in ["2.1.9", "2.2.0", "2.3.1"] {
        let scene = Scene::set(&[("etc/containerd/config.toml", empty)]);
        scene.write(&["containerd", "--client-version", version]).await;
        let expected = empty.replace("''", "\"/etc/containerd/certs.d\"");
        assert_eq!(scene.text("etc/containerd/config.toml"), expected, "{version}");
    }
    // A file without a version is of version 1 (PLUGINS.md of containerd 1.x).
    let scene = Scene::set(&[("etc/containerd/config.toml", "oom_score = -999\n")]);
    scene.write(&["containerd", "--client-version", "1.7.24"]).await;
    let text = scene.text("etc/containerd/config.toml");
    assert_eq!(text, "oom_score = -999\n\n[plugins.cri.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n");
}

#[tokio::test]
async fn docker_gets_the_files_that_its_version_and_its_store_read() {
    let (json, hosts) = ("etc/docker/daemon.json", "etc/docker/certs.d/_default/hosts.toml");
    let store = "{ \"features\": { \"containerd-snapshotter\": true } }";
    for (version, before, has_mirrors, has_hosts, has_referrers) in [
        ("20.10.24", "{}", true, false, false),
        ("27.5.1", store, true, false, false),
        ("28.5.2", "{}", true, true, false),
        ("28.5.2", store, false, true, false),
        ("29.0.4", "{}", true, true, false),
        ("29.1.2", store, false, true, true),
    ] {
        let scene = Scene::set(&[(json, before)]);
        scene.write(&["docker", "--client-version", version]).await;
        assert_eq!(scene.text(json).contains("registry-mirrors"), has_mirrors, "{version} {before}");
        assert_eq!(scene.path(hosts).exists(), has_hosts, "{version} {before}");
        if has_hosts {
            assert_eq!(scene.text(hosts).contains("referrers"), has_referrers, "{version}");
        }
    }
    // Where nothing is said, the list of packages tells the version.
    let dpkg = "Package: docker-ce\nStatus: install ok installed\nVersion: 5:27.5.1-1~debian.12~bookworm\n";
    let scene = Scene::set(&[("var/lib/dpkg/status", dpkg)]);
    let shown = scene.write(&["docker"]).await;
    assert!(shown.starts_with("docker 27.5.1 (by the installed package)") && !scene.path(hosts).exists(), "{shown}");
}

#[tokio::test]
async fn k3s_gets_an_entry_for_each_registry_where_its_version_knows_no_wildcard() {
    for (version, knows) in [("1.25.16", false), ("1.28.7", false), ("1.28.8", true), ("1.33.1", true)] {
        let scene = Scene::set(&[]);
        scene.write(&["k3s", "--client-version", version]).await;
        let text = scene.text("etc/rancher/k3s/registries.yaml");
        assert_eq!((text.contains("\"*\""), text.contains("\"ghcr.io\"")), (knows, !knows), "{version}");
    }
}

/// For each page: what setup is asked for, and the file that the page shows.
const PAGES: [(&str, &[&str], &str); 9] = [
    ("kubernetes", &["containerd", "--client-version", "2.1"], "/etc/containerd/config.toml"),
    ("kubernetes", &["containerd", "--client-version", "1.7.24"], "/etc/containerd/config.toml"),
    ("kubernetes", &["containerd", "--client-version", "1.7.24"], "/etc/containerd/certs.d/_default/hosts.toml"),
    ("kubernetes", &["containerd", "--client-version", "2.2"], "/etc/containerd/certs.d/_default/hosts.toml"),
    (
        "kubernetes",
        &["podman", "--registry", "docker.io", "--registry", "registry.k8s.io"],
        "/etc/containers/registries.conf.d/larder.conf",
    ),
    (
        "ci",
        &["buildkit", "--registry", "docker.io", "--registry", "ghcr.io", "--registry", "quay.io"],
        "/etc/buildkit/buildkitd.toml",
    ),
    ("team-mirror", &["docker", "--client-version", "27.0"], "/etc/docker/daemon.json"),
    ("team-mirror", &["docker", "--client-version", "28.0", "TLS"], "/etc/docker/certs.d/_default/hosts.toml"),
    ("kubernetes", &["k3s", "TLS"], "/etc/rancher/k3s/registries.yaml"),
];

#[tokio::test]
async fn the_pages_show_what_setup_writes() {
    let home = TempDir::new().expect("a directory");
    let authority = Authority::new(home.path(), "ours").file();
    let authority = authority.to_str().expect("temporary paths are UTF-8");
    for (page, arguments, file) in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{page}.md"));
        let text = fs::read_to_string(path).expect("the page").replace("CACHE", "10.0.0.7:5000");
        let address = match arguments.contains(&"TLS") {
            true => &["--url", "https://mirror.example.com", "--ca", authority][..],
            false => &["--url", URL],
        };
        let arguments: Vec<_> = arguments.iter().copied().filter(|&word| word != "TLS").collect();
        let ran = Scene::set(&[]).run(&[&arguments[..], address, &["--json"]].concat()).await;
        let files = ran.json()["files"].as_array().expect("a list").clone();
        let written = files.iter().find(|written| written["path"] == file).unwrap_or_else(|| panic!("{ran:?}"));
        let content = written["content"].as_str().expect("a text");
        assert!(text.contains(content), "docs/{page}.md does not show {file} as it is written:\n{content}");
    }
}
