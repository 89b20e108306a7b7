//! Who may read what is stored.
//!
//! Where Larder comes with its own credentials, a repository's upstream has to have confirmed once that
//! it has an object. Where the clients' own credentials decide (`client_credentials = "pass"`), the
//! upstream has to agree for each of them, and its consent is remembered for a short time. It is for one
//! object: what a manifest names may be anything, also what its author may not read.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::Pull;
use super::routing::Target;
use crate::cache::{Fill, FillReader};
use crate::failure::{Failure, FailureKind};
use crate::oci::{Digest, Reference};
use crate::upstream::{HeadSaid, Proof, Who, WhoId};

/// Consents remembered at most; the oldest unused go first.
const ENTRIES: usize = 50_000;
/// How long a name is taken for private, of which something is not shown to everybody.
const PRIVATE: Duration = Duration::from_secs(10 * 60);
/// Objects at once of which it is found out whether they are for everybody.
pub const LEARNING: usize = 16;
/// Names kept that are private.
pub const PRIVATE_NAMES: usize = 10_000;
/// What was shown this long ago was shown for the request that is being answered.
const JUST_NOW: Duration = Duration::from_secs(10);
/// How long a consent holds at most while the upstream cannot be asked again.
const LONGEST_OUTAGE: Duration = Duration::from_secs(24 * 3600);

/// Which object of which name an upstream agreed to give to whom.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    repository: String,
    name: String,
    who: WhoId,
    digest: Digest,
}

/// What upstreams agreed to, and when.
pub struct Consents(Cache<Key, Given>);

/// How an upstream agreed.
#[derive(Clone)]
enum Given {
    By(Proof, Instant),
    /// By what is on its way in the client's own name; it is consent once it turns out to be the object.
    Begun(Weak<Fill>, Instant),
}

impl Given {
    /// How, and how long ago; `None`: it is none yet, or was none.
    fn counts(&self) -> Option<(Proof, Duration)> {
        match self {
            Self::By(proof, at) => Some((*proof, at.elapsed())),
            Self::Begun(fill, at) => fill.upgrade()?.is_verified().then(|| (Proof::Shown, at.elapsed())),
        }
    }
}

impl Default for Consents {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Consents {
    /// The upstream showed the object itself.
    pub fn given(&self, target: &Target, digest: &Digest) {
        self.note(target, digest, Given::By(Proof::Shown, Instant::now()));
    }

    /// A transfer of the object was begun in the client's name.
    pub fn begun(&self, target: &Target, digest: &Digest, fill: &FillReader) {
        self.note(target, digest, Given::Begun(fill.downgrade(), Instant::now()));
    }

    fn note(&self, target: &Target, digest: &Digest, given: Given) {
        if target.repository.config.client_consent.is_some() {
            self.0.insert(key(target, digest), given);
        }
    }

    /// Whether a transfer is the one that was begun in the client's name.
    pub fn is_begun(&self, target: &Target, digest: &Digest, fill: &FillReader) -> bool {
        let life = target.repository.config.client_consent.unwrap_or_default();
        match self.0.get(&key(target, digest)) {
            Some(Given::Begun(begun, at)) => begun.ptr_eq(&fill.downgrade()) && at.elapsed() < life,
            _ => false,
        }
    }

    fn taken_back(&self, target: &Target, digest: &Digest) {
        self.0.remove(&key(target, digest));
    }

    /// Whether the upstream need not be asked again.
    pub fn is_fresh(&self, target: &Target, digest: &Digest) -> bool {
        let life = target.repository.config.client_consent;
        life.is_none_or(|life| self.age(target, digest).is_some_and(|age| age < life))
    }

    /// Whether the upstream showed the object itself just now, or so lately that it need not be asked again.
    pub fn is_shown(&self, target: &Target, digest: &Digest) -> bool {
        let life = target.repository.config.client_consent.unwrap_or_default().max(JUST_NOW);
        let counts = self.0.get(&key(target, digest)).and_then(|given| given.counts());
        counts.is_some_and(|(proof, age)| proof == Proof::Shown && age < life)
    }

