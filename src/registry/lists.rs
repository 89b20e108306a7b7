//! Lists: tags and referrers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::LINK;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::Answer;
use super::pages::{self, NamedBy, Page};
use super::patience::{self, Lagging};
use super::query::Query;
use super::respond::{self, CacheState};
use super::tags::Tags;
use super::written::Written;
use crate::access::{Absences, Consent, Questions, Refusal, Wanted};
use crate::body::Body;
use crate::cache::flight::Flights;
use crate::cache::{Cache, freshness};
use crate::clock;
use crate::config::TagPolicy;
use crate::failure::{Failure, FailureKind};
use crate::index::{ListKey, Listing, Timestamp};
use crate::observe::reason::{Hit, Miss};
use crate::oci::manifest::ReferrersIndex;
use crate::oci::{Digest, MediaType, Tag, media_type};
use crate::routing::Target;
use crate::upstream::{ListAnswer, WhoId};

/// Header that names the filters which were applied to a list of referrers.
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Most lists of one configured repository that are fetched at once: each may have some MiB.
const AT_ONCE: usize = 4;
/// How long a request waits until fewer lists of its repository are being fetched.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which list of a name.
#[derive(Clone, Copy)]
pub enum List {
    Tags,
    ReferrersOf(Digest),
}

impl List {
    fn kind(self) -> pages::ListKind {
        match self {
            Self::Tags => pages::ListKind::Tags,
            Self::ReferrersOf(_) => pages::ListKind::Referrers,
        }
    }

    fn path(self) -> String {
        match self {
            Self::Tags => "tags/list".to_owned(),
            Self::ReferrersOf(subject) => format!("referrers/{subject}"),
        }
    }

    /// Returns the key of a page within its repository.
    fn key(self, page: &Page, target: &Target) -> ListKey {
        let query = page.kept_as.as_ref().unwrap_or(&page.query);
        let path = self.path();
        let page = if query.is_empty() { path } else { format!("{path}?{query}") };
        let page = page + &target.repository.config.shelf();
        ListKey { repository: target.repository.prefix().to_owned(), name: target.name.to_string(), page }
    }
}

/// When the upstream is asked for a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// If what is cached is past `max_age`.
    IfOld,
    Always,
}

