//! Promise: to clients that read, Larder is a registry as the OCI Distribution Specification 1.1 has it.
//!
//! These tests follow the specification section by section, and ask what its conformance tests ask of the workflows
//! "Pull" and "Content Discovery". Each asks the scripted upstream alone first, which shows that the test asks for
//! nothing that a registry does not give, and then asks Larder in front of it in all ways, before and after it has the
//! content. The answers have to be alike: status, the headers that the specification names, and body.
//!
//! What differs: Larder is for reading, so that every write at its registry door is answered with 405; and the names of
//! one of its repositories share their blobs.

use serde_json::{Value, json};

use crate::support::content::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::support::{Answer, Browser, Hub, Image, Index, Manifest, Options, Proxied, blob, request, sha256, sha512};

const NAME: &str = "team/app";
/// Headers that the specification (and RFC 9110, for ranges) gives a meaning.
const HEADERS: [&str; 5] =
    ["content-type", "content-length", "docker-content-digest", "content-range", "oci-filters-applied"];
/// The table of "Error Codes".
const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];
/// Codes that Docker's registry has beside that table, and Larder too (see docs/errors.md).
const CODES_OF_DOCKER: [&str; 2] = ["TAG_INVALID", "RANGE_INVALID"];

/// Whom a client asks, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The registry itself.
    Alone,
    /// Larder's registry door: `/v2/hub/NAME/…`
    Prefix,
    /// Larder's registry door: `/v2/NAME/…?ns=hub`
    Namespace,
    /// The registry by its own address, with Larder for a proxy.
    Proxy,
}

const WAYS: [Way; 4] = [Way::Alone, Way::Prefix, Way::Namespace, Way::Proxy];

/// A registry and a Larder in front of it, asked in one way.
struct Scene {
    way: Way,
    proxied: Proxied,
    browser: Browser,
}

impl Scene {
    async fn start(way: Way, options: Options) -> Self {
        // What is pushed between two questions is to show at once.
        let keys = "namespace = [\"hub\"]\nnegative_max_age = \"0s\"";
        let proxied = Proxied::start_with(options, "", [keys, ""], "").await;
        let browser = proxied.browser();
        Self { way, proxied, browser }
    }

    fn hub(&self) -> &Hub {
        &self.proxied.hub
    }

    /// The path and query by which the client asks for a page of the registry, such as `team/app/tags/list?n=2`.
    fn path(&self, page: &str) -> String {
        match self.way {
            Way::Alone | Way::Proxy => format!("/v2/{page}"),
            Way::Prefix => format!("/v2/hub/{page}"),
            Way::Namespace => format!("/v2/{page}{}ns=hub", if page.contains('?') { '&' } else { '?' }),
        }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let origin = match self.way {
            Way::Alone => self.hub().url(),
            Way::Prefix | Way::Namespace => self.proxied.larder.url(),
            Way::Proxy => {
                return self.browser.send(method, format!("{}{path}", self.proxied.front.url()), headers, "").await;
            }
        };
        let request = request(method, format!("{origin}{path}"));
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().await
    }

    async fn ask(&self, method: &str, page: &str) -> Answer {
        self.send(method, &self.path(page), &[]).await
    }

    async fn get(&self, page: &str) -> Answer {
        self.ask("GET", page).await
    }

    async fn head(&self, page: &str) -> Answer {
        self.ask("HEAD", page).await
    }

    /// Follows `Link` to the end, as RFC 5988 says, and gives the answers.
    async fn pages(&self, page: &str) -> Vec<Answer> {
        let mut answers = vec![self.get(page).await];
        while let Some(target) = next(answers.last().expect("one at least")) {
            answers.push(self.send("GET", &target, &[]).await);
            assert!(answers.len() < 20, "{:?}: a circle", self.way);
        }
        answers
    }
}

/// The path and query of the next page, where the answer tells one.
fn next(answer: &Answer) -> Option<String> {
    let (target, parameters) = answer.header("link").strip_prefix('<')?.split_once('>').expect("a link");
    assert_eq!(parameters, "; rel=\"next\"");
    Some(target.to_owned())
}

/// What a client sees of an answer that gives it something.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: bytes::Bytes,
    has_next: bool,
}

fn seen(answer: &Answer) -> Seen {
    assert!(answer.complete(), "{:?}", answer.error);
    let headers = HEADERS.iter().map(|name| (*name, answer.header(name).to_owned())).collect();
    Seen { status: answer.status, headers, body: answer.body.clone(), has_next: next(answer).is_some() }
}

/// "Error Codes": the status is one of these, and a body in JSON has the format and a code of the table.
fn expect_error(answer: &Answer, statuses: &[u16]) {
    assert!(statuses.contains(&answer.status), "{} {}", answer.status, answer.text());
    if answer.body.is_empty() {
        return;
    }
    let errors = answer.json()["errors"].clone();
    let errors = errors.as_array().unwrap_or_else(|| panic!("no errors: {}", answer.text()));
    assert!(!errors.is_empty() && answer.header("content-type").starts_with("application/json"));
    for error in errors {
        let code = error["code"].as_str().expect("a code");
        assert!(CODES.contains(&code) || CODES_OF_DOCKER.contains(&code), "{code}");
        assert!(error["message"].is_string() || error["message"].is_null(), "{error}");
    }
}

