//! `GET /api/replicas`: the replicas that behave as one cache with this one, and what each of them does.
//!
//! Each tells of itself ([`report`]), over the listener on which only replicas are let in. All are asked at once, and whoever
//! does not answer within [`PATIENCE`] is shown without an answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use bytes::Bytes;
use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::fills::{self, FillEntry};
use super::problem::{ErrorBody, Problem};
use super::stats;
use super::time::rfc3339;
use crate::clock::{self, Instant};
use crate::cluster::Cluster;
use crate::index::{Life, Replica};
use crate::oci::Digest;
use crate::services::Services;

/// How long all replicas together have for their answers, and the index for saying who is alive.
const PATIENCE: Duration = Duration::from_millis(800);
/// Replicas that are asked at once.
const AT_ONCE: usize = 64;
/// Most bytes of an answer.
const MOST_BYTES: usize = 64 << 10;
/// Most running transfers that a replica tells of.
const FILLS: usize = 20;

/// The answer to `GET /api/replicas`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Replicas {
    /// In the order of their addresses; none without `[cluster]`.
    pub replicas: Vec<ReplicaEntry>,
}

/// A replica that is alive.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ReplicaEntry {
    /// The URL by which the others reach it.
    pub address: String,
    /// `this`: the one that answers; `ready`: another that is asked for content; `silent`: another that is said to be alive,
    /// and does not answer; `unreachable`: another that could not be connected to a moment ago.
    pub state: String,
    /// Tells its process from others at the same address.
    pub id: String,
    /// Until when it counts as alive, by the database's clock, RFC 3339; it says so again every three seconds. Absent while
    /// the database is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alive_until: Option<String>,
    /// How many seconds that was ahead when the database was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alive_for: Option<f64>,
    /// What it tells of itself; absent if it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a replica tells of itself.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Report {
    pub version: String,
    /// Seconds since its process started.
    pub uptime: f64,
    /// When that was, RFC 3339, by the clock of the replica that was asked.
    #[serde(default)]
    pub since: String,
    /// Stored objects, and their bytes.
    pub objects: u64,
    pub bytes: u64,
    /// Most bytes that they may take; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Free bytes of the filesystem.
    pub free: u64,
    /// These since the process started, as in `GET /api/cache/stats`.
    pub hits: u64,
    pub misses: u64,
    pub stale: u64,
    pub bytes_served: u64,
    pub bytes_fetched: u64,
    /// Bytes of content that came from other replicas.
    pub bytes_from_replicas: u64,
    /// The running transfers, the oldest first, at most 20, as in `GET /api/fills`.
    pub fills: Vec<FillEntry>,
    /// How many more there are.
    pub more_fills: usize,
    /// Whether it has the object that was asked for, in its cache directory or in the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds: Option<bool>,
}

#[derive(Debug, Deserialize, IntoParams)]
pub struct Asked {
    /// An object, by its digest: each replica says whether it has it.
    digest: Option<String>,
}

/// The replicas that are alive, and what each of them does
#[utoipa::path(get, path = "/api/replicas", tag = "instance", params(Asked),
    responses((status = 200, body = Replicas), (status = 400, body = ErrorBody)))]
pub async fn show(
    State(services): State<Arc<Services>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Replicas>, Problem> {
    let wrong = |message: String| Problem::new(StatusCode::BAD_REQUEST, message);
    let Query(Asked { digest }) = asked.map_err(|error| wrong(error.body_text()))?;
    let digest = digest.map(|digest| digest.parse::<Digest>().map_err(|error| wrong(error.to_string())));
    Ok(Json(list(&services, digest.transpose()?).await))
}

/// Asks all replicas what they do, and whether they have an object. Takes about [`PATIENCE`] at most.
pub async fn list(services: &Services, digest: Option<Digest>) -> Replicas {
    let Some(cluster) = &services.cluster else {
        return Replicas { replicas: Vec::new() };
    };
    let (lives, told, mine) = tokio::join!(lives(services), told(cluster, digest), report(services, digest));
    let mut entries: Vec<_> = told.into_iter().map(|(replica, rests, told)| another(replica, rests, told)).collect();
    entries.push(entry(cluster.me(), "this", Ok(mine)));
    for entry in &mut entries {
        if let Some(life) = lives.iter().find(|life| life.replica.address == entry.address) {
            entry.alive_until = Some(rfc3339(life.until.to_system_time()));
            entry.alive_for = Some(life.left.as_secs_f64());
        }
    }
    entries.sort_by(|one, other| one.address.cmp(&other.address));
    Replicas { replicas: entries }
}

/// Returns what this replica tells of itself.
pub async fn report(services: &Services, digest: Option<Digest>) -> Report {
    let (stats, metrics) = (stats::of(services), &services.metrics);
    let mut fills = fills::list(services).fills;
    let more_fills = fills.len().saturating_sub(FILLS);
    fills.truncate(FILLS);
    let of = |gauge: i64| u64::try_from(gauge).unwrap_or(0);
    let limit = Some(of(metrics.cache_limit.get())).filter(|limit| *limit > 0);
    let uptime = services.begun.elapsed();
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: uptime.as_secs_f64(),
        since: since(uptime),
        objects: of(stats.objects),
        bytes: of(stats.current_size),
        limit,
        free: of(metrics.disk_free.get()),
        hits: stats.hits,
        misses: stats.misses,
        stale: stats.stale,
        bytes_served: stats.traffic.bytes_served,
        bytes_fetched: stats.traffic.bytes_fetched,
        bytes_from_replicas: metrics.replica_bytes_received.get(),
        fills,
        more_fills,
        holds: holds(services, digest).await,
    }
}

