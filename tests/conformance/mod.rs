//! Promise: to clients that read, Larder is a registry as the OCI Distribution Specification 1.1 has it.
//!
//! These tests follow the specification section by section, and ask what its conformance tests ask of the workflows
//! "Pull" and "Content Discovery". Each asks the scripted upstream alone first, which shows that the test asks for
//! nothing that a registry does not give, and then asks Larder in front of it in all ways, before and after it has the
//! content. The answers have to be alike: status, the headers that the specification names, and body.
//!
//! What differs: Larder is for reading, so that every write at its registry door is answered with 405; and the names of
//! one of its repositories share their blobs.

mod discovery;
mod scene;

use self::discovery::{TAGS, push_tags, tags_of};
use self::scene::{NAME, Scene, WAYS, Way, by_each_way, expect_error, seen};
use crate::support::content::{DOCKER_MANIFEST, OCI_MANIFEST};
use crate::support::{Hub, Image, Index, Manifest, Options, blob, sha256, sha512};

/// "Determining Support": `/v2/` is answered with 200.
#[tokio::test(flavor = "multi_thread")]
async fn the_base_says_that_it_is_a_registry() {
    let ask = async |scene: &Scene| {
        // Not of one repository.
        let answer = scene.send("GET", "/v2/", &[]).await;
        (answer.status, answer.json())
    };
    by_each_way(Options::default(), |_| (), ask).await;
}

/// Manifests of all kinds that registries hold.
fn manifests() -> Vec<Manifest> {
    let (image, index) = (Image::new(1), Index::new(2, &["linux/amd64", "linux/arm64"]));
    let artifact = Image::referrer(&image.manifest, "application/vnd.example.sbom.v1", 3).manifest;
    let text = String::from_utf8(Image::new(4).manifest.bytes.to_vec()).expect("text");
    let docker = Manifest::new(text.replace(OCI_MANIFEST, DOCKER_MANIFEST), DOCKER_MANIFEST);
    let mut strong = Image::new(5).manifest;
    strong.digest = sha512(&strong.bytes);
    // The bytes count, not what they mean.
    let spaced = Manifest::new([&image.manifest.bytes[..], b"\n \n"].concat(), OCI_MANIFEST);
    vec![image.manifest, index.manifest, artifact, docker, strong, spaced]
}

fn push_manifests(hub: &Hub) {
    for (number, manifest) in manifests().iter().enumerate() {
        hub.push_manifest(NAME, Some(&format!("v{number}")), manifest);
    }
}

/// "Pulling manifests", and "Checking if content exists in the registry": by tag and by digest, 200 with the type that
/// was pushed, the digest, the length and the very bytes; HEAD the same without them.
#[tokio::test(flavor = "multi_thread")]
async fn manifests_come_by_tag_and_by_digest() {
    for begins_with in ["HEAD", "GET"] {
        let ask = async |scene: &Scene| {
            let mut all = Vec::new();
            for (number, manifest) in manifests().iter().enumerate() {
                for reference in [&format!("v{number}"), &manifest.digest] {
                    let path = scene.path(&format!("{NAME}/manifests/{reference}"));
                    let accept = [("accept", manifest.media_type.as_str())];
                    let first = scene.send(begins_with, &path, &accept).await;
                    let second = scene.send(if begins_with == "GET" { "HEAD" } else { "GET" }, &path, &accept).await;
                    let (head, get) = if begins_with == "GET" { (second, first) } else { (first, second) };
                    assert_eq!((head.status, get.status), (200, 200), "{}", scene.hub().summary());
                    assert_eq!(get.body, manifest.bytes);
                    assert!(head.body.is_empty());
                    for answer in [&head, &get] {
                        assert_eq!(answer.header("content-type"), manifest.media_type);
                        assert_eq!(answer.header("docker-content-digest"), manifest.digest);
                        assert_eq!(answer.header("content-length"), manifest.bytes.len().to_string());
                    }
                    all.extend([seen(&head), seen(&get)]);
                }
            }
            all
        };
        by_each_way(Options::default(), push_manifests, ask).await;
    }
}

/// "Pulling manifests", "Pulling blobs" and "Checking if content exists in the registry": what is not found is 404, by
/// GET and by HEAD.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_404() {
    let ask = async |scene: &Scene| {
        let nothing = sha256(b"nothing like it");
        let here = sha256(&blob(1, 1000));
        for page in [
            format!("{NAME}/manifests/nothing-like-it"),
            format!("{NAME}/manifests/{nothing}"),
            format!("{NAME}/manifests/{}", sha512(b"nothing like it")),
            format!("{NAME}/blobs/{nothing}"),
            format!("{NAME}/blobs/{}", sha512(b"nothing like it")),
            // There, under another name.
            "other/app/manifests/v0".to_owned(),
        ] {
            let answer = scene.get(&page).await;
            expect_error(&answer, &[404]);
            let code = if page.contains("/blobs/") { "BLOB_UNKNOWN" } else { "MANIFEST_UNKNOWN" };
            assert_eq!(answer.error_code(), code, "{page}");
            let answer = scene.head(&page).await;
            assert_eq!((answer.status, answer.body.len()), (404, 0), "{page}");
        }
        // And none of this is in the way of what is there.
        [
            scene.get(&format!("{NAME}/blobs/{here}")).await.status,
            scene.get(&format!("{NAME}/manifests/v0")).await.status,
        ]
    };
    let fill = |hub: &Hub| {
        push_manifests(hub);
        hub.push_blob(NAME, blob(1, 1000));
    };
    by_each_way(Options::default(), fill, ask).await;
}

