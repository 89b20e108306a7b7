//! What people look at: images that they search for, and the parts of one image.

use std::collections::HashSet;

use super::{Image, Images, Located, OpsError};
use crate::cache::{Cache, Manifest};
use crate::index::{ImageSearch, ListKey};
use crate::oci::manifest::ChildKind;
use crate::oci::{Content, Digest, Reference, contents};

/// Most platforms of which the layers are shown.
const MOST_PLATFORMS: usize = 64;
/// Most referrers that are shown.
const MOST_REFERRERS: usize = 100;

/// One image, with its parts as far as they are known.
pub struct Picture {
    pub digest: String,
    pub media_type: String,
    /// The images in it: one, or one for each platform.
    pub platforms: Vec<Platform>,
    /// What refers to the image, as its upstream last said: signatures, SBOMs. `None` if it was never asked.
    pub referrers: Option<Vec<Referrer>>,
    pub is_pinned: bool,
}

/// One image of an image for several platforms.
pub struct Platform {
    /// As `linux/arm64`; `None` where the manifest does not say it.
    pub name: Option<String>,
    pub is_attestation: bool,
    /// Its manifest.
    pub manifest: Part,
    /// Configuration and layers; empty while its manifest is not stored.
    pub parts: Vec<Part>,
}

/// One object.
pub struct Part {
    pub digest: String,
    /// Bytes, as the manifest above states it.
    pub size: u64,
    pub media_type: String,
    pub is_stored: bool,
    /// Whether it is the configuration of an image.
    pub is_config: bool,
}

/// What refers to an image.
pub struct Referrer {
    pub digest: String,
    /// The type of the artifact.
    pub artifact_type: String,
    pub size: u64,
    pub is_stored: bool,
}

impl Platform {
    /// Returns whether all of it is stored.
    pub fn is_whole(&self) -> bool {
        self.manifest.is_stored && self.parts.iter().all(|part| part.is_stored)
    }

    /// Returns the bytes of configuration and layers: those that are stored, and all.
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |is_counted: fn(&&Part) -> bool| self.parts.iter().filter(is_counted).map(|part| part.size).sum();
        (sum(|part| part.is_stored), sum(|_| true))
    }
}

/// Finds images; see [`crate::index::Index::find_images`].
pub async fn find(cache: &Cache, search: ImageSearch) -> Result<Images, OpsError> {
    let (found, next) = cache.find_images(search).await?;
    Ok(Images { images: found.into_iter().map(Image::of).collect(), next })
}

/// Returns the parts of an image whose manifest is stored; `None` if it is not. Counts as no use of it.
pub async fn picture(cache: &Cache, located: &Located) -> Result<Option<Picture>, OpsError> {
    let digest = match &located.reference {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(tag) => cache.tag(&located.target.tag_key(tag)).await?.map(|entry| entry.digest),
    };
    let Some(digest) = digest else {
        return Ok(None);
    };
    // An object that is visible in another repository only is nothing of this one.
    let repository = &located.target.repository;
    if !cache.is_visible(&repository.viewer(), &digest).await?
        && !cache.is_visible(&repository.everybody(), &digest).await?
    {
        return Ok(None);
    }
    let Some(manifest) = cache.look_at_manifest(&digest).await? else {
        return Ok(None);
    };
    let platforms = platforms(cache, &manifest).await?;
    let referrers = referrers(cache, located, &digest).await?;
    let is_pinned = cache.is_pinned(&digest).await?;
    let media_type = manifest.media_type.as_str().to_owned();
    Ok(Some(Picture { digest: digest.to_string(), media_type, platforms, referrers, is_pinned }))
}

async fn platforms(cache: &Cache, root: &Manifest) -> Result<Vec<Platform>, OpsError> {
    let below = contents(&root.bytes);
    let is_index = below.iter().any(|content| content.kind == ChildKind::Manifest);
    if !is_index {
        let own = Part {
            digest: root.digest.to_string(),
            size: root.bytes.len() as u64,
            media_type: root.media_type.as_str().to_owned(),
            is_stored: true,
            is_config: false,
        };
        let parts = parts(cache, below).await?;
        return Ok(vec![Platform { name: None, is_attestation: false, manifest: own, parts }]);
    }
    let children: Vec<_> = below.into_iter().filter(|content| content.kind == ChildKind::Manifest).collect();
    let stored = cache.stored_of(children.iter().map(|child| child.digest).collect()).await?;
    let mut platforms = Vec::with_capacity(children.len());
    for child in children {
        let is_shown = platforms.len() < MOST_PLATFORMS && stored.contains(&child.digest);
        let manifest = if is_shown { cache.look_at_manifest(&child.digest).await? } else { None };
        let parts = match manifest {
            Some(manifest) => parts(cache, contents(&manifest.bytes)).await?,
            None => Vec::new(),
        };
        let (name, is_attestation) = (child.platform.clone(), child.is_attestation);
        platforms.push(Platform { name, is_attestation, manifest: part(child, &stored), parts });
    }
    Ok(platforms)
}

async fn parts(cache: &Cache, below: Vec<Content>) -> Result<Vec<Part>, OpsError> {
    let stored = cache.stored_of(below.iter().map(|content| content.digest).collect()).await?;
    Ok(below.into_iter().map(|content| part(content, &stored)).collect())
}

fn part(content: Content, stored: &HashSet<Digest>) -> Part {
    Part {
        is_stored: stored.contains(&content.digest),
        is_config: content.kind == ChildKind::Config,
        digest: content.digest.to_string(),
        size: content.size,
        media_type: content.media_type,
    }
}

/// Returns what the list of referrers says that was last seen, whatever its age.
async fn referrers(cache: &Cache, located: &Located, subject: &Digest) -> Result<Option<Vec<Referrer>>, OpsError> {
    let target = &located.target;
    let key = ListKey {
        repository: target.repository.prefix().to_owned(),
        name: target.name.to_string(),
        page: format!("referrers/{subject}{}", target.repository.config.shelf()),
    };
    let Some(listing) = cache.listing(&key).await? else {
        return Ok(None);
    };
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry {
        digest: String,
        #[serde(default)]
        size: u64,
        artifact_type: Option<String>,
        #[serde(default)]
        media_type: String,
    }
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default)]
        manifests: Vec<Entry>,
    }
    let list: List = serde_json::from_slice(&listing.body).unwrap_or(List { manifests: Vec::new() });
    let entries: Vec<_> = list.manifests.into_iter().take(MOST_REFERRERS).collect();
    let digests = entries.iter().filter_map(|entry| entry.digest.parse().ok()).collect();
    let stored = cache.stored_of(digests).await?;
    let referrer = |entry: Entry| Referrer {
        is_stored: entry.digest.parse().is_ok_and(|digest| stored.contains(&digest)),
        artifact_type: entry.artifact_type.unwrap_or(entry.media_type).chars().take(200).collect(),
        digest: entry.digest.chars().take(140).collect(),
        size: entry.size,
    };
    Ok(Some(entries.into_iter().map(referrer).collect()))
}
