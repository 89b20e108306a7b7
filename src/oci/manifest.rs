//! As much of manifests and indexes as a cache needs: what they refer to and what type they are.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::media_type::{self, MediaType};

/// Most descriptors taken from one manifest. More than any real image has; it bounds the index rows
/// that one upstream answer can cause.
const MAX_CHILDREN: usize = 4096;

/// What a manifest refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Configuration and layers of an image, or the manifests of an index, without repetition.
    pub children: Vec<Child>,
    /// The manifest that this one is attached to (a referrer).
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

/// Whether a child is to be asked for as a manifest or as a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    Manifest,
    Blob,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
}

impl Outline {
    /// Reads the outline of a manifest. What is no JSON, or of a form not known here, has no
    /// children: it is still content that can be served.
    pub fn read(bytes: &[u8]) -> Self {
        let Ok(document) = serde_json::from_slice::<Document>(bytes) else {
            return Self::default();
        };
        let blobs = document.config.into_iter().chain(document.layers.into_iter().flatten());
        let manifests = document.manifests.into_iter().flatten();
        let listed = blobs
            .map(|descriptor| (descriptor, ChildKind::Blob))
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
}

/// The media type of a manifest whose upstream did not name one, or whose index row was lost: what
/// the document says of itself, else what its members imply (OCI Image Specification, "mediaType").
pub fn media_type_of(bytes: &[u8]) -> MediaType {
    let implied = match serde_json::from_slice::<Document>(bytes) {
        Ok(document) => match document.media_type.as_deref().and_then(MediaType::of_others) {
            Some(named) => return named,
            None if document.manifests.is_some() => media_type::OCI_INDEX,
            None => media_type::OCI_MANIFEST,
        },
        Err(_) => media_type::OCI_MANIFEST,
    };
    MediaType::new(implied)
}

/// Whether `bytes` can be a manifest at all: a JSON object.
pub fn is_plausible(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes).is_ok()
}

/// Whether a document says that it is a manifest: it has a member that only those have. Any page of a web service may be
/// a JSON object.
pub fn says_so(bytes: &[u8]) -> bool {
    const MEMBERS: [&str; 6] = ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];
    let document = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes);
    document.is_ok_and(|document| MEMBERS.iter().any(|member| document.contains_key(*member)))
}

/// An image index made here, of the manifests that refer to a subject; the answer of the referrers
/// API for an upstream without it.
#[derive(Serialize)]
pub struct ReferrersIndex {
    #[serde(rename = "schemaVersion")]
    schema_version: u8,
    #[serde(rename = "mediaType")]
    media_type: &'static str,
    manifests: Vec<serde_json::Value>,
}

impl ReferrersIndex {
    pub fn new(manifests: Vec<serde_json::Value>) -> Self {
        Self { schema_version: 2, media_type: media_type::OCI_INDEX, manifests }
    }

    /// From the index under a fallback tag; `None` when that is no index.
    pub fn from_fallback_tag(bytes: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<serde_json::Value>,
        }
        let index: Index = serde_json::from_slice(bytes).ok()?;
        Some(Self::new(index.manifests))
    }

    /// Keeps the referrers that are of one of these artifact types.
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
                Child { digest: config, size: 3, kind: ChildKind::Blob },
                Child { digest: layer, size: 5, kind: ChildKind::Blob },
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
    fn what_cannot_be_read_has_no_children() {
        for text in ["", "{", "[]", "null", r#"{"layers":[{"digest":"nonsense","size":1}]}"#] {
            assert_eq!(Outline::read(text.as_bytes()), Outline::default(), "{text}");
        }
        assert!(!is_plausible(b"<html>"));
        assert!(!is_plausible(b"[]"));
        assert!(!says_so(br#"{"hits":1}"#) && says_so(br#"{"schemaVersion":2}"#) && says_so(br#"{"manifests":[]}"#));
    }
}
