//! Tags: which manifest a tag of a name means now.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::request::Parts;

use super::manifests::{Fetched, FoundManifest, Manifests};
use super::moments::{MOMENT, Moments};
use super::patience::{self, Lagging};
use super::replicas::Told;
use super::respond::CacheState;
use super::written::Written;
use crate::access::{Absences, Consent, Questions};
use crate::cache::flight::Flights;
use crate::cache::freshness::{self, Freshness};
use crate::cache::{Cache, Manifest};
use crate::clock;
use crate::config::{OnUpstream404, TagPolicy};
use crate::failure::{Failure, FailureKind};
use crate::index::{TagEntry, TagKey, Timestamp};
use crate::observe::reason::{Hit, Miss};
use crate::oci::{Digest, Reference, Tag};
use crate::routing::Target;
use crate::upstream::{HeadSaid, ManifestHead, WhoId};

/// What a `max_age` of more years than a date can have counts as.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Finds the manifest of a tag: in the cache while the tag is fresh, else by asking the upstream.
pub struct Tags {
    cache: Arc<Cache>,
    consent: Arc<Consent>,
    absences: Arc<Absences>,
    questions: Arc<Questions>,
    manifests: Arc<Manifests>,
    written: Arc<Written>,
    lagging: Arc<Lagging>,
    /// Pulls that will ask again for the tag that they just asked for.
    moments: Moments,
    /// Checks that run now, by tag, credentials and whom they ask.
    checks: Flights<(TagKey, WhoId, Whom), Checked>,
}

/// Whom a check of a tag asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whom {
    /// Other replicas, which may have asked within `max_age`, and else the upstream.
    Anybody,
    /// The upstream: somebody wants to know it now.
    Upstream,
}

/// The result of asking an upstream about a tag.
#[derive(Clone)]
struct Checked {
    manifest: Arc<Manifest>,
    /// Whether the manifest had to be fetched.
    is_fetched: bool,
}

impl Tags {
    /// Creates the service for tags.
    pub fn new(
        manifests: Arc<Manifests>,
        (cache, consent): (Arc<Cache>, Arc<Consent>),
        (absences, questions): (Arc<Absences>, Arc<Questions>),
        (written, lagging): (Arc<Written>, Arc<Lagging>),
    ) -> Self {
        let (moments, checks) = (Moments::default(), Flights::default());
        Self { cache, consent, absences, questions, manifests, written, lagging, moments, checks }
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.moments.clear();
    }

    /// Returns the manifest of a tag as [`Self::by_tag`] does, or as the upstream just answered an earlier request of
    /// the same pull.
    pub async fn by_tag_in_a_pull(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        tag: &Tag,
    ) -> Result<FoundManifest, Failure> {
        // This also consumes the announcement; below, this request may announce the next one.
        let goes_on = self.moments.goes_on(request, target, tag);
        if request.method != Method::HEAD
            && goes_on
            && let Some(found) = self.just_checked(target, tag).await
        {
            return Ok(found);
        }
        let found = self.by_tag(target, tag, request.method == Method::GET).await?;
        if request.method == Method::HEAD && !matches!(found.state, CacheState::Stale { .. }) {
            self.moments.will_go_on(request, target, tag);
        }
        Ok(found)
    }

    /// Notes that the client may ask for the fallback tag of a referrers list next: clients ask for it when they are
    /// told that there is no list, and Larder may have made the list from this very tag.
    pub fn will_ask_for_fallback(&self, request: &Parts, target: &Target, subject: &Digest) {
        self.moments.will_go_on(request, target, &Tag::referrers_fallback(subject));
    }

    /// Returns the cached tag if the upstream confirmed it less than [`MOMENT`] ago; where the client's own credentials
    /// decide, only if the upstream has shown the manifest to this client. After a failed check, no cached tag is that
    /// young.
    async fn just_checked(&self, target: &Target, tag: &Tag) -> Option<FoundManifest> {
        let (entry, manifest) = self.cached(target, &target.tag_key(tag)).await?;
        let is_for_client =
            target.repository.config.client_consent.is_none() || self.consent.given.is_shown(target, &entry.digest);
        if entry.checked_at.age() >= MOMENT || !is_for_client {
            return None;
        }
        let state = CacheState::Hit { since: entry.checked_at.to_system_time(), why: Hit::JustChecked };
        Some(FoundManifest { manifest, state, is_news_of_name: true })
    }

