//! What the configuration says about the proxy door.

use std::net::IpAddr;
use std::sync::Arc;

use url::Url;

use super::names::Names;
use super::registries::Registries;
use super::secrets::{Read, Secrets, asks_for_token, hides_path};
use crate::access::Rules;
use crate::auth::Identity;
use crate::config::{Config, Forbidden, Pattern, ProxyDoor};
use crate::observe::Metrics;
use crate::upstream::{Anywhere, BuildError, Clients, PassError, Server};

/// The rules of the proxy door, with those of all doors. A request is answered by the rules in force when it came in.
pub struct ProxyRules {
    /// Those that hold at all doors.
    pub for_all: Arc<Rules>,
    pub door: ProxyDoor,
    /// Patterns of paths that are cached besides content of registries.
    patterns: Vec<Pattern>,
    pub registries: Registries,
    /// Hosts by which repositories are known besides those of their upstreams.
    pub names: Names,
    pub anywhere: Anywhere,
}

impl ProxyRules {
    /// Makes the rules of a configuration. `None`: there is no proxy door.
    pub fn new(
        config: &Config,
        rules: &Arc<Rules>,
        clients: &Clients,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Self>, BuildError> {
        let Some(door) = &config.proxy else {
            return Ok(None);
        };
        Ok(Some(Self {
            for_all: rules.clone(),
            registries: Registries::new(config, door, clients, metrics)?,
            names: Names::new(config),
            anywhere: Anywhere::new(door, metrics.clone(), &clients.shared().ours)?,
            door: door.clone(),
            patterns: config.cache.patterns.clone(),
        }))
    }

    /// Checks that a tunnel may lead to a server, as far as that is known before its requests. A tunnel to a
    /// repository's name is also allowed if it may lead to the upstream behind the name; each request in it is checked
    /// on its own.
    pub fn permit_tunnel(&self, server: &Server, address: Option<IpAddr>) -> Result<(), Forbidden> {
        match self.names.behind(server) {
            Some(behind) if address.is_none() && self.anywhere.permit(behind).is_ok() => Ok(()),
            _ => self.anywhere.permit_connection(server, address),
        }
    }

    /// Returns whether TLS with a server is opened.
    pub fn intercepts(&self, server: &Server) -> bool {
        self.door.intercepts(&server.host, server.port) || self.names.behind(server).is_some()
    }

    /// Returns whether `cache.patterns` match a URL.
    pub fn is_pattern(&self, url: &Url) -> bool {
        self.patterns.iter().any(|pattern| pattern.is_match(url.path()))
    }

    /// Returns the configuration's headers for a request that only reads. Returns none if it reads something else, or
    /// if they are not for this client.
    pub fn secrets(&self, url: &Url, identity: &Identity, has_logins: bool) -> Secrets {
        let read = Read::of(url);
        if asks_for_token(url) || hides_path(url) || (read.is_none() && !self.is_pattern(url)) {
            return Secrets::default();
        }
        let name = match &read {
            Some(Read::Name(name)) => Some(name.as_str()),
            _ => None,
        };
        let repositories = self.registries.concerned(url, name);
        let is_theirs = repositories.iter().all(|repository| {
            repository.config.client_consent.is_none() && identity.may_pull(&repository.config.allow, has_logins)
        });
        if !is_theirs {
            return Secrets::default();
        }
        let is_named = self.registries.is_known(url);
        let mut secrets = Secrets::default();
        let upstream = repositories.first().and_then(|repository| repository.config.upstreams.first());
        secrets.set.extend(upstream.into_iter().flat_map(|upstream| upstream.headers.iter().cloned()));
        for rule in self.door.host_headers.iter().filter(|rule| rule.may_go_to(url, is_named)) {
            secrets.set.extend(rule.set.iter().cloned());
            secrets.append.extend(rule.append.iter().cloned());
        }
        secrets
    }

    /// Sends a request to its server.
    pub async fn send(
        &self,
        request: reqwest::Request,
        server: &Server,
        is_upgrade: bool,
    ) -> Result<reqwest::Response, PassError> {
        match self.registries.upstream_of(request.url()) {
            Some(upstream) => Ok(upstream.pass(request).await?),
            None => self.anywhere.send(request, server, is_upgrade).await,
        }
    }
}
