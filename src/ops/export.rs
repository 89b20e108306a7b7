//! Writes cached images as an OCI image layout, in a tar archive, to be carried to a cache without a network.
//!
//! Only what Larder's own credentials have brought in, or what everybody may see, is written: whoever carries the
//! archive away needs no credentials any more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::layout::{Descriptor, INDEX, Index, MARKER, REPORT, archive, marker};
use super::{Named, OpsError, located, written};
use crate::cache::Manifest;
use crate::cache::carried::Carrying;
use crate::failure::{Failure, FailureKind};
use crate::index::{ImageName, ListKey, TagKey, Timestamp};
use crate::oci::manifest::{ChildKind, Outline};
use crate::oci::{Digest, Reference, Tag};
use crate::text::one_line;
use crate::upkeep::Lease;

/// Most objects of one archive: each takes about 200 bytes of memory until the archive is written.
const MAX_OBJECTS: usize = 1_000_000;
/// Most images of which it is told that something is missing.
const MAX_TOLD: usize = 1_000;
/// Images that are looked up at once.
const PAGE: usize = 1_000;
/// Pieces of the archive that wait for a slow reader.
const PIECES: usize = 4;
/// What tools that know no referrers write behind the digest of what they sign (cosign: signatures, attestations,
/// SBOMs). The tag without anything is the distribution specification's ("Referrers Tag Schema").
const TAGS_OF_EXTRAS: [&str; 4] = ["", ".sig", ".att", ".sbom"];

/// What to export.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// Images as in a pull; none: everything.
    pub references: Vec<String>,
    /// Only objects that were stored then or later.
    pub since: Option<Timestamp>,
    /// Whether signatures, SBOMs and other manifests that refer to the images come along.
    pub with_extras: bool,
}

/// Reads a date (`2026-11-01`, at midnight UTC) or a time (RFC 3339).
pub fn moment(text: &str) -> Result<Timestamp, OpsError> {
    let whole = if text.len() == "2026-11-01".len() { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339(&whole);
    let wrong =
        |_| OpsError::Wrong(format!("`{}` is no time; write it as 2026-11-01 or 2026-11-01T18:00:00Z", one_line(text)));
    time.map(Timestamp::from_system_time).map_err(wrong)
}

/// What an archive has, in the archive itself: `larder.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exported {
    /// When the export was begun, RFC 3339: the `since` of the next.
    pub begun_at: String,
    /// RFC 3339; absent if older objects are in the archive, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// How many images are named in it.
    pub images: u64,
    /// How many objects are in it.
    pub objects: u64,
    /// The bytes of these objects.
    pub bytes: u64,
    /// How many objects were left out because they were stored before `since`.
    pub earlier: u64,
    /// Images of which not all is cached, as those of which only one platform was pulled; the first thousand.
    pub incomplete: Vec<Incomplete>,
}

/// An image of which not all is cached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Incomplete {
    pub reference: String,
    /// How many objects that its manifests refer to are missing; what these lead to is not known.
    pub missing: u64,
}

/// An archive that is about to be written.
pub struct Archive {
    carrying: Carrying,
    report: Exported,
    index: Bytes,
    objects: Vec<(Digest, u64)>,
    /// Nothing of it is evicted before it is written.
    _leases: Vec<Arc<Lease>>,
}

/// Finds out what belongs to an archive.
pub async fn plan(named: &Named<'_>, cache: &Arc<crate::cache::Cache>, export: &Export) -> Result<Archive, OpsError> {
    let carrying = cache.begin_carrying().ok_or(OpsError::Carrying)?;
    let mut plan = Plan::new(carrying, export);
    if export.references.is_empty() {
        plan.add_all().await?;
    }
    for reference in &export.references {
        plan.add(named, reference).await?;
    }
    plan.add_open().await?;
    plan.finish()
}

/// An image whose objects are to be found.
struct Open {
    repository: String,
    name: String,
    /// The shelf of its tags.
    shelf: String,
    digest: Digest,
    /// As it is named in the archive.
    reference: String,
}

struct Plan<'a> {
    carrying: Carrying,
    export: &'a Export,
    begun_at: Timestamp,
    open: VecDeque<Open>,
    seen: HashSet<String>,
    descriptors: Vec<Descriptor>,
    /// Objects by whether they are written.
    objects: HashMap<Digest, bool>,
    to_write: Vec<(Digest, u64)>,
    leases: Vec<Arc<Lease>>,
    incomplete: Vec<Incomplete>,
    earlier: u64,
}

impl<'a> Plan<'a> {
    fn new(carrying: Carrying, export: &'a Export) -> Self {
        Self {
            carrying,
            export,
            begun_at: Timestamp::now(),
            open: VecDeque::new(),
            seen: HashSet::new(),
            descriptors: Vec::new(),
            objects: HashMap::new(),
            to_write: Vec::new(),
            leases: Vec::new(),
            incomplete: Vec::new(),
            earlier: 0,
        }
    }