    /// Returns why a cached tag is served without asking the upstream; `None`: the upstream has to be asked.
    pub(super) fn unasked(policy: &TagPolicy, key: &TagKey, entry: &TagEntry) -> Option<Hit> {
        match freshness::of_tag(policy, &key.tag, entry.checked_at.age(), spread(key, entry)) {
            Freshness::Immutable => Some(Hit::Immutable),
            Freshness::Fresh { lasts } => {
                let since = entry.checked_at.to_system_time();
                Some(Hit::Fresh { until: since.checked_add(lasts).unwrap_or(since + FOR_EVER) })
            }
            Freshness::Aging => Some(Hit::Aging),
            Freshness::Check => None,
        }
    }

    /// Asks the upstream about a tag now, whatever its age, once for all that ask at the same time.
    pub async fn refresh(self: &Arc<Self>, target: &Target, tag: &Tag) -> Result<CacheState, Failure> {
        let key = target.tag_key(tag);
        let before = self.cached(target, &key).await.map(|(entry, _)| entry.digest);
        let (checked, _) = self.checked(target, tag, &key, None, (true, Whom::Upstream)).await;
        let Checked { manifest, is_fetched } = checked?;
        // Also if nothing has changed: nobody else has to ask again.
        self.cache.tell_of_tag(key);
        let since = manifest.stored_at.to_system_time();
        Ok(match before {
            Some(before) if before == manifest.digest => CacheState::Hit { since, why: Hit::Unchanged },
            Some(_) => CacheState::Miss(Miss::Moved),
            None if is_fetched => CacheState::Miss(Miss::Absent),
            None => CacheState::Hit { since, why: Hit::Present },
        })
    }

    /// Asks the upstream about a tag as [`Self::refresh`] does. Returns its manifest; with an error, the one that is
    /// cached.
    pub async fn checked_now(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
    ) -> Result<Arc<Manifest>, (Failure, Option<Arc<Manifest>>)> {
        let key = target.tag_key(tag);
        let before = self.cached(target, &key).await.map(|(entry, _)| entry.digest);
        match self.checked(target, tag, &key, None, (true, Whom::Upstream)).await.0 {
            Ok(Checked { manifest, .. }) => {
                if before != Some(manifest.digest) {
                    self.cache.tell_of_tag(key);
                }
                Ok(manifest)
            }
            Err(failure) => Err((failure, self.cached(target, &key).await.map(|(_, manifest)| manifest))),
        }
    }

