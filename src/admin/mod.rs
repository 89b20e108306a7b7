//! The admin door: health, metrics, statistics, and what people do to the cache.

mod door;
mod pages;
mod problem;
mod stats;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, State};
use axum::http::{Request, Response, StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::{delete, get, post};
use axum::{Router, middleware};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use serde_json::json;
use tower_service::Service;

use crate::body::Body;
use crate::failure::{Failure, FailureKind};
use crate::sent::Sent;
use crate::services::Services;
use problem::Problem;

/// Returns the handler of requests at the admin door. Each request comes with the address of its client.
pub fn handler(
    services: Arc<Services>,
) -> impl Fn(Request<Sent>, SocketAddr) -> BoxFuture<'static, Response<Body>> + Send + Sync {
    let router = router(services);
    move |mut request, client| {
        request.extensions_mut().insert(ConnectInfo(client));
        let mut router = router.clone();
        Box::pin(async move {
            let response = match router.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let failed = |error: axum::Error| Failure::new(FailureKind::Storage, error);
            response.map(|body| body.map_err(failed).boxed_unsync())
        })
    }
}

fn router(services: Arc<Services>) -> Router {
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
        .layer(middleware::from_fn_with_state(services.clone(), door::guard))
        .with_state(services)
}

/// Answers `/readyz`: whether content can be stored and looked up.
async fn ready(State(services): State<Arc<Services>>) -> axum::response::Response {
    match services.cache.check().await {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(failure) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, failure.message()).into_response(),
    }
}

/// Answers `/metrics`.
async fn metrics(State(services): State<Arc<Services>>) -> axum::response::Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match services.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}
