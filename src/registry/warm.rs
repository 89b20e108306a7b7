//! Brings whole images into the cache before anybody asks for them.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;

use super::objects::Objects;
use super::respond::CacheState;
use crate::cache::Manifest;
use crate::failure::{Failure, FailureKind};
use crate::oci::manifest::{ChildKind, Outline};
use crate::oci::{Digest, Platform, Reference, Tag};
use crate::routing::Target;

/// Blobs of one image that are fetched at once: as many as containerd fetches.
const AT_ONCE: usize = 3;

/// How much of an image is in the cache.
#[derive(Debug, Default)]
pub struct Progress {
    /// Manifests and blobs of the image, as far as they are known.
    pub objects: AtomicU64,
    pub objects_done: AtomicU64,
    /// Bytes of its blobs, as its manifests state them.
    pub bytes: AtomicU64,
    pub bytes_done: AtomicU64,
    /// Bytes that came from upstream.
    pub fetched: AtomicU64,
}

/// What an index says of its manifests (OCI Image Specification, image-index.md).
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<EntryPlatform>,
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
struct EntryPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

/// The annotation by which BuildKit's attestations name the manifest that they are about
/// (docs/attestations/attestation-storage.md of moby/buildkit).
const ABOUT: &str = "vnd.docker.reference.digest";

/// Returns the manifests of an index that these platforms need, with their attestations; all if no platform is named.
fn chosen(index: &[u8], platforms: &[Platform]) -> Option<HashSet<Digest>> {
    if platforms.is_empty() {
        return None;
    }
    let Index { manifests } = serde_json::from_slice(index).ok()?;
    let fits = |entry: &Entry| {
        entry.platform.as_ref().is_some_and(|of| {
            platforms.iter().any(|wanted| {
                wanted.os == of.os
                    && wanted.architecture == of.architecture
                    // Docker takes arm64 and arm64/v8 for the same.
                    && (wanted.variant.is_none() || wanted.variant == of.variant)
            })
        })
    };
    let mut found: HashSet<_> =
        manifests.iter().filter(|entry| fits(entry)).map(|entry| entry.digest.as_str()).collect();
    let about = |entry: &&Entry| entry.annotations.get(ABOUT).is_some_and(|digest| found.contains(digest.as_str()));
    let attestations: Vec<_> = manifests.iter().filter(about).map(|entry| entry.digest.as_str()).collect();
    found.extend(attestations);
    Some(found.into_iter().filter_map(|digest| digest.parse().ok()).collect())
}

impl Objects {
    /// Brings an image into the cache: its manifest, below an index those of `platforms` (all if none is named), and
    /// their blobs. What is there is not fetched again, so a warming that broke off goes on where it was.
    pub async fn warm(
        &self,
        target: &Target,
        reference: &Reference,
        platforms: &[Platform],
        progress: &Progress,
    ) -> Result<(), Failure> {
        progress.objects.fetch_add(1, Ordering::Relaxed);
        let top = self.top(target, reference).await?;
        self.bring_all(target, top, platforms, progress).await
    }

    /// Does the same after asking the upstream about the tag now, unless the tag is immutable. If the upstream does not
    /// answer, what is cached counts as asked for all the same, and the error is that of the question.
    pub async fn keep_warm(
        &self,
        target: &Target,
        reference: &Reference,
        platforms: &[Platform],
        progress: &Progress,
    ) -> Result<(), Failure> {
        progress.objects.fetch_add(1, Ordering::Relaxed);
        let may_move = |tag: &Tag| !target.repository.config.policy_of(tag.as_str()).is_immutable(tag.as_str());
        let (top, failure) = match reference {
            Reference::Tag(tag) if may_move(tag) => match self.tags.checked_now(target, tag).await {
                Ok(top) => (top, None),
                Err((failure, Some(top))) if failure.kind != FailureKind::NotFound => (top, Some(failure)),
                Err((failure, _)) => return Err(failure),
            },
            _ => (self.top(target, reference).await?, None),
        };
        let brought = self.bring_all(target, top, platforms, progress).await;
        failure.map_or(brought, Err)
    }

