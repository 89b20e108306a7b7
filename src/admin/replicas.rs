//! `GET /api/replicas`: the replicas that behave as one cache with this one.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::services::Services;

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
    /// `this`: the one that answers; `ready`: another that is asked for content; `unreachable`: another that the index
    /// knows to be alive, and that could not be connected to a moment ago.
    pub state: String,
}

/// The replicas that are alive
#[utoipa::path(get, path = "/api/replicas", tag = "instance", responses((status = 200, body = Replicas)))]
pub async fn show(State(services): State<Arc<Services>>) -> Json<Replicas> {
    let Some(cluster) = &services.cluster else {
        return Json(Replicas { replicas: Vec::new() });
    };
    let entry = |address: String, state: &str| ReplicaEntry { address, state: state.to_owned() };
    let others = cluster.others().into_iter().map(|(replica, rests)| {
        let state = if rests { "unreachable" } else { "ready" };
        entry(replica.address, state)
    });
    let mut replicas: Vec<_> = others.chain([entry(cluster.me().address.clone(), "this")]).collect();
    replicas.sort_by(|one, other| one.address.cmp(&other.address));
    Json(Replicas { replicas })
}
