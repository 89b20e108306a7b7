//! The admin door: health, metrics, statistics, what people do to the cache, and the dashboard.

mod carry;
mod config;
mod dashboard;
pub mod diagnosis;
mod door;
mod events;
pub mod explain;
mod fills;
mod kept_warm;
mod metrics;
mod pages;
mod problem;
pub mod pulls;
mod reference;
pub mod replicas;
pub mod stats;
mod time;
mod upstreams;
pub mod warm;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::Json;
use axum::routing::get;
use axum::{Extension, Router, middleware};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use serde::Serialize;
use tower_service::Service;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Client;
use crate::body::Body;
use crate::failure::{Failure, FailureKind};
use crate::observe::Observation;
use crate::ops;
use crate::sent::Sent;
use crate::services::Services;
use door::Person;
use events::Listeners;
use problem::{ErrorBody, Problem};
use reference::ImageReference;

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
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics::show))
        .routes(routes!(stats::show))
        .routes(routes!(pages::purge))
        .routes(routes!(pages::images))
        .routes(routes!(pages::pins, pages::pin, pages::unpin))
        .routes(routes!(pages::verify))
        .routes(routes!(carry::export))
        .routes(routes!(carry::import))
        .routes(routes!(upstreams::show))
        .routes(routes!(replicas::show))
        .routes(routes!(pulls::show))
        .routes(routes!(fills::show))
        .routes(routes!(events::show))
        .routes(routes!(explain::show))
        .routes(routes!(explain::refresh))
        .routes(routes!(warm::begin, kept_warm::show))
        .routes(routes!(warm::show))
        .routes(routes!(kept_warm::run))
        .routes(routes!(diagnosis::show))
        .routes(routes!(config::show))
        .split_for_parts();
    router
        .route("/api/openapi.json", get(async move || Json(description)))
        .merge(dashboard::pages(&services))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such page; see docs/api.md"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this page does not take that method; see docs/api.md")
        })
        .layer(Extension(metrics::reading()))
        .layer(Extension(Listeners::default()))
        .layer(middleware::from_fn_with_state(services.clone(), door::guard))
        .layer(middleware::from_fn(dashboard::errors_for_people))
        .with_state(services)
}

/// The parts of the API's description that no page has.
#[derive(OpenApi)]
#[openapi(
    info(title = "Larder", description = "The API of a pull-through cache for container registries."),
    components(schemas(ImageReference, warm::WantedPlatform)),
    tags(
        (name = "instance", description = "the running process"),
        (name = "cache", description = "what is cached"),
        (name = "pulls", description = "what clients ask for, and why they get what they get")
    )
)]
struct Description;

/// The answer of a probe.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok`, or `ready`.
    status: &'static str,
    /// What is wrong with an instance that nevertheless serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<String>>,
}

/// Whether the process runs
#[utoipa::path(get, path = "/healthz", tag = "instance", responses((status = 200, body = Health)))]
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok", warnings: None })
}

/// Whether content can be stored and looked up
#[utoipa::path(get, path = "/readyz", tag = "instance",
    responses((status = 200, body = Health), (status = 503, body = ErrorBody)))]
async fn readyz(State(services): State<Arc<Services>>) -> Result<Json<Health>, Problem> {
    match services.cache.check().await {
        Ok(()) => {
            Ok(Json(Health { status: "ready", warnings: Some(ops::warnings(&services.cache, &services.metrics)) }))
        }
        Err(failure) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, failure.message())),
    }
}
