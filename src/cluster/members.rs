//! Says that this replica is alive, and hears which others are.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::home::Number;
use super::{Cluster, Other};
use crate::index::Replica;

/// How long a replica counts as alive after it said so.
const ALIVE: Duration = Duration::from_secs(10);
/// How often the index is asked who is alive.
const LOOK: Duration = Duration::from_secs(1);
/// A replica says that it is alive with every third look.
const LOOKS: u32 = 3;

impl Cluster {
    /// Takes part until `stop` is set, and then leaves. While the index is away, those count as alive that were so when
    /// it was last seen.
    pub async fn take_part(self: Arc<Self>, mut stop: watch::Receiver<Option<Duration>>) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = 0;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                _ = stop.wait_for(Option::is_some) => break,
            }
            if look % LOOKS == 0 && self.index.announce(&self.me, ALIVE).await.is_err() {
                // The index says itself that it is away. The next look tries again.
                continue;
            }
            look += 1;
            if let Ok(alive) = self.index.replicas().await {
                self.heard(alive);
            }
        }
        if let Err(error) = self.index.announce(&self.me, Duration::ZERO).await {
            tracing::debug!(%error, "the other replicas do not know yet that this one leaves");
        }
    }

    /// Takes over who is alive.
    fn heard(&self, alive: Vec<Replica>) {
        if alive.iter().any(|replica| replica.address == self.me.address && replica.epoch != self.me.epoch) {
            tracing::warn!(
                address = self.me.address,
                "another process says that it is reached there; each replica needs a cluster.advertise of its own"
            );
        }
        let others = alive.into_iter().filter(|replica| replica.address != self.me.address);
        let others: Arc<[Other]> =
            others.map(|replica| Other { number: Number::of(&replica.address), replica }).collect();
        self.metrics.replicas.set(i64::try_from(others.len()).unwrap_or(i64::MAX).saturating_add(1));
        self.others.send_if_modified(|known| {
            if **known == *others {
                return false;
            }
            let names = |others: &[Other]| {
                let names: Vec<_> = others.iter().map(|other| other.replica.address.as_str()).collect();
                names.join(", ")
            };
            tracing::info!(others = names(&others), before = names(known), "other replicas are alive");
            *known = others.clone();
            true
        });
    }
}
