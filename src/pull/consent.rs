//! Who may read what is stored.
//!
//! Where Larder comes with its own credentials, a repository's upstream has to have confirmed once that
//! it has an object. Where the clients' own credentials decide (`client_credentials = "pass"`), the
//! upstream has to agree for each of them, and its consent is remembered for a short time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::Pull;
use super::routing::Target;
use crate::cache::Manifest;
use crate::failure::{Failure, FailureKind};
use crate::oci::manifest::Outline;
use crate::oci::{Digest, Reference};
use crate::upstream::Who;

/// Consents remembered at most; the oldest unused go first.
const ENTRIES: usize = 50_000;

/// Which object of which name an upstream agreed to give to whom.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    repository: String,
    name: String,
    who: Who,
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
    fn given(&self, target: &Target, digest: &Digest) {
        self.0.insert(key(target, digest), Instant::now());
    }

    /// How long ago the upstream agreed.
    pub fn age(&self, target: &Target, digest: &Digest) -> Option<Duration> {
        self.0.get(&key(target, digest)).map(|at| at.elapsed())
    }

    /// Whether it need not be asked again.
    pub fn is_fresh(&self, target: &Target, digest: &Digest) -> bool {
        let life = target.repository.config.client_consent;
        life.is_none_or(|life| self.age(target, digest).is_some_and(|age| age < life))
    }
}

fn key(target: &Target, digest: &Digest) -> Key {
    let (repository, name) = (target.repository.prefix().to_owned(), target.name.to_string());
    Key { repository, name, who: target.who.clone(), digest: *digest }
}

/// What is to be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Manifest,
    Blob,
}

impl Pull {
    /// Notes that the upstream gave, or would give, this manifest to whoever asks: then it would give
    /// what the manifest names, too.
    pub(super) fn agreed(&self, target: &Target, manifest: &Manifest) {
        if target.repository.config.client_consent.is_none() {
            return;
        }
        self.consents.given(target, &manifest.digest);
        for child in Outline::read(&manifest.bytes).children {
            self.consents.given(target, &child.digest);
        }
    }

    /// As [`Pull::agreed`], where the manifest itself is noted already.
    pub(super) fn agreed_to_children(&self, target: &Target, manifest: &Manifest) {
        let life = target.repository.config.client_consent;
        let age = self.consents.age(target, &manifest.digest);
        // From an old consent follows none for today.
        if life.is_some_and(|life| age.is_some_and(|age| age < life)) {
            self.agreed(target, manifest);
        }
    }

    /// As [`Pull::agreed`], for one blob.
    pub(super) fn agreed_to_blob(&self, target: &Target, digest: &Digest) {
        if target.repository.config.client_consent.is_some() {
            self.consents.given(target, digest);
        }
    }

    /// Makes sure that a stored object may be served to who asks, by one HEAD upstream if need be.
    pub(super) async fn confirm(
        self: &Arc<Self>,
        target: &Target,
        what: Stored,
        digest: &Digest,
    ) -> Result<(), Failure> {
        let repository = target.repository.prefix();
        if target.repository.config.client_consent.is_none() {
            // An index that cannot be read knows nothing; the upstream does.
            if self.cache.is_visible(repository, digest).await.unwrap_or(false) {
                return Ok(());
            }
            self.ask_whether_it_has(target, what, digest).await?;
            self.cache.mark_visible(repository, *digest);
            return Ok(());
        }
        if self.consents.is_fresh(target, digest) {
            return Ok(());
        }
        match self.ask_whether_it_has(target, what, digest).await {
            Ok(_) => {
                self.agreed_to_blob(target, digest);
                Ok(())
            }
            Err(failure) if self.may_rely_on_old_consent(target, digest, &failure) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// While the upstream cannot say, what it said before to the same credential holds, for as long as
    /// old copies may be served. Always, where the clients' credentials play no part.
    pub(super) fn may_rely_on_old_consent(&self, target: &Target, digest: &Digest, failure: &Failure) -> bool {
        let config = &target.repository.config;
        if config.client_consent.is_none() {
            return true;
        }
        let cannot_say = match failure.kind {
            FailureKind::NotFound | FailureKind::Denied => false,
            FailureKind::WrongContent
            | FailureKind::Unavailable
            | FailureKind::Timeout
            | FailureKind::RateLimited
            | FailureKind::Busy
            | FailureKind::NoRoom
            | FailureKind::Storage => true,
        };
        cannot_say && self.consents.age(target, digest).is_some_and(|age| config.tags.stale_if_error.covers(age))
    }

    /// One HEAD upstream for all who ask the same at the same time; `None` where the size is not told.
    pub(super) async fn ask_whether_it_has(
        self: &Arc<Self>,
        target: &Target,
        what: Stored,
        digest: &Digest,
    ) -> Result<Option<u64>, Failure> {
        let page = match what {
            Stored::Manifest => format!("{}/manifests/{digest}", target.name),
            Stored::Blob => format!("{}/blobs/{digest}", target.name),
        };
        let key = (target.repository.prefix().to_owned(), page, target.who.clone());
        let (target, digest) = (target.clone(), *digest);
        let ask = || async move {
            let Target { repository, name, who } = &target;
            let upstreams = &repository.upstreams;
            let size = async |at: usize| match what {
                Stored::Blob => upstreams[at].head_blob(who, name, &digest).await,
                Stored::Manifest => {
                    let reference = Reference::Digest(digest);
                    match upstreams[at].head_manifest(who, name, &reference).await? {
                        Some(head) => Ok(head.size),
                        // No HEAD there: the manifest itself is the proof.
                        None => upstreams[at].manifest(who, name, &reference).await.map(|_| None),
                    }
                }
            };
            upstreams.first(None, size).await.map(|(_, size)| size)
        };
        self.confirmations.run(key, ask).await.0
    }
}
