//! Consents: which object an upstream agreed to give to which client, where the clients' own credentials decide
//! (`client_credentials = "pass"`). A consent is remembered for a short time. It holds for one object only: a manifest
//! may name any object, also one that its author may not read.

use std::sync::Weak;
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::cache::{Fill, FillReader};
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;
use crate::routing::Target;
use crate::upstream::{Proof, WhoId};

/// Most consents that are remembered; the ones unused for longest go first.
const ENTRIES: usize = 50_000;
/// An object that was shown this recently was shown for the request that is being answered now.
const JUST_NOW: Duration = Duration::from_secs(10);
/// How long a consent holds at most while the upstream cannot be asked again.
const LONGEST_OUTAGE: Duration = Duration::from_secs(24 * 3600);

/// The object and name of a consent, and the credentials that it was given to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    repository: String,
    name: String,
    who: WhoId,
    digest: Digest,
}

/// The consents of upstreams, with their times.
pub struct Consents(Cache<Key, Given>);

/// How an upstream agreed.
#[derive(Clone)]
enum Given {
    By(Proof, Instant),
    /// By a transfer with the client's own credentials. It is a consent once the object is verified.
    Begun(Weak<Fill>, Instant),
}

impl Given {
    /// Returns how the upstream agreed, and how long ago. `None`: there is no consent, or not yet.
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
    /// Notes that the upstream showed the object itself.
    pub fn shown(&self, target: &Target, digest: &Digest) {
        self.note(target, digest, Given::By(Proof::Shown, Instant::now()));
    }

    /// Notes that a transfer of the object has begun with the client's credentials.
    pub fn begun(&self, target: &Target, digest: &Digest, fill: Weak<Fill>) {
        self.note(target, digest, Given::Begun(fill, Instant::now()));
    }

    /// Notes that the upstream agreed by this proof.
    pub fn agreed(&self, target: &Target, digest: &Digest, proof: Proof) {
        self.note(target, digest, Given::By(proof, Instant::now()));
    }

    fn note(&self, target: &Target, digest: &Digest, given: Given) {
        if target.repository.config.client_consent.is_some() {
            self.0.insert(key(target, digest), given);
        }
    }

    /// Returns whether a transfer is the one that was begun with the client's credentials.
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

    /// Returns whether the upstream need not be asked again.
    pub fn is_fresh(&self, target: &Target, digest: &Digest) -> bool {
        let life = target.repository.config.client_consent;
        life.is_none_or(|life| self.age(target, digest).is_some_and(|age| age < life))
    }

    /// Returns whether the upstream showed the object itself just now, or so lately that it need not be asked again.
    pub fn is_shown(&self, target: &Target, digest: &Digest) -> bool {
        let life = target.repository.config.client_consent.unwrap_or_default().max(JUST_NOW);
        let counts = self.0.get(&key(target, digest)).and_then(|given| given.counts());
        counts.is_some_and(|(proof, age)| proof == Proof::Shown && age < life)
    }

    /// Returns how long ago the upstream showed the object itself.
    pub fn age_of_proof(&self, target: &Target, digest: &Digest) -> Option<Duration> {
        let (proof, age) = self.0.get(&key(target, digest)).and_then(|given| given.counts())?;
        (proof == Proof::Shown).then_some(age)
    }

    /// Returns whether an earlier consent holds through a failure: while the upstream cannot answer, its earlier
    /// consent to the same credentials holds for as long as old copies may be served. Always true where the clients'
    /// credentials do not decide.
    pub fn holds_through(&self, failure: &Failure, target: &Target, digest: &Digest) -> bool {
        let config = &target.repository.config;
        if config.client_consent.is_none() {
            return true;
        }
        if failure.was_refused {
            self.taken_back(target, digest);
            return false;
        }
        // A client can provoke a rate limit or an invalid answer, so these failures do not count.
        let cannot_say = matches!(failure.kind, FailureKind::Unavailable | FailureKind::Timeout);
        let is_old = |age: Duration| !config.tags.stale_if_error.covers(age) || age >= LONGEST_OUTAGE;
        cannot_say && self.age(target, digest).is_some_and(|age| !is_old(age))
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
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
