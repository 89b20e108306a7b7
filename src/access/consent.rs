//! Who may read what is stored.
//!
//! Where Larder comes with its own credentials, a repository's upstream has to have confirmed once that it has an object.
//! Where the clients' own credentials decide (`client_credentials = "pass"`), the upstream has to agree for each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache as Bounded;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::absences::Absences;
use super::by_name::{self, ByName};
use super::given::Consents;
use super::questions::Questions;
use crate::cache::flight::Flights;
use crate::cache::{Cache, Manifest};
use crate::failure::Failure;
use crate::oci::{Digest, Reference};
use crate::routing::Target;
use crate::upstream::{HeadSaid, Proof, Who, WhoId};

/// How long a name is taken for private, of which something is not shown to everybody.
const PRIVATE: Duration = Duration::from_secs(10 * 60);
/// Names kept that are private.
const PRIVATE_NAMES: usize = 10_000;
/// Objects at once of which it is found out whether they are for everybody.
const LEARNING: usize = 16;
/// Names that upstreams are asked about at once.
const NAMING: usize = 16;

/// Finds out, and remembers, which client may read which object.
pub struct Consent {
    pub(super) cache: Arc<Cache>,
    pub(super) absences: Arc<Absences>,
    questions: Arc<Questions>,
    /// What upstreams agreed to.
    pub given: Consents,
    /// What follows from what was shown of a name.
    pub by_name: ByName,
    /// Of objects, to clients that ask at the same time.
    proofs: Flights<(String, String, WhoId), Proof>,
    sizes: Flights<(String, String, WhoId), Option<u64>>,
    /// Names that are not for everybody, and until when that is believed.
    private: Bounded<(String, String), Instant>,
    /// Bounds what is asked only to learn.
    learning: Arc<Semaphore>,
    /// Bounds the questions whether a name has what is stored already.
    pub(super) naming: Semaphore,
}

/// What is to be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Manifest,
    /// With its size.
    Blob(u64),
}

impl Stored {
    fn page(self, digest: &Digest) -> String {
        match self {
            Self::Manifest => format!("manifests/{digest}"),
            Self::Blob(_) => format!("blobs/{digest}"),
        }
    }
}

impl Consent {
    pub fn new(cache: Arc<Cache>, absences: Arc<Absences>, questions: Arc<Questions>) -> Self {
        Self {
            cache,
            absences,
            questions,
            given: Consents::default(),
            by_name: ByName::default(),
            proofs: Flights::default(),
            sizes: Flights::default(),
            private: Bounded::new(PRIVATE_NAMES),
            learning: Arc::new(Semaphore::new(LEARNING)),
            naming: Semaphore::new(NAMING),
        }
    }

    /// Forgets all: the upstreams may be others now.
    pub fn clear(&self) {
        self.given.clear();
        self.by_name.clear();
        self.private.clear();
    }

    /// A manifest was answered with on the upstream's own word to this client.
    pub fn manifest_was_shown(&self, target: &Target, manifest: &Manifest) {
        if !by_name::is_usable(target) {
            return;
        }
        let shown_at =
            self.given.age_of_proof(target, &manifest.digest).and_then(|age| Instant::now().checked_sub(age));
        if let Some(at) = shown_at {
            self.by_name.manifest_shown(target, manifest, at);
        }
    }

    /// A place among what is asked only to learn whether something of a name is for everybody; `None` where there is none,
    /// or the name is known not to be.
    pub fn may_learn(&self, target: &Target) -> Option<OwnedSemaphorePermit> {
        let is_private = self.private.get(&name_of(target)).is_some_and(|until| Instant::now() < until);
        if is_private { None } else { self.learning.clone().try_acquire_owned().ok() }
    }