    async fn top(&self, target: &Target, reference: &Reference) -> Result<Arc<Manifest>, Failure> {
        let found = match reference {
            Reference::Tag(tag) => {
                let found = self.tags.by_tag(target, tag, true).await?;
                if matches!(found.state, CacheState::Miss(_)) {
                    self.cache.tell_of_tag(target.tag_key(tag));
                }
                found
            }
            Reference::Digest(digest) => self.manifests.by_digest(target, digest).await?,
        };
        Ok(found.manifest)
    }

    async fn bring_all(
        &self,
        target: &Target,
        top: Arc<Manifest>,
        platforms: &[Platform],
        progress: &Progress,
    ) -> Result<(), Failure> {
        self.has_manifest(target, &top, progress);
        let wanted = chosen(&top.bytes, platforms);
        let mut blobs = Vec::new();
        let mut pending = vec![top];
        let mut seen = HashSet::new();
        while let Some(manifest) = pending.pop() {
            for child in Outline::read(&manifest.bytes).children {
                if !seen.insert(child.digest) {
                    continue;
                }
                match child.kind {
                    ChildKind::Manifest if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&child.digest)) => {}
                    ChildKind::Manifest => {
                        progress.objects.fetch_add(1, Ordering::Relaxed);
                        let found = self.manifests.by_digest(target, &child.digest).await?;
                        self.has_manifest(target, &found.manifest, progress);
                        pending.push(found.manifest);
                    }
                    ChildKind::Config | ChildKind::Layer => {
                        progress.objects.fetch_add(1, Ordering::Relaxed);
                        progress.bytes.fetch_add(child.size, Ordering::Relaxed);
                        blobs.push(child);
                    }
                }
            }
        }
        let bring = |blob: crate::oci::manifest::Child| async move {
            let brought = self.blobs.bring(target, &blob.digest).await?;
            progress.objects_done.fetch_add(1, Ordering::Relaxed);
            progress.bytes_done.fetch_add(blob.size, Ordering::Relaxed);
            if !brought.was_there {
                progress.fetched.fetch_add(brought.bytes, Ordering::Relaxed);
            }
            Ok(())
        };
        stream::iter(blobs).map(bring).buffer_unordered(AT_ONCE).try_collect().await
    }

    fn has_manifest(&self, target: &Target, manifest: &Arc<Manifest>, progress: &Progress) {
        self.consent.manifest_was_shown(target, manifest);
        self.cache.note_manifest(target.repository.prefix(), &target.name, manifest.digest);
        progress.objects_done.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(number: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[number])
    }

    #[test]
    fn platforms_choose_their_manifests_and_the_attestations_of_these() {
        let entry = |number: u8, platform: &str, about: Option<u8>| {
            let (os, architecture) = platform.split_once('/').expect("a platform");
            let annotations = about.map(|about| serde_json::json!({ ABOUT: digest(about).to_string() }));
            serde_json::json!({
                "digest": digest(number).to_string(),
                "platform": { "os": os, "architecture": architecture },
                "annotations": annotations.unwrap_or_else(|| serde_json::json!({})),
            })
        };
        let index = serde_json::json!({ "manifests": [
            entry(1, "linux/amd64", None),
            entry(2, "linux/arm64", None),
            entry(3, "unknown/unknown", Some(1)),
            entry(4, "unknown/unknown", Some(2)),
        ] });
        let index = index.to_string();
        let of = |platforms: &[&str]| {
            let platforms: Vec<Platform> = platforms.iter().map(|text| text.parse().expect("a platform")).collect();
            chosen(index.as_bytes(), &platforms)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["linux/amd64"]), Some([digest(1), digest(3)].into()));
        assert_eq!(of(&["linux/arm64", "linux/amd64"]).map(|found| found.len()), Some(4));
        assert_eq!(of(&["windows/amd64"]), Some([].into()));
    }
}
