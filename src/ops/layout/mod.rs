//! The OCI image layout (image-spec, image-layout.md): the files of an archive of images. Pure, but for the reading of
//! tar archives in [`archive`].
//!
//! ```text
//! oci-layout            {"imageLayoutVersion":"1.0.0"}
//! larder.json           what Larder says of its export; other programs ignore it
//! blobs/sha256/<hex>    objects; not all that a manifest refers to have to be there
//! index.json            the images, each with its name in an annotation
//! ```
//!
//! The programs do not agree on where an image's name is:
//!
//! - containerd (`core/images/archive/importer.go`, `exporter.go`; so `ctr image import`, `nerdctl load`, and `docker
//!   load` with the containerd store) takes `io.containerd.image.name` as the whole name, else completes
//!   `org.opencontainers.image.ref.name` by `--base-name`. It writes the whole name in the first and only the tag in the
//!   second; so do BuildKit (`--output type=oci`) and `docker save` from 25 on.
//! - skopeo, podman and buildah (containers/image, `oci/layout/oci_transport.go`) compare
//!   `org.opencontainers.image.ref.name` with what stands behind `oci:DIR:`, and look only at descriptors of OCI's own
//!   media types. An only image needs no name. They write there what stands behind `oci:DIR:`; podman save writes the
//!   whole name.
//! - oras (`oras copy --to-oci-layout DIR:TAG`) writes the tag into `org.opencontainers.image.ref.name`; crane (`crane
//!   pull --format=oci`) writes no name unless told to (`--annotate-ref`: the whole name there).
//!
//! So Larder writes the whole name into both, and reads the first before the second.

pub mod archive;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::manifest::media_type_of;
use crate::oci::{Digest, MediaType, media_type};

/// The annotation by which containerd names an image.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The annotation by which the OCI image specification names an image.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The file that marks a layout.
pub const MARKER: &str = "oci-layout";
/// The file that names the images.
pub const INDEX: &str = "index.json";
/// The file in which Larder says what it has exported.
pub const REPORT: &str = "larder.json";
/// The version that Larder reads and writes.
const VERSION: &str = "1.0.0";
/// Largest `index.json` and `larder.json` that are read, in bytes: a hundred thousand images have half of that.
pub const MAX_DOCUMENT: u64 = 64 << 20;

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The archive cannot be read.
    #[error("the archive cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the archive is no tar file, or is damaged: {0}")]
    NoTar(std::io::Error),
    #[error("the archive ends in the middle: it was cut off")]
    CutOff,
    /// With the file in the archive.
    #[error("`{0}` in the archive: {1}")]
    Member(String, &'static str),
    /// With the file in the archive, and the digest of its bytes.
    #[error("`{0}` in the archive is damaged: its bytes have the digest {1}")]
    Damaged(String, Digest),
    #[error("{0}")]
    NoLayout(String),
    /// Whoever the files were for wants no more of them.
    #[error("the archive is no longer wanted")]
    Unwanted,
}

/// Returns the content of `oci-layout`.
pub fn marker() -> String {
    format!("{{\"imageLayoutVersion\":\"{VERSION}\"}}")
}

/// `index.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Index {
    #[serde(rename = "schemaVersion")]
    pub schema_version: u8,
    #[serde(rename = "mediaType", default)]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

/// An image in `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// Makes the index of these images.
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: Some(media_type::OCI_INDEX.to_owned()), manifests }
    }
}

impl Descriptor {
    /// Describes a manifest by its whole name.
    pub fn named(name: &str, digest: &Digest, media_type: &MediaType, size: u64) -> Self {
        let annotation = |key: &str| (key.to_owned(), name.to_owned());
        Self {
            media_type: media_type.as_str().to_owned(),
            digest: digest.to_string(),
            size,
            annotations: [CONTAINERD_NAME, REF_NAME].map(annotation).into(),
        }
    }

    /// Returns the name of the image, as far as the descriptor has one.
    pub fn name(&self) -> Called<'_> {
        let annotation = |key: &str| self.annotations.get(key).map(String::as_str).filter(|name| !name.is_empty());
        match (annotation(CONTAINERD_NAME), annotation(REF_NAME)) {
            (Some(name), _) => Called::Whole(name),
            (None, Some(name)) if name.contains(['/', ':']) => Called::Whole(name),
            (None, Some(tag)) => Called::Tag(tag),
            (None, None) => Called::Nothing,
        }
    }

    /// Returns the media type of the manifest: the one that is stated, if that is one of a manifest.
    pub fn media_type_of(&self, bytes: &[u8]) -> MediaType {
        let stated = MediaType::of_others(&self.media_type).filter(MediaType::names_a_manifest);
        stated.unwrap_or_else(|| media_type_of(bytes))
    }
}

