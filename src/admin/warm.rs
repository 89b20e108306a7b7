//! `POST /api/warm` and `GET /api/warm/{id}`: brings images into the cache before anybody asks for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::door::Person;
use super::problem::{ErrorBody, Problem};
use super::reference::ImageReference;
use super::time::rfc3339;
use crate::oci::Platform;
use crate::ops;
use crate::services::Services;
use crate::warm::{IMAGES, Image, Job, State as Stage};

/// Most platforms of one list.
const PLATFORMS: usize = 100;

/// Images to bring in.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    /// As in `docker pull`.
    #[schema(value_type = Vec<ImageReference>, min_items = 1, max_items = 1000)]
    pub images: Vec<String>,
    /// Such as `linux/amd64`; all if none is named.
    #[serde(default)]
    #[schema(value_type = Vec<WantedPlatform>, max_items = 100)]
    pub platforms: Vec<String>,
}

/// A platform, as Docker writes it.
#[derive(ToSchema)]
#[schema(
    value_type = String,
    pattern = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$",
    max_length = 64,
    example = "linux/amd64"
)]
pub struct WantedPlatform(#[allow(dead_code)] String);

/// How far a list of images is.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WarmJob {
    pub id: u64,
    /// RFC 3339
    pub begun: String,
    /// Whether nothing is left to do.
    pub done: bool,
    pub images: Vec<WarmImage>,
}

/// How far one image is.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WarmImage {
    pub reference: String,
    /// `waiting`, `running`, `resting` (the upstream's quota is used up), `done` or `failed`.
    pub state: String,
    /// Why it failed, or when it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Manifests and blobs, as far as they are known.
    pub objects: u64,
    pub objects_done: u64,
    /// Bytes of the blobs.
    pub bytes: u64,
    pub bytes_done: u64,
    /// Bytes that came from upstream; the rest was in the cache.
    pub fetched: u64,
}

/// Bring images into the cache
///
/// In the background: the answer comes at once, and `/api/warm/{id}` tells how far it is. What is in the cache is not
/// fetched again.
#[utoipa::path(post, path = "/api/warm", tag = "cache", request_body = WarmRequest,
    responses((status = 200, body = WarmJob), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn begin(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    body: Result<Json<WarmRequest>, JsonRejection>,
) -> Result<Json<WarmJob>, Problem> {
    let Json(WarmRequest { images, platforms }) =
        body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let wrong = |message: String| Problem::new(StatusCode::BAD_REQUEST, message);
    if images.is_empty() || images.len() > IMAGES {
        return Err(wrong(format!("name from 1 to {IMAGES} images")));
    }
    if platforms.len() > PLATFORMS {
        return Err(wrong(format!("name at most {PLATFORMS} platforms")));
    }
    let platforms = platforms.iter().map(|text| text.parse::<Platform>()).collect::<Result<Vec<_>, _>>();
    let platforms = platforms.map_err(wrong)?;
    let (rules, own) = (services.access.rules(), services.own_names());
    let located = |text: &String| {
        let located = ops::located(&rules.routing, &own, text)?;
        let written = located.written();
        Ok::<_, Problem>(Image::new(located.target, located.reference, written))
    };
    let images = images.iter().map(located).collect::<Result<Vec<_>, _>>()?;
    tracing::info!(by = %person, images = images.len(), "warming");
    let job = services.warming.begin(images, platforms).map_err(|full| Problem::new(StatusCode::CONFLICT, full))?;
    Ok(Json(of(&job)))
}

/// How far a list of images is
///
/// The last 32 lists are remembered.
#[utoipa::path(get, path = "/api/warm/{id}", tag = "cache",
    params(("id" = u64, Path, description = "the `id` that `POST /api/warm` gave", maximum = 9_223_372_036_854_775_807_i64)),
    responses((status = 200, body = WarmJob), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn show(
    State(services): State<Arc<Services>>,
    id: Result<Path<u64>, axum::extract::rejection::PathRejection>,
) -> Result<Json<WarmJob>, Problem> {
    let Path(id) = id.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let job = services.warming.job(id);
    job.map(|job| Json(of(&job))).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such list of images"))
}

pub fn of(job: &Job) -> WarmJob {
    WarmJob {
        id: job.id,
        begun: rfc3339(job.begun),
        done: job.has_ended(),
        images: job.images.iter().map(image).collect(),
    }
}

fn image(image: &Image) -> WarmImage {
    let (state, why) = match image.state() {
        Stage::Waiting => ("waiting", None),
        Stage::Running => ("running", None),
        Stage::Resting(left) => ("resting", Some(resting(left))),
        Stage::Done => ("done", None),
        Stage::Failed(failure) => ("failed", Some(failure.message().to_owned())),
    };
    let progress = &image.progress;
    let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    WarmImage {
        reference: image.written.clone(),
        state: state.to_owned(),
        why,
        objects: of(&progress.objects),
        objects_done: of(&progress.objects_done),
        bytes: of(&progress.bytes),
        bytes_done: of(&progress.bytes_done),
        fetched: of(&progress.fetched),
    }
}

pub fn resting(left: Option<Duration>) -> String {
    let when = left.map_or_else(
        || "when it is renewed".to_owned(),
        |left| format!("in {}", humantime::format_duration(Duration::from_secs(left.as_secs().max(1)))),
    );
    format!("the upstream's quota is nearly used up; it goes on {when}")
}
