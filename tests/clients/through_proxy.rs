//! Real clients with the proxy door for their proxy, which trust its authority and know no mirror.

use std::{fs, path::Path};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tempfile::TempDir;

use super::{
    docker::Dockerd,
    images::Images,
    podman::Podman,
    process::{Invocation, program},
    registry::Registry,
    skopeo::Skopeo,
};
use crate::support::{Authority, Browser, Larder, Origin, Page, TlsFront, eventually, get};

const HOST: &str = "registry.larder.test";

/// A registry behind TLS, by a name that only Larder knows.
pub(super) struct Scene {
    larder: Larder,
    registry: Registry,
    front: TlsFront,
    _made: TempDir,
}

impl Scene {
    pub(super) async fn set() -> Self {
        let made = TempDir::new().expect("a temporary directory");
        let registry = Registry::start().await;
        Images::push_to(&registry).await;
        let authority = Authority::new(made.path(), "upstream");
        let behind = registry.address().parse().expect("an address");
        let front = TlsFront::before(behind, &authority.issue(HOST), None).await;
        let configuration = format!(
            "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\n\
             [[repository.team.upstream]]\nurl = \"https://{HOST}:{}\"\nserver_ca_bundle = \"{}\"\n",
            front.port(),
            authority.file().display()
        );
        let names = format!("127.0.0.1 {HOST}");
        let larder = Larder::builder().config(configuration).hosts(&names).start().await;
        Self { larder, registry, front, _made: made }
    }

    /// The upstream.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn proxy(&self) -> String {
        format!("http://{}", self.larder.door("proxy"))
    }

    /// The registry's own name, with its port.
    pub(super) fn host(&self) -> String {
        format!("{HOST}:{}", self.front.port())
    }

    /// A directory in which our authority is what a client trusts.
    pub(super) fn trust(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("made");
        fs::copy(self.larder.home().join("ca/ca.crt"), directory.join("ca.crt")).expect("copied");
    }

    /// Pulls with all there, then without fetching anything again, and then with the registry gone.
    pub(super) async fn pull_cold_then_warm_then_without_upstream(&mut self, pull: impl AsyncFn()) {
        pull().await;
        let cold = self.registry.requests().await;
        assert!(cold.iter().any(|(method, uri)| method == "GET" && uri.contains("/blobs/")), "{cold:?}");
        // It is found out behind the client's back that all of it is for everybody.
        let registry = &self.registry;
        eventually("it is quiet", async || {
            let before = registry.requests().await.len();
            pull().await;
            let warm = registry.requests().await.split_off(before);
            assert!(warm.iter().all(|(method, uri)| method == "HEAD" || uri == "/v2/"), "{warm:?}");
            warm.iter().all(|(_, uri)| !uri.contains("sha256:"))
        })
        .await;
        self.registry.stop();
        pull().await;
    }
}

#[tokio::test]
async fn docker_pulls_through_the_proxy_door_and_again_with_the_registry_gone() {
    let mut scene = Scene::set().await;
    let etc = TempDir::new().expect("a temporary directory");
    scene.trust(&etc.path().join("docker/certs.d").join(scene.host()));
    fs::write(etc.path().join("hosts"), "127.0.0.1 localhost\n").expect("written");
    let dockerd = Dockerd::start_behind(&scene.proxy(), etc.path()).await;
    let image = format!("{}/library/busybox:1.36", scene.host());
    let pull = async || {
        dockerd.pull(&image).await.unwrap();
        assert_eq!(dockerd.run(&image, &["cat", "/etc/larder"]).await.unwrap(), "amd64");
        dockerd.remove(&image).await.unwrap();
    };
    scene.pull_cold_then_warm_then_without_upstream(pull).await;
    // The same is there for who comes to the mirror.
    let manifest = get(scene.larder.manifest_url("team/library/busybox", "1.36")).await;
    assert_eq!((manifest.status, manifest.header("x-cache")), (200, "STALE"), "{}", manifest.text());
}

#[tokio::test]
async fn podman_and_skopeo_pull_through_the_proxy_door_and_again_with_the_registry_gone() {
    let mut scene = Scene::set().await;
    let trust = TempDir::new().expect("a temporary directory");
    scene.trust(trust.path());
    let (podman, skopeo) = (Podman::behind(&scene.proxy()), Skopeo::behind(&scene.proxy()));
    let image = format!("{}/library/busybox:1.36", scene.host());
    let pull = async || {
        podman.pull_by_tls(&image, trust.path(), None).await.unwrap();
        podman.remove(&image).await.unwrap();
        skopeo.copy_by_tls(&image, trust.path(), None).await.unwrap();
    };
    scene.pull_cold_then_warm_then_without_upstream(pull).await;
}

