//! Manifests and indexes, by tag and by digest.

use std::sync::Arc;

use http::request::Parts;
use http::{Method, StatusCode};

use super::body;
use super::error::{Refusal, Wanted};
use super::heads::Said;
use super::respond::{self, CacheState};
use super::routing::Target;
use super::{Answer, Pull, patience};
use crate::cache::Manifest;
use crate::cache::freshness::{self, Freshness};
use crate::config::{OnUpstream404, TagPolicy};
use crate::failure::{Failure, FailureKind};
use crate::index::{TagEntry, TagKey, Timestamp};
use crate::oci::{Digest, Reference, Tag};
use crate::upstream::{HeadSaid, ManifestAnswer, ManifestHead};

/// Manifests above this size are read from the store as their client takes them.
const LARGE: usize = 256 << 10;

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
    /// Whether it is news that the upstream has it under this name.
    pub is_news_of_name: bool,
}

impl Pull {
    pub(super) async fn manifest(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        reference: Reference,
    ) -> Result<Answer, Refusal> {
        let asked_by = reference.to_string();
        let found = match reference {
            Reference::Tag(tag) => self.by_tag_in_a_pull(request, target, &tag).await,
            Reference::Digest(digest) => {
                if request.method == Method::HEAD
                    && let Some(mut answer) = self.head_uncached(target, &digest).await.map_err(manifest_refusal)?
                {
                    self.warnings.add_to(answer.response.headers_mut(), target, &[&asked_by]);
                    return Ok(answer);
                }
                self.by_digest(target, &digest).await
            }
        };
        let found = found.map_err(manifest_refusal)?;
        self.manifest_was_shown(target, &found.manifest);
        if found.is_news_of_name {
            self.cache.note_manifest(target.repository.prefix(), &target.name, found.manifest.digest);
        }
        let mut response = respond::manifest(&request.method, &request.headers, &found.manifest, &found.state);
        let digest = found.manifest.digest.to_string();
        self.warnings.add_to(response.headers_mut(), target, &[&asked_by, &digest]);
        let size = found.manifest.bytes.len();
        if size > LARGE && response.status() == StatusCode::OK && request.method == Method::GET {
            // A slow reader would keep all of it in memory.
            let (digest, state, size) = (found.manifest.digest, found.state, size as u64);
            drop(found.manifest);
            // Under the digest of a signed one its plain form may be stored.
            let stored = self.cache.stored(&digest).await.ok().flatten();
            if let Some(content) = stored.filter(|content| content.is_complete_with(size)) {
                *response.body_mut() = body::streamed(content.unmapped().stream(0, Some(size), Some(size), false));
            }
            return Ok(Answer { response, state });
        }
        Ok(Answer { response, state: found.state })
    }

    /// A tag: from the cache while it is fresh, else as the upstream says, else as it last was.
    /// `may_fetch`: whether a tag that HEAD does not find may be asked for by GET, too.
    pub(super) async fn by_tag(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        may_fetch: bool,
    ) -> Result<Found, Failure> {
        let policy = target.repository.config.policy_of(tag.as_str());
        let key = target.tag_key(tag);
        let cached = self.cached_tag(target, &key).await;
        if let Some((entry, manifest)) = &cached
            && let freshness = freshness::of_tag(policy, tag.as_str(), entry.checked_at.age(), spread(&key, entry))
            && freshness != Freshness::Check
            && (self.consents.is_fresh(target, &entry.digest) || self.is_public(target, &entry.digest).await)
        {
            if freshness == Freshness::Aging && target.repository.upstreams.have_quota_to_spare() {
                self.check_behind(target, tag, &key);
            }
            let state = CacheState::Hit { since: entry.checked_at.to_system_time() };
            return Ok(Found { manifest: manifest.clone(), state, is_news_of_name: true });
        }

        let page = format!("manifests/{tag}");
        let checked = match self.negative.recall(target, &page) {
            Ok(()) => self.checked(target, tag, &key, cached.as_ref().map(|(entry, _)| entry), may_fetch).await,
            Err(absent) => (Err(absent), false),
        };
        let is_public = match &cached {
            Some((entry, _)) if checked.0.is_err() => self.is_public(target, &entry.digest).await,
            _ => false,
        };
        match (checked, cached) {
            ((Ok(Checked { manifest, is_fetched: true }), is_first), _) => {
                Ok(Found { manifest, state: CacheState::Miss { collapsed: !is_first }, is_news_of_name: true })
            }
            ((Ok(Checked { manifest, .. }), _), _) => {
                let since = manifest.stored_at.to_system_time();
                Ok(Found { manifest, state: CacheState::Hit { since }, is_news_of_name: true })
            }
            ((Err(failure), _), Some((entry, manifest)))
                if freshness::may_serve_stale(policy, failure.kind, entry.checked_at.age())
                    && (self.consents.holds_through(&failure, target, &entry.digest)
                        || (is_public && !failure.was_refused)) =>
            {
                self.negative.remember(target, &page, policy.negative_max_age, &failure);
                let since = entry.checked_at.to_system_time();
                Ok(Found { manifest, state: CacheState::Stale { since, why: failure }, is_news_of_name: true })
            }
            ((Err(failure), _), cached) => {
                self.negative.remember(target, &page, policy.negative_max_age, &failure);
                // What an upstream hides from one client it may show to others.
                if failure.kind == FailureKind::NotFound && cached.is_some() && !target.who.is_client() {
                    self.cache.drop_tag(key);
                }
                Err(failure)
            }
        }
    }

