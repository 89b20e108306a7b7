//! The catalog: names with cached content.

use std::sync::Arc;

use http::header::LINK;
use http::{HeaderValue, Response};
use serde_json::json;

use super::query::Query;
use super::respond;
use crate::access::{Caller, Refusal, Wanted};
use crate::auth::Identity;
use crate::body::Body;
use crate::cache::Cache;
use crate::routing::Repository;

/// Most names on one page; a client may ask for fewer.
const CATALOG_PAGE: usize = 1000;

/// Answers `/v2/_catalog`: the names with cached content, by their local path.
pub async fn catalog(
    cache: &Cache,
    query: &Query,
    caller: &Caller,
    identity: &Identity,
) -> Result<Response<Body>, Refusal> {
    let asked = query.n.as_deref().and_then(|n| n.parse().ok()).unwrap_or(CATALOG_PAGE);
    let count = asked.min(CATALOG_PAGE);
    let last = query.last.clone().unwrap_or_default();
    // Where clients' own credentials decide, nobody else may see the names. Repositories that are no longer configured
    // are not listed.
    let may_see = |repository: &&Arc<Repository>| {
        repository.config.client_consent.is_none() && identity.may_pull(&repository.config.allow, caller.has_logins())
    };
    let shown = caller.rules.routing.repositories().iter().filter(may_see);
    let repositories = shown.map(|repository| repository.prefix().to_owned()).collect();
    let names = cache.catalog(repositories, last, count + 1).await.map_err(Refusal::of(Wanted::Name))?;
    let page = &names[..count.min(names.len())];
    let mut response = respond::json(json!({ "repositories": page }).to_string().into(), "application/json");
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
