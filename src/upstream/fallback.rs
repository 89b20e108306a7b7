//! Several upstreams for one repository, tried in order.

use std::sync::Arc;

use super::client::{BuildError, Upstream};
use crate::config;
use crate::failure::Failure;

/// The upstreams of one repository, in order of preference; never empty.
#[derive(Clone)]
pub struct Upstreams(Arc<[Upstream]>);

impl Upstreams {
    pub fn new(configs: &[config::Upstream]) -> Result<Self, BuildError> {
        let clients = configs.iter().map(Upstream::new).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(clients.into()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Upstream> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn at(&self, position: usize) -> Option<&Upstream> {
        self.0.get(position)
    }

    /// The first answer that any upstream gives. Whatever goes wrong with one, the next is asked; of
    /// several failures the most telling is returned, so that "not found" means all of them said so.
    pub async fn first<'a, T>(&'a self, ask: impl AsyncFn(&'a Upstream) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut failed: Option<Failure> = None;
        for upstream in self.iter() {
            match ask(upstream).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    tracing::debug!(upstream = upstream.label(), kind = failure.kind.as_str(), %failure, "an upstream failed");
                    failed = Some(match failed {
                        Some(earlier) => earlier.more_telling(failure),
                        None => failure,
                    });
                }
            }
        }
        Err(failed
            .unwrap_or_else(|| Failure::new(crate::failure::FailureKind::Unavailable, "no upstream is configured")))
    }
}