/// What a layout calls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called<'a> {
    /// Name and tag, or name and digest.
    Whole(&'a str),
    Tag(&'a str),
    Nothing,
}

/// The documents of a layout, as they come out of an archive.
#[derive(Debug, Default)]
pub struct Documents {
    marker: Option<Vec<u8>>,
    index: Option<Vec<u8>>,
    /// `larder.json`, if there is one.
    pub report: Option<Vec<u8>>,
    /// Whether there is a file that only the archives of `docker save` have.
    pub is_of_docker: bool,
}

impl Documents {
    /// Takes a document that was read whole.
    pub fn take(&mut self, member: archive::Member, bytes: Vec<u8>) {
        match member {
            archive::Member::Marker => self.marker = Some(bytes),
            archive::Member::Index => self.index = Some(bytes),
            archive::Member::Report => self.report = Some(bytes),
            archive::Member::OfDocker => self.is_of_docker = true,
            archive::Member::Blob(_) => {}
        }
    }

    /// Reads the images, if this is a layout.
    pub fn index(&self) -> Result<Index, LayoutError> {
        #[derive(Deserialize)]
        struct Marker {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let no = |why: String| Err(LayoutError::NoLayout(why));
        let (Some(marker), Some(index)) = (&self.marker, &self.index) else {
            return no(match self.is_of_docker {
                true => "this is an archive of `docker save` without an OCI image layout; make one of it with \
                    `skopeo copy docker-archive:FILE oci-archive:OTHER:NAME:TAG`"
                    .to_owned(),
                false => format!(
                    "this is no OCI image layout: it has no `{}`",
                    if self.marker.is_none() { MARKER } else { INDEX }
                ),
            });
        };
        match serde_json::from_slice::<Marker>(marker) {
            Ok(marker) if marker.version == VERSION => {}
            Ok(marker) => {
                let version = crate::text::one_line(&marker.version);
                return no(format!("the layout has version {version}; Larder reads {VERSION}"));
            }
            Err(error) => return no(format!("`{MARKER}` cannot be read: {error}")),
        }
        serde_json::from_slice(index).or_else(|error| no(format!("`{INDEX}` cannot be read: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_called_as_the_program_that_wrote_the_layout_calls_it() {
        let called = |annotations: &[(&str, &str)]| {
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Descriptor { media_type: String::new(), digest: String::new(), size: 0, annotations }
        };
        for (annotations, expected) in [
            // containerd, BuildKit, docker save
            (
                &[(CONTAINERD_NAME, "docker.io/library/a:1"), (REF_NAME, "1")][..],
                Called::Whole("docker.io/library/a:1"),
            ),
            // podman save, crane --annotate-ref
            (&[(REF_NAME, "docker.io/library/a:1")], Called::Whole("docker.io/library/a:1")),
            (&[(REF_NAME, "a:1")], Called::Whole("a:1")),
            // skopeo copy … oci:DIR:1, oras
            (&[(REF_NAME, "1")], Called::Tag("1")),
            // skopeo copy … oci:DIR
            (&[], Called::Nothing),
            (&[(CONTAINERD_NAME, ""), (REF_NAME, "")], Called::Nothing),
        ] {
            assert_eq!(called(annotations).name(), expected);
        }
    }

    #[test]
    fn what_is_no_layout_is_named() {
        let said = |documents: Documents| documents.index().expect_err("no layout").to_string();
        assert!(said(Documents::default()).contains("no `oci-layout`"));
        assert!(said(Documents { is_of_docker: true, ..Documents::default() }).contains("docker-archive:"));
        let with = |marker: &str, index: &str| Documents {
            marker: Some(marker.into()),
            index: Some(index.into()),
            ..Documents::default()
        };
        assert!(said(with(r#"{"imageLayoutVersion":"2.0.0"}"#, "")).contains("version 2.0.0"));
        assert!(said(with(&marker(), "{")).contains("`index.json` cannot be read"));
        let deep = "[".repeat(100_000);
        assert!(said(with(&marker(), &deep)).contains("`index.json` cannot be read"));
    }
}