    /// What the upstream says of a tag, once for all who ask at the same time; the second value tells whether it was asked
    /// by this call. Where the copy `cached` could be served, it is waited for only as long as no client minds.
    async fn checked(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        key: &TagKey,
        cached: Option<&TagEntry>,
        may_fetch: bool,
    ) -> (Result<Checked, Failure>, bool) {
        let (pull, asked, tag, of) = (self.clone(), target.clone(), tag.clone(), key.clone());
        let policy = target.repository.config.policy_of(&key.tag);
        let check = self.checks.run((key.clone(), target.who.id()), || async move {
            let checked = pull.check_tag(&asked, tag, of, may_fetch).await;
            let is_late = checked.as_ref().is_err_and(|failure| failure.kind == FailureKind::Timeout);
            pull.lagging.note(&asked, is_late);
            checked
        });
        match cached {
            Some(entry) if self.may_serve_old(target, policy, entry).await => {
                let patience = self.lagging.patience(target);
                tokio::time::timeout(patience, check).await.unwrap_or_else(|_| {
                    self.lagging.note(target, true);
                    (Err(patience::too_slow(target, patience)), false)
                })
            }
            _ => check.await,
        }
    }

    /// Whether the copy of a tag could be served if its upstream did not answer.
    async fn may_serve_old(&self, target: &Target, policy: &TagPolicy, entry: &TagEntry) -> bool {
        let no_answer = Failure::new(FailureKind::Timeout, "no answer");
        freshness::may_serve_stale(policy, no_answer.kind, entry.checked_at.age())
            && (self.consents.holds_through(&no_answer, target, &entry.digest)
                || self.is_public(target, &entry.digest).await)
    }

    /// Checks a tag for those who come next; nobody waits for it.
    fn check_behind(self: &Arc<Self>, target: &Target, tag: &Tag, key: &TagKey) {
        let (pull, target, tag, key) = (self.clone(), target.clone(), tag.clone(), key.clone());
        self.checks.begin((key.clone(), target.who.id()), || async move {
            let checked = pull.check_tag(&target, tag, key.clone(), false).await;
            if let Err(failure) = &checked {
                let policy = target.repository.config.policy_of(&key.tag);
                tracing::info!(repository = key.repository, name = key.name, tag = key.tag, %failure, "a tag could not be checked");
                if failure.kind == FailureKind::NotFound && policy.on_upstream_404 == OnUpstream404::Drop && !target.who.is_client() {
                    pull.cache.drop_tag(key);
                }
            }
            checked
        });
    }

    /// A tag whose manifest is there too, and may be shown here. An index or store that cannot be read counts as an empty
    /// one: the upstream may still answer.
    pub(super) async fn cached_tag(&self, target: &Target, key: &TagKey) -> Option<(TagEntry, Arc<Manifest>)> {
        let is_of_now = |entry: &TagEntry| !self.was_tag_written(key, entry.checked_at);
        if let Some(entry) = self.cache.tag(key).await.ok().flatten().filter(is_of_now) {
            // It may have been brought in by clients' own credentials, when these decided.
            let viewer = target.repository.viewer();
            let is_visible = self.cache.is_visible(&viewer, &entry.digest).await.unwrap_or(false);
            if is_visible || self.is_public(target, &entry.digest).await {
                return self.with_manifest(entry).await;
            }
        }
        // What is for everybody was shown by the same upstreams, whoever asked.
        let other = TagKey { shelf: target.repository.config.other_shelf(), ..key.clone() };
        let entry = self.cache.tag(&other).await.ok().flatten().filter(is_of_now)?;
        match self.is_public(target, &entry.digest).await {
            true => self.with_manifest(entry).await,
            false => None,
        }
    }

