//! Brings in the rest of an image behind a pull: what the client has already, it does not ask for, and the next client
//! would not find it when the upstream is down.
//!
//! Harbor's proxy cache does the same with a manifest's missing blobs (`waitBlobs` in
//! src/controller/proxy/manifestcache.go). What others report of fetching more than is asked for: zot syncs whole
//! images, all platforms, and an interrupted one of 10 GB kept all repositories waiting (zot#4357); Dragonfly turns
//! each range into a whole download, and had to add a rate limit so that this leaves room for others
//! (client#881); a range that becomes a whole transfer undoes lazy pulls (harbor#23875). Hence, here:
//!
//! - Only the image whose manifest this client fetched, of an index the one platform; nothing attached to it.
//! - Only once the client asks for a whole layer (`"pulled"`): tools that inspect images, and lazy pulls, fetch the
//!   configuration whole, and of layers nothing or parts.
//! - Few transfers, which leave places free and end when a client needs one (`cache/fill/behind.rs`).
//! - Nothing when the upstream's quota is low or the upstream rests, nor of an image of more than half of the cache.
//!
//! A transfer goes with the credentials of the request that caused it, so each upstream decides as for the client.
//!
//! Lock: `queue` is taken alone.

mod queue;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::Method;
use http::header::RANGE;
use http::request::Parts;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Bounded;
use tokio::sync::{Semaphore, watch};
use tracing::{Instrument, Span};

use self::queue::{Admission, Queue, Slot};
use super::blobs::Blobs;
use super::bring::Behind;
use super::replicas::FromReplica;
use crate::access::party;
use crate::cache::{Cache, Fill, Manifest};
use crate::clock::Instant;
use crate::config::Prefetch as When;
use crate::failure::{Failure, FailureKind};
use crate::observe::{Metrics, trace};
use crate::oci::range::RangeHeader;
use crate::oci::{Blob, Digest, Image};
use crate::routing::Target;

/// How long a client that has fetched a manifest counts as pulling its image.
const PULLING: Duration = Duration::from_secs(10 * 60);
/// Most pairs of client and name whose manifests are remembered.
const PULLS: usize = 10_000;
/// Most manifests that are remembered of one client and name; the latest ones.
const MANIFESTS: usize = 8;
/// Most manifests that are kept in a form that is quick to look through, and the memory for them, in bytes.
const IMAGES: usize = 4_096;
const IMAGE_BYTES: u64 = 8 << 20;

/// How often to look for images that have waited too long.
const WATCH: Duration = Duration::from_secs(30);
/// Large blobs of one image that come in at once beside those that clients ask for: as many as containerd fetches.
const LARGE_BLOBS: u32 = 3;
/// A blob of so many bytes is large. For smaller ones nearly all of the time passes in waiting for the upstream's
/// answers, and more of them at once take no client's share of the line.
const LARGE: u64 = 4 << 20;
/// Small blobs that come in at once in place of a large one.
const SMALL_FOR_ONE: u32 = 4;
/// How often a blob looks for a place that clients do not need, and how many times.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: u32 = 2_400;
/// How many fills for others a blob waits for.
const ROUNDS: u32 = 3;
/// An image comes in only if the cache may hold so many of its size: for what nobody asked for, the rest does not go.
const SHARE: u64 = 2;

/// A client and the name that it pulls.
type Puller = (Option<IpAddr>, String, String);

/// Brings in the rest of images behind pulls.
pub struct Prefetch(Arc<Shared>);

struct Shared {
    cache: Arc<Cache>,
    blobs: Arc<Blobs>,
    metrics: Arc<Metrics>,
    /// The manifests that clients fetched lately, the latest last.
    pulls: Bounded<Puller, Arc<[(Digest, Instant)]>>,
    /// Manifests that were looked through; `None`: not that of an image.
    images: Bounded<Digest, Option<Arc<Image>>, BySize>,
    queue: Mutex<Queue<Job>>,
    /// Whether a task looks after images that wait too long.
    is_watched: AtomicBool,
    /// Counts the changes of the configuration.
    changes: watch::Sender<u64>,
}

struct Job {
    target: Target,
    manifest: Digest,
    image: Arc<Image>,
    /// The layer that the client asks for; it comes in for the client.
    asked: Option<Digest>,
    /// The count of changes of the configuration by which it was begun.
    change: u64,
    /// The span of the pull that it was begun for.
    pull: Span,
}

#[derive(Clone)]
struct BySize;

impl Weighter<Digest, Option<Arc<Image>>> for BySize {
    fn weight(&self, _: &Digest, image: &Option<Arc<Image>>) -> u64 {
        128 + image.as_ref().map_or(0, |image| (image.layers.len() * size_of::<Blob>()) as u64)
    }
}

