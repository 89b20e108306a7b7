//! Blobs: from the store, from a fill that is under way, or from a new one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use http::header::RANGE;
use http::request::Parts;
use http::{Method, Version};
use url::Url;

use super::consent::Stored;
use super::error::{Refusal, Wanted};
use super::heads::Said;
use super::patience::party;
use super::rejected::Rejected;
use super::respond::{self, CacheState};
use super::routing::Target;
use super::{Answer, Pull, is_secure};
use crate::cache::{Aside, Content, Fill, FillReader, Origin, Party, Source, Standing, Transfer};
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;
use crate::telemetry::Metrics;
use crate::upstream::{BlobAnswer, Lane, Storage, Upstream, pause};

impl Pull {
    pub(super) async fn blob(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        digest: Digest,
    ) -> Result<Answer, Refusal> {
        let refuse = Refusal::of(Wanted::Blob);
        // A store that cannot be read is no reason to fail: the upstream may still answer.
        if let Some(content) = self.at_hand(target, &digest).await {
            let (size, content) = content.map_err(&refuse)?;
            self.confirm(target, Stored::Blob(size), &digest).await.map_err(&refuse)?;
            return self.answer_hit(request, target, &digest, (size, content)).await;
        }
        if request.method == Method::HEAD {
            return self.head_blob(target, &digest).await.map_err(&refuse);
        }
        let page = format!("blobs/{digest}");
        self.negative.recall(target, &page).map_err(&refuse)?;

        let is_part = request.headers.contains_key(RANGE);
        // Of what passes, parts are not waited for: they are got by themselves.
        if self.cache.is_unfit(&digest) && target.repository.is_trusted && is_part {
            self.metrics.unstored.inc();
            return self.uncached(request, target, digest).await;
        }
        let (fill, is_first, begun) = self.begun(target, &digest).await;
        if is_part && fill.passes() {
            drop(fill);
            return self.uncached(request, target, digest).await;
        }
        let agreed = match begun {
            Ok(size) => self.agreed(target, &digest, &fill, is_first).await.map(|()| size),
            Err(failure) => {
                if !failure.kind.is_of_the_store() {
                    self.negative.remember(target, &page, target.repository.config.tags.negative_max_age, &failure);
                }
                Err(failure)
            }
        };
        let content = match agreed {
            Ok(size) => {
                let told = match (size, is_part) {
                    // A range cannot be answered without the size, and the transfer tells it only at its end.
                    (None, true) => self.size_at_upstream(target, &digest).await.ok().flatten(),
                    (size, _) => size,
                };
                self.cache.growing(fill, self.aside(target, &digest, is_first), told)
            }
            // Our own disk is no reason to fail a pull.
            Err(failure) if failure.kind.is_of_the_store() => return self.uncached(request, target, digest).await,
            Err(failure) => return Err(refuse(failure)),
        };
        let state = CacheState::Miss { collapsed: !is_first };
        let response = respond::blob(&request.headers, &digest, content, &state).await?;
        Ok(Answer { response, state })
    }

    /// The fill of a blob, whether it was begun here, and how long the blob is once that is known.
    async fn begun(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
    ) -> (FillReader, bool, Result<Option<u64>, Failure>) {
        let party = party(target);
        let (mut fill, mut is_first) = self.join(target, digest, &party);
        let mut begun = fill.size().await;
        if begun.is_err() && !is_first {
            // The fill was somebody else's, perhaps through another upstream; ours may do better.
            (fill, is_first) = self.join(target, digest, &party);
            begun = fill.size().await;
        }
        (fill, is_first, begun)
    }

    /// Makes sure that a fill which has begun may be read by who asks.
    async fn agreed(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        fill: &FillReader,
        is_first: bool,
    ) -> Result<(), Failure> {
        let is_foreign = match is_first {
            // What an earlier transfer left may have been for another client alone.
            true => target.repository.config.client_consent.is_some() && fill.is_resumed(),
            false => self.is_foreign(target, fill) && !self.consents.is_begun(target, digest, fill),
        };
        if is_foreign {
            // What was begun for others is ours if our upstream says so. Where the upstream of those others does not tell
            // the size, the end of the transfer does.
            let size = fill.final_size().await?;
            return self.confirm(target, Stored::Blob(size), digest).await;
        }
        if is_first && target.repository.is_trusted {
            self.consents.begun(target, digest, fill);
        }
        Ok(())
    }

    /// Answers past the store: the upstream says how long the blob is, and sends it to this client alone.
    async fn uncached(self: &Arc<Self>, request: &Parts, target: &Target, digest: Digest) -> Result<Answer, Refusal> {
        let size = self.size_at_upstream(target, &digest).await.map_err(Refusal::of(Wanted::Blob))?;
        let content = Content::Uncached { aside: self.aside(target, &digest, true), size };
        let state = CacheState::Miss { collapsed: false };
        let response = respond::blob(&request.headers, &digest, content, &state).await?;
        Ok(Answer { response, state })
    }

