//! Promise: upstreams are found the way that the configuration and the network want it.

use std::net::SocketAddr;

use crate::support::{
    Authority, Fault, ForwardProxy, Hub, Image, Larder, On, Options, Redirect, RepositoryConfig, TlsFront, get, request,
};

const NAME: &str = "hub/team/app";

async fn hub(options: Options) -> (Hub, Image) {
    let hub = Hub::start(options).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    (hub, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_is_reached_through_a_proxy() {
    let (hub, image) = hub(Options::default()).await;
    let proxy = ForwardProxy::start(hub.address()).await;
    let url = "http://registry.invalid";
    let own = format!("http_proxy = \"http://user:secret@{}\"", proxy.address());
    let larder = Larder::start(RepositoryConfig::new("hub").upstream_url(url, &own)).await;
    assert_eq!(get(larder.manifest_url(NAME, "1")).await.body, image.manifest.bytes);
    let heads = proxy.heads();
    assert!(heads.iter().all(|head| head.contains(" http://registry.invalid/v2/team/app/")), "{heads:?}");
    assert!(heads[0].to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq="), "{heads:?}");
    assert!(!larder.log().contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_a_proxy_as_a_tunnel() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let (hub, image) = hub(Options::default()).await;
    let authority = Authority::new(dir.path(), "ca");
    let front = TlsFront::start(&hub, &authority.issue("registry.invalid"), None).await;
    let target: SocketAddr = front.url().trim_start_matches("https://").parse().expect("an address");
    let proxy = ForwardProxy::start(target).await;
    let ca = format!("server_ca_bundle = \"{}\"", authority.file().display());
    let config = RepositoryConfig::new("hub").upstream_url("https://registry.invalid", &ca);
    // The usual environment variable, which is not for what NO_PROXY names.
    let proxy_url = format!("http://{}", proxy.address());
    let larder = Larder::builder().config(config.clone()).env("HTTPS_PROXY", &proxy_url).start().await;
    assert_eq!(get(larder.manifest_url(NAME, "1")).await.body, image.manifest.bytes);
    assert!(proxy.heads()[0].starts_with("CONNECT registry.invalid:443 "), "{:?}", proxy.heads());

    let seen = proxy.heads().len();
    let excepted =
        Larder::builder().config(config).env("HTTPS_PROXY", &proxy_url).env("NO_PROXY", ".invalid").start().await;
    assert_eq!(get(excepted.manifest_url(NAME, "1")).await.status, 502);
    assert_eq!(proxy.heads().len(), seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environment_is_not_for_this_machine() {
    let (hub, image) = hub(Options::default()).await;
    let config = RepositoryConfig::new("hub").upstream(&hub);
    let larder = Larder::builder().config(config).env("HTTP_PROXY", "http://127.0.0.1:1").start().await;
    assert_eq!(get(larder.manifest_url(NAME, "1")).await.body, image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_set_on_requests_that_begin_at_their_host_alone() {
    let (hub, image) = hub(Options::default()).await;
    hub.configure(|options| options.redirect = Redirect::Absolute);
    let config = format!(
        "[headers.\"{}\".set]\nX-Registry = \"one\"\nX-Both = \"set\"\n[headers.\"{}\".set]\nX-Storage = \"two\"\n{}",
        hub.address(),
        hub.storage_url().trim_start_matches("http://"),
        RepositoryConfig::new("hub").upstream_with(&hub, "headers = { X-Upstream = \"three\", X-Both = \"lost\" }")
    );
    let larder = Larder::start(config).await;
    assert!(get(larder.manifest_url(NAME, "1")).await.complete());
    assert!(get(larder.blob_url(NAME, &image.layer_digests()[0])).await.complete());
    for request in hub.requests() {
        let is_storage = matches!(request.listener, crate::support::Listener::Storage);
        assert_eq!(request.header("x-registry"), (!is_storage).then_some("one"), "{request:?}");
        assert_eq!(request.header("x-both"), (!is_storage).then_some("set"), "{request:?}");
        assert_eq!(request.header("x-upstream"), (!is_storage).then_some("three"), "{request:?}");
        // The registry leads there: with the headers for the storage it would read whatever they may.
        assert_eq!(request.header("x-storage"), None, "{request:?}");
    }
    assert!(hub.requests().iter().any(|request| matches!(request.listener, crate::support::Listener::Storage)));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end_somewhere() {
    let (hub, _) = hub(Options::default()).await;
    let itself = format!("{}/v2/team/app/manifests/1", hub.url());
    for location in [itself.as_str(), "1", "//", "http://", "ftp://127.0.0.1/x", "http://does-not-exist.invalid/", ""] {
        hub.take_requests();
        let fault = hub.fault(On::manifest(), Fault::reply(307, &[("location", location)], ""));
        let larder = Larder::start(RepositoryConfig::new("hub").upstream_with(&hub, "max_redirect = 3")).await;
        let answer = get(larder.manifest_url(NAME, "1")).await;
        assert_eq!(answer.status, 502, "{location}: {}", answer.text());
        // The first and three redirects, all that once more at most.
        assert!(hub.requests().len() <= 8, "{location}: {}", hub.summary());
        fault.lift();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_trusted_proxy_are_told_to_stay_on_tls() {
    let (hub, _) = hub(Options::with_tokens()).await;
    let pass = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&hub).to_string();
    for (trusted, scheme) in [("[\"127.0.0.0/8\"]", "https"), ("[\"10.0.0.0/8\"]", "http")] {
        let larder = Larder::start(format!("[server]\ntrusted_proxies = {trusted}\n{pass}")).await;
        let base = request("GET", format!("{}/v2/", larder.url()));
        let asked = base.header("host", "mirror.test").header("x-forwarded-proto", "https").send().await;
        let challenge = asked.header("www-authenticate");
        assert!(challenge.contains(&format!("realm=\"{scheme}://mirror.test/token\"")), "{challenge}");
    }
}
