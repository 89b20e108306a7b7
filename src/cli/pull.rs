//! A pull through the registry door, as a client does: the manifest, that of a platform, and all it names.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::ACCEPT;
use serde::Deserialize;

use super::setup::address;
use crate::config::{ClientTls, Config};
use crate::oci::Algorithm;
use crate::web::{dial, tls};

/// Longest time to connect to the door.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time between two pieces of an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest manifest, in bytes.
const MANIFEST: usize = 8 << 20;
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What came through.
pub struct Pulled {
    /// The registry door.
    pub door: String,
    pub objects: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Named>,
    config: Option<Named>,
    #[serde(default)]
    layers: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    digest: String,
}

/// Pulls an image. The error says what went wrong, in the words of the door.
pub async fn pull(config: &Config, reference: &str) -> Result<Pulled, String> {
    let found = address::find(config, None, None).map_err(|error| error.to_string())?;
    let door = found.cache.url();
    // Whether clients trust the certificate is no question of this pull.
    let tls = tls::client_config(&ClientTls { insecure_skip_verify: true, ..ClientTls::default() });
    let client = dial::client(tls.map_err(|error| error.to_string())?, CONNECT).read_timeout(PATIENCE).build();
    let client = client.map_err(|error| error.to_string())?;
    let (name, tag) = split(reference);
    let mut pulled = Pulled { door: door.clone(), objects: 0, bytes: 0 };
    let base = format!("{door}/v2/{name}");
    let mut wanted = tag;
    let manifest = loop {
        let bytes = fetch(&client, &format!("{base}/manifests/{wanted}"), &wanted, Some(MANIFEST), &mut pulled).await?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| format!("its manifest: {error}"))?;
        match manifest.manifests.first() {
            Some(first) => wanted.clone_from(&first.digest),
            None => break manifest,
        }
    };
    for blob in manifest.config.iter().chain(&manifest.layers) {
        fetch(&client, &format!("{base}/blobs/{}", blob.digest), &blob.digest, None, &mut pulled).await?;
    }
    Ok(pulled)
}

/// Fetches one object, and compares it with its digest if it was asked for by one. Keeps up to `most` bytes of it.
async fn fetch(
    client: &reqwest::Client,
    url: &str,
    wanted: &str,
    most: Option<usize>,
    pulled: &mut Pulled,
) -> Result<Vec<u8>, String> {
    let answer = client.get(url).header(ACCEPT, MANIFESTS).send().await.map_err(|error| cause(&error))?;
    let status = answer.status();
    let mut body = answer.bytes_stream();
    let algorithm = if wanted.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 };
    let (mut hash, mut kept) = (algorithm.hasher(), Vec::new());
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| cause(&error))?;
        pulled.bytes += piece.len() as u64;
        hash.update(&piece);
        let room = most.unwrap_or(4096).saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&kept).trim()));
    }
    let found = hash.finish().to_string();
    if wanted.contains(':') && found != wanted {
        return Err(format!("wrong bytes came through the door: {wanted} has the digest {found}"));
    }
    pulled.objects += 1;
    Ok(kept)
}

/// Returns the innermost cause, which is the one that a person can act on.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Splits a reference into its name, and its digest or tag.
fn split(reference: &str) -> (String, String) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name.to_owned(), digest.to_owned());
    }
    let last = reference.rfind('/').map_or(0, |slash| slash + 1);
    match reference[last..].split_once(':') {
        Some((name, tag)) => (format!("{}{name}", &reference[..last]), tag.to_owned()),
        None => (reference.to_owned(), "latest".to_owned()),
    }
}
