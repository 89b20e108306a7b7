//! Lists: tags, referrers, the catalog.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LINK};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use super::admission::Door;
use super::error::{Refusal, Wanted};
use super::respond::{self, Body, CacheState};
use super::routing::{Repository, Target};
use super::{Answer, Pull, Query};
use crate::auth::Identity;
use crate::cache::freshness;
use crate::failure::{Failure, FailureKind};
use crate::index::{ListKey, Listing, Timestamp};
use crate::oci::manifest::ReferrersIndex;
use crate::oci::{Digest, MediaType, Tag, media_type};
use crate::upstream::ListAnswer;

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Names on one page of the catalog, unless the client asks for fewer.
const CATALOG_PAGE: usize = 1000;

/// Longest list, in entries, of which a page is asked for and kept. Registries give fewer at a time.
const MAX_N: u32 = 10_000;
/// Longest filter that is kept: a media type has at most 127 characters on both sides of its slash (RFC 6838).
const MAX_FILTER: usize = 255;
/// How long a request waits until few enough lists of its repository come in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which list of a name.
#[derive(Clone)]
pub(super) enum Page {
    Tags { query: String },
    Referrers { subject: Digest, artifact_type: Option<String> },
}

impl Page {
    /// The page's address within its repository.
    fn key(&self, target: &Target) -> ListKey {
        let (path, query) = match self {
            Self::Tags { query } => ("tags/list".to_owned(), query.as_str()),
            Self::Referrers { subject, artifact_type } => {
                (format!("referrers/{subject}"), artifact_type.as_deref().unwrap_or_default())
            }
        };
        let page = if query.is_empty() { path } else { format!("{path}?{query}") };
        let page = page + &target.repository.config.shelf();
        ListKey { repository: target.repository.prefix().to_owned(), name: target.name.to_string(), page }
    }
}

impl Pull {
    pub(super) async fn tags(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        query: &Query,
    ) -> Result<Answer, Refusal> {
        let (page, is_kept) = tags_page(query);
        self.list(request, target, page, is_kept, query).await
    }

    pub(super) async fn referrers(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        subject: Digest,
        query: &Query,
    ) -> Result<Answer, Refusal> {
        let artifact_type = query.artifact_type.clone();
        let is_kept = artifact_type.as_deref().is_none_or(is_media_type);
        let answer = self.list(request, target, Page::Referrers { subject, artifact_type }, is_kept, query).await?;
        self.will_ask_for_fallback(request, target, &subject);
        Ok(answer)
    }

    /// A list: while fresh from the cache, else the upstream's, else as it last was. Without `is_kept` it only passes:
    /// it is none that a client of a registry asks for.
    async fn list(
        self: &Arc<Self>,
        request: &Parts,
        target: &Target,
        page: Page,
        is_kept: bool,
        query: &Query,
    ) -> Result<Answer, Refusal> {
        let policy = &target.repository.config.tags;
        let key = page.key(target);
        // What one client is shown is not for others, unless it is for everybody.
        let public = Self::public_key(target, &key).filter(|_| is_kept);
        let is_kept = is_kept && !target.who.is_client();
        let cached = match public.as_ref().or(is_kept.then_some(&key)) {
            None => None,
            Some(key) => match self.cache.listing(key).await {
                Err(failure) if failure.kind == FailureKind::Busy => return Err(Refusal::of(Wanted::Name)(failure)),
                // An index that cannot be read is as good as an empty one.
                found => found.ok().flatten(),
            },
        };
        // A list grows with each push, so it is fresh for `max_age` and never immutable.
        let is_fresh = cached.as_ref().is_some_and(|listing| {
            listing.checked_at.age() < policy.max_age && !self.was_written(target, listing.checked_at)
        });

        let (listing, state) = match cached {
            Some(listing) if is_fresh => {
                let since = listing.checked_at.to_system_time();
                (listing, CacheState::Hit { since })
            }
            cached => match (self.fetch_once(target, page.clone(), key.clone(), is_kept).await, cached) {
                (Ok((listing, is_first)), cached) => {
                    if let Some(public) = public {
                        self.learn_public_list(target, page.clone(), (key, public), &listing, cached.as_ref());
                    }
                    (listing, CacheState::Miss { collapsed: !is_first })
                }
                (Err(failure), Some(listing))
                    if freshness::may_serve_stale(policy, failure.kind, listing.checked_at.age())
                        && Self::may_stand_in(target, &failure) =>
                {
                    let since = listing.checked_at.to_system_time();
                    (listing, CacheState::Stale { since, why: failure })
                }
                (Err(failure), _) => match self.fallback_in_outage(target, &page, &failure).await {
                    Some(listing) => {
                        let since = listing.checked_at.to_system_time();
                        (listing, CacheState::Stale { since, why: failure })
                    }
                    None => return Err(Refusal::of(Wanted::Name)(failure)),
                },
            },
        };
        Ok(Answer { response: respond_list(request, query, &listing, &state), state })
    }

