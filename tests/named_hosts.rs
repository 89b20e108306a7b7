//! Promise: a repository is asked by each of its names, at both doors.

use crate::support::{Hub, Image, Larder, Options, Proxied, RepositoryConfig, get};

const NAME: &str = "team/app";
const NAMES: &str = "namespace = [\"Hub.Example\", \"index.hub.example\", \"other.example:8443\"]";

#[tokio::test(flavor = "multi_thread")]
async fn each_name_of_a_repository_is_the_repository_at_the_proxy_door() {
    // With an allowlist, what counts is whether the upstream stands in it.
    let rest = "[allowlist]\nenabled = true\ndomains = [\"127.0.0.1\"]";
    let mut scene = Proxied::start_with(Options::with_redirects(), "", [NAMES, ""], rest).await;
    let image = Image::new(1);
    scene.hub.push_image(NAME, "1", &image);
    let browser = scene.browser();
    let digest = &image.layer_digests()[0];
    let hosts = [
        "https://hub.example",
        "https://index.hub.example",
        "https://index.hub.example:443",
        "https://INDEX.hub.example",
        "http://index.hub.example",
        "http://Index.Hub.Example:80",
        "https://other.example:8443",
    ];
    for host in hosts {
        let base = browser.get(format!("{host}/v2/")).await;
        assert_eq!(base.status, 200, "{host}: {}", base.text());
        let tag = browser.get(format!("{host}/v2/{NAME}/manifests/1")).await;
        assert_eq!((tag.status, &tag.body), (200, &image.manifest.bytes), "{host}: {}", tag.text());
        let blob = browser.get(format!("{host}/v2/{NAME}/blobs/{digest}")).await;
        assert!(blob.status == 200 && blob.complete() && blob.body == image.layers[0], "{host}: {}", blob.text());
    }
    assert_eq!(scene.hub.bytes_sent(digest), image.layers[0].len() as u64, "once for all of them");
    // What came by one name is there by each, and with the upstream gone.
    scene.hub.stop().await;
    for host in hosts {
        let tag = browser.get(format!("{host}/v2/{NAME}/manifests/1")).await;
        assert_eq!((tag.status, tag.header("x-cache")), (200, "STALE"), "{host}: {}", tag.text());
    }
    // Other ports and other pages of such a host are no registry.
    for url in ["https://other.example/v2/", "https://hub.example:8443/v2/", "https://index.hub.example/v1/search?q=x"]
    {
        let other = browser.try_send("GET", url, &[], "").await;
        assert!(other.as_ref().map_or(true, |answer| answer.status == 403), "{url}: {other:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_in_ns_have_no_case_and_a_usual_port_is_none() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image(NAME, "1", &image);
    let larder = Larder::start(RepositoryConfig::new("hub").set(NAMES).upstream(&hub)).await;
    for (ns, status) in [
        ("hub.example", 200),
        ("Hub.EXAMPLE", 200),
        ("hub.example:443", 200),
        ("hub.example:80", 200),
        ("HUB.example.:443", 200),
        ("other.example:8443", 200),
        ("hub.example:5000", 404),
        ("other.example", 404),
        ("evil.example", 404),
    ] {
        let tag = get(format!("{}/v2/{NAME}/manifests/1?ns={ns}", larder.url())).await;
        assert_eq!(tag.status, status, "{ns}: {}", tag.text());
        assert!(status != 200 || tag.header("oci-namespace") == ns, "{ns}");
    }
}
