//! `GET /metrics`: what Prometheus scrapes.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::observe::{Format, Process, Scraped};
use crate::services::Services;
use crate::work::Pool;

/// How long a scrape waits for the kernel to count what the process uses.
const PATIENCE: Duration = Duration::from_secs(1);

/// Returns the threads that read `/proc`.
pub fn reading() -> Pool {
    Pool::new("reading /proc", 2, PATIENCE)
}

/// The metrics
///
/// In OpenMetrics' form if it is asked for, else in Prometheus' own.
#[utoipa::path(get, path = "/metrics", tag = "instance",
    responses((status = 200, description = "the metrics", content_type = "text/plain", body = String)))]
pub async fn show(
    State(services): State<Arc<Services>>,
    Extension(reading): Extension<Pool>,
    headers: HeaderMap,
) -> Response {
    // Without /proc, all other metrics are there.
    let mut scraped = Scraped::new(reading.run(Process::read).await.ok().and_then(Result::ok));
    for repository in services.access.rules().routing.repositories() {
        for upstream in repository.upstreams.iter() {
            if let Some(is_up) = upstream.status().lately.is_up {
                scraped.add_upstream(repository.prefix(), upstream.label(), is_up);
            }
        }
    }
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::preferred(accepted);
    match format.write(&scraped.with(&services.metrics)) {
        Ok(text) => {
            let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
            (headers, text).into_response()
        }
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}