/// Why an image does not come in whole.
enum Left {
    /// The upstream rests, or the rest of its quota is for clients.
    Resting,
    /// It is larger than its share of the cache.
    TooLarge,
    /// It was purged, or the configuration has changed.
    Unwanted,
    Failed(Failure),
}

impl From<Failure> for Left {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Prefetch {
    /// Creates the service; nothing comes in yet.
    pub fn new(cache: Arc<Cache>, blobs: Arc<Blobs>, metrics: Arc<Metrics>) -> Self {
        metrics.prefetch_may_end(&["whole", "present", "resting", "too_large", "unwanted", "dropped", "failed"]);
        Self(Arc::new(Shared {
            cache,
            blobs,
            metrics,
            pulls: Bounded::new(PULLS),
            images: Bounded::with_weighter(IMAGES, IMAGE_BYTES, BySize),
            queue: Mutex::default(),
            is_watched: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        }))
    }

    /// Forgets the pulls and all images that wait; running ones begin no further blob. Called after a change of the
    /// configuration.
    pub fn clear(&self) {
        self.0.changes.send_modify(|change| *change += 1);
        self.0.pulls.clear();
        let cleared = self.0.queue().clear();
        for _ in 0..cleared {
            self.0.metrics.prefetch_ended("unwanted");
        }
    }

    /// Notes that a client was answered with a manifest.
    pub fn manifest_answered(&self, request: &Parts, target: &Target, manifest: &Manifest) {
        let when = target.repository.config.prefetch;
        if when == When::Off || request.method != Method::GET || is_of_replica(request) {
            return;
        }
        let Some(image) = self.0.image(manifest) else {
            return;
        };
        if when == When::Layers {
            return self.begin(target, manifest.digest, image, None);
        }
        let key = puller(target);
        let before = self.0.pulls.get(&key);
        let latest = before.as_ref().and_then(|pulls| pulls.last());
        if latest.is_some_and(|(digest, at)| *digest == manifest.digest && at.elapsed() < PULLING / 10) {
            return;
        }
        let earlier = before.iter().flat_map(|pulls| pulls.iter().copied());
        let mut pulls: Vec<_> = earlier.filter(|(digest, _)| *digest != manifest.digest).collect();
        pulls.push((manifest.digest, Instant::now()));
        let surplus = pulls.len().saturating_sub(MANIFESTS);
        self.0.pulls.insert(key, pulls.drain(surplus..).collect());
    }

    /// Notes that a client asks for a blob or a part of one. If the blob is a layer of the image that this client pulls,
    /// the rest of the image comes in. It does not wait for this layer: over a long line that would be the time of some
    /// round trips. Whether the client may have the layer says nothing about the others; each upstream decides about
    /// them.
    pub fn blob_asked(&self, request: &Parts, target: &Target, digest: &Digest) {
        let is_pulled = target.repository.config.prefetch == When::Pulled && request.method == Method::GET;
        if !is_pulled || !asks_for_all(request) || is_of_replica(request) {
            return;
        }
        let key = puller(target);
        let Some(pulls) = self.0.pulls.get(&key) else {
            return;
        };
        let image_of = |manifest: &Digest| {
            let image = self.0.images.get(manifest).flatten()?;
            image.has_layer(digest).then_some(image)
        };
        let recent = pulls.iter().rev().filter(|(_, at)| at.elapsed() < PULLING);
        let Some((manifest, image)) = recent.filter_map(|(of, _)| Some((*of, image_of(of)?))).next() else {
            return;
        };
        // Its further layers begin nothing again.
        self.0.pulls.insert(key, pulls.iter().copied().filter(|(digest, _)| *digest != manifest).collect());
        self.begin(target, manifest, image, Some(*digest));
    }

