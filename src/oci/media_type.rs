//! Media types of manifests and indexes.

use std::fmt;

/// The OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The OCI image manifest; artifacts use it too.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker's manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Docker's first image manifest, unsigned.
pub const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker's first image manifest, signed.
pub const SIGNED_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// The `Accept` header of Larder's requests to upstreams, whatever the client listed: so one tag has one digest in the
/// cache. These are the types that current clients name, and `*/*` for future ones.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A media type as the upstream wrote it. Clients get it unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MediaType(String);

impl MediaType {
    /// Longest media type that is accepted from upstreams and documents: type and subtype have at most 127 characters
    /// each (RFC 6838, section 4.2), and there may be parameters.
    const LONGEST: usize = 512;

    /// Reads the type that an upstream or a document states; `None` if it is empty or too long to be a media type.
    pub fn of_others(text: &str) -> Option<Self> {
        (1..=Self::LONGEST).contains(&text.len()).then(|| Self::new(text))
    }

    /// Creates a media type from its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the type with its parameters, as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the type without its parameters, in lower case.
    pub fn essence(&self) -> String {
        let essence = self.0.split(';').next().unwrap_or_default();
        essence.trim().to_ascii_lowercase()
    }

    /// Returns whether content of this type can be a manifest. Artifacts may have types that nobody knows, so only the
    /// types of web pages and of opaque downloads are excluded.
    pub fn may_be_manifest(&self) -> bool {
        let essence = self.essence();
        essence != "text/html" && essence != "application/xhtml+xml" && essence != "application/octet-stream"
    }

    /// Returns whether the type says nothing about a document: registries, and mirrors in front of them, send manifests
    /// with these types (ollama/ollama's registry as text/plain, LightMirrors#9).
    pub fn says_nothing(&self) -> bool {
        matches!(self.essence().as_str(), "application/json" | "text/plain" | "application/octet-stream")
    }

    /// Returns whether the type is that of a manifest, as far as the type tells.
    pub fn names_a_manifest(&self) -> bool {
        self.may_be_manifest() && !self.says_nothing()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_do_not_change_the_essence() {
        let html = MediaType::new("Text/HTML; charset=utf-8");
        assert_eq!(html.essence(), "text/html");
        assert!(!html.may_be_manifest());
        assert!(MediaType::new(OCI_INDEX).may_be_manifest());
    }

    #[test]
    fn what_is_too_long_for_a_media_type_is_none() {
        assert_eq!(MediaType::of_others(OCI_INDEX), Some(MediaType::new(OCI_INDEX)));
        assert_eq!(MediaType::of_others(""), None);
        assert_eq!(MediaType::of_others(&"a".repeat(513)), None);
    }
}
