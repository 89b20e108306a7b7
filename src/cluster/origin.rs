//! Other replicas as the origin of a blob: those before this one in the blob's order, then those that have it stored, then
//! another origin, from the offset that is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::OnceCell;

use super::home::Key;
use super::{Asked, Cluster};
use crate::cache::{Origin, Source, Standing, Transfer};
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::index::Replica;
use crate::oci::Digest;

/// Most replicas before this one that are asked for one blob. More than one or two are asked only as replicas die.
const MOST_BEFORE: usize = 8;
/// Most replicas that are asked for a blob because they have it stored.
const MOST_HOLDERS: usize = 4;
/// The sources that are replicas; those of the next origin come behind them.
const REPLICAS: usize = MOST_BEFORE + MOST_HOLDERS;

/// Gets a blob from other replicas, and from another origin if none of them gives it.
struct PeerOrigin {
    cluster: Arc<Cluster>,
    asked: Asked,
    digest: Digest,
    /// The replicas before this one, the blob's home first.
    before: Vec<Replica>,
    /// Replicas that have the blob stored, once they were looked for.
    holders: OnceCell<Vec<Replica>>,
    next: Arc<dyn Origin>,
    /// Of the replicas: those of `before`, and from [`MOST_BEFORE`] on those of `holders`.
    standing: Mutex<Standing>,
    /// Whether the next origin has given any transfer.
    has_left: AtomicBool,
}

impl Cluster {
    /// Returns the origin that asks other replicas for a blob, and then `next`.
    pub fn origin(self: &Arc<Self>, asked: Asked, digest: &Digest, next: Arc<dyn Origin>) -> Arc<dyn Origin> {
        let mut before = self.before_me(Key::of_object(digest));
        before.truncate(MOST_BEFORE);
        Arc::new(PeerOrigin {
            cluster: self.clone(),
            asked,
            digest: *digest,
            before,
            holders: OnceCell::new(),
            next,
            standing: Mutex::new(Standing::new(REPLICAS)),
            has_left: AtomicBool::new(false),
        })
    }
}

/// Returns whether upstreams, too, would refuse what another replica did not get from them.
pub fn is_final(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::NotFound | FailureKind::Denied | FailureKind::RateLimited)
}

impl PeerOrigin {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_worth_asking(&self, at: usize) -> bool {
        self.standing().worth_asking(Instant::now()).contains(&at)
    }

    async fn open_first(&self, from: u64, until: Option<u64>, is_part: bool) -> Result<Transfer, Failure> {
        for (at, replica) in self.before.iter().enumerate() {
            match self.ask(at, replica, &self.asked, (from, until)).await {
                Some(Ok(transfer)) => return Ok(transfer),
                // The home has asked the upstreams. What is stored elsewhere may still be had.
                Some(Err(failure)) if is_final(&failure) => {
                    return self.ask_holders((from, until)).await.ok_or(failure);
                }
                Some(Err(_)) | None => {}
            }
        }
        if let Some(transfer) = self.ask_holders((from, until)).await {
            return Ok(transfer);
        }
        let transfer = self.next.open(from, until, is_part).await?;
        self.has_left.store(true, Ordering::Relaxed);
        let next = self.next.clone();
        let counted = move |piece: &Result<Bytes, Failure>| {
            piece.iter().for_each(|bytes| next.received(bytes.len() as u64));
        };
        let source = Source(transfer.source.0 + REPLICAS);
        Ok(Transfer { source, body: transfer.body.inspect(counted).boxed(), ..transfer })
    }

    /// Asks the replicas that have the blob stored.
    async fn ask_holders(&self, range: (u64, Option<u64>)) -> Option<Transfer> {
        let known = self.holders.get_or_init(|| async {
            let mut holders = self.cluster.holders(&self.digest).await;
            holders.truncate(MOST_HOLDERS);
            holders
        });
        let asked = Asked { only_stored: true, ..self.asked.clone() };
        for (at, replica) in known.await.iter().enumerate() {
            if let Some(Ok(transfer)) = self.ask(MOST_BEFORE + at, replica, &asked, range).await {
                return Some(transfer);
            }
        }
        None
    }

    /// Opens a transfer from a replica; `None` if it is not worth asking.
    async fn ask(
        &self,
        at: usize,
        replica: &Replica,
        asked: &Asked,
        range: (u64, Option<u64>),
    ) -> Option<Result<Transfer, Failure>> {
        if !self.is_worth_asking(at) {
            return None;
        }
        Some(match self.cluster.blob(replica, asked, &self.digest, range).await {
            Ok(part) => Ok(Transfer { source: Source(at), start: part.start, total: part.total, body: part.body }),
            Err(failure) => {
                tracing::debug!(replica = replica.address, %failure, "another replica does not give a blob");
                self.standing().broke(at, false, &failure, Instant::now());
                Err(failure)
            }
        })
    }

    /// Hands a call about a source to where it belongs.
    fn about(&self, source: Source, peer: impl FnOnce(&mut Standing, usize), next: impl FnOnce(&dyn Origin, Source)) {
        match source.0.checked_sub(REPLICAS) {
            None => peer(&mut self.standing(), source.0),
            Some(at) => next(&*self.next, Source(at)),
        }
    }
}

impl Origin for PeerOrigin {
    fn open(&self, from: u64, until: Option<u64>, is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        self.open_first(from, until, is_part).boxed()
    }

    /// Another replica has several connections upstream already, and sends what is there.
    fn parallel(&self) -> usize {
        if self.has_left.load(Ordering::Relaxed) || self.before.is_empty() { self.next.parallel() } else { 1 }
    }

    fn should_yield(&self) -> bool {
        self.has_left.load(Ordering::Relaxed) && self.next.should_yield()
    }

    fn can_resume(&self) -> bool {
        self.next.can_resume()
    }

    fn broke(&self, source: Source, has_progressed: bool, why: &Failure) {
        let peer = |standing: &mut Standing, at| standing.broke(at, has_progressed, why, Instant::now());
        self.about(source, peer, |next, source| next.broke(source, has_progressed, why));
    }

    fn reject(&self, source: Source) {
        self.about(source, Standing::reject, |next, source| next.reject(source));
    }

    /// What the next origin receives is counted as it comes; what comes from another replica is not from upstream.
    fn received(&self, _: u64) {}

    fn verified(&self) {
        // The replica gave it only because an upstream of the repository has shown it.
        self.next.verified();
    }

    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()> {
        self.next.stored(digest, size)
    }
}
