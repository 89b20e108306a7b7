//! Manifests and indexes by digest.

use std::sync::Arc;

use super::answer::Answer;
use super::heads::{Heads, Said};
use super::replicas::{Replicas, Told};
use super::respond::{self, CacheState};
use super::warnings::Warnings;
use crate::access::{Absences, Consent, Questions};
use crate::cache::flight::Flights;
use crate::cache::{Cache, Manifest};
use crate::failure::Failure;
use crate::index::Timestamp;
use crate::observe::Metrics;
use crate::observe::reason::{Hit, Miss};
use crate::oci::{Digest, Name, Reference};
use crate::routing::Target;
use crate::upstream::{HeadSaid, ManifestAnswer, WhoId};

/// Finds manifests by digest: in the cache, else at the upstream.
pub struct Manifests {
    cache: Arc<Cache>,
    consent: Arc<Consent>,
    absences: Arc<Absences>,
    questions: Arc<Questions>,
    metrics: Arc<Metrics>,
    pub(super) replicas: Replicas,
    /// Warnings of upstreams.
    pub warnings: Warnings,
    /// Answers to HEAD requests of a moment ago.
    heads: Heads,
    fetches: Flights<(String, Name, Digest, WhoId), Fetched>,
    asked_heads: Flights<(String, String, WhoId), Option<Said>>,
}

/// A manifest that was fetched by digest.
#[derive(Clone)]
pub struct Fetched(pub Arc<Manifest>);

/// A manifest to answer with.
pub struct FoundManifest {
    pub manifest: Arc<Manifest>,
    pub state: CacheState,
    /// Whether the cache is to note that the upstream has the manifest under this name.
    pub is_news_of_name: bool,
}

impl Manifests {
    /// Creates the service for manifests.
    pub fn new(
        (cache, consent): (Arc<Cache>, Arc<Consent>),
        (absences, questions): (Arc<Absences>, Arc<Questions>),
        metrics: Arc<Metrics>,
        replicas: Replicas,
    ) -> Self {
        Self {
            cache,
            consent,
            absences,
            questions,
            metrics,
            replicas,
            warnings: Warnings::default(),
            heads: Heads::default(),
            fetches: Flights::default(),
            asked_heads: Flights::default(),
        }
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.warnings.clear();
        self.heads.clear();
    }

