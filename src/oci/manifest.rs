//! The parts of manifests and indexes that a cache needs: the objects that they refer to, and their media type.

use std::sync::LazyLock;

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::media_type::{self, MediaType};

/// Most descriptors that are taken from one manifest. No real image has so many; the limit bounds the index rows that
/// one upstream response can cause.
const MAX_CHILDREN: usize = 4096;

/// The objects that a manifest refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The configuration and layers of an image, or the manifests of an index, each once.
    pub children: Vec<Child>,
    /// The manifest that this manifest is attached to, as a referrer.
    pub subject: Option<Digest>,
}

/// One descriptor of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    pub digest: Digest,
    /// Length in bytes, as the manifest states it.
    pub size: u64,
    pub kind: ChildKind,
}

/// Whether a child is requested as a manifest or as a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    Manifest,
    /// A blob: the configuration of an image, or what an artifact has in its place. Also each blob of a manifest that
    /// cannot be read as a whole.
    Config,
    /// Any other blob.
    Layer,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    /// Layers of Docker's first format.
    #[serde(rename = "fsLayers")]
    fs_layers: Option<Vec<FsLayer>>,
    signatures: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(default)]
    digest: String,
    /// Old manifests at quay.io have layers of size -1 (quay#3683).
    #[serde(default, deserialize_with = "size")]
    size: u64,
}

#[derive(Deserialize)]
struct FsLayer {
    #[serde(rename = "blobSum")]
    blob_sum: String,
}

/// Reads a length in bytes; anything else counts as 0.
fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_u64().unwrap_or_default())
}

impl Outline {
    /// Reads the outline of a manifest. A document of an unknown form has no children: its content can still be served.
    /// In a document that cannot be parsed, the digests are read that can be found.
    pub fn read(bytes: &[u8]) -> Self {
        let Ok(document) = serde_json::from_slice::<Document>(bytes) else {
            return Self::of_digests_in(bytes);
        };
        let fs_layers = document.fs_layers.into_iter().flatten();
        let fs_layers = fs_layers.map(|layer| Descriptor { digest: layer.blob_sum, size: 0 });
        let layers = document.layers.into_iter().flatten().chain(fs_layers);
        let manifests = document.manifests.into_iter().flatten();
        let config = document.config.into_iter().map(|descriptor| (descriptor, ChildKind::Config));
        let listed = config
            .chain(layers.map(|descriptor| (descriptor, ChildKind::Layer)))
            .chain(manifests.map(|descriptor| (descriptor, ChildKind::Manifest)));

        let mut seen = std::collections::HashSet::new();
        let children = listed
            .filter_map(|(descriptor, kind)| {
                let digest = descriptor.digest.parse().ok()?;
                let size = descriptor.size;
                seen.insert(digest).then_some(Child { digest, size, kind })
            })
            .take(MAX_CHILDREN)
            .collect();
        let subject = document.subject.and_then(|subject| subject.digest.parse().ok());
        Self { children, subject }
    }

    /// Reads the digests of JSON that the library refuses and other clients accept: lone surrogates, numbers without
    /// end, deep nesting (containerd#5632).
    fn of_digests_in(bytes: &[u8]) -> Self {
        static DIGEST: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(r#""(?:digest|blobSum)"\s*:\s*"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})""#).ok()
        });
        static INDEX: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r#""manifests"\s*:\s*\["#).ok());
        let is_index = INDEX.as_ref().is_some_and(|index| index.is_match(bytes));
        let kind = if is_index { ChildKind::Manifest } else { ChildKind::Config };
        let mut seen = std::collections::HashSet::new();
        let found = DIGEST.iter().flat_map(|digest| digest.captures_iter(bytes));
        let digests = found.filter_map(|found| std::str::from_utf8(found.get(1)?.as_bytes()).ok()?.parse().ok());
        let children = digests.filter(|digest| seen.insert(*digest)).take(MAX_CHILDREN);
        Self { children: children.map(|digest| Child { digest, size: 0, kind }).collect(), subject: None }
    }
}

/// Returns the media type of a manifest whose upstream named none, or whose index row was lost: the type that the
/// document states, otherwise the type that its members imply (OCI Image Specification, "mediaType"), otherwise that of
/// an OCI image manifest.
pub fn media_type_of(bytes: &[u8]) -> MediaType {
    own_media_type(bytes).unwrap_or_else(|| MediaType::new(media_type::OCI_MANIFEST))
}

/// Returns the media type that a document states or that its members imply; `None` if there is neither.
pub fn own_media_type(bytes: &[u8]) -> Option<MediaType> {
    let document = serde_json::from_slice::<Document>(bytes).ok()?;
    let implied = match document.media_type.as_deref().and_then(MediaType::of_others) {
        Some(named) => return Some(named),
        None if document.manifests.is_some() => media_type::OCI_INDEX,
        None if document.layers.is_some() => media_type::OCI_MANIFEST,
        None if document.fs_layers.is_some() && document.signatures.is_some() => media_type::SIGNED_SCHEMA1,
        None if document.fs_layers.is_some() => media_type::SCHEMA1,
        None => return None,
    };
    Some(MediaType::new(implied))
}

/// Returns whether a document looks like a manifest: it has a member that only manifests have. Any page of a web
/// service may be a JSON object.
pub fn says_so(bytes: &[u8]) -> bool {
    const MEMBERS: [&str; 6] = ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];
    let document = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes);
    document.is_ok_and(|document| MEMBERS.iter().any(|member| document.contains_key(*member)))
}