/// Finds lists: in the cache while they are fresh, else at the upstream.
pub struct Lists {
    pub(super) cache: Arc<Cache>,
    pub(super) consent: Arc<Consent>,
    absences: Arc<Absences>,
    questions: Arc<Questions>,
    pub(super) tags: Arc<Tags>,
    written: Arc<Written>,
    lagging: Arc<Lagging>,
    listings: Flights<(ListKey, WhoId), Listing>,
    /// Which upstream named which page.
    named_by: NamedBy,
    /// By repository: bounds the lists that are fetched at once.
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Lists {
    /// Creates the service for lists.
    pub fn new(
        tags: Arc<Tags>,
        (cache, consent): (Arc<Cache>, Arc<Consent>),
        (absences, questions): (Arc<Absences>, Arc<Questions>),
        (written, lagging): (Arc<Written>, Arc<Lagging>),
    ) -> Self {
        let (listings, named_by, turns) = (Flights::default(), NamedBy::default(), Mutex::default());
        Self { cache, consent, absences, questions, tags, written, lagging, listings, named_by, turns }
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.named_by.clear();
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Answers with the tags of a name.
    pub async fn tags(self: &Arc<Self>, request: &Parts, target: &Target, query: &Query) -> Result<Answer, Refusal> {
        self.list(request, target, List::Tags, query).await
    }

    /// Answers with the manifests that refer to a manifest of a name.
    pub async fn referrers(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        subject: Digest,
        query: &Query,
    ) -> Result<Answer, Refusal> {
        let answer = self.list(request, target, List::ReferrersOf(subject), query).await?;
        self.tags.will_ask_for_fallback(request, target, &subject);
        Ok(answer)
    }

    /// Answers with a list: from the cache while it is fresh, else from the upstream, else the last known one. A page
    /// that no client of a registry would ask for passes uncached.
    async fn list(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        list: List,
        query: &Query,
    ) -> Result<Answer, Refusal> {
        let page = Page::read(list.kind(), &query.page);
        let found = self.find(target, list, &page, Asked::IfOld).await;
        let (listing, state) = found.map_err(Refusal::of(Wanted::Name))?;
        Ok(Answer { response: respond_list(request, query, &page, &listing, &state), state })
    }

    /// Finds a page of a list, with where it comes from.
    pub(super) async fn find(
        self: &Arc<Self>,
        target: &Target,
        list: List,
        page: &Page,
        asked: Asked,
    ) -> Result<(Listing, CacheState), Failure> {
        let policy = &target.repository.config.tags;
        let key = list.key(page, target);
        // A list that one client is shown is not for others, unless it is public.
        let may_be_kept = page.kept_as.is_some();
        let public = Self::public_key(target, &key).filter(|_| may_be_kept);
        let is_kept = may_be_kept && !target.who.is_client();
        let cached = match public.as_ref().or(is_kept.then_some(&key)) {
            None => None,
            Some(key) => match self.cache.listing(key).await {
                Err(failure) if failure.kind == FailureKind::Busy => return Err(failure),
                // An index that cannot be read counts as empty.
                found => found.ok().flatten().map(|listing| self.of_the_past(policy, key, listing)),
            },
        };
        // A list grows with each push, so it is fresh for `max_age` and never immutable.
        let is_fresh = cached.as_ref().is_some_and(|listing| {
            asked == Asked::IfOld
                && listing.checked_at.age() < policy.max_age
                && !self.written.was_list_written(target, listing.checked_at)
        });

        Ok(match cached {
            Some(listing) if is_fresh => {
                let since = listing.checked_at.to_system_time();
                (
                    listing,
                    CacheState::Hit {
                        since,
                        why: Hit::Fresh { until: since.checked_add(policy.max_age).unwrap_or(since) },
                    },
                )
            }
            cached => match (self.fetch_in_time(target, (list, page), key.clone(), cached.as_ref()).await, cached) {
                (Ok((listing, is_first)), cached) => {
                    if let Some(public) = public {
                        self.learn_public_list(target, (list, page), (key, public), &listing, cached.as_ref());
                    }
                    (listing, CacheState::Miss(if is_first { Miss::List } else { Miss::Joined }))
                }
                (Err(failure), Some(listing))
                    if freshness::may_serve_stale(policy, failure.kind, listing.checked_at.age())
                        && Self::may_stand_in(target, &failure) =>
                {
                    let since = listing.checked_at.to_system_time();
                    (listing, CacheState::Stale { since, why: failure })
                }
                (Err(failure), _) => match self.fallback_in_outage(target, list, page, &failure).await {
                    Some(listing) => {
                        let since = listing.checked_at.to_system_time();
                        (listing, CacheState::Stale { since, why: failure })
                    }
                    None => return Err(failure),
                },
            },
        })
    }

    /// Returns a list with a time that is past, as it is written anew if the clock was ahead and has been set back.
    fn of_the_past(&self, policy: &TagPolicy, key: &ListKey, listing: Listing) -> Listing {
        if !listing.checked_at.is_to_come() {
            return listing;
        }
        let listing = Listing { checked_at: freshness::of_unknown_time(policy, Timestamp::now()), ..listing };
        if clock::is_plausible() {
            self.cache.put_listing(key.clone(), listing.clone());
        }
        listing
    }

    /// Fetches the upstream's list. If there is a copy to serve, the wait is short, and the list comes in after the
    /// response.
    async fn fetch_in_time(
        self: &Arc<Self>,
        target: &Target,
        (list, page): (List, &Page),
        key: ListKey,
        cached: Option<&Listing>,
    ) -> Result<(Listing, bool), Failure> {
        let policy = &target.repository.config.tags;
        let is_kept = page.kept_as.is_some() && !target.who.is_client();
        let has_copy =
            |listing: &Listing| freshness::may_serve_stale(policy, FailureKind::Timeout, listing.checked_at.age());
        let fetch = self.fetch_once(target, list, page, key, is_kept);
        if !cached.is_some_and(has_copy) {
            return fetch.await;
        }
        let patience = self.lagging.patience(target);
        tokio::time::timeout(patience, fetch).await.unwrap_or_else(|_| {
            self.lagging.note(target, true);
            Err(patience::too_slow(target, patience))
        })
    }

    /// Fetches the upstream's list, once for all requests that want it now. The second value tells whether this call
    /// fetched it.
    pub async fn fetch_once(
        self: &Arc<Self>,
        target: &Target,
        list: List,
        page: &Page,
        key: ListKey,
        is_kept: bool,
    ) -> Result<(Listing, bool), Failure> {
        let flight = (key.clone(), target.who.id());
        // A request that joins a running fetch needs no turn.
        let turn = match self.listings.is_running(&flight) {
            true => None,
            false => self.turn_for_list(target).await?,
        };
        let (lists, asked, page) = (self.clone(), target.clone(), page.clone());
        let work = || async move {
            let _turn = (turn, lists.questions.place(&asked).await?);
            let listing = lists.cache.hold_listing(lists.fetch_list(&asked, list, &page).await?).await?;
            if is_kept {
                lists.cache.put_listing(key, listing.clone());
            }
            Ok(listing)
        };
        let (fetched, is_first) = self.listings.run(flight, work).await;
        Ok((fetched?, is_first))
    }

    /// Waits for a turn among the lists of a repository. `None`: lists of this repository are not bounded.
    async fn turn_for_list(&self, target: &Target) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        if !target.repository.is_configured {
            return Ok(None);
        }
        let turns = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            let turns = turns.entry(target.repository.prefix().to_owned());
            turns.or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone()
        };
        let turn = tokio::time::timeout(PATIENCE, turns.acquire_owned()).await;
        turn.map(Result::ok).map_err(|_| {
            Failure::new(FailureKind::Busy, "many lists of this repository are being asked for; try again soon")
        })
    }