    async fn with_manifest(&self, entry: TagEntry) -> Option<(TagEntry, Arc<Manifest>)> {
        let manifest = self.cache.manifest(&entry.digest).await.ok().flatten()?;
        Some((entry, manifest))
    }

    /// Asks the upstream what the tag is now, and fetches the manifest if it is not here yet.
    async fn check_tag(
        self: &Arc<Self>,
        target: &Target,
        tag: Tag,
        key: TagKey,
        may_fetch: bool,
    ) -> Result<Checked, Failure> {
        let _place = self.place(target).await?;
        let upstreams = &target.repository.upstreams;
        let reference = Reference::Tag(tag);
        let head =
            async |at: usize| upstreams[at].head_manifest(&target.who, &target.name, &reference, may_fetch).await;
        let (at, head) = upstreams.first(None, head).await?;
        if let HeadSaid::Manifest(head) = &head {
            self.warnings.note(target, &reference.to_string(), head.warnings.clone());
        }

        let checked = match head {
            HeadSaid::Manifest(head) => {
                let digest = head.digest;
                match self.cache.manifest(&digest).await.ok().flatten() {
                    // Whom we do not trust has to send what it says that it has.
                    Some(manifest)
                        if self.is_believed(target, &digest).await && self.suffices(target, &head, &manifest) =>
                    {
                        self.cache.mark_visible(&target.repository.viewer(), digest);
                        Checked { manifest, is_fetched: false }
                    }
                    _ => match self.fetch_manifest(target, digest, Some(at)).await {
                        Ok(Fetched(manifest)) => Checked { manifest, is_fetched: true },
                        // It names a digest that it does not know: perhaps it knows the tag.
                        Err(failure) if failure.kind == FailureKind::NotFound => {
                            self.fetch_tag(target, &reference, at).await?
                        }
                        Err(failure) => return Err(failure),
                    },
                }
            }
            HeadSaid::Nothing => self.fetch_tag(target, &reference, at).await?,
        };
        let entry = TagEntry {
            digest: checked.manifest.digest,
            media_type: checked.manifest.media_type.clone(),
            size: checked.manifest.bytes.len() as u64,
            checked_at: Timestamp::now(),
        };
        self.cache.put_tag(key, entry);
        self.consents.given(target, &checked.manifest.digest);
        Ok(checked)
    }

    /// Whether a HEAD shows enough for a client to be served with a stored manifest. Where its own credentials decide, a
    /// page that names the digest is no consent.
    fn suffices(&self, target: &Target, head: &ManifestHead, manifest: &Manifest) -> bool {
        target.repository.config.client_consent.is_none() || head.shows(&manifest.digest, manifest.bytes.len() as u64)
    }

    async fn fetch_tag(&self, target: &Target, tag: &Reference, preferred: usize) -> Result<Checked, Failure> {
        let upstreams = &target.repository.upstreams;
        let get = async |at: usize| upstreams[at].manifest(&target.who, &target.name, tag).await;
        let (_, answer) = upstreams.first(Some(preferred), get).await?;
        let is_known = self.cache.manifest(&answer.digest).await.ok().flatten().is_some();
        Ok(Checked { manifest: self.keep(target, answer).await, is_fetched: !is_known })
    }

