//! Every client pulls through Larder, pulls again for one HEAD per tag, and pulls with the upstream gone.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    buildah::Buildah,
    containerd::Containerd,
    docker::Dockerd,
    http,
    images::{ARTIFACT_TYPE, Images, sha256},
    podman::Podman,
    registry::Registry,
    skopeo::Skopeo,
};
use crate::support::Larder;

/// A Larder in front of a registry that holds the images.
pub(super) struct Scene {
    larder: Larder,
    registry: Registry,
    images: Images,
}

impl Scene {
    /// `default_repository` is who serves names that neither `?ns=` nor a prefix routes: `""` for a client that must
    /// not need it.
    pub(super) async fn set(default_repository: &str) -> Self {
        let mut registry = Registry::start().await;
        let images = Images::push_to(&registry).await;
        registry.clear_requests().await;
        let configuration = format!(
            "[server]\n\
             default_repository = \"{default_repository}\"\n\
             [[repository.\"docker.io\".upstream]]\n\
             url = \"{}\"\n",
            registry.url()
        );
        let larder = Larder::builder().config(&configuration).start().await;
        Self { larder, registry, images }
    }

    /// The upstream.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The upstream, to be stopped and started.
    pub(super) fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// The mirror's `127.0.0.1:PORT`.
    pub(super) fn mirror(&self) -> String {
        self.larder.url().trim_start_matches("http://").trim_end_matches('/').to_owned()
    }

    /// The Larder in front of it.
    pub(super) fn larder(&self) -> &Larder {
        &self.larder
    }

    /// Makes it cold again.
    pub(super) async fn forget(&mut self) {
        let ran = self.larder.run(&["purge", "--all"]).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        self.registry.clear_requests().await;
    }

    /// The promise itself, and that nothing is left broken when the upstream is back. `pull` begins and ends with an empty client; `tag` is the upstream's path of the tag that it
    /// pulls.
    pub(super) async fn pull_cold_then_warm_then_without_upstream(&mut self, tag: &str, pull: impl AsyncFn()) {
        pull().await;
        let cold = self.registry.requests().await;
        let gets: Vec<&str> = cold.iter().filter(|(method, _)| method == "GET").map(|(_, uri)| uri.as_str()).collect();
        assert!(gets.iter().any(|uri| uri.contains("/blobs/")), "nothing came from the upstream: {cold:?}");
        let objects: HashSet<&str> = gets.iter().copied().collect();
        assert_eq!(objects.len(), gets.len(), "an object was transferred twice: {cold:?}");

        self.registry.clear_requests().await;
        pull().await;
        assert_eq!(self.registry.requests().await, [("HEAD".to_owned(), tag.to_owned())], "the warm pull asked");

        self.registry.stop();
        pull().await;

        self.registry.start_again().await;
        pull().await;
    }
}

pub(super) const BUSYBOX_TAG: &str = "/v2/library/busybox/manifests/1.36";

#[tokio::test]
async fn docker_pulls_runs_and_pulls_again_with_the_upstream_gone() {
    let mut scene = Scene::set("docker.io").await;
    let dockerd = Dockerd::start(&[&format!("http://{}", scene.mirror())]).await;
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            dockerd.pull("busybox:1.36").await.unwrap();
            assert_eq!(dockerd.run("busybox:1.36", &["cat", "/etc/larder"]).await.unwrap(), "amd64");
            dockerd.remove("busybox:1.36").await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn buildkit_builds_on_images_of_its_mirror_and_again_with_the_upstream_gone() {
    let mut scene = Scene::set("docker.io").await;
    let dockerd = Dockerd::start(&[&format!("http://{}", scene.mirror())]).await;
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            assert_eq!(dockerd.build("busybox:1.36", "/etc/larder").await.unwrap(), "amd64");
            dockerd.forget_builds().await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn containerd_pulls_by_namespace_and_pulls_again_with_the_upstream_gone() {
    let containerd = Containerd::start().await;
    for host in ["docker.io", "_default"] {
        let mut scene = Scene::set("").await;
        let hosts_directory = containerd.hosts_directory(host, &scene.mirror());
        scene
            .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
                let reference = "docker.io/library/busybox:1.36";
                containerd.pull(reference, &hosts_directory).await.unwrap();
                containerd.remove(reference).await.unwrap();
            })
            .await;
    }
}

