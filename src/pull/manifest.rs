//! Manifests and indexes, by tag and by digest.

use std::sync::Arc;

use http::Method;
use http::request::Parts;

use super::error::{Refusal, Wanted};
use super::respond::{self, CacheState};
use super::routing::Target;
use super::{Answer, Pull};
use crate::cache::Manifest;
use crate::cache::freshness::{self, Freshness};
use crate::config::OnUpstream404;
use crate::failure::{Failure, FailureKind};
use crate::index::{TagEntry, TagKey, Timestamp};
use crate::oci::{Digest, Reference, Tag};
use crate::upstream::ManifestAnswer;

/// What came of asking an upstream about a tag.
#[derive(Clone)]
pub(super) struct Checked {
    manifest: Arc<Manifest>,
    /// Whether the manifest had to be fetched.
    is_fetched: bool,
}

/// What came of fetching a manifest by digest.
#[derive(Clone)]
pub(super) struct Fetched(Arc<Manifest>);

/// A manifest to answer with.
pub(super) struct Found {
    pub manifest: Arc<Manifest>,
    pub state: CacheState,
}

impl Pull {
    pub(super) async fn manifest(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        reference: Reference,
    ) -> Result<Answer, Refusal> {
        let found = match reference {
            Reference::Tag(tag) => self.by_tag(target, &tag).await,
            Reference::Digest(digest) => {
                if request.method == Method::HEAD
                    && let Some(answer) = self.head_uncached(target, &digest).await.map_err(manifest_refusal)?
                {
                    return Ok(answer);
                }
                self.by_digest(target, &digest).await
            }
        };
        let found = found.map_err(manifest_refusal)?;
        self.cache.note_manifest(target.repository.prefix(), &target.name, found.manifest.digest);
        let response = respond::manifest(&request.method, &request.headers, &found.manifest, &found.state);
        Ok(Answer { response, state: found.state })
    }

    /// A tag: from the cache while it is fresh, else as the upstream says, else as it last was.
    pub(super) async fn by_tag(self: &Arc<Self>, target: &Target, tag: &Tag) -> Result<Found, Failure> {
        let policy = &target.repository.config.tags;
        let key = TagKey {
            repository: target.repository.prefix().to_owned(),
            name: target.name.to_string(),
            tag: tag.to_string(),
        };
        let cached = self.cached_tag(&key).await;
        if let Some((entry, manifest)) = &cached
            && let freshness = freshness::of_tag(policy, tag.as_str(), entry.checked_at.age())
            && freshness != Freshness::Check
        {
            if freshness == Freshness::Aging {
                self.check_behind(target, tag, &key);
            }
            let state = CacheState::Hit { since: entry.checked_at.to_system_time() };
            return Ok(Found { manifest: manifest.clone(), state });
        }

        let page = format!("manifests/{tag}");
        let checked = match self.negative.recall(target, &page) {
            Ok(()) => {
                let (pull, target, tag, key) = (self.clone(), target.clone(), tag.clone(), key.clone());
                self.checks.run(key.clone(), || async move { pull.check_tag(&target, tag, key).await }).await
            }
            Err(absent) => (Err(absent), false),
        };
        match (checked, cached) {
            ((Ok(Checked { manifest, is_fetched: true }), is_first), _) => {
                Ok(Found { manifest, state: CacheState::Miss { collapsed: !is_first } })
            }
            ((Ok(Checked { manifest, .. }), _), _) => {
                let since = manifest.stored_at.to_system_time();
                Ok(Found { manifest, state: CacheState::Hit { since } })
            }
            ((Err(failure), _), Some((entry, manifest)))
                if freshness::may_serve_stale(policy, failure.kind, entry.checked_at.age()) =>
            {
                self.negative.remember(target, &page, &failure);
                let since = entry.checked_at.to_system_time();
                Ok(Found { manifest, state: CacheState::Stale { since, why: failure } })
            }
            ((Err(failure), _), cached) => {
                self.negative.remember(target, &page, &failure);
                if failure.kind == FailureKind::NotFound && cached.is_some() {
                    self.cache.drop_tag(key);
                }
                Err(failure)
            }
        }
    }

    /// Checks a tag for those who come next; nobody waits for it.
    fn check_behind(self: &Arc<Self>, target: &Target, tag: &Tag, key: &TagKey) {
        let (pull, target, tag, key) = (self.clone(), target.clone(), tag.clone(), key.clone());
        self.checks.begin(key.clone(), || async move {
            let checked = pull.check_tag(&target, tag, key.clone()).await;
            if let Err(failure) = &checked {
                let policy = &target.repository.config.tags;
                tracing::info!(repository = key.repository, name = key.name, tag = key.tag, %failure, "a tag could not be checked");
                if failure.kind == FailureKind::NotFound && policy.on_upstream_404 == OnUpstream404::Drop {
                    pull.cache.drop_tag(key);
                }
            }
            checked
        });
    }

    /// A tag whose manifest is there too. An index or store that cannot be read counts as an empty
    /// one: the upstream may still answer.
    async fn cached_tag(&self, key: &TagKey) -> Option<(TagEntry, Arc<Manifest>)> {
        let entry = self.cache.tag(key).await.ok().flatten()?;
        let manifest = self.cache.manifest(&entry.digest).await.ok().flatten()?;
        Some((entry, manifest))
    }