    /// Returns the manifest of a tag: from the cache while the tag is fresh, else as the upstream says, else the last
    /// known one. `may_fetch`: whether a tag that HEAD does not find may also be asked for by GET.
    pub async fn by_tag(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        may_fetch: bool,
    ) -> Result<FoundManifest, Failure> {
        let policy = target.repository.config.policy_of(tag.as_str());
        let key = target.tag_key(tag);
        let cached = match self.cached(target, &key).await {
            None => self.told_by_others(target, &key).await,
            cached => cached,
        };
        if let Some((entry, manifest)) = &cached
            && let Some(state) = self.served_unasked(target, tag, &key, entry).await
        {
            return Ok(FoundManifest { manifest: manifest.clone(), state, is_news_of_name: true });
        }

        let page = format!("manifests/{tag}");
        let checked = match self.absences.recall(target, &page) {
            Ok(()) => {
                let entry = cached.as_ref().map(|(entry, _)| entry);
                self.checked(target, tag, &key, entry, (may_fetch, Whom::Anybody)).await
            }
            Err(absent) => (Err(absent), false),
        };
        let is_public = match &cached {
            Some((entry, _)) if checked.0.is_err() => self.consent.is_public(target, &entry.digest).await,
            _ => false,
        };
        let cached = match (&checked.0, cached) {
            // Another replica may have given its old copy, or have it.
            (Err(_), None) => self.cached_anywhere(target, &key).await,
            (_, cached) => cached,
        };
        let before = cached.as_ref().map(|(entry, _)| entry.digest);
        match (checked, cached) {
            ((Ok(Checked { manifest, is_fetched: true }), is_first), _) => {
                let why = match () {
                    () if !is_first => Miss::Joined,
                    () if before.is_some() => Miss::Moved,
                    () => Miss::Absent,
                };
                Ok(FoundManifest { manifest, state: CacheState::Miss(why), is_news_of_name: true })
            }
            ((Ok(Checked { manifest, .. }), _), _) => {
                let since = manifest.stored_at.to_system_time();
                let why = if before == Some(manifest.digest) { Hit::Unchanged } else { Hit::Present };
                Ok(FoundManifest { manifest, state: CacheState::Hit { since, why }, is_news_of_name: true })
            }
            ((Err(failure), _), Some((entry, manifest)))
                if freshness::may_serve_stale(policy, failure.kind, entry.checked_at.age())
                    && (self.consent.given.holds_through(&failure, target, &entry.digest)
                        || (is_public && !failure.was_refused)) =>
            {
                self.absences.remember(target, &page, policy.negative_max_age, &failure);
                let since = entry.checked_at.to_system_time();
                Ok(FoundManifest { manifest, state: CacheState::Stale { since, why: failure }, is_news_of_name: true })
            }
            ((Err(failure), _), cached) => {
                self.absences.remember(target, &page, policy.negative_max_age, &failure);
                // An upstream may show to other clients what it hides from this one.
                if failure.kind == FailureKind::NotFound && cached.is_some() && !target.who.is_client() {
                    self.cache.drop_tag(key);
                }
                Err(failure)
            }
        }
    }

    /// Returns how a cached tag is served without asking the upstream, if it is fresh enough and this client may have
    /// it; `None`: the upstream has to be asked. A tag that has begun to age is checked behind the client's back.
    async fn served_unasked(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        key: &TagKey,
        entry: &TagEntry,
    ) -> Option<CacheState> {
        let why = Self::unasked(target.repository.config.policy_of(tag.as_str()), key, entry)?;
        if !self.consent.given.is_fresh(target, &entry.digest) && !self.consent.is_public(target, &entry.digest).await {
            return None;
        }
        if why == Hit::Aging && target.repository.upstreams.have_quota_to_spare() {
            self.check_behind(target, tag, key);
        }
        Some(CacheState::Hit { since: entry.checked_at.to_system_time(), why })
    }

