//! Origins of blobs: they get a blob from the upstreams of a repository.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use url::Url;

use super::rejected::Rejected;
use super::replicas::Replicas;
use crate::access::{Consent, StoredObject};
use crate::cache::{Cache, Origin, Source, Standing, Transfer};
use crate::clock::Instant;
use crate::failure::Failure;
use crate::observe::Metrics;
use crate::oci::Digest;
use crate::routing::Target;
use crate::upstream::{BlobAnswer, Lane, Storage, Storages, Upstream, pause};

/// State that all origins of blobs share.
pub struct Origins {
    cache: Arc<Cache>,
    consent: Arc<Consent>,
    /// The storages behind upstreams that have sent objects.
    storages: Arc<Storages>,
    metrics: Arc<Metrics>,
    replicas: Replicas,
    /// Upstreams that sent wrong content.
    rejected: Rejected,
}

impl Origins {
    /// Creates the shared state, with no rejected upstreams.
    pub fn new(
        (cache, consent): (Arc<Cache>, Arc<Consent>),
        storages: Arc<Storages>,
        metrics: Arc<Metrics>,
        replicas: Replicas,
    ) -> Self {
        Self { cache, consent, storages, metrics, replicas, rejected: Rejected::default() }
    }

    /// Returns the origin of a blob. `lane`: the kind of transfer as which its connections are counted.
    pub fn of(self: &Arc<Self>, target: &Target, digest: &Digest, lane: Lane) -> Arc<dyn Origin> {
        let upstreams = target.repository.upstreams.len();
        let mut standing = Standing::new(upstreams);
        for upstream in self.rejected.of(&target.repository.config.asked_as(), digest, upstreams) {
            standing.reject(upstream);
        }
        let upstreams = Arc::new(BlobOrigin {
            all: self.clone(),
            target: target.clone(),
            digest: *digest,
            lane,
            standing: Mutex::new(standing),
            storages: Arc::default(),
            addresses: Mutex::default(),
        });
        self.replicas.origin(target, digest, upstreams)
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.rejected.clear();
    }
}

/// Most storages that are noted for one blob.
const MAX_STORAGES: usize = 16;

/// Gets a blob from the upstreams of a repository.
struct BlobOrigin {
    all: Arc<Origins>,
    target: Target,
    digest: Digest,
    lane: Lane,
    standing: Mutex<Standing>,
    /// The storages that sent bytes of the blob.
    storages: Arc<Mutex<Vec<Storage>>>,
    /// The URL to which each upstream redirected, and when: further parts of the blob may be available there.
    addresses: Mutex<HashMap<usize, (Url, Instant)>>,
}

/// How long the URL of a redirect is reused. Signed URLs last some minutes; one that is refused is no longer used.
const ADDRESS_LIFE: Duration = Duration::from_secs(300);

impl BlobOrigin {
    /// Opens a transfer from the first upstream, of those worth asking, that gives one. Upstreams with a temporary
    /// failure are asked once more a moment later: quay.io answers 502 now and then (podman#17802), S3 asks clients to
    /// slow down with 503.
    async fn open_first(&self, range: (u64, Option<u64>), lane: Lane) -> Result<Transfer, Failure> {
        let worth_asking = self.standing().worth_asking(Instant::now());
        let (told, passing) = match self.open_one_of(&worth_asking, range, lane).await {
            Ok(transfer) => return Ok(transfer),
            Err(failed) => failed,
        };
        if passing.is_empty() {
            return Err(told.unwrap_or_else(|| self.standing().why_none()));
        }
        tokio::time::sleep(pause()).await;
        let again = self.open_one_of(&passing, range, lane).await;
        again.map_err(|(again, _)| match (told, again) {
            (Some(told), Some(again)) => told.more_telling(again),
            (told, again) => told.or(again).unwrap_or_else(|| self.standing().why_none()),
        })
    }