/// Returns whether a stored document of unknown origin is a manifest: all formats of manifests state a version of their
/// schema, and image configurations do not.
pub fn is_one(bytes: &[u8]) -> bool {
    static VERSION: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r#""schemaVersion"\s*:\s*[12]\b"#).ok());
    bytes.first() == Some(&b'{') && VERSION.as_ref().is_some_and(|version| version.is_match(bytes))
}

/// An image index that Larder makes of the manifests that refer to a subject: the response of the referrers API for an
/// upstream without that API.
#[derive(Serialize)]
pub struct ReferrersIndex {
    #[serde(rename = "schemaVersion")]
    schema_version: u8,
    #[serde(rename = "mediaType")]
    media_type: &'static str,
    manifests: Vec<serde_json::Value>,
}

impl ReferrersIndex {
    /// Makes an index of these descriptors.
    pub fn new(manifests: Vec<serde_json::Value>) -> Self {
        Self { schema_version: 2, media_type: media_type::OCI_INDEX, manifests }
    }

    /// Reads the index under a fallback tag; `None` if the document is no index.
    pub fn from_fallback_tag(bytes: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<serde_json::Value>,
        }
        let index: Index = serde_json::from_slice(bytes).ok()?;
        Some(Self::new(index.manifests))
    }

    /// Adds a manifest, described as registries describe it (OCI Distribution Specification, "Listing Referrers"): with
    /// its annotations, and its artifact type or else the type of its configuration.
    pub fn add(&mut self, digest: &Digest, media_type: &MediaType, bytes: &[u8]) {
        let document: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        let stated = document.get("artifactType").filter(|stated| stated.as_str().is_some_and(|text| !text.is_empty()));
        let artifact_type = stated.or_else(|| document.get("config")?.get("mediaType"));
        let mut descriptor = serde_json::json!({
            "mediaType": media_type.as_str(),
            "digest": digest.to_string(),
            "size": bytes.len(),
        });
        for (key, value) in [("artifactType", artifact_type), ("annotations", document.get("annotations"))] {
            if let Some(value) = value {
                descriptor[key] = value.clone();
            }
        }
        self.manifests.push(descriptor);
    }

    /// Keeps only the referrers that have one of these artifact types.
    pub fn filter(&mut self, artifact_types: &[String]) {
        self.manifests.retain(|manifest| {
            let is_of = manifest.get("artifactType").and_then(|value| value.as_str());
            is_of.is_some_and(|is_of| artifact_types.iter().any(|wanted| wanted == is_of))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::Sha256([byte; 32])
    }

    #[test]
    fn an_image_refers_to_its_configuration_and_each_layer_once() {
        let (config, layer) = (digest(1), digest(2));
        let text = format!(
            r#"{{"config":{{"digest":"{config}","size":3}},"layers":[{{"digest":"{layer}","size":5}},{{"digest":"{layer}","size":5}}]}}"#
        );
        let children = Outline::read(text.as_bytes()).children;
        assert_eq!(
            children,
            [
                Child { digest: config, size: 3, kind: ChildKind::Config },
                Child { digest: layer, size: 5, kind: ChildKind::Layer },
            ]
        );
    }

    #[test]
    fn an_index_refers_to_manifests_and_a_referrer_to_its_subject() {
        let text = format!(
            r#"{{"manifests":[{{"digest":"{}","size":7}}],"subject":{{"digest":"{}"}}}}"#,
            digest(1),
            digest(2)
        );
        let outline = Outline::read(text.as_bytes());
        assert_eq!(outline.children[0].kind, ChildKind::Manifest);
        assert_eq!(outline.subject, Some(digest(2)));
        assert_eq!(media_type_of(text.as_bytes()).as_str(), media_type::OCI_INDEX);
    }

    #[test]
    fn of_odd_documents_what_can_be_read_is_read() {
        let (config, layer) = (digest(1), digest(2));
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for (odd, sizes) in [
            (
                format!(r#"{{"config":{{"digest":"{config}","size":-1}},"layers":[{{"digest":"{layer}","size":5}}]}}"#),
                [0, 5],
            ),
            (format!(r#"{{"config":{{"digest":"{config}","size":"x"}},"layers":[{{"digest":"{layer}"}}]}}"#), [0, 0]),
            (format!(r#"{{"x":"\ud800","config":{{"digest":"{config}"}},"layers":[{{"digest":"{layer}"}}]}}"#), [0, 0]),
            (format!(r#"{{"x":{deep},"config":{{"digest":"{config}"}},"layers":[{{"digest" : "{layer}"}}]}}"#), [0, 0]),
            (format!(r#"{{"schemaVersion":1,"fsLayers":[{{"blobSum":"{config}"}},{{"blobSum":"{layer}"}}]}}"#), [0, 0]),
        ] {
            let found: Vec<_> = Outline::read(odd.as_bytes()).children;
            let digests: Vec<_> = found.iter().map(|child| child.digest).collect();
            assert_eq!(digests, [config, layer], "{odd}");
            assert!(found.iter().all(|child| child.kind != ChildKind::Manifest));
            assert_eq!(found.iter().map(|child| child.size).collect::<Vec<_>>(), sizes);
        }
        let index = format!(r#"{{"x":"\ud800","manifests":[{{"digest":"{config}"}}]}}"#);
        assert_eq!(Outline::read(index.as_bytes()).children[0].kind, ChildKind::Manifest);
    }

    #[test]
    fn what_cannot_be_read_has_no_children() {
        for text in ["", "{", "[]", "null", r#"{"layers":[{"digest":"nonsense","size":1}]}"#, "<html>"] {
            assert_eq!(Outline::read(text.as_bytes()), Outline::default(), "{text}");
        }
        assert!(!says_so(br#"{"hits":1}"#) && says_so(br#"{"schemaVersion":2}"#) && says_so(br#"{"manifests":[]}"#));
    }
}
