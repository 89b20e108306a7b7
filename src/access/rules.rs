//! What the configuration says of clients: from where they come, by which names they ask, how they log in.

use std::sync::Arc;

use super::forwarded::Forwarding;
use super::host::AskedHost;
use crate::auth::{Client, Logins};
use crate::config::{Allow, Config, HostPattern};
use crate::observe::Metrics;
use crate::routing::Routing;
use crate::upstream::{BuildError, Clients};
use crate::web::WebError;

/// The rules of one configuration, with the repositories that they are about. A request keeps to those that it came in by.
pub struct Rules {
    pub routing: Arc<Routing>,
    pub forwarding: Forwarding,
    /// Only clients of these networks; empty: all.
    allow_cidrs: Vec<ipnet::IpNet>,
    /// `None`: nobody logs in here.
    pub logins: Option<Arc<Logins>>,
    /// Clients that may manage the cache.
    pub managers: Vec<Allow>,
    /// Names by which the registry door may be asked, beside addresses and those of repositories.
    hosts: Vec<HostPattern>,
    /// And the admin door.
    admin_hosts: Vec<HostPattern>,
    /// Whether each request gets a line of the access log.
    pub log_access: bool,
}

/// Why a configuration gives no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("an issuer of tokens {0}")]
    Issuer(#[from] WebError),
}

impl Rules {
    /// `before`: those in force, whose counts of wrong logins go on.
    pub fn new(
        config: &Config,
        clients: &Clients,
        metrics: &Arc<Metrics>,
        before: Option<&Self>,
    ) -> Result<Self, RulesError> {
        let logins = Logins::new(&config.auth, before.and_then(|before| before.logins.as_deref()))?;
        Ok(Self {
            routing: Arc::new(Routing::new(config, clients, metrics)?),
            forwarding: Forwarding::new(&config.server),
            allow_cidrs: config.auth.allow_cidrs.clone(),
            logins,
            managers: config.admin.allow.clone(),
            hosts: config.server.hosts.clone(),
            admin_hosts: config.admin.hosts.clone(),
            log_access: config.logging.access,
        })
    }

    /// Whether clients of this address may connect at all.
    pub fn lets_in(&self, client: &Client) -> bool {
        self.allow_cidrs.is_empty() || self.allow_cidrs.iter().any(|network| client.address.is_in(network))
    }

    /// Whether the admin door is asked by a name that it has.
    pub fn is_admin_host(&self, host: &AskedHost) -> bool {
        host.is_nobodys_name() || host.is_one_of(&self.admin_hosts)
    }

    /// Whether a name may be somebody else's that was made to lead here (DNS rebinding). That matters on plain connections
    /// within this machine: only programs here can make them, and a browser with a page of anywhere is one. TLS asks for a
    /// certificate of the name, and a reverse proxy passes on the name that it was asked by.
    pub fn is_foreign_name(&self, host: &AskedHost, client: &Client) -> bool {
        let is_within = client.local.is_some_and(|local| local.is_loopback());
        is_within
            && !client.is_secure
            && !host.is_nobodys_name()
            && !self.forwarding.trusts(client.peer.ip())
            && !host.is_one_of(&self.hosts)
            && !self.routing.has_host(&host.to_string())
    }
}
