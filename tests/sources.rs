//! Promise: the configurations that the documents of other caches show do here what those documents say.
//!
//! Only the addresses are others: those of registries on this machine, and certificates made for the test.

use crate::support::{Authority, Hub, Image, Larder, On, Options, RepositoryConfig, TlsFront, eventually, get};

/// simple-registry (Rust): as `larder.toml`, as it is.
mod toml {
    use super::*;

    const BASIC: &str = include_str!("documents/simple-registry-basic.toml");

    const FALLBACK: &str = include_str!("documents/simple-registry-fallback.toml");

    const IMMUTABLE: &str = include_str!("documents/simple-registry-immutable.toml");

    const MTLS: &str = include_str!("documents/simple-registry-mtls.toml");

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upstream_with_a_user_name_and_a_namespace() {
        let hub = Hub::start(Options::docker_hub().user("myuser", "mypassword").private("library/app", "myuser")).await;
        let image = Image::new(1);
        hub.push_image("library/app", "1", &image);
        let larder = Larder::start(BASIC.replace("https://registry-1.docker.io", &hub.url())).await;
        assert_eq!(get(larder.manifest_url("library/app", "1")).await.body, image.manifest.bytes);
        assert_eq!(get(larder.blob_url("library/app", &image.layer_digests()[0])).await.body, image.layers[0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn three_upstreams_with_fallback() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let authority = Authority::new(dir.path(), "ca");
        let client = authority.issue("client");
        let (mut primary, mut secondary, tertiary) = (
            Hub::start(Options::default()).await,
            Hub::start(Options::with_basic("backup_user", "backup_password")).await,
            Hub::start(Options::with_tokens()).await,
        );
        for (hub, tags) in [(&primary, &["a", "b", "c"][..]), (&secondary, &["b", "c"]), (&tertiary, &["c"])] {
            for tag in tags {
                hub.push_image("library/app", tag, &Image::new(1));
            }
        }
        let front = TlsFront::start(&primary, &authority.issue("127.0.0.1"), Some(&authority)).await;
        // The document leaves the authority to the system; this one is the test's own.
        let ca = format!("server_ca_bundle = \"{}\"\nclient_certificate", authority.file().display());
        let config = FALLBACK
            .replace("https://primary.registry.io", &front.url())
            .replace("https://secondary.registry.io", &secondary.url())
            .replace("https://public.registry.io", &tertiary.url())
            .replace("client_certificate", &ca)
            .replace("/path/to/client.crt", &client.certificate.display().to_string())
            .replace("/path/to/client.key", &client.key.display().to_string());
        let larder = Larder::start(config).await;
        let pull = async |tag: &str| get(larder.manifest_url("library/app", tag)).await.status;
        assert_eq!(pull("a").await, 200);
        assert_eq!((secondary.requests().len(), tertiary.requests().len()), (0, 0));
        primary.stop().await;
        drop(front);
        assert_eq!(pull("b").await, 200);
        assert_eq!(tertiary.requests().len(), 0);
        secondary.stop().await;
        assert_eq!(pull("c").await, 200);
        // Resilience: what was pulled is served with all of them but one gone, and not only by tag.
        assert_eq!((pull("a").await, pull("b").await), (200, 200));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn immutable_tags_are_not_checked_and_others_are() {
        let hub = Hub::start(Options::docker_hub()).await;
        for tag in ["v1.0.0", "latest", "nightly-1"] {
            hub.push_image("library/app", tag, &Image::new(1));
        }
        let larder = Larder::start(IMMUTABLE.replace("https://registry-1.docker.io", &hub.url())).await;
        for (tag, checks) in [("v1.0.0", 0), ("latest", 1), ("nightly-1", 1)] {
            assert_eq!(get(larder.manifest_url("library/app", tag)).await.status, 200);
            hub.take_requests();
            hub.push_image("library/app", tag, &Image::new(2));
            let again = get(larder.manifest_url("library/app", tag)).await;
            let is_new = again.body == Image::new(2).manifest.bytes;
            assert_eq!((hub.count_on(On::manifest().head()), is_new), (checks, checks == 1), "{tag}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upstream_that_wants_a_certificate() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let authority = Authority::new(dir.path(), "ca");
        let client = authority.issue("client");
        let hub = Hub::start(Options::default()).await;
        hub.push_image("team/app", "1", &Image::new(1));
        let front = TlsFront::start(&hub, &authority.issue("127.0.0.1"), Some(&authority)).await;
        let config = MTLS
            .replace("https://secure.registry.io", &front.url())
            .replace("/certs/client.crt", &client.certificate.display().to_string())
            .replace("/certs/client.key", &client.key.display().to_string())
            .replace("/certs/ca-bundle.crt", &authority.file().display().to_string());
        let larder = Larder::start(config).await;
        assert_eq!(get(larder.manifest_url("secure/team/app", "1")).await.status, 200);
    }
}

/// simple-registry (Go): through `larder config convert`.
mod yaml {
    use super::*;

    const PROXIES: &str = include_str!("documents/simple-registry.yaml");

    #[tokio::test(flavor = "multi_thread")]
    async fn scopes_lead_to_their_upstreams_and_stale_copies_are_served() {
        let mut docker = Hub::start(Options::docker_hub()).await;
        let (user, password) = ("your-github-user", "your-plain-github-password");
        let github =
            Hub::start(Options::with_tokens().user(user, password).private("my-github-user/my-repo", user)).await;
        for name in ["library/busybox", "miniflux/miniflux", "other/app"] {
            docker.push_image(name, "latest", &Image::new(1));
        }
        github.push_image("my-github-user/my-repo", "latest", &Image::new(2));
        let manifests = PROXIES
            .replace("https://registry-1.docker.io", &docker.url())
            .replace("https://ghcr.io/", &(github.url() + "/"));
        let tools = Larder::builder().prepare();
        let folder = tools.home().join("config");
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join("proxies.yaml"), manifests).expect("written");
        let ran = tools.run(&["config", "convert", "config"]).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");

        let larder = Larder::start(&ran.stdout).await;
        let pull = async |name: &str| get(larder.manifest_url(name, "latest")).await;
        let layer = Image::new(1).layer_digests()[0].clone();
        for name in ["library/busybox", "miniflux/miniflux"] {
            assert_eq!(pull(name).await.body, Image::new(1).manifest.bytes, "{name}");
            assert!(get(larder.blob_url(name, &layer)).await.complete(), "{name}");
        }
        assert_eq!(pull("my-github-user/my-repo").await.body, Image::new(2).manifest.bytes);
        // Which is in no scope, though the upstream has it.
        assert_eq!(pull("other/app").await.status, 404);
        // Always up to date while the upstream is there, and the latest copy when it is not.
        docker.push_image("library/busybox", "latest", &Image::new(3));
        assert_eq!(pull("library/busybox").await.body, Image::new(3).manifest.bytes);
        docker.stop().await;
        let stale = pull("library/busybox").await;
        assert_eq!((stale.body, stale.headers["x-cache"].as_bytes()), (Image::new(3).manifest.bytes, &b"STALE"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_for_one_tag_has_the_blobs_of_that_tag() {
    let (stable, other) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let (image, newer) = (Image::new(1), Image::new(2));
    stable.push_image("tools/app", "v1", &image);
    other.push_image("tools/app", "v2", &newer);
    let config = RepositoryConfig::new("stable").set("scopes = [\"^tools/app:v1$\"]").upstream(&stable).to_string()
        + &RepositoryConfig::new("other").set("scopes = [\"^tools/app:v2$\"]").upstream(&other).to_string();
    let larder = Larder::start(format!("[server]\ndefault_repository = \"\"\n{config}")).await;
    for (tag, image) in [("v1", &image), ("v2", &newer), ("v1", &image)] {
        assert_eq!(get(larder.manifest_url("tools/app", tag)).await.body, image.manifest.bytes);
        for (url, right) in [
            (larder.manifest_url("tools/app", &image.manifest.digest), &image.manifest.bytes),
            (larder.blob_url("tools/app", &image.layer_digests()[0]), &image.layers[0]),
        ] {
            let what = format!("{url} after {tag}");
            eventually(&what, async || get(&url).await.body == right).await;
        }
    }
    assert_eq!(get(larder.manifest_url("tools/app", "v3")).await.status, 404);
}
