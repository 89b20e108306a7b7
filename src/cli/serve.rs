//! `larder serve`: builds everything in the order of its dependencies, then opens the doors.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::WRONG_CONFIGURATION;
use crate::cache::Cache;
use crate::config::Config;
use crate::pull::Pull;
use crate::telemetry::Metrics;
use crate::{admin, listen, telemetry};

type AnyError = Box<dyn std::error::Error>;

pub fn run(files: &[PathBuf]) -> ExitCode {
    let config = match Config::load(files, std::env::vars()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("larder: {error}");
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    if let Err(error) = telemetry::log::init(&config.logging) {
        eprintln!("larder: {error}");
        return ExitCode::from(WRONG_CONFIGURATION);
    }
    match start(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "larder cannot run");
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Config) -> Result<(), AnyError> {
    let metrics = Arc::new(Metrics::default());
    let cache = Arc::new(Cache::open(config, metrics.clone())?);
    let pull = Pull::new(config, cache, metrics)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(config, pull));
    // A fill that is still running is taken up again by the next request for it.
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config, pull: Arc<Pull>) -> Result<(), AnyError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let registry = listen::bind("registry", &config.server.listen).await?;
    let admin = listen::bind("admin", &config.admin.listen).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        dir = %config.cache.dir.display(),
        repositories = config.repositories.len(),
        "ready"
    );

    let (stop, stopped) = watch::channel(false);
    let permits = config.server.max_connections.map(|limit| Arc::new(Semaphore::new(limit)));
    let space = tokio::spawn(pull.cache().clone().look_after_space());
    let mut doors = JoinSet::new();
    for listener in registry {
        let grace = config.server.shutdown_grace;
        doors.spawn(listen::serve(listener, pull.clone(), permits.clone(), stopped.clone(), grace));
    }
    for listener in admin {
        doors.spawn(admin::run(listener, pull.clone(), stopped.clone()));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; running transfers may end within server.shutdown_grace");
    stop.send_replace(true);
    let ended = tokio::time::timeout(config.server.shutdown_grace, doors.join_all()).await;
    if ended.is_err() {
        tracing::warn!("not everything ended in time");
    }
    space.abort();
    pull.cache().close().await;
    Ok(())
}
