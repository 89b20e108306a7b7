//! `GET /api/upstreams`: the state of the upstreams and what is left of their rate limits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time::rfc3339;
use crate::clock::Instant;
use crate::failure::Failure;
use crate::routing::Repository;
use crate::services::Services;
use crate::upstream::Upstream;

/// The answer to `GET /api/upstreams`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Upstreams {
    pub upstreams: Vec<UpstreamEntry>,
}

/// One upstream of a repository.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct UpstreamEntry {
    pub repository: String,
    /// Host and port.
    pub upstream: String,
    pub url: String,
    /// The account by which it is asked: a user name, `anonymous`, or a credential helper.
    pub account: String,
    /// `unknown`: it was not asked yet; `ready`: it answered; `failing`: it failed when it was last asked; `limited`:
    /// Larder sends no request that counts as a pull; `resting`: Larder sends no request at all.
    pub state: String,
    /// Why it is `failing`, `limited` or `resting`.
    pub reason: Option<String>,
    /// Seconds until Larder sends requests again.
    pub retry_after: Option<f64>,
    pub last_success: Option<String>,
    pub last_failure: Option<LastFailure>,
    /// Of the last 100 requests, the share that failed.
    pub failed_share: Option<f64>,
    /// Of the last 100 requests, the mean time until the head of the answer.
    pub mean_head_ms: Option<f64>,
    pub quota: Option<Quota>,
}

/// When and why an upstream failed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LastFailure {
    pub at: String,
    pub reason: String,
}

/// A rate limit, as the upstream stated it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    pub limit: u64,
    pub remaining: u64,
    /// In seconds.
    pub window: Option<u64>,
    /// The account or address whose pulls the upstream counts.
    pub source: Option<String>,
    /// Seconds since the upstream stated this.
    pub age: u64,
}

/// The upstreams
///
/// Their health, and what is left of their rate limits.
#[utoipa::path(get, path = "/api/upstreams", tag = "instance", responses((status = 200, body = Upstreams)))]
pub async fn show(State(services): State<Arc<Services>>) -> Json<Upstreams> {
    let routing = services.access.rules().routing.clone();
    Json(Upstreams { upstreams: routing.repositories().iter().flat_map(|repository| of(repository)).collect() })
}

/// Returns the upstreams of a repository, in the order in which they are asked.
pub fn of(repository: &Repository) -> Vec<UpstreamEntry> {
    let prefix = repository.prefix();
    repository.upstreams.iter().map(|upstream| entry(prefix.to_owned(), upstream)).collect()
}

fn entry(repository: String, upstream: &Upstream) -> UpstreamEntry {
    let status = upstream.status();
    let told = |(left, why): (Duration, Failure)| (Some(why.message().to_owned()), Some(left.as_secs_f64()));
    let lately = status.lately;
    let last_failure =
        lately.last_failure.map(|(at, why)| LastFailure { at: rfc3339(at), reason: why.message().to_owned() });
    let (state, (reason, retry_after)) = match (status.resting, status.pulls_resting, lately.is_up) {
        (Some(rest), ..) => ("resting", told(rest)),
        (None, Some(rest), _) => ("limited", told(rest)),
        (None, None, Some(true)) => ("ready", (None, None)),
        (None, None, Some(false)) => ("failing", (last_failure.as_ref().map(|last| last.reason.clone()), None)),
        (None, None, None) => ("unknown", (None, None)),
    };
    let url = &upstream.config().url;
    let now = Instant::now();
    UpstreamEntry {
        repository,
        upstream: upstream.label().to_owned(),
        url: format!("{}{}", url.origin, url.namespace),
        account: status.account,
        state: state.to_owned(),
        reason,
        retry_after,
        last_success: lately.last_success.map(rfc3339),
        last_failure,
        failed_share: lately.failed_share,
        mean_head_ms: lately.mean_head.map(|mean| mean.as_secs_f64() * 1000.0),
        quota: status.budget.map(|budget| Quota {
            limit: budget.limit,
            remaining: budget.remaining,
            window: budget.window.map(|window| window.as_secs()),
            age: now.saturating_duration_since(budget.read_at).as_secs(),
            source: budget.source,
        }),
    }
}
