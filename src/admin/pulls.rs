//! `GET /api/pulls`: the last requests for content, each with its reason.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::pages::QueryOf;
use super::problem::{ErrorBody, Problem};
use super::time::{millis, rfc3339_millis};
use crate::observe::Pull;
use crate::observe::metrics::Kind;
use crate::observe::pulls::{Filter, KEPT};
use crate::services::Services;

/// Pulls on a page if the caller does not state a number.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// Which pulls to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// `hit`, `miss`, `stale`, `failed`, `refused`, or a status code.
    status: Option<String>,
    /// The prefix of a repository.
    repository: Option<String>,
    /// A part of the reference, the path, the client, the user, the user agent or the reason's word.
    q: Option<String>,
    /// Only pulls with a smaller `id`: the `next` of the page before.
    #[param(minimum = 0, maximum = 9_223_372_036_854_775_807_i64)]
    before: Option<u64>,
    /// How many, at most 1,000.
    #[param(minimum = 1, maximum = 1000)]
    n: u64,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { status: None, repository: None, q: None, before: None, n: PAGE as u64 }
    }
}

/// Some of the last pulls, the newest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PullList {
    pub pulls: Vec<PullEntry>,
    /// The value of `before` for the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// One request for content, and why it was answered as it was.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PullEntry {
    /// Counts up from the start of the process.
    pub id: u64,
    /// When it arrived; RFC 3339.
    pub at: String,
    /// The client's address.
    pub client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    pub user_agent: String,
    pub method: String,
    pub path: String,
    /// The repository's prefix; empty if there is none for it.
    pub repository: String,
    /// `manifest`, `blob`, `listing` or `other`.
    pub kind: String,
    /// As in `docker pull`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    pub status: u16,
    /// `hit`, `miss`, `stale`, `failed` or `refused`.
    pub cache: String,
    /// The reason in one word.
    pub reason: String,
    /// The reason as a sentence.
    pub why: String,
    /// What took most of the time, for a pull of more than a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<String>,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// Whether the body was sent to its end.
    pub complete: bool,
    /// Milliseconds until the head of the response.
    pub head_ms: f64,
    /// Milliseconds until its end.
    pub took_ms: f64,
    /// The number of its trace, if traces are sent to a collector and this one is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

impl From<&Pull> for PullEntry {
    fn from(pull: &Pull) -> Self {
        Self {
            id: pull.id,
            at: rfc3339_millis(pull.at),
            client: pull.client.to_string(),
            user: pull.user.clone(),
            user_agent: pull.user_agent.clone(),
            method: pull.method.to_string(),
            path: pull.path.clone(),
            repository: pull.repository().to_owned(),
            kind: pull.kind.map_or("other", Kind::as_str).to_owned(),
            reference: pull.reference.clone(),
            status: pull.status,
            cache: pull.outcome().to_owned(),
            reason: pull.reason.code().to_owned(),
            why: pull.reason.text(),
            slow: pull.slowness(),
            bytes: pull.bytes,
            complete: pull.is_complete,
            head_ms: millis(pull.head),
            took_ms: millis(pull.took),
            trace: pull.trace.clone(),
        }
    }
}

/// The last requests for content
///
/// The newest first, of the last 10,000, each with the reason for its answer. They are in memory: a restart forgets
/// them.
#[utoipa::path(get, path = "/api/pulls", tag = "pulls", params(Wanted),
    responses((status = 200, body = PullList), (status = 400, body = ErrorBody)))]
pub async fn show(State(services): State<Arc<Services>>, query: QueryOf<Wanted>) -> Result<Json<PullList>, Problem> {
    let Query(wanted) = query.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    Ok(Json(list(&services, wanted)?))
}

fn list(services: &Services, wanted: Wanted) -> Result<PullList, Problem> {
    let Wanted { status, repository, q, before, n } = wanted;
    let n = usize::try_from(n).ok().filter(|n| (1..=MAX_PAGE).contains(n));
    let n = n.ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "`n` is a number from 1 to 1000"))?;
    // The largest number that readers of the description know as int64.
    if before.is_some_and(|before| i64::try_from(before).is_err()) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "`before` is the `next` of another page"));
    }
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let filter = Filter { status: some(status), repository: some(repository), q: some(q), before };
    let pulls = services.metrics.pulls.list(&filter, n + 1);
    let next = (pulls.len() > n).then(|| pulls[n - 1].id);
    debug_assert!(pulls.len() <= KEPT);
    Ok(PullList { pulls: pulls.iter().take(n).map(|pull| PullEntry::from(&**pull)).collect(), next })
}
