//! `GET /api/fills`: what is on its way into the cache.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cache::Progress;
use crate::routing::Routing;
use crate::services::Services;

/// The transfers that run now, the oldest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct FillList {
    pub fills: Vec<FillEntry>,
}

/// One object on its way into the cache.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct FillEntry {
    /// The digest; at the proxy door, for other URLs, a key that stands for the URL.
    pub digest: String,
    /// The repository for which it was begun.
    pub repository: String,
    /// `opening`: no upstream has answered yet; `growing`: bytes arrive; `passing`: they pass without being stored;
    /// `storing`: all bytes are there and verified.
    pub phase: String,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes of the whole object, as soon as the upstream has said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes per second since it began.
    pub rate: f64,
    /// The upstream that answered last: its host and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Clients that read it.
    pub clients: usize,
    /// Whether it was begun before any client asked for it, behind a pull of its image (`prefetch`).
    pub prefetch: bool,
    /// Seconds since it began.
    pub seconds: f64,
}

/// The running transfers
#[utoipa::path(get, path = "/api/fills", tag = "pulls", responses((status = 200, body = FillList)))]
pub async fn show(State(services): State<Arc<Services>>) -> Json<FillList> {
    Json(list(&services))
}

/// Returns the running transfers.
pub fn list(services: &Services) -> FillList {
    let routing = services.access.rules().routing.clone();
    FillList { fills: services.cache.fills().iter().map(|progress| entry(progress, &routing)).collect() }
}

fn entry(progress: &Progress, routing: &Routing) -> FillEntry {
    let repository = routing.repositories().iter().find(|repository| repository.prefix() == progress.repository);
    let upstream = repository.zip(progress.source).and_then(|(found, at)| found.upstreams.iter().nth(at));
    let seconds = progress.since.as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = progress.present as f64 / seconds.max(0.001);
    FillEntry {
        digest: progress.key.to_string(),
        repository: progress.repository.clone(),
        phase: progress.phase.to_owned(),
        bytes: progress.present,
        size: progress.size,
        rate: rate.round(),
        upstream: upstream.map(|upstream| upstream.label().to_owned()),
        clients: progress.readers,
        prefetch: progress.is_behind,
        seconds: (seconds * 1000.0).round() / 1000.0,
    }
}
