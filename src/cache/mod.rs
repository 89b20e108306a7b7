//! The cache: what is stored, what is known about it, and what is on its way in.
//!
//! It knows no upstream: code that asks for a fill hands over an [`Origin`].

mod begin;
mod breaks;
mod bucket;
mod bucket_origin;
pub mod carried;
mod coming;
mod direct;
mod elsewhere;
mod fill;
pub mod flight;
pub mod freshness;
mod holds;
pub mod hot;
mod left_uploads;
mod list_room;
mod lists;
mod manifests;
mod modes;
pub mod moving;
mod names;
mod opened;
mod origin;
mod passes;
mod pending;
mod pools;
mod purge;
pub mod ranges;
mod read;
mod readiness;
mod recall;
mod standing;
mod store_name;
mod unfit;
mod uploads;
mod urls;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use crate::places::Party;
pub use bucket::InBucket;
pub use fill::{Fill, FillReader, Origin, Progress, Source, Transfer};
pub use hot::Manifest;
pub use read::{Aside, Content};
pub use standing::Standing;

use tokio::sync::watch;

use crate::config::Config;
use crate::descriptors::Shares;
use crate::failure::{Failure, FailureKind};
use crate::index::{
    self, Image, ImageName, ImagePage, ImageSearch, Index, ObjectEntry, Purge, TagEntry, TagKey, Timestamp, Viewer,
    Write,
};
use crate::observe::Metrics;
use crate::oci::{Digest, MediaType};
use crate::places::Places;
use crate::s3::Bucket;
use crate::spool::Spool;
pub use crate::store::Mapping;
use crate::store::{Object, Store};
use crate::upkeep::room::Room;
use crate::upkeep::{self, Upkeep, scrub};
use crate::work::Pool;
use bucket::KnownBucket;
use coming::Coming;
use fill::{Fills, Windows};
use flight::Flights;
use hot::{Hot, VisibleKey};
use list_room::ListRoom;
use opened::Folder;
pub use opened::OpenError;
use passes::Passes;
use pending::Pending;
use pools::Pools;
use readiness::Readiness;
use unfit::Unfit;
use uploads::Uploads;

/// How long a stop waits for verified content to be on disk, and then for the index.
const LAST_STORES: Duration = Duration::from_secs(5);

/// All state of the cache that is kept between requests.
pub struct Cache {
    store: Arc<dyn Store>,
    spool: Spool,
    index: Arc<dyn Index>,
    hot: Arc<Hot>,
    lists: ListRoom,
    upkeep: Arc<Upkeep>,
    room: Arc<dyn Room>,
    fills: Fills,
    places: Places,
    unfit: Unfit,
    /// The memory for objects that cannot be stored.
    windows: Windows,
    /// Manifests that are verified and not stored yet.
    pending: Pending,
    /// Manifests on their way from the store into memory.
    loads: Flights<Digest, Option<Arc<Manifest>>>,
    /// Checks under way of objects whose seal is broken.
    inspections: Flights<Digest, bool>,
    readiness: Readiness,
    /// Held by the running verification.
    verifying: tokio::sync::Mutex<()>,
    /// Held while an archive is read or written.
    carrying: Arc<tokio::sync::Mutex<()>>,
    coming: Coming,
    /// Counts the purges.
    purges: watch::Sender<u64>,
    /// Where content is kept beside the store; `None`: nowhere.
    bucket: Option<Arc<KnownBucket>>,
    uploads: Option<Uploads>,
    metrics: Arc<Metrics>,
}

/// The parts of the cache that upkeep asks and tells.
struct Watched {
    fills: Fills,
    hot: Arc<Hot>,
    coming: Coming,
}

impl upkeep::Cached for Watched {
    fn is_coming_in(&self, digest: &Digest) -> bool {
        self.fills.running(digest).is_some() || self.coming.is(digest)
    }

    fn is_storing(&self) -> bool {
        self.fills.are_storing()
    }

