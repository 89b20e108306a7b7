//! The pages of the API that manage the cache.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::door::Person;
use super::problem::{ErrorBody, Problem};
use super::reference::ImageReference;
use crate::clock::Instant;
use crate::failure::FailureKind;
use crate::ops::{self, Images, Named, OpsError, PinDone, Pins, PurgeDone};
use crate::services::Services;
use crate::text::one_line;
use crate::upkeep::scrub::Report;

/// How often a verification reports its progress.
const PROGRESS: Duration = Duration::from_millis(500);
/// How long the last line of a verification waits for a caller that does not read.
const LAST_LINE: Duration = Duration::from_secs(60);

impl From<OpsError> for Problem {
    fn from(error: OpsError) -> Self {
        let status = match error {
            OpsError::Wrong(_) => StatusCode::BAD_REQUEST,
            OpsError::Unknown(_) | OpsError::Absent(..) => StatusCode::NOT_FOUND,
            OpsError::Busy | OpsError::Carrying => StatusCode::CONFLICT,
            OpsError::Archive(_) | OpsError::NothingOf(_) => StatusCode::UNPROCESSABLE_ENTITY,
            OpsError::TooLarge(_) => StatusCode::INSUFFICIENT_STORAGE,
            OpsError::Failed(ref failure) if failure.kind == FailureKind::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            OpsError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

/// The page of a list that a query asks for.
#[derive(Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many; a number beyond 10,000 counts as 10,000.
    #[param(minimum = 0)]
    n: usize,
    /// The `next` of the page before.
    last: String,
}

impl Default for Page {
    fn default() -> Self {
        Self { n: ops::PAGE, last: String::new() }
    }
}

/// What is cached
///
/// The images whose manifest is cached, in the order of their references.
#[utoipa::path(get, path = "/api/images", tag = "cache", params(Page),
    responses((status = 200, body = Images), (status = 400, body = ErrorBody)))]
pub async fn images(State(services): State<Arc<Services>>, page: QueryOf<Page>) -> Result<Json<Images>, Problem> {
    let Query(Page { n, last }) = page.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    Ok(Json(ops::images(&services.cache, &last, n).await?))
}

