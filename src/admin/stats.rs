//! `GET /api/cache/stats`: what the cache did since the process started, and what it holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::observe::Metrics;
use crate::observe::OTHER_HOSTS;
use crate::observe::metrics::{Kind, Outcome, RepositoryLabel, RequestLabels};
use crate::services::Services;

/// The answer to `GET /api/cache/stats`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    pub hits: u64,
    pub misses: u64,
    /// Old copies that were served because the upstream failed.
    pub stale: u64,
    pub stores: u64,
    /// Objects that passed uncached because there was no room or no working disk.
    pub unstored: u64,
    pub evictions: u64,
    /// Failures of the cache's own disk or index.
    pub errors: u64,
    /// Bytes of the stored objects.
    pub current_size: i64,
    pub objects: i64,
    /// Disk space of the index, its log included.
    pub index_size: i64,
    /// Hits and stale answers as a share of all answers; 0 before the first request.
    pub hit_rate: f64,
    #[serde(flatten)]
    pub traffic: Traffic,
    pub fills_running: i64,
    /// Requests that joined a transfer which another request had begun.
    pub coalesced: u64,
    pub repositories: BTreeMap<String, RepositoryStats>,
}

/// Bytes since the process started.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    pub bytes_served: u64,
    pub bytes_fetched: u64,
    /// Bytes of whole responses from the cache.
    pub bytes_saved: u64,
}

/// What a repository was asked for since the process started.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RepositoryStats {
    pub hits: u64,
    pub misses: u64,
    pub stale: u64,
    pub failed: u64,
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What the cache did since the process started, and what it holds
#[utoipa::path(get, path = "/api/cache/stats", tag = "cache", responses((status = 200, body = Stats)))]
pub async fn show(State(services): State<Arc<Services>>) -> Json<Stats> {
    Json(of(&services))
}

/// Returns the statistics of an instance.
pub fn of(services: &Services) -> Stats {
    let metrics = &services.metrics;
    let routing = services.access.rules().routing.clone();
    let others = services.proxy.is_open().then_some(OTHER_HOSTS);
    let repositories: BTreeMap<_, _> =
        routing.prefixes().chain(others).map(|prefix| (prefix.to_owned(), repository(metrics, prefix))).collect();
    let sum = |of: fn(&Traffic) -> u64| repositories.values().map(|repository| of(&repository.traffic)).sum();
    let traffic = Traffic {
        bytes_served: sum(|traffic| traffic.bytes_served),
        bytes_fetched: sum(|traffic| traffic.bytes_fetched),
        bytes_saved: sum(|traffic| traffic.bytes_saved),
    };

    let (hits, misses, stale) = (metrics.hits.get(), metrics.misses.get(), metrics.stale.get());
    let all = hits + misses + stale;
    #[allow(clippy::cast_precision_loss)]
    let hit_rate = if all == 0 { 0.0 } else { (hits + stale) as f64 / all as f64 };
    Stats {
        hits,
        misses,
        stale,
        stores: metrics.stores.get(),
        unstored: metrics.unstored.get(),
        evictions: metrics.evictions.get(),
        errors: metrics.errors.get(),
        current_size: metrics.cache_bytes.get(),
        objects: metrics.cache_objects.get(),
        index_size: metrics.index_bytes.get(),
        hit_rate,
        traffic,
        fills_running: metrics.fills_running.get(),
        coalesced: metrics.coalesced.get(),
        repositories,
    }
}

fn repository(metrics: &Metrics, prefix: &str) -> RepositoryStats {
    let count = |outcome: Outcome| {
        let kinds = [Kind::Blob, Kind::Manifest, Kind::Listing, Kind::Other];
        let labels =
            |kind: Kind| RequestLabels { repository: prefix.into(), kind: kind.as_str(), outcome: outcome.as_str() };
        kinds.map(|kind| metrics.requests.get(&labels(kind)).map_or(0, |counter| counter.get())).iter().sum()
    };
    let label = RepositoryLabel { repository: prefix.into() };
    let bytes = |of: &Family<RepositoryLabel, Counter>| of.get(&label).map_or(0, |counter| counter.get());
    RepositoryStats {
        hits: count(Outcome::Hit),
        misses: count(Outcome::Miss),
        stale: count(Outcome::Stale),
        failed: count(Outcome::Failed),
        traffic: Traffic {
            bytes_served: bytes(&metrics.bytes_served),
            bytes_fetched: bytes(&metrics.bytes_fetched),
            bytes_saved: bytes(&metrics.bytes_saved),
        },
    }
}
