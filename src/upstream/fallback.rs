//! Several upstreams for one repository, tried in order.

use std::sync::Arc;

use super::client::{BuildError, Upstream};
use crate::config;
use crate::failure::{Failure, FailureKind};
use crate::telemetry::Metrics;

/// The upstreams of one repository, in order of preference; never empty.
#[derive(Clone)]
pub struct Upstreams(Arc<[Upstream]>);

impl Upstreams {
    pub fn new(configs: &[config::Upstream], metrics: &Arc<Metrics>) -> Result<Self, BuildError> {
        let clients = configs.iter().map(|config| Upstream::new(config, metrics.clone()));
        let clients = clients.collect::<Result<Vec<_>, _>>()?;
        Ok(Self(clients.into()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first answer that any upstream gives, and which one gave it. Whatever goes wrong with one,
    /// the next is asked; of several failures the most telling is returned, so that "not found" means
    /// all of them said so. `preferred` is asked first: who knew the tag also has the manifest.
    pub async fn first<T, A>(&self, preferred: usize, ask: impl Fn(usize) -> A) -> Result<(usize, T), Failure>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        let others = (0..self.len()).filter(|&at| at != preferred);
        let mut failed: Option<Failure> = None;
        for at in std::iter::once(preferred).chain(others) {
            match ask(at).await {
                Ok(answer) => return Ok((at, answer)),
                Err(failure) => {
                    let upstream = self.0[at].label();
                    tracing::debug!(upstream, kind = failure.kind.as_str(), %failure, "an upstream failed");
                    failed = Some(match failed {
                        Some(earlier) => earlier.more_telling(failure),
                        None => failure,
                    });
                }
            }
        }
        Err(failed.unwrap_or_else(|| Failure::new(FailureKind::Unavailable, "no upstream is configured")))
    }
}

impl std::ops::Index<usize> for Upstreams {
    type Output = Upstream;

    fn index(&self, at: usize) -> &Upstream {
        &self.0[at]
    }
}
