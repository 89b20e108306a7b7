//! What would happen if an image were pulled now, and why: for `GET /api/explain`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::objects::Objects;
use super::respond::CacheState;
use super::tags::Tags;
use crate::cache::Manifest;
use crate::cache::freshness;
use crate::config::Limit;
use crate::failure::{Failure, FailureKind};
use crate::index::{TagEntry, TagKey};
use crate::observe::Reason;
use crate::observe::reason::Hit;
use crate::oci::Reference;
use crate::routing::Target;

/// What would happen if an image were pulled now.
pub struct Explained {
    /// What the cache has of it.
    pub cached: Option<Copy>,
    pub next: Next,
}

/// The cached copy of an image's manifest.
pub struct Copy {
    pub manifest: Arc<Manifest>,
    /// When its tag was last checked; `None` for a digest.
    pub checked_at: Option<SystemTime>,
}

/// What happens next.
pub enum Next {
    /// It is served from the cache, for this reason.
    Served(Reason),
    /// The upstream is asked whether the tag has changed. `stands_in`: for how long the copy may be served yet if the
    /// upstream fails; `None`: it may not.
    Checked { stands_in: Option<Limit> },
    /// It is fetched from the upstream.
    Fetched,
    /// The upstream's answer of a moment ago is repeated.
    Remembered(Failure),
}

impl Objects {
    /// Says what would happen if this client-less pull came now. Asks no upstream.
    pub async fn explain(&self, target: &Target, reference: &Reference) -> Explained {
        match reference {
            Reference::Tag(tag) => {
                let key = target.tag_key(tag);
                let cached = self.tags.cached(target, &key).await;
                let next = match self.absences.recall(target, &format!("manifests/{tag}")) {
                    Err(failure) if cached.is_none() => Next::Remembered(failure),
                    _ => cached.as_ref().map_or(Next::Fetched, |(entry, _)| Tags::next(target, &key, entry)),
                };
                let copy = |(entry, manifest): (TagEntry, _)| Copy {
                    manifest,
                    checked_at: Some(entry.checked_at.to_system_time()),
                };
                Explained { cached: cached.map(copy), next }
            }
            Reference::Digest(digest) => {
                let viewer = target.repository.viewer();
                let is_visible = self.cache.is_visible(&viewer, digest).await.unwrap_or(false)
                    || self.cache.is_visible(&target.repository.everybody(), digest).await.unwrap_or(false);
                let manifest = match is_visible {
                    true => self.cache.manifest(digest).await.ok().flatten(),
                    false => None,
                };
                let next = match self.absences.recall(target, &format!("manifests/{digest}")) {
                    _ if manifest.is_some() => Next::Served(Reason::Hit(Hit::Stored)),
                    Err(failure) => Next::Remembered(failure),
                    Ok(()) => Next::Fetched,
                };
                Explained { cached: manifest.map(|manifest| Copy { manifest, checked_at: None }), next }
            }
        }
    }

    /// Asks the upstream about a tag now, whatever its age. Returns how that went.
    pub async fn refresh(&self, target: &Target, reference: &Reference) -> Result<CacheState, Failure> {
        match reference {
            Reference::Tag(tag) => self.tags.refresh(target, tag).await,
            Reference::Digest(digest) => self.manifests.by_digest(target, digest).await.map(|found| found.state),
        }
    }
}

impl Tags {
    /// Returns what a request for a cached tag would lead to.
    fn next(target: &Target, key: &TagKey, entry: &TagEntry) -> Next {
        let policy = target.repository.config.policy_of(&key.tag);
        let age = entry.checked_at.age();
        match Self::unasked(policy, key, entry) {
            Some(hit) => Next::Served(Reason::Hit(hit)),
            None => {
                let may_stand_in = freshness::may_serve_stale(policy, FailureKind::Unavailable, age);
                let left = match policy.stale_if_error {
                    Limit::Span(span) => Limit::Span(span.saturating_sub(age).max(Duration::from_secs(1))),
                    Limit::Unlimited => Limit::Unlimited,
                };
                Next::Checked { stands_in: may_stand_in.then_some(left) }
            }
        }
    }
}