/// The same of what another name has, with the one difference of a cache whose names share their content: once a blob is
/// stored, the registry door serves it under each name of its repository; the proxy door does so with all that
/// everybody may have.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_name_has_is_404_until_it_is_stored() {
    let (blob, manifest) = (blob(1, 1000), manifests().swap_remove(0));
    let pages = [format!("blobs/{}", sha256(&blob)), format!("manifests/{}", manifest.digest)];
    for way in WAYS {
        let scene = Scene::start(way, Options::default()).await;
        push_manifests(scene.hub());
        scene.hub().push_blob(NAME, blob.clone());
        for (page, content) in pages.iter().zip([&blob, &manifest.bytes]) {
            let (own, other) = (format!("{NAME}/{page}"), format!("other/app/{page}"));
            expect_error(&scene.get(&other).await, &[404]);
            assert_eq!(scene.head(&other).await.status, 404, "{way:?}");
            assert_eq!(scene.get(&own).await.body, content, "{way:?}");
            let answer = scene.get(&other).await;
            match way {
                Way::Prefix | Way::Namespace if page.starts_with("blobs") => assert_eq!(answer.status, 200),
                // What everybody may have is found out behind the answer.
                Way::Proxy if answer.status == 200 => {}
                _ => expect_error(&answer, &[404]),
            }
            assert!(answer.status == 404 || answer.body == content, "{way:?} {page}");
        }
    }
}

/// Blobs of all sizes: nothing, a byte, and more than is held back until a digest is verified.
fn blobs() -> Vec<(String, bytes::Bytes)> {
    let mut blobs: Vec<_> = [0, 1, 1000, 300_000].iter().map(|size| blob(*size as u64, *size)).collect();
    // As a config has it.
    blobs.push(bytes::Bytes::from_static(b"{}"));
    let mut named: Vec<_> = blobs.into_iter().map(|content| (sha256(&content), content)).collect();
    let strong = blob(7, 2000);
    named.push((sha512(&strong), strong));
    named
}

fn push_blobs(hub: &Hub) {
    for (digest, content) in blobs() {
        hub.push_blob_as(NAME, &digest, content);
    }
}

/// "Pulling blobs", and "Checking if content exists in the registry".
#[tokio::test(flavor = "multi_thread")]
async fn blobs_come_by_digest() {
    for options in [Options::default(), Options::with_redirects()] {
        let redirects = options.redirect != Options::default().redirect;
        let ask = async |scene: &Scene| {
            let mut all = Vec::new();
            for (digest, content) in blobs() {
                let page = format!("{NAME}/blobs/{digest}");
                if redirects && scene.way == Way::Alone {
                    // Where the content is, is for the client to follow; through Larder there is nothing to follow.
                    assert_eq!(scene.get(&page).await.status, 307);
                    continue;
                }
                for method in ["HEAD", "GET", "HEAD"] {
                    let answer = scene.ask(method, &page).await;
                    let body = if method == "GET" { &content[..] } else { b"" };
                    assert_eq!((answer.status, &answer.body[..]), (200, body), "{}", scene.hub().summary());
                    assert_eq!(answer.header("docker-content-digest"), digest);
                    assert_eq!(answer.header("content-length"), content.len().to_string());
                    all.push(seen(&answer));
                }
            }
            if redirects { Vec::new() } else { all }
        };
        by_each_way(options, push_blobs, ask).await;
    }
}

