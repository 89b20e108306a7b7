//! A repository, and a name within it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config;
use crate::index::{Scope, TagKey, Viewer};
use crate::observe::RepositoryCounters;
use crate::oci::{Name, Tag};
use crate::upstream::{Upstreams, Who};

/// A repository with the clients of its upstreams.
pub struct Repository {
    pub config: config::Repository,
    pub upstreams: Upstreams,
    /// Whether the configuration names its upstreams. Other upstreams have to send an object to prove that they have
    /// the object.
    pub is_trusted: bool,
    /// Whether the configuration has this repository; `false` if it was made for a host that a client named.
    pub is_configured: bool,
    /// Whether Larder finds out which of its objects are public.
    pub learns_public: bool,
    /// Its counters. Repositories that only clients name share a name in metrics: there may be any number of them.
    pub counters: Arc<RepositoryCounters>,
}

impl Repository {
    /// Returns the local prefix, which names the repository in the index, in logs and in metrics.
    pub fn prefix(&self) -> &str {
        &self.config.prefix
    }

    /// Returns the viewer of what its upstreams show. The scope depends on whose credentials the upstreams are asked
    /// with.
    pub fn viewer(&self) -> Viewer {
        let scope = if self.config.client_consent.is_some() { Scope::ByClients } else { Scope::Own };
        Viewer::new(self.prefix(), scope)
    }

    /// Returns the viewer of what its upstreams show without credentials.
    pub fn everybody(&self) -> Viewer {
        Viewer::new(self.prefix(), Scope::Public)
    }
}

/// A repository and a name within it, as its upstreams know the name.
#[derive(Clone)]
pub struct Target {
    pub repository: Arc<Repository>,
    pub name: Name,
    /// The credentials that its upstreams are asked with.
    pub who: Who,
    /// Whether a scope that matches only with the tag led here.
    pub is_by_tag: bool,
    /// Whether the client may be sent elsewhere for a blob: not at the proxy door, where it asked another host.
    pub may_redirect: bool,
    /// The address by which the client is counted.
    pub client: Option<IpAddr>,
}

impl Target {
    /// Returns the key under which a tag of the name is kept.
    pub fn tag_key(&self, tag: &Tag) -> TagKey {
        TagKey {
            repository: self.repository.prefix().to_owned(),
            shelf: self.repository.config.shelf(),
            name: self.name.to_string(),
            tag: tag.to_string(),
        }
    }
}
