//! `GET /api/config`: the configuration in force.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use serde_json::Value;

use crate::services::Services;

/// The configuration in force
///
/// Each key as `{"value": …, "origin": "…"}`; secrets are hidden.
#[utoipa::path(get, path = "/api/config", tag = "instance", responses((status = 200, body = serde_json::Value)))]
pub async fn show(State(services): State<Arc<Services>>) -> Json<Value> {
    Json(services.configuration().shown.clone())
}
