//! Clients that log in, by password and by certificate, over plain HTTP and over TLS.

use std::path::Path;

use tempfile::TempDir;

use super::{
    containerd::Containerd,
    docker::Dockerd,
    images::Images,
    process::{Invocation, program},
    registry::Registry,
};
use crate::support::{Authority, Larder};

const BUSYBOX: &str = "docker.io/library/busybox:1.36";

struct Scene {
    larder: Larder,
    _registry: Registry,
}

/// A Larder with this configuration in front of a registry with images.
async fn scene(configuration: &str) -> Scene {
    let registry = Registry::start().await;
    Images::push_to(&registry).await;
    let upstream = format!("[[repository.\"docker.io\".upstream]]\nurl = \"{}\"\n", registry.url());
    let larder = Larder::start(configuration.to_owned() + &upstream).await;
    Scene { larder, _registry: registry }
}

impl Scene {
    fn address(&self) -> String {
        self.larder.door("registry").to_string()
    }
}

/// `[auth.htpasswd]` with a file as people make it.
async fn with_password(directory: &Path) -> String {
    let file = directory.join("htpasswd").display().to_string();
    let htpasswd = program("htpasswd", "apache2-utils");
    Invocation::new(&htpasswd, ["-B", "-b", "-c", &file, "bob", "secret"]).run().await.unwrap();
    format!("[auth.htpasswd]\npath = \"{file}\"\n")
}

#[tokio::test]
async fn docker_logs_in_with_a_password_and_pulls() {
    let made = TempDir::new().expect("a temporary directory");
    let auth = with_password(made.path()).await;
    let scene = scene(&auth).await;
    let dockerd = Dockerd::start(&[]).await;
    let (address, image) = (scene.address(), format!("{}/{BUSYBOX}", scene.address()));
    assert!(dockerd.pull(&image).await.is_err(), "it did not log in yet");
    let refused = format!("{:?}", dockerd.login(&address, "bob", "wrong").await.expect_err("a wrong password"));
    assert!(refused.contains("unauthorized") || refused.contains("401"), "{refused}");
    dockerd.login(&address, "bob", "secret").await.unwrap();
    dockerd.pull(&image).await.unwrap();
    assert_eq!(dockerd.run(&image, &["cat", "/etc/larder"]).await.unwrap(), "amd64");
}

#[tokio::test]
async fn containerd_pulls_over_tls_with_a_password_or_a_certificate() {
    let made = TempDir::new().expect("a temporary directory");
    let ours = Authority::new(made.path(), "ours");
    let (server, ci) = (ours.issue("127.0.0.1"), ours.issue("build.ci.test"));
    let stranger = Authority::new(made.path(), "theirs").issue("build.ci.test");
    let auth = with_password(made.path()).await;
    let configuration = format!(
        "{auth}[server.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\nclient_ca_bundle = \"{}\"\n\
             [repository.\"docker.io\"]\nallow = [\"user:bob\", \"cert:*.ci.test\"]\n",
        server.certificate.display(),
        server.key.display(),
        ours.file().display()
    );
    let scene = scene(&configuration).await;
    let containerd = Containerd::start().await;
    let hosts = |name: &str, own: Option<(&Path, &Path)>| {
        containerd.tls_hosts_directory(name, &scene.address(), &ours.file(), own)
    };
    let plain = hosts("plain", None);
    assert!(containerd.pull(BUSYBOX, &plain).await.is_err(), "nobody");
    assert!(containerd.pull_as(BUSYBOX, &plain, "bob:wrong").await.is_err(), "a wrong password");
    let foreign = hosts("foreign", Some((&stranger.certificate, &stranger.key)));
    assert!(containerd.pull(BUSYBOX, &foreign).await.is_err(), "a certificate of another authority");
    containerd.pull_as(BUSYBOX, &plain, "bob:secret").await.unwrap();
    containerd.remove(BUSYBOX).await.unwrap();
    let certified = hosts("certified", Some((&ci.certificate, &ci.key)));
    containerd.pull(BUSYBOX, &certified).await.unwrap();
}
