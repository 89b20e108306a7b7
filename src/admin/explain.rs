//! `GET /api/explain` and `POST /api/refresh`: what would happen to a pull, and asking the upstream now.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::door::Person;
use super::pages::only_parameter;
use super::problem::{ErrorBody, Problem};
use super::pulls::PullEntry;
use super::reference::ImageReference;
use super::time::rfc3339;
use super::upstreams::{self, UpstreamEntry};
use crate::config::Limit;
use crate::failure::Failure;
use crate::observe::pulls::Filter;
use crate::ops;
use crate::registry::explain::{Explained, Next};
use crate::services::Services;

/// The last pulls that an explanation shows.
const LAST: usize = 5;

/// What would happen if an image were pulled now, and why.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The image, as in `docker pull`, with the repository that it was found in.
    pub reference: String,
    pub repository: String,
    /// The name as the upstreams know it.
    pub name: String,
    /// `served`: from the cache, without a question; `checked`: the upstream is asked first whether the tag has
    /// changed; `fetched`: from the upstream; `refused`: the upstream's last answer is repeated for a moment.
    pub next: String,
    /// What would happen, as a sentence.
    pub text: String,
    /// The reason in one word, where it is known before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The cached copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<CachedCopy>,
    /// The upstreams in the order in which they are asked.
    pub upstreams: Vec<UpstreamEntry>,
    /// The upstream that would be asked next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_next: Option<String>,
    /// The last pulls of it, the newest first.
    pub pulls: Vec<PullEntry>,
}

/// A cached manifest.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CachedCopy {
    pub digest: String,
    pub media_type: String,
    /// Bytes of the manifest.
    pub size: u64,
    /// When it was stored; RFC 3339.
    pub stored_at: String,
    /// When the upstream last confirmed the tag; RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<String>,
}

/// The result of asking an upstream about an image.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Refreshed {
    pub reference: String,
    /// Whether the upstream had something that the cache did not have.
    pub changed: bool,
    /// The reason in one word.
    pub reason: String,
    /// What was found, as a sentence.
    pub text: String,
}

/// Why a pull would be answered as it would
///
/// Asks no upstream.
#[utoipa::path(get, path = "/api/explain", tag = "pulls",
    params(("reference" = ImageReference, Query, description = "an image as in `docker pull`")),
    responses((status = 200, body = Explanation), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn show(
    State(services): State<Arc<Services>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Explanation>, Problem> {
    let named = named(&services, query.as_deref())?;
    let explained = services.explain(&named.target, &named.reference).await;
    Ok(Json(explanation(&services, &named, &explained)))
}

/// Ask the upstream about a tag now
///
/// Whatever its age; a newer manifest is fetched.
#[utoipa::path(post, path = "/api/refresh", tag = "cache",
    params(("reference" = ImageReference, Query, description = "an image as in `docker pull`")),
    responses((status = 200, body = Refreshed), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody)))]
pub async fn refresh(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    RawQuery(query): RawQuery,
) -> Result<Json<Refreshed>, Problem> {
    let named = named(&services, query.as_deref())?;
    let reason = services.refresh(&named.target, &named.reference).await;
    let reference = named.written();
    match &reason {
        Ok(reason) => tracing::info!(by = %person, what = reference, reason = reason.code(), "refreshed"),
        Err(failure) => tracing::info!(by = %person, what = reference, %failure, "not refreshed"),
    }
    let reason = reason.map_err(failed)?;
    let changed = reason.outcome() == Some(crate::observe::metrics::Outcome::Miss);
    Ok(Json(Refreshed { reference, changed, reason: reason.code().to_owned(), text: reason.text() }))
}

fn failed(failure: Failure) -> Problem {
    use crate::failure::FailureKind;
    let status = match failure.kind {
        FailureKind::NotFound => StatusCode::NOT_FOUND,
        FailureKind::Busy | FailureKind::Unread => StatusCode::SERVICE_UNAVAILABLE,
        FailureKind::NoRoom | FailureKind::Storage => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_GATEWAY,
    };
    Problem::new(status, failure.message())
}

fn named(services: &Services, query: Option<&str>) -> Result<ops::Located, Problem> {
    let missing = || Problem::new(StatusCode::BAD_REQUEST, "say which image with `?reference=NAME:TAG`");
    let text = only_parameter(query, &["reference"])?.ok_or_else(missing)?;
    let (rules, own) = (services.access.rules(), services.own_names());
    Ok(ops::located(&rules.routing, &own, &text)?)
}

/// Explains an image that is named as in a pull.
pub async fn explained(services: &Services, reference: &str) -> Result<Explanation, Problem> {
    let named = ops::located(&services.access.rules().routing, &services.own_names(), reference)?;
    let explained = services.explain(&named.target, &named.reference).await;
    Ok(explanation(services, &named, &explained))
}

fn explanation(services: &Services, named: &ops::Located, explained: &Explained) -> Explanation {
    let repository = &named.target.repository;
    let upstreams = upstreams::of(repository);
    let asked_next = upstreams.iter().find(|upstream| upstream.state != "resting").or(upstreams.first());
    let asked_next = asked_next.map(|upstream| upstream.upstream.clone());
    let from = asked_next.clone().unwrap_or_else(|| "the upstream".to_owned());
    let (next, text, reason) = match &explained.next {
        Next::Served(reason) => ("served", reason.text(), Some(reason.code().to_owned())),
        Next::Checked { stands_in } => ("checked", checked(&from, *stands_in), None),
        Next::Fetched => ("fetched", format!("it is not in the cache: it would be fetched from {from}"), None),
        Next::Remembered(failure) => {
            let text = format!("the upstream answered a moment ago, and is not asked again yet: {}", failure.message());
            ("refused", text, Some(failure.kind.as_str().to_owned()))
        }
    };
    let reference = named.written();
    let filter = Filter { q: Some(reference.clone()), ..Filter::default() };
    let pulls = services.metrics.pulls.list(&filter, LAST);
    Explanation {
        repository: repository.prefix().to_owned(),
        name: named.target.name.to_string(),
        next: next.to_owned(),
        text,
        reason,
        cached: explained.cached.as_ref().map(|copy| CachedCopy {
            digest: copy.manifest.digest.to_string(),
            media_type: copy.manifest.media_type.as_str().to_owned(),
            size: copy.manifest.bytes.len() as u64,
            stored_at: rfc3339(copy.manifest.stored_at.to_system_time()),
            checked_at: copy.checked_at.map(rfc3339),
        }),
        upstreams,
        asked_next,
        pulls: pulls.iter().map(|pull| PullEntry::from(&**pull)).collect(),
        reference,
    }
}

fn checked(from: &str, stands_in: Option<Limit>) -> String {
    let whole = |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs())).to_string();
    let otherwise = match stands_in {
        None => "if it fails, so does the pull (stale_if_error)".to_owned(),
        Some(Limit::Unlimited) => "if it fails, the old copy is served".to_owned(),
        Some(Limit::Span(span)) => {
            format!("if it fails, the old copy is served, for another {} (stale_if_error)", whole(span))
        }
    };
    format!(
        "it is in the cache, and past max_age: {from} would be asked by HEAD whether the tag has changed; if it has not, the copy is served; {otherwise}"
    )
}
