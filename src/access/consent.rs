//! Which client may read which stored object.
//!
//! Where Larder uses its own credentials, an upstream of the repository has to confirm once that it has the object.
//! Where the clients' own credentials decide (`client_credentials = "pass"`), the upstream has to consent for each
//! client.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as Bounded;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::absences::Absences;
use super::by_name::{self, ByName};
use super::given::Consents;
use super::questions::Questions;
use crate::cache::flight::Flights;
use crate::cache::{Cache, Manifest};
use crate::clock::Instant;
use crate::failure::Failure;
use crate::oci::{Digest, Reference};
use crate::routing::Target;
use crate::upstream::{HeadSaid, Proof, Who, WhoId};

/// How long a name counts as private after the upstream hid something of it from clients without credentials.
const PRIVATE: Duration = Duration::from_secs(10 * 60);
/// Most private names that are kept.
const PRIVATE_NAMES: usize = 10_000;
/// Most objects at once for which Larder finds out whether they are public.
const LEARNING: usize = 16;
/// Most questions at once whether a name has a stored manifest.
const NAMING: usize = 16;

/// Finds out, and remembers, which client may read which object.
pub struct Consent {
    pub(super) cache: Arc<Cache>,
    pub(super) absences: Arc<Absences>,
    questions: Arc<Questions>,
    /// The consents of upstreams.
    pub given: Consents,
    /// Consents that follow from what a client was shown of a name.
    pub by_name: ByName,
    /// Running questions whether the upstream has an object; clients that ask at the same time share one.
    proofs: Flights<(String, String, WhoId), Proof>,
    sizes: Flights<(String, String, WhoId), Option<u64>>,
    /// Names that are not public, and until when they count as such.
    private: Bounded<(String, String), Instant>,
    /// Bounds the questions that only find out what is public.
    learning: Arc<Semaphore>,
    /// Bounds the questions whether a name has a stored manifest.
    pub(super) naming: Semaphore,
}

/// The kind of object to confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredObject {
    Manifest,
    /// With its size in bytes.
    Blob(u64),
}

impl StoredObject {
    fn page(self, digest: &Digest) -> String {
        match self {
            Self::Manifest => format!("manifests/{digest}"),
            Self::Blob(_) => format!("blobs/{digest}"),
        }
    }
}

