//! The pages of the API that write images into an archive and take them in from one.

use std::io;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::IntoParams;

use super::door::Person;
use super::pages::QueryOf;
use super::problem::{ErrorBody, Problem};
use crate::ops::export::{self, Export};
use crate::ops::import::{self, Imported};
use crate::ops::{Named, OpsError};
use crate::services::Services;
use crate::text::one_line;

/// The media type of a tar archive.
const TAR: &str = "application/x-tar";

/// Export images
///
/// An OCI image layout in a tar archive. What Larder's own credentials did not bring in is left out. Its first file,
/// `larder.json`, says what is in it and what is missing. A response that ends early is no whole archive.
#[utoipa::path(get, path = "/api/export", tag = "cache",
    params(("reference" = Option<Vec<String>>, Query, description = "`NAME:TAG` or `NAME@DIGEST`, once for each image"),
        ("all" = Option<bool>, Query, description = "all images, in place of `reference`"),
        ("since" = Option<String>, Query, description = "only objects stored then or later: `2026-11-01`, or RFC 3339"),
        ("extras" = Option<bool>, Query, description = "with signatures, SBOMs and other referrers")),
    responses((status = 200, content_type = "application/x-tar", body = Vec<u8>), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn export(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let export = asked(query.as_deref().unwrap_or_default())?;
    let (rules, own) = (services.access.rules(), services.own_names());
    let named = Named { cache: &services.cache, routing: &rules.routing, own: &own };
    let archive = export::plan(&named, &services.cache, &export).await?;
    let report = archive.report();
    tracing::info!(by = %person, images = report.images, objects = report.objects, bytes = report.bytes, "exporting");
    Ok(([(header::CONTENT_TYPE, TAR)], Body::from_stream(archive.bytes())).into_response())
}

/// Reads the query of an export. An unknown parameter is refused, so that a misspelt one does not mean everything.
fn asked(query: &str) -> Result<Export, Problem> {
    let bad = |message: String| Problem::new(StatusCode::BAD_REQUEST, message);
    let (mut export, mut is_all) = (Export::default(), false);
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let flag = || match &*value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(bad(format!("`{key}` is `true` or `false`"))),
        };
        match &*key {
            "reference" => export.references.push(value.into_owned()),
            "all" => is_all = flag()?,
            "since" => export.since = Some(export::moment(&value)?),
            "extras" => export.with_extras = flag()?,
            key => {
                let key = one_line(key);
                return Err(bad(format!(
                    "unknown parameter `{key}`; there are `reference`, `all`, `since` and `extras`"
                )));
            }
        }
    }
    if is_all == export.references.is_empty() {
        return Ok(export);
    }
    Err(bad("say which images with `?reference=NAME:TAG`, or `?all=true`".to_owned()))
}

/// The query of an import.
#[derive(Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Import {
    /// The name of the image, where the archive has none: `NAME:TAG`, or only `NAME` where it has tags.
    r#as: Option<String>,
}

/// Import images
///
/// An OCI image layout in a tar archive. Nothing of it is served before all of it was read and every digest was right.
#[utoipa::path(post, path = "/api/import", tag = "cache", params(Import),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = Imported), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "the archive is not taken"),
        (status = 507, body = ErrorBody, description = "there is no room for it")))]
pub async fn import(
    State(services): State<Arc<Services>>,
    Extension(person): Extension<Person>,
    headers: HeaderMap,
    query: QueryOf<Import>,
    body: Body,
) -> Result<Json<Imported>, Problem> {
    let Query(Import { r#as: given }) =
        query.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let stated = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(size) = stated.filter(|size| services.cache.never_fits(*size)) {
        return Err(OpsError::TooLarge(size).into());
    }
    let carrying = services.cache.begin_carrying().ok_or(OpsError::Carrying)?;
    let bytes = body.into_data_stream().map(|piece| {
        piece
            .map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, format!("the sender broke off: {error}")))
    });
    // If the sender leaves, what has come of the archive is removed all the same.
    let importing = tokio::spawn(async move {
        let (rules, own) = (services.access.rules(), services.own_names());
        let named = Named { cache: &services.cache, routing: &rules.routing, own: &own };
        let imported = import::import(&named, carrying, bytes.boxed(), given.as_deref()).await;
        match &imported {
            Ok(Imported { images, objects, bytes, .. }) => {
                tracing::info!(by = %person, images, objects, bytes, "imported");
            }
            Err(error) => tracing::info!(by = %person, %error, "not imported"),
        }
        imported
    });
    let broke = |error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the import broke off: {error}"));
    Ok(Json(importing.await.map_err(broke)??))
}
