//! The admin door: health, metrics, statistics, and what people do to the cache.

mod door;
mod metrics;
mod pages;
mod problem;
mod stats;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::{IntoResponse, Json};
use axum::routing::{delete, get, post};
use axum::{Extension, Router, middleware};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use serde_json::json;
use tower_service::Service;

use crate::auth::Client;
use crate::body::Body;
use crate::failure::{Failure, FailureKind};
use crate::observe::Observation;
use crate::ops;
use crate::sent::Sent;
use crate::services::Services;
use door::Person;
use problem::Problem;

/// Returns the handler of requests at the admin door. Each request comes with the address of its client.
pub fn handler(
    services: Arc<Services>,
) -> impl Fn(Request<Sent>, SocketAddr) -> BoxFuture<'static, Response<Body>> + Send + Sync {
    let router = router(services.clone());
    move |request, peer| {
        let (mut router, services) = (router.clone(), services.clone());
        Box::pin(async move {
            let (mut request, body) = request.into_parts();
            let rules = services.access.rules();
            let client = rules.forwarding.client(Client::connected(peer), &request.headers);
            // Probes come every few seconds and tell nothing about anybody.
            let is_logged = rules.log_access && !door::is_probe(request.uri.path());
            let observation = Observation::begin(&request, client.clone(), services.metrics.clone(), is_logged);
            let mut observation = observation.of_no_content();
            request.extensions.insert(client);
            let response = match router.call(Request::from_parts(request, body)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            if let Some(identity) = response.extensions().get::<Person>().and_then(|person| person.identity.as_ref()) {
                observation.admitted(identity);
            }
            let failed = |error: axum::Error| Failure::new(FailureKind::Storage, error);
            observation.watch(response.map(|body| body.map_err(failed).boxed_unsync()))
        })
    }
}

fn router(services: Arc<Services>) -> Router {
    Router::new()
        .route("/healthz", get(async || Json(json!({ "status": "ok" }))))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::show))
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
        .layer(Extension(metrics::reading()))
        .layer(middleware::from_fn_with_state(services.clone(), door::guard))
        .with_state(services)
}

/// Answers `/readyz`: whether content can be stored and looked up.
async fn ready(State(services): State<Arc<Services>>) -> axum::response::Response {
    match services.cache.check().await {
        Ok(()) => Json(json!({ "status": "ready", "warnings": ops::warnings(&services.metrics) })).into_response(),
        Err(failure) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, failure.message()).into_response(),
    }
}
