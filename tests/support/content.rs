//! OCI content made in memory. Equal arguments give equal bytes, so a test can name a digest before it pulls.

use aws_lc_rs::digest;
use bytes::Bytes;
use serde_json::{Value, json};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A manifest of any kind: its exact bytes, and what a registry says about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub bytes: Bytes,
    pub media_type: String,
    pub digest: String,
}

impl Manifest {
    /// Any bytes as a manifest; nothing is checked.
    pub fn new(bytes: impl Into<Bytes>, media_type: &str) -> Self {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        Self { bytes, media_type: media_type.to_owned(), digest }
    }

    fn from_json(document: &Value, media_type: &str) -> Self {
        Self::new(serde_json::to_vec_pretty(document).expect("JSON values serialize"), media_type)
    }

    fn descriptor(&self) -> Value {
        descriptor(&self.media_type, &self.bytes)
    }
}

/// A manifest with the blobs that it names.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Manifest,
    pub config: Bytes,
    pub layers: Vec<Bytes>,
}

impl Image {
    /// A small image with two layers (20 kB and 3 kB).
    pub fn new(seed: u64) -> Self {
        Self::with_layers(seed, &[20_000, 3_000])
    }

    /// An image for linux/amd64 with layers of these sizes.
    pub fn with_layers(seed: u64, sizes: &[usize]) -> Self {
        Self::for_platform("linux/amd64", seed, sizes)
    }

    /// An image for a platform written as `os/architecture`.
    pub fn for_platform(platform: &str, seed: u64, sizes: &[usize]) -> Self {
        let (os, architecture) = split_platform(platform);
        let layers: Vec<Bytes> =
            sizes.iter().enumerate().map(|(number, size)| blob(mix(seed, platform, number), *size)).collect();
        let config = json!({
            "architecture": architecture,
            "os": os,
            "config": {"Labels": {"seed": seed.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| sha256(layer)).collect::<Vec<_>>()},
        });
        let config = Bytes::from(serde_json::to_vec(&config).expect("JSON values serialize"));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect::<Vec<_>>(),
        });
        Self { manifest: Manifest::from_json(&manifest, OCI_MANIFEST), config, layers }
    }

    /// An artifact (signature, SBOM…) that refers to `subject`; push it with `Hub::push_untagged`.
    pub fn referrer(subject: &Manifest, artifact_type: &str, seed: u64) -> Self {
        let config = Bytes::from_static(b"{}");
        let payload = blob(seed, 500);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": descriptor("application/vnd.oci.empty.v1+json", &config),
            "layers": [descriptor("application/octet-stream", &payload)],
            "subject": subject.descriptor(),
            "annotations": {"seed": seed.to_string()},
        });
        Self { manifest: Manifest::from_json(&manifest, OCI_MANIFEST), config, layers: vec![payload] }
    }

    /// The digests of the layers, in order.
    pub fn layer_digests(&self) -> Vec<String> {
        self.layers.iter().map(|layer| sha256(layer)).collect()
    }

    pub fn config_digest(&self) -> String {
        sha256(&self.config)
    }

    /// Config and layers: every blob a pull fetches.
    pub fn blobs(&self) -> Vec<Bytes> {
        std::iter::once(self.config.clone()).chain(self.layers.iter().cloned()).collect()
    }
}

/// An image index with its images, in the order of the platforms.
#[derive(Clone, Debug)]
pub struct Index {
    pub manifest: Manifest,
    pub images: Vec<Image>,
}

impl Index {
    /// An index with one small image for each platform, e.g. `["linux/amd64", "linux/arm64"]`.
    pub fn new(seed: u64, platforms: &[&str]) -> Self {
        let images: Vec<Image> =
            platforms.iter().map(|platform| Image::for_platform(platform, seed, &[20_000, 3_000])).collect();
        let entries: Vec<Value> = platforms
            .iter()
            .zip(&images)
            .map(|(platform, image)| {
                let (os, architecture) = split_platform(platform);
                let mut entry = image.manifest.descriptor();
                entry["platform"] = json!({"os": os, "architecture": architecture});
                entry
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        Self { manifest: Manifest::from_json(&index, OCI_INDEX), images }
    }
}

/// Pseudo-random bytes (xorshift): cheap, incompressible, the same for the same arguments.
pub fn blob(seed: u64, size: usize) -> Bytes {
    // Xorshift never leaves zero, and small seeds give poor first values unless they are spread.
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    Bytes::from(bytes)
}

/// `sha256:<hex>`
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(digest::digest(&digest::SHA256, bytes).as_ref()))
}

/// `sha512:<hex>`
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(digest::digest(&digest::SHA512, bytes).as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

fn split_platform(platform: &str) -> (&str, &str) {
    platform.split_once('/').expect("a platform is os/architecture")
}

/// A seed for one layer: the same image seed must give other layers on another platform.
fn mix(seed: u64, platform: &str, number: usize) -> u64 {
    let platform = platform.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    seed.wrapping_mul(1_000_003) ^ platform.wrapping_add(number as u64)
}
