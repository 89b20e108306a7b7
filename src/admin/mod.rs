//! The admin door: health, metrics, statistics, and what people do to the cache.

mod door;
pub mod manage;
mod pages;
mod stats;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use axum::{Router, middleware, serve};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::pull::Pull;

/// How long requests may go on after a request to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Serves the API on one listener until `stop`.
pub async fn run(listener: TcpListener, pull: Arc<Pull>, mut stop: watch::Receiver<Option<Duration>>) {
    let mut stopping = stop.clone();
    let stopped = async move {
        // The sender lives as long as the process does.
        let _ = stop.wait_for(Option::is_some).await;
    };
    let late = async move {
        let _ = stopping.wait_for(Option::is_some).await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    let router = router(pull).into_make_service_with_connect_info::<SocketAddr>();
    let served = async { serve(listener, router).with_graceful_shutdown(stopped).await };
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::error!(%error, "the admin door ended");
            }
        }
        () = late => {}
    }
}

fn router(pull: Arc<Pull>) -> Router {
    Router::new()
        .route("/healthz", get(async || Json(json!({ "status": "ok" }))))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/cache/stats", get(stats::show))
        .route("/api/cache", delete(pages::purge))
        .route("/api/images", get(pages::images))
        .route("/api/pins", get(pages::pins).put(pages::pin).delete(pages::unpin))
        .route("/api/upstreams", get(upstreams::show))
        .route("/api/verify", post(pages::verify))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such page; see docs/api.md"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this page does not take that method; see docs/api.md")
        })
        .layer(middleware::from_fn_with_state(pull.clone(), door::guard))
        .with_state(pull)
}

/// Whether content can be stored and looked up.
async fn ready(State(pull): State<Arc<Pull>>) -> Response {
    match pull.cache().check().await {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(failure) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, failure.message()).into_response(),
    }
}

async fn metrics(State(pull): State<Arc<Pull>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match pull.metrics().encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

/// An error of the API: `{"error": "…"}`.
struct Problem(StatusCode, String);

impl Problem {
    fn new(status: StatusCode, message: impl std::fmt::Display) -> Self {
        Self(status, message.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