/// Asks in each way, cold and warm. What is seen has to be what the registry alone shows, which is asked first.
async fn by_each_way<T: PartialEq + std::fmt::Debug>(
    options: Options,
    fill: impl Fn(&Hub),
    ask: impl AsyncFn(&Scene) -> T,
) {
    let mut alone = None;
    for way in WAYS {
        let scene = Scene::start(way, options.clone()).await;
        fill(scene.hub());
        for state in ["cold", "warm"] {
            let seen = ask(&scene).await;
            match &alone {
                None => alone = Some(seen),
                Some(alone) => assert_eq!(&seen, alone, "{way:?}, {state}"),
            }
        }
    }
}

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

const TAGS: [&str; 8] = ["0", "1.0", "1.0-alpine", "1.1_x", "TEST", "latest", "test1", "v2.0.0-rc.1"];

fn push_tags(hub: &Hub) {
    let image = Image::new(1);
    hub.push_image(NAME, "latest", &image);
    for tag in TAGS {
        hub.tag(NAME, tag, &image.manifest.digest);
    }
}

fn tags_of(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let list = answer.json();
    assert_eq!(list["name"], NAME);
    serde_json::from_value(list["tags"].clone()).expect("a list of tags")
}

/// "Listing Tags": all of them in order, `n` of them, those behind `last`, none for `n=0`.
#[tokio::test(flavor = "multi_thread")]
async fn tags_are_listed() {
    let ask = async |scene: &Scene| {
        let mut all = Vec::new();
        for (query, from, to, has_more) in [
            ("", 0, 8, false),
            ("?n=3", 0, 3, true),
            ("?n=8", 0, 8, false),
            ("?n=100", 0, 8, false),
            ("?n=0", 0, 0, false),
            ("?last=1.0-alpine", 3, 8, false),
            ("?n=2&last=1.0-alpine", 3, 5, true),
            ("?last=1.0-alpine&n=2", 3, 5, true),
            ("?n=4&last=TEST", 5, 8, false),
            // Between two that are there.
            ("?n=2&last=beta", 5, 7, true),
            ("?n=2&last=v2.0.0-rc.1", 8, 8, false),
            ("?n=0&last=1.0", 0, 0, false),
        ] {
            let answer = scene.get(&format!("{NAME}/tags/list{query}")).await;
            assert_eq!(tags_of(&answer), TAGS[from..to], "{:?} {query}", scene.way);
            // A registry need not send a link, so `n` is what a client can go by: there has to be more, or it has all.
            assert_eq!(next(&answer).is_some(), has_more, "{:?} {query}", scene.way);
            assert!(answer.header("content-type").starts_with("application/json"));
            all.push(seen(&answer));
        }
        for page in ["tags/list?n=3", "tags/list?n=1&last=0"] {
            let pages = scene.pages(&format!("{NAME}/{page}")).await;
            let tags: Vec<_> = pages.iter().flat_map(tags_of).collect();
            assert_eq!(tags, TAGS[if page.contains("last") { 1 } else { 0 }..]);
            all.extend(pages.iter().map(seen));
        }
        let unknown = scene.get("nobody/knows/tags/list").await;
        expect_error(&unknown, &[404]);
        assert_eq!(unknown.error_code(), "NAME_UNKNOWN");
        all
    };
    by_each_way(Options::default(), push_tags, ask).await;
}

const SIGNATURE: &str = "application/vnd.example.signature.v1";
const SBOM: &str = "application/vnd.example.sbom.v1+json";

/// An artifact without `artifactType`, of the type of its config.
fn typed_by_config(subject: &Manifest) -> Manifest {
    let image = Image::referrer(subject, "", 4);
    let mut document: Value = serde_json::from_slice(&image.manifest.bytes).expect("JSON");
    document["config"]["mediaType"] = SIGNATURE.into();
    document.as_object_mut().expect("an object").remove("artifactType");
    Manifest::new(document.to_string(), OCI_MANIFEST)
}

/// An index that refers to a subject.
fn index_of(subject: &Manifest, artifact_type: Option<&str>) -> Manifest {
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.bytes.len()},
        "annotations": {"org.example.of": "an index"},
    });
    if let Some(artifact_type) = artifact_type {
        document["artifactType"] = artifact_type.into();
    }
    Manifest::new(document.to_string(), OCI_INDEX)
}

/// A subject that was never pushed.
fn missing_subject() -> Manifest {
    Image::new(99).manifest
}

