//! Takes in an OCI image layout from a tar archive: what [`super::export`] has written, or skopeo, containerd, Docker.
//!
//! Objects are stored as they come, and nobody is shown them. When the whole archive was read and was right, what it
//! names is shown: objects first, tags last. What came of an archive that is not right is removed again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::layout::archive::{self, Member, Take};
use super::layout::{Called, Descriptor, Documents, Index, LayoutError};
use super::{Located, Named, OpsError, located};
use crate::cache::Manifest;
use crate::cache::carried::{Arrived, Arriving, Carrying};
use crate::cache::freshness::of_unknown_time;
use crate::index::{ListKey, Listing, TagEntry, Timestamp, Viewer, Write};
use crate::oci::manifest::{ChildKind, Outline, ReferrersIndex, media_type_of};
use crate::oci::{Digest, MediaType, Reference, media_type};
use crate::text::one_line;
use crate::work::Pool;

/// Pieces of an archive that wait for a slow disk.
const PIECES: usize = 4;
/// How long to wait for the next bytes of an archive.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most images of which it is told that they were not taken, or that something is missing.
const MAX_TOLD: usize = 1_000;

/// What came of an import.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// How many images were taken in.
    pub images: u64,
    /// Objects that were not here before: count and bytes.
    pub objects: u64,
    pub bytes: u64,
    /// How many objects of the archive were here before.
    pub present: u64,
    /// Images of which something is missing, such as platforms that were not in the archive; the first thousand.
    pub incomplete: Vec<Lacking>,
    /// Images that were not taken in, and why; the first thousand.
    pub left_out: Vec<LeftOut>,
}

/// An image of which something is missing.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Lacking {
    pub reference: String,
    /// How many objects that its manifests refer to are neither in the archive nor in its repository here.
    pub missing: u64,
}

/// An image that was not taken in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LeftOut {
    /// Its name, or its digest.
    pub reference: String,
    pub why: String,
}

/// Takes in an archive. `given`: the name of its image (or only the part before the tag), where the layout has none.
pub async fn import(
    named: &Named<'_>,
    carrying: Carrying,
    bytes: BoxStream<'static, io::Result<Bytes>>,
    given: Option<&str>,
) -> Result<Imported, OpsError> {
    let mut taken = Vec::new();
    let result = match take(&carrying, bytes, &mut taken).await {
        Ok(index) => Showing::new(named, &carrying, &taken).run(&index, given).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(imported) => Ok(imported),
        Err(error) => {
            carrying.take_back(taken).await;
            Err(error)
        }
    }
}

/// A step of the thread that reads the archive.
enum Step {
    Begin(Member, u64),
    Bytes(Bytes),
    End(Member, Option<Digest>),
}

/// Hands the steps over, as fast as they are taken.
struct Sending(mpsc::Sender<Step>);

impl Sending {
    fn send(&self, step: Step) -> Result<(), LayoutError> {
        self.0.blocking_send(step).map_err(|_| LayoutError::Unwanted)
    }
}

impl Take for Sending {
    fn begin(&mut self, member: Member, size: u64) -> Result<(), LayoutError> {
        self.send(Step::Begin(member, size))
    }

    fn bytes(&mut self, bytes: Bytes) -> Result<(), LayoutError> {
        self.send(Step::Bytes(bytes))
    }

    fn end(&mut self, member: Member, found: Option<Digest>) -> Result<(), LayoutError> {
        self.send(Step::End(member, found))
    }
}

/// Stores the objects of an archive. Returns its images.
async fn take(
    carrying: &Carrying,
    bytes: BoxStream<'static, io::Result<Bytes>>,
    taken: &mut Vec<Arrived>,
) -> Result<Index, OpsError> {
    let (sending, pieces) = mpsc::channel(PIECES);
    let pump = tokio::spawn(pump(bytes, sending));
    let (steps, received) = mpsc::channel(PIECES);
    let pool = Pool::new("reading an archive", 1, PATIENCE);
    let reading = async {
        let place = pool.place().await.map_err(io::Error::from)?;
        let read = move || {
            let mut reader = archive::Arriving::new(pieces);
            let read = archive::read(&mut reader, &mut Sending(steps));
            Ok(read.and_then(|()| archive::read_rest(&mut reader)))
        };
        pool.run_at(place, read).await?
    };
    // If storing fails, nobody takes the steps any more, and whoever reads the archive ends, too.
    let (read, stored) = tokio::join!(reading, store(carrying, received, taken));
    pump.abort();
    // If what was read cannot be stored, that is the reason, and not that nobody wants the rest.
    let documents = stored?;
    read.map_err(refused)?;
    documents.index().map_err(refused)
}