    fn begin(&self, target: &Target, manifest: Digest, image: Arc<Image>, asked: Option<Digest>) {
        let job = Job::new(target, manifest, image, asked, *self.0.changes.borrow());
        let slot = job.slot();
        let admission = self.0.queue().admit(job, slot, target.client, Instant::now());
        match admission {
            Admission::IsKnown => {}
            Admission::Full => self.0.metrics.prefetch_ended("dropped"),
            Admission::Waits => {
                self.0.start_next();
                self.0.watch();
            }
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self, manifest: &Manifest) -> Option<Arc<Image>> {
        if let Some(known) = self.images.get(&manifest.digest) {
            return known;
        }
        let image = Image::read(&manifest.bytes).map(Arc::new);
        self.images.insert(manifest.digest, image.clone());
        image
    }

    /// Sees to it that no image waits too long.
    fn watch(self: &Arc<Self>) {
        if self.queue().is_empty() || self.is_watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.clone();
        tokio::spawn(async move {
            while !shared.queue().is_empty() {
                tokio::time::sleep(WATCH).await;
                shared.start_next();
            }
            shared.is_watched.store(false, Ordering::Release);
            // One may have come since.
            shared.watch();
        });
    }

    /// Begins the images whose turn it is, and drops those that have waited too long.
    fn start_next(self: &Arc<Self>) {
        let old = self.queue().drop_old(Instant::now());
        for _ in 0..old {
            self.metrics.prefetch_ended("dropped");
        }
        loop {
            let next = self.queue().next();
            let Some((job, slot)) = next else {
                return;
            };
            let turn = Turn { shared: self.clone(), slot };
            tokio::spawn(async move {
                let shared = turn.shared.clone();
                shared.run(&job).await;
                drop((turn, job));
                shared.start_next();
            });
        }
    }

    async fn run(&self, job: &Job) {
        let image = format!("{}/{}@{}", job.target.repository.prefix(), job.target.name, job.manifest);
        let span = trace::of_image("prefetch", &image, &job.pull);
        let result = match self.bring(job).instrument(span).await {
            Ok(0) => "present",
            Ok(blobs) => {
                tracing::debug!(image, blobs, "the rest of an image came in behind a pull");
                "whole"
            }
            Err(Left::Resting) => "resting",
            Err(Left::TooLarge) => "too_large",
            Err(Left::Unwanted) => "unwanted",
            Err(Left::Failed(failure)) => {
                tracing::debug!(image, kind = failure.kind.as_str(), %failure, "the rest of an image did not come in");
                "failed"
            }
        };
        self.metrics.prefetch_ended(result);
    }

    /// Brings in what is missing of an image. Returns how many blobs that were.
    async fn bring(&self, job: &Job) -> Result<usize, Left> {
        let missing = self.missing(job).await?;
        if missing.is_empty() {
            return Ok(0);
        }
        // What makes room for it would be gone, and it would not be whole.
        if self.cache.never_fits(SHARE.saturating_mul(job.image.bytes)) {
            return Err(Left::TooLarge);
        }
        let count = missing.len();
        // What comes in for clients takes no turn here: its end is waited for at the end.
        let (asked, missing): (Vec<_>, Vec<_>) = missing.into_iter().partition(|blob| job.asked == Some(blob.digest));
        let mut others = self.bring_all(job, missing, false).await?;
        others.extend(asked);
        self.bring_all(job, others, true).await?;
        Ok(count)
    }

    /// Brings blobs in, few at once. Returns those that come in for others, unless `waits`.
    async fn bring_all(&self, job: &Job, blobs: Vec<Blob>, waits: bool) -> Result<Vec<Blob>, Left> {
        let turns = Semaphore::new((LARGE_BLOBS * SMALL_FOR_ONE) as usize);
        let bring = |blob: Blob| {
            let turns = &turns;
            async move {
                let _turn = turns.acquire_many(if blob.size < LARGE { 1 } else { SMALL_FOR_ONE }).await;
                let left = self.bring_blob(job, blob.digest, waits).await;
                left.map(|left| left.map(|_| blob))
            }
        };
        let most = turns.available_permits();
        let brought: Vec<_> = stream::iter(blobs).map(bring).buffer_unordered(most).try_collect().await?;
        Ok(brought.into_iter().flatten().collect())
    }

    /// Returns the blobs of an image that are not in the cache, or not for this repository. Those that are there count
    /// as used: without the others, the image would not be whole.
    async fn missing(&self, job: &Job) -> Result<Vec<Blob>, Left> {
        let viewer = job.target.repository.viewer();
        let stored = self.cache.stored_of(job.image.blobs().map(|blob| blob.digest).collect()).await?;
        let mut missing = Vec::new();
        for blob in job.image.blobs() {
            if stored.contains(&blob.digest) && self.cache.is_visible(&viewer, &blob.digest).await? {
                self.cache.wanted(&blob.digest);
            } else {
                missing.push(blob);
            }
        }
        Ok(missing)
    }

    /// Brings one blob in. If it is on its way in for others, this waits for it, or returns the blob at once without
    /// `waits`.
    async fn bring_blob(&self, job: &Job, digest: Digest, waits: bool) -> Result<Option<Digest>, Left> {
        let (mut rounds, mut looks) = (0, 0);
        loop {
            // From before the check, so that no purge is missed.
            let purges = self.cache.purges();
            self.check(job).await?;
            let ended = match self.blobs.begin_behind(&job.target, &digest).await? {
                Behind::There => return Ok(None),
                Behind::Begun(fill) => match self.end_of(job, &digest, &fill, purges).await {
                    Ok(Some(bytes)) => {
                        self.metrics.bytes_prefetched.inc_by(bytes);
                        return Ok(None);
                    }
                    Ok(None) if !waits => return Ok(Some(digest)),
                    Ok(None) => fill.whole().await.map(drop).map_err(Left::Failed),
                    Err(left) => Err(left),
                },
                Behind::Joined(_) if !waits => return Ok(Some(digest)),
                // The next look finds it in the cache, and asks whether this repository may show it.
                Behind::Joined(fill) => fill.whole().await.map(drop).map_err(Left::Failed),
                Behind::NoPlace => Err(Left::Failed(Failure::new(FailureKind::Busy, "clients need all connections"))),
            };
            match ended {
                // A client needed its place, or needs all.
                Err(Left::Failed(failure)) if is_in_the_way(&failure) && looks < LOOKS => {
                    looks += 1;
                    tokio::time::sleep(LOOK).await;
                }
                Err(left) => return Err(left),
                Ok(()) if rounds < ROUNDS => rounds += 1,
                Ok(()) => return Err(Left::Failed(Failure::new(FailureKind::NoRoom, "it does not stay in the cache"))),
            }
        }
    }

    /// Waits for the end of a fill that was begun for an image, at most until the image is purged. Returns the size of
    /// the blob; `None` as soon as a client asks for it: from then on the fill is that client's.
    async fn end_of(
        &self,
        job: &Job,
        digest: &Digest,
        fill: &Arc<Fill>,
        mut purges: watch::Receiver<u64>,
    ) -> Result<Option<u64>, Left> {
        // Also where another blob of the image ends it all. A fill that is over does not notice.
        let unwanted = GiveUp(fill);
        let brought = self.blobs.brought_behind(&job.target, digest, fill);
        tokio::pin!(brought);
        let mut changes = self.changes.subscribe();
        if *changes.borrow_and_update() != job.change {
            return Err(Left::Unwanted);
        }
        loop {
            tokio::select! {
                brought = &mut brought => return Ok(Some(brought?)),
                () = fill.asked_for() => {
                    std::mem::forget(unwanted);
                    return Ok(None);
                }
                Ok(()) = changes.changed() => return Err(Left::Unwanted),
                Ok(()) = purges.changed() => {
                    if !self.is_known(job).await? {
                        return Err(Left::Unwanted);
                    }
                }
            }
        }
    }

    /// Fails if no further blob of the image is to be begun now.
    async fn check(&self, job: &Job) -> Result<(), Left> {
        if *self.changes.borrow() != job.change || !self.is_known(job).await? {
            return Err(Left::Unwanted);
        }
        match job.target.repository.upstreams.have_quota_to_spare() {
            true => Ok(()),
            false => Err(Left::Resting),
        }
    }

    /// Returns whether the manifest of the image is still in the cache, for this repository.
    async fn is_known(&self, job: &Job) -> Result<bool, Failure> {
        let repository = &job.target.repository;
        let is_visible = self.cache.is_visible(&repository.viewer(), &job.manifest).await?
            || self.cache.is_visible(&repository.everybody(), &job.manifest).await?;
        Ok(is_visible && self.cache.manifest(&job.manifest).await?.is_some())
    }
}

impl Job {
    fn new(target: &Target, manifest: Digest, image: Arc<Image>, asked: Option<Digest>, change: u64) -> Self {
        // No share of this client's places is used for what it does not wait for.
        let target = Target { client: None, ..target.clone() };
        Self { target, manifest, image, asked, change, pull: Span::current() }
    }

