//! Begins a fill, or joins one that is under way.

use std::sync::Arc;
use std::time::Duration;

use tracing::{Instrument, Span};

use super::Cache;
use super::fill::{self, Fill, FillReader, Joined, Origin, Registered, Wanted};
use crate::failure::{Failure, FailureKind};
use crate::index::Viewer;
use crate::observe::{Metrics, trace};
use crate::oci::{Algorithm, Digest};
use crate::places::{NoPlace, Party, Place};

/// How long a fill waits for a place. Clients wait about half a minute for the response header.
const PATIENCE: Duration = Duration::from_secs(20);

impl Cache {
    /// Returns the fill of `digest` that is under way.
    pub fn running_fill(&self, digest: &Digest) -> Option<FillReader> {
        self.fills.running(digest)
    }

    /// Returns how far the running fills are, the oldest first.
    pub fn fills(&self) -> Vec<fill::Progress> {
        self.fills.progress()
    }

    /// Returns whether an object was found to be larger than all of the cache a moment ago.
    pub fn is_unfit(&self, digest: &Digest) -> bool {
        self.unfit.contains(digest)
    }

    /// Joins the fill of `digest`, or begins it in a task of its own that outlives the request. The second value tells
    /// whether this call began it.
    pub fn fill(
        self: &Arc<Self>,
        viewer: &Viewer,
        digest: Digest,
        party: Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> (FillReader, bool) {
        self.begin(viewer, Wanted::Digest(digest), party, origin)
    }

    /// Like [`Cache::fill`], but from an upstream that only a client named: no other repository depends on how fast
    /// this upstream sends.
    pub fn fill_apart(
        self: &Arc<Self>,
        viewer: &Viewer,
        digest: Digest,
        party: Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> (FillReader, bool) {
        let key = Digest::of(Algorithm::Sha256, format!("{viewer} {digest}").as_bytes());
        self.begin(viewer, Wanted::Apart { key, digest }, party, origin)
    }

    fn begin(
        self: &Arc<Self>,
        viewer: &Viewer,
        wanted: Wanted,
        party: Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> (FillReader, bool) {
        match self.fills.join(&wanted.key(), viewer) {
            Joined::Running(fill) => {
                self.metrics.coalesced.inc();
                trace::joins(fill.span());
                (fill, false)
            }
            Joined::New(fill, registered) => {
                let (cache, origin, viewer) = (self.clone(), origin(), viewer.clone());
                let span = traced(&registered, &wanted);
                let transfer = async move {
                    match cache.places.take(party, PATIENCE).instrument(trace::step("wait for a place")).await {
                        Ok(place) => {
                            // For `Wanted::Digest`, the origin notes this, once it has a connection, too.
                            if !matches!(wanted, Wanted::Digest(_)) {
                                registered.fill().has_place();
                            }
                            cache.run_fill(registered, wanted, origin, &viewer, place).await;
                        }
                        Err(NoPlace) => registered.fail(no_place()),
                    }
                };
                tokio::spawn(transfer.instrument(span));
                (fill, true)
            }
        }
    }

    /// Begins the fill of `digest` before any client has asked for it. Returns `None` if there is such a fill already, or
    /// if no place is to spare: a client who asks then begins a fill of its own, and does not wait behind this one.
    pub fn fill_behind(
        self: &Arc<Self>,
        viewer: &Viewer,
        digest: Digest,
        party: Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> Option<Arc<Fill>> {
        let place = self.places.take_spare(party)?;
        let registered = self.fills.begin_behind(&digest, viewer)?;
        let (cache, origin, viewer, fill) = (self.clone(), origin(), viewer.clone(), registered.fill().clone());
        let wanted = Wanted::Digest(digest);
        let span = traced(&registered, &wanted);
        tokio::spawn(async move { cache.run_fill(registered, wanted, origin, &viewer, place).await }.instrument(span));
        Some(fill)
    }

    /// Returns whether the running fill of an object is for no client.
    pub fn is_filled_for_nobody(&self, digest: &Digest) -> bool {
        self.fills.is_for_nobody(digest)
    }

    /// Begins a fill of whatever its origin has, under a key that stands for the content, or joins that fill. Returns
    /// `None` if no place is free now.
    pub(super) fn begin_now(
        self: &Arc<Self>,
        viewer: &Viewer,
        key: Digest,
        party: Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> Option<FillReader> {
        let place = self.places.take_now(party)?;
        let (fill, registered) = match self.fills.join(&key, viewer) {
            Joined::Running(fill) => {
                trace::joins(fill.span());
                return Some(fill);
            }
            Joined::New(fill, registered) => (fill, registered),
        };
        let (cache, origin, viewer) = (self.clone(), origin(), viewer.clone());
        let wanted = Wanted::Whatever(key);
        let span = traced(&registered, &wanted);
        tokio::spawn(async move { cache.run_fill(registered, wanted, origin, &viewer, place).await }.instrument(span));
        Some(fill)
    }

    async fn run_fill(
        self: Arc<Self>,
        registered: Registered,
        wanted: Wanted,
        origin: Arc<dyn Origin>,
        viewer: &Viewer,
        place: Place,
    ) {
        let digest = wanted.key();
        self.metrics.fills_started.inc();
        let running = Running::new(self.metrics.clone());
        // The reservation in the result lives until the object is counted.
        let into = fill::Destination { spool: &self.spool, store: &self.store, room: &self.room, places: &self.places };
        let upload =
            self.uploads.as_ref().filter(|_| matches!(wanted, Wanted::Digest(_)) && !origin.is_known_content());
        let upload = upload.and_then(|uploads| uploads.begin(registered.fill().clone(), digest));
        let result = match self.is_unfit(&digest) {
            // Asking for room would only show once more that there is none.
            true => Err(Failure::new(FailureKind::NoRoom, "it is larger than all of the cache")),
            false => fill::drive(&registered, wanted, &origin, into).await,
        };
        let stored = result.as_ref().ok().filter(|outcome| outcome.is_stored);
        let stored = stored.map(|outcome| (outcome.digest, outcome.size, outcome.is_new));
        if let Some((found, size, is_new)) = stored {
            match origin.is_known_content() {
                true => self.came_back(found, size),
                false => self.record_object(viewer, found, size, None, is_new),
            }
            match upload {
                Some(upload) => upload.stored(),
                None => self.offer_upload(found),
            }
            origin.stored(&found, size).await;
        }
        match result {
            Ok(ref outcome) if outcome.is_stored => {}
            Ok(_) => {
                self.metrics.unstored.inc();
                self.metrics.errors.inc();
            }
            // It was to be stored, and for nothing else. Whoever joins now asks anew.
            Err(failure) if failure.kind.is_of_the_store() && registered.fill().is_for_nobody() => {
                registered.fail(failure);
            }
            Err(failure) if failure.kind.is_of_the_store() => {
                self.pass(&registered, wanted, &origin, viewer, failure).await;
            }
            Err(failure) if registered.fill().is_behind() => {
                tracing::debug!(%digest, repository = %viewer, kind = failure.kind.as_str(), %failure, "a blob did not come in behind a pull");
            }
            Err(failure) => {
                tracing::info!(%digest, repository = %viewer, kind = failure.kind.as_str(), %failure, "a blob could not be fetched");
            }
        }
        // The rows are queued before the fill leaves the map, so that no request finds neither.
        drop(registered);
        drop((running, place));
    }
}

/// Begins the span of a fill's transfer.
fn traced(registered: &Registered, wanted: &Wanted) -> Span {
    let span = trace::of_transfer(&wanted.key());
    trace::reference(&span).into_iter().for_each(|span| registered.fill().has_span(span));
    span
}

impl Cache {
    /// Serves an object that cannot be stored, for the reason `why`, from memory to all its readers.
    async fn pass(
        &self,
        registered: &Registered,
        wanted: Wanted,
        origin: &Arc<dyn Origin>,
        viewer: &Viewer,
        why: Failure,
    ) {
        let digest = wanted.key();
        self.metrics.unstored.inc();
        if why.kind == FailureKind::NoRoom {
            if self.upkeep.never_fits(registered.stated_size()) {
                self.unfit.add(digest);
            }
            tracing::info!(%digest, repository = %viewer, failure = %why, "a blob passes uncached");
        } else {
            self.metrics.errors.inc();
            tracing::error!(%digest, failure = %why, "blobs are served uncached until the cache directory can be written again");
        }
        if let Err(failure) = fill::pass(registered, wanted, origin, &self.windows).await {
            tracing::info!(%digest, repository = %viewer, kind = failure.kind.as_str(), %failure, "a transfer past the store broke off");
        }
    }
}

fn no_place() -> Failure {
    Failure::new(FailureKind::Busy, "too many transfers from upstream are under way; try again soon")
}

/// Counts a fill as running while this lives.
struct Running(Arc<Metrics>);

impl Running {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.fills_running.inc();
        Self(metrics)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fills_running.dec();
    }
}