fn refused(error: LayoutError) -> OpsError {
    OpsError::Archive(error)
}

/// Hands on the bytes of an archive, as fast as they are taken.
async fn pump(mut bytes: BoxStream<'static, io::Result<Bytes>>, to: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let late = || Some(Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {PATIENCE:?}"))));
        let next = tokio::time::timeout(PATIENCE, bytes.next()).await.unwrap_or_else(|_| late());
        let Some(next) = next else { return };
        let is_last = next.is_err();
        if to.send(next).await.is_err() || is_last {
            return;
        }
    }
}

/// A file of the archive that is being read.
enum Now {
    Document(Vec<u8>),
    New(Arriving),
    Present(Arrived),
}

async fn store(
    carrying: &Carrying,
    mut steps: mpsc::Receiver<Step>,
    taken: &mut Vec<Arrived>,
) -> Result<Documents, OpsError> {
    let mut documents = Documents::default();
    let mut now = None;
    while let Some(step) = steps.recv().await {
        now = match (step, now) {
            (Step::Begin(Member::Blob(digest), size), _) => {
                let present = carrying.present(&digest).await?.filter(|present| present.size == size);
                Some(match present {
                    Some(present) => Now::Present(present),
                    None => Now::New(carrying.begin(digest, size).await?),
                })
            }
            (Step::Begin(..), _) => Some(Now::Document(Vec::new())),
            (Step::Bytes(bytes), Some(Now::New(arriving))) => Some(Now::New(arriving.write(bytes).await?)),
            (Step::Bytes(bytes), Some(Now::Document(mut document))) => {
                document.extend_from_slice(&bytes);
                Some(Now::Document(document))
            }
            (Step::Bytes(_), now) => now,
            (Step::End(member, found), Some(now)) => {
                end(member, found, now, &mut documents, taken).await?;
                None
            }
            (Step::End(..), None) => None,
        };
    }
    // The archive was cut off within an object.
    if let Some(Now::New(arriving)) = now {
        arriving.give_up().await;
    }
    Ok(documents)
}

async fn end(
    member: Member,
    found: Option<Digest>,
    now: Now,
    documents: &mut Documents,
    taken: &mut Vec<Arrived>,
) -> Result<(), OpsError> {
    let damaged = match (member, found) {
        (Member::Blob(digest), Some(found)) if found != digest => {
            Some(refused(LayoutError::Damaged(archive::path_of(&digest), found)))
        }
        _ => None,
    };
    match (now, damaged) {
        (Now::New(arriving), Some(damaged)) => {
            arriving.give_up().await;
            return Err(damaged);
        }
        (_, Some(damaged)) => return Err(damaged),
        (Now::New(arriving), None) => taken.push(arriving.publish().await?),
        (Now::Present(arrived), None) => taken.push(arrived),
        (Now::Document(bytes), None) => documents.take(member, bytes),
    }
    Ok(())
}

/// Shows what has come in.
struct Showing<'a> {
    named: &'a Named<'a>,
    carrying: &'a Carrying,
    /// The objects of the archive. Whoever has the bytes may have them shown.
    objects: HashSet<Digest>,
    done: Imported,
}

/// An image, and all that is known of it.
struct Found {
    image: Located,
    manifests: Vec<Manifest>,
    objects: Vec<Digest>,
    missing: u64,
}

impl<'a> Showing<'a> {
    fn new(named: &'a Named<'a>, carrying: &'a Carrying, taken: &[Arrived]) -> Self {
        let (new, present): (Vec<_>, Vec<_>) = taken.iter().partition(|arrived| arrived.is_new);
        let done = Imported {
            objects: new.len() as u64,
            bytes: new.iter().map(|arrived| arrived.size).sum(),
            present: present.len() as u64,
            ..Imported::default()
        };
        Self { named, carrying, objects: taken.iter().map(|arrived| arrived.digest).collect(), done }
    }

