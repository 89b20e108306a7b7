//! The part of upkeep that the rest of Larder uses: the ledger, the leases, and the mailbox of the task.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::clock::{Seconds, now};
use super::keeping::Keeping;
use super::leaving::Leaving;
use super::ledger::{Ledger, Shortage};
use super::limits::Limits;
use super::mail::{Census, Message, closed};
use super::uploading::{Running, Uploading};
use crate::config::{Amount, Config};
use crate::index::{Bounds, Index, IndexError, TagKey, Timestamp, Write};
use crate::observe::Metrics;
use crate::oci::Digest;
use crate::s3::{Bucket, Upload};
use crate::spool::Spool;
use crate::store::{Capacity, Store};
use crate::work::Pool;

/// Most uses kept between two ticks; further uses are not counted.
const MAX_USES: usize = 1 << 16;
/// A use is written to the index if the use written before is older than this.
const USE_RESOLUTION: Seconds = 60;
/// Most messages that wait in the mailbox; further senders wait.
const MESSAGES: usize = 1024;
/// How long callers wait for the upkeep task, except for room.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cache, as upkeep asks it and tells it.
pub trait Cached: Send + Sync + 'static {
    /// Returns whether a fill of the object is under way.
    fn is_coming_in(&self, digest: &Digest) -> bool;

    /// Returns whether a fill has all of its object and only has to store it.
    fn is_storing(&self) -> bool;

    /// Tells the cache that objects are gone: what it knows of them is no longer true.
    fn gone(&self, digests: &HashSet<Digest>);
}

/// The parts of a cache that upkeep works on.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub spool: Spool,
    pub index: Arc<dyn Index>,
    pub cached: Arc<dyn Cached>,
    /// For blocking work.
    pub pool: Pool,
    /// Where content is kept beside the store; `None`: nowhere.
    pub bucket: Option<Bucket>,
    pub metrics: Arc<Metrics>,
}

/// Keeps the cache within its limits.
///
/// Lock order: `leases`, then `ledger`. `uses` and `received` are each taken alone.
pub struct Upkeep {
    parts: Parts,
    ledger: Mutex<Ledger>,
    /// Objects that are being read, and by how many readers.
    leases: Mutex<HashMap<Digest, usize>>,
    /// Objects that were read since the last tick.
    uses: Mutex<Vec<Digest>>,
    /// Whether the set of pinned objects may have changed.
    pins_changed: AtomicBool,
    /// Whether the index was read.
    loaded: watch::Sender<bool>,
    mailbox: mpsc::Sender<Message>,
    /// The receiver of the mailbox, until the task takes it.
    received: Mutex<Option<mpsc::Receiver<Message>>>,
    /// Uploads that are to be deleted.
    leaving: Leaving,
    /// Uploads that run.
    uploading: Uploading,
    keeping: Keeping,
}

/// Returns what the index may hold in a cache of this configuration, on a filesystem of `total` bytes.
pub fn bounds(config: &Config, total: u64) -> Bounds {
    bounds_of(Limits::new(config, config.s3.is_some()).disk_size, total)
}

fn bounds_of(max_size: Amount, total: u64) -> Bounds {
    Bounds::of(max_size.of(total).unwrap_or(total).min(total))
}

/// Keeps an object from being evicted until this is dropped.
pub struct Lease {
    upkeep: Arc<Upkeep>,
    digest: Digest,
}