    /// Asks each of `upstreams` once. A failure comes with the upstreams that are worth asking again.
    async fn open_one_of(
        &self,
        upstreams: &[usize],
        range: (u64, Option<u64>),
        lane: Lane,
    ) -> Result<Transfer, (Option<Failure>, Vec<usize>)> {
        let Target { repository, name, who, .. } = &self.target;
        let (mut failed, mut passing) = (None, Vec::new());
        let lane = match lane {
            // A client has joined.
            Lane::Behind if !self.all.cache.is_filled_for_nobody(&self.digest) => Lane::Fill,
            lane => lane,
        };
        for &at in upstreams {
            let upstream = &repository.upstreams[at];
            let opened = match upstream.permit(lane, self.target.client).await {
                Ok(permit) => {
                    // From now on the fill waits for the upstream, not for a place.
                    if let Some(fill) = self.all.cache.running_fill(&self.digest) {
                        fill.has_place();
                    }
                    upstream.blob(permit, who, name, &self.digest, range, self.address(at)).await
                }
                Err(failure) => Err(failure),
            };
            match opened {
                Ok(answer) => {
                    let BlobAnswer { start, total, body, storage, address } = answer;
                    self.note_address(at, address);
                    let body = self.note_storage(storage, body);
                    return Ok(Transfer { source: Source(at), start, total, body });
                }
                Err(failure) => {
                    tracing::debug!(upstream = upstream.label(), %failure, "an upstream does not give a blob");
                    if failure.is_passing {
                        passing.push(at);
                    }
                    failed = Some(match failed {
                        Some(earlier) => Failure::more_telling(earlier, failure),
                        None => failure,
                    });
                }
            }
        }
        Err((failed, passing))
    }

    /// Returns the URL to which an upstream redirected a short time ago.
    fn address(&self, upstream: usize) -> Option<Url> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let (address, since) = addresses.get(&upstream)?;
        (since.elapsed() < ADDRESS_LIFE).then(|| address.clone())
    }

    fn note_address(&self, upstream: usize, address: Option<Url>) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        match address {
            Some(address) if addresses.get(&upstream).is_some_and(|(known, _)| *known == address) => {}
            Some(address) => drop(addresses.insert(upstream, (address, Instant::now()))),
            None => drop(addresses.remove(&upstream)),
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the storage that a body comes from as soon as the first bytes arrive.
    fn note_storage(&self, storage: Option<Storage>, body: Body) -> Body {
        let Some(storage) = storage else {
            return body;
        };
        let storages = self.storages.clone();
        let mut is_noted = false;
        body.inspect(move |came| {
            if !is_noted && came.is_ok() {
                is_noted = true;
                let mut storages = storages.lock().unwrap_or_else(PoisonError::into_inner);
                if storages.len() < MAX_STORAGES && !storages.contains(&storage) {
                    storages.push(storage);
                }
            }
        })
        .boxed()
    }
}

type Body = BoxStream<'static, Result<Bytes, Failure>>;

impl Origin for BlobOrigin {
    fn open(&self, from: u64, until: Option<u64>, is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        let lane = match self.lane {
            Lane::Fill | Lane::Behind if is_part => Lane::Part,
            lane => lane,
        };
        self.open_first((from, until), lane).boxed()
    }

    fn should_yield(&self) -> bool {
        self.target.repository.upstreams.iter().any(Upstream::wants_connection)
    }

    fn parallel(&self) -> usize {
        self.target.repository.config.upstreams.first().map_or(1, |upstream| upstream.parallel)
    }

    fn broke(&self, source: Source, has_progressed: bool, why: &Failure) {
        self.standing().broke(source.0, has_progressed, why, Instant::now());
    }

    fn reject(&self, source: Source) {
        self.all.rejected.reject(&self.target.repository.config.asked_as(), &self.digest, source.0);
        self.standing().reject(source.0);
    }

    fn received(&self, bytes: u64) {
        self.all.metrics.fetched(&self.target.repository.counters, bytes);
    }

    fn verified(&self) {
        let storages = std::mem::take(&mut *self.storages.lock().unwrap_or_else(PoisonError::into_inner));
        storages.into_iter().for_each(|storage| self.all.storages.sent(storage));
        // From now on the blob is a hit, whether or not it is stored already.
        self.all.cache.mark_visible(&self.target.repository.viewer(), self.digest);
        // If the fill continued bytes of another client's transfer, the upstream has shown only a part of the blob.
        if self.all.cache.running_fill(&self.digest).is_none_or(|fill| !fill.is_resumed()) {
            self.all.consent.given.shown(&self.target, &self.digest);
            self.all.consent.by_name.blob_shown(&self.target, &self.digest);
        }
    }

    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()> {
        let path = format!("/v2/{}/blobs/{digest}", self.target.name);
        tracing::info!(path, size, repository = self.target.repository.prefix(), "cached response");
        if !self.target.repository.learns_public {
            return std::future::ready(()).boxed();
        }
        // Only now that the blob is verified, Larder knows that the upstream has it and can ask whether it is public.
        self.all.consent.learn_whether_public(&self.target, StoredObject::Blob(size), *digest).boxed()
    }
}