/// Remove what is cached
///
/// Everything, or what `reference` or `repository` names.
#[utoipa::path(delete, path = "/api/cache", tag = "cache",
    params(("reference" = Option<ImageReference>, Query, description = "a name, `NAME:TAG` or `NAME@DIGEST`"),
        ("repository" = Option<ImageReference>, Query, description = "the prefix of a repository")),
    responses((status = 200, body = PurgeDone), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn purge(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    RawQuery(query): RawQuery,
) -> Result<Json<PurgeDone>, Problem> {
    let which = only_parameter(query.as_deref(), &["reference", "repository"])?;
    let (rules, own) = (services.access.rules(), services.own_names());
    let named = Named { cache: &services.cache, routing: &rules.routing, own: &own };
    let purged = ops::purge(&named, which.as_deref()).await;
    let what = one_line(which.as_deref().unwrap_or("everything"));
    match &purged {
        Ok(PurgeDone { objects, bytes, .. }) => tracing::info!(by = %person, what, objects, bytes, "purged"),
        Err(error) => tracing::info!(by = %person, what, %error, "not purged"),
    }
    Ok(Json(purged?))
}

/// The pins
#[utoipa::path(get, path = "/api/pins", tag = "cache", responses((status = 200, body = Pins)))]
pub async fn pins(State(services): State<Arc<Services>>) -> Result<Json<Pins>, Problem> {
    Ok(Json(ops::pins(&services.cache).await?))
}

/// Pin an image
///
/// It is never evicted. It need not be cached yet.
#[utoipa::path(put, path = "/api/pins", tag = "cache", params(("reference" = ImageReference, Query, description = "`NAME:TAG` or `NAME@DIGEST`")),
    responses((status = 200, body = PinDone), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn pin(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    RawQuery(query): RawQuery,
) -> Result<Json<PinDone>, Problem> {
    set_pin(&services, &person, query.as_deref(), true).await
}

/// Take a pin away
#[utoipa::path(delete, path = "/api/pins", tag = "cache", params(("reference" = ImageReference, Query, description = "`NAME:TAG` or `NAME@DIGEST`")),
    responses((status = 200, body = PinDone), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn unpin(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    RawQuery(query): RawQuery,
) -> Result<Json<PinDone>, Problem> {
    set_pin(&services, &person, query.as_deref(), false).await
}

async fn set_pin(
    services: &Services,
    person: &Person,
    query: Option<&str>,
    is_pinned: bool,
) -> Result<Json<PinDone>, Problem> {
    let reference = pinned_reference(query)?;
    let (rules, own) = (services.access.rules(), services.own_names());
    let named = Named { cache: &services.cache, routing: &rules.routing, own: &own };
    let done = ops::set_pin(&named, &reference, is_pinned).await?;
    let message = if is_pinned { "pinned" } else { "unpinned" };
    tracing::info!(by = %person, what = done.reference, changed = done.changed, "{message}");
    Ok(Json(done))
}

fn pinned_reference(query: Option<&str>) -> Result<String, Problem> {
    let missing = || Problem::new(StatusCode::BAD_REQUEST, "say which image with `?reference=NAME:TAG`");
    only_parameter(query, &["reference"])?.ok_or_else(missing)
}

/// Returns the value of the only parameter of a query. An unknown parameter is refused: a misspelt one must not change
/// everything.
pub fn only_parameter(query: Option<&str>, known: &[&str]) -> Result<Option<String>, Problem> {
    let bad = |message: String| Err(Problem::new(StatusCode::BAD_REQUEST, message));
    let names = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
    let verb = if known.len() > 1 { "are" } else { "is" };
    let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match (pairs.next(), pairs.next()) {
        (None, _) => Ok(None),
        (Some((key, _)), _) if !known.contains(&&*key) => {
            bad(format!("unknown parameter `{key}`; there {verb} {names}"))
        }
        (Some((key, value)), None) if value.is_empty() => bad(format!("`{key}` is empty")),
        (Some((_, value)), None) => Ok(Some(value.into_owned())),
        (Some(_), Some(_)) => bad(format!("one parameter at a time: {names}")),
    }
}

/// The query of a verification.
#[derive(Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Verify {
    /// Whether to remove damaged objects.
    repair: bool,
}

pub type QueryOf<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

/// Compare every stored byte with its digest
///
/// Answers with a line of JSON now and then, and with the whole report as the last line. The verification ends when the
/// caller leaves.
#[utoipa::path(post, path = "/api/verify", tag = "cache", params(Verify), responses(
    (status = 200, description = "reports, each a line", content_type = "application/x-ndjson", body = String),
    (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn verify(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    query: QueryOf<Verify>,
) -> Result<Response, Problem> {
    let Query(Verify { repair }) = query.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    tracing::info!(by = %person, repair, "verifying what is stored");
    let (lines, told) = mpsc::channel::<Report>(2);
    let telling = lines.clone();
    let mut last = Instant::now();
    let progress = move |report: &Report| {
        if last.elapsed() >= PROGRESS {
            last = Instant::now();
            // A caller that reads slowly misses a line.
            let _ = telling.try_send(report.without_names());
        }
        !telling.is_closed()
    };
    let (begun, begins) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        match ops::verify(&services.cache, repair, begun, progress).await {
            Ok(report) => {
                if lines.send_timeout(report, LAST_LINE).await.is_err() {
                    tracing::info!("a verification ended, and its caller has left");
                }
            }
            Err(error) => tracing::warn!(%error, "a verification did not come to its end"),
        }
    });
    let body = stream::unfold(told, |mut told| async move {
        let mut line = serde_json::to_vec(&told.recv().await?).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), told))
    });
    // The answer waits until the verification has begun: later it could not say why it has not.
    begins.await.map_err(|_| Problem::from(OpsError::Busy))?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}