impl Lease {
    /// Takes out an object that cannot be read, to be fetched again. Returns at once.
    pub fn give_up(&self) {
        let (upkeep, digest) = (self.upkeep.clone(), self.digest);
        tokio::spawn(async move {
            if let Err(error) = upkeep.discard(&digest).await {
                tracing::error!(%digest, %error, "an object that cannot be read cannot be removed either");
            }
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.upkeep.leases();
        if let Some(readers) = leases.get_mut(&self.digest) {
            *readers -= 1;
            if *readers == 0 {
                leases.remove(&self.digest);
            }
        }
    }
}

impl Upkeep {
    /// Creates the upkeep of a cache; [`super::run`] is its task.
    pub fn new(config: &Config, parts: Parts) -> Self {
        let limits = Arc::new(Limits::new(config, parts.bucket.is_some()));
        let (mailbox, received) = mpsc::channel(MESSAGES);
        Self {
            parts,
            ledger: Mutex::new(Ledger::new(limits)),
            leases: Mutex::default(),
            uses: Mutex::default(),
            pins_changed: AtomicBool::new(true),
            loaded: watch::Sender::new(false),
            mailbox,
            received: Mutex::new(Some(received)),
            leaving: Leaving::default(),
            uploading: Uploading::default(),
            keeping: Keeping::default(),
        }
    }

    /// Returns the mailbox, for the task that serves it; `None` once it was taken.
    pub(super) fn mailbox(&self) -> Option<mpsc::Receiver<Message>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts a message into the mailbox; waits while it is full.
    pub(super) async fn send(&self, message: Message) -> io::Result<()> {
        self.mailbox.send(message).await.map_err(|_| closed())
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Sets whether the index was read; `false`: it has to be read anew.
    pub(super) fn set_loaded(&self, is_loaded: bool) {
        self.loaded.send_replace(is_loaded);
    }

    /// Returns whether the set of pinned objects has to be found out anew, and clears this flag: the caller has to do
    /// it.
    pub(super) fn take_pins_changed(&self) -> bool {
        self.pins_changed.swap(false, Ordering::AcqRel)
    }

    // Functions that tell upkeep what has happened.

    /// Notes that an object came in for a repository.
    pub fn stored(&self, digest: Digest, size: u64, repository: &str) {
        let mut ledger = self.ledger();
        let class = ledger.limits().classes.of(repository);
        ledger.stored(digest, size, class, now());
        drop(ledger);
        self.publish_totals();
    }

    /// Notes that an object is visible in a repository: it is kept at least as long as the repository's own objects.
    pub fn seen_by(&self, digest: &Digest, repository: &str) {
        let mut ledger = self.ledger();
        if ledger.limits().classes.count() > 1 {
            let class = ledger.limits().classes.of(repository);
            ledger.raise(digest, class, now());
        }
    }

    /// Notes that the content of an object is in the bucket, too.
    pub fn uploaded(&self, digest: &Digest, size: u64) {
        self.ledger().uploaded(*digest, size, now());
        self.publish_totals();
    }

    /// Notes objects that another Larder has brought into the bucket, each with its bytes.
    pub async fn uploaded_elsewhere(&self, objects: &[(Digest, u64)]) {
        let has_classes = self.ledger().limits().classes.count() > 1;
        let asked = if has_classes { objects.iter().map(|(digest, _)| *digest).collect() } else { Vec::new() };
        let uses = match asked.is_empty() {
            true => HashMap::new(),
            // It is kept for longer than it has to be, until the index is read anew.
            false => self.parts.index.uses(asked).await.unwrap_or_default(),
        };
        let mut ledger = self.ledger();
        for &(digest, size) in objects {
            let repositories = uses.get(&digest).map(|used| used.repositories.as_str());
            ledger.uploaded_elsewhere(digest, size, repositories.unwrap_or_default(), now());
        }
        drop(ledger);
        self.publish_totals();
    }

    /// Notes objects of which another Larder has found that the bucket has lost them.
    pub fn lost_elsewhere(&self, objects: &[Digest]) {
        let mut ledger = self.ledger();
        objects.iter().for_each(|digest| ledger.not_uploaded(digest, now()));
        drop(ledger);
        self.publish_totals();
    }

    /// Notes objects that another Larder has evicted from the bucket, and with that from all.
    pub fn evicted_elsewhere(&self, objects: &[Digest]) {
        self.ledger().remove(objects);
        self.publish_totals();
    }

    /// Notes an upload that is to begin: what it brings is not taken for left over until the returned value is dropped.
    pub fn begin_upload(&self, upload: Upload) -> Running {
        self.uploading.begin(upload)
    }

    /// Returns whether an upload runs.
    pub(super) fn is_uploading(&self, upload: &Upload) -> bool {
        self.uploading.has(upload)
    }

    /// Has what uploads brought deleted from the bucket, unless a row names it then.
    pub fn delete_later(&self, uploads: Vec<Upload>) {
        self.leaving.add(uploads);
    }

    /// Notes that an object that is in the bucket has a file here again. It is kept as long as before.
    pub fn has_file(&self, digest: &Digest, size: u64) {
        let mut ledger = self.ledger();
        if ledger.take_in_file(digest).is_none() {
            // It has left the bucket meanwhile, and nobody is known to want it.
            let class = ledger.limits().classes.of("");
            ledger.stored(*digest, size, class, now());
        }
        drop(ledger);
        self.used(digest);
        self.publish_totals();
    }

    /// Notes that an object was read.
    pub fn used(&self, digest: &Digest) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < MAX_USES {
            uses.push(*digest);
        }
    }

    /// Notes that an object is being read.
    pub fn lease(self: &Arc<Self>, digest: &Digest) -> Arc<Lease> {
        *self.leases().entry(*digest).or_default() += 1;
        Arc::new(Lease { upkeep: self.clone(), digest: *digest })
    }

    /// Notes that a tag leads to another manifest than before.
    pub fn tag_changed(&self, key: &TagKey) {
        let is_pinned = {
            let ledger = self.ledger();
            ledger.has_named_pins() || ledger.limits().rules.match_tag(key)
        };
        if is_pinned {
            self.pins_changed();
        }
    }

    /// Notes that the set of pinned objects has to be found out anew.
    pub fn pins_changed(&self) {
        self.pins_changed.store(true, Ordering::Release);
    }

    /// Notes that the edges of a manifest have become known.
    pub fn edges_changed(&self, manifest: &Digest) {
        if self.is_pinned(manifest) {
            self.pins_changed();
        }
    }

    /// Notes that objects were removed by other code than the upkeep task; `is_all`: all objects.
    pub fn removed(&self, digests: &[Digest], is_all: bool) {
        let mut ledger = self.ledger();
        if is_all {
            ledger.clear();
        }
        ledger.remove(digests);
        drop(ledger);
        self.pins_changed();
        self.publish_totals();
    }

    // Functions that ask upkeep.

    /// Returns whether an object must never go, as far as [`Self::refresh_pins`] has found out.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.ledger().is_pinned(digest)
    }

    /// Returns whether so many bytes would not fit even into an empty cache.
    pub fn never_fits(&self, bytes: u64) -> bool {
        self.ledger().never_fits(bytes)
    }

    /// Returns why not even a small object could be stored with so much room on the disk.
    pub fn shortage(&self, capacity: Capacity) -> Option<Shortage> {
        self.ledger().shortage(capacity.total, capacity.free)
    }

    /// Finds out anew which objects are pinned, if that may have changed.
    pub async fn refresh_pins(&self) -> Result<(), IndexError> {
        self.ask(|done| Message::RefreshPins { done }).await?
    }

    /// Compares the files with the ledger. With `is_repair`, files without a row are adopted, and rows without a file
    /// dropped.
    pub async fn census(&self, is_repair: bool) -> io::Result<Census> {
        // No deadline: this takes as long as there are files.
        let (done, result) = oneshot::channel();
        self.send(Message::Census { is_repair, done }).await?;
        result.await.map_err(|_| closed())?
    }

    /// Keeps within other limits from now on. If these change how long objects are kept, everything is read anew, as at
    /// the start; returns when that is done.
    pub async fn configure(&self, config: &Config) {
        let is_read_anew = {
            let mut ledger = self.ledger();
            let limits = Limits::new(config, self.parts.bucket.is_some());
            let is_read_anew = ledger.set_limits(Arc::new(limits));
            if is_read_anew {
                self.loaded.send_replace(false);
            }
            is_read_anew
        };
        self.pins_changed();
        if is_read_anew && !self.load().await {
            tracing::error!("what is stored could not be sorted by the new configuration");
        }
    }

    /// Reads everything anew, as at the start.
    pub async fn read_anew(&self) {
        self.ledger().begin_anew();
        self.loaded.send_replace(false);
        self.pins_changed();
        if !self.load().await {
            tracing::error!("what is stored could not be read anew from the index");
        }
    }

    /// Has the index read. Returns whether that was done.
    async fn load(&self) -> bool {
        let (done, result) = oneshot::channel();
        self.send(Message::Load { done }).await.is_ok() && result.await.is_ok()
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let asked = async {
            self.send(message(done)).await?;
            result.await.map_err(|_| closed())
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the disk takes too long");
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_| late())?
    }

    /// Waits until the index was read.
    pub async fn loaded(&self) {
        // The sender lives as long as `self`.
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }

    /// Returns whether the content of an object is in the bucket.
    pub fn is_uploaded(&self, digest: &Digest) -> bool {
        self.ledger().is_uploaded(digest)
    }

    /// Returns whether an object has a file here, as far as upkeep knows.
    pub fn has_file_of(&self, digest: &Digest) -> bool {
        self.ledger().has_file(digest)
    }

    /// Returns objects that are not in the bucket yet and have a file here.
    pub fn not_yet_uploaded(&self, most: usize) -> Vec<Digest> {
        self.ledger().not_yet_uploaded(most)
    }

    /// Takes a bad object out: its row, then its file. If it is in the bucket, too, only the file is bad.
    pub async fn discard(&self, digest: &Digest) -> io::Result<()> {
        let is_copy = {
            let mut ledger = self.ledger();
            let is_copy = ledger.is_uploaded(digest);
            if is_copy {
                ledger.remove_file(digest);
            }
            is_copy
        };
        if is_copy {
            self.forget_files(std::slice::from_ref(digest)).await;
            return self.parts.store.remove(std::slice::from_ref(digest)).await;
        }
        self.removed(std::slice::from_ref(digest), false);
        self.forget(std::slice::from_ref(digest)).await;
        self.parts.store.remove(std::slice::from_ref(digest)).await
    }

    /// Forgets all that is known of objects whose files are gone or are about to go.
    pub(super) async fn forget(&self, digests: &[Digest]) {
        if digests.is_empty() {
            return;
        }
        match self.parts.bucket {
            // An upload may have ended meanwhile.
            Some(_) => self.forget_files(digests).await,
            // What is there is lost, whatever its row says.
            None => self.apply(digests.iter().map(|&digest| Write::DropObject { digest }).collect()).await,
        }
        let gone: HashSet<Digest> = digests.iter().copied().collect();
        self.parts.cached.gone(&gone);
        let is_any_pinned = {
            let ledger = self.ledger();
            gone.iter().any(|digest| ledger.is_pinned(digest))
        };
        if is_any_pinned {
            self.pins_changed();
        }
    }

    /// Notes that files are gone or about to go, of objects that are in the bucket as far as this Larder knows: where others
    /// have taken one out there meanwhile, it is forgotten.
    pub(super) async fn forget_files(&self, digests: &[Digest]) {
        if digests.is_empty() {
            return;
        }
        self.apply(digests.iter().map(|&digest| Write::DropUploaded { digest, generation: None }).collect()).await;
    }

    /// Queues changes to the index that must not be dropped; waits while too many are queued.
    pub(super) async fn apply(&self, writes: Vec<Write>) {
        if let Err(error) = self.parts.index.apply(writes).await {
            tracing::warn!(%error, "the index takes long over what upkeep has changed");
        }
    }

    /// Forgets objects that are in the bucket, and has what their uploads brought deleted. Returns those that are gone:
    /// one whose row is still there, or cannot be read, stays in the bucket and in the ledger.
    pub(super) async fn forget_uploaded(&self, digests: &[Digest]) -> Vec<Digest> {
        let (mut gone, mut going) = (Vec::new(), Vec::new());
        for &digest in digests {
            match self.parts.index.object(&digest).await {
                Ok(Some(entry)) => going.extend(entry.generation.map(|generation| (digest, generation, entry.size))),
                Ok(None) => gone.push(digest),
                Err(error) => {
                    tracing::warn!(%digest, %error, "what the bucket has of an object cannot be found out; it stays");
                }
            }
        }
        let writes = going.iter().map(|&(digest, generation, _)| {
            let generation = Some(generation);
            Write::DropUploaded { digest, generation }
        });
        self.apply(writes.collect()).await;
        let written = self.parts.index.flush().await;
        for &(digest, generation, size) in &going {
            // Writes may be lost.
            let left = match &written {
                Ok(()) => self.parts.index.object(&digest).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match left {
                Ok(None) => gone.push(digest),
                Ok(Some(entry)) if entry.generation.is_none() => {}
                left => {
                    if !matches!(&left, Ok(Some(entry)) if entry.generation != Some(generation)) {
                        let error = left.err().unwrap_or_else(|| "the change was lost".to_owned());
                        tracing::warn!(%digest, error, "an object cannot be taken out of the bucket now; it stays");
                    }
                    let mut ledger = self.ledger();
                    let highest = ledger.limits().classes.count() - 1;
                    ledger.known_uploaded(digest, size, highest, now());
                }
            }
        }
        self.parts.cached.gone(&gone.iter().copied().collect());
        // Of these, what a row still names is not deleted.
        self.delete_later(going.into_iter().map(|(digest, generation, _)| Upload { digest, generation }).collect());
        gone
    }

    pub(super) fn keeping(&self) -> &Keeping {
        &self.keeping
    }

    pub(super) fn leaving(&self) -> &Leaving {
        &self.leaving
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leases(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the collected uses into the ledger. Returns the writes for the index that follow from them.
    pub(super) fn take_in_uses(&self) -> Vec<Write> {
        let uses = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        let now = now();
        let mut ledger = self.ledger();
        let touch = |digest: Digest| {
            let before = ledger.touch(&digest, now)?;
            let is_due = now.saturating_sub(before) >= USE_RESOLUTION;
            is_due.then(|| Write::Used { digest, at: Timestamp::now() })
        };
        uses.into_iter().filter_map(touch).collect()
    }

    /// Sets the bounds of the index, which follow from the room that there is for all.
    pub(super) fn bound_index(&self, total: u64) {
        let max_size = self.ledger().limits().disk_size;
        self.parts.index.keep_within(bounds_of(max_size, total));
    }

    /// Writes the count and bytes of stored objects to the metrics.
    pub(super) fn publish_totals(&self) {
        let (objects, bytes) = self.ledger().totals();
        let (in_bucket, bucket_bytes) = self.ledger().bucket_totals();
        self.parts.metrics.cache_objects.set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.parts.metrics.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.parts.metrics.s3_objects.set(i64::try_from(in_bucket).unwrap_or(i64::MAX));
        self.parts.metrics.s3_bytes.set(i64::try_from(bucket_bytes).unwrap_or(i64::MAX));
    }
}