    /// Adds an image as a person wrote it.
    async fn add(&mut self, named: &Named<'_>, text: &str) -> Result<(), OpsError> {
        let image = located(named.routing, named.own, text)?;
        let reference = image.written();
        let digest = match &image.reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => {
                let entry = self.carrying.cache().tag(&image.target.tag_key(tag)).await?;
                entry.map(|entry| entry.digest)
            }
        };
        let repository = image.target.repository.prefix().to_owned();
        let absent = || OpsError::Absent(reference.clone(), "; pull it through this cache first".to_owned());
        let digest = digest.ok_or_else(absent)?;
        if self.manifest(&repository, &digest).await?.is_none() {
            return Err(absent());
        }
        let (name, shelf) = (image.target.name.to_string(), image.target.repository.config.shelf());
        self.push(Open { repository, name, shelf, digest, reference });
        Ok(())
    }

    /// Adds all images that are cached.
    async fn add_all(&mut self) -> Result<(), OpsError> {
        let mut last = String::new();
        loop {
            let (images, next) = self.carrying.cache().images(last, PAGE).await?;
            for (image, _) in images {
                let crate::index::Image { repository, name, digest, reference, .. } = image;
                self.push(Open { repository, name, shelf: String::new(), digest, reference });
            }
            // Page by page, so that not all names are in memory beside their descriptors.
            self.add_open().await?;
            match next {
                Some(next) => last = next,
                None => return Ok(()),
            }
        }
    }

    fn push(&mut self, open: Open) {
        if self.seen.insert(open.reference.clone()) {
            self.open.push_back(open);
        }
    }

    /// Finds the objects of all images that were added.
    async fn add_open(&mut self) -> Result<(), OpsError> {
        while let Some(image) = self.open.pop_front() {
            let Some(manifest) = self.manifest(&image.repository, &image.digest).await? else {
                continue;
            };
            let size = manifest.bytes.len() as u64;
            self.descriptors.push(Descriptor::named(&image.reference, &image.digest, &manifest.media_type, size));
            let (missing, manifests) = self.add_objects(&image, manifest).await?;
            if missing > 0 && self.incomplete.len() < MAX_TOLD {
                self.incomplete.push(Incomplete { reference: image.reference.clone(), missing });
            }
            if self.export.with_extras {
                for manifest in manifests {
                    self.add_extras(&image, &manifest).await?;
                }
            }
        }
        Ok(())
    }

    /// Adds the objects of an image. Returns how many are missing, and the manifests that are there.
    async fn add_objects(&mut self, image: &Open, root: Arc<Manifest>) -> Result<(u64, Vec<Digest>), OpsError> {
        let (mut missing, mut manifests) = (0, Vec::new());
        let (mut open, mut seen) = (vec![root], HashSet::from([image.digest]));
        while let Some(manifest) = open.pop() {
            self.add_object(&image.repository, &manifest.digest).await?;
            manifests.push(manifest.digest);
            for child in Outline::read(&manifest.bytes).children {
                if !seen.insert(child.digest) {
                    continue;
                }
                let is_there = match child.kind {
                    ChildKind::Manifest => {
                        let found = self.manifest(&image.repository, &child.digest).await?;
                        let is_there = found.is_some();
                        open.extend(found);
                        is_there
                    }
                    ChildKind::Config | ChildKind::Layer => self.add_object(&image.repository, &child.digest).await?,
                };
                missing += u64::from(!is_there);
            }
        }
        Ok((missing, manifests))
    }

    /// Adds an object. Returns whether it is there.
    async fn add_object(&mut self, repository: &str, digest: &Digest) -> Result<bool, OpsError> {
        let cache = self.carrying.cache();
        if !cache.is_shown(repository, digest).await? {
            return Ok(false);
        }
        if self.objects.contains_key(digest) {
            return Ok(true);
        }
        let lease = self.carrying.keep(digest);
        let Some(entry) = cache.known(digest).await? else {
            return Ok(false);
        };
        let is_written = self.export.since.is_none_or(|since| entry.stored_at >= since);
        if self.objects.len() == MAX_OBJECTS {
            let message = format!("these are more than {MAX_OBJECTS} objects; export them in several archives");
            return Err(OpsError::Wrong(message));
        }
        self.objects.insert(*digest, is_written);
        match is_written {
            true => {
                self.to_write.push((*digest, entry.size));
                self.leases.push(lease);
            }
            false => self.earlier += 1,
        }
        Ok(true)
    }

    /// Adds what is known to refer to a manifest.
    async fn add_extras(&mut self, image: &Open, subject: &Digest) -> Result<(), OpsError> {
        let Open { repository, name, shelf, .. } = image;
        let cache = self.carrying.cache().clone();
        let fallback = Tag::referrers_fallback(subject);
        for behind in TAGS_OF_EXTRAS {
            let tag = format!("{fallback}{behind}");
            let (repository, name, shelf) = (repository.clone(), name.clone(), shelf.clone());
            let key = TagKey { repository, shelf, name, tag };
            if let Some(entry) = cache.tag(&key).await? {
                let TagKey { repository, name, tag, shelf } = key;
                let reference = format!("{repository}/{name}:{tag}");
                self.push(Open { repository, name, shelf, digest: entry.digest, reference });
            }
        }
        let page = format!("referrers/{subject}{shelf}");
        let key = ListKey { repository: repository.clone(), name: name.clone(), page };
        let Some(listing) = cache.listing(&key).await? else {
            return Ok(());
        };
        let referrers = Outline::read(&listing.body).children;
        for referrer in referrers.iter().filter(|referrer| referrer.kind == ChildKind::Manifest) {
            let (repository, name) = (repository.clone(), name.clone());
            let reference = Reference::Digest(referrer.digest);
            let reference = written(&ImageName { repository: repository.clone(), name: name.clone(), reference });
            self.push(Open { repository, name, shelf: shelf.clone(), digest: referrer.digest, reference });
        }
        Ok(())
    }

    /// Returns a manifest that is stored and shown in its repository.
    async fn manifest(&self, repository: &str, digest: &Digest) -> Result<Option<Arc<Manifest>>, OpsError> {
        let cache = self.carrying.cache();
        match cache.is_shown(repository, digest).await? {
            true => Ok(cache.manifest(digest).await?),
            false => Ok(None),
        }
    }

    fn finish(self) -> Result<Archive, OpsError> {
        let time = |time: Timestamp| humantime::format_rfc3339_seconds(time.to_system_time()).to_string();
        let report = Exported {
            begun_at: time(self.begun_at),
            since: self.export.since.map(time),
            images: self.descriptors.len() as u64,
            objects: self.to_write.len() as u64,
            bytes: self.to_write.iter().map(|(_, size)| size).sum(),
            earlier: self.earlier,
            incomplete: self.incomplete,
        };
        let index = serde_json::to_vec(&Index::new(self.descriptors));
        let index = index.map_err(|error| Failure::of(FailureKind::Storage, "cannot write the index", error))?;
        let (carrying, objects, leases) = (self.carrying, self.to_write, self.leases);
        Ok(Archive { carrying, report, index: index.into(), objects, _leases: leases })
    }
}