/// "Pulling blobs": `Range`, in accordance with RFC 9110.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_blobs_come_by_range() {
    let ask = async |scene: &Scene| {
        let (digest, content) = blobs().swap_remove(3);
        let path = scene.path(&format!("{NAME}/blobs/{digest}"));
        let size = content.len();
        let mut all = Vec::new();
        for (range, from, to) in [
            ("bytes=0-0", 0, 1),
            ("bytes=0-99999", 0, 100_000),
            ("bytes=100-199", 100, 200),
            ("bytes=299000-", 299_000, size),
            ("bytes=-500", size - 500, size),
            ("bytes=-400000", 0, size),
            ("bytes=299999-400000", 299_999, size),
        ] {
            let answer = scene.send("GET", &path, &[("range", range)]).await;
            assert_eq!(answer.status, 206, "{range}");
            assert!(answer.body == content[from..to], "{range}: {} bytes", answer.body.len());
            assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/{size}", to - 1), "{range}");
            assert_eq!(answer.header("content-length"), (to - from).to_string(), "{range}");
            all.push(seen(&answer));
        }
        for range in ["bytes=300000-", "bytes=300000-300001"] {
            let answer = scene.send("GET", &path, &[("range", range)]).await;
            expect_error(&answer, &[416]);
            assert_eq!(answer.header("content-range"), format!("bytes */{size}"), "{range}");
        }
        // What is no range, or in another unit, plays no part; nor has HEAD ranges.
        for (method, range) in [("GET", "bytes=9-1"), ("GET", "bytes=x"), ("GET", "lines=1-2"), ("HEAD", "bytes=1-2")] {
            let answer = scene.send(method, &path, &[("range", range)]).await;
            assert_eq!((answer.status, answer.header("content-length")), (200, "300000"), "{range}");
            all.push(seen(&answer));
        }
        let etag = scene.send("HEAD", &path, &[]).await.header("etag").to_owned();
        for (condition, status) in [(etag.as_str(), 206), ("\"another\"", 200)] {
            let answer = scene.send("GET", &path, &[("range", "bytes=5-9"), ("if-range", condition)]).await;
            assert_eq!(answer.status, status, "{condition}");
            all.push(seen(&answer));
        }
        all
    };
    by_each_way(Options::default(), push_blobs, ask).await;
}
/// "Pulling manifests" (what names, tags and digests are made of) and "Error Codes": what is none is refused, with a
/// body of the format where there is one in JSON.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_name_tag_or_digest_is_refused() {
    let ask = async |scene: &Scene| {
        let long = "a".repeat(129);
        let digest = sha256(b"");
        for page in [
            format!("{NAME}/manifests/sha256:totallywrong"),
            format!("{NAME}/manifests/sha256:{}", &digest[8..70]),
            format!("{NAME}/manifests/{}", digest.to_uppercase()),
            format!("{NAME}/manifests/md5:d41d8cd98f00b204e9800998ecf8427e"),
            format!("{NAME}/manifests/-begins-wrong"),
            format!("{NAME}/manifests/.begins-wrong"),
            format!("{NAME}/manifests/{long}"),
            format!("{NAME}/blobs/latest"),
            format!("{NAME}/blobs/sha256:totallywrong"),
            format!("{NAME}/blobs/sha512:{}", &digest[7..]),
            "Team/App/manifests/1".to_owned(),
            "team/-app/manifests/1".to_owned(),
            "team/app-/manifests/1".to_owned(),
            "team/a..b/manifests/1".to_owned(),
            "team/a___b/tags/list".to_owned(),
            "team//app/manifests/1".to_owned(),
            format!("team/App/blobs/{digest}"),
        ] {
            expect_error(&scene.get(&page).await, &[400, 404]);
            let answer = scene.head(&page).await;
            assert!(matches!(answer.status, 400 | 404) && answer.body.is_empty(), "{page}: {}", answer.status);
        }
        // And what just is at the limit of what is allowed is not.
        let edge = format!("team/a.b_c__d---e/0/manifests/{}", "a".repeat(128));
        let answer = scene.get(&edge).await;
        assert_eq!(answer.status, 200, "{edge}: {}", answer.text());
        seen(&answer)
    };
    let fill = |hub: &Hub| {
        hub.push_manifest("team/a.b_c__d---e/0", Some(&"a".repeat(128)), &Image::new(1).manifest);
    };
    by_each_way(Options::default(), fill, ask).await;
}

/// "Push" and "Content Management" are not for a cache: each endpoint that writes is answered with 405, and nothing of
/// it reaches the registry. At the proxy door the client writes to the registry itself.
#[tokio::test(flavor = "multi_thread")]
async fn writes_are_refused_or_go_to_the_registry_itself() {
    for way in WAYS {
        let scene = Scene::start(way, Options::default()).await;
        push_tags(scene.hub());
        let digest = sha256(b"");
        let writes = [
            ("POST", format!("{NAME}/blobs/uploads/")),
            ("POST", format!("{NAME}/blobs/uploads/?digest={digest}")),
            ("PATCH", format!("{NAME}/blobs/uploads/5a6d")),
            ("PUT", format!("{NAME}/blobs/uploads/5a6d?digest={digest}")),
            ("PUT", format!("{NAME}/manifests/latest")),
            ("PUT", format!("{NAME}/manifests/{digest}")),
            ("DELETE", format!("{NAME}/manifests/latest")),
            ("DELETE", format!("{NAME}/manifests/{digest}")),
            ("DELETE", format!("{NAME}/blobs/{digest}")),
            ("POST", format!("{NAME}/blobs/uploads/?mount={digest}&from=other/app")),
        ];
        for (method, page) in &writes {
            let answer = scene.ask(method, page).await;
            expect_error(&answer, &[405]);
            assert_eq!(answer.error_code(), "UNSUPPORTED", "{way:?} {method} {page}");
        }
        let reached = scene.hub().count(|request| !matches!(request.method.as_str(), "GET" | "HEAD"));
        let is_for_the_registry = matches!(way, Way::Alone | Way::Proxy);
        assert_eq!(reached, if is_for_the_registry { writes.len() } else { 0 }, "{}", scene.hub().summary());
        let list = scene.get(&format!("{NAME}/tags/list")).await;
        assert_eq!(tags_of(&list), TAGS, "{way:?}");
    }
}
