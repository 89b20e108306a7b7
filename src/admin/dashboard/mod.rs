//! The dashboard: pages for people at the admin door, made by the server.
//!
//! Everything to read is there without JavaScript. The script brings new content into pages that are open
//! (`GET /api/events` says when), and the buttons, which call the API.

mod assets;
mod chart;
mod connect;
mod diagnosis;
mod explain;
mod history;
mod image;
mod images;
mod layout;
mod login;
mod overview;
mod pulls;
mod replicas;
mod safety;
mod show;
mod upstreams;
mod warm;

use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Extension, Router, middleware};

use crate::services::Services;
use history::History;

pub use safety::errors_for_people;

/// Returns the pages. From now on, figures for their charts are collected for as long as the services are there.
pub fn pages(services: &Arc<Services>) -> Router<Arc<Services>> {
    let history = Arc::new(History::default());
    tokio::spawn(history::keep(history.clone(), Arc::downgrade(services)));
    Router::new()
        .route("/", get(overview::show))
        .route("/pulls", get(pulls::show))
        .route("/images", get(images::show))
        .route("/image", get(image::show))
        .route("/warm", get(warm::show))
        .route("/upstreams", get(upstreams::show))
        .route("/replicas", get(replicas::show))
        .route("/diagnosis", get(diagnosis::show))
        .route("/connect", get(connect::show))
        .route("/explain", get(explain::show))
        .route("/login", get(login::show))
        .route("/login/{name}", get(login::begin))
        .route("/login/{name}/callback", get(login::come_back))
        .route("/logout", post(login::log_out))
        .route("/assets/{name}", get(assets::show))
        .layer(Extension(history))
        .layer(middleware::map_response(safety::secure))
}
