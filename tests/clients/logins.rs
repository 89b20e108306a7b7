//! Clients that log in, by password and by certificate, over plain HTTP and over TLS.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::Algorithm;
use serde_json::json;
use tempfile::TempDir;

use super::{
    containerd::Containerd,
    docker::Dockerd,
    images::Images,
    podman::Podman,
    process::{Invocation, program},
    registry::Registry,
    skopeo::Skopeo,
};
use crate::support::issuer::{Issuer, SigningKey, now};
use crate::support::{Authority, Certificate, Larder, trust};

const BUSYBOX: &str = "docker.io/library/busybox:1.36";

struct Scene {
    larder: Larder,
    _registry: Registry,
}

/// A Larder with this configuration in front of a registry with images.
async fn scene(configuration: &str) -> Scene {
    scene_at("127.0.0.1:0", configuration).await
}

async fn scene_at(listen: &str, configuration: &str) -> Scene {
    let registry = Registry::start().await;
    Images::push_to(&registry).await;
    let upstream = format!("[[repository.\"docker.io\".upstream]]\nurl = \"{}\"\n", registry.url());
    let larder = Larder::builder().config(configuration).config(upstream).env("LARDER_SERVER__LISTEN", listen);
    Scene { larder: larder.start().await, _registry: registry }
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

/// A directory with what Larder's TLS and passwords need, and an issuer of tokens.
struct Belonging {
    made: TempDir,
    ours: Authority,
    ci: Certificate,
    stranger: Certificate,
    expired: Certificate,
    key: SigningKey,
    issuer: Issuer,
    configuration: String,
}

impl Belonging {
    /// Of a server of this name.
    async fn new(server: &str, more: &str) -> Self {
        let made = TempDir::new().expect("a temporary directory");
        let ours = Authority::new(made.path(), "ours");
        let own = ours.issue(server);
        let ci = ours.issue("build.ci.test");
        let expired = ours.issue_expired("late.ci.test");
        let stranger = Authority::new(made.path(), "theirs").issue("build.ci.test");
        let key = SigningKey::new("one", Algorithm::RS256);
        let issuer = Issuer::start(&[&key]).await;
        let configuration = format!(
            "{}{}[server.tls]\ncertificate = {:?}\nprivate_key = {:?}\nclient_ca_bundle = {:?}\n{more}\n\
             [repository.\"docker.io\"]\nallow = [\"user:bob\", \"cert:*.ci.test\", \"oidc:ci:sub=repo:acme/*\"]\n",
            with_password(made.path()).await,
            issuer.config("ci", ""),
            own.certificate,
            own.key,
            ours.file(),
        );
        Self { made, ours, ci, stranger, expired, key, issuer, configuration }
    }

    fn token(&self) -> String {
        self.key.sign(&self.issuer.claims(json!({})))
    }

    fn late_token(&self) -> String {
        self.key.sign(&self.issuer.claims(json!({"exp": now() - 3600})))
    }
}

/// Docker takes what leads to 127.0.0.0/8 for insecure, whatever it is called, and checks nothing there.
const NAMED: &str = "[::1]:0";
const NAME: &str = "larder.test";

#[tokio::test]
async fn docker_pulls_over_tls_by_certs_d_with_a_password_a_token_or_a_certificate() {
    let all = Belonging::new(NAME, "").await;
    let scene = scene_at(NAMED, &all.configuration).await;
    let etc = all.made.path().join("etc");
    let host = format!("{NAME}:{}", scene.larder.door("registry").port());
    let certs_d = etc.join("docker/certs.d").join(&host);
    trust(&certs_d, None, None);
    std::fs::write(etc.join("hosts"), format!("::1 {NAME}\n")).expect("written");
    let dockerd = Dockerd::start_in(&[], Some(&etc)).await;
    let image = format!("{host}/{BUSYBOX}");

    let unknown = format!("{:?}", dockerd.login(&host, "bob", "secret").await.expect_err("nobody knows the authority"));
    assert!(unknown.contains("x509"), "{unknown}");
    trust(&certs_d, Some(&all.ours), None);
    assert!(dockerd.pull(&image).await.is_err(), "it did not log in");
    for (user, password) in [("bob", "wrong"), ("ci", &*all.late_token())] {
        let refused = format!("{:?}", dockerd.login(&host, user, password).await.expect_err("wrong"));
        assert!(refused.contains("unauthorized") || refused.contains("401"), "{refused}");
    }
    for (user, password) in [("bob", "secret"), ("ci", &*all.token())] {
        dockerd.login(&host, user, password).await.unwrap();
        dockerd.pull(&image).await.unwrap();
        assert_eq!(dockerd.run(&image, &["cat", "/etc/larder"]).await.unwrap(), "amd64");
        dockerd.remove(&image).await.unwrap();
        dockerd.logout(&host).await.unwrap();
        assert!(dockerd.pull(&image).await.is_err(), "it logged out");
    }
    for wrong in [&all.stranger, &all.expired] {
        trust(&certs_d, Some(&all.ours), Some(wrong));
        assert!(dockerd.pull(&image).await.is_err(), "{wrong:?}");
    }
    trust(&certs_d, Some(&all.ours), Some(&all.ci));
    dockerd.pull(&image).await.unwrap();
}

#[tokio::test]
async fn dockers_mirror_may_want_certificates() {
    let all = Belonging::new(NAME, "client_auth = \"required\"").await;
    let scene = scene_at(NAMED, &all.configuration).await;
    let etc = all.made.path().join("etc");
    let host = format!("{NAME}:{}", scene.larder.door("registry").port());
    let certs_d = etc.join("docker/certs.d").join(&host);
    trust(&certs_d, Some(&all.ours), Some(&all.stranger));
    std::fs::write(etc.join("hosts"), format!("::1 {NAME}\n")).expect("written");
    let dockerd = Dockerd::start_in(&[&format!("https://{host}")], Some(&etc)).await;
    assert!(dockerd.pull("busybox:1.36").await.is_err(), "a certificate of somebody else");
    trust(&certs_d, Some(&all.ours), Some(&all.ci));
    dockerd.pull("busybox:1.36").await.unwrap();
    assert_eq!(dockerd.run("busybox:1.36", &["cat", "/etc/larder"]).await.unwrap(), "amd64");
    dockerd.remove("busybox:1.36").await.unwrap();
    assert_eq!(dockerd.build("busybox:1.36", "/etc/larder").await.unwrap(), "amd64", "BuildKit does so, too");
}

#[tokio::test]
async fn podman_and_skopeo_pull_over_tls_with_a_password_a_token_or_a_certificate() {
    let all = Belonging::new("127.0.0.1", "").await;
    let scene = scene(&all.configuration).await;
    let image = format!("{}/{BUSYBOX}", scene.address());
    let dir = |name: &str, authority: Option<&Authority>, own: Option<&Certificate>| {
        let dir = all.made.path().join(name);
        trust(&dir, authority, own);
        dir
    };
    let (nothing, plain) = (dir("nothing", None, None), dir("plain", Some(&all.ours), None));
    let (certified, foreign) =
        (dir("own", Some(&all.ours), Some(&all.ci)), dir("foreign", Some(&all.ours), Some(&all.stranger)));
    let expired = dir("expired", Some(&all.ours), Some(&all.expired));
    let (token, late) = (format!("ci:{}", all.token()), format!("ci:{}", all.late_token()));
    let right = Some("bob:secret");
    for (trust, credentials, is_let_in) in [
        (&nothing, right, false),
        (&plain, None, false),
        (&plain, Some("bob:wrong"), false),
        (&plain, Some(&*late), false),
        // Which they do not even show: it is of none of the authorities that the server names.
        (&foreign, None, false),
        (&expired, right, false),
        (&plain, right, true),
        (&plain, Some(&*token), true),
        (&certified, None, true),
    ] {
        let podman = Podman::without_mirror().pull_by_tls(&image, trust, credentials).await;
        let skopeo = Skopeo::new().copy_by_tls(&image, trust, credentials).await;
        let shown = || format!("{} {podman:?} {skopeo:?}", trust.display());
        assert!(podman.is_ok() == is_let_in && skopeo.is_ok() == is_let_in, "{}", shown());
    }
}

#[tokio::test]
async fn containerd_pulls_over_tls_with_a_token() {
    let all = Belonging::new("127.0.0.1", "").await;
    let scene = scene(&all.configuration).await;
    let containerd = Containerd::start().await;
    let hosts = containerd.tls_hosts_directory("plain", &scene.address(), &all.ours.file(), None);
    assert!(containerd.pull_as(BUSYBOX, &hosts, &format!("ci:{}", all.late_token())).await.is_err());
    containerd.pull_as(BUSYBOX, &hosts, &format!("ci:{}", all.token())).await.unwrap();
    containerd.remove(BUSYBOX).await.unwrap();
    // As it stands in the file of a node, for all who pull there.
    for (name, authorization) in [
        ("basic", format!("Basic {}", BASE64_STANDARD.encode("bob:secret"))),
        ("bearer", format!("Bearer {}", all.token())),
    ] {
        let hosts = containerd.tls_hosts_directory(name, &scene.address(), &all.ours.file(), None);
        containerd.set_authorization(&hosts, &scene.address(), &authorization);
        containerd.pull(BUSYBOX, &hosts).await.unwrap();
        containerd.remove(BUSYBOX).await.unwrap();
    }
    let late = Some((&*all.expired.certificate, &*all.expired.key));
    let hosts = containerd.tls_hosts_directory("late", &scene.address(), &all.ours.file(), late);
    assert!(containerd.pull(BUSYBOX, &hosts).await.is_err());
}