    /// Returns a manifest if this client may read it.
    pub async fn by_digest(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<FoundManifest, Failure> {
        let stored = self.cache.manifest(digest).await.ok().flatten();
        if let Some(manifest) = stored {
            let is_news_of_name = self.consent.confirm_manifest(target, digest).await?;
            let since = manifest.stored_at.to_system_time();
            return Ok(FoundManifest { manifest, state: CacheState::Hit { since, why: Hit::Stored }, is_news_of_name });
        }
        let page = format!("manifests/{digest}");
        self.absences.recall(target, &page)?;
        let key = (target.repository.config.asked_as(), target.name.clone(), *digest, target.who.id());
        let (manifests, asked, wanted) = (self.clone(), target.clone(), *digest);
        let work = || async move {
            let _place = manifests.questions.place(&asked).await?;
            manifests.fetch(&asked, wanted, None).await
        };
        let (fetched, is_first) = self.fetches.run(key, work).await;
        let life = target.repository.config.tags.negative_max_age;
        let Fetched(manifest) = fetched.inspect_err(|failure| self.absences.remember(target, &page, life, failure))?;
        self.consent.given.shown(target, digest);
        Ok(FoundManifest { manifest, state: CacheState::Miss(Miss::of(!is_first)), is_news_of_name: true })
    }

    /// Fetches a manifest from another replica, else from the upstream `preferred`, else from the first that gives it.
    pub async fn fetch(&self, target: &Target, digest: Digest, preferred: Option<usize>) -> Result<Fetched, Failure> {
        let upstreams = &target.repository.upstreams;
        let reference = Reference::Digest(digest);
        if let Some(told) = self.replicas.manifest(target, &reference, None).await
            && let Told { answer: Some(answer), .. } = told?
        {
            return Ok(Fetched(self.put(target, answer).await));
        }
        let get = async |at: usize| upstreams[at].manifest(&target.who, &target.name, &reference).await;
        let (_, answer) = upstreams.first(preferred, get).await?;
        Ok(Fetched(self.keep(target, answer).await))
    }

    /// Stores the manifest that an upstream answered with, and counts it.
    pub async fn keep(&self, target: &Target, answer: ManifestAnswer) -> Arc<Manifest> {
        let (digest, size, repository) = (answer.digest, answer.bytes.len(), target.repository.prefix());
        self.metrics.fetched(&target.repository.counters, size as u64);
        tracing::info!(path = format!("/v2/{}/manifests/{digest}", target.name), size, repository, "cached response");
        self.put(target, answer).await
    }

    /// Stores a manifest.
    pub async fn put(&self, target: &Target, answer: ManifestAnswer) -> Arc<Manifest> {
        let ManifestAnswer { digest, media_type, bytes, is_signed, warnings } = answer;
        self.warnings.note(target, &digest.to_string(), warnings);
        let manifest = Manifest::new(digest, media_type, bytes, Timestamp::now());
        match is_signed {
            // Whatever is stored under a digest must itself have that digest; a signed manifest does not.
            true => Arc::new(manifest),
            false => self.cache.put_manifest(&target.repository.viewer(), manifest).await,
        }
    }

    /// Answers a HEAD request for a manifest that is not cached with the upstream's answer to HEAD, without a download.
    /// Returns `None` if the manifest is cached, or has to be fetched for an answer.
    pub async fn head_uncached(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Option<Answer>, Failure> {
        if self.cache.manifest(digest).await.ok().flatten().is_some() {
            return Ok(None);
        }
        let page = format!("manifests/{digest}");
        self.absences.recall(target, &page)?;
        let said = match self.heads.recall(target, &page) {
            Some(said) => Some(said),
            None => self.ask_head(target, digest, &page).await?,
        };
        let said = said.and_then(|said| Some((said.media_type?, said.size?)));
        Ok(said.map(|(media_type, size)| {
            let response = respond::manifest_head(digest, media_type.as_str(), size);
            Answer { response, state: CacheState::Miss(Miss::Asked) }
        }))
    }

    /// Asks the upstream by HEAD about a manifest, once for all clients that ask at the same time. Returns `None` if
    /// the upstream gives no usable answer to HEAD.
    async fn ask_head(self: &Arc<Self>, target: &Target, digest: &Digest, page: &str) -> Result<Option<Said>, Failure> {
        let key = (target.repository.prefix().to_owned(), format!("{}/{page}", target.name), target.who.id());
        let (manifests, asked, wanted, page) = (self.clone(), target.clone(), *digest, page.to_owned());
        let reference = Reference::Digest(wanted);
        let ask = || async move {
            let _place = manifests.questions.place(&asked).await?;
            let upstreams = &asked.repository.upstreams;
            let head = async |at: usize| upstreams[at].head_manifest(&asked.who, &asked.name, &reference, false).await;
            let head = upstreams.first(None, head).await;
            let life = asked.repository.config.tags.negative_max_age;
            let (_, head) = head.inspect_err(|failure| manifests.absences.remember(&asked, &page, life, failure))?;
            let said = match head {
                HeadSaid::Manifest(head) if !head.digest.contradicts(&wanted) => {
                    manifests.warnings.note(&asked, &reference.to_string(), head.warnings);
                    Some(Said { media_type: head.media_type, size: head.size })
                }
                _ => None,
            };
            if let Some(said) = &said {
                manifests.heads.remember(&asked, &page, said.clone());
            }
            Ok(said)
        };
        self.asked_heads.run(key, ask).await.0
    }
}