    /// The upstream's list, asked for once for all who want it now. The second value tells whether it was for this one.
    pub(super) async fn fetch_once(
        self: &Arc<Self>,
        target: &Target,
        page: Page,
        key: ListKey,
        is_kept: bool,
    ) -> Result<(Listing, bool), Failure> {
        let flight = (key.clone(), target.who.id());
        // Each may be of some MiB, so few of a repository come in at once. Who joins another needs no turn.
        let turn = match self.listings.is_running(&flight) {
            true => None,
            false => self.turn_for_list(target).await?,
        };
        let (pull, asked) = (self.clone(), target.clone());
        let work = || async move {
            let _turn = turn;
            let listing = pull.cache.hold_listing(pull.fetch_list(&asked, page).await?).await?;
            if is_kept {
                pull.cache.put_listing(key, listing.clone());
            }
            Ok(listing)
        };
        let (fetched, is_first) = self.listings.run(flight, work).await;
        Ok((fetched?, is_first))
    }

    async fn turn_for_list(&self, target: &Target) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        let routing = self.routing();
        let Some(turns) = routing.lists_of(&target.repository) else {
            return Ok(None);
        };
        let turn = tokio::time::timeout(PATIENCE, turns.clone().acquire_owned()).await;
        turn.map(Result::ok).map_err(|_| {
            Failure::new(FailureKind::Busy, "many lists of this repository are being asked for; try again soon")
        })
    }

    async fn fetch_list(self: &Arc<Self>, target: &Target, page: Page) -> Result<Listing, Failure> {
        let upstreams = &target.repository.upstreams;
        Ok(match &page {
            Page::Tags { query } => {
                let ask = async |at: usize| upstreams[at].tags(&target.who, &target.name, query).await;
                into_listing(upstreams.first(None, ask).await?.1)
            }
            Page::Referrers { subject, artifact_type } => {
                let query = artifact_type.as_ref().map_or_else(String::new, |wanted| {
                    url::form_urlencoded::Serializer::new(String::new()).append_pair("artifactType", wanted).finish()
                });
                let ask = async |at: usize| upstreams[at].referrers(&target.who, &target.name, subject, &query).await;
                let page = format!("referrers/{subject}");
                let asked = match self.negative.recall(target, &page) {
                    Ok(()) => upstreams.first(None, ask).await,
                    Err(absent) => Err(absent),
                };
                let life = target.repository.config.tags.negative_max_age;
                match asked.inspect_err(|failure| self.negative.remember(target, &page, life, failure)) {
                    Ok((_, answer)) => into_listing(answer),
                    // At the proxy door the registry says so itself.
                    Err(failure) if target.repository.learns_public => return Err(failure),
                    // An upstream with the API answers an empty list; this one does not have it.
                    Err(failure) if failure.kind == FailureKind::NotFound => {
                        self.referrers_by_tag(target, subject, artifact_type.as_deref()).await?
                    }
                    Err(failure) => return Err(failure),
                }
            }
        })
    }

    /// The referrers of an upstream without the API: what its fallback tag lists.
    pub(super) async fn referrers_by_tag(
        self: &Arc<Self>,
        target: &Target,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Listing, Failure> {
        let tag = Tag::referrers_fallback(subject);
        let mut index = match self.by_tag(target, &tag).await {
            Ok(found) => {
                let index = ReferrersIndex::from_fallback_tag(&found.manifest.bytes);
                let wrong = || Failure::new(FailureKind::WrongContent, format!("the tag {tag} holds no image index"));
                index.ok_or_else(wrong)?
            }
            Err(failure) if failure.kind == FailureKind::NotFound => ReferrersIndex::new(Vec::new()),
            Err(failure) => return Err(failure),
        };
        if let Some(artifact_type) = artifact_type {
            index.filter(artifact_type);
        }
        let body = serde_json::to_vec(&index).map_err(|error| Failure::new(FailureKind::WrongContent, error))?;
        Ok(Listing {
            body: body.into(),
            media_type: Some(MediaType::new(media_type::OCI_INDEX)),
            link: None,
            filters_applied: artifact_type.map(|_| "artifactType".to_owned()),
            checked_at: Timestamp::now(),
        })
    }

    /// `/v2/_catalog`: the names with cached content, by their local path.
    pub(super) async fn catalog(
        &self,
        query: &Query,
        door: &Door,
        identity: &Identity,
    ) -> Result<Response<Body>, Refusal> {
        let asked = query.n.as_deref().and_then(|n| n.parse().ok()).unwrap_or(CATALOG_PAGE);
        let count = asked.min(CATALOG_PAGE);
        let last = query.last.clone().unwrap_or_default();
        // What clients' own credentials brought in is nobody else's to know, nor what is not served any more.
        let may_see = |repository: &&Arc<Repository>| {
            repository.config.client_consent.is_none() && identity.may_pull(&repository.config.allow, door.has_logins())
        };
        let shown = door.live.routing.repositories().iter().filter(may_see);
        let repositories = shown.map(|repository| repository.prefix().to_owned()).collect();
        let names = self.cache.catalog(repositories, last, count + 1).await.map_err(Refusal::of(Wanted::Name))?;
        let page = &names[..count.min(names.len())];
        let mut response = json_response(json!({ "repositories": page }).to_string().into(), "application/json");
        if let (Some(last), true) = (page.last(), names.len() > count) {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("n", &count.to_string())
                .append_pair("last", last)
                .finish();
            let link = HeaderValue::try_from(format!("</v2/_catalog?{query}>; rel=\"next\""));
            response.headers_mut().extend(link.ok().map(|link| (LINK, link)));
        }
        Ok(response)
    }
}

