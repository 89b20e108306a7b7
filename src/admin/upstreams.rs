//! `GET /api/upstreams`: the state of the upstreams and what is left of their rate limits.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::response::Json;
use serde::Serialize;

use crate::clock::Instant;
use crate::failure::Failure;
use crate::services::Services;
use crate::upstream::Upstream;

/// The answer to `GET /api/upstreams`.
#[derive(Serialize)]
pub struct Upstreams {
    upstreams: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    repository: String,
    /// Host and port.
    upstream: String,
    url: String,
    /// The account by which it is asked: a user name, `anonymous`, or a credential helper.
    account: String,
    /// `unknown`: it was not asked yet; `ready`: it answered; `failing`: it failed when it was last asked; `limited`:
    /// Larder sends no request that counts as a pull; `resting`: Larder sends no request at all.
    state: &'static str,
    /// Why it is `failing`, `limited` or `resting`.
    reason: Option<String>,
    /// Seconds until Larder sends requests again.
    retry_after: Option<f64>,
    last_success: Option<String>,
    last_failure: Option<LastFailure>,
    /// Of the last 100 requests, the share that failed.
    failed_share: Option<f64>,
    /// Of the last 100 requests, the mean time until the head of the answer.
    mean_head_ms: Option<f64>,
    quota: Option<Quota>,
}

#[derive(Serialize)]
struct LastFailure {
    at: String,
    reason: String,
}

#[derive(Serialize)]
struct Quota {
    limit: u64,
    remaining: u64,
    /// In seconds.
    window: Option<u64>,
    /// The account or address whose pulls the upstream counts.
    source: Option<String>,
    /// Seconds since the upstream stated this.
    age: u64,
}

/// Answers `GET /api/upstreams`.
pub async fn show(State(services): State<Arc<Services>>) -> Json<Upstreams> {
    let routing = services.access.rules().routing.clone();
    let of = |repository: &Arc<crate::routing::Repository>| {
        let prefix = repository.prefix().to_owned();
        repository.upstreams.iter().map(move |upstream| entry(prefix.clone(), upstream)).collect::<Vec<_>>()
    };
    Json(Upstreams { upstreams: routing.repositories().iter().flat_map(of).collect() })
}

fn entry(repository: String, upstream: &Upstream) -> Entry {
    let status = upstream.status();
    let told = |(left, why): (Duration, Failure)| (Some(why.message().to_owned()), Some(left.as_secs_f64()));
    let lately = status.lately;
    let last_failure =
        lately.last_failure.map(|(at, why)| LastFailure { at: time(at), reason: why.message().to_owned() });
    let (state, (reason, retry_after)) = match (status.resting, status.pulls_resting, lately.is_up) {
        (Some(rest), ..) => ("resting", told(rest)),
        (None, Some(rest), _) => ("limited", told(rest)),
        (None, None, Some(true)) => ("ready", (None, None)),
        (None, None, Some(false)) => ("failing", (last_failure.as_ref().map(|last| last.reason.clone()), None)),
        (None, None, None) => ("unknown", (None, None)),
    };
    let url = &upstream.config().url;
    let now = Instant::now();
    Entry {
        repository,
        upstream: upstream.label().to_owned(),
        url: format!("{}{}", url.origin, url.namespace),
        account: status.account,
        state,
        reason,
        retry_after,
        last_success: lately.last_success.map(time),
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

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
