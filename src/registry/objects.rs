//! Manifests, blobs and lists of repositories, for the registry door and the proxy door alike.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Method, StatusCode};

use super::answer::Answer;
use super::blobs::Blobs;
use super::lists::Lists;
use super::manifests::Manifests;
use super::patience::{self, Lagging};
use super::prefetch::Prefetch;
use super::query::Query;
use super::replicas::Replicas;
use super::respond;
use super::tags::Tags;
use super::written::Written;
use crate::access::{Absences, Consent, Questions, Refusal, Wanted};
use crate::body;
use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::observe::Metrics;
use crate::oci::route::Object;
use crate::oci::{Reference, Tag};
use crate::routing::Target;
use crate::upstream::Clients;

/// Size in bytes above which a manifest is read from the store while its client takes it.
const LARGE: usize = 256 << 10;

/// Answers requests for objects and lists.
pub struct Objects {
    pub(super) cache: Arc<Cache>,
    pub consent: Arc<Consent>,
    pub written: Arc<Written>,
    pub(super) absences: Arc<Absences>,
    lagging: Arc<Lagging>,
    pub(super) manifests: Arc<Manifests>,
    pub(super) tags: Arc<Tags>,
    pub(super) blobs: Arc<Blobs>,
    prefetch: Prefetch,
    pub(super) lists: Arc<Lists>,
}

impl Objects {
    /// Creates all services for content, with what they share.
    pub fn new(cache: &Arc<Cache>, clients: &Clients, metrics: &Arc<Metrics>, cluster: Option<&Arc<Cluster>>) -> Self {
        let replicas = Replicas(cluster.cloned());
        let (absences, questions) = (Arc::<Absences>::default(), Arc::<Questions>::default());
        let (written, lagging) = (Arc::<Written>::default(), Arc::<Lagging>::default());
        let consent = Arc::new(Consent::new(cache.clone(), absences.clone(), questions.clone()));
        let known = || (cache.clone(), consent.clone());
        let asking = || (absences.clone(), questions.clone());
        let noted = || (written.clone(), lagging.clone());
        let manifests = Arc::new(Manifests::new(known(), asking(), metrics.clone(), replicas.clone()));
        let tags = Arc::new(Tags::new(manifests.clone(), known(), asking(), noted()));
        let lists = Arc::new(Lists::new(tags.clone(), known(), asking(), noted()));
        let storages = clients.shared().storages.clone();
        let blobs = Arc::new(Blobs::new(known(), absences.clone(), storages, metrics.clone(), replicas));
        let prefetch = Prefetch::new(cache.clone(), blobs.clone(), metrics.clone());
        Self { cache: cache.clone(), consent, written, absences, lagging, manifests, tags, blobs, prefetch, lists }
    }

    /// Forgets what upstreams said. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.consent.clear();
        self.absences.clear();
        self.lagging.clear();
        self.manifests.clear();
        self.tags.clear();
        self.blobs.clear();
        self.prefetch.clear();
        self.lists.clear();
    }

    /// Answers a request for an object or a list of a repository. The caller has checked that the client may read the
    /// repository. Where the client's own credentials decide, this function checks that it may read this object.
    pub async fn answer(
        &self,
        request: &Parts,
        target: &Target,
        object: &Object,
        query: &Query,
    ) -> Result<Answer, Refusal> {
        let answer = Box::pin(async {
            match object {
                Object::Manifest(reference) => self.manifest(request, target, reference).await,
                Object::Blob(digest) => {
                    self.prefetch.blob_asked(request, target, digest);
                    self.blobs.answer(request, target, *digest).await
                }
                Object::Tags => self.lists.tags(request, target, query).await,
                Object::Referrers(subject) => self.lists.referrers(request, target, *subject, query).await,
                Object::Upload => Err(Refusal::Unsupported),
            }
        });
        patience::in_time(target, Wanted::of(object), answer, || self.waits_for_a_place(object)).await
    }

    /// Returns whether an object can be served without asking anybody for it.
    pub(super) async fn has_stored(&self, object: &Object) -> bool {
        match object {
            Object::Manifest(Reference::Digest(digest)) => self.cache.manifest(digest).await.ok().flatten().is_some(),
            Object::Blob(digest) => self.cache.stored(digest).await.ok().flatten().is_some(),
            _ => false,
        }
    }

    /// Returns how long ago the upstream was asked about a tag, as far as that is known.
    pub(super) async fn age_of_tag(&self, target: &Target, tag: &Tag) -> Option<Duration> {
        Some(self.cache.tag(&target.tag_key(tag)).await.ok()??.checked_at.age())
    }

    /// Returns whether a request for this object waited long for a place among the transfers.
    fn waits_for_a_place(&self, object: &Object) -> bool {
        let Object::Blob(digest) = object else {
            return false;
        };
        self.cache.running_fill(digest).is_some_and(|fill| fill.waited_long())
    }

    /// Answers with a manifest if this client may read it.
    async fn manifest(&self, request: &Parts, target: &Target, reference: &Reference) -> Result<Answer, Refusal> {
        let found = match reference {
            Reference::Tag(tag) => self.tags.by_tag_in_a_pull(request, target, tag).await,
            Reference::Digest(digest) => {
                if request.method == Method::HEAD
                    && let Some(mut answer) =
                        self.manifests.head_uncached(target, digest).await.map_err(manifest_refusal)?
                {
                    self.manifests.warnings.add_to(answer.response.headers_mut(), target, &[reference]);
                    return Ok(answer);
                }
                self.manifests.by_digest(target, digest).await
            }
        };
        let found = found.map_err(manifest_refusal)?;
        self.consent.manifest_was_shown(target, &found.manifest);
        self.prefetch.manifest_answered(request, target, &found.manifest);
        if found.is_news_of_name {
            self.cache.note_manifest(target.repository.prefix(), &target.name, found.manifest.digest);
        }
        let mut response = respond::manifest(&request.method, &request.headers, &found.manifest, &found.state);
        self.manifests.warnings.add_to(response.headers_mut(), target, &[reference, &found.manifest.digest]);
        let size = found.manifest.bytes.len();
        if size > LARGE && response.status() == StatusCode::OK && request.method == Method::GET {
            // A slow client would keep the whole manifest in memory.
            let (digest, state, size) = (found.manifest.digest, found.state, size as u64);
            drop(found.manifest);
            // For a signed manifest, the store may hold its plain form under the same digest: compare the sizes.
            let stored = self.cache.stored(&digest).await.ok().flatten();
            if let Some(content) = stored.filter(|content| content.is_complete_with(size)) {
                *response.body_mut() = body::streamed(content.unmapped().stream(0, Some(size), Some(size), false));
            }
            return Ok(Answer { response, state });
        }
        Ok(Answer { response, state: found.state })
    }
}

fn manifest_refusal(failure: Failure) -> Refusal {
    Refusal::of(Wanted::Manifest)(failure)
}