/// The page of a tag list that a client asks for, and whether it is one to be kept: there are any number of queries, and
/// only some that clients of a registry make. Those are written in one way; others pass as they are.
fn tags_page(query: &Query) -> (Page, bool) {
    let n = query.n.as_deref().map(canonical_n);
    let is_kept = n.as_ref().is_none_or(Option::is_some) && query.last.as_deref().is_none_or(is_tag_like);
    let n = match n.flatten() {
        Some(n) => Some(n.to_string()),
        None => query.n.clone(),
    };
    let mut asked = url::form_urlencoded::Serializer::new(String::new());
    for (key, value) in [("n", &n), ("last", &query.last)] {
        if let Some(value) = value {
            asked.append_pair(key, value);
        }
    }
    (Page::Tags { query: asked.finish() }, is_kept)
}

fn canonical_n(n: &str) -> Option<u32> {
    let is_number = n.bytes().all(|byte| byte.is_ascii_digit());
    n.parse().ok().filter(|n| is_number && *n <= MAX_N)
}

/// As long and of such characters as a tag.
fn is_tag_like(last: &str) -> bool {
    let is_of_tags = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    last.len() <= 128 && last.bytes().all(is_of_tags)
}

/// Made of the characters of media types (RFC 6838, section 4.2).
fn is_media_type(filter: &str) -> bool {
    let is_of_types = |byte: u8| byte.is_ascii_alphanumeric() || b"/!#$&-^_.+".contains(&byte);
    filter.len() <= MAX_FILTER && filter.bytes().all(is_of_types)
}

