//! Promise: where the clients' own credentials decide, nobody reads what the upstream would not give them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::clients::{podman_pulls_as, skopeo_copies_as};
use crate::support::content::{OCI_INDEX, OCI_MANIFEST};
use crate::support::{
    Answer, Auth, Fault, Hub, Image, Larder, Manifest, On, Options, RepositoryConfig, eventually, get, request,
};

const PRIVATE: &str = "team/private";

struct Scene {
    hub: Hub,
    larder: Larder,
    image: Image,
    public: Image,
}

async fn scene(options: Options, keys: &str) -> Scene {
    let hub = Hub::start(options.user("me", "mine").user("you", "yours").private(PRIVATE, "me")).await;
    let (image, public) = (Image::new(1), Image::new(2));
    hub.push_image(PRIVATE, "1", &image);
    hub.push_image("team/public", "1", &public);
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").set(keys).upstream(&hub);
    let larder = Larder::start(config).await;
    Scene { hub, larder, image, public }
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

async fn get_as(pair: &str, url: &str) -> Answer {
    match pair {
        "" => get(url).await,
        pair => request("GET", url).header("authorization", basic(pair)).send().await,
    }
}

const ME: &str = "me:mine";
const YOU: &str = "you:yours";

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_brought_in_is_not_served_to_another() {
    let Scene { hub, larder, image, .. } = scene(Options::with_tokens(), "").await;
    let tag = larder.manifest_url("hub/team/private", "1");
    let digest = larder.manifest_url("hub/team/private", &image.manifest.digest);
    let layer = larder.blob_url("hub/team/private", &image.layer_digests()[0]);
    for url in [&tag, &digest, &layer] {
        let mine = get_as(ME, url).await;
        assert!(mine.status == 200 && mine.complete(), "{url}: {}", mine.text());
    }
    // All of it is cached now.
    for url in [&tag, &digest, &layer] {
        for (who, status) in [(YOU, 403), ("me:wrong", 403), ("nobody:x", 403), ("", 401)] {
            for method in ["GET", "HEAD"] {
                let asked = request(method, url);
                let asked = if who.is_empty() { asked } else { asked.header("authorization", basic(who)) };
                let theirs = asked.send().await;
                assert_eq!(theirs.status, status, "{method} {url} as {who}");
                assert_eq!(theirs.header("docker-content-digest"), "");
            }
        }
        assert_eq!(get_as(ME, url).await.status, 200, "{url}");
    }
    // Nor under a name that the other may read.
    let elsewhere = larder.blob_url("hub/team/public", &image.layer_digests()[0]);
    assert_eq!(get_as(YOU, &elsewhere).await.status, 404);
    let elsewhere = larder.manifest_url("hub/team/public", &image.manifest.digest);
    assert_eq!(get_as(YOU, &elsewhere).await.status, 404);
    assert_eq!(get(format!("{}/v2/_catalog", larder.url())).await.json()["repositories"], serde_json::json!([]));
    assert!(!larder.log().contains("mine") && !hub.summary().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn consent_is_remembered_for_as_long_as_it_is_configured() {
    for (keys, heads) in
        [("consent_max_age = \"1h\"\nmax_age = \"1h\"", 0), ("consent_max_age = \"0s\"\nmax_age = \"1h\"", 2)]
    {
        let Scene { hub, larder, image, .. } = scene(Options::with_tokens(), keys).await;
        let tag = larder.manifest_url("hub/team/private", "1");
        let layer = larder.blob_url("hub/team/private", &image.layer_digests()[0]);
        assert_eq!((get_as(ME, &tag).await.status, get_as(ME, &layer).await.status), (200, 200));
        hub.take_requests();
        assert_eq!((get_as(ME, &tag).await.status, get_as(ME, &layer).await.status), (200, 200));
        let asked = hub.take_requests();
        assert_eq!(asked.len(), heads, "{asked:?}");
        assert!(asked.iter().all(|request| request.method == "HEAD"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn naming_somebody_elses_content_in_a_manifest_gives_no_right_to_it() {
    let Scene { hub, larder, image, .. } = scene(Options::with_tokens(), "consent_max_age = \"1h\"").await;
    for url in
        [larder.manifest_url("hub/team/private", "1"), larder.blob_url("hub/team/private", &image.layer_digests()[0])]
    {
        assert_eq!(get_as(ME, &url).await.status, 200);
    }
    // Which registries take: an index need not have what it lists, nor a foreign layer be there.
    let entry =
        |digest: &str, media_type: &str| serde_json::json!({"mediaType": media_type, "digest": digest, "size": 1});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(&image.manifest.digest, OCI_MANIFEST)]});
    let layers = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry(&image.config_digest(), "x/y"),
        "layers": [entry(&image.layer_digests()[0], "application/vnd.oci.image.layer.nondistributable.v1.tar")]});
    for (tag, document, media_type) in [("index", index, OCI_INDEX), ("layers", layers, OCI_MANIFEST)] {
        hub.push_manifest("you/evil", Some(tag), &Manifest::new(document.to_string(), media_type));
        assert_eq!(get_as(YOU, &larder.manifest_url("hub/you/evil", tag)).await.status, 200);
    }
    for who in [YOU, ""] {
        for url in [
            larder.manifest_url("hub/you/evil", &image.manifest.digest),
            larder.blob_url("hub/you/evil", &image.layer_digests()[0]),
            larder.blob_url("hub/you/evil", &image.config_digest()),
        ] {
            let status = if who.is_empty() { 401 } else { 404 };
            assert_eq!(get_as(who, &url).await.status, status, "{url}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consent_does_not_renew_itself() {
    let Scene { hub, larder, image, .. } =
        scene(Options::with_tokens(), "consent_max_age = \"1s\"\nmax_age = \"1h\"").await;
    let digest = larder.manifest_url("hub/team/private", &image.manifest.digest);
    let layer = larder.blob_url("hub/team/private", &image.layer_digests()[0]);
    assert_eq!((get_as(ME, &digest).await.status, get_as(ME, &layer).await.status), (200, 200));
    hub.configure(|options| options.private = vec![(PRIVATE.to_owned(), "you".to_owned())]);
    hub.expire_tokens();
    // Asked for all the time, and over all the same.
    eventually("the manifest is refused", async || get_as(ME, &digest).await.status == 403).await;
    eventually("the layer is refused", async || get_as(ME, &layer).await.status == 403).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_to_log_in_is_no_consent() {
    let Scene { hub, larder, image, .. } =
        scene(Options { auth: Auth::Basic, ..Options::default() }, "consent_max_age = \"0s\"").await;
    let urls = [
        larder.manifest_url("hub/team/private", "1"),
        larder.manifest_url("hub/team/private", &image.manifest.digest),
        larder.blob_url("hub/team/private", &image.layer_digests()[0]),
    ];
    for url in &urls {
        assert_eq!(get_as(ME, url).await.status, 200);
    }
    let page = |headers: &[(&str, &str)], body: &str| Fault::reply(200, headers, body);
    for fault in [
        page(&[("content-type", "text/html")], "<title>Log in</title>"),
        page(&[("content-type", "application/octet-stream")], "soon back"),
        page(&[], ""),
    ] {
        hub.fault(On::any().before_auth(), fault.clone());
        for who in [YOU, ""] {
            for url in &urls {
                let answer = get_as(who, url).await;
                assert!(answer.status >= 400, "{who} {url} {fault:?}: {}", answer.status);
            }
        }
        hub.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_counts_also_where_another_upstream_is_down() {
    let (hub, mut down) = (
        Hub::start(Options::with_tokens().user("me", "mine")).await,
        Hub::start(Options::with_tokens().user("me", "mine")).await,
    );
    let image = Image::new(1);
    hub.push_image(PRIVATE, "1", &image);
    let config = RepositoryConfig::new("hub")
        .set("client_credentials = \"pass\"\nconsent_max_age = \"0s\"")
        .upstream(&hub)
        .upstream(&down);
    let larder = Larder::start(config).await;
    let (tag, digest) =
        (larder.manifest_url("hub/team/private", "1"), larder.manifest_url("hub/team/private", &image.manifest.digest));
    assert_eq!((get_as(ME, &tag).await.status, get_as(ME, &digest).await.status), (200, 200));
    hub.configure(|options| options.private = vec![(PRIVATE.to_owned(), "you".to_owned())]);
    hub.expire_tokens();
    down.stop().await;
    for url in [&tag, &digest] {
        let answer = get_as(ME, url).await;
        assert!(answer.status >= 400, "{url}: {}", answer.status);
    }
    // Nor does a rate limit that the client brings about itself make an old consent good.
    hub.fault(On::any(), Fault::status(429));
    assert!(get_as(ME, &digest).await.status >= 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_private_is_forgotten_when_larders_own_credentials_are_to_decide() {
    let hub = Hub::start(Options::with_tokens().user("me", "mine").private(PRIVATE, "me")).await;
    let image = Image::new(1);
    hub.push_image(PRIVATE, "1", &image);
    let pass = RepositoryConfig::new("hub").set("client_credentials = \"pass\"\nimmutable_tags = true").upstream(&hub);
    let ignore = RepositoryConfig::new("hub").set("immutable_tags = true").upstream(&hub);
    for is_restarted in [false, true] {
        let mut larder = Larder::start(&pass).await;
        let (tag, layer) = (
            larder.manifest_url("hub/team/private", "1"),
            larder.blob_url("hub/team/private", &image.layer_digests()[0]),
        );
        assert_eq!((get_as(ME, &tag).await.status, get_as(ME, &layer).await.status), (200, 200));
        larder.write_config(&ignore);
        if is_restarted {
            larder.restart().await;
        } else {
            eventually("it is read", async || larder.log().contains("the configuration was read again")).await;
        }
        let (tag, layer) = (
            larder.manifest_url("hub/team/private", "1"),
            larder.blob_url("hub/team/private", &image.layer_digests()[0]),
        );
        for who in ["", ME] {
            assert_eq!((get_as(who, &tag).await.status, get_as(who, &layer).await.status), (403, 403), "{who}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_coming_in_when_larders_own_credentials_are_to_decide_stays_private() {
    let hub = Hub::start(Options::with_tokens().user("me", "mine").private(PRIVATE, "me")).await;
    let image = Image::with_layers(1, &[400_000]);
    hub.push_image(PRIVATE, "1", &image);
    let pass = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream(&hub);
    let mut larder = Larder::start(&pass).await;
    let digest = &image.layer_digests()[0];
    let layer = larder.blob_url("hub/team/private", digest);
    let gate = hub.gate(On::blob().reference(digest), 100_000);
    let mine = {
        let layer = layer.clone();
        tokio::spawn(async move { get_as(ME, &layer).await })
    };
    gate.reached().await;
    larder.write_config(RepositoryConfig::new("hub").upstream(&hub));
    eventually("it is read", async || larder.log().contains("the configuration was read again")).await;
    gate.open();
    assert_eq!(mine.await.expect("no panic").body, image.layers[0]);
    let stored = larder.object(digest);
    eventually("it is stored", async || stored.exists()).await;
    for who in ["", ME] {
        assert_eq!(get_as(who, &layer).await.status, 403, "{who}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_hides_from_one_client_stays_there_for_others() {
    let Scene { mut hub, larder, image, .. } =
        scene(Options::with_tokens(), "on_upstream_404 = \"drop\"\nnegative_max_age = \"0s\"").await;
    let tag = larder.manifest_url("hub/team/private", "1");
    assert_eq!(get_as(ME, &tag).await.status, 200);
    hub.fault(On::manifest().head().times(1), Fault::status(404));
    assert_eq!(get_as(YOU, &tag).await.status, 403, "it has no token for it");
    assert_eq!(get(&tag).await.status, 401);
    hub.fault(On::manifest().before_auth(), Fault::status(404));
    assert_eq!(get_as(YOU, &tag).await.status, 404);
    hub.stop().await;
    assert_eq!(get_as(ME, &tag).await.body, image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_private_content_are_not_found_out_page_by_page() {
    let Scene { hub, larder, .. } = scene(Options::with_tokens(), "").await;
    assert_eq!(get_as(ME, &larder.manifest_url("hub/team/private", "1")).await.status, 200);
    let page = get(format!("{}/v2/_catalog?n=1", larder.url())).await;
    assert_eq!((page.json()["repositories"].clone(), page.header("link")), (serde_json::json!([]), ""));
    drop(hub);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_loses_its_rights_does_not_break_anothers_pull() {
    let hub = Hub::start(Options::with_tokens().user("me", "mine").user("you", "yours")).await;
    let image = Image::with_layers(1, &[4_000_000]);
    hub.push_image(PRIVATE, "1", &image);
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").upstream_with(&hub, "parallel = 1");
    let larder = Larder::start(config).await;
    let digest = &image.layer_digests()[0];
    let layer = larder.blob_url("hub/team/private", digest);
    let begun = On::blob().get().reference(digest).times(1);
    let gate = hub.gate(begun.clone(), 1_000_000);
    hub.fault(begun, Fault::Short { after: 1_500_000 });
    let pull = |who: &'static str| {
        let layer = layer.clone();
        tokio::spawn(async move { get_as(who, &layer).await })
    };
    let first = pull(ME);
    gate.reached().await;
    let second = pull(YOU);
    eventually("the other has joined", async || hub.count_on(On::blob().head()) == 1).await;
    // The transfer breaks off, and who began it is refused from now on.
    hub.configure(|options| options.private = vec![(PRIVATE.to_owned(), "you".to_owned())]);
    hub.expire_tokens();
    gate.open();
    let theirs = second.await.expect("no panic");
    assert!(theirs.complete() && theirs.body == image.layers[0], "{:?}", theirs.error);
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_upstream_gone_those_it_agreed_to_are_served_and_nobody_else() {
    let Scene { mut hub, larder, image, .. } = scene(Options::with_tokens(), "consent_max_age = \"0s\"").await;
    let tag = larder.manifest_url("hub/team/private", "1");
    let layer = larder.blob_url("hub/team/private", &image.layer_digests()[0]);
    assert_eq!((get_as(ME, &tag).await.status, get_as(ME, &layer).await.status), (200, 200));
    hub.stop().await;
    let stale = get_as(ME, &tag).await;
    assert_eq!((stale.status, stale.header("x-cache")), (200, "STALE"));
    assert_eq!(get_as(ME, &layer).await.status, 200);
    for url in [&tag, &layer] {
        assert_eq!((get_as(YOU, url).await.status, get_as("", url).await.status), (502, 401), "{url}");
    }
}

/// The token of our own service for who comes with this login.
async fn own_token(larder: &Larder, pair: &str) -> String {
    let given = get_as(pair, &format!("{}/token?service=larder", larder.url())).await;
    format!("Bearer {}", given.json()["token"].as_str().expect("a token"))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_no_login_is_asked_for_one_whatever_keeps_the_upstream_from_answering() {
    let keys = "consent_max_age = \"1h\"";
    for fault in [
        Fault::reply(429, &[("retry-after", "1")], "slow down"),
        Fault::status(500),
        Fault::status(404),
        Fault::status(403),
        Fault::Drop,
        Fault::HtmlInstead,
    ] {
        let Scene { hub, larder, image, .. } = scene(Options::with_tokens(), keys).await;
        let tag = larder.manifest_url("hub/team/private", "1");
        let digest = larder.manifest_url("hub/team/private", &image.manifest.digest);
        let layer = larder.blob_url("hub/team/private", &image.layer_digests()[0]);
        for url in [&tag, &digest, &layer] {
            assert_eq!(get_as(ME, url).await.status, 200);
        }
        eventually("it is stored", async || larder.object(&image.layer_digests()[0]).exists()).await;
        hub.fault(On::any().before_auth(), fault.clone());
        let nobodys = own_token(&larder, "").await;
        let mine = own_token(&larder, ME).await;
        for url in [&tag, &digest, &layer] {
            for method in ["HEAD", "GET"] {
                let asked = request(method, url).send().await;
                assert_eq!(asked.status, 401, "{method} {url} {fault:?}: {}", asked.text());
                let challenge = asked.header("www-authenticate");
                assert!(challenge.starts_with("Bearer realm=") && !challenge.contains("error="), "{challenge}");
            }
            // Who has said that it has no login is told the truth.
            let told = request("GET", url).header("authorization", &nobodys).send().await;
            assert!(told.status > 401 || matches!(fault, Fault::Status(403, ..)), "{url} {fault:?}: {}", told.status);
        }
        // What the upstream agreed to a moment ago is there for the login.
        for url in [&digest, &layer] {
            let served = request("GET", url).header("authorization", &mine).send().await;
            assert_eq!(served.status, 200, "{url} {fault:?}: {}", served.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_told_in_a_way_that_ends_the_asking_and_is_remembered_for_who_got_it() {
    let keys = "negative_max_age = \"1h\"";
    let Scene { hub, mut larder, image, .. } = scene(Options::with_tokens(), keys).await;
    let (name, tag) = ("hub/team/private", larder.manifest_url("hub/team/private", "1"));
    let digest = larder.manifest_url(name, &image.manifest.digest);
    let (nobodys, yours, mine) =
        (own_token(&larder, "").await, own_token(&larder, YOU).await, own_token(&larder, ME).await);
    for who in [&nobodys, &yours] {
        for url in [&tag, &digest] {
            hub.take_requests();
            // As containerd does: each try is a HEAD and a GET, and each with a fresh token.
            for method in ["HEAD", "HEAD", "GET", "HEAD", "HEAD", "GET"] {
                let denied = request(method, url).header("authorization", who).send().await;
                assert!(matches!(denied.status, 401 | 403), "{method} {url}: {}", denied.status);
                if denied.status == 401 {
                    let challenge = denied.header("www-authenticate");
                    assert!(challenge.contains(",error=\"insufficient_scope\""), "{challenge}");
                }
            }
            let (asked, tokens) = (hub.count(|request| !request.name.is_empty()), hub.count_on(On::token()));
            assert!(asked <= 4 && tokens <= 2, "{}", hub.summary());
        }
    }
    // Nobody else is denied for it.
    let served = request("GET", &tag).header("authorization", &mine).send().await;
    assert_eq!(served.status, 200, "{}", served.text());
    // Nor is it remembered when the configuration was read again.
    hub.configure(|options| options.private.clear());
    hub.expire_tokens();
    assert_eq!(request("GET", &tag).header("authorization", &nobodys).send().await.status, 401);
    let config = RepositoryConfig::new("hub").set("client_credentials = \"pass\"").set("max_age = \"1s\"").set(keys);
    larder.write_config(config.upstream(&hub));
    eventually("it is forgotten", async || {
        request("GET", &tag).header("authorization", &nobodys).send().await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_transfer_is_joined_only_with_the_upstreams_consent() {
    let Scene { hub, larder, image, .. } = scene(Options::with_tokens(), "").await;
    let digest = &image.layer_digests()[0];
    let layer = larder.blob_url("hub/team/private", digest);
    let gate = hub.gate(On::blob().reference(digest), 1000);
    let first = {
        let layer = layer.clone();
        tokio::spawn(async move { get_as(ME, &layer).await })
    };
    gate.reached().await;
    assert_eq!(get_as(YOU, &layer).await.status, 403);
    assert_eq!(get_as("", &layer).await.status, 401);
    gate.open();
    assert_eq!(first.await.expect("no panic").body, image.layers[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_sent_to_a_token_service_that_works_for_it() {
    let Scene { hub, larder, image, public, .. } = scene(Options::with_tokens(), "").await;
    let base = format!("{}/v2/", larder.url());
    let asked = get(&base).await;
    assert_eq!((asked.status, asked.error_code().as_str()), (401, "UNAUTHORIZED"));
    let challenge = asked.header("www-authenticate").to_owned();
    let realm = challenge.strip_prefix("Bearer realm=\"").and_then(|rest| rest.split('"').next()).expect("a realm");
    assert_eq!(realm, format!("{}/token", larder.url()));

    let token = async |pair: &str| {
        let answer = get_as(pair, &format!("{realm}?service=larder&scope=repository:hub/team/private:pull")).await;
        assert_eq!(answer.status, 200);
        let token = answer.json()["token"].as_str().expect("a token").to_owned();
        assert!(pair.is_empty() || !token.contains(BASE64_STANDARD.encode(pair).trim_end_matches('=')));
        format!("Bearer {token}")
    };
    let with = async |token: &str, url: &str| request("GET", url).header("authorization", token).send().await;
    let (mine, wrong, nobody) = (token(ME).await, token("me:wrong").await, token("").await);
    let private = larder.manifest_url("hub/team/private", "1");
    assert_eq!(with(&mine, &private).await.body, image.manifest.bytes);
    assert_eq!(with(&wrong, &private).await.status, 403);
    assert_eq!(with(&nobody, &private).await.status, 401);
    assert_eq!(with(&nobody, &larder.manifest_url("hub/team/public", "1")).await.body, public.manifest.bytes);
    assert_eq!(with("Bearer larder.AAAA", &private).await.status, 401);
    // A token that the client got from the upstream itself.
    let theirs =
        get_as(ME, &format!("{}/token?scope=repository:team/private:pull", hub.token_url().trim_end_matches("/token")))
            .await;
    let theirs = format!("Bearer {}", theirs.json()["token"].as_str().expect("a token"));
    assert_eq!(with(&theirs, &private).await.status, 200);
    assert_eq!(with("Bearer forged", &private).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_taken_or_refused_as_the_upstream_says() {
    let hub = Hub::start(Options::with_tokens().user("me", "mine")).await;
    let config = RepositoryConfig::new("docker.io").set("client_credentials = \"pass\"").upstream(&hub);
    let larder = Larder::start(config).await;
    let base = format!("{}/v2/", larder.url());
    assert_eq!(get_as(ME, &base).await.status, 200);
    assert_eq!(get_as("me:wrong", &base).await.status, 401);
    assert_eq!(get(&base).await.status, 401);
    for garbage in ["", "Basic", "Basic !!!", "Basic AAAA", "Bearer", "\u{7f}"] {
        let Ok(value) = http::HeaderValue::from_str(garbage) else { continue };
        let answer = request("GET", &base).header("authorization", value.to_str().unwrap_or("x y")).send().await;
        assert!((400..500).contains(&answer.status), "{garbage}: {}", answer.status);
    }
    let huge = format!("Basic {}", "A".repeat(20_000));
    assert_eq!(request("GET", &base).header("authorization", huge).send().await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_with_basic_authentication_works_too() {
    let Scene { hub: _hub, larder, image, .. } = scene(Options { auth: Auth::Basic, ..Options::default() }, "").await;
    let tag = larder.manifest_url("hub/team/private", "1");
    assert_eq!(get_as(ME, &tag).await.body, image.manifest.bytes);
    assert_eq!((get_as(YOU, &tag).await.status, get_as("", &tag).await.status), (403, 401));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_of_one_client_is_not_everybodys() {
    let Scene { hub, larder, .. } = scene(Options::with_tokens(), "").await;
    hub.fault(On::manifest().name(PRIVATE).times(1), Fault::reply(429, &[("retry-after", "600")], "slow down"));
    let tag = larder.manifest_url("hub/team/private", "1");
    assert_eq!(get_as(ME, &tag).await.status, 429);
    assert_eq!(get_as(ME, &tag).await.status, 429, "it is kept to");
    assert_eq!(get_as(YOU, &larder.manifest_url("hub/team/public", "1")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_for_who_may_see_them() {
    let Scene { hub: _hub, larder, .. } = scene(Options::with_tokens(), "max_age = \"1h\"").await;
    let list = format!("{}/v2/hub/team/private/tags/list", larder.url());
    assert_eq!(get_as(ME, &list).await.json()["tags"], serde_json::json!(["1"]));
    assert_eq!((get_as(YOU, &list).await.status, get_as("", &list).await.status), (403, 401));
}

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_log_in_with_the_credentials_of_the_upstream() {
    let Scene { hub: _hub, larder, .. } = scene(Options::with_tokens(), "").await;
    let address = larder.url().trim_start_matches("http://").to_owned();
    for (name, who, is_served) in [
        ("hub/team/private:1", Some(ME), true),
        ("hub/team/private:1", Some(YOU), false),
        ("hub/team/private:1", Some("me:wrong"), false),
        ("hub/team/private:1", None, false),
        ("hub/team/public:1", None, true),
    ] {
        let reference = format!("{address}/{name}");
        let copied = skopeo_copies_as(&reference, who).await;
        assert_eq!(copied.is_ok(), is_served, "skopeo, {name} as {who:?}: {copied:?}");
        if !is_served {
            let pulled = podman_pulls_as(&reference, who).await;
            let told = format!("{:?}", pulled.expect_err("podman pulled it"));
            assert!(
                told.contains("unauthorized") || told.contains("denied") || told.contains("authentication"),
                "{told}"
            );
        }
    }
}
