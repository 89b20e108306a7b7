//! Blobs: from the store, from a running fill, or from a new fill.

use std::sync::Arc;

use http::header::RANGE;
use http::request::Parts;
use http::{Method, Version};

use super::answer::Answer;
use super::blob_origin::Origins;
use super::heads::{Heads, Said};
use super::replicas::Replicas;
use super::respond::{self, CacheState};
use crate::access::{Absences, Consent, Refusal, StoredObject, Wanted, party};
use crate::auth::is_secure;
use crate::cache::{Aside, Cache, Content, Fill, FillReader, Origin, Party};
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::observe::Metrics;
use crate::observe::reason::{Hit, Miss};
use crate::oci::Digest;
use crate::routing::Target;
use crate::upstream::{Lane, Storages};

/// Finds blobs by digest, and begins fills for blobs that are not stored.
pub struct Blobs {
    pub(super) cache: Arc<Cache>,
    pub(super) consent: Arc<Consent>,
    absences: Arc<Absences>,
    metrics: Arc<Metrics>,
    /// Answers to HEAD requests of a moment ago.
    heads: Heads,
    /// Makes the origins from which fills get blobs.
    pub(super) origins: Arc<Origins>,
}

impl Blobs {
    /// Creates the service for blobs.
    pub fn new(
        (cache, consent): (Arc<Cache>, Arc<Consent>),
        absences: Arc<Absences>,
        storages: Arc<Storages>,
        metrics: Arc<Metrics>,
        replicas: Replicas,
    ) -> Self {
        let origins = Origins::new((cache.clone(), consent.clone()), storages, metrics.clone(), replicas);
        Self { cache, consent, absences, metrics, heads: Heads::default(), origins: Arc::new(origins) }
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.heads.clear();
        self.origins.clear();
    }

