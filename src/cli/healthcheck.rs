//! `larder healthcheck`: whether the instance is well, for containers and supervisors.

use std::path::PathBuf;

use super::error::CommandError;
use super::instance::{Instance, Where};
use super::output::{print, print_json};

#[derive(Debug, clap::Args)]
pub struct Healthcheck {
    #[command(flatten)]
    place: Where,
    /// Ask whether content can be stored and looked up (`/readyz`), not only whether the process runs (`/healthz`).
    /// Pulls go on uncached when it cannot
    #[arg(long)]
    ready: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Runs `larder healthcheck`. Every failure is one: supervisors know no other exit codes than 0 and 1.
pub async fn run(files: &[PathBuf], arguments: &Healthcheck) -> Result<(), CommandError> {
    let page = if arguments.ready { "readyz" } else { "healthz" };
    let health = Instance::health(files, &arguments.place, page).await;
    health.map_err(|error| CommandError::Failed(error.to_string()))?;
    match arguments.json {
        true => print_json(&serde_json::json!({ "status": "ok" })),
        false => print("ok\n"),
    }
}
