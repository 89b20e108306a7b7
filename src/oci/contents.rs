//! What a manifest says of its parts, for people: types, sizes, platforms
//! (OCI Image Specification, "Image Manifest" and "Image Index"; BuildKit's attestations:
//! <https://docs.docker.com/build/metadata/attestations/attestation-storage/>).

use std::collections::HashMap;

use serde::Deserialize;

use super::digest::Digest;
use super::manifest::ChildKind;

/// Most parts that are read of one manifest: what people can look through. Real images have at most 127 layers, the limit
/// of their filesystem, and indexes some dozens of platforms.
const MOST: usize = 512;
/// Longest text that is taken from a manifest, in characters.
const LONGEST: usize = 200;

/// One descriptor of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    pub kind: ChildKind,
    /// As `os/architecture/variant`; only in an index.
    pub platform: Option<String>,
    /// Whether it is no image, but says something of one: BuildKit's provenance or SBOM.
    pub is_attestation: bool,
}

#[derive(Deserialize)]
struct Document {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: serde_json::Value,
    #[serde(default)]
    media_type: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<HashMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

/// Returns the parts of a manifest; none of a document of an unknown form.
pub fn contents(bytes: &[u8]) -> Vec<Content> {
    let Ok(Document { config, layers, manifests }) = serde_json::from_slice(bytes) else {
        return Vec::new();
    };
    let config = config.into_iter().map(|descriptor| (descriptor, ChildKind::Config));
    let layers = layers.into_iter().map(|descriptor| (descriptor, ChildKind::Layer));
    let manifests = manifests.into_iter().map(|descriptor| (descriptor, ChildKind::Manifest));
    config.chain(layers).chain(manifests).filter_map(content).take(MOST).collect()
}

fn content((descriptor, kind): (Descriptor, ChildKind)) -> Option<Content> {
    let short = |text: String| text.chars().take(LONGEST).collect::<String>();
    let platform = descriptor.platform.map(|platform| {
        let parts = [platform.os, platform.architecture, platform.variant];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        short(parts.join("/"))
    });
    let annotations = descriptor.annotations.unwrap_or_default();
    Some(Content {
        digest: descriptor.digest.parse().ok()?,
        size: descriptor.size.as_u64().unwrap_or_default(),
        media_type: short(descriptor.media_type),
        kind,
        platform: platform.filter(|platform| !platform.is_empty()),
        is_attestation: annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(document: &serde_json::Value) -> Vec<Content> {
        contents(document.to_string().as_bytes())
    }

    #[test]
    fn platforms_and_attestations_of_an_index_are_told_apart() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let found = read(&json!({"manifests": [
            {"digest": digest("a"), "size": 7, "mediaType": "m", "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
            {"digest": digest("b"), "size": 8, "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {"vnd.docker.reference.type": "attestation-manifest", "n": 1}},
            {"digest": "none", "size": 8},
        ]}));
        let told: Vec<_> =
            found.iter().map(|part| (part.platform.as_deref(), part.is_attestation, part.size)).collect();
        assert_eq!(told, [(Some("linux/arm/v7"), false, 7), (Some("unknown/unknown"), true, 8)]);
    }

    #[test]
    fn layers_come_behind_the_configuration_and_strange_documents_have_no_parts() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let found = read(&json!({
            "config": {"digest": digest("c"), "size": 1},
            "layers": [{"digest": digest("d"), "size": -1, "mediaType": "x".repeat(9_000)}],
        }));
        assert_eq!(found.iter().map(|part| part.kind).collect::<Vec<_>>(), [ChildKind::Config, ChildKind::Layer]);
        assert_eq!((found[1].size, found[1].media_type.len()), (0, LONGEST));
        assert!(read(&json!([])).is_empty() && contents(b"\xff").is_empty());
        let many: Vec<_> = (0..9_000).map(|_| json!({"digest": digest("e")})).collect();
        assert_eq!(read(&json!({"layers": many})).len(), MOST);
    }
}