    fn gone(&self, digests: &HashSet<Digest>) {
        self.hot.forget(digests);
    }
}

impl Cache {
    /// Opens a cache directory, and makes it if it is missing. Blocks. To be called within a runtime.
    pub fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let folder = Folder::open(&config.cache.dir, Pools::default())?;
        folder.clear_downloads(config.cache.partial_ttl);
        let bucket = config.s3.as_ref().map(|s3| Bucket::new(s3, metrics.clone())).transpose()?;
        let index = folder.index(config, bucket.as_ref())?;
        let Folder { store, spool, pools, .. } = folder;
        Ok(Self::of(config, (store, bucket), spool, index, pools.upkeep, metrics))
    }

    /// Creates a cache of these parts; `pool` is for upkeep.
    fn of(
        config: &Config,
        (store, bucket): (Arc<dyn Store>, Option<Bucket>),
        spool: Spool,
        index: Arc<dyn Index>,
        pool: Pool,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (hot, fills, coming) = (Arc::new(Hot::default()), Fills::default(), Coming::default());
        let parts = upkeep::Parts {
            store: store.clone(),
            spool: spool.clone(),
            index: index.clone(),
            cached: Arc::new(Watched { fills: fills.clone(), hot: hot.clone(), coming: coming.clone() }),
            pool,
            bucket: bucket.clone(),
            metrics: metrics.clone(),
        };
        let upkeep = Arc::new(Upkeep::new(config, parts));
        let bucket = bucket.map(|bucket| Arc::new(KnownBucket::new(bucket)));
        let uploads = bucket.clone().map(|known| {
            let (store, index) = (store.clone(), index.clone());
            Uploads::new(uploads::Parts { known, store, index, upkeep: upkeep.clone(), metrics: metrics.clone() })
        });
        Self {
            store,
            spool,
            index,
            hot,
            lists: ListRoom::default(),
            room: Arc::new(upkeep.clone()),
            upkeep,
            fills,
            places: Places::new(Shares::now().fills),
            unfit: Unfit::default(),
            windows: Windows::default(),
            pending: Pending::default(),
            loads: Flights::default(),
            inspections: Flights::default(),
            readiness: Readiness::default(),
            verifying: tokio::sync::Mutex::default(),
            carrying: Arc::default(),
            coming,
            purges: watch::Sender::new(0),
            bucket,
            uploads,
            metrics,
        }
    }

    /// Runs the upkeep task: reads which objects are stored, and keeps the cache within its limits. Runs until the
    /// process ends.
    pub async fn look_after(self: Arc<Self>) {
        let uploading = async {
            if let Some(uploads) = self.uploads.clone() {
                self.probe_bucket().await;
                uploads.run().await;
            }
        };
        tokio::join!(upkeep::run(self.upkeep.clone(), true), uploading, self.follow_others());
    }

    /// Runs the upkeep task for a command on a stopped cache: reads the index and does what is asked, but nothing of
    /// its own accord. Runs until the process ends.
    pub async fn attend(self: Arc<Self>) {
        upkeep::run(self.upkeep.clone(), false).await;
    }

    /// Forgets what clients' own credentials brought in, in repositories where `config` has Larder's own decide
    /// instead. To be called before any request is answered by `config`.
    pub async fn forget_what_was_private(&self, config: &Config) -> Result<(), Failure> {
        let dir = config.cache.dir.clone();
        let passes = blocking(move || Passes::read(&dir)).await?;
        let forgotten = passes.to_forget(config);
        for repository in &forgotten {
            tracing::info!(repository, "what clients' own credentials brought in is forgotten");
            // No start and no change of the configuration waits for the bucket: rows and files decide who gets what.
            self.purge_within(Purge::Repository(repository.clone()), Duration::ZERO).await?;
        }
        let config = config.clone();
        let written = blocking(move || passes.write(&config, &forgotten)).await?;
        if let Err(error) = written {
            tracing::error!(%error, "which repositories have client_credentials = \"pass\" cannot be noted");
        }
        Ok(())
    }

    /// Keeps within other limits from now on. If they change how long objects are kept, this takes as long as a start.
    pub async fn configure(&self, config: &Config) {
        self.unfit.clear();
        self.upkeep.configure(config).await;
    }

    /// Returns a complete object from the store.
    pub async fn stored(&self, digest: &Digest) -> Result<Option<Content>, Failure> {
        // Leased before the look into the store, so that the object is not evicted in between.
        let lease = self.upkeep.lease(digest);
        let found = self.store.open(digest).await;
        let Some(object) = found.map_err(|error| self.broken("cannot read an object", error))? else {
            return Ok(None);
        };
        if !object.is_sealed && !self.inspect(&object, digest).await? {
            return Ok(None);
        }
        self.upkeep.used(digest);
        Ok(Some(Content::Complete { object, lease }))
    }

    /// Hashes an object whose file was touched since it was verified, once for all callers. Returns whether the object
    /// is intact; a damaged object is removed.
    async fn inspect(&self, object: &Object, digest: &Digest) -> Result<bool, Failure> {
        let (object, digest, store, upkeep) = (object.clone(), *digest, self.store.clone(), self.upkeep.clone());
        let metrics = self.metrics.clone();
        let inspect = || async move {
            match object.is_intact(&digest, |_| true).await {
                Ok(true) => {
                    if let Err(error) = store.seal(&object, &digest).await {
                        tracing::warn!(%digest, %error, "an object cannot be sealed");
                    }
                    return Ok(true);
                }
                // The object may be intact.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Failure::of(FailureKind::Storage, "an object cannot be read", error));
                }
                Ok(false) => {
                    tracing::error!(%digest, "a stored object was damaged; it was removed and is fetched again");
                }
                Err(error) => {
                    tracing::error!(%digest, %error, "a stored object cannot be read; it was removed and is fetched again");
                }
            }
            metrics.errors.inc();
            // Even if the object cannot be removed, it is not served: its seal is broken.
            if let Err(error) = upkeep.discard(&digest).await {
                tracing::error!(%digest, %error, "a damaged object cannot be removed");
            }
            Ok(false)
        };
        self.inspections.run(digest, inspect).await.0
    }

    /// Returns an object to read while it comes in. `told`: the size that its upstream states, where the transfer does
    /// not state it.
    pub fn growing(&self, fill: FillReader, aside: Aside, told: Option<u64>) -> Content {
        let lease = self.upkeep.lease(&aside.digest);
        Content::Growing { fill, aside, told, is_mapped: true, _lease: Some(lease) }
    }

    /// Returns how many fills are under way.
    pub fn fills_running(&self) -> usize {
        self.fills.count()
    }

    /// Notes an object that was stored.
    fn record_object(&self, viewer: &Viewer, digest: Digest, size: u64, media_type: Option<MediaType>, is_new: bool) {
        let entry = ObjectEntry { size, media_type, stored_at: Timestamp::now(), generation: None };
        self.index.note(Write::Object { digest, entry });
        self.mark_visible(viewer, digest);
        if is_new {
            self.metrics.stores.inc();
        }
        self.upkeep.stored(digest, size, &viewer.repository);
    }

    /// Returns what is known of a tag.
    pub async fn tag(&self, key: &TagKey) -> Result<Option<TagEntry>, Failure> {
        if let Some(entry) = self.hot.tags.get(key) {
            return Ok(Some(entry));
        }
        let entry = self.read(self.index.tag(key)).await?;
        if let Some(entry) = &entry {
            self.hot.tags.insert(key.clone(), entry.clone());
        }
        Ok(entry)
    }

    /// Notes what a tag leads to.
    pub fn put_tag(&self, key: TagKey, entry: TagEntry) {
        let is_news = self.hot.tags.get(&key).is_none_or(|known| known.digest != entry.digest);
        self.hot.tags.insert(key.clone(), entry.clone());
        self.index.note(Write::Tag { key: key.clone(), entry });
        if is_news {
            self.upkeep.tag_changed(&key);
        }
    }

    /// Forgets a tag.
    pub fn drop_tag(&self, key: TagKey) {
        self.hot.tags.remove(&key);
        self.index.note(Write::DropTag { key: key.clone() });
        self.upkeep.tag_changed(&key);
    }

    /// Returns whether the object is visible to the viewer: whether the repository's upstream is known to have it, in
    /// the viewer's scope.
    pub async fn is_visible(&self, viewer: &Viewer, digest: &Digest) -> Result<bool, Failure> {
        if self.hot.visible.get(&VisibleKey(viewer, digest)).is_some() {
            return Ok(true);
        }
        let is_visible = self.read(self.index.is_visible(viewer, digest)).await?;
        if is_visible {
            self.hot.visible.insert((viewer.clone(), *digest), ());
        }
        Ok(is_visible)
    }

    /// Notes that the object is visible to the viewer.
    pub fn mark_visible(&self, viewer: &Viewer, digest: Digest) {
        self.hot.visible.insert((viewer.clone(), digest), ());
        self.upkeep.seen_by(&digest, &viewer.repository);
        self.index.note(Write::Visible { viewer: viewer.clone(), digest });
    }

    /// Returns at most `count` names with cached content of these repositories, in order, beginning behind `last`.
    pub async fn catalog(&self, repositories: Vec<String>, last: String, count: usize) -> Result<Vec<String>, Failure> {
        self.read(self.index.catalog(repositories, last, count)).await
    }

    /// Returns what changes with each purge.
    pub fn purges(&self) -> watch::Receiver<u64> {
        self.purges.subscribe()
    }

    /// Notes that an object was wanted, though nobody read it.
    pub fn wanted(&self, digest: &Digest) {
        self.upkeep.used(digest);
    }

    /// Returns at most `count` images in the order of their references, beginning behind `last`, each with whether it
    /// is pinned; and where the next page begins.
    pub async fn images(&self, last: String, count: usize) -> Result<(Vec<(Image, bool)>, Option<String>), Failure> {
        self.with_pins(self.read(self.index.images(last, count)).await?).await
    }

    /// Finds images; see [`crate::index::Index::find_images`]. Each with whether it is pinned.
    pub async fn find_images(&self, search: ImageSearch) -> Result<(Vec<(Image, bool)>, Option<String>), Failure> {
        self.with_pins(self.read(self.index.find_images(search)).await?).await
    }

    /// Returns which of these objects are stored.
    pub async fn stored_of(&self, objects: Vec<Digest>) -> Result<HashSet<Digest>, Failure> {
        self.read(self.index.stored_of(objects)).await
    }

    async fn with_pins(&self, page: ImagePage) -> Result<(Vec<(Image, bool)>, Option<String>), Failure> {
        let refreshed = self.upkeep.refresh_pins().await;
        refreshed.map_err(|error| self.broken("cannot read the index", error))?;
        let ImagePage { images, next } = page;
        let with_pin = |image: Image| {
            let is_pinned = self.upkeep.is_pinned(&image.digest);
            (image, is_pinned)
        };
        Ok((images.into_iter().map(with_pin).collect(), next))
    }

    /// Pins an image, cached or not, or takes its pin back. Returns whether that changed anything.
    pub async fn set_pin(&self, image: ImageName, is_pinned: bool) -> Result<bool, Failure> {
        let changed = self.index.set_pin(image, is_pinned).await;
        // One that was given up may still be written.
        self.upkeep.pins_changed();
        let changed = changed.map_err(|error| self.broken("cannot write a pin", error))?;
        Ok(changed)
    }

    /// Returns whether an object belongs to a pinned image.
    pub async fn is_pinned(&self, digest: &Digest) -> Result<bool, Failure> {
        let refreshed = self.upkeep.refresh_pins().await;
        refreshed.map_err(|error| self.broken("cannot read the index", error))?;
        Ok(self.upkeep.is_pinned(digest))
    }

    /// Returns the images that were pinned by name.
    pub async fn pins(&self) -> Result<Vec<ImageName>, Failure> {
        self.read(self.index.pins()).await
    }

    /// Returns the right to verify all that is stored; `None` while another verification runs.
    pub fn begin_verification(&self) -> Option<Verification<'_>> {
        self.verifying.try_lock().ok().map(|turn| Verification { cache: self, _turn: turn })
    }

    /// Waits until upkeep has read the index.
    pub async fn loaded(&self) {
        self.upkeep.loaded().await;
    }

    /// Checks whether content can be stored and looked up now. Answers soon, whatever the disk does.
    pub async fn check(&self) -> Result<(), Failure> {
        let (store, index, upkeep) = (self.store.clone(), self.index.clone(), self.upkeep.clone());
        let probe = || async move {
            let unwritable = |error| Failure::of(FailureKind::Storage, "the cache directory cannot be written", error);
            store.check().await.map_err(unwritable)?;
            let capacity = store.capacity().await.map_err(unwritable)?;
            if let Some(shortage) = upkeep.shortage(capacity) {
                return Err(Failure::new(FailureKind::NoRoom, shortage));
            }
            if index.is_on_server() {
                // The cache serves without it for a while: see [`Self::warning`].
                return Ok(());
            }
            index.check().await.map_err(|error| Failure::of(FailureKind::Storage, "cannot read the index", error))
        };
        self.readiness.check(probe).await
    }

    /// Returns what is wrong with the cache though it serves: the server that keeps the index is away.
    pub fn warning(&self) -> Option<String> {
        let why = self.index.server_trouble()?;
        Some(format!(
            "the index is away ({why}); what is stored is served once its upstream confirms it, and changes wait"
        ))
    }

    /// Waits a limited time until verified content is stored, then writes what the index has queued and closes the
    /// index. Tasks that still run at a stop must not keep the index from being written to disk.
    pub async fn close(&self) {
        let stored = async {
            while self.fills.are_storing() || !self.pending.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(LAST_STORES, stored).await.is_err() {
            tracing::warn!("not everything that came in could be stored in time; it is fetched again");
        }
        match tokio::time::timeout(LAST_STORES, self.index.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the last changes to the index were lost"),
            Err(_) => {
                tracing::warn!("the last changes to the index could not be written in time; they are learnt again")
            }
        }
        match tokio::time::timeout(LAST_STORES, self.index.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the index could not be closed"),
            Err(_) => tracing::warn!("the index could not be closed in time; the next start takes in its log"),
        }
    }

    async fn read<T>(&self, answer: index::Call<'_, T>) -> Result<T, Failure> {
        answer.await.map_err(|error| self.broken("cannot read the index", error))
    }

    fn broken(&self, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
        self.metrics.errors.inc();
        tracing::error!(%error, "{what}");
        Failure::of(FailureKind::Storage, what, error)
    }
}

/// The right to run a verification.
pub struct Verification<'a> {
    cache: &'a Cache,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl Verification<'_> {
    /// Reads all that is stored and compares it with its digests and with the index. `progress` gets the report so far
    /// and returns whether to go on.
    pub async fn run(
        self,
        is_repair: bool,
        progress: impl FnMut(&scrub::Report) -> bool + Send + 'static,
    ) -> Result<scrub::Report, Failure> {
        let upkeep = self.cache.upkeep.clone();
        upkeep.loaded().await;
        let verified = scrub::verify(&upkeep, is_repair, progress).await;
        verified.map_err(|error| self.cache.broken("cannot verify the store", error))
    }
}

/// Runs blocking work that comes once in a while off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(|error| Failure::of(FailureKind::Storage, "a storage task failed", error))
}

#[cfg(test)]
mod tests;