    /// Answers with a blob if this client may read it.
    pub async fn answer(&self, request: &Parts, target: &Target, digest: Digest) -> Result<Answer, Refusal> {
        let refuse = Refusal::of(Wanted::Blob);
        if let Some(answer) = self.answer_at_hand(request, target, &digest).await {
            return answer;
        }
        if self.cache.has_bucket() {
            if let Some(found) = self.cache.in_bucket(&digest).await {
                return self.answer_from_bucket(request, target, found).await;
            }
            // An index that is away takes seconds to say so. Meanwhile the blob may have come in.
            if let Some(answer) = self.answer_at_hand(request, target, &digest).await {
                return answer;
            }
        }
        if request.method == Method::HEAD {
            return self.head_blob(target, &digest).await.map_err(&refuse);
        }
        let page = format!("blobs/{digest}");
        self.absences.recall(target, &page).map_err(&refuse)?;

        let is_part = request.headers.contains_key(RANGE);
        // A blob that is too large for the cache passes uncached. A request for a part of it does not wait for the fill
        // to reach that part, but gets a transfer of its own.
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
                    self.absences.remember(target, &page, target.repository.config.tags.negative_max_age, &failure);
                }
                Err(failure)
            }
        };
        let content = match agreed {
            Ok(size) => {
                let told = match (size, is_part) {
                    // A request for a range needs the size, and this transfer tells the size only at its end.
                    (None, true) => self.size_at_upstream(target, &digest).await.ok().flatten(),
                    (size, _) => size,
                };
                self.cache.growing(fill, self.aside(target, &digest, is_first), told)
            }
            // A failure of Larder's own disk must not fail a pull.
            Err(failure) if failure.kind.is_of_the_store() => return self.uncached(request, target, digest).await,
            Err(failure) => return Err(refuse(failure)),
        };
        let is_unstored = self.cache.is_unfit(&digest);
        let state = CacheState::Miss(if is_unstored { Miss::Unstored } else { Miss::of(!is_first) });
        let response = respond::blob(&request.headers, &digest, for_socket(request, content), &state).await?;
        Ok(Answer { response, state })
    }

    /// Joins or begins the fill of a blob. Returns the fill, whether this call began it, and the size of the blob once
    /// the transfer has begun (`None` if the upstream does not state it).
    pub(super) async fn begun(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> (FillReader, bool, Result<Option<u64>, Failure>) {
        let party = party(target);
        let origin = || self.origins.of(target, digest, Lane::Fill);
        let (mut fill, mut is_first) = self.join(target, digest, &party, origin);
        let mut begun = fill.size().await;
        if begun.is_err() && !is_first {
            // Another client began the fill, perhaps at another upstream; the upstream of this client may succeed.
            (fill, is_first) = self.join(target, digest, &party, origin);
            begun = fill.size().await;
        }
        (fill, is_first, begun)
    }

    /// Makes sure that the client may read a fill that has begun.
    pub(super) async fn agreed(
        &self,
        target: &Target,
        digest: &Digest,
        fill: &FillReader,
        is_first: bool,
    ) -> Result<(), Failure> {
        let is_foreign = match is_first {
            // The fill may continue the bytes of an earlier transfer, which may have been for another client only.
            true => target.repository.config.client_consent.is_some() && fill.is_resumed(),
            false => self.is_foreign(target, fill) && !self.consent.given.is_begun(target, digest, fill),
        };
        if is_foreign {
            // Other clients began this fill. This client may read it if its own upstream confirms the blob, for which
            // Larder needs the size. If the other clients' upstream does not state the size, it is known at the end of
            // the transfer.
            let size = fill.final_size().await?;
            return self.consent.confirm(target, StoredObject::Blob(size), digest).await;
        }
        if is_first && target.repository.is_trusted {
            self.consent.given.begun(target, digest, fill.downgrade());
        }
        Ok(())
    }

    /// Answers without the store: the upstream states the size of the blob, and sends it for this client alone.
    async fn uncached(&self, request: &Parts, target: &Target, digest: Digest) -> Result<Answer, Refusal> {
        let size = self.size_at_upstream(target, &digest).await.map_err(Refusal::of(Wanted::Blob))?;
        let content = Content::Uncached { aside: self.aside(target, &digest, true), size };
        let state = CacheState::Miss(Miss::Unstored);
        let response = respond::blob(&request.headers, &digest, content, &state).await?;
        Ok(Answer { response, state })
    }

    /// Returns the origin from which a client gets a blob without the store. `is_own`: whether the fill that the client
    /// reads was begun for it.
    fn aside(&self, target: &Target, digest: &Digest, is_own: bool) -> Aside {
        Aside { digest: *digest, origin: self.origins.of(target, digest, Lane::Aside), is_own }
    }

    /// Returns an object that is stored, or verified and about to be stored, with its size.
    pub(super) async fn at_hand(&self, target: &Target, digest: &Digest) -> Option<Result<(u64, Content), Failure>> {
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
            // The blob may have been stored between the first look and this one.
            None => self.cache.stored(digest).await.ok().flatten().and_then(stored),
        }
    }

    /// Answers with a blob that is in the cache directory; `None` if it is not there. A store that cannot be read is no
    /// reason to fail: the upstream may still answer.
    async fn answer_at_hand(
        &self,
        request: &Parts,
        target: &Target,
        digest: &Digest,
    ) -> Option<Result<Answer, Refusal>> {
        let content = self.at_hand(target, digest).await?;
        let answer = async {
            let (size, content) = content.map_err(Refusal::of(Wanted::Blob))?;
            let confirmed = self.consent.confirm(target, StoredObject::Blob(size), digest).await;
            confirmed.map_err(Refusal::of(Wanted::Blob))?;
            self.answer_hit(request, target, digest, (size, content)).await
        };
        Some(answer.await)
    }

    async fn answer_hit(
        &self,
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
            Content::Growing { .. } | Content::Uncached { .. } => clock::wall(),
        };
        let state = CacheState::Hit { since, why: Hit::Stored };
        let response = if request.method == Method::HEAD {
            respond::blob_head(digest, Some(size), &state)
        } else {
            respond::blob(&request.headers, digest, for_socket(request, content), &state).await?
        };
        Ok(Answer { response, state })
    }

    /// Checks that the upstream also has under `/blobs/` an object that it sent as a manifest: some registries do,
    /// others do not (distribution#4812). If the upstream cannot be asked, the client gets the object.
    pub(super) async fn has_as_blob(&self, target: &Target, digest: &Digest) -> Result<(), Failure> {
        let page = format!("blobs/{digest}");
        self.absences.recall(target, &page)?;
        match self.size_at_upstream(target, digest).await {
            Err(failure) if failure.kind == FailureKind::NotFound => {
                let life = target.repository.config.tags.negative_max_age;
                self.absences.remember(target, &page, life, &failure);
                Err(failure)
            }
            _ => Ok(()),
        }
    }

    /// Returns whether a running fill was begun for others, so that this client's own upstream has to confirm that it
    /// has the blob.
    fn is_foreign(&self, target: &Target, fill: &Fill) -> bool {
        *fill.viewer() != target.repository.viewer() || target.repository.config.client_consent.is_some()
    }

    /// Joins the fill of a blob, or begins it if there is none. No other repository depends on an upstream that only a
    /// client named.
    pub(super) fn join(
        &self,
        target: &Target,
        digest: &Digest,
        party: &Party,
        origin: impl FnOnce() -> Arc<dyn Origin>,
    ) -> (FillReader, bool) {
        let viewer = target.repository.viewer();
        match target.repository.is_trusted {
            true => self.cache.fill(&viewer, *digest, party.clone(), origin),
            false => self.cache.fill_apart(&viewer, *digest, party.clone(), origin),
        }
    }

    /// Answers a HEAD request with the size of a blob, without a download.
    async fn head_blob(&self, target: &Target, digest: &Digest) -> Result<Answer, Failure> {
        let page = format!("blobs/{digest}");
        self.absences.recall(target, &page)?;
        // A fill that runs for this client tells the size, too.
        let fill = self.cache.running_fill(digest);
        let fill =
            fill.filter(|fill| !self.is_foreign(target, fill) || self.consent.given.is_begun(target, digest, fill));
        if let Some(size) = fill.and_then(|fill| fill.size_so_far()) {
            let state = CacheState::Miss(Miss::Joined);
            return Ok(Answer { response: respond::blob_head(digest, Some(size), &state), state });
        }
        let life = target.repository.config.tags.negative_max_age;
        let size = self.size_at_upstream(target, digest).await;
        let size = size.inspect_err(|failure| self.absences.remember(target, &page, life, failure))?;
        let state = CacheState::Miss(Miss::Asked);
        Ok(Answer { response: respond::blob_head(digest, size, &state), state })
    }

    /// Returns the size of a blob as the upstream states it, or stated it a moment ago.
    async fn size_at_upstream(&self, target: &Target, digest: &Digest) -> Result<Option<u64>, Failure> {
        let page = format!("blobs/{digest}");
        if let Some(said) = self.heads.recall(target, &page) {
            return Ok(said.size);
        }
        let size = self.consent.ask_for_size(target, digest).await?;
        self.heads.remember(target, &page, Said { media_type: None, size });
        Ok(size)
    }
}

/// Returns the content as the request's socket can take it: HTTP/2 and TLS look at the bytes before they send them.
pub(super) fn for_socket(request: &Parts, content: Content) -> Content {
    let is_looked_at = request.version == Version::HTTP_2 || is_secure(request);
    if is_looked_at { content.unmapped() } else { content }
}
