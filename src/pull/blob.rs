//! Blobs: from the store, from a fill that is under way, or from a new one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use http::request::Parts;
use http::{Method, Version};

use super::consent::Stored;
use super::error::{Refusal, Wanted};
use super::heads::Said;
use super::rejected::Rejected;
use super::respond::{self, CacheState};
use super::routing::Target;
use super::{Answer, Pull, counted_client, is_secure};
use crate::cache::{Aside, Content, Fill, FillReader, Origin, Party, Source, Standing, Transfer};
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;
use crate::telemetry::Metrics;
use crate::upstream::{BlobAnswer, Lane, Storage, Upstream};

impl Pull {
    pub(super) async fn blob(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        digest: Digest,
    ) -> Result<Answer, Refusal> {
        let refuse = Refusal::of(Wanted::Blob);
        // A store that cannot be read is no reason to fail: the upstream may still answer.
        if let Ok(Some(content)) = self.cache.stored(&digest).await {
            if let Content::Complete { stored, .. } = &content {
                self.confirm(target, Stored::Blob(stored.size), &digest).await.map_err(&refuse)?;
            }
            return self.answer_hit(request, &digest, content).await;
        }
        if request.method == Method::HEAD {
            return self.head_blob(target, &digest).await.map_err(&refuse);
        }
        let page = format!("blobs/{digest}");
        self.negative.recall(target, &page).map_err(&refuse)?;

        // A transfer would only find out once more that it does not fit.
        if self.cache.is_unfit(&digest) && target.repository.is_trusted {
            self.metrics.unstored.inc();
            return self.uncached(request, target, digest).await;
        }
        let party = party(request, target);
        let mut joined = self.join(target, &digest, &party);
        let mut begun = joined.0.size().await;
        if begun.is_err() && !joined.1 {
            // The fill was somebody else's, perhaps through another upstream; ours may do better.
            joined = self.join(target, &digest, &party);
            begun = joined.0.size().await;
        }
        let (fill, is_first) = joined;
        let is_foreign = match is_first {
            // What an earlier transfer left may have been for another client alone.
            true => target.repository.config.client_consent.is_some() && fill.is_resumed(),
            false => self.is_foreign(target, &fill) && !self.consents.is_begun(target, &digest, &fill),
        };
        match &begun {
            Ok(_) if is_first && !is_foreign && target.repository.is_trusted => {
                self.consents.begun(target, &digest, &fill);
            }
            // What was begun for others is ours if our upstream says so.
            Ok(_) if is_foreign => {
                // Where the upstream of those others does not tell the size, the end of the transfer does.
                let size = fill.final_size().await.map_err(&refuse)?;
                self.confirm(target, Stored::Blob(size), &digest).await.map_err(&refuse)?;
            }
            _ => {}
        }
        let content = match begun {
            Ok(_) => self.cache.growing(fill, self.aside(target, &digest, is_first)),
            // Our own disk is no reason to fail a pull.
            Err(failure) if failure.kind.is_of_the_store() => return self.uncached(request, target, digest).await,
            Err(failure) => {
                self.negative.remember(target, &page, target.repository.config.tags.negative_max_age, &failure);
                return Err(refuse(failure));
            }
        };
        let state = CacheState::Miss { collapsed: !is_first };
        let response = respond::blob(&request.headers, &digest, content, &state).await?;
        Ok(Answer { response, state })
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

    async fn answer_hit(&self, request: &Parts, digest: &Digest, content: Content) -> Result<Answer, Refusal> {
        let Content::Complete { stored, .. } = &content else {
            return Err(Refusal::of(Wanted::Blob)(Failure::new(FailureKind::Storage, "the object is not complete")));
        };
        let state = CacheState::Hit { since: stored.since };
        let response = if request.method == Method::HEAD {
            respond::blob_head(digest, Some(stored.size), &state)
        } else {
            let is_looked_at = request.version == Version::HTTP_2 || is_secure(request);
            let content = if is_looked_at { content.unmapped() } else { content };
            respond::blob(&request.headers, digest, content, &state).await?
        };
        Ok(Answer { response, state })
    }

    /// Whether a running fill was begun for others, so that our own upstream has to say whether it has
    /// the blob.
    fn is_foreign(&self, target: &Target, fill: &Fill) -> bool {
        fill.repository() != target.repository.owner() || target.repository.config.client_consent.is_some()
    }

    /// The fill of a blob, begun here if nobody else did.
    fn join(self: &Arc<Self>, target: &Target, digest: &Digest, party: &Party) -> (FillReader, bool) {
        let (owner, origin) = (target.repository.owner(), || self.origin(target, digest, Lane::Fill));
        match target.repository.is_trusted {
            true => self.cache.fill(&owner, *digest, party.clone(), origin),
            false => self.cache.fill_apart(&owner, *digest, party.clone(), origin),
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
            rejected: self.rejected.clone(),
        })
    }

    /// Asks the upstream how long a blob is; downloads nothing.
    async fn head_blob(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Answer, Failure> {
        let page = format!("blobs/{digest}");
        self.negative.recall(target, &page)?;
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

/// For whom a transfer is, and from where.
fn party(request: &Parts, target: &Target) -> Party {
    let source = target.repository.upstreams.iter().next().map_or("", Upstream::label);
    Party { source: source.into(), client: counted_client(request), is_named: target.repository.is_trusted }
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
    /// Of all fills.
    rejected: Arc<Rejected>,
}

impl BlobOrigin {
    async fn open_first(&self, from: u64, until: Option<u64>) -> Result<Transfer, Failure> {
        let upstreams = &self.target.repository.upstreams;
        let worth_asking = self.standing().worth_asking(now());
        let mut failed: Option<Failure> = None;
        for at in worth_asking {
            match upstreams[at].blob(self.lane, &self.target.who, &self.target.name, &self.digest, from, until).await {
                Ok(answer) => {
                    let BlobAnswer { start, total, body, storage } = answer;
                    let body = self.note_storage(storage, body);
                    return Ok(Transfer { source: Source(at), start, total, body });
                }
                Err(failure) => {
                    tracing::debug!(upstream = upstreams[at].label(), %failure, "an upstream does not give a blob");
                    failed = Some(match failed {
                        Some(earlier) => earlier.more_telling(failure),
                        None => failure,
                    });
                }
            }
        }
        Err(failed.unwrap_or_else(|| self.standing().why_none()))
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
    fn open(&self, from: u64, until: Option<u64>) -> BoxFuture<'_, Result<Transfer, Failure>> {
        self.open_first(from, until).boxed()
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
