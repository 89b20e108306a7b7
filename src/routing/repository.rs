//! A repository, and a name within it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config;
use crate::index::{Scope, TagKey, Viewer};
use crate::oci::{Name, Tag};
use crate::upstream::{OTHER_HOSTS, Upstreams, Who};

/// A repository with the clients of its upstreams.
pub struct Repository {
    pub config: config::Repository,
    pub upstreams: Upstreams,
    /// Whether the configuration names its upstreams; what others say that they have they have to show.
    pub is_trusted: bool,
    /// Whether it is one of the configuration's, and not made up for a host.
    pub is_configured: bool,
    /// Whether it is found out which of its objects are for everybody.
    pub learns_public: bool,
}

impl Repository {
    /// The local prefix, which names the repository in the index, in logs and in metrics.
    pub fn prefix(&self) -> &str {
        &self.config.prefix
    }

    /// What it is called in metrics: of those that only clients name there may be any number.
    pub fn metrics_label(&self) -> &str {
        if self.is_configured { self.prefix() } else { OTHER_HOSTS }
    }

    /// Who is shown what its upstreams show: whose credentials these are asked with tells the scope.
    pub fn viewer(&self) -> Viewer {
        let scope = if self.config.client_consent.is_some() { Scope::ByClients } else { Scope::Own };
        Viewer::new(self.prefix(), scope)
    }

    /// Who is shown what its upstreams show without any credentials.
    pub fn everybody(&self) -> Viewer {
        Viewer::new(self.prefix(), Scope::Public)
    }
}

/// A repository and the name within it, as its upstreams know it.
#[derive(Clone)]
pub struct Target {
    pub repository: Arc<Repository>,
    pub name: Name,
    /// As whom its upstreams are asked.
    pub who: Who,
    /// Whether only a scope and the tag led here.
    pub is_by_tag: bool,
    /// The address that the client is counted by.
    pub client: Option<IpAddr>,
}

impl Target {
    /// Under what a tag of the name is kept.
    pub fn tag_key(&self, tag: &Tag) -> TagKey {
        TagKey {
            repository: self.repository.prefix().to_owned(),
            shelf: self.repository.config.shelf(),
            name: self.name.to_string(),
            tag: tag.to_string(),
        }
    }
}
