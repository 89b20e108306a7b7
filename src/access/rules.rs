//! What the configuration says about clients: from which addresses they come, by which names they ask, how they log in.

use std::sync::Arc;

use super::forwarded::Forwarding;
use super::host::AskedHost;
use crate::auth::{Client, Logins};
use crate::config::{Allow, Config, HostPattern};
use crate::observe::Metrics;
use crate::routing::{OwnNames, Routing};
use crate::upstream::{BuildError, Clients};
use crate::web::WebError;

/// The rules of one configuration, with the repositories that they apply to. A request is answered by the rules in
/// force when it came in.
pub struct Rules {
    pub routing: Arc<Routing>,
    /// The names at which clients reach the registry door.
    pub own: OwnNames,
    pub forwarding: Forwarding,
    /// The URL by which clients reach the registry door, if the configuration states it.
    pub public_url: Option<String>,
    /// The host in it.
    public_host: Option<AskedHost>,
    /// Only clients of these networks may connect; if empty, all may.
    allow_cidrs: Vec<ipnet::IpNet>,
    /// `None`: clients cannot log in here.
    pub logins: Option<Arc<Logins>>,
    /// Clients that may manage the cache.
    pub managers: Vec<Allow>,
    /// Clients that may look at it: those, and others that may change nothing.
    pub readers: Vec<Allow>,
    /// Names of the registry door, besides addresses and the hosts of repositories.
    hosts: Vec<HostPattern>,
    /// Names of the admin door, besides addresses.
    admin_hosts: Vec<HostPattern>,
    /// Whether each request gets a line in the access log.
    pub log_access: bool,
}

/// Why no rules can be made from a configuration.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("an issuer of tokens {0}")]
    Issuer(#[from] WebError),
}

/// Returns the entries that name clients by their login. A client that is named by its address only may be a browser
/// that shows a page from anywhere.
pub fn by_name(named: &[Allow]) -> Vec<Allow> {
    let is_by_name = |entry: &&Allow| !matches!(entry, Allow::Network(_) | Allow::Anonymous);
    named.iter().filter(is_by_name).cloned().collect()
}

/// Returns the host in a URL without a path.
fn host_of(url: &str) -> Option<AskedHost> {
    AskedHost::read(url.split_once("://")?.1.as_bytes())
}

impl Rules {
    /// Makes the rules of a configuration. `before`: the rules in force, whose counts of wrong logins continue.
    pub fn new(
        config: &Config,
        clients: &Clients,
        metrics: &Arc<Metrics>,
        before: Option<&Self>,
    ) -> Result<Self, RulesError> {
        let logins = Logins::new(&config.auth, before.and_then(|before| before.logins.as_deref()))?;
        Ok(Self {
            routing: Arc::new(Routing::new(config, clients, metrics)?),
            own: OwnNames::new(config),
            forwarding: Forwarding::new(&config.server),
            public_host: config.server.public_url.as_deref().and_then(host_of),
            public_url: config.server.public_url.clone(),
            allow_cidrs: config.auth.allow_cidrs.clone(),
            logins,
            managers: config.admin.allow.clone(),
            readers: config.admin.allow.iter().chain(&config.admin.read).cloned().collect(),
            hosts: config.server.hosts.clone(),
            admin_hosts: config.admin.hosts.clone(),
            log_access: config.logging.access,
        })
    }

    /// Returns the names of the issuers by which people log in to the dashboard, in the order of the configuration.
    pub fn browser_logins(&self) -> Vec<&str> {
        self.logins.iter().flat_map(|logins| logins.flows()).map(|flow| flow.name()).collect()
    }

    /// Returns whether clients of this address may connect at all.
    pub fn lets_in(&self, client: &Client) -> bool {
        self.allow_cidrs.is_empty() || self.allow_cidrs.iter().any(|network| client.address.is_in(network))
    }

    /// Returns whether a request asks the admin door by one of its names.
    pub fn is_admin_host(&self, host: &AskedHost) -> bool {
        host.is_nobodys_name() || host.is_one_of(&self.admin_hosts)
    }

    /// Returns whether a name may belong to somebody else and was made to resolve to this machine (DNS rebinding). That
    /// matters for plain connections within this machine: only programs on this machine can make them, and one of these
    /// may be a browser with a web page from anywhere. TLS needs a certificate for the name, and a reverse proxy passes
    /// on the name by which it was asked.
    pub fn is_foreign_name(&self, host: &AskedHost, client: &Client) -> bool {
        let is_within = client.local.is_some_and(|local| local.is_loopback());
        is_within
            && !client.is_secure
            && !host.is_nobodys_name()
            && !self.forwarding.trusts(client.peer.ip())
            && !host.is_one_of(&self.hosts)
            && self.public_host.as_ref() != Some(host)
            && !self.routing.has_host(&host.to_string())
    }
}
