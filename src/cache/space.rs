//! The room that the cache takes on disk: what is stored, what running fills have reserved, and who
//! goes when it gets tight.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::evict::{Evictor, Seconds};
use super::fill::{Reservation, Room};
use super::hot::Hot;
use crate::config::{self, Amount, Limit};
use crate::failure::{Failure, FailureKind};
use crate::index::{Index, IndexError, ObjectEntry, Timestamp, Write};
use crate::oci::Digest;
use crate::store::Disk;
use crate::telemetry::Metrics;

/// How often uses are taken in and the limits looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often abandoned partial downloads are looked for.
const PARTIALS: Duration = Duration::from_secs(600);
/// Uses kept between two ticks; further ones are not counted.
const MAX_USES: usize = 1 << 16;
/// A use is written to the index when the one written before is older than this.
const USE_RESOLUTION: Seconds = 60;
/// When room is made, this share (in hundredths) of the limit is freed beyond what is needed, so that
/// it is not one file a request.
const SLACK: u64 = 5;

/// Keeps the cache within its limits.
pub struct Space {
    dir: PathBuf,
    max_size: Amount,
    min_free: Amount,
    ttl: Limit,
    partial_ttl: Duration,
    evictor: Mutex<Evictor>,
    /// Bytes that running fills will need.
    reserved: AtomicU64,
    uses: Mutex<Vec<Digest>>,
    making_room: Mutex<()>,
    loaded: watch::Sender<bool>,
    disk: Arc<Disk>,
    index: Arc<Index>,
    hot: Arc<Hot>,
    metrics: Arc<Metrics>,
}

impl Space {
    pub fn new(
        config: &config::Cache,
        disk: Arc<Disk>,
        index: Arc<Index>,
        hot: Arc<Hot>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let config::Policy::Lru = config.policy;
        Self {
            dir: config.dir.clone(),
            max_size: config.max_size,
            min_free: config.min_free,
            ttl: config.ttl,
            partial_ttl: config.partial_ttl,
            evictor: Mutex::default(),
            reserved: AtomicU64::new(0),
            uses: Mutex::default(),
            making_room: Mutex::default(),
            loaded: watch::Sender::new(false),
            disk,
            index,
            hot,
            metrics,
        }
    }