    async fn by_digest(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Found, Failure> {
        let stored = self.cache.manifest(digest).await.ok().flatten();
        if let Some(manifest) = stored {
            let is_news_of_name = self.confirm_manifest(target, digest).await?;
            let since = manifest.stored_at.to_system_time();
            return Ok(Found { manifest, state: CacheState::Hit { since }, is_news_of_name });
        }
        let page = format!("manifests/{digest}");
        self.negative.recall(target, &page)?;
        let key = (target.repository.config.asked_as(), target.name.clone(), *digest, target.who.id());
        let (pull, asked, wanted) = (self.clone(), target.clone(), *digest);
        let work = || async move {
            let _place = pull.place(&asked).await?;
            pull.fetch_manifest(&asked, wanted, None).await
        };
        let (fetched, is_first) = self.fetches.run(key, work).await;
        let life = target.repository.config.tags.negative_max_age;
        let Fetched(manifest) = fetched.inspect_err(|failure| self.negative.remember(target, &page, life, failure))?;
        self.consents.given(target, digest);
        Ok(Found { manifest, state: CacheState::Miss { collapsed: !is_first }, is_news_of_name: true })
    }

    async fn fetch_manifest(
        &self,
        target: &Target,
        digest: Digest,
        preferred: Option<usize>,
    ) -> Result<Fetched, Failure> {
        let upstreams = &target.repository.upstreams;
        let reference = Reference::Digest(digest);
        let get = async |at: usize| upstreams[at].manifest(&target.who, &target.name, &reference).await;
        let (_, answer) = upstreams.first(preferred, get).await?;
        Ok(Fetched(self.keep(target, answer).await))
    }

    async fn keep(&self, target: &Target, answer: ManifestAnswer) -> Arc<Manifest> {
        let ManifestAnswer { digest, media_type, bytes, is_signed, warnings } = answer;
        self.warnings.note(target, &digest.to_string(), warnings);
        let (size, repository) = (bytes.len(), target.repository.prefix());
        self.metrics.fetched(target.repository.metrics_label(), size as u64);
        tracing::info!(path = format!("/v2/{}/manifests/{digest}", target.name), size, repository, "cached response");
        let manifest = Manifest { digest, media_type, bytes, stored_at: Timestamp::now() };
        match is_signed {
            // What is kept under a digest, for whoever asks for it, has that digest itself.
            true => Arc::new(manifest),
            false => self.cache.put_manifest(&target.repository.viewer(), manifest).await,
        }
    }

    /// A HEAD for a manifest that is not here is answered with the upstream's HEAD: it downloads
    /// nothing. `None` when the manifest is here, or must be fetched to answer.
    async fn head_uncached(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Option<Answer>, Failure> {
        if self.cache.manifest(digest).await.ok().flatten().is_some() {
            return Ok(None);
        }
        let page = format!("manifests/{digest}");
        self.negative.recall(target, &page)?;
        let said = match self.heads.recall(target, &page) {
            Some(said) => Some(said),
            None => self.ask_head(target, digest, &page).await?,
        };
        let said = said.and_then(|said| Some((said.media_type?, said.size?)));
        Ok(said.map(|(media_type, size)| {
            let response = respond::manifest_head(digest, media_type.as_str(), size);
            Answer { response, state: CacheState::Miss { collapsed: false } }
        }))
    }

    /// Asks the upstream by HEAD about a manifest, once for all clients that ask at the same time. `None` where the
    /// upstream does not answer HEAD.
    async fn ask_head(self: &Arc<Self>, target: &Target, digest: &Digest, page: &str) -> Result<Option<Said>, Failure> {
        let key = (target.repository.prefix().to_owned(), format!("{}/{page}", target.name), target.who.id());
        let (pull, asked, wanted, page) = (self.clone(), target.clone(), *digest, page.to_owned());
        let reference = Reference::Digest(wanted);
        let ask = || async move {
            let _place = pull.place(&asked).await?;
            let upstreams = &asked.repository.upstreams;
            let head = async |at: usize| upstreams[at].head_manifest(&asked.who, &asked.name, &reference, false).await;
            let head = upstreams.first(None, head).await;
            let life = asked.repository.config.tags.negative_max_age;
            let (_, head) = head.inspect_err(|failure| pull.negative.remember(&asked, &page, life, failure))?;
            let said = match head {
                HeadSaid::Manifest(head) if !head.digest.contradicts(&wanted) => {
                    pull.warnings.note(&asked, &reference.to_string(), head.warnings);
                    Some(Said { media_type: head.media_type, size: head.size })
                }
                _ => None,
            };
            if let Some(said) = &said {
                pull.heads.remember(&asked, &page, said.clone());
            }
            Ok(said)
        };
        self.asked_heads.run(key, ask).await.0
    }
}

/// Where in the spread of `max_age` a copy of a tag is: tags that were checked together are not all
/// checked together again.
#[allow(clippy::cast_precision_loss)]
fn spread(key: &TagKey, entry: &TagEntry) -> f64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (key, entry.checked_at.0).hash(&mut hasher);
    (hasher.finish() >> 32) as f64 / f64::from(u32::MAX)
}

fn manifest_refusal(failure: Failure) -> Refusal {
    Refusal::of(Wanted::Manifest)(failure)
}