fn into_listing(answer: ListAnswer) -> Listing {
    let ListAnswer { bytes, media_type, link, filters_applied } = answer;
    Listing { body: bytes, media_type, link, filters_applied, checked_at: Timestamp::now() }
}

fn respond_list(request: &Parts, query: &Query, listing: &Listing, state: &CacheState) -> Response<Body> {
    let media_type = listing.media_type.as_ref().map_or("application/json", MediaType::as_str);
    let mut response = json_response(listing.body.clone(), media_type);
    let headers = response.headers_mut();
    state.write(headers);
    let link = listing.link.as_deref().and_then(|link| next_link(request.uri.path(), query, link));
    headers.extend(link.map(|link| (LINK, link)));
    let filters = listing.filters_applied.as_deref().and_then(|filters| HeaderValue::from_str(filters).ok());
    headers.extend(filters.map(|filters| (OCI_FILTERS_APPLIED, filters)));
    response
}

fn json_response(body: Bytes, media_type: &str) -> Response<Body> {
    let length = body.len();
    let mut response = Response::new(respond::full(body));
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(media_type).ok().map(|value| (CONTENT_TYPE, value)));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// The upstream's `Link` to the next page, as a link to ours: the path that the client asked for with
/// the upstream's query, and the client's own `ns`.
fn next_link(path: &str, query: &Query, link: &str) -> Option<HeaderValue> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !parameters.replace([' ', '"'], "").contains("rel=next") {
        return None;
    }
    let base = Url::parse("http://upstream.invalid/").ok()?;
    let target = base.join(target).ok()?;
    let mut next = url::form_urlencoded::Serializer::new(String::new());
    next.extend_pairs(target.query_pairs().filter(|(key, _)| key != "ns"));
    if let Some(namespace) = &query.namespace {
        next.append_pair("ns", namespace);
    }
    HeaderValue::try_from(format!("<{path}?{}>; rel=\"next\"", next.finish())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_the_next_page_leads_back_here() {
        let query = Query { namespace: Some("docker.io".to_owned()), ..Query::default() };
        for link in [
            "</v2/library/a/tags/list?last=b&n=2>; rel=\"next\"",
            "<https://registry.example/v2/library/a/tags/list?last=b&n=2>; rel=next",
            "<?last=b&n=2>;rel=\"next\"",
        ] {
            let next = next_link("/v2/docker.io/a/tags/list", &query, link).expect(link);
            assert_eq!(next, "</v2/docker.io/a/tags/list?last=b&n=2&ns=docker.io>; rel=\"next\"");
        }
        assert_eq!(next_link("/p", &query, "<x>; rel=\"prev\""), None);
        assert_eq!(next_link("/p", &query, "nonsense"), None);
    }

    #[test]
    fn pages_are_kept_by_what_they_mean_and_no_nonsense_is() {
        let page = |n: Option<&str>, last: Option<&str>| {
            let query = Query { n: n.map(str::to_owned), last: last.map(str::to_owned), ..Query::default() };
            match tags_page(&query) {
                (Page::Tags { query }, is_kept) => (query, is_kept),
                (Page::Referrers { .. }, _) => panic!("another list"),
            }
        };
        let long = "a".repeat(129);
        for (n, last, query, is_kept) in [
            (None, None, "", true),
            (Some("5"), None, "n=5", true),
            (Some("0005"), Some("v1.0_x-y"), "n=5&last=v1.0_x-y", true),
            (Some("10000"), Some(""), "n=10000&last=", true),
            (Some("10001"), None, "n=10001", false),
            (Some("+5"), None, "n=%2B5", false),
            (Some(""), None, "n=", false),
            (Some("-1"), None, "n=-1", false),
            (Some("99999999999999999999"), None, "n=99999999999999999999", false),
            (None, Some("a b"), "last=a+b", false),
            (None, Some(&long), &format!("last={long}"), false),
        ] {
            assert_eq!(page(n, last), (query.to_owned(), is_kept), "{n:?} {last:?}");
        }
        assert!(is_media_type("application/vnd.example.sbom+json") && is_media_type(""));
        assert!(!is_media_type("a b") && !is_media_type("a;b") && !is_media_type(&"a".repeat(256)));
    }
}