    /// Asks the upstream about a tag, once for all clients that ask at the same time. The second value tells whether
    /// this call asked. If the copy `cached` could be served, the wait is short enough for every client.
    async fn checked(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        key: &TagKey,
        cached: Option<&TagEntry>,
        (may_fetch, whom): (bool, Whom),
    ) -> (Result<Checked, Failure>, bool) {
        let (tags, asked, tag, of) = (self.clone(), target.clone(), tag.clone(), key.clone());
        let policy = target.repository.config.policy_of(&key.tag);
        let check = self.checks.run((key.clone(), target.who.id(), whom), || async move {
            let checked = tags.check_tag(&asked, tag, of, (may_fetch, whom)).await;
            let is_late = checked.as_ref().is_err_and(|failure| failure.kind == FailureKind::Timeout);
            tags.lagging.note(&asked, is_late);
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

    /// Returns whether the copy of a tag could be served if its upstream did not answer.
    async fn may_serve_old(&self, target: &Target, policy: &TagPolicy, entry: &TagEntry) -> bool {
        let no_answer = Failure::new(FailureKind::Timeout, "no answer");
        freshness::may_serve_stale(policy, no_answer.kind, entry.checked_at.age())
            && (self.consent.given.holds_through(&no_answer, target, &entry.digest)
                || self.consent.is_public(target, &entry.digest).await)
    }

    /// Checks a tag in the background, for later requests.
    fn check_behind(self: &Arc<Self>, target: &Target, tag: &Tag, key: &TagKey) {
        let (tags, target, tag, key) = (self.clone(), target.clone(), tag.clone(), key.clone());
        self.checks.begin((key.clone(), target.who.id(), Whom::Anybody), || async move {
            let checked = tags.check_tag(&target, tag, key.clone(), (false, Whom::Anybody)).await;
            if let Err(failure) = &checked {
                let policy = target.repository.config.policy_of(&key.tag);
                tracing::info!(repository = key.repository, name = key.name, tag = key.tag, %failure, "a tag could not be checked");
                if failure.kind == FailureKind::NotFound && policy.on_upstream_404 == OnUpstream404::Drop && !target.who.is_client() {
                    tags.cache.drop_tag(key);
                }
            }
            checked
        });
    }

    /// Returns a cached tag whose manifest is cached, too, and is visible here. An index or store that cannot be read
    /// counts as empty: the upstream may still answer.
    pub async fn cached(&self, target: &Target, key: &TagKey) -> Option<(TagEntry, Arc<Manifest>)> {
        let is_of_now = |entry: &TagEntry| !self.written.was_tag_written(key, entry.checked_at);
        if let Some(entry) = self.known(target, key).await.filter(is_of_now) {
            // The tag may come from a client's own credentials, at a time when these decided.
            let viewer = target.repository.viewer();
            let is_visible = self.cache.is_visible(&viewer, &entry.digest).await.unwrap_or(false);
            if is_visible || self.consent.is_public(target, &entry.digest).await {
                return self.with_manifest(entry).await;
            }
        }
        // A public manifest was shown by the same upstreams, whoever asked: the tag on the other shelf holds here, too.
        let other = TagKey { shelf: target.repository.config.other_shelf(), ..key.clone() };
        let entry = self.known(target, &other).await.filter(is_of_now)?;
        match self.consent.is_public(target, &entry.digest).await {
            true => self.with_manifest(entry).await,
            false => None,
        }
    }

    /// Returns a cached tag, also if only another replica has its manifest.
    async fn cached_anywhere(&self, target: &Target, key: &TagKey) -> Option<(TagEntry, Arc<Manifest>)> {
        if self.manifests.replicas.0.is_some()
            && let Some(entry) = self.known(target, key).await
            && self.cache.manifest(&entry.digest).await.ok().flatten().is_none()
            && let Some(answer) = self.manifests.replicas.stored_manifest(target, &entry.digest).await
        {
            self.manifests.put(target, answer).await;
        }
        self.cached(target, key).await
    }

    /// Returns a tag that another replica has just asked for, with the manifest that only others have.
    async fn told_by_others(&self, target: &Target, key: &TagKey) -> Option<(TagEntry, Arc<Manifest>)> {
        self.manifests.replicas.0.as_ref()?;
        let entry = self.known(target, key).await?;
        Self::unasked(target.repository.config.policy_of(&key.tag), key, &entry)?;
        self.cached_anywhere(target, key).await
    }

    /// Returns what is known of a tag, by a time that is past.
    async fn known(&self, target: &Target, key: &TagKey) -> Option<TagEntry> {
        let mut entry = self.cache.tag(key).await.ok().flatten()?;
        if entry.checked_at.is_to_come() {
            let policy = target.repository.config.policy_of(&key.tag);
            entry.checked_at = freshness::of_unknown_time(policy, Timestamp::now());
            if clock::is_plausible() {
                self.cache.put_tag(key.clone(), entry.clone());
            }
        }
        Some(entry)
    }

    async fn with_manifest(&self, entry: TagEntry) -> Option<(TagEntry, Arc<Manifest>)> {
        let manifest = self.cache.manifest(&entry.digest).await.ok().flatten()?;
        Some((entry, manifest))
    }

    /// Asks the upstream which manifest the tag means now, and fetches the manifest if it is not cached.
    async fn check_tag(
        self: &Arc<Self>,
        target: &Target,
        tag: Tag,
        key: TagKey,
        (may_fetch, whom): (bool, Whom),
    ) -> Result<Checked, Failure> {
        let _place = self.questions.place(target).await?;
        let upstreams = &target.repository.upstreams;
        let reference = Reference::Tag(tag);
        if whom == Whom::Anybody
            && let Some(checked) = self.ask_replicas(target, &reference, &key).await
        {
            return checked;
        }
        let head =
            async |at: usize| upstreams[at].head_manifest(&target.who, &target.name, &reference, may_fetch).await;
        let (at, head) = upstreams.first(None, head).await?;
        if let HeadSaid::Manifest(head) = &head {
            self.manifests.warnings.note(target, &reference.to_string(), head.warnings.clone());
        }

        let checked = match head {
            HeadSaid::Manifest(head) => {
                let digest = head.digest;
                match self.cache.manifest(&digest).await.ok().flatten() {
                    // An upstream that is not trusted has to send the manifest itself: its claim to have the manifest
                    // is not believed.
                    Some(manifest)
                        if self.consent.is_believed(target, &digest).await
                            && self.suffices(target, &head, &manifest) =>
                    {
                        self.cache.mark_visible(&target.repository.viewer(), digest);
                        Checked { manifest, is_fetched: false }
                    }
                    _ => match self.manifests.fetch(target, digest, Some(at)).await {
                        Ok(Fetched(manifest)) => Checked { manifest, is_fetched: true },
                        // The upstream names a digest that it does not know; it may still know the tag.
                        Err(failure) if failure.kind == FailureKind::NotFound => {
                            self.fetch_tag(target, &reference, at).await?
                        }
                        Err(failure) => return Err(failure),
                    },
                }
            }
            HeadSaid::Nothing => self.fetch_tag(target, &reference, at).await?,
        };
        self.note(target, key, &checked.manifest, Timestamp::now());
        Ok(checked)
    }

    /// Notes that the upstream said at `checked_at` that a tag means this manifest.
    fn note(&self, target: &Target, key: TagKey, manifest: &Manifest, checked_at: Timestamp) {
        let (digest, media_type) = (manifest.digest, manifest.media_type.clone());
        let entry = TagEntry { digest, media_type, size: manifest.bytes.len() as u64, checked_at };
        self.cache.put_tag(key, entry);
        self.consent.given.shown(target, &digest);
    }

    /// Asks other replicas which manifest a tag means now. Returns `None` if an upstream has to be asked.
    async fn ask_replicas(
        &self,
        target: &Target,
        reference: &Reference,
        key: &TagKey,
    ) -> Option<Result<Checked, Failure>> {
        let known = self.cached(target, key).await.map(|(_, manifest)| manifest);
        let told =
            self.manifests.replicas.manifest(target, reference, known.as_ref().map(|known| &known.digest)).await?;
        let Told { answer, age, stale } = match told {
            Ok(told) => told,
            Err(failure) => return Some(Err(failure)),
        };
        let checked = match (answer, known) {
            (Some(answer), known) => {
                let is_fetched = known.is_none_or(|known| known.digest != answer.digest);
                Checked { manifest: self.manifests.put(target, answer).await, is_fetched }
            }
            (None, Some(manifest)) => Checked { manifest, is_fetched: false },
            (None, None) => return None,
        };
        self.cache.mark_visible(&target.repository.viewer(), checked.manifest.digest);
        self.note(target, key.clone(), &checked.manifest, Timestamp::now().before(age));
        Some(stale.map_or(Ok(checked), Err))
    }

    /// Returns whether the answer to HEAD is proof enough to serve a client with a stored manifest. Where the client's
    /// own credentials decide, an answer that only names the digest is no consent.
    fn suffices(&self, target: &Target, head: &ManifestHead, manifest: &Manifest) -> bool {
        target.repository.config.client_consent.is_none() || head.shows(&manifest.digest, manifest.bytes.len() as u64)
    }

    async fn fetch_tag(&self, target: &Target, tag: &Reference, preferred: usize) -> Result<Checked, Failure> {
        let upstreams = &target.repository.upstreams;
        let get = async |at: usize| upstreams[at].manifest(&target.who, &target.name, tag).await;
        let (_, answer) = upstreams.first(Some(preferred), get).await?;
        let is_known = self.cache.manifest(&answer.digest).await.ok().flatten().is_some();
        Ok(Checked { manifest: self.manifests.keep(target, answer).await, is_fetched: !is_known })
    }
}

/// Returns the position of a tag within the spread of `max_age`, from 0 to 1. It makes tags that were checked at the
/// same time expire at different times.
#[allow(clippy::cast_precision_loss)]
fn spread(key: &TagKey, entry: &TagEntry) -> f64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (key, entry.checked_at.0).hash(&mut hasher);
    (hasher.finish() >> 32) as f64 / f64::from(u32::MAX)
}