    /// Takes in what is stored, then keeps the limits for as long as the process lives.
    pub async fn run(self: Arc<Self>) {
        let space = self.clone();
        self.off_thread(move || space.load()).await;
        self.loaded.send_replace(true);
        let space = self.clone();
        self.off_thread(move || space.census().map_err(IndexError::Io)).await;
        let mut ticks = tokio::time::interval(TICK);
        let mut partials = tokio::time::interval(PARTIALS);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = partials.tick() => {
                    let space = self.clone();
                    let clear = move || space.disk.clear_partials(space.partial_ttl.max(PARTIALS)).map_err(IndexError::Io);
                    self.off_thread(clear).await;
                    continue;
                }
            }
            let space = self.clone();
            self.off_thread(move || {
                space.take_in_uses();
                space.expire();
                space.make_room(0).map(drop).map_err(IndexError::Io)
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

    /// An object came in.
    pub fn stored(&self, digest: Digest, size: u64) {
        self.evictor().insert(digest, size, now());
        self.publish_totals();
    }

    /// An object was read.
    pub fn used(&self, digest: &Digest) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < MAX_USES {
            uses.push(*digest);
        }
    }

    /// Objects were removed by others.
    pub fn removed(&self, digests: &[Digest], is_all: bool) {
        let mut evictor = self.evictor();
        if is_all {
            evictor.clear();
        }
        for digest in digests {
            evictor.remove(digest);
        }
        drop(evictor);
        self.publish_totals();
    }

    fn evictor(&self) -> MutexGuard<'_, Evictor> {
        self.evictor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_totals(&self) {
        let (objects, bytes) = {
            let evictor = self.evictor();
            (evictor.objects(), evictor.bytes())
        };
        self.metrics.cache_objects.set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.metrics.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    // The functions below block.

    /// Reads the objects of the index, in the order of their last use.
    fn load(&self) -> Result<(), IndexError> {
        self.index.objects_by_use(|digest, size, last_use| {
            let mut evictor = self.evictor();
            // What was stored since the start is newer than what the index says.
            if !evictor.contains(&digest) {
                evictor.insert(digest, size, seconds(last_use));
            }
        })?;
        self.publish_totals();
        Ok(())
    }

    /// Compares with the files: adopts those without a row, drops rows without a file.
    fn census(&self) -> io::Result<()> {
        self.evictor().begin_census();
        let mut adopted = 0;
        self.disk.for_each(|digest, size, since| {
            if self.evictor().seen(&digest, size) {
                return;
            }
            adopted += 1;
            let stored_at = Timestamp::from_system_time(since);
            self.index.write(Write::Object { digest, entry: ObjectEntry { size, media_type: None, stored_at } });
            self.evictor().insert(digest, size, seconds(stored_at));
        })?;
        let gone = self.evictor().end_census();
        for &digest in &gone {
            self.index.write(Write::DropObject { digest });
        }
        if adopted > 0 || !gone.is_empty() {
            tracing::info!(adopted, gone = gone.len(), "the index was brought in line with the files");
        }
        self.publish_totals();
        Ok(())
    }

    fn take_in_uses(&self) {
        let uses = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        let now = now();
        for digest in uses {
            let before = self.evictor().touch(&digest, now);
            if before.is_some_and(|before| now.saturating_sub(before) >= USE_RESOLUTION) {
                self.index.write(Write::Used { digest, at: Timestamp::now() });
            }
        }
    }

    fn expire(&self) {
        let Limit::Span(ttl) = self.ttl else {
            return;
        };
        let since = now().saturating_sub(Seconds::try_from(ttl.as_secs()).unwrap_or(Seconds::MAX));
        let expired = self.evictor().expire(since);
        self.evict(&expired);
    }

    /// Evicts until `wanted` more bytes fit, and reserves them. Returns whether they do.
    fn make_room(&self, wanted: u64) -> io::Result<bool> {
        // One at a time: room counts as made when the files are gone.
        let _making_room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        // What was just asked for is not to be the first to go.
        self.take_in_uses();
        let filesystem = rustix::fs::statvfs(&self.dir)?;
        let block = filesystem.f_frsize;
        let (total, free) = (filesystem.f_blocks * block, filesystem.f_bavail * block);
        let max_size = self.max_size.of(total);
        let min_free = self.min_free.of(total).unwrap_or(0);

        // Reserved under the lock, so that two fills are never given the same room.
        let mut evictor = self.evictor();
        let used = evictor.bytes() + self.reserved.load(Ordering::Relaxed);
        let over_size = max_size.map_or(0, |max| (used + wanted).saturating_sub(max));
        let under_free = (min_free + wanted).saturating_sub(free);
        let needed = over_size.max(under_free);
        if needed == 0 {
            self.reserved.fetch_add(wanted, Ordering::Relaxed);
            return Ok(true);
        }
        // What cannot fit is no reason to lose what is there.
        if wanted > 0 && evictor.bytes() < needed {
            return Ok(false);
        }
        let slack = max_size.unwrap_or(total).min(evictor.bytes()) / 100 * SLACK;
        let before = evictor.bytes();
        let victims = evictor.make_room(needed + slack);
        let fits = before - evictor.bytes() >= needed;
        if fits {
            self.reserved.fetch_add(wanted, Ordering::Relaxed);
        }
        drop(evictor);
        self.evict(&victims);
        Ok(fits)
    }

    /// Rows first, then files; who has a file open goes on reading.
    fn evict(&self, victims: &[Digest]) {
        for digest in victims {
            self.index.write(Write::DropObject { digest: *digest });
            self.hot.manifests.remove(digest);
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

    async fn reserve_bytes(self: Arc<Self>, bytes: u64) -> Result<Reservation, Failure> {
        let failed = |why: String| Failure::new(FailureKind::Storage, why);
        // The wait is for one read of the index at the start; the sender lives as long as `self`.
        let loaded = self.loaded.subscribe().wait_for(|loaded| *loaded).await.map(drop);
        loaded.map_err(|_| failed("the cache is closing".to_owned()))?;
        let space = self.clone();
        let fits = tokio::task::spawn_blocking(move || space.make_room(bytes));
        match fits.await {
            Ok(Ok(true)) => Ok(Reservation::new(move || {
                self.reserved.fetch_sub(bytes, Ordering::Relaxed);
            })),
            Ok(Ok(false)) => {
                let message = format!("{bytes} bytes do not fit into cache.max_size and cache.min_free");
                Err(Failure::new(FailureKind::NoRoom, message))
            }
            Ok(Err(error)) => Err(failed(format!("cannot tell how full the disk is: {error}"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

impl Room for Arc<Space> {
    fn reserve(&self, bytes: u64) -> BoxFuture<'static, Result<Reservation, Failure>> {
        self.clone().reserve_bytes(bytes).boxed()
    }
}

fn now() -> Seconds {
    seconds(Timestamp::from_system_time(SystemTime::now()))
}

fn seconds(time: Timestamp) -> Seconds {
    Seconds::try_from(time.0 / 1000).unwrap_or(0)
}
