//! Counts the running requests to upstreams: each needs a connection, and clients may cause any number of them.

use std::time::Duration;

use crate::descriptors::Shares;
use crate::failure::{Failure, FailureKind};
use crate::places::{Party, Place, Places};
use crate::routing::Target;
use crate::upstream::Upstream;

/// How long a question waits for a place.
const PATIENCE: Duration = Duration::from_secs(10);

/// The places of all questions to upstreams, shared out by client and upstream.
pub struct Questions(Places);

impl Default for Questions {
    fn default() -> Self {
        Self(Places::new(Shares::now().questions))
    }
}

impl Questions {
    /// Waits for a place for one question. Fails if none becomes free in time.
    pub async fn place(&self, target: &Target) -> Result<Place, Failure> {
        let place = self.0.take(party(target), PATIENCE).await;
        place.map_err(|_| {
            Failure::new(FailureKind::Busy, "too many requests to upstreams are under way; try again soon")
        })
    }
}

/// Returns the client and the upstream for which a place is taken.
pub fn party(target: &Target) -> Party {
    let source = target.repository.upstreams.iter().next().map_or("", Upstream::label);
    Party { source: source.into(), client: target.client, is_named: target.repository.is_trusted }
}