    async fn run(mut self, index: &Index, given: Option<&str>) -> Result<Imported, OpsError> {
        let mut all = Vec::new();
        for (descriptor, reference) in names(index, given)? {
            match self.find(descriptor, &reference).await? {
                Ok(found) => all.push(found),
                Err(why) if self.done.left_out.len() < MAX_TOLD => self.done.left_out.push(LeftOut { reference, why }),
                Err(_) => {}
            }
        }
        if let ([], [first, ..]) = (&all[..], &self.done.left_out[..]) {
            return Err(OpsError::NothingOf(format!("{}: {}", first.reference, first.why)));
        }
        for found in all {
            self.show(found).await?;
        }
        Ok(self.done)
    }

    /// Finds the objects of an image; else says why it is not taken in.
    async fn find(&self, descriptor: &Descriptor, reference: &str) -> Result<Result<Found, String>, OpsError> {
        let image = match located(self.named.routing, self.named.own, reference) {
            Ok(image) => image,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Ok(digest) = descriptor.digest.parse::<Digest>() else {
            return Ok(Err(format!("`{}` is no digest", one_line(&descriptor.digest))));
        };
        if matches!(image.reference, Reference::Digest(named) if named != digest) {
            return Ok(Err("it is named by another digest than its own".to_owned()));
        }
        if image.target.repository.config.client_consent.is_some() {
            let why = "its repository has client_credentials = \"pass\": each client's own credentials decide there, \
                and an archive has none";
            return Ok(Err(why.to_owned()));
        }
        let repository = image.target.repository.prefix();
        let Some(bytes) = self.document(repository, &digest).await? else {
            return Ok(Err(
                "its manifest is neither in the archive nor in this cache; import the archive before this one \
                first"
                    .to_owned(),
            ));
        };
        if descriptor.size != 0 && descriptor.size != bytes.len() as u64 {
            return Ok(Err("its manifest has another size than `index.json` says".to_owned()));
        }
        let root = manifest(digest, descriptor.media_type_of(&bytes), bytes);
        let mut found = Found { image, manifests: Vec::new(), objects: Vec::new(), missing: 0 };
        let (mut open, mut seen) = (vec![root], HashSet::from([digest]));
        while let Some(above) = open.pop() {
            let repository = found.image.target.repository.prefix().to_owned();
            for child in Outline::read(&above.bytes).children {
                if !seen.insert(child.digest) {
                    continue;
                }
                let document = match child.kind {
                    ChildKind::Manifest => self.document(&repository, &child.digest).await?,
                    _ => None,
                };
                match (child.kind, document) {
                    (ChildKind::Manifest, Some(bytes)) => {
                        open.push(manifest(child.digest, media_type_of(&bytes), bytes))
                    }
                    (ChildKind::Manifest, None) => found.missing += 1,
                    _ if self.may_show(&repository, &child.digest).await? => found.objects.push(child.digest),
                    _ => found.missing += 1,
                }
            }
            found.objects.push(above.digest);
            found.manifests.push(above);
        }
        Ok(Ok(found))
    }

    /// Returns whether an object may be shown in a repository: the archive has brought it, or it is shown there
    /// already. Another repository's objects are not shown because a manifest names them.
    async fn may_show(&self, repository: &str, digest: &Digest) -> Result<bool, OpsError> {
        if self.objects.contains(digest) {
            return Ok(true);
        }
        let cache = self.carrying.cache();
        Ok(cache.is_shown(repository, digest).await? && cache.known(digest).await?.is_some())
    }

    async fn document(&self, repository: &str, digest: &Digest) -> Result<Option<Bytes>, OpsError> {
        match self.may_show(repository, digest).await? {
            true => Ok(self.carrying.document(digest).await?),
            false => Ok(None),
        }
    }

    async fn show(&mut self, found: Found) -> Result<(), OpsError> {
        let Found { image, manifests, objects, missing } = found;
        let target = &image.target;
        let (repository, name) = (target.repository.prefix().to_owned(), target.name.to_string());
        let viewer = Viewer::own(repository.clone());
        let Some(root) = manifests.first() else {
            return Ok(());
        };
        let at = Timestamp::now();
        let mut names =
            vec![Write::Manifest { repository: repository.clone(), name: name.clone(), digest: root.digest, at }];
        let tags = &target.repository.config.tags;
        if let Reference::Tag(tag) = &image.reference {
            // As of a time that is not known: the upstream is asked as soon as it can be reached, and until then the
            // tag is served as the last known one.
            let checked_at = of_unknown_time(target.repository.config.policy_of(tag.as_str()), at);
            let (media_type, size) = (root.media_type.clone(), root.bytes.len() as u64);
            let entry = TagEntry { digest: root.digest, media_type, size, checked_at };
            names.push(Write::Tag { key: target.tag_key(tag), entry });
        }
        self.carrying.show(&viewer, &objects, &manifests, names).await?;
        for manifest in &manifests {
            let page = |subject: &Digest| format!("referrers/{subject}{}", target.repository.config.shelf());
            if let Some(subject) = Outline::read(&manifest.bytes).subject {
                let key = ListKey { repository: repository.clone(), name: name.clone(), page: page(&subject) };
                self.add_referrer(key, manifest, of_unknown_time(tags, at)).await?;
            }
        }
        self.done.images += 1;
        if missing > 0 && self.done.incomplete.len() < MAX_TOLD {
            self.done.incomplete.push(Lacking { reference: image.written(), missing });
        }
        Ok(())
    }

    /// Adds a manifest to the list of those that refer to its subject.
    async fn add_referrer(&self, key: ListKey, manifest: &Manifest, checked_at: Timestamp) -> Result<(), OpsError> {
        let cache = self.carrying.cache();
        let listed = cache.listing(&key).await?;
        let known = listed.as_ref().map(|listing| Outline::read(&listing.body).children).unwrap_or_default();
        if known.iter().any(|child| child.digest == manifest.digest) {
            return Ok(());
        }
        let index = listed.as_ref().and_then(|listing| ReferrersIndex::from_fallback_tag(&listing.body));
        let mut index = index.unwrap_or_else(|| ReferrersIndex::new(Vec::new()));
        index.add(&manifest.digest, &manifest.media_type, &manifest.bytes);
        let body = serde_json::to_vec(&index).unwrap_or_default().into();
        let media_type = Some(MediaType::new(media_type::OCI_INDEX));
        let listing = Listing { body, media_type, link: None, filters_applied: None, checked_at };
        cache.put_listing(key, cache.hold_listing(listing).await?);
        Ok(())
    }
}

fn manifest(digest: Digest, media_type: MediaType, bytes: Bytes) -> Manifest {
    Manifest::new(digest, media_type, bytes, Timestamp::now())
}

/// Returns the images of a layout with their whole names.
fn names<'a>(index: &'a Index, given: Option<&str>) -> Result<Vec<(&'a Descriptor, String)>, OpsError> {
    let wrong = |message: String| Err(OpsError::Wrong(message));
    let (given_name, given_tag) = match given {
        Some(given) => {
            let (name, reference) = super::split(given)?;
            (Some(name), reference)
        }
        None => (None, None),
    };
    if index.manifests.is_empty() {
        return Err(refused(LayoutError::NoLayout("`index.json` names no image".to_owned())));
    }
    if given_tag.is_some() && index.manifests.len() > 1 {
        return wrong(format!("the archive has {} images; --as with a tag is for one", index.manifests.len()));
    }
    let mut named = HashMap::new();
    let mut all = Vec::new();
    for descriptor in &index.manifests {
        let name = match (descriptor.name(), given_name, &given_tag) {
            (_, Some(name), Some(Reference::Tag(tag))) => format!("{name}:{tag}"),
            (_, Some(name), Some(Reference::Digest(digest))) => format!("{name}@{digest}"),
            (Called::Whole(name), _, None | Some(_)) => one_line(name),
            (Called::Tag(tag), Some(name), _) => format!("{name}:{}", one_line(tag)),
            (Called::Nothing, Some(name), _) => format!("{name}@{}", one_line(&descriptor.digest)),
            (Called::Tag(tag), None, _) => {
                let tag = one_line(tag);
                return wrong(format!(
                    "the archive calls its image only `{tag}`; say which image it is with --as NAME, such as docker.io/library/alpine"
                ));
            }
            (Called::Nothing, None, _) => {
                return wrong("the archive does not name its image; say which it is with --as NAME:TAG".to_owned());
            }
        };
        if named.insert(name.clone(), &descriptor.digest).is_some_and(|other| *other != descriptor.digest) {
            return Err(refused(LayoutError::NoLayout(format!("`index.json` has two images called `{name}`"))));
        }
        all.push((descriptor, name));
    }
    Ok(all)
}