impl Consent {
    /// Creates a `Consent` that holds no consents yet.
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

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.given.clear();
        self.by_name.clear();
        self.private.clear();
    }

    /// Notes a manifest with which a client was answered, if the upstream showed it to this client.
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

    /// Returns a place among the questions that only find out whether an object or list of a name is public. Returns
    /// `None` if no place is free, or the name is known to be private.
    pub fn may_learn(&self, target: &Target) -> Option<OwnedSemaphorePermit> {
        let is_private = self.private.get(&name_of(target)).is_some_and(|until| Instant::now() < until);
        if is_private { None } else { self.learning.clone().try_acquire_owned().ok() }
    }

    /// Makes sure that a stored object may be served to the client; asks the upstream by one HEAD request if necessary.
    pub async fn confirm(
        self: &Arc<Self>,
        target: &Target,
        what: StoredObject,
        digest: &Digest,
    ) -> Result<(), Failure> {
        let passes = target.repository.config.client_consent.is_some();
        // An index that cannot be read knows nothing; the upstream does.
        let is_known = match passes {
            true => self.given.is_fresh(target, digest),
            false => self.cache.is_visible(&target.repository.viewer(), digest).await.unwrap_or(false),
        };
        let is_blob = matches!(what, StoredObject::Blob(_));
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
            // Enough for this request; but a redirect alone is not remembered.
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

    /// Asks the upstream to show that it has an object, once for all clients that ask the same at the same time.
    pub async fn ask_for_proof(
        self: &Arc<Self>,
        target: &Target,
        what: StoredObject,
        digest: &Digest,
        page: &str,
    ) -> Result<Proof, Failure> {
        let key = (target.repository.config.asked_as(), format!("{}/{page}", target.name), target.who.id());
        // An upstream that is not trusted may claim to have any object. It is believed once it has sent the object.
        let viewer = target.repository.viewer();
        let must_send_it = !self.is_believed(target, digest).await;
        let (target, digest) = (target.clone(), *digest);
        let (consent, cache) = (self.clone(), self.cache.clone());
        // An answer that only repeats the digest of the request proves little: it has to state the size of the stored
        // object, too.
        let known_size = match what {
            StoredObject::Manifest => {
                self.cache.manifest(&digest).await.ok().flatten().map(|manifest| manifest.bytes.len() as u64)
            }
            StoredObject::Blob(size) => Some(size),
        };
        let ask = || async move {
            let _place = consent.questions.place(&target).await?;
            let Target { repository, name, who, .. } = &target;
            let upstreams = &repository.upstreams;
            let proof = async |at: usize| match what {
                StoredObject::Blob(size) if must_send_it => {
                    upstreams[at].sends_blob(who, name, &digest, size).await.map(|()| Proof::Shown)
                }
                StoredObject::Blob(size) => upstreams[at].proves_blob(who, name, &digest, size).await,
                StoredObject::Manifest => {
                    let reference = Reference::Digest(digest);
                    match upstreams[at].head_manifest(who, name, &reference, false).await? {
                        HeadSaid::Manifest(head)
                            if known_size.is_some_and(|size| head.shows(&digest, size)) && !must_send_it =>
                        {
                            Ok(Proof::Shown)
                        }
                        // The answer to HEAD is no proof: ask for the manifest itself, which is verified.
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

    /// Returns whether an upstream's claim to have an object is believed: either the configuration names the upstream,
    /// or the upstream has sent this object before and it was verified.
    pub async fn is_believed(&self, target: &Target, digest: &Digest) -> bool {
        let repository = &target.repository;
        repository.is_trusted || self.cache.is_visible(&repository.viewer(), digest).await.unwrap_or(false)
    }

    /// Returns whether the upstreams of a repository show an object to clients without credentials.
    pub async fn is_public(&self, target: &Target, digest: &Digest) -> bool {
        self.cache.is_visible(&target.repository.everybody(), digest).await.unwrap_or(false)
    }

    /// Where the clients' own credentials decide: finds out whether an object that was just served to a client is
    /// public, so that for the next client the upstream need not be asked. Nobody waits for the result.
    pub async fn learn_whether_public(self: &Arc<Self>, target: &Target, what: StoredObject, digest: Digest) {
        if target.repository.config.client_consent.is_none()
            || self.is_public(target, &digest).await
            || !self.is_believed(target, &digest).await
        {
            return;
        }
        let everybody = target.repository.everybody();
        if matches!(target.who, Who::Anonymous) {
            // The client may have been served for another reason than the upstream's answer, and that may not hold for
            // everybody.
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
        if matches!(what, StoredObject::Blob(_)) && self.by_name.follows(&nobody, &digest) {
            self.cache.mark_visible(&everybody, digest);
            tracing::debug!(%digest, repository = everybody.repository, "an object is for everybody, as others of its name are");
            return;
        }
        let page = what.page(&digest);
        let learning = async move {
            match consent.ask_for_proof(&nobody, what, &digest, &page).await {
                // From a redirect alone, nothing is learnt.
                Ok(Proof::Redirect) => {}
                Ok(Proof::Shown) => {
                    match (what, consent.cache.manifest(&digest).await) {
                        (StoredObject::Blob(_), _) => consent.by_name.blob_shown(&nobody, &digest),
                        (StoredObject::Manifest, Ok(Some(manifest))) => {
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
        };
        tokio::spawn(learning.in_current_span());
    }

    /// Returns the size of a blob without downloading it; `None` if the upstream does not state it.
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