/// What refers to the image, with the type that the list has to give it.
fn referrers() -> Vec<(Manifest, Option<&'static str>)> {
    let subject = Image::new(1).manifest;
    vec![
        (Image::referrer(&subject, SIGNATURE, 1).manifest, Some(SIGNATURE)),
        (Image::referrer(&subject, SBOM, 2).manifest, Some(SBOM)),
        (Image::referrer(&subject, SBOM, 3).manifest, Some(SBOM)),
        (typed_by_config(&subject), Some(SIGNATURE)),
        (index_of(&subject, Some(SBOM)), Some(SBOM)),
        (index_of(&subject, None), None),
    ]
}

fn push_referrers(hub: &Hub) {
    hub.push_image(NAME, "1", &Image::new(1));
    for (manifest, _) in referrers() {
        hub.push_manifest(NAME, None, &manifest);
    }
    hub.push_manifest(NAME, None, &Image::referrer(&missing_subject(), SIGNATURE, 5).manifest);
}

/// The descriptors of a list of referrers.
fn descriptors(answer: &Answer) -> Vec<Value> {
    assert_eq!((answer.status, answer.header("content-type")), (200, OCI_INDEX), "{}", answer.text());
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(OCI_INDEX)));
    index["manifests"].as_array().expect("a list, be it empty").clone()
}

/// The descriptors that "Listing Referrers" asks for, of those with this type or of all.
fn expected(artifact_type: Option<&str>) -> Vec<Value> {
    let mut all = referrers();
    all.retain(|(_, of)| artifact_type.is_none() || *of == artifact_type);
    all.sort_by(|(one, _), (other, _)| one.digest.cmp(&other.digest));
    let descriptor = |(manifest, artifact_type): &(Manifest, Option<&str>)| {
        let document: Value = serde_json::from_slice(&manifest.bytes).expect("JSON");
        let mut descriptor = json!({
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": manifest.bytes.len(),
            "annotations": document["annotations"],
        });
        if let Some(artifact_type) = artifact_type {
            descriptor["artifactType"] = (*artifact_type).into();
        }
        descriptor
    };
    all.iter().map(descriptor).collect()
}

/// "Listing Referrers": an index of all that refer to a digest, also to one that is not there, with their types and
/// annotations; those of a type only, and the header that says so; an empty one where there are none.
#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_listed() {
    let subject = Image::new(1).manifest.digest;
    let ask = async |scene: &Scene| {
        let all = scene.get(&format!("{NAME}/referrers/{subject}")).await;
        assert_eq!(descriptors(&all), expected(None));
        assert_eq!(all.header("oci-filters-applied"), "");
        let mut answers = vec![all];
        for artifact_type in [SIGNATURE, SBOM, "application/vnd.example.unknown"] {
            for written in [artifact_type.replace('+', "%2B"), artifact_type.replace('/', "%2F").replace('+', "%2B")] {
                let some = scene.get(&format!("{NAME}/referrers/{subject}?artifactType={written}")).await;
                assert_eq!(descriptors(&some), expected(Some(artifact_type)), "{written}");
                assert_eq!(some.header("oci-filters-applied"), "artifactType");
                answers.push(some);
            }
        }
        let missing = scene.get(&format!("{NAME}/referrers/{}", missing_subject().digest)).await;
        assert_eq!(descriptors(&missing).len(), 1);
        answers.push(missing);
        for unknown in [sha256(b"nobody refers to it"), sha512(b"nobody refers to it")] {
            for query in ["", "?artifactType=application/x"] {
                let none = scene.get(&format!("{NAME}/referrers/{unknown}{query}")).await;
                assert_eq!(descriptors(&none), Vec::<Value>::new());
                answers.push(none);
            }
        }
        for wrong in ["sha256:totallywrong", "sha256:00", "latest"] {
            expect_error(&scene.get(&format!("{NAME}/referrers/{wrong}")).await, &[400]);
        }
        answers.iter().map(seen).collect::<Vec<_>>()
    };
    by_each_way(Options::default(), push_referrers, ask).await;
}

/// "Listing Referrers": a list that does not fit into one manifest comes page by page, each of them an index.
#[tokio::test(flavor = "multi_thread")]
async fn long_lists_of_referrers_come_page_by_page() {
    let subject = Image::new(1).manifest.digest;
    let ask = async |scene: &Scene| {
        let mut all = Vec::new();
        for (query, artifact_type) in [("", None), ("?artifactType=application/vnd.example.sbom.v1%2Bjson", Some(SBOM))]
        {
            let pages = scene.pages(&format!("{NAME}/referrers/{subject}{query}")).await;
            let found: Vec<_> = pages.iter().flat_map(descriptors).collect();
            assert_eq!(found, expected(artifact_type), "{:?} {query}", scene.way);
            assert_eq!(pages.len(), found.len().div_ceil(2), "{:?} {query}", scene.way);
            all.extend(pages.iter().map(seen));
        }
        all
    };
    by_each_way(Options { page_size: 2, ..Options::default() }, push_referrers, ask).await;
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
