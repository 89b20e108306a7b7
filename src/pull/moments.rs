//! One pull asks for a tag more than once: by HEAD for its digest, then by GET for its manifest. What the upstream said to
//! the first is good for the second, which so gets just what it was told of. Each pull asks the upstream all the same.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use http::request::Parts;
use quick_cache::sync::Cache;

use super::manifest::Found;
use super::respond::CacheState;
use super::routing::Target;
use super::{Pull, counted_client};
use crate::failure::Failure;
use crate::index::TagKey;
use crate::oci::{Digest, Tag};
use crate::upstream::WhoId;

/// How long an answer is good for the next request of a pull.
const MOMENT: Duration = Duration::from_secs(1);
/// Pulls at once of which it is known that they go on.
const ENTRIES: usize = 4_096;

/// Pulls that will ask again for a tag: of which tag, as whom, from where.
pub struct Moments {
    pulls: Cache<(TagKey, WhoId, Option<IpAddr>), Instant>,
    /// Whether there ever was one: some clients never ask twice.
    has_any: AtomicBool,
}

impl Default for Moments {
    fn default() -> Self {
        Self { pulls: Cache::new(ENTRIES), has_any: AtomicBool::new(false) }
    }
}

impl Moments {
    /// Forgets all: the upstreams may be others now.
    pub fn clear(&self) {
        self.pulls.clear();
    }
}

impl Pull {
    /// A tag as [`Pull::by_tag`] has it, or as the upstream just said to an earlier request of the same pull.
    pub(super) async fn by_tag_in_a_pull(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        tag: &Tag,
    ) -> Result<Found, Failure> {
        // What comes of this one counts from now on.
        let goes_on = self.goes_on(request, target, tag);
        if request.method != Method::HEAD
            && goes_on
            && let Some(found) = self.just_checked(target, tag).await
        {
            return Ok(found);
        }
        let found = self.by_tag(target, tag, request.method == Method::GET).await?;
        if request.method == Method::HEAD && !matches!(found.state, CacheState::Stale { .. }) {
            self.will_go_on(request, target, tag);
        }
        Ok(found)
    }

    /// The list of referrers may have been made of its fallback tag, for which clients ask next where they were told that
    /// there is no list.
    pub(super) fn will_ask_for_fallback(&self, request: &Parts, target: &Target, subject: &Digest) {
        self.will_go_on(request, target, &Tag::referrers_fallback(subject));
    }

    fn will_go_on(&self, request: &Parts, target: &Target, tag: &Tag) {
        let key = (target.tag_key(tag), target.who.id(), counted_client(request));
        self.moments.pulls.insert(key, Instant::now());
        self.moments.has_any.store(true, Ordering::Release);
    }

    fn goes_on(&self, request: &Parts, target: &Target, tag: &Tag) -> bool {
        if !self.moments.has_any.load(Ordering::Acquire) {
            return false;
        }
        let key = (target.tag_key(tag), target.who.id(), counted_client(request));
        self.moments.pulls.remove(&key).is_some_and(|(_, since)| since.elapsed() < MOMENT)
    }

    /// What the upstream said of a tag a moment ago, to this very client where its own credentials decide. After a failure
    /// nothing is that young.
    async fn just_checked(&self, target: &Target, tag: &Tag) -> Option<Found> {
        let (entry, manifest) = self.cached_tag(target, &target.tag_key(tag)).await?;
        let is_for_client =
            target.repository.config.client_consent.is_none() || self.consents.is_shown(target, &entry.digest);
        if entry.checked_at.age() >= MOMENT || !is_for_client {
            return None;
        }
        let state = CacheState::Hit { since: entry.checked_at.to_system_time() };
        Some(Found { manifest, state, is_news_of_name: true })
    }
}