    /// Where a client gets a blob past the store. `is_own`: the fill that it reads was begun for it.
    fn aside(self: &Arc<Self>, target: &Target, digest: &Digest, is_own: bool) -> Aside {
        Aside { digest: *digest, origin: self.origin(target, digest, Lane::Aside), is_own }
    }

    /// An object that is stored, or verified and about to be, and its size.
    async fn at_hand(self: &Arc<Self>, target: &Target, digest: &Digest) -> Option<Result<(u64, Content), Failure>> {
        let stored = |content: Content| match &content {
            Content::Complete { object, .. } => Some(Ok((object.size, content))),
            _ => None,
        };
        if let Ok(Some(content)) = self.cache.stored(digest).await {
            return stored(content);
        }
        match self.cache.running_fill(digest) {
            Some(fill) if fill.is_verified() => {
                let size = fill.final_size().await;
                let content = |size| self.cache.growing(fill, self.aside(target, digest, false), Some(size));
                Some(size.map(|size| (size, content(size))))
            }
            Some(_) => None,
            // It may have been stored between the first look and this one.
            None => self.cache.stored(digest).await.ok().flatten().and_then(stored),
        }
    }

    async fn answer_hit(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        digest: &Digest,
        (size, content): (u64, Content),
    ) -> Result<Answer, Refusal> {
        if self.cache.is_only_a_manifest(digest, &content).await {
            self.has_as_blob(target, digest).await.map_err(Refusal::of(Wanted::Blob))?;
        }
        let since = match &content {
            Content::Complete { object, .. } => object.since,
            Content::Growing { .. } | Content::Uncached { .. } => SystemTime::now(),
        };
        let state = CacheState::Hit { since };
        let response = if request.method == Method::HEAD {
            respond::blob_head(digest, Some(size), &state)
        } else {
            let is_looked_at = request.version == Version::HTTP_2 || is_secure(request);
            let content = if is_looked_at { content.unmapped() } else { content };
            respond::blob(&request.headers, digest, content, &state).await?
        };
        Ok(Answer { response, state })
    }