    /// How long ago the upstream showed the object itself.
    pub fn age_of_proof(&self, target: &Target, digest: &Digest) -> Option<Duration> {
        let (proof, age) = self.0.get(&key(target, digest)).and_then(|given| given.counts())?;
        (proof == Proof::Shown).then_some(age)
    }

    /// While the upstream cannot say, what it said before to the same credential holds, for as long as
    /// old copies may be served. Always, where the clients' credentials play no part.
    pub fn holds_through(&self, failure: &Failure, target: &Target, digest: &Digest) -> bool {
        let config = &target.repository.config;
        if config.client_consent.is_none() {
            return true;
        }
        if failure.was_refused {
            self.taken_back(target, digest);
            return false;
        }
        // A client can bring a rate limit about, and an answer that makes no sense is one.
        let cannot_say = matches!(failure.kind, FailureKind::Unavailable | FailureKind::Timeout);
        let is_old = |age: Duration| !config.tags.stale_if_error.covers(age) || age >= LONGEST_OUTAGE;
        cannot_say && self.age(target, digest).is_some_and(|age| !is_old(age))
    }

    /// What was agreed to by upstreams that may be others now.
    pub fn clear(&self) {
        self.0.clear();
    }

    fn age(&self, target: &Target, digest: &Digest) -> Option<Duration> {
        self.0.get(&key(target, digest)).and_then(|given| given.counts()).map(|(_, age)| age)
    }
}

fn key(target: &Target, digest: &Digest) -> Key {
    let (repository, name) = (target.repository.config.asked_as(), target.name.to_string());
    Key { repository, name, who: target.who.id(), digest: *digest }
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

impl Pull {
    /// Makes sure that a stored object may be served to who asks, by one HEAD upstream if need be.
    pub(super) async fn confirm(
        self: &Arc<Self>,
        target: &Target,
        what: Stored,
        digest: &Digest,
    ) -> Result<(), Failure> {
        let passes = target.repository.config.client_consent.is_some();
        // An index that cannot be read knows nothing; the upstream does.
        let is_known = match passes {
            true => self.consents.is_fresh(target, digest),
            false => self.cache.is_visible(&target.repository.viewer(), digest).await.unwrap_or(false),
        };
        let is_blob = matches!(what, Stored::Blob(_));
        let follows = is_blob && self.by_name.follows(target, digest);
        if is_known || follows || self.is_public(target, digest).await {
            return Ok(());
        }
        let page = what.page(digest);
        self.negative.recall(target, &page)?;
        match self.ask_for_proof(target, what, digest, &page).await {
            Ok(proof) if passes => {
                self.consents.note(target, digest, Given::By(proof, Instant::now()));
                if is_blob && proof == Proof::Shown {
                    self.by_name.blob_shown(target, digest);
                }
            }
            Ok(Proof::Shown) => self.cache.mark_visible(&target.repository.viewer(), *digest),
            // For now; a redirect alone is nothing to remember for good.
            Ok(Proof::Redirect) => {}
            Err(failure) if passes && self.consents.holds_through(&failure, target, digest) => {}
            Err(failure) => {
                if failure.was_refused {
                    self.by_name.refused(target);
                }
                let life = target.repository.config.tags.negative_max_age;
                self.negative.remember(target, &page, life, &failure);
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Has the upstream show that it has an object, once for all who ask the same at the same time.
    pub(super) async fn ask_for_proof(
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
        let (pull, cache) = (self.clone(), self.cache.clone());
        // A digest alone says little where a page says it: what is stored has a size, too.
        let known_size = match what {
            Stored::Manifest => {
                self.cache.manifest(&digest).await.ok().flatten().map(|manifest| manifest.bytes.len() as u64)
            }
            Stored::Blob(size) => Some(size),
        };
        let ask = || async move {
            let _place = pull.place(&target).await?;
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
    pub(super) async fn is_believed(&self, target: &Target, digest: &Digest) -> bool {
        let repository = &target.repository;
        repository.is_trusted || self.cache.is_visible(&repository.viewer(), digest).await.unwrap_or(false)
    }

    /// Whether the upstreams of a repository show an object to everybody.
    pub(super) async fn is_public(&self, target: &Target, digest: &Digest) -> bool {
        self.cache.is_visible(&target.repository.everybody(), digest).await.unwrap_or(false)
    }

    /// Where the clients' own credentials decide: finds out whether an object that one was just served with
    /// is for everybody, so that the next one need not be asked for. Nobody waits for it.
    pub(super) async fn learn_whether_public(self: &Arc<Self>, target: &Target, what: Stored, digest: Digest) {
        if target.repository.config.client_consent.is_none()
            || self.is_public(target, &digest).await
            || !self.is_believed(target, &digest).await
        {
            return;
        }
        let everybody = target.repository.everybody();
        if matches!(target.who, Who::Anonymous) {
            // What it is given on other grounds may be for others alone.
            if self.consents.is_shown(target, &digest) {
                self.cache.mark_visible(&everybody, digest);
                tracing::debug!(%digest, repository = everybody.repository, "an object is for everybody");
            }
            return;
        }
        let name = (target.repository.config.asked_as(), target.name.to_string());
        let is_private = self.private.get(&name).is_some_and(|until| Instant::now() < until);
        let permit = self.learning.clone().try_acquire_owned();
        let (false, Ok(permit)) = (is_private, permit) else {
            return;
        };
        let (pull, nobody) = (self.clone(), Target { who: Who::Anonymous, ..target.clone() });
        if matches!(what, Stored::Blob(_)) && self.by_name.follows(&nobody, &digest) {
            self.cache.mark_visible(&everybody, digest);
            tracing::debug!(%digest, repository = everybody.repository, "an object is for everybody, as others of its name are");
            return;
        }
        let page = what.page(&digest);
        tokio::spawn(async move {
            match pull.ask_for_proof(&nobody, what, &digest, &page).await {
                // Of a redirect alone nothing is learnt for good.
                Ok(Proof::Redirect) => {}
                Ok(Proof::Shown) => {
                    match (what, pull.cache.manifest(&digest).await) {
                        (Stored::Blob(_), _) => pull.by_name.blob_shown(&nobody, &digest),
                        (Stored::Manifest, Ok(Some(manifest))) => {
                            pull.by_name.manifest_shown(&nobody, &manifest, Instant::now());
                        }
                        _ => {}
                    }
                    pull.cache.mark_visible(&everybody, digest);
                    tracing::debug!(%digest, repository = everybody.repository, "an object is for everybody");
                }
                Err(failure) if failure.was_refused => {
                    pull.by_name.refused(&nobody);
                    pull.private.insert(name, Instant::now() + PRIVATE);
                }
                Err(failure) => tracing::debug!(%failure, "it cannot be told whether an object is for everybody"),
            }
            drop(permit);
        });
    }

    /// How long a blob is, without downloading it; `None` where that is not told.
    pub(super) async fn ask_for_size(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
    ) -> Result<Option<u64>, Failure> {
        let page = format!("{}/blobs/{digest}?size", target.name);
        let key = (target.repository.config.asked_as(), page, target.who.id());
        let (pull, target, digest) = (self.clone(), target.clone(), *digest);
        let ask = || async move {
            let _place = pull.place(&target).await?;
            let Target { repository, name, who, .. } = &target;
            let size = async |at: usize| repository.upstreams[at].head_blob(who, name, &digest).await;
            repository.upstreams.first(None, size).await.map(|(_, size)| size)
        };
        self.sizes.run(key, ask).await.0
    }
}
