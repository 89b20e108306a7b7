//! Promise: what an upstream says of its own comes through: its reason for a refusal, bytes that only their digest vouches
//! for, and what it has as a blob or as a manifest. And a failure that passes does not reach a client.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    Fault, Hub, Image, Larder, Manifest, On, Options, RepositoryConfig, blob, eventually, get, head, repository_config,
    request, sha256, sha512,
};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn scene(options: Options) -> (Hub, Larder, Image) {
    let hub = Hub::start(options).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    (hub, larder, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_for_a_refusal_reaches_the_client() {
    let reason = "you need a licence: accept the terms at https://registry.example/terms first";
    let json = json!({ "errors": [{ "code": "DENIED", "message": reason, "detail": null }] }).to_string();
    for (status, media_type, body) in [
        (403, "application/json", json.as_str()),
        (404, "application/json", json.as_str()),
        (451, "application/json", json.as_str()),
        (403, "text/plain; charset=utf-8", reason),
        (412, "application/json", json.as_str()),
    ] {
        let (hub, larder, image) = scene(Options::default()).await;
        hub.fault(On::any(), Fault::reply(status, &[("content-type", media_type)], body));
        for url in [
            larder.manifest_url("hub/team/app", "1"),
            larder.manifest_url("hub/team/app", &image.manifest.digest),
            larder.blob_url("hub/team/app", &image.layer_digests()[0]),
            format!("{}/v2/hub/team/app/tags/list", larder.url()),
        ] {
            let answer = get(&url).await;
            let told = &answer.json()["errors"][0];
            assert!(told["detail"].to_string().contains(reason), "{status} {url}: {told}");
            assert!(answer.status >= 400);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_that_repeats_a_login_stays_here() {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::new(1));
    let keys = "headers = { x-key = \"geheim-1234\", cookie = \"session=geheimer-keks\" }\nusername = \"u\"\npassword = \"geheim!wort\"";
    let config = RepositoryConfig::new("hub").set("negative_max_age = \"0s\"").upstream_with(&hub, keys);
    let larder = Larder::start(config).await;
    for echo in [
        "you sent X-Key: geheim-1234",
        "Authorization: Basic dTpw",
        "your token was Bearer abc",
        "bad credentials u:geheim!wort",
        "no session geheimer-keks",
        "what is dTpnZWhlaW0hd29ydA==",
    ] {
        hub.fault(On::any(), Fault::reply(403, &[("content-type", "text/plain")], echo));
        let answer = get(larder.manifest_url("hub/team/app", "1")).await;
        assert_eq!(answer.status, 403);
        for secret in ["geheim", "dTp", "Bearer abc"] {
            assert!(!answer.text().contains(secret), "{}", answer.text());
        }
        hub.clear_faults();
        // Nor by a warning.
        hub.fault(On::manifest(), Fault::Header("warning".to_owned(), format!("299 - \"{echo}\"")));
        hub.fault(On::manifest(), Fault::Header("warning".to_owned(), "299 - \"old\"".to_owned()));
        let answer = get(larder.manifest_url("hub/team/app", "1")).await;
        assert_eq!((answer.status, answer.header("warning")), (200, "299 - \"old\""), "{echo}");
        hub.clear_faults();
        request("DELETE", format!("{}/api/cache", larder.admin_url())).send().await;
    }
    assert!(!larder.log().contains("geheim"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_no_manifest_and_a_manifest_is_a_blob_only_where_the_upstream_has_it_as_one() {
    let (mut hub, larder, image) = scene(Options::default()).await;
    // A document that looks like a manifest, and is a blob.
    let lookalike = hub.push_blob("team/app", json!({ "schemaVersion": 2, "layers": [] }).to_string());
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let blobs = [image.config_digest(), image.layer_digests()[0].clone(), lookalike];
    for digest in &blobs {
        assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
        eventually("it is stored", async || larder.has_stored(std::slice::from_ref(digest)).await).await;
    }
    for digest in &blobs {
        for method in ["GET", "HEAD"] {
            let answer = request(method, larder.manifest_url("hub/team/app", digest)).send().await;
            assert_eq!(answer.status, 404, "{method} {}", answer.text());
        }
    }
    let manifest = &image.manifest;
    for method in ["GET", "HEAD"] {
        let answer = request(method, larder.blob_url("hub/team/app", &manifest.digest)).send().await;
        assert_eq!(answer.status, 404, "{method}");
    }
    hub.push_blob("team/app", manifest.bytes.clone());
    eventually("its absence is forgotten", async || {
        get(larder.blob_url("hub/team/app", &manifest.digest)).await.status == 200
    })
    .await;
    assert_eq!(get(larder.manifest_url("hub/team/app", &manifest.digest)).await.header("content-type"), OCI_MANIFEST);
    hub.stop().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", &manifest.digest)).await.status, 200);
    assert_eq!(get(larder.blob_url("hub/team/app", &manifest.digest)).await.body, manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_documents_under_the_right_digest_pass_as_they_are() {
    let (mut hub, larder, image) = scene(Options::default()).await;
    let layer = &image.layer_digests()[0];
    let config = image.config_digest();
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let odd = [
        format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":-1}},"layers":[{{"digest":"{layer}","size":-1}}]}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"annotations":{{"x":"\ud800"}},"config":{{"digest":"{config}","size":1}},"layers":[{{"digest":"{layer}","size":1}}]}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"x":{deep},"config":{{"digest":"{config}","size":1}},"layers":[{{"digest":"{layer}","size":1}}]}}"#
        ),
    ];
    for (at, document) in odd.iter().enumerate() {
        let manifest = Manifest::new(document.clone(), OCI_MANIFEST);
        let tag = format!("odd{at}");
        hub.push_manifest("team/app", Some(&tag), &manifest);
        for reference in [&tag, &manifest.digest] {
            let answer = get(larder.manifest_url("hub/team/app", reference)).await;
            assert_eq!((answer.status, answer.body.as_ref()), (200, document.as_bytes()), "{document}");
        }
    }
    // Their layers are known: a purge takes them along.
    assert!(get(larder.blob_url("hub/team/app", layer)).await.complete());
    eventually("it is stored", async || larder.object(layer).exists()).await;
    hub.stop().await;
    for at in 0..odd.len() {
        assert_eq!(get(larder.manifest_url("hub/team/app", &format!("odd{at}"))).await.status, 200);
    }
    for at in 0..odd.len() {
        let purged =
            request("DELETE", format!("{}/api/cache?reference=hub/team/app:odd{at}", larder.admin_url())).send().await;
        assert_eq!(purged.status, 200, "{}", purged.text());
    }
    eventually("the layer goes with the last image", async || !larder.object(layer).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_manifest_of_the_first_format_passes() {
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    let (hub, larder, _) = scene(Options::default()).await;
    let payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"team/app\",\n   \"fsLayers\": []\n}";
    let (front, tail) = payload.split_at(payload.len() - 2);
    let protected =
        json!({ "formatLength": front.len(), "formatTail": BASE64_URL_SAFE_NO_PAD.encode(tail) }).to_string();
    let protected = BASE64_URL_SAFE_NO_PAD.encode(protected);
    let signed = format!("{front},\n   \"signatures\": [{{ \"protected\": \"{protected}\" }}]\n}}");
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let mut manifest = Manifest::new(signed.clone(), media_type);
    manifest.digest = sha256(payload.as_bytes());
    hub.push_manifest("team/app", Some("old"), &manifest);
    for reference in ["old", &manifest.digest, "old"] {
        let answer = get(larder.manifest_url("hub/team/app", reference)).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, media_type), "{}", answer.text());
        assert_eq!(answer.body, signed);
        assert_eq!(answer.header("docker-content-digest"), manifest.digest);
    }
    assert!(!larder.object(&manifest.digest).exists(), "what lies in the store has its digest");

    // It is not kept under the digest for others: they get what their own upstream has.
    let other = Hub::start(Options::default()).await;
    let plain = Manifest::new(payload, "application/vnd.docker.distribution.manifest.v1+json");
    other.push_manifest("team/app", None, &plain);
    let two = Larder::start(repository_config("hub", &[&hub]) + &repository_config("other", &[&other])).await;
    assert_eq!(get(two.manifest_url("hub/team/app", "old")).await.body, signed);
    assert_eq!(get(two.manifest_url("other/team/app", &manifest.digest)).await.body, payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_names_its_own_digest_does_not_become_a_tag() {
    let (hub, larder, image) = scene(Options::default()).await;
    let page = "<!doctype html><title>Log in</title>";
    let headers = [("content-type", "text/html; charset=utf-8"), ("docker-content-digest", &sha256(page.as_bytes()))];
    let struck = hub.fault(On::manifest(), Fault::reply(200, &headers, page));
    let url = larder.manifest_url("hub/team/app", "1");
    let refused = get(&url).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (502, "UNAVAILABLE"), "{}", refused.text());
    struck.lift();
    assert_eq!(get(&url).await.body, image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_canonical_digest_of_another_algorithm_contradicts_nothing() {
    let hub = Hub::start(Options::default()).await;
    let bytes = blob(7, 200_000);
    let digest = sha512(&bytes);
    for name in ["team/app", "team/other"] {
        hub.push_blob_as(name, &digest, bytes.clone());
    }
    let larder = Larder::start(repository_config("hub", &[&hub]) + &repository_config("two", &[&hub])).await;
    let canonical = sha256(&bytes);
    hub.fault(On::blob(), Fault::header("docker-content-digest", &canonical));
    assert_eq!(head(larder.blob_url("hub/team/app", &digest)).await.status, 200);
    assert_eq!(get(larder.blob_url("hub/team/app", &digest)).await.body, bytes);
    eventually("it is stored", async || larder.object(&digest).exists()).await;
    let shared = get(larder.blob_url("two/team/other", &digest)).await;
    assert_eq!((shared.status, shared.header("x-cache")), (200, "HIT"), "{}", shared.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_asked_for_in_parts_that_make_up_the_whole_is_not_ended_properly() {
    let hub = Hub::start(Options::default()).await;
    let size = 200_000;
    let digest = hub.push_blob("team/app", blob(3, size));
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::blob().get(), Fault::WrongBytes);
    for range in
        [format!("bytes=0-0,1-{}", size - 1), format!("bytes=1-{},0-0", size - 1), format!("bytes=0-{}", size - 1)]
    {
        let answer = request("GET", larder.blob_url("hub/team/app", &digest)).header("range", range).send().await;
        assert!(answer.status == 502 || !answer.complete(), "{} {}", answer.status, answer.body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_without_a_length_is_answered_at_once_whatever_range_is_asked_for() {
    let hub = Hub::start(Options::default()).await;
    let bytes = blob(5, 3 << 20);
    let digest = hub.push_blob("team/app", bytes.clone());
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::blob().get(), Fault::NoContentLength);
    let gate = hub.gate(On::blob().get(), 1 << 20);
    let from_start = request("GET", larder.blob_url("hub/team/app", &digest)).header("range", "bytes=0-").open().await;
    let middle =
        request("GET", larder.blob_url("hub/team/app", &digest)).header("range", "bytes=1000-1999").open().await;
    // The heads are here, and the gate is closed.
    assert_eq!((from_start.status, middle.status), (206, 206));
    assert_eq!(middle.header("content-range"), format!("bytes 1000-1999/{}", bytes.len()));
    gate.open();
    assert_eq!(from_start.read_to_end().await.body, bytes);
    assert_eq!(middle.read_to_end().await.body, bytes.slice(1000..2000));

    // Where nothing tells the length, all of it comes.
    let other = hub.push_blob("team/app", blob(6, 3 << 20));
    hub.clear_faults();
    hub.fault(On::blob(), Fault::NoContentLength);
    hub.fault(On::blob(), Fault::NoAcceptRanges);
    let gate = hub.gate(On::blob().get(), 1 << 20);
    let whole = request("GET", larder.blob_url("hub/team/app", &other)).header("range", "bytes=0-").open().await;
    assert_eq!(whole.status, 200);
    gate.open();
    assert_eq!(whole.read_to_end().await.body, blob(6, 3 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_asked_for_once_more_at_the_registry_and_at_its_storage() {
    for (on, status) in [(On::blob(), 502), (On::blob(), 500), (On::storage(), 503), (On::blob(), 503)] {
        let (hub, larder, image) = scene(Options::with_redirects()).await;
        hub.fault(on.get().times(1), Fault::status(status));
        let urls =
            image.layer_digests().iter().map(|digest| larder.blob_url("hub/team/app", digest)).collect::<Vec<_>>();
        // Those who ask at the same time never see the failure, whoever began.
        for answer in join_all((0..6).map(|at| get(&urls[at % urls.len()]))).await {
            assert!(answer.status == 200 && answer.complete(), "{status}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_timed_out_is_not_asked_again() {
    let (hub, larder, image) = scene(Options::default()).await;
    hub.fault(On::blob().get(), Fault::status(504));
    let answer = get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await;
    assert_eq!(answer.status, 504);
    assert_eq!(hub.count_on(On::blob().get()), 1, "{}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_breaks_before_a_byte_again_and_again_and_then_recovers_sends_the_blob() {
    let (hub, larder, image) = scene(Options::default()).await;
    hub.fault(On::blob().get().times(3), Fault::Short { after: 0 });
    let answer = get(larder.blob_url("hub/team/app", &image.layer_digests()[0])).await;
    assert!(answer.status == 200 && answer.complete(), "{} {}", answer.status, answer.text());
    hub.fault(On::blob().get(), Fault::Short { after: 0 });
    let answer = get(larder.blob_url("hub/team/app", &image.layer_digests()[1])).await;
    // The head said that it comes; it does not end as if all had come.
    assert!(answer.status == 502 || !answer.complete(), "{} {}", answer.status, answer.body.len());
    assert!(!larder.log().contains("sends the right content"), "a break is no wrong content");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirects_address_is_used_until_it_is_refused() {
    let hub = Hub::start(Options::with_redirects()).await;
    let bytes = blob(8, 24 << 20);
    let digest = hub.push_blob("team/app", bytes.clone());
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    hub.fault(On::storage().get(), Fault::Throttle { bytes_per_second: 4 << 20, chunk: 64 << 10 });
    let mut reading = request("GET", larder.blob_url("hub/team/app", &digest)).open().await;
    assert_eq!(reading.read_exact(100).await, bytes.slice(..100));
    eventually("parts are asked for", async || hub.count_on(On::storage().get()) >= 4).await;
    assert_eq!(hub.count_on(On::blob()), 1, "{}", hub.summary());
    // The address ends: the registry gives another one.
    hub.expire_redirects();
    let rest = reading.read_to_end().await;
    assert!(rest.body == bytes.slice(100..), "{} bytes, {:?}", rest.body.len(), rest.error);
    assert!(hub.count_on(On::blob()) <= 4, "{}", hub.summary());
}
