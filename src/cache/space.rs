//! The room that the cache takes on disk: what is stored, what running fills have reserved, and who
//! goes when it gets tight.

mod census;
mod room;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::evict::{Evictor, Seconds, on_disk};
use super::fill::Fills;
use super::hot::Hot;
use super::limits::Limits;
use crate::config::{Config, Limit};
use crate::index::{Bounds, Index, IndexError, TagKey, Timestamp, Write};
use crate::oci::Digest;
use crate::store::Disk;
use crate::telemetry::Metrics;

/// How often uses are taken in and the limits looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often abandoned partial downloads are looked for.
const PARTIALS: Duration = Duration::from_secs(600);
/// How often the files are compared with what is known of them: somebody else may have removed some.
const CENSUS: Duration = Duration::from_secs(6 * 3600);
/// Uses kept between two ticks; further ones are not counted.
const MAX_USES: usize = 1 << 16;
/// A use is written to the index when the one written before is older than this.
const USE_RESOLUTION: Seconds = 60;
/// When room is made, this share (in hundredths) of the limit is freed beyond what is needed, so that
/// it is not one file a request.
const SLACK: u64 = 5;
/// Objects evicted at most in one go, beyond what a fill waits for.
const STEP: usize = 500;
/// Bytes of the index that do not count: an empty one with its log takes about as much.
const INDEX_FOR_FREE: u64 = 2 << 20;
/// Space that no object is given, so that the index can be written on a disk that is full. Less on a small one.
const FOR_THE_INDEX: u64 = 1 << 20;

/// Keeps the cache within its limits.
pub struct Space {
    dir: PathBuf,
    /// Of the classes, read under the lock of `stock`: they are changed together.
    limits: ArcSwap<Limits>,
    stock: Mutex<Stock>,
    /// What leads to pinned objects may have changed.
    pins_changed: AtomicBool,
    /// Bytes that running fills will need.
    reserved: AtomicU64,
    uses: Mutex<Vec<Digest>>,
    /// Objects that are being read, and by how many.
    leases: Mutex<HashMap<Digest, usize>>,
    making_room: Mutex<()>,
    taking_census: Mutex<()>,
    refreshing_pins: Mutex<()>,
    loaded: watch::Sender<bool>,
    disk: Arc<Disk>,
    index: Arc<Index>,
    hot: Arc<Hot>,
    fills: Fills,
    metrics: Arc<Metrics>,
}

/// What is stored.
struct Stock {
    evictor: Evictor,
    /// Objects that are never to go, stored or not.
    pinned: HashSet<Digest>,
    /// Whether images are pinned by name, known or not.
    has_named_pins: bool,
}

/// What came of making room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Room,
    /// There is none to be made.
    None,
    /// Not yet; a further step may help.
    More,
    /// What is stored is just being taken in: nobody knows.
    Unknown,
}

/// Keeps an object from being evicted until this is dropped.
pub struct Lease {
    space: Arc<Space>,
    digest: Digest,
}

impl Lease {
    /// What is leased cannot be read: it is taken out, to be fetched again. Blocks.
    pub fn give_up(&self) {
        if let Err(error) = self.space.discard(&self.digest) {
            tracing::error!(digest = %self.digest, %error, "an object that cannot be read cannot be removed either");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.space.leases();
        if let Some(readers) = leases.get_mut(&self.digest) {
            *readers -= 1;
            if *readers == 0 {
                leases.remove(&self.digest);
            }
        }
    }
}

impl Space {
    pub fn new(
        config: &Config,
        disk: Arc<Disk>,
        index: Arc<Index>,
        hot: Arc<Hot>,
        fills: Fills,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limits = Limits::new(config);
        let space = Self {
            dir: config.cache.dir.clone(),
            stock: Mutex::new(Stock {
                evictor: Evictor::new(limits.classes.count()),
                pinned: HashSet::new(),
                has_named_pins: false,
            }),
            limits: ArcSwap::from_pointee(limits),
            pins_changed: AtomicBool::new(true),
            reserved: AtomicU64::new(0),
            uses: Mutex::default(),
            leases: Mutex::default(),
            making_room: Mutex::default(),
            taking_census: Mutex::default(),
            refreshing_pins: Mutex::default(),
            loaded: watch::Sender::new(false),
            disk,
            index,
            hot,
            fills,
            metrics,
        };
        // Before anything is written to it. If this fails, so does each attempt to make room.
        if let Ok((total, _)) = space.filesystem() {
            space.bound_index(space.limits.load().max_size.of(total), total);
        }
        space
    }

