//! The cache: what is stored, what is known about it, and what is on its way in.
//!
//! Knows no upstream: whoever asks for a fill hands over an [`Origin`].

mod begin;
mod breaks;
mod classes;
mod direct;
pub mod evict;
mod fill;
pub mod flight;
pub mod freshness;
pub mod hot;
mod limits;
mod lists;
mod manifests;
mod modes;
mod names;
mod passes;
mod pins;
pub mod ranges;
mod read;
pub mod scrub;
mod space;
mod standing;
mod urls;

use std::sync::Arc;
use std::time::Duration;

pub use crate::places::Party;
pub use fill::{Fill, FillReader, Origin, Source, Transfer};
pub use hot::Manifest;
pub use read::{Aside, Content};
pub use standing::Standing;

use crate::config::Config;
use crate::descriptors::Shares;
use crate::failure::{Failure, FailureKind};
use crate::index::{
    Image, ImageName, ImagePage, Index, IndexError, ObjectEntry, Purge, Purged, TagEntry, TagKey, Timestamp, Viewer,
    Write,
};
use crate::oci::{Digest, MediaType};
use crate::places::Places;
pub use crate::store::Mapping;
use crate::store::{Disk, StoreError, Stored};
use crate::telemetry::Metrics;
use begin::Unfit;
use fill::{Fills, Room};
use flight::Flights;
use hot::Hot;
use lists::Lists;
use manifests::Pending;
use passes::Passes;
use space::Space;

/// How long a stop waits for what is verified to be on disk, and for the index.
const LAST_STORES: Duration = Duration::from_secs(5);

/// Everything kept between requests.
pub struct Cache {
    disk: Arc<Disk>,
    index: Arc<Index>,
    hot: Arc<Hot>,
    lists: Lists,
    space: Arc<Space>,
    room: Arc<dyn Room>,
    fills: Fills,
    places: Places,
    unfit: Unfit,
    /// Manifests that are verified and not stored yet.
    pending: Pending,
    /// Manifests on their way from the store into memory.
    loads: Flights<Digest, Option<Arc<Manifest>>>,
    /// Objects being looked at because their seal is broken.
    inspections: Flights<Digest, bool>,
    verifying: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
}

/// Why a cache directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cache.dir: {0}")]
    Index(#[from] IndexError),
}

