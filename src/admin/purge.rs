//! `DELETE /api/cache`: all of it, one repository, one name, one tag or manifest.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde_json::{Value, json};

use super::Problem;
use crate::index::Purge;
use crate::oci::Reference;
use crate::pull::Pull;
use crate::pull::routing::{Asked, Routing};

pub async fn purge(State(pull): State<Arc<Pull>>, RawQuery(query): RawQuery) -> Result<Json<Value>, Problem> {
    let purge = read(pull.routing(), query.as_deref().unwrap_or_default())?;
    tracing::info!(?purge, "purging the cache");
    let purged = pull.cache().purge(purge).await;
    let purged = purged.map_err(|failure| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, failure))?;
    Ok(Json(json!({ "status": "ok", "objects": purged.objects, "bytes": purged.bytes })))
}

/// What the query asks to purge. An unknown parameter is refused: a misspelt one must not clear all.
fn read(routing: &Routing, query: &str) -> Result<Purge, Problem> {
    let bad = |message: String| Problem::new(StatusCode::BAD_REQUEST, message);
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
    match &pairs[..] {
        [] => Ok(Purge::All),
        [(key, value)] if key == "repository" => {
            if routing.prefixes().any(|prefix| prefix == value) {
                return Ok(Purge::Repository(value.to_string()));
            }
            name(routing, value)
        }
        [(key, value)] if key == "reference" => reference(routing, value),
        [(key, _)] => Err(bad(format!("unknown parameter `{key}`; there are `reference` and `repository`"))),
        _ => Err(bad("one parameter at a time: `reference` or `repository`".to_owned())),
    }
}

fn reference(routing: &Routing, text: &str) -> Result<Purge, Problem> {
    let last_part = text.rfind('/').map_or(0, |slash| slash + 1);
    let split = text.split_once('@').or_else(|| {
        let colon = text[last_part..].find(':')? + last_part;
        Some((&text[..colon], &text[colon + 1..]))
    });
    let Some((path, reference)) = split else {
        return name(routing, text);
    };
    let parsed: Reference = reference.parse().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error))?;
    match name(routing, path)? {
        Purge::Name { repository, name } => Ok(Purge::Reference { repository, name, reference: parsed }),
        other => Ok(other),
    }
}

fn name(routing: &Routing, path: &str) -> Result<Purge, Problem> {
    let target = routing.route(Asked { path, ..Asked::default() });
    let target = target.map_err(|error| Problem::new(StatusCode::NOT_FOUND, error))?;
    Ok(Purge::Name { repository: target.repository.prefix().to_owned(), name: target.name.to_string() })
}