    /// Takes in what is stored, then keeps the limits for as long as the process lives.
    pub async fn run(self: Arc<Self>) {
        let space = self.clone();
        self.off_thread(move || space.load()).await;
        let space = self.clone();
        self.off_thread(move || space.census(true).map(drop).map_err(IndexError::Io)).await;
        let mut ticks = tokio::time::interval(TICK);
        let mut partials = tokio::time::interval(PARTIALS);
        let mut censuses = tokio::time::interval_at(tokio::time::Instant::now() + CENSUS, CENSUS);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = censuses.tick() => {
                    let space = self.clone();
                    self.off_thread(move || space.census(true).map(drop).map_err(IndexError::Io)).await;
                    continue;
                }
                _ = partials.tick() => {
                    let space = self.clone();
                    let clear = move || space.disk.clear_partials(space.limits.load().partial_ttl.max(PARTIALS)).map_err(IndexError::Io);
                    self.off_thread(clear).await;
                    continue;
                }
            }
            let space = self.clone();
            self.off_thread(move || {
                space.index.apply(space.take_in_uses());
                space.refresh_pins()?;
                space.expire();
                space.publish_index();
                // In steps, so that fills which wait for room come in between.
                while space.make_room(0).map_err(IndexError::Io)? == Made::More {}
                Ok(())
            })
            .await;
        }
    }

    async fn off_thread(&self, work: impl FnOnce() -> Result<(), IndexError> + Send + 'static) {
        let result = tokio::task::spawn_blocking(work).await;
        if let Err(error) =
            result.map_err(|error| error.to_string()).and_then(|result| result.map_err(|e| e.to_string()))
        {
            self.metrics.errors.inc();
            tracing::error!(%error, "cannot look after the size of the cache");
        }
    }

    /// An object came in for a repository.
    pub fn stored(&self, digest: Digest, size: u64, repository: &str) {
        let mut stock = self.stock();
        let class = self.limits.load().classes.of(repository);
        let is_pinned = stock.pinned.contains(&digest);
        stock.evictor.insert(digest, size, now(), class, is_pinned);
        drop(stock);
        self.publish_totals();
    }

    /// A repository may see an object, and wants it kept as long as its own.
    pub fn seen_by(&self, digest: &Digest, repository: &str) {
        if self.limits.load().classes.count() > 1 {
            let mut stock = self.stock();
            let class = self.limits.load().classes.of(repository);
            stock.evictor.raise(digest, class, now());
        }
    }

    /// An object was read.
    pub fn used(&self, digest: &Digest) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < MAX_USES {
            uses.push(*digest);
        }
    }

    /// An object is being read.
    pub fn lease(self: &Arc<Self>, digest: &Digest) -> Arc<Lease> {
        *self.leases().entry(*digest).or_default() += 1;
        Arc::new(Lease { space: self.clone(), digest: *digest })
    }

    /// A tag, or what lies below a manifest, is not what it was.
    pub fn tag_changed(&self, key: &TagKey) {
        if self.limits.load().rules.match_tag(key) || self.stock().has_named_pins {
            self.pins_changed();
        }
    }

    /// What is pinned has to be found out anew.
    pub fn pins_changed(&self) {
        self.pins_changed.store(true, Ordering::Release);
    }

    /// What lies below a manifest has become known.
    pub fn edges_changed(&self, manifest: &Digest) {
        if self.stock().pinned.contains(manifest) {
            self.pins_changed();
        }
    }

    /// Whether an object is never to go.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.stock().pinned.contains(digest)
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Objects were removed by others.
    pub fn removed(&self, digests: &[Digest], is_all: bool) {
        let mut stock = self.stock();
        if is_all {
            stock.evictor.clear();
        }
        for digest in digests {
            stock.evictor.remove(digest);
        }
        drop(stock);
        self.pins_changed();
        self.publish_totals();
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_totals(&self) {
        let (objects, bytes) = {
            let stock = self.stock();
            (stock.evictor.objects(), stock.evictor.bytes())
        };
        self.metrics.cache_objects.set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.metrics.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    // The functions below block.

    /// Keeps within other limits from now on. Where it changes how long what is kept, everything is taken
    /// in anew, as at the start.
    pub fn configure(&self, config: &Config) {
        let limits = Arc::new(Limits::new(config));
        let is_sorted_anew = {
            // Nothing is evicted by half of the one and half of the other.
            let _making_room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
            let mut stock = self.stock();
            let is_sorted_anew = self.limits.load().classes != limits.classes;
            if is_sorted_anew {
                self.loaded.send_replace(false);
                stock.evictor = Evictor::new(limits.classes.count());
            }
            self.limits.store(limits);
            is_sorted_anew
        };
        self.pins_changed();
        if is_sorted_anew {
            // Room is made again when all is known, what came in meanwhile too.
            let result = self.index.flush_blocking().and_then(|()| self.load_objects());
            let result = result.and_then(|()| self.census(true).map(drop).map_err(IndexError::Io));
            if let Err(error) = result {
                self.metrics.errors.inc();
                tracing::error!(%error, "what is stored could not be sorted by the new configuration");
            }
            self.loaded.send_replace(true);
        }
    }

    /// Reads the objects of the index, in the order of their last use.
    pub fn load(&self) -> Result<(), IndexError> {
        let loaded = self.load_objects();
        // What was not read is found by the census.
        self.loaded.send_replace(true);
        loaded
    }

    fn load_objects(&self) -> Result<(), IndexError> {
        self.refresh_pins()?;
        let by_repository = self.limits.load().classes.count() > 1;
        self.index.objects_by_use(by_repository, |digest, size, last_use, repositories| {
            let mut stock = self.stock();
            let class = self.limits.load().classes.longest(repositories);
            // What was stored since the start is newer than what the index says.
            if !stock.evictor.contains(&digest) {
                let is_pinned = stock.pinned.contains(&digest);
                stock.evictor.insert(digest, size, seconds(last_use), class, is_pinned);
            }
        })?;
        self.publish_totals();
        Ok(())
    }

    /// Takes in what was used. Returns what the index is to know of it.
    fn take_in_uses(&self) -> Vec<Write> {
        let uses = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        let now = now();
        let touch = |digest: Digest| {
            let before = self.stock().evictor.touch(&digest, now)?;
            let is_due = now.saturating_sub(before) >= USE_RESOLUTION;
            is_due.then(|| Write::Used { digest, at: Timestamp::now() })
        };
        uses.into_iter().filter_map(touch).collect()
    }

    /// All and free bytes of the filesystem.
    fn filesystem(&self) -> io::Result<(u64, u64)> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
    }

    /// What the index may hold follows from the room that there is for all.
    fn bound_index(&self, max_size: Option<u64>, total: u64) {
        self.index.keep_within(Bounds::of(max_size.unwrap_or(total).min(total)));
    }

    fn publish_index(&self) {
        self.metrics.index_bytes.set(i64::try_from(self.index.bytes()).unwrap_or(i64::MAX));
        let dropped = self.index.dropped();
        self.metrics.index_writes_dropped.inc_by(dropped.saturating_sub(self.metrics.index_writes_dropped.get()));
    }

    /// Finds out anew what is pinned, if that may have changed.
    pub fn refresh_pins(&self) -> Result<(), IndexError> {
        // One at a time: what was read first must not be written last.
        let _refreshing = self.refreshing_pins.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.pins_changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let found = self.index.flush_blocking().and_then(|()| self.index.pins()).and_then(|named| {
            let closure = self.limits.load().rules.closure(&self.index, &named)?;
            Ok((closure, !named.is_empty()))
        });
        let (found, has_named_pins) = found.inspect_err(|_| self.pins_changed())?;
        let now = now();
        let mut stock = self.stock();
        let before = std::mem::replace(&mut stock.pinned, found);
        stock.has_named_pins = has_named_pins;
        let Stock { evictor, pinned, .. } = &mut *stock;
        before.difference(pinned).for_each(|digest| evictor.set_pinned(digest, false, now));
        pinned.difference(&before).for_each(|digest| evictor.set_pinned(digest, true, now));
        Ok(())
    }

    fn expire(&self) {
        let _making_room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let limits = self.limits.load();
        for (class, ttl) in limits.classes.iter() {
            let Limit::Span(ttl) = ttl else {
                continue;
            };
            let since = now.saturating_sub(Seconds::try_from(ttl.as_secs()).unwrap_or(Seconds::MAX));
            let expired = {
                let leases = self.leases();
                self.stock().evictor.expire(class, since, now, |digest| leases.contains_key(digest))
            };
            self.evict(&expired);
        }
    }

    /// Whether so many bytes would not fit even into an empty cache.
    pub fn never_fits(&self, bytes: u64) -> bool {
        let Ok(filesystem) = rustix::fs::statvfs(&self.dir) else {
            return false;
        };
        let total = filesystem.f_blocks * filesystem.f_frsize;
        let limits = self.limits.load();
        let largest =
            limits.max_size.of(total).unwrap_or(total).min(total - limits.min_free.of(total).unwrap_or(0).min(total));
        bytes > largest
    }

    /// Evicts until `wanted` more bytes fit, and reserves them.
    fn make_room(&self, wanted: u64) -> io::Result<Made> {
        // One at a time: room counts as made when the files are gone.
        let _making_room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        if !*self.loaded.borrow() {
            return Ok(Made::Unknown);
        }
        // What was just asked for is not to be the first to go. A fill does not wait until that is written.
        self.take_in_uses().into_iter().for_each(|used| self.index.write(used));
        let (total, free) = self.filesystem()?;
        let limits = self.limits.load();
        let max_size = limits.max_size.of(total);
        let for_the_index = if wanted > 0 { FOR_THE_INDEX.min(total / 16) } else { 0 };
        let min_free = limits.min_free.of(total).unwrap_or(0).max(for_the_index);
        self.bound_index(max_size, total);
        let mut abandoned = self.disk.partials()?;
        abandoned.retain(|partial| self.fills.running(&partial.digest).is_none());

        let index = self.index.bytes().saturating_sub(INDEX_FOR_FREE);
        let needed = |free: u64, abandoned: u64| {
            let used = self.stock().evictor.taken() + self.reserved.load(Ordering::Relaxed) + abandoned;
            // The index keeps to less by itself; objects never make room for more than this of it.
            let over_size = max_size.map_or(0, |max| (used + wanted + index.min(max / 2)).saturating_sub(max));
            over_size.max((min_free + wanted).saturating_sub(free))
        };
        let mut needs = needed(free, abandoned.iter().map(|partial| partial.bytes).sum());
        let mut free = free;
        if needs > 0 {
            // A damaged index is kept for people to look at, while there is room for it.
            free += self.index.remove_aside()?;
            needs = needed(free, abandoned.iter().map(|partial| partial.bytes).sum());
        }
        if needs > 0 && !abandoned.is_empty() {
            // Downloads that nobody goes on with are worth less than anything complete.
            abandoned.sort_by_key(|partial| std::cmp::Reverse(partial.since));
            let mut freed = 0;
            while freed < needs
                && let Some(partial) = abandoned.pop()
            {
                self.disk.remove_partial(&partial.digest)?;
                freed += partial.bytes;
            }
            needs = needed(free + freed, abandoned.iter().map(|partial| partial.bytes).sum());
        }
        if needs > 0 && self.refresh_pins().is_err() {
            tracing::warn!("what is pinned could not be found out; what is known of it holds");
        }

        // Reserved under the lock, so that two fills are never given the same room.
        let leases = self.leases();
        let mut stock = self.stock();
        if needs == 0 {
            self.reserved.fetch_add(wanted, Ordering::Relaxed);
            return Ok(Made::Room);
        }
        // What cannot fit is no reason to lose what is there.
        let before = stock.evictor.taken();
        if wanted > 0 && stock.evictor.evictable() < needs {
            return Ok(Made::None);
        }
        let slack = max_size.unwrap_or(total).min(before) / 100 * SLACK;
        let is_busy = |digest: &Digest| leases.contains_key(digest);
        let most = if wanted > 0 { usize::MAX } else { STEP };
        let mut victims = stock.evictor.make_room(needs, most, now(), is_busy);
        let is_step = victims.len() == STEP && wanted == 0;
        let freed = before - stock.evictor.taken();
        let fits = freed >= needs;
        if fits {
            let beyond = slack.saturating_sub(freed - needs);
            victims.extend(stock.evictor.make_room(beyond, STEP, now(), is_busy));
            self.reserved.fetch_add(wanted, Ordering::Relaxed);
        }
        drop((stock, leases));
        self.evict(&victims);
        Ok(match (fits, is_step) {
            (true, _) => Made::Room,
            (false, true) => Made::More,
            (false, false) => Made::None,
        })
    }

    /// Rows first, then files; who has a file open goes on reading.
    fn evict(&self, victims: &[Digest]) {
        self.gone(victims);
        for digest in victims {
            if let Err(error) = self.disk.remove(digest) {
                self.metrics.errors.inc();
                tracing::error!(%digest, %error, "cannot remove an object");
            }
        }
        if !victims.is_empty() {
            tracing::debug!(count = victims.len(), "objects were evicted");
            self.metrics.evictions.inc_by(victims.len() as u64);
            self.publish_totals();
        }
    }

    /// Forgets all that is known of objects whose files go or are gone.
    pub fn gone(&self, digests: &[Digest]) {
        if digests.is_empty() {
            return;
        }
        let gone: HashSet<&Digest> = digests.iter().collect();
        self.index.apply(digests.iter().map(|digest| Write::DropObject { digest: *digest }));
        // Their tags and names went with them, and are noted again.
        digests.iter().for_each(|digest| drop(self.hot.manifests.remove(digest)));
        self.hot.tags.retain(|_, entry| !gone.contains(&entry.digest));
        self.hot.names.retain(|(_, _, digest), ()| !gone.contains(digest));
        if self.stock().pinned.iter().any(|pinned| gone.contains(pinned)) {
            self.pins_changed();
        }
    }

    /// Waits until what the index knows was read.
    pub async fn loaded(&self) {
        // The sender lives as long as `self`.
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }
}

fn now() -> Seconds {
    seconds(Timestamp::from_system_time(SystemTime::now()))
}

fn seconds(time: Timestamp) -> Seconds {
    Seconds::try_from(time.0 / 1000).unwrap_or(0)
}