    /// Whether the upstream has under `/blobs/` what came from it as a manifest: some registries do, others do not
    /// (distribution#4812). What cannot be asked is not kept from a client.
    async fn has_as_blob(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<(), Failure> {
        let page = format!("blobs/{digest}");
        self.negative.recall(target, &page)?;
        match self.size_at_upstream(target, digest).await {
            Err(failure) if failure.kind == FailureKind::NotFound => {
                let life = target.repository.config.tags.negative_max_age;
                self.negative.remember(target, &page, life, &failure);
                Err(failure)
            }
            _ => Ok(()),
        }
    }

    /// Whether a running fill was begun for others, so that our own upstream has to say whether it has
    /// the blob.
    fn is_foreign(&self, target: &Target, fill: &Fill) -> bool {
        *fill.viewer() != target.repository.viewer() || target.repository.config.client_consent.is_some()
    }

    /// The fill of a blob, begun here if nobody else did.
    fn join(self: &Arc<Self>, target: &Target, digest: &Digest, party: &Party) -> (FillReader, bool) {
        let (viewer, origin) = (target.repository.viewer(), || self.origin(target, digest, Lane::Fill));
        match target.repository.is_trusted {
            true => self.cache.fill(&viewer, *digest, party.clone(), origin),
            false => self.cache.fill_apart(&viewer, *digest, party.clone(), origin),
        }
    }

    fn origin(self: &Arc<Self>, target: &Target, digest: &Digest, lane: Lane) -> Arc<dyn Origin> {
        let upstreams = target.repository.upstreams.len();
        let mut standing = Standing::new(upstreams);
        for upstream in self.rejected.of(&target.repository.config.asked_as(), digest, upstreams) {
            standing.reject(upstream);
        }
        Arc::new(BlobOrigin {
            pull: self.clone(),
            target: target.clone(),
            digest: *digest,
            lane,
            metrics: self.metrics.clone(),
            standing: Mutex::new(standing),
            storages: Arc::default(),
            addresses: Mutex::default(),
            rejected: self.rejected.clone(),
        })
    }

    /// Asks the upstream how long a blob is; downloads nothing.
    async fn head_blob(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Answer, Failure> {
        let page = format!("blobs/{digest}");
        self.negative.recall(target, &page)?;
        // What comes in for this client tells, too.
        let fill = self.cache.running_fill(digest);
        let fill = fill.filter(|fill| !self.is_foreign(target, fill) || self.consents.is_begun(target, digest, fill));
        if let Some(size) = fill.and_then(|fill| fill.size_so_far()) {
            let state = CacheState::Miss { collapsed: true };
            return Ok(Answer { response: respond::blob_head(digest, Some(size), &state), state });
        }
        let life = target.repository.config.tags.negative_max_age;
        let size = self.size_at_upstream(target, digest).await;
        let size = size.inspect_err(|failure| self.negative.remember(target, &page, life, failure))?;
        let state = CacheState::Miss { collapsed: false };
        Ok(Answer { response: respond::blob_head(digest, size, &state), state })
    }

    /// How long the upstream says that a blob is, or said a moment ago.
    async fn size_at_upstream(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Option<u64>, Failure> {
        let page = format!("blobs/{digest}");
        if let Some(said) = self.heads.recall(target, &page) {
            return Ok(said.size);
        }
        let size = self.ask_for_size(target, digest).await?;
        self.heads.remember(target, &page, Said { media_type: None, size });
        Ok(size)
    }
}

/// Storages that are noted for one blob.
const MAX_STORAGES: usize = 16;

/// Brings a blob from the upstreams of a repository.
struct BlobOrigin {
    pull: Arc<Pull>,
    target: Target,
    digest: Digest,
    lane: Lane,
    metrics: Arc<Metrics>,
    standing: Mutex<Standing>,
    /// Those that sent something of it.
    storages: Arc<Mutex<Vec<Storage>>>,
    /// Where redirects of the upstreams led, and when: more of the blob may be had there.
    addresses: Mutex<HashMap<usize, (Url, Instant)>>,
    /// Of all fills.
    rejected: Arc<Rejected>,
}

/// How long an address is used again. Signed ones last some minutes, and are given up when they are refused.
const ADDRESS_LIFE: Duration = Duration::from_secs(300);

impl BlobOrigin {
    /// The first transfer that any upstream worth asking gives. Those whose failure may pass are asked once more a moment
    /// later: quay.io answers 502 now and then (podman#17802), S3 asks to slow down with 503.
    async fn open_first(&self, range: (u64, Option<u64>), lane: Lane) -> Result<Transfer, Failure> {
        let worth_asking = self.standing().worth_asking(now());
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

    /// One round; the failure comes with those worth asking again.
    async fn open_one_of(
        &self,
        upstreams: &[usize],
        range: (u64, Option<u64>),
        lane: Lane,
    ) -> Result<Transfer, (Option<Failure>, Vec<usize>)> {
        let Target { repository, name, who, .. } = &self.target;
        let (mut failed, mut passing) = (None, Vec::new());
        for &at in upstreams {
            let upstream = &repository.upstreams[at];
            let opened = match upstream.permit(lane, self.target.client).await {
                Ok(permit) => {
                    // What it waits for from now on is the upstream.
                    if let Some(fill) = self.pull.cache.running_fill(&self.digest) {
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

    /// Where a redirect of an upstream led not long ago.
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

    /// Notes the storage that a body comes from, with the first of its bytes.
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

/// The time, which tests may hold.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

impl Origin for BlobOrigin {
    fn open(&self, from: u64, until: Option<u64>, is_part: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        let lane = if is_part && self.lane == Lane::Fill { Lane::Part } else { self.lane };
        self.open_first((from, until), lane).boxed()
    }

    fn should_yield(&self) -> bool {
        self.target.repository.upstreams.iter().any(Upstream::wants_connection)
    }

    fn parallel(&self) -> usize {
        self.target.repository.config.upstreams.first().map_or(1, |upstream| upstream.parallel)
    }

    fn broke(&self, source: Source, has_progressed: bool, why: &Failure) {
        self.standing().broke(source.0, has_progressed, why, now());
    }

    fn reject(&self, source: Source) {
        self.rejected.reject(&self.target.repository.config.asked_as(), &self.digest, source.0);
        self.standing().reject(source.0);
    }

    fn received(&self, bytes: u64) {
        self.metrics.fetched(self.target.repository.metrics_label(), bytes);
    }

    fn verified(&self) {
        let storages = std::mem::take(&mut *self.storages.lock().unwrap_or_else(PoisonError::into_inner));
        storages.into_iter().for_each(|storage| self.pull.clients.shared().storages.sent(storage));
        // From now on it is a hit, whether it is stored yet or not.
        self.pull.cache.mark_visible(&self.target.repository.viewer(), self.digest);
        // Of what began with another's bytes the upstream has shown little.
        if self.pull.cache.running_fill(&self.digest).is_none_or(|fill| !fill.is_resumed()) {
            self.pull.consents.given(&self.target, &self.digest);
            self.pull.by_name.blob_shown(&self.target, &self.digest);
        }
    }

    fn stored<'a>(&'a self, digest: &'a Digest, size: u64) -> BoxFuture<'a, ()> {
        let path = format!("/v2/{}/blobs/{digest}", self.target.name);
        tracing::info!(path, size, repository = self.target.repository.prefix(), "cached response");
        if !self.target.repository.learns_public {
            return std::future::ready(()).boxed();
        }
        // Only now that it is verified it is known to be there, for all who could have it.
        self.pull.learn_whether_public(&self.target, Stored::Blob(size), *digest).boxed()
    }
}