    fn slot(&self) -> Slot {
        let Target { repository, name, who, .. } = &self.target;
        let key = (repository.config.asked_as(), name.to_string(), self.manifest, who.id());
        Slot { key, source: party(&self.target).source }
    }
}

/// The turn of an image, until it is dropped.
struct Turn {
    shared: Arc<Shared>,
    slot: Slot,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.queue().ended(&self.slot);
    }
}

/// Gives a fill up when it is dropped.
struct GiveUp<'a>(&'a Fill);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Returns whether a transfer failed only because clients need its place, or all.
fn is_in_the_way(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::Busy | FailureKind::Unread)
}

fn puller(target: &Target) -> Puller {
    (target.client, target.repository.config.asked_as(), target.name.to_string())
}

/// Returns whether a request asks for a blob up to its end, as pulls do, also those that go on from where they were, and
/// containerd's on several connections (`bytes=N-`). Lazy pulls (stargz, SOCI, Nydus) and podman's of `zstd:chunked`
/// name the ends of the parts that they want.
fn asks_for_all(request: &Parts) -> bool {
    let Some(range) = request.headers.get(RANGE) else {
        return true;
    };
    // A range that cannot be read is answered with the whole.
    range.to_str().ok().and_then(RangeHeader::parse).is_none_or(|range| range.is_open_ended())
}

/// Returns whether another replica asks. It brings in the rest of the image that its own client pulls.
fn is_of_replica(request: &Parts) -> bool {
    request.extensions.get::<FromReplica>().is_some()
}
