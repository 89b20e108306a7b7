//! The workflow "Content Discovery": lists of tags and of referrers.

use serde_json::{Value, json};

use super::scene::{NAME, Scene, by_each_way, expect_error, next, seen};
use crate::support::content::{OCI_INDEX, OCI_MANIFEST};
use crate::support::{Answer, Hub, Image, Manifest, Options, sha256, sha512};

pub const TAGS: [&str; 8] = ["0", "1.0", "1.0-alpine", "1.1_x", "TEST", "latest", "test1", "v2.0.0-rc.1"];

pub fn push_tags(hub: &Hub) {
    let image = Image::new(1);
    hub.push_image(NAME, "latest", &image);
    for tag in TAGS {
        hub.tag(NAME, tag, &image.manifest.digest);
    }
}

pub fn tags_of(answer: &Answer) -> Vec<String> {
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
