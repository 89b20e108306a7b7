//! The promises about lists: each page is reached, and no entry comes twice.

use std::collections::BTreeSet;

use serde_json::Value;

use super::scene::Scene;
use crate::support::hub::profiles::Profile;
use crate::support::{Answer, Image, Kind, Manifest, get};

/// Entries of a page, where a list has several.
const PAGE: usize = 3;
/// No list of these tests has more pages.
const MOST: usize = 20;

const SIGNATURE: &str = "application/x.signature";
const SBOM: &str = "application/x.sbom+json";
const OTHER_TYPE: &str = "application/x.other";

/// With pages so small that lists have several, where the registry has pages.
fn in_pages(mut profile: Profile) -> Profile {
    profile.options.page_size = if profile.options.page_size < 10_000 { PAGE } else { profile.options.page_size };
    profile
}

/// Follows `Link` to the end, as clients do.
async fn walk(scene: &Scene, first: &str) -> Vec<Answer> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let answer = get(format!("{}{path}", scene.larder.url())).await;
        assert_eq!(answer.status, 200, "{path}: {}\n{}", answer.text(), scene.hub.summary());
        next = answer.header("link").strip_prefix('<').map(|link| {
            let (target, parameters) = link.split_once('>').expect("a link");
            assert_eq!(parameters, "; rel=\"next\"");
            target.to_owned()
        });
        pages.push(answer);
        assert!(pages.len() < MOST, "a circle:\n{}", scene.hub.summary());
    }
    pages
}

/// The pages of a list with so many entries.
fn pages_of(scene: &Scene, entries: usize) -> usize {
    entries.div_ceil(scene.options.page_size).max(1)
}

/// All tags come, each once, by as many requests upstream as there are pages; and once more with the registry away.
pub async fn tags(profile: Profile) {
    let mut scene = Scene::warm(in_pages(profile)).await;
    let mut expected: Vec<_> = (10..17).map(|number| format!("v1.{number}")).collect();
    for tag in &expected {
        scene.hub.tag(scene.name, tag, &scene.image.manifest.digest);
    }
    expected.insert(0, "1".to_owned());
    let first = format!("/v2/{}/tags/list", scene.local());
    scene.hub.take_requests();
    for is_up in [true, false] {
        let pages = walk(&scene, &first).await;
        assert_eq!(pages.len(), pages_of(&scene, expected.len()));
        let tags: Vec<_> = pages
            .iter()
            .flat_map(|page| page.json()["tags"].as_array().expect("tags").clone())
            .map(|tag| tag.as_str().expect("a tag").to_owned())
            .collect();
        assert_eq!(tags, expected);
        if is_up {
            assert_eq!((scene.asked(), scene.asked_for_tokens()), (pages.len(), 0), "{}", scene.hub.summary());
            scene.hub.stop().await;
        } else {
            assert!(pages.iter().all(|page| page.header("x-cache") == "STALE"));
        }
    }
}

/// Signatures, bills of materials and others of the image; their digests by type.
fn push_referrers(scene: &Scene) -> Vec<(String, &'static str)> {
    let subject = &scene.image.manifest;
    let mut pushed = Vec::new();
    let mut entries = Vec::new();
    for seed in 0..9 {
        let artifact_type = [SIGNATURE, SBOM, OTHER_TYPE][seed % 3];
        let referrer = Image::referrer(subject, artifact_type, seed as u64);
        let digest = scene.hub.push_untagged(scene.name, &referrer);
        entries.push(serde_json::json!({
            "mediaType": referrer.manifest.media_type, "digest": digest,
            "size": referrer.manifest.bytes.len(), "artifactType": artifact_type,
        }));
        pushed.push((digest, artifact_type));
    }
    if !scene.options.referrers {
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
        });
        let index = Manifest::new(index.to_string(), "application/vnd.oci.image.index.v1+json");
        scene.hub.push_manifest(scene.name, Some(&subject.digest.replace(':', "-")), &index);
    }
    pushed
}

fn digests(pages: &[Answer]) -> Vec<String> {
    let manifests = pages.iter().flat_map(|page| page.json()["manifests"].as_array().expect("manifests").clone());
    manifests.map(|entry: Value| entry["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn assert_same(found: Vec<String>, expected: impl Iterator<Item = String>) {
    let (count, expected) = (found.len(), expected.collect::<BTreeSet<_>>());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(count, expected.len(), "each once");
}

/// All referrers come, each once, from all pages or from the tag that stands in for the API.
pub async fn referrers(profile: Profile) {
    let scene = Scene::warm(in_pages(profile)).await;
    let pushed = push_referrers(&scene);
    scene.hub.take_requests();
    let pages = walk(&scene, &format!("/v2/{}/referrers/{}", scene.local(), scene.image.manifest.digest)).await;
    assert_same(digests(&pages), pushed.into_iter().map(|(digest, _)| digest));
    assert!(pages.iter().all(|page| page.header("oci-filters-applied").is_empty()));
    let asked = scene.hub.count(|request| request.kind == Kind::Referrers);
    assert_eq!(asked, pages.len(), "{}", scene.hub.summary());
    if scene.options.referrers {
        assert_eq!(pages.len(), pages_of(&scene, 9));
    }
}

/// Of two filters both count, or neither does and the answer says so.
pub async fn filters(profile: Profile) {
    let scene = Scene::warm(in_pages(profile)).await;
    let pushed = push_referrers(&scene);
    let query = "artifactType=application%2Fx.signature&artifactType=application%2Fx.sbom%2Bjson";
    let first = format!("/v2/{}/referrers/{}?{query}", scene.local(), scene.image.manifest.digest);
    let pages = walk(&scene, &first).await;
    let asked = scene.hub.requests().into_iter().find(|request| request.kind == Kind::Referrers);
    assert_eq!(asked.expect("a request").query_values("artifactType"), [SIGNATURE, SBOM]);
    let is_filtered = scene.options.filters_referrers || !scene.options.referrers;
    let expected = pushed.into_iter().filter(|(_, artifact_type)| !is_filtered || *artifact_type != OTHER_TYPE);
    assert_same(digests(&pages), expected.map(|(digest, _)| digest));
    let applied = if is_filtered { "artifactType" } else { "" };
    assert!(pages.iter().all(|page| page.header("oci-filters-applied") == applied), "{}", scene.hub.summary());
}
