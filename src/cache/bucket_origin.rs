//! The origin of an object that is in the bucket: the bucket first, then the upstreams, from the offset that is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::bucket::{InBucket, KnownBucket, failure};
use super::origin::{Origin, Source, Transfer};
use super::standing::Standing;
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;
use crate::s3::{Kind, S3Error, Upload};
use crate::upkeep::Upkeep;

/// The bucket among the sources; those of the next origin come behind it.
const BUCKET: Source = Source(0);
/// Most connections to the bucket for one object.
const PARALLEL: usize = 4;

/// Gets an object from the bucket, and from another origin where the bucket fails.
pub struct BucketOrigin {
    known: Option<Arc<KnownBucket>>,
    upkeep: Arc<Upkeep>,
    upload: Upload,
    size: u64,
    next: Option<Arc<dyn Origin>>,
    standing: Mutex<Standing>,
    /// Whether the next origin has given any transfer.
    has_left: AtomicBool,
    /// Whether the bucket has given any transfer whose bytes were not rejected.
    has_given: AtomicBool,
}

impl BucketOrigin {
    pub fn new(
        known: Option<Arc<KnownBucket>>,
        upkeep: Arc<Upkeep>,
        found: &InBucket,
        next: Option<Arc<dyn Origin>>,
    ) -> Self {
        let (upload, size) = (found.upload, found.size);
        let (standing, has_left, has_given) =
            (Mutex::new(Standing::new(1)), AtomicBool::default(), AtomicBool::default());
        Self { known, upkeep, upload, size, next, standing, has_left, has_given }
    }

    fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_worth_asking(&self) -> bool {
        !self.standing().worth_asking(Instant::now()).is_empty()
    }

    /// Opens a transfer from the bucket.
    async fn ask_bucket(&self, from: u64, until: Option<u64>) -> Result<Transfer, Failure> {
        let Some(known) = self.known.as_ref().filter(|_| self.is_worth_asking()) else {
            return Err(self.standing().why_none());
        };
        // Servers refuse a range that begins at the end of the object.
        let is_empty = self.size == 0 || from >= self.size;
        let opened = match known.bucket.get(&self.upload, if is_empty { 0 } else { from }, until).await {
            Ok(got) if got.total == self.size => Ok(got),
            Ok(_) => {
                known.has_wrong_content(&self.upload, &self.upkeep).await;
                self.standing().reject(BUCKET.0);
                return Err(Failure::new(FailureKind::WrongContent, "the bucket has wrong content"));
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok(got) => {
                known.works();
                self.has_given.store(true, Ordering::Relaxed);
                let known = known.clone();
                let failed = move |error: S3Error| {
                    known.failed(&error);
                    failure(error)
                };
                let body = got.body.map(move |piece| piece.map_err(&failed)).boxed();
                let start = if is_empty { 0 } else { from };
                Ok(Transfer { source: BUCKET, start, total: Some(got.total), body })
            }
            Err(error) => {
                self.note(known, &error).await;
                Err(failure(error))
            }
        }
    }

    async fn note(&self, known: &KnownBucket, error: &S3Error) {
        if error.kind() == Kind::Absent {
            self.standing().reject(BUCKET.0);
        }
        known.could_not_give(&self.upload, error, &self.upkeep).await;
    }

    /// Opens a transfer from the next origin.
    async fn ask_next(&self, from: u64, until: Option<u64>, is_part: bool) -> Option<Result<Transfer, Failure>> {
        let next = self.next.clone()?;
        let opened = next.open(from, until, is_part).await;
        Some(opened.map(|transfer| {
            self.has_left.store(true, Ordering::Relaxed);
            let counted = move |piece: &Result<bytes::Bytes, Failure>| {
                piece.iter().for_each(|bytes| next.received(bytes.len() as u64));
            };
            let body = transfer.body.inspect(counted).boxed();
            Transfer { source: Source(transfer.source.0 + 1), body, ..transfer }
        }))
    }

    async fn open_first(&self, from: u64, until: Option<u64>, is_part: bool) -> Result<Transfer, Failure> {
        let rests = self.known.as_ref().is_none_or(|known| known.rests());
        if self.next.is_none() {
            return match rests {
                true => {
                    Err(Failure::new(FailureKind::Unavailable, "the bucket did not answer a moment ago").passing(true))
                }
                false => self.ask_bucket(from, until).await,
            };
        }
        let first = match rests {
            true => None,
            false => match self.ask_bucket(from, until).await {
                Ok(transfer) => return Ok(transfer),
                Err(failure) => Some(failure),
            },
        };
        let second = match self.ask_next(from, until, is_part).await {
            Some(Ok(transfer)) => return Ok(transfer),
            Some(Err(failure)) => Some(failure),
            None => None,
        };
        // No upstream gives it: the bucket may have had a bad moment.
        let is_worth_it = first.as_ref().is_none_or(|failure| failure.is_passing);
        let third = match is_worth_it && self.is_worth_asking() {
            true => match self.ask_bucket(from, until).await {
                Ok(transfer) => return Ok(transfer),
                Err(failure) => Some(failure),
            },
            false => None,
        };
        let failures = [first, second, third].into_iter().flatten();
        Err(failures.reduce(Failure::more_telling).unwrap_or_else(|| self.standing().why_none()))
    }

    /// Hands a call about a source of the next origin on.
    fn of_next(&self, source: Source, call: impl FnOnce(&dyn Origin, Source)) {
        if let Some(next) = &self.next {
            call(&**next, Source(source.0.saturating_sub(1)));
        }
    }
}

impl Origin for BucketOrigin {
    fn open(&self, from: u64, until: Option<u64>, is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        self.open_first(from, until, is_part).boxed()
    }

    fn parallel(&self) -> usize {
        let next = self.next.as_ref().filter(|_| self.has_left());
        next.map_or(PARALLEL, |next| next.parallel())
    }

    fn should_yield(&self) -> bool {
        self.has_left() && self.next.as_ref().is_some_and(|next| next.should_yield())
    }

    fn broke(&self, source: Source, has_progressed: bool, why: &Failure) {
        match source {
            BUCKET => self.standing().broke(BUCKET.0, has_progressed, why, Instant::now()),
            source => self.of_next(source, |next, source| next.broke(source, has_progressed, why)),
        }
    }

    fn reject(&self, source: Source) {
        if source != BUCKET {
            return self.of_next(source, |next, source| next.reject(source));
        }
        self.standing().reject(BUCKET.0);
        self.has_given.store(false, Ordering::Relaxed);
        // Where an upstream gave bytes, too, these may be the wrong ones: the key stays until the bucket alone is wrong.
        if let Some(known) = self.known.clone().filter(|_| !self.has_left()) {
            let (upload, upkeep) = (self.upload, self.upkeep.clone());
            tokio::spawn(async move { known.has_wrong_content(&upload, &upkeep).await });
        }
    }

    /// What the next origin receives is counted as it comes; what comes from the bucket is not from upstream.
    fn received(&self, _: u64) {}

    /// Only what an upstream has sent as a whole is new.
    fn is_known_content(&self) -> bool {
        !self.has_left() || self.has_given.load(Ordering::Relaxed)
    }

    /// Nothing follows for the upstreams: they may have sent nothing of it, or only a part. Each client was confirmed
    /// before it read.
    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()> {
        tracing::debug!(%digest, size, "an object came back from the bucket");
        std::future::ready(()).boxed()
    }
}