    /// Asks the upstream what the tag is now, and fetches the manifest if it is not here yet.
    async fn check_tag(self: &Arc<Self>, target: &Target, tag: Tag, key: TagKey) -> Result<Checked, Failure> {
        let upstreams = &target.repository.upstreams;
        let reference = Reference::Tag(tag);
        let head = async |at: usize| upstreams[at].head_manifest(&target.name, &reference).await;
        let (at, head) = upstreams.first(0, head).await?;

        let checked = match head.and_then(|head| head.digest) {
            Some(digest) => match self.cache.manifest(&digest).await.ok().flatten() {
                Some(manifest) => {
                    self.cache.mark_visible(target.repository.prefix(), digest);
                    Checked { manifest, is_fetched: false }
                }
                None => match self.fetch_manifest(target, digest, at).await {
                    Ok(Fetched(manifest)) => Checked { manifest, is_fetched: true },
                    // It names a digest that it does not know: perhaps it knows the tag.
                    Err(failure) if failure.kind == FailureKind::NotFound => {
                        self.fetch_tag(target, &reference, at).await?
                    }
                    Err(failure) => return Err(failure),
                },
            },
            // It does not say: only the manifest itself tells.
            None => self.fetch_tag(target, &reference, at).await?,
        };
        let entry = TagEntry {
            digest: checked.manifest.digest,
            media_type: checked.manifest.media_type.clone(),
            size: checked.manifest.bytes.len() as u64,
            checked_at: Timestamp::now(),
        };
        self.cache.put_tag(key, entry);
        Ok(checked)
    }

    async fn fetch_tag(&self, target: &Target, tag: &Reference, preferred: usize) -> Result<Checked, Failure> {
        let upstreams = &target.repository.upstreams;
        let get = async |at: usize| upstreams[at].manifest(&target.name, tag).await;
        let (_, answer) = upstreams.first(preferred, get).await?;
        let is_known = self.cache.manifest(&answer.digest).await.ok().flatten().is_some();
        Ok(Checked { manifest: self.keep(target, answer).await, is_fetched: !is_known })
    }

    async fn by_digest(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Found, Failure> {
        let stored = self.cache.manifest(digest).await.ok().flatten();
        if let Some(manifest) = stored {
            self.confirm_manifest(target, digest).await?;
            let since = manifest.stored_at.to_system_time();
            return Ok(Found { manifest, state: CacheState::Hit { since } });
        }
        let page = format!("manifests/{digest}");
        self.negative.recall(target, &page)?;
        let key = (target.repository.prefix().to_owned(), target.name.clone(), *digest);
        let (pull, asked, wanted) = (self.clone(), target.clone(), *digest);
        let work = || async move { pull.fetch_manifest(&asked, wanted, 0).await };
        let (fetched, is_first) = self.fetches.run(key, work).await;
        let Fetched(manifest) = fetched.inspect_err(|failure| self.negative.remember(target, &page, failure))?;
        Ok(Found { manifest, state: CacheState::Miss { collapsed: !is_first } })
    }

    async fn fetch_manifest(&self, target: &Target, digest: Digest, preferred: usize) -> Result<Fetched, Failure> {
        let upstreams = &target.repository.upstreams;
        let reference = Reference::Digest(digest);
        let get = async |at: usize| upstreams[at].manifest(&target.name, &reference).await;
        let (_, answer) = upstreams.first(preferred, get).await?;
        Ok(Fetched(self.keep(target, answer).await))
    }

    async fn keep(&self, target: &Target, answer: ManifestAnswer) -> Arc<Manifest> {
        let ManifestAnswer { digest, media_type, bytes } = answer;
        self.metrics.fetched(target.repository.prefix(), bytes.len() as u64);
        let manifest = Manifest { digest, media_type, bytes, stored_at: Timestamp::now() };
        self.cache.put_manifest(target.repository.prefix(), manifest).await
    }

    /// A HEAD for a manifest that is not here is answered with the upstream's HEAD: it downloads
    /// nothing. `None` when the manifest is here, or must be fetched to answer.
    async fn head_uncached(&self, target: &Target, digest: &Digest) -> Result<Option<Answer>, Failure> {
        if self.cache.manifest(digest).await.ok().flatten().is_some() {
            return Ok(None);
        }
        let page = format!("manifests/{digest}");
        self.negative.recall(target, &page)?;
        let upstreams = &target.repository.upstreams;
        let reference = Reference::Digest(*digest);
        let head = async |at: usize| upstreams[at].head_manifest(&target.name, &reference).await;
        let head = upstreams.first(0, head).await;
        let (_, head) = head.inspect_err(|failure| self.negative.remember(target, &page, failure))?;
        let said = head.and_then(|head| Some((head.media_type?, head.size?)));
        Ok(said.map(|(media_type, size)| {
            let response = respond::manifest_head(digest, media_type.as_str(), size);
            Answer { response, state: CacheState::Miss { collapsed: false } }
        }))
    }

    /// Makes sure that the repository's own upstream has a manifest that came in through another.
    async fn confirm_manifest(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<(), Failure> {
        // An index that cannot be read knows nothing; the upstream does.
        if self.cache.is_visible(target.repository.prefix(), digest).await.unwrap_or(false) {
            return Ok(());
        }
        let key = (target.repository.prefix().to_owned(), format!("{}/manifests/{digest}", target.name));
        let (pull, target, digest) = (self.clone(), target.clone(), *digest);
        let confirm = || async move {
            let upstreams = &target.repository.upstreams;
            let reference = Reference::Digest(digest);
            let head = async |at: usize| match upstreams[at].head_manifest(&target.name, &reference).await? {
                Some(_) => Ok(()),
                // No HEAD there: the manifest itself is the proof.
                None => upstreams[at].manifest(&target.name, &reference).await.map(drop),
            };
            upstreams.first(0, head).await?;
            pull.cache.mark_visible(target.repository.prefix(), digest);
            Ok(None)
        };
        self.confirmations.run(key, confirm).await.0.map(drop)
    }
}

fn manifest_refusal(failure: Failure) -> Refusal {
    Refusal::of(Wanted::Manifest)(failure)
}
