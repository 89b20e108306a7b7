//! `GET /api/upstreams`: the state of the upstreams and what is left of their rate limits.

use std::sync::Arc;
use std::time::Duration;

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
    /// `ready`; `limited`: Larder sends no request that counts as a pull; `resting`: Larder sends no request at all.
    state: &'static str,
    /// Why it is not `ready`.
    reason: Option<String>,
    /// Seconds until it is `ready`.
    retry_after: Option<f64>,
    quota: Option<Quota>,
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
    let (state, (reason, retry_after)) = match (status.resting, status.pulls_resting) {
        (Some(rest), _) => ("resting", told(rest)),
        (None, Some(rest)) => ("limited", told(rest)),
        (None, None) => ("ready", (None, None)),
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
        quota: status.budget.map(|budget| Quota {
            limit: budget.limit,
            remaining: budget.remaining,
            window: budget.window.map(|window| window.as_secs()),
            age: now.saturating_duration_since(budget.read_at).as_secs(),
            source: budget.source,
        }),
    }
}
