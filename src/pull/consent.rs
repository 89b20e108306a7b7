//! Who may read what is stored.
//!
//! Where Larder comes with its own credentials, a repository's upstream has to have confirmed once that
//! it has an object. Where the clients' own credentials decide (`client_credentials = "pass"`), the
//! upstream has to agree for each of them, and its consent is remembered for a short time. It is for one
//! object: what a manifest names may be anything, also what its author may not read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::Pull;
use super::routing::Target;
use crate::failure::{Failure, FailureKind};
use crate::oci::{Digest, Reference};
use crate::upstream::{Who, WhoId};

/// Consents remembered at most; the oldest unused go first.
const ENTRIES: usize = 50_000;
/// How long a name is taken for private, of which something is not shown to everybody.
const PRIVATE: Duration = Duration::from_secs(10 * 60);
/// Objects at once of which it is found out whether they are for everybody.
pub const LEARNING: usize = 16;
/// Names kept that are private.
pub const PRIVATE_NAMES: usize = 10_000;
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
pub struct Consents(Cache<Key, Instant>);

impl Default for Consents {
    fn default() -> Self {
        Self(Cache::new(ENTRIES))
    }
}

impl Consents {
    pub fn given(&self, target: &Target, digest: &Digest) {
        if target.repository.config.client_consent.is_some() {
            self.0.insert(key(target, digest), Instant::now());
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
        self.0.get(&key(target, digest)).map(|at| at.elapsed())
    }
}

fn key(target: &Target, digest: &Digest) -> Key {
    let (repository, name) = (target.repository.prefix().to_owned(), target.name.to_string());
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
        let repository = target.repository.prefix();
        let passes = target.repository.config.client_consent.is_some();
        // An index that cannot be read knows nothing; the upstream does.
        let is_known = match passes {
            true => self.consents.is_fresh(target, digest),
            false => self.cache.is_visible(repository, digest).await.unwrap_or(false),
        };
        if is_known || self.is_public(target, digest).await {
            return Ok(());
        }
        let page = what.page(digest);
        self.negative.recall(target, &page)?;
        match self.ask_for_proof(target, what, digest, &page).await {
            Ok(()) if passes => self.consents.given(target, digest),
            Ok(()) => self.cache.mark_visible(repository, *digest),
            Err(failure) if passes && self.consents.holds_through(&failure, target, digest) => {}
            Err(failure) => {
                let life = target.repository.config.tags.negative_max_age;
                self.negative.remember(target, &page, life, &failure);
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Has the upstream show that it has an object, once for all who ask the same at the same time.
    async fn ask_for_proof(
        self: &Arc<Self>,
        target: &Target,
        what: Stored,
        digest: &Digest,
        page: &str,
    ) -> Result<(), Failure> {
        let key = (target.repository.prefix().to_owned(), format!("{}/{page}", target.name), target.who.id());
        // Who is not trusted may say that it has anything; what it sent once it has.
        let owner = target.repository.owner();
        let must_send_it = !self.is_believed(target, digest).await;
        let (target, digest) = (target.clone(), *digest);
        let cache = self.cache.clone();
        let ask = || async move {
            let Target { repository, name, who, .. } = &target;
            let upstreams = &repository.upstreams;
            let proof = async |at: usize| match what {
                Stored::Blob(size) if must_send_it => upstreams[at].sends_blob(who, name, &digest, size).await,
                Stored::Blob(size) => upstreams[at].proves_blob(who, name, &digest, size).await,
                Stored::Manifest => {
                    let reference = Reference::Digest(digest);
                    let head = upstreams[at].head_manifest(who, name, &reference).await?;
                    match head.and_then(|head| head.digest) {
                        Some(stated) if stated == digest && !must_send_it => Ok(()),
                        // It does not say: the manifest itself, which is verified, is the proof.
                        _ => upstreams[at].manifest(who, name, &reference).await.map(drop),
                    }
                }
            };
            upstreams.first(None, proof).await?;
            if must_send_it {
                cache.mark_visible(&owner, digest);
            }
            Ok(None)
        };
        self.confirmations.run(key, ask).await.0.map(drop)
    }

    /// Whether a mere yes of a repository's upstream is believed: the configuration names it, or it sent the object
    /// once, verified.
    pub(super) async fn is_believed(&self, target: &Target, digest: &Digest) -> bool {
        let repository = &target.repository;
        repository.is_trusted || self.cache.is_visible(&repository.owner(), digest).await.unwrap_or(false)
    }

    /// Whether the upstreams of a repository show an object to everybody.
    pub(super) async fn is_public(&self, target: &Target, digest: &Digest) -> bool {
        self.cache.is_visible(&target.repository.config.public(), digest).await.unwrap_or(false)
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
        let public = target.repository.config.public();
        if matches!(target.who, Who::Anonymous) {
            return self.cache.mark_visible(&public, digest);
        }
        let name = (target.repository.prefix().to_owned(), target.name.to_string());
        let is_private = self.private.get(&name).is_some_and(|until| Instant::now() < until);
        let permit = self.learning.clone().try_acquire_owned();
        let (false, Ok(permit)) = (is_private, permit) else {
            return;
        };
        let (pull, everybody) = (self.clone(), Target { who: Who::Anonymous, ..target.clone() });
        let page = what.page(&digest);
        tokio::spawn(async move {
            match pull.ask_for_proof(&everybody, what, &digest, &page).await {
                Ok(()) => {
                    pull.cache.mark_visible(&public, digest);
                    tracing::debug!(%digest, repository = public, "an object is for everybody");
                }
                Err(failure) if failure.was_refused => pull.private.insert(name, Instant::now() + PRIVATE),
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
        let key = (target.repository.prefix().to_owned(), page, target.who.id());
        let (target, digest) = (target.clone(), *digest);
        let ask = || async move {
            let Target { repository, name, who, .. } = &target;
            let size = async |at: usize| repository.upstreams[at].head_blob(who, name, &digest).await;
            repository.upstreams.first(None, size).await.map(|(_, size)| size)
        };
        self.confirmations.run(key, ask).await.0
    }
}
