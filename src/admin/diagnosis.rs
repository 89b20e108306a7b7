//! `GET /api/diagnosis`: what is wrong now, each with what to do.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::upstreams;
use crate::ops;
use crate::services::Services;

/// What is wrong now, the worst first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Diagnosis {
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// `error`: pulls fail or nothing is stored; `warning`: it serves, but not as it should.
    pub severity: String,
    /// What it is about, in one word.
    pub about: String,
    /// What is wrong, and what to do.
    pub text: String,
}

impl Finding {
    fn new(severity: &str, about: &str, text: String) -> Self {
        Self { severity: severity.to_owned(), about: about.to_owned(), text }
    }
}

/// What is wrong now
#[utoipa::path(get, path = "/api/diagnosis", tag = "instance", responses((status = 200, body = Diagnosis)))]
pub async fn show(State(services): State<Arc<Services>>) -> Json<Diagnosis> {
    Json(of(&services).await)
}

/// Returns what is wrong with an instance.
pub async fn of(services: &Services) -> Diagnosis {
    let mut findings = Vec::new();
    if let Err(failure) = services.cache.check().await {
        findings.push(Finding::new("error", "cache", failure.message().to_owned()));
    }
    findings.extend(of_upstreams(services));
    findings.extend(of_bucket(services));
    findings.extend(of_disk(services));
    findings.extend(
        ops::warnings(&services.cache, &services.metrics)
            .into_iter()
            .map(|text| Finding::new("warning", "process", text)),
    );
    let configuration = services.configuration();
    findings.extend(configuration.refused.iter().map(|error| {
        Finding::new(
            "warning",
            "configuration",
            format!("the changed configuration cannot be used, and the one before stays in force: {error}"),
        )
    }));
    findings
        .extend(configuration.warnings.iter().map(|warning| Finding::new("warning", "configuration", warning.clone())));
    findings.sort_by_key(|finding| finding.severity != "error");
    Diagnosis { findings }
}

fn of_upstreams(services: &Services) -> Vec<Finding> {
    let routing = services.access.rules().routing.clone();
    let mut findings = Vec::new();
    for repository in routing.repositories() {
        let upstreams = upstreams::of(repository);
        let are_all_down = upstreams.iter().all(|upstream| matches!(upstream.state.as_str(), "resting" | "failing"));
        for upstream in upstreams {
            let why = upstream.reason.unwrap_or_default();
            let (prefix, label) = (&upstream.repository, &upstream.upstream);
            let told = match upstream.state.as_str() {
                "limited" => format!(
                    "{label} limits the pulls of {prefix} ({why}): log in with `username` and `password_file` of this upstream for a higher limit, or wait; what is cached is served"
                ),
                "resting" | "failing" => format!(
                    "{label} of {prefix} fails: {why}; what is cached is served; try `curl -v {}/v2/` on this machine, and look at the upstream's credentials, proxy and certificates",
                    upstream.url.trim_end_matches('/')
                ),
                _ => continue,
            };
            let severity = if are_all_down && upstream.state != "limited" { "error" } else { "warning" };
            findings.push(Finding::new(severity, "upstream", told));
        }
    }
    findings
}

fn of_bucket(services: &Services) -> Option<Finding> {
    let (name, trouble) = services.cache.bucket_trouble()?;
    Some(Finding::new(
        "warning",
        "bucket",
        format!(
            "the bucket {name} fails: {trouble}; what is in cache.dir is served, the rest comes from the upstreams, and what comes in is uploaded when the bucket answers; `larder doctor` tries it"
        ),
    ))
}

fn of_disk(services: &Services) -> Option<Finding> {
    let metrics = &services.metrics;
    let (limit, used) = (metrics.cache_limit.get(), metrics.cache_bytes.get());
    let unstored = metrics.unstored.get();
    (unstored > 0).then(|| {
        Finding::new(
            "warning",
            "disk",
            format!(
                "{unstored} objects passed without being stored since the start: there was no room within cache.max_size and cache.min_free ({used} of {limit} bytes are used), or the disk failed; see the log"
            ),
        )
    })
}