impl Cache {
    /// Opens a cache directory, making it where it is missing.
    pub fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let disk = Disk::open(&config.cache.dir)?;
        modes::tighten(&config.cache.dir);
        // On a full disk, downloads that were broken off are worth less than all else.
        let partial_ttl = if disk.is_full() { Duration::ZERO } else { config.cache.partial_ttl };
        if let Err(error) = disk.clear_partials(partial_ttl) {
            tracing::warn!(%error, "cannot clear abandoned partial downloads");
        }
        let index = Index::open(&config.cache.dir)?;
        let (disk, index, hot) = (Arc::new(disk), Arc::new(index), Arc::new(Hot::default()));
        let fills = Fills::default();
        let space = Space::new(config, disk.clone(), index.clone(), hot.clone(), fills.clone(), metrics.clone());
        let space = Arc::new(space);
        Ok(Self {
            disk,
            index,
            hot,
            lists: Lists::default(),
            room: Arc::new(space.clone()),
            space,
            fills,
            places: Places::new(Shares::now().fills),
            unfit: Unfit::default(),
            pending: Pending::default(),
            loads: Flights::default(),
            inspections: Flights::default(),
            verifying: tokio::sync::Mutex::default(),
            metrics,
        })
    }

    /// Takes in what is stored and keeps the cache within its limits; runs until the process ends.
    pub async fn look_after_space(self: Arc<Self>) {
        self.space.clone().run().await;
    }

    /// Forgets what came in by clients' own credentials where `config` has Larder's own decide instead. To
    /// be done before anything is answered by it.
    pub async fn forget_what_was_private(&self, config: &Config) -> Result<(), Failure> {
        let dir = config.cache.dir.clone();
        let passes = blocking(move || Passes::read(&dir)).await?;
        let forgotten = passes.to_forget(config);
        for repository in &forgotten {
            tracing::info!(repository, "what clients' own credentials brought in is forgotten");
            self.purge(Purge::Repository(repository.clone())).await?;
        }
        let config = config.clone();
        let written = blocking(move || passes.write(&config, &forgotten)).await?;
        if let Err(error) = written {
            tracing::error!(%error, "which repositories have client_credentials = \"pass\" cannot be noted");
        }
        Ok(())
    }

    /// Keeps within other limits from now on. May block for as long as a start takes.
    pub fn configure(&self, config: &Config) {
        self.unfit.clear();
        self.space.configure(config);
    }

    /// A complete object from the store.
    pub async fn stored(&self, digest: &Digest) -> Result<Option<Content>, Failure> {
        // Before it is looked for, so that it is not evicted in between.
        let lease = self.space.lease(digest);
        let (disk, wanted) = (self.disk.clone(), *digest);
        let found = blocking(move || disk.get(&wanted)).await?;
        let Some(stored) = found.map_err(|error| self.broken("cannot read an object", &error))? else {
            return Ok(None);
        };
        if !stored.is_sealed && !self.inspect(&stored, digest).await? {
            return Ok(None);
        }
        self.space.used(digest);
        Ok(Some(Content::Complete { stored, lease }))
    }

    /// Hashes an object whose file was touched since it was verified, once for all who ask. Returns
    /// whether it is intact; one that is not is gone.
    async fn inspect(&self, stored: &Stored, digest: &Digest) -> Result<bool, Failure> {
        let (stored, digest, disk, space) = (stored.clone(), *digest, self.disk.clone(), self.space.clone());
        let metrics = self.metrics.clone();
        let inspect = || {
            blocking(move || {
                match Disk::is_intact(&stored, &digest, |_| true) {
                    Ok(true) => {
                        disk.seal(&stored, &digest)
                            .unwrap_or_else(|error| tracing::warn!(%digest, %error, "an object cannot be sealed"));
                        return true;
                    }
                    Ok(false) => {
                        tracing::error!(%digest, "a stored object was damaged; it was removed and is fetched again");
                    }
                    Err(error) => {
                        tracing::error!(%digest, %error, "a stored object cannot be read; it was removed and is fetched again");
                    }
                }
                metrics.errors.inc();
                // Even if it cannot be removed it is not served: its seal is broken.
                if let Err(error) = space.discard(&digest) {
                    tracing::error!(%digest, %error, "a damaged object cannot be removed");
                }
                false
            })
        };
        self.inspections.run(digest, inspect).await.0
    }

    /// An object to read while it comes in. `told`: how long its upstream says that it is, where the transfer does not.
    pub fn growing(&self, fill: FillReader, aside: Aside, told: Option<u64>) -> Content {
        let lease = self.space.lease(&aside.digest);
        Content::Growing { fill, aside, told, _lease: Some(lease) }
    }

    pub fn fills_running(&self) -> usize {
        self.fills.count()
    }

    fn record_object(&self, viewer: &Viewer, digest: Digest, size: u64, media_type: Option<MediaType>, is_new: bool) {
        let entry = ObjectEntry { size, media_type, stored_at: Timestamp::now() };
        self.index.write(Write::Object { digest, entry });
        self.mark_visible(viewer, digest);
        if is_new {
            self.metrics.stores.inc();
        }
        self.space.stored(digest, size, &viewer.repository);
    }

    pub async fn tag(&self, key: &TagKey) -> Result<Option<TagEntry>, Failure> {
        if let Some(entry) = self.hot.tags.get(key) {
            return Ok(Some(entry));
        }
        let wanted = key.clone();
        let entry = self.read(move |index| index.tag(&wanted)).await?;
        if let Some(entry) = &entry {
            self.hot.tags.insert(key.clone(), entry.clone());
        }
        Ok(entry)
    }

    pub fn put_tag(&self, key: TagKey, entry: TagEntry) {
        let is_news = self.hot.tags.get(&key).is_none_or(|known| known.digest != entry.digest);
        self.hot.tags.insert(key.clone(), entry.clone());
        self.index.write(Write::Tag { key: key.clone(), entry });
        if is_news {
            self.space.tag_changed(&key);
        }
    }

    pub fn drop_tag(&self, key: TagKey) {
        self.hot.tags.remove(&key);
        self.index.write(Write::DropTag { key: key.clone() });
        self.space.tag_changed(&key);
    }

    /// Whether a repository's upstream is known to have the object, in a scope.
    pub async fn is_visible(&self, viewer: &Viewer, digest: &Digest) -> Result<bool, Failure> {
        let key = (viewer.clone(), *digest);
        if self.hot.visible.get(&key).is_some() {
            return Ok(true);
        }
        let (viewer, digest) = key.clone();
        let is_visible = self.read(move |index| index.is_visible(&viewer, &digest)).await?;
        if is_visible {
            self.hot.visible.insert(key, ());
        }
        Ok(is_visible)
    }

    pub fn mark_visible(&self, viewer: &Viewer, digest: Digest) {
        self.hot.visible.insert((viewer.clone(), digest), ());
        self.space.seen_by(&digest, &viewer.repository);
        self.index.write(Write::Visible { viewer: viewer.clone(), digest });
    }

    /// Names with cached content of these repositories behind `last`, in order.
    pub async fn catalog(&self, repositories: Vec<String>, last: String, count: usize) -> Result<Vec<String>, Failure> {
        self.read(move |index| index.catalog(&repositories, &last, count)).await
    }

    /// Takes content out, in steps: rows first, then files. Readers that have a file open go on. It is done to its end also
    /// where who asked for it has left.
    pub async fn purge(&self, purge: Purge) -> Result<Purged, Failure> {
        let (index, hot, space) = (self.index.clone(), self.hot.clone(), self.space.clone());
        let purged = blocking(move || {
            let is_all = purge == Purge::All;
            match purge_steps(&index, &hot, &space, &purge) {
                // On a full disk not even rows can be removed until something else was.
                Err(PurgeError::Index(_)) if is_all => {
                    space.disk().clear()?;
                    purge_steps(&index, &hot, &space, &purge)
                }
                purged => purged,
            }
        });
        purged.await?.map_err(|error| match error {
            PurgeError::Index(error) => self.broken("cannot purge", &error),
            PurgeError::Disk(error) => self.broken("cannot remove an object", &error),
        })
    }

    /// Images in the order of their references behind `last`, whether each is pinned, and where the next page begins.
    pub async fn images(&self, last: String, count: usize) -> Result<(Vec<(Image, bool)>, Option<String>), Failure> {
        let space = self.space.clone();
        self.read(move |index| {
            index.flush_blocking()?;
            space.refresh_pins()?;
            let ImagePage { images, next } = index.images(&last, count)?;
            let with_pin = |image: Image| {
                let is_pinned = space.is_pinned(&image.digest);
                (image, is_pinned)
            };
            Ok((images.into_iter().map(with_pin).collect(), next))
        })
        .await
    }

    /// Pins an image, cached or not, or takes that back. Returns whether that changed anything.
    pub async fn set_pin(&self, image: ImageName, is_pinned: bool) -> Result<bool, Failure> {
        let changed = self.index.set_pin(image, is_pinned).await;
        let changed = changed.map_err(|error| self.broken("cannot write a pin", &error))?;
        self.space.pins_changed();
        Ok(changed)
    }

    /// The images that were pinned by name.
    pub async fn pins(&self) -> Result<Vec<ImageName>, Failure> {
        self.read(|index| index.pins()).await
    }

    /// The right to verify all that is stored; `None` while somebody else does.
    pub fn begin_verification(&self) -> Option<Verification<'_>> {
        self.verifying.try_lock().ok().map(|turn| Verification { cache: self, _turn: turn })
    }

    /// Takes in what the index knows, for who does not [look after](Self::look_after_space) the cache.
    pub async fn load(&self) -> Result<(), Failure> {
        let space = self.space.clone();
        let loaded = blocking(move || space.load()).await?;
        loaded.map_err(|error| self.broken("cannot read the index", &error))
    }

    /// Whether content can be stored and looked up now.
    pub async fn check(&self) -> Result<(), Failure> {
        let disk = self.disk.clone();
        let written = blocking(move || disk.check()).await?;
        written.map_err(|error| {
            Failure::new(FailureKind::Storage, format!("the cache directory cannot be written: {error}"))
        })?;
        self.read(|index| index.check()).await
    }

    /// Stores what is verified, and writes what the index still has queued.
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
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Index) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, Failure> {
        let index = self.index.clone();
        blocking(move || read(&index)).await?.map_err(|error| self.broken("cannot read the index", &error))
    }

    fn broken(&self, what: &str, error: &dyn std::error::Error) -> Failure {
        self.metrics.errors.inc();
        tracing::error!(%error, "{what}");
        Failure::new(FailureKind::Storage, format!("{what}: {error}"))
    }
}

