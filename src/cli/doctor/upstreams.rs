//! The upstreams: whether they answer, and accept the credentials.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use super::Findings;
use crate::cli::error::CommandError;
use crate::config::Config;
use crate::config::built_in::BUILT_IN;
use crate::failure::{Failure, FailureKind};
use crate::observe::Metrics;
use crate::routing::{Repository, Routing};
use crate::upstream::{Clients, Who};

/// Longest time for one upstream.
const PATIENCE: Duration = Duration::from_secs(25);
/// How many are asked at once.
const AT_ONCE: usize = 8;

/// Asks the upstreams of the configuration's own repositories, of the default one, and of well-known registries with a
/// login; with `is_all` those of all well-known registries, too.
pub async fn check(config: &Config, is_all: bool, findings: &mut Findings) -> Result<(), CommandError> {
    let failed = |error: &dyn std::fmt::Display| CommandError::Failed(error.to_string());
    let metrics = Arc::<Metrics>::default();
    let routing = Routing::new(config, &Clients::default(), &metrics).map_err(|error| failed(&error))?;
    let is_default = |repository: &Repository| config.server.default_repository.as_deref() == Some(repository.prefix());
    let wanted = |repository: &&Arc<Repository>| {
        let is_known = BUILT_IN.iter().any(|(name, ..)| *name == repository.prefix());
        let is_anonymous = repository.upstreams.iter().all(|upstream| upstream.status().account == "anonymous");
        is_all || is_default(repository) || !is_known || !is_anonymous
    };
    let upstreams = routing
        .repositories()
        .iter()
        .filter(wanted)
        .flat_map(|repository| (0..repository.upstreams.len()).map(move |at| (repository.clone(), at)));
    let greet = async |(repository, at): (Arc<Repository>, usize)| {
        let upstream = &repository.upstreams[at];
        let greeted = tokio::time::timeout(PATIENCE, upstream.greet(&Who::Larder)).await;
        let greeted = greeted.unwrap_or_else(|_| {
            let message = format!("{} did not answer within {} s", upstream.label(), PATIENCE.as_secs());
            Err(Failure::new(FailureKind::Timeout, message))
        });
        (format!("{} ({})", upstream.label(), repository.prefix()), upstream.status().account, greeted)
    };
    let greeted: Vec<_> = stream::iter(upstreams).map(greet).buffered(AT_ONCE).collect().await;
    for (name, account, greeted) in greeted {
        match greeted {
            Ok(()) => findings.ok("upstream", format!("{name} answers, asked as {account}")),
            Err(failure) => findings.error("upstream", format!("{name}: {}", told(&failure))),
        }
    }
    Ok(())
}

fn told(failure: &Failure) -> String {
    let remedy = match failure.kind {
        FailureKind::Denied => "; see that the login is right (docker login there), and may pull",
        FailureKind::RateLimited => "; log in for a higher limit, or wait",
        FailureKind::NotFound | FailureKind::WrongContent => "; see that `url` leads to a registry",
        _ => "; see that this machine reaches it (DNS, firewall, http_proxy)",
    };
    format!("{}{remedy}", failure.message())
}