#[tokio::test]
async fn podman_pulls_by_prefix_and_pulls_again_with_the_upstream_gone() {
    let mut scene = Scene::set("").await;
    let podman = Podman::with_mirror(&scene.mirror());
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            podman.pull("docker.io/library/busybox:1.36").await.unwrap();
            podman.remove("docker.io/library/busybox:1.36").await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn buildah_pulls_by_prefix_and_pulls_again_with_the_upstream_gone() {
    let mut scene = Scene::set("").await;
    let buildah = Buildah::with_mirror(&scene.mirror());
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            buildah.pull("docker.io/library/busybox:1.36").await.unwrap();
            buildah.remove("docker.io/library/busybox:1.36").await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn skopeo_copies_by_prefix_and_copies_again_with_the_upstream_gone() {
    let mut scene = Scene::set("").await;
    let (skopeo, expected) = (Skopeo::new(), scene.images.busybox.clone());
    let reference = format!("{}/docker.io/library/busybox:1.36", scene.mirror());
    scene
        .pull_cold_then_warm_then_without_upstream(BUSYBOX_TAG, async || {
            assert_eq!(sha256(&skopeo.copy_all(&reference).await.unwrap()), expected);
        })
        .await;
}

#[tokio::test]
async fn skopeo_copies_all_of_an_index_and_again_with_the_upstream_gone() {
    let mut scene = Scene::set("").await;
    let (skopeo, expected) = (Skopeo::new(), scene.images.multi.clone());
    let reference = format!("{}/docker.io/library/multi:1", scene.mirror());
    scene
        .pull_cold_then_warm_then_without_upstream("/v2/library/multi/manifests/1", async || {
            assert_eq!(sha256(&skopeo.copy_all(&reference).await.unwrap()), expected);
        })
        .await;
    // It came as it is in the registry, not converted by the way.
    assert_eq!(sha256(skopeo.inspect_raw(&reference).await.unwrap().as_bytes()), expected);
}

#[tokio::test]
async fn a_referrer_is_found_by_its_fallback_tag_and_copied_and_again_with_the_upstream_gone() {
    let mut scene = Scene::set("").await;
    let (skopeo, tag, artifact) = (Skopeo::new(), scene.images.fallback_tag.clone(), scene.images.artifact.clone());
    let repository = format!("{}/docker.io/library/busybox", scene.mirror());
    scene
        .pull_cold_then_warm_then_without_upstream(&format!("/v2/library/busybox/manifests/{tag}"), async || {
            let referrers = skopeo.inspect_raw(&format!("{repository}:{tag}")).await.unwrap();
            assert_lists(referrers.as_bytes(), &artifact);
            let manifest = skopeo.copy_all(&format!("{repository}@{artifact}")).await.unwrap();
            assert_eq!(sha256(&manifest), artifact);
        })
        .await;
}

#[tokio::test]
async fn the_referrers_api_answers_for_an_upstream_without_it_and_again_with_the_upstream_gone() {
    let mut scene = Scene::set("").await;
    let mirror = scene.mirror();
    let target = format!("/v2/docker.io/library/busybox/referrers/{}", scene.images.busybox);
    let artifact = scene.images.artifact.clone();
    let ask = async || {
        let answer = http::send(&mirror, "GET", &target, &[], b"").await.unwrap();
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
        assert_lists(&answer.body, &artifact);
    };
    ask().await;
    scene.registry.clear_requests().await;
    ask().await;
    let again = scene.registry.requests().await;
    assert!(!again.iter().any(|(method, uri)| method == "GET" && !uri.contains("/referrers/")), "{again:?}");
    scene.registry.stop();
    ask().await;
}

/// Checks that an index lists the artifact, and nothing else.
fn assert_lists(index: &[u8], artifact: &str) {
    let index: Value = serde_json::from_slice(index).expect("an index is JSON");
    let listed = index["manifests"].as_array().expect("an index has manifests");
    assert_eq!(listed.len(), 1, "{index}");
    assert_eq!(listed[0]["digest"], artifact, "{index}");
    assert_eq!(listed[0]["artifactType"], ARTIFACT_TYPE, "{index}");
}