/// A verification whose turn it is.
pub struct Verification<'a> {
    cache: &'a Cache,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl Verification<'_> {
    /// Reads all that is stored and compares it with its digests and with the index; `progress` is
    /// told how far it is and says whether to go on.
    pub async fn run(
        self,
        is_repair: bool,
        progress: impl FnMut(&scrub::Report) -> bool + Send + 'static,
    ) -> Result<scrub::Report, Failure> {
        let space = self.cache.space.clone();
        space.loaded().await;
        let verified = blocking(move || scrub::verify(&space, is_repair, progress)).await?;
        verified.map_err(|error| self.cache.broken("cannot verify the store", &error))
    }
}

/// Why content was not taken out.
#[derive(Debug, thiserror::Error)]
enum PurgeError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Disk(#[from] std::io::Error),
}

/// Blocks.
fn purge_steps(index: &Index, hot: &Hot, space: &Space, purge: &Purge) -> Result<Purged, PurgeError> {
    let is_all = *purge == Purge::All;
    let (mut all, mut removed) = (Purged::default(), Ok(()));
    index.purge(purge, |step| {
        hot.clear();
        space.removed(&step.digests, false);
        if !is_all {
            // The rows go on going: a file that cannot be removed is shown to nobody.
            let files = step.digests.iter().try_for_each(|digest| space.disk().remove(digest).map(drop));
            removed = std::mem::replace(&mut removed, Ok(())).and(files);
        }
        // Nobody asks which ones they were.
        all.add(Purged { digests: Vec::new(), ..step });
    })?;
    hot.clear();
    space.removed(&[], is_all);
    if is_all {
        removed = space.disk().clear();
    }
    removed?;
    Ok(all)
}

/// Runs what blocks off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(|error| Failure::new(FailureKind::Storage, format!("a storage task failed: {error}")))
}