/// Returns the report as it is sent to another replica.
pub async fn report_for_replicas(services: &Services, digest: Option<Digest>) -> Vec<u8> {
    // Nothing in it can fail to be written.
    serde_json::to_vec(&report(services, digest).await).unwrap_or_default()
}

/// Returns whether an object is here, as far as the index says so in time.
async fn holds(services: &Services, digest: Option<Digest>) -> Option<bool> {
    let digest = digest?;
    let index = services.cache.index();
    let stored = tokio::time::timeout(PATIENCE / 2, index.stored_of(vec![digest])).await;
    Some(stored.ok()?.ok()?.contains(&digest))
}

async fn lives(services: &Services) -> Vec<Life> {
    let index = services.cache.index();
    let lives = tokio::time::timeout(PATIENCE, index.lives()).await;
    lives.ok().and_then(Result::ok).unwrap_or_default()
}

type Told = Result<Report, String>;

/// Asks all others, each for what it does.
async fn told(cluster: &Arc<Cluster>, digest: Option<Digest>) -> Vec<(Replica, bool, Told)> {
    let (deadline, others) = (Instant::now() + PATIENCE, cluster.others());
    let ask = |(replica, _): &(Replica, bool)| ask(cluster.clone(), replica.clone(), digest, deadline).boxed();
    let questions: Vec<_> = others.iter().map(ask).collect();
    let asked = stream::iter(questions).buffer_unordered(AT_ONCE);
    let asked = asked.take_until(tokio::time::sleep_until(deadline + PATIENCE / 8));
    let mut answers: HashMap<Replica, Told> = asked.collect().await;
    let silent = || Err("it does not answer".to_owned());
    let one = |(replica, rests): (Replica, bool)| {
        let told = answers.remove(&replica).unwrap_or_else(silent);
        (replica, rests, told)
    };
    others.into_iter().map(one).collect()
}

async fn ask(cluster: Arc<Cluster>, replica: Replica, digest: Option<Digest>, deadline: Instant) -> (Replica, Told) {
    let told = cluster.report(&replica, digest.as_ref(), deadline, MOST_BYTES).await;
    let told = told.map_err(|failure| failure.message().to_owned());
    let read = |bytes: Bytes| serde_json::from_slice(&bytes).map_err(|error| format!("it answers strangely: {error}"));
    (replica, told.and_then(read))
}

fn another(replica: Replica, rests: bool, told: Told) -> ReplicaEntry {
    let state = match &told {
        Ok(_) => "ready",
        Err(_) if rests => "unreachable",
        Err(_) => "silent",
    };
    entry(&replica, state, told)
}

fn entry(replica: &Replica, state: &str, told: Told) -> ReplicaEntry {
    let (report, problem) = match told {
        // Its own clock may be another one.
        Ok(report) => (Some(Report { since: since(seconds(report.uptime)), ..report }), None),
        Err(problem) => (None, Some(problem)),
    };
    ReplicaEntry {
        address: replica.address.clone(),
        state: state.to_owned(),
        id: format!("{:016x}", replica.epoch),
        alive_until: None,
        alive_for: None,
        report,
        problem,
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn since(uptime: Duration) -> String {
    let since = clock::wall().checked_sub(uptime).filter(|since| *since >= SystemTime::UNIX_EPOCH);
    since.map(rfc3339).unwrap_or_default()
}