impl Archive {
    /// Returns what is in the archive.
    pub fn report(&self) -> &Exported {
        &self.report
    }

    /// Returns the bytes of the archive, as fast as they are taken. An error in it means that the archive is not whole.
    pub fn bytes(self) -> BoxStream<'static, Result<Bytes, Failure>> {
        let (pieces, taken) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            if let Err(Some(failure)) = self.write(&pieces).await {
                tracing::warn!(%failure, "an export broke off");
                // A caller that has left needs no reason.
                let _ = pieces.send(Err(failure)).await;
            }
        });
        stream::unfold(taken, async |mut taken| Some((taken.recv().await?, taken))).boxed()
    }

    /// Writes the archive. `index.json` comes last, so that what was cut off is no layout. Fails without a failure if
    /// nobody takes the bytes.
    async fn write(&self, to: &mpsc::Sender<Result<Bytes, Failure>>) -> Result<(), Option<Failure>> {
        let put = async |bytes: Bytes| to.send(Ok(bytes)).await.map_err(|_| None);
        let head = |path: &str, size: u64| {
            let header = archive::header(path, size);
            header.map_err(|error| Some(Failure::of(FailureKind::Storage, "cannot write the archive", error)))
        };
        let document = async |path: &str, bytes: Bytes| {
            let size = bytes.len() as u64;
            put(head(path, size)?).await?;
            put(bytes).await?;
            put(archive::filling(size)).await
        };
        let report = serde_json::to_vec_pretty(&self.report).unwrap_or_default();
        document(REPORT, report.into()).await?;
        document(MARKER, marker().into()).await?;
        for (digest, size) in &self.objects {
            let gone = |why: &str| Some(Failure::new(FailureKind::Storage, format!("{digest} {why}; export again")));
            let mut object = self.carrying.copy(digest).await?.ok_or_else(|| gone("is gone from the cache"))?;
            if object.size() != *size {
                return Err(gone("has another size than before"));
            }
            put(head(&archive::path_of(digest), *size)?).await?;
            while let Some(bytes) = object.next().await? {
                put(bytes).await?;
            }
            put(archive::filling(*size)).await?;
        }
        document(INDEX, self.index.clone()).await?;
        put(archive::end()).await
    }
}
