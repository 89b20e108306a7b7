//! Real clients pull through Larder by the files that `larder setup --write` makes, and by nothing else.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::{
    buildah::Buildah,
    containerd::Containerd,
    docker::Dockerd,
    images::Images,
    podman::Podman,
    pulls::{BUSYBOX_TAG, Scene},
    registry::Registry,
    skopeo::Skopeo,
};
use crate::support::{Authority, Larder};

pub(super) const IMAGE: &str = "docker.io/library/busybox:1.36";

/// Writes a client's files below a root.
pub(super) async fn set_up(larder: &Larder, client: &[&str], root: &Path) {
    let (url, root) =
        (larder.url().trim_end_matches('/').to_owned(), root.to_str().expect("temporary paths are UTF-8"));
    let arguments = [&["setup"], client, &["--write", "--root", root, "--url", &url]].concat();
    let ran = larder.run(&arguments).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[tokio::test]
async fn podman_buildah_and_skopeo_pull_by_the_files_of_setup() {
    let mut scene = Scene::set("").await;
    let root = TempDir::new().expect("a directory");
    set_up(scene.larder(), &["podman"], root.path()).await;
    let etc = root.path().join("etc/containers");
    let (podman, buildah, skopeo) = (Podman::seeing(&etc), Buildah::seeing(&etc), Skopeo::seeing(&etc));
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            podman.pull(IMAGE).await.unwrap();
            podman.remove(IMAGE).await.unwrap();
        })
        .await;
    scene.forget().await;
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            buildah.pull(IMAGE).await.unwrap();
            buildah.remove(IMAGE).await.unwrap();
        })
        .await;
    scene.forget().await;
    scene.pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || skopeo.copy(IMAGE).await.unwrap()).await;
}

#[tokio::test]
async fn dockerd_pulls_and_builds_by_a_daemon_json_that_setup_has_changed() {
    let mut scene = Scene::set("docker.io").await;
    let root = TempDir::new().expect("a directory");
    let etc = root.path().join("etc");
    fs::create_dir_all(etc.join("docker")).expect("made");
    fs::copy("/etc/hosts", etc.join("hosts")).expect("copied");
    let dockerd = Dockerd::start_prepared(&etc, async || set_up(scene.larder(), &["docker"], root.path()).await).await;
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            dockerd.pull("busybox:1.36").await.unwrap();
            dockerd.remove("busybox:1.36").await.unwrap();
        })
        .await;
    scene.forget().await;
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            assert_eq!(dockerd.build("busybox:1.36", "/etc/larder").await.unwrap(), "amd64");
            dockerd.forget_builds().await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn containerd_reads_the_folder_that_setup_names_and_pulls_by_it() {
    let containerd = Containerd::start().await;
    for limit in [&[][..], &["--registry", "docker.io"]] {
        let mut scene = Scene::set("").await;
        let root = TempDir::new().expect("a directory");
        // Its own version, whatever the newest knows.
        let version = Containerd::version().await.unwrap();
        set_up(scene.larder(), &[&["containerd", "--client-version", &version], limit].concat(), root.path()).await;
        let folder = match root.path().join("etc/containerd/config.toml").exists() {
            true => Containerd::registries_of(root.path()).await.unwrap(),
            // From 2.2 on it needs no key.
            false => "/etc/containerd/certs.d".to_owned(),
        };
        assert_eq!(folder, "/etc/containerd/certs.d");
        let hosts = format!("{}{folder}", root.path().display());
        scene
            .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
                containerd.pull(IMAGE, &hosts).await.unwrap();
                containerd.remove(IMAGE).await.unwrap();
            })
            .await;
    }
}

#[tokio::test]
async fn podman_and_skopeo_trust_the_authority_that_setup_has_installed() {
    let registry = Registry::start().await;
    Images::push_to(&registry).await;
    let home = TempDir::new().expect("a directory");
    let authority = Authority::new(home.path(), "ours");
    let own = authority.issue("127.0.0.1");
    let config = format!(
        "[server.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n[[repository.\"docker.io\".upstream]]\nurl = \"{}\"\n",
        own.certificate.display(),
        own.key.display(),
        registry.url()
    );
    let larder = Larder::builder().config(&config).start().await;
    let url = format!("https://{}", larder.door("registry"));
    let (root, ca) = (home.path().join("root"), authority.file());
    fs::create_dir(&root).expect("made");
    let [root_path, ca] = [&root, &ca].map(|path| path.to_str().expect("temporary paths are UTF-8"));
    let setup = ["setup", "podman", "--write", "--root", root_path, "--url", &url];
    // Without the authority nothing comes: what follows shows that it is read.
    assert_eq!(larder.run(&setup).await.code, Some(0));
    let etc = root.join("etc/containers");
    assert!(Skopeo::seeing(&etc).copy(IMAGE).await.is_err());
    let ran = larder.run(&[&setup[..], &["--ca", ca]].concat()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    Skopeo::seeing(&etc).copy(IMAGE).await.unwrap();
    Podman::seeing(&etc).pull(IMAGE).await.unwrap();
}