    /// Makes sure that a stored object may be served to who asks, by one HEAD upstream if need be.
    pub async fn confirm(self: &Arc<Self>, target: &Target, what: Stored, digest: &Digest) -> Result<(), Failure> {
        let passes = target.repository.config.client_consent.is_some();
        // An index that cannot be read knows nothing; the upstream does.
        let is_known = match passes {
            true => self.given.is_fresh(target, digest),
            false => self.cache.is_visible(&target.repository.viewer(), digest).await.unwrap_or(false),
        };
        let is_blob = matches!(what, Stored::Blob(_));
        let follows = is_blob && self.by_name.follows(target, digest);
        if is_known || follows || self.is_public(target, digest).await {
            return Ok(());
        }
        let page = what.page(digest);
        self.absences.recall(target, &page)?;
        match self.ask_for_proof(target, what, digest, &page).await {
            Ok(proof) if passes => {
                self.given.agreed(target, digest, proof);
                if is_blob && proof == Proof::Shown {
                    self.by_name.blob_shown(target, digest);
                }
            }
            Ok(Proof::Shown) => self.cache.mark_visible(&target.repository.viewer(), *digest),
            // For now; a redirect alone is nothing to remember for good.
            Ok(Proof::Redirect) => {}
            Err(failure) if passes && self.given.holds_through(&failure, target, digest) => {}
            Err(failure) => {
                if failure.was_refused {
                    self.by_name.refused(target);
                }
                let life = target.repository.config.tags.negative_max_age;
                self.absences.remember(target, &page, life, &failure);
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Has the upstream show that it has an object, once for all who ask the same at the same time.
    pub async fn ask_for_proof(
        self: &Arc<Self>,
        target: &Target,
        what: Stored,
        digest: &Digest,
        page: &str,
    ) -> Result<Proof, Failure> {
        let key = (target.repository.config.asked_as(), format!("{}/{page}", target.name), target.who.id());
        // Who is not trusted may say that it has anything; what it sent once it has.
        let viewer = target.repository.viewer();
        let must_send_it = !self.is_believed(target, digest).await;
        let (target, digest) = (target.clone(), *digest);
        let (consent, cache) = (self.clone(), self.cache.clone());
        // A digest alone says little where a page says it: what is stored has a size, too.
        let known_size = match what {
            Stored::Manifest => {
                self.cache.manifest(&digest).await.ok().flatten().map(|manifest| manifest.bytes.len() as u64)
            }
            Stored::Blob(size) => Some(size),
        };
        let ask = || async move {
            let _place = consent.questions.place(&target).await?;
            let Target { repository, name, who, .. } = &target;
            let upstreams = &repository.upstreams;
            let proof = async |at: usize| match what {
                Stored::Blob(size) if must_send_it => {
                    upstreams[at].sends_blob(who, name, &digest, size).await.map(|()| Proof::Shown)
                }
                Stored::Blob(size) => upstreams[at].proves_blob(who, name, &digest, size).await,
                Stored::Manifest => {
                    let reference = Reference::Digest(digest);
                    match upstreams[at].head_manifest(who, name, &reference, false).await? {
                        HeadSaid::Manifest(head)
                            if known_size.is_some_and(|size| head.shows(&digest, size)) && !must_send_it =>
                        {
                            Ok(Proof::Shown)
                        }
                        // It does not say: the manifest itself, which is verified, is the proof.
                        _ => upstreams[at].manifest(who, name, &reference).await.map(|_| Proof::Shown),
                    }
                }
            };
            let (_, proof) = upstreams.first(None, proof).await?;
            if must_send_it {
                cache.mark_visible(&viewer, digest);
            }
            Ok(proof)
        };
        self.proofs.run(key, ask).await.0
    }

    /// Whether a mere yes of a repository's upstream is believed: the configuration names it, or it sent the object
    /// once, verified.
    pub async fn is_believed(&self, target: &Target, digest: &Digest) -> bool {
        let repository = &target.repository;
        repository.is_trusted || self.cache.is_visible(&repository.viewer(), digest).await.unwrap_or(false)
    }

    /// Whether the upstreams of a repository show an object to everybody.
    pub async fn is_public(&self, target: &Target, digest: &Digest) -> bool {
        self.cache.is_visible(&target.repository.everybody(), digest).await.unwrap_or(false)
    }

    /// Where the clients' own credentials decide: finds out whether an object that one was just served with
    /// is for everybody, so that the next one need not be asked for. Nobody waits for it.
    pub async fn learn_whether_public(self: &Arc<Self>, target: &Target, what: Stored, digest: Digest) {
        if target.repository.config.client_consent.is_none()
            || self.is_public(target, &digest).await
            || !self.is_believed(target, &digest).await
        {
            return;
        }
        let everybody = target.repository.everybody();
        if matches!(target.who, Who::Anonymous) {
            // What it is given on other grounds may be for others alone.
            if self.given.is_shown(target, &digest) {
                self.cache.mark_visible(&everybody, digest);
                tracing::debug!(%digest, repository = everybody.repository, "an object is for everybody");
            }
            return;
        }
        let Some(permit) = self.may_learn(target) else {
            return;
        };
        let (consent, nobody) = (self.clone(), Target { who: Who::Anonymous, ..target.clone() });
        if matches!(what, Stored::Blob(_)) && self.by_name.follows(&nobody, &digest) {
            self.cache.mark_visible(&everybody, digest);
            tracing::debug!(%digest, repository = everybody.repository, "an object is for everybody, as others of its name are");
            return;
        }
        let page = what.page(&digest);
        tokio::spawn(async move {
            match consent.ask_for_proof(&nobody, what, &digest, &page).await {
                // Of a redirect alone nothing is learnt for good.
                Ok(Proof::Redirect) => {}
                Ok(Proof::Shown) => {
                    match (what, consent.cache.manifest(&digest).await) {
                        (Stored::Blob(_), _) => consent.by_name.blob_shown(&nobody, &digest),
                        (Stored::Manifest, Ok(Some(manifest))) => {
                            consent.by_name.manifest_shown(&nobody, &manifest, Instant::now());
                        }
                        _ => {}
                    }
                    consent.cache.mark_visible(&everybody, digest);
                    tracing::debug!(%digest, repository = everybody.repository, "an object is for everybody");
                }
                Err(failure) if failure.was_refused => {
                    consent.by_name.refused(&nobody);
                    consent.private.insert(name_of(&nobody), Instant::now() + PRIVATE);
                }
                Err(failure) => tracing::debug!(%failure, "it cannot be told whether an object is for everybody"),
            }
            drop(permit);
        });
    }

    /// How long a blob is, without downloading it; `None` where that is not told.
    pub async fn ask_for_size(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<Option<u64>, Failure> {
        let page = format!("{}/blobs/{digest}?size", target.name);
        let key = (target.repository.config.asked_as(), page, target.who.id());
        let (questions, target, digest) = (self.questions.clone(), target.clone(), *digest);
        let ask = || async move {
            let _place = questions.place(&target).await?;
            let Target { repository, name, who, .. } = &target;
            let size = async |at: usize| repository.upstreams[at].head_blob(who, name, &digest).await;
            repository.upstreams.first(None, size).await.map(|(_, size)| size)
        };
        self.sizes.run(key, ask).await.0
    }
}

fn name_of(target: &Target) -> (String, String) {
    (target.repository.config.asked_as(), target.name.to_string())
}