#[tokio::test]
async fn clients_of_discobots_proxy_go_on_with_the_authority_they_trust() {
    let made = TempDir::new().expect("a temporary directory");
    let certs = made.path().join("certs");
    fs::create_dir(&certs).expect("made");
    let path = |name: &str| certs.join(name).to_str().expect("temporary paths are UTF-8").to_owned();
    let openssl = program("openssl", "openssl");
    // As Go's crypto/x509 writes them.
    let key = path("ca.key");
    Invocation::new(&openssl, ["genrsa", "-traditional", "-out", &key, "2048"]).run().await.unwrap();
    let (certificate, subject) = (path("ca.crt"), "/O=Discobot Proxy/CN=Discobot Proxy CA");
    let options = ["req", "-x509", "-new", "-key", &key, "-days", "3650", "-subj", subject, "-out", &certificate];
    let extensions = ["-addext", "keyUsage=critical,keyCertSign,digitalSignature"];
    Invocation::new(&openssl, [&options[..], &extensions].concat()).run().await.unwrap();

    let authority = Authority::new(made.path(), "upstream");
    let origin = Origin::https(&authority.issue("127.0.0.1")).await;
    let place = origin.address();
    let config = made.path().join("config.yaml");
    let text = format!(
        "proxy: {{port: 17080, api_port: 17081}}\ntls: {{cert_dir: {}}}\ncache: {{enabled: true, patterns: ['\\.zip$']}}\nallowlist: {{enabled: true, domains: ['{place}']}}\n",
        certs.display()
    );
    fs::write(&config, text).expect("written");
    let converted = Larder::builder().prepare().run(&["config", "convert", config.to_str().expect("UTF-8")]).await;
    assert_eq!(converted.code, Some(0), "{}", converted.stderr);
    let bundle = authority.file().display().to_string();
    let larder = Larder::builder()
        .config(&converted.stdout)
        .env("LARDER_PROXY__LISTEN", "127.0.0.1:0")
        .env("LARDER_PROXY__UPSTREAM_CA_BUNDLE", &bundle)
        .start()
        .await;
    let browser = Browser::trusting(&larder, &certs.join("ca.crt"), None);
    origin.put("/a.zip", Page::new("zip").header("cache-control", "max-age=60"));
    eventually("it is kept", async || {
        let answer = browser.get(origin.url("/a.zip")).await;
        assert_eq!(answer.text(), "zip");
        answer.header("x-cache") == "HIT"
    })
    .await;
}

#[tokio::test]
async fn curl_and_npm_go_through_the_proxy_door() {
    let made = TempDir::new().expect("a temporary directory");
    let authority = Authority::new(made.path(), "upstream");
    let origin = Origin::https(&authority.issue(HOST)).await;
    let place = format!("{HOST}:{}", origin.address().port());
    let url_of = |path: &str| format!("https://{place}{path}");
    let configuration = format!(
        "[proxy]\nlisten = \"127.0.0.1:0\"\nca_dir = \"ca\"\nintercept = [\"{place}\"]\nupstream_ca_bundle = \"{}\"\n\
         [allowlist]\ndomains = [\"{place}\"]\n[cache]\npatterns = [\"\\\\.tgz$\"]\n",
        authority.file().display()
    );
    let larder = Larder::builder().config(configuration).hosts(&format!("127.0.0.1 {HOST}")).start().await;
    let (proxy, ca) = (format!("http://{}", larder.door("proxy")), larder.home().join("ca/ca.crt"));
    let ca = ca.to_str().expect("temporary paths are UTF-8");

    // A package as npm itself makes it.
    let package = made.path().join("package");
    fs::create_dir(&package).expect("made");
    let manifest = json!({ "name": "pantry", "version": "1.0.0", "main": "index.js" });
    fs::write(package.join("package.json"), manifest.to_string()).expect("written");
    fs::write(package.join("index.js"), "module.exports = 'full';").expect("written");
    let tarball = made.path().join("pantry.tgz");
    let pack = ["-czf", tarball.to_str().expect("UTF-8"), "-C", made.path().to_str().expect("UTF-8"), "package"];
    Invocation::new(&program("tar", "tar"), pack).run().await.unwrap();
    let bytes = fs::read(&tarball).expect("made");
    let sha512 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &bytes);
    let integrity = format!("sha512-{}", BASE64_STANDARD.encode(sha512));
    let dist = json!({ "tarball": url_of("/pantry/-/pantry-1.0.0.tgz"), "integrity": integrity });
    let document = json!({
        "name": "pantry",
        "dist-tags": { "latest": "1.0.0" },
        "versions": { "1.0.0": { "name": "pantry", "version": "1.0.0", "dist": dist } },
    });
    origin.put("/pantry", Page::new(document.to_string()).header("content-type", "application/json"));
    let immutable = Page::new(bytes.clone()).header("cache-control", "public, immutable, max-age=31557600");
    origin.put("/pantry/-/pantry-1.0.0.tgz", immutable.header("content-type", "application/octet-stream"));

    let install = async |at: &str| {
        let project = made.path().join(at);
        fs::create_dir(&project).expect("made");
        let (project, cache) = (project.to_str().expect("UTF-8").to_owned(), made.path().join(format!("{at}-cache")));
        let registry = url_of("/");
        let options = ["--registry", &registry, "--proxy", &proxy, "--https-proxy", &proxy, "--cafile", ca];
        let quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--noproxy", ""];
        let arguments = [&["install", "pantry", "--prefix", &project][..], &options, &quiet].concat();
        Invocation::new(&program("npm", "npm"), arguments)
            .env("HOME", made.path())
            .env("npm_config_cache", cache)
            .run()
            .await
            .unwrap();
        let installed = Path::new(&project).join("node_modules/pantry/index.js");
        assert_eq!(fs::read_to_string(installed).expect("installed"), "module.exports = 'full';");
    };
    install("first").await;
    origin.take_requests();
    install("second").await;
    let asked = origin.take_requests();
    assert!(!asked.is_empty() && asked.iter().all(|request| !request.path.ends_with(".tgz")), "{asked:?}");

    let url = url_of("/pantry/-/pantry-1.0.0.tgz");
    let out = made.path().join("out.tgz");
    let options = ["--silent", "--show-error", "--fail", "--proxy", &proxy, "--cacert", ca, "--dump-header", "-"];
    let arguments = [&options[..], &["--output", out.to_str().expect("UTF-8"), &url]].concat();
    let head = Invocation::new(&program("curl", "curl"), arguments).run().await.unwrap();
    assert!(head.to_ascii_lowercase().contains("x-cache: hit"), "{head}");
    assert_eq!(fs::read(out).expect("fetched"), bytes);
    // Over HTTP/2 as curl chose it inside the tunnel.
    assert!(head.contains("HTTP/2 200"), "{head}");
}
