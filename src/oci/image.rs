//! The blobs of an image: the file system of a container, with its configuration.
//!
//! A manifest may also describe an artifact: a chart, a signature (cosign gives it the configuration of an image),
//! BuildKit's attestations, a file system for lazy pulls (Nydus). What these are made of is not laid over each other,
//! and their clients take of it what they like. So an image is told by the types of its layers, too (OCI Image
//! Specification, "Image Layer Filesystem Changeset"; Docker's image manifest version 2, schema 2).

use serde::Deserialize;

use super::digest::Digest;

/// Most blobs of an image. A file system of layers has at most 127 of them.
const MOST: usize = 512;

/// How the types of layers begin that registries hand out.
const LAYERS: [&str; 2] = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
/// How the types of layers begin that come from elsewhere: those of Windows, of old.
const FOREIGN: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A blob of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    /// Its length in bytes, as the manifest states it.
    pub size: u64,
}

/// The blobs of an image, as its manifest states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub config: Blob,
    /// The layers that the registry has, in order.
    pub layers: Vec<Blob>,
    /// Bytes of all of these blobs together.
    pub bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    config: Descriptor,
    layers: Vec<Descriptor>,
    subject: Option<serde::de::IgnoredAny>,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

impl Image {
    /// Reads a manifest; `None` if it is not that of an image.
    pub fn read(manifest: &[u8]) -> Option<Self> {
        let Document { config, layers, subject, artifact_type } = serde_json::from_slice(manifest).ok()?;
        let is_attached = subject.is_some() || artifact_type.is_some_and(|kind| !kind.is_empty());
        let is_one_of =
            |kinds: &[&str], layer: &Descriptor| kinds.iter().any(|kind| layer.media_type.starts_with(kind));
        let is_foreign = |layer: &Descriptor| is_one_of(&FOREIGN, layer) || !layer.urls.is_empty();
        let are_layers = layers.iter().all(|layer| is_one_of(&LAYERS, layer) || is_one_of(&FOREIGN, layer));
        let is_image = CONFIGS.contains(&config.media_type.as_str()) && are_layers && !layers.is_empty();
        if is_attached || !is_image || layers.len() >= MOST {
            return None;
        }
        let blob = |stated: &Descriptor| Some(Blob { digest: stated.digest.parse().ok()?, size: stated.size });
        let mut image = Self { config: blob(&config)?, layers: Vec::new(), bytes: config.size };
        for layer in layers.iter().filter(|layer| !is_foreign(layer)) {
            let layer = blob(layer)?;
            if !image.has_layer(&layer.digest) {
                image.layers.push(layer);
                image.bytes = image.bytes.saturating_add(layer.size);
            }
        }
        Some(image)
    }

    /// Returns whether the image has this layer.
    pub fn has_layer(&self, digest: &Digest) -> bool {
        self.layers.iter().any(|layer| layer.digest == *digest)
    }

    /// Returns all of its blobs, the configuration first.
    pub fn blobs(&self) -> impl Iterator<Item = Blob> + '_ {
        std::iter::once(self.config).chain(self.layers.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::Algorithm;

    fn digest(number: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[number])
    }

    fn descriptor(number: u8, media_type: &str) -> Value {
        json!({ "digest": digest(number).to_string(), "mediaType": media_type, "size": 10 })
    }

    fn manifest(config: &str, layers: &[Value]) -> Value {
        json!({ "schemaVersion": 2, "config": descriptor(0, config), "layers": layers })
    }

    fn read(manifest: &Value) -> Option<Image> {
        Image::read(manifest.to_string().as_bytes())
    }

    #[test]
    fn the_blobs_of_images_are_found() {
        let gzip = descriptor(1, "application/vnd.oci.image.layer.v1.tar+gzip");
        let zstd = descriptor(2, "application/vnd.oci.image.layer.v1.tar+zstd");
        let image = read(&manifest(CONFIGS[0], &[gzip.clone(), zstd, gzip])).expect("an image");
        let blob = |number| Blob { digest: digest(number), size: 10 };
        assert_eq!(image, Image { config: blob(0), layers: vec![blob(1), blob(2)], bytes: 30 });
        assert_eq!(image.blobs().collect::<Vec<_>>(), [blob(0), blob(1), blob(2)]);
        assert!(image.has_layer(&digest(2)) && !image.has_layer(&digest(0)));
        let docker = descriptor(1, "application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert!(read(&manifest(CONFIGS[1], &[docker])).is_some());
    }

    #[test]
    fn layers_that_come_from_elsewhere_are_none_of_them() {
        let own = descriptor(1, "application/vnd.docker.image.rootfs.diff.tar.gzip");
        let foreign = descriptor(2, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        let mut elsewhere = descriptor(3, "application/vnd.oci.image.layer.v1.tar+gzip");
        elsewhere["urls"] = json!(["https://elsewhere.example/layer"]);
        let image = read(&manifest(CONFIGS[1], &[foreign, elsewhere, own])).expect("an image");
        assert_eq!((image.layers, image.bytes), (vec![Blob { digest: digest(1), size: 10 }], 20));
    }

    #[test]
    fn what_is_no_image_has_no_blobs() {
        let layer = descriptor(1, "application/vnd.oci.image.layer.v1.tar+gzip");
        let with = |key: &str, value: Value| {
            let mut manifest = manifest(CONFIGS[0], std::slice::from_ref(&layer));
            manifest[key] = value;
            manifest
        };
        for not_one in [
            manifest("application/vnd.cncf.helm.config.v1+json", std::slice::from_ref(&layer)),
            manifest(CONFIGS[0], &[descriptor(1, "application/vnd.dev.cosign.simplesigning.v1+json")]),
            manifest(CONFIGS[0], &[descriptor(1, "application/vnd.in-toto+json")]),
            manifest(CONFIGS[0], &[layer.clone(), descriptor(2, "application/vnd.oci.image.layer.nydus.blob.v1")]),
            manifest(CONFIGS[0], &[]),
            with("subject", descriptor(9, "application/vnd.oci.image.manifest.v1+json")),
            with("artifactType", json!("application/vnd.example")),
            with("config", json!({ "digest": "sha256:x", "mediaType": CONFIGS[0], "size": 1 })),
            with("layers", json!(vec![layer.clone(); MOST])),
            json!({ "schemaVersion": 2, "manifests": [] }),
            json!([]),
        ] {
            assert_eq!(read(&not_one), None, "{not_one}");
        }
    }
}
