//! The proxy door and what it knows between requests.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::copies::Copies;
use super::refused::Refused;
use super::rules::ProxyRules;
use super::tunnel::Tunnel;
use crate::access::Access;
use crate::cache::Cache;
use crate::descriptors::Shares;
use crate::observe::Metrics;
use crate::places::Places;
use crate::registry::Objects;

/// Answers the requests of clients that use Larder as a proxy. All connections share it.
pub struct Proxy {
    /// `None`: there is no proxy door.
    rules: ArcSwapOption<ProxyRules>,
    /// Notified when the rules change.
    changes: watch::Sender<()>,
    pub(super) access: Arc<Access>,
    pub(super) objects: Arc<Objects>,
    pub(super) cache: Arc<Cache>,
    pub(super) metrics: Arc<Metrics>,
    /// Content of other URLs that is on its way in.
    pub(super) copies: Copies,
    /// Bounds the requests that are forwarded.
    pub(super) forwards: Places,
}

impl Proxy {
    /// Creates the proxy door's service. `rules`: `None` if there is no proxy door.
    pub fn new(
        rules: Option<ProxyRules>,
        access: Arc<Access>,
        objects: Arc<Objects>,
        (cache, metrics): (Arc<Cache>, Arc<Metrics>),
    ) -> Self {
        Self {
            rules: ArcSwapOption::from_pointee(rules),
            changes: watch::Sender::default(),
            access,
            objects,
            cache,
            metrics,
            copies: Copies::default(),
            forwards: Places::new(Shares::now().forwards),
        }
    }

    /// Returns whether there is a proxy door.
    pub fn is_open(&self) -> bool {
        self.rules.load().is_some()
    }

    /// Puts other rules in force. Tunnels that they forbid end.
    pub fn apply(&self, rules: Option<ProxyRules>) {
        self.rules.store(rules.map(Arc::new));
        self.changes.send_replace(());
    }

    /// Returns the rules in force.
    pub(super) fn rules(&self) -> Result<Arc<ProxyRules>, Refused> {
        self.rules.load_full().ok_or(Refused::Closed)
    }

    /// Waits until the rules in force no longer allow a tunnel.
    pub async fn until_turned_away(&self, tunnel: &Tunnel) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Err(why) = self.judge(tunnel) {
                let (client, server) = (tunnel.admission.client.address, &tunnel.server);
                tracing::info!(%client, %server, %why, "a tunnel ends, since the configuration does not allow it any more");
                return;
            }
            // The sender lives as long as the process.
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn judge(&self, tunnel: &Tunnel) -> Result<(), Refused> {
        let rules = self.rules()?;
        tunnel.admission.judge(&rules)?;
        Ok(rules.permit_tunnel(&tunnel.server, tunnel.address)?)
    }
}