    /// Fetches a page. If only one registry understands the page, only the upstream that named it is asked. For other
    /// pages that upstream is asked first.
    async fn fetch_list(self: &Arc<Self>, target: &Target, list: List, page: &Page) -> Result<Listing, Failure> {
        let (upstreams, query) = (&target.repository.upstreams, page.query.as_str());
        let ask = async |at: usize| match &list {
            List::Tags => upstreams[at].tags(&target.who, &target.name, query).await,
            List::ReferrersOf(subject) => upstreams[at].referrers(&target.who, &target.name, subject, query).await,
        };
        let path = list.path();
        let named_by = self.named_by.recall(target, &path, query);
        // Whether a registry has the referrers API does not depend on the page.
        let may_lack = matches!(list, List::ReferrersOf(_)) && !page.is_opaque;
        let answer = match named_by {
            Some(at) if page.is_opaque => upstreams.only(at, ask).await,
            _ if may_lack && let Err(absent) = self.absences.recall(target, &path) => Err(absent),
            named_by => upstreams.first(named_by, ask).await,
        };
        if let (true, Err(failure)) = (may_lack, &answer) {
            self.absences.remember(target, &path, target.repository.config.tags.negative_max_age, failure);
        }
        match (answer, list) {
            (Ok((at, answer)), _) => {
                if let Some(next) = answer.link.as_deref().and_then(|link| page.next(link)) {
                    self.named_by.remember(target, &path, &next, at);
                }
                Ok(into_listing(answer))
            }
            // At the proxy door the registry itself tells the client.
            (Err(failure), List::ReferrersOf(_)) if target.repository.learns_public => Err(failure),
            // An upstream with the referrers API answers with an empty list; a 404 means that it has no such API. An
            // upstream that named a page has the API.
            (Err(failure), List::ReferrersOf(subject)) if failure.kind == FailureKind::NotFound && !page.is_opaque => {
                self.referrers_by_tag(target, &subject, &page.filters).await
            }
            (Err(failure), _) => Err(failure),
        }
    }

    /// Makes the list of referrers for an upstream without the referrers API from the index behind its fallback tag.
    pub async fn referrers_by_tag(
        self: &Arc<Self>,
        target: &Target,
        subject: &Digest,
        filters: &[String],
    ) -> Result<Listing, Failure> {
        let tag = Tag::referrers_fallback(subject);
        let mut index = match self.tags.by_tag(target, &tag, false).await {
            Ok(found) => {
                let index = ReferrersIndex::from_fallback_tag(&found.manifest.bytes);
                let wrong = || Failure::new(FailureKind::WrongContent, format!("the tag {tag} holds no image index"));
                index.ok_or_else(wrong)?
            }
            Err(failure) if failure.kind == FailureKind::NotFound => ReferrersIndex::new(Vec::new()),
            Err(failure) => return Err(failure),
        };
        if !filters.is_empty() {
            index.filter(filters);
        }
        let body = serde_json::to_vec(&index).map_err(|error| Failure::new(FailureKind::WrongContent, error))?;
        Ok(Listing {
            body: body.into(),
            media_type: Some(MediaType::new(media_type::OCI_INDEX)),
            link: None,
            filters_applied: (!filters.is_empty()).then(|| "artifactType".to_owned()),
            checked_at: Timestamp::now(),
        })
    }
}

fn into_listing(answer: ListAnswer) -> Listing {
    let ListAnswer { bytes, media_type, link, filters_applied } = answer;
    Listing { body: bytes, media_type, link, filters_applied, checked_at: Timestamp::now() }
}

fn respond_list(request: &Parts, query: &Query, page: &Page, listing: &Listing, state: &CacheState) -> Response<Body> {
    let media_type = listing.media_type.as_ref().map_or("application/json", MediaType::as_str);
    let mut response = respond::json(listing.body.clone(), media_type);
    let headers = response.headers_mut();
    state.write(headers);
    let next = listing.link.as_deref().and_then(|link| page.next(link));
    let link = next.and_then(|next| pages::link_to(request.uri.path(), &next, query.namespace.as_deref()));
    headers.extend(link.map(|link| (LINK, link)));
    let filters = listing.filters_applied.as_deref().and_then(|filters| HeaderValue::from_str(filters).ok());
    headers.extend(filters.map(|filters| (OCI_FILTERS_APPLIED, filters)));
    response
}
