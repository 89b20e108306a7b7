//! The registries behind the proxy door: the repositories of the registry door, for clients that name the registry
//! itself, and the registries that only clients name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use url::Url;

use super::refused::Refused;
use super::secrets;
use crate::config::{self, ClientTls, Config, Proxy, ProxyDoor, UpstreamUrl};
use crate::failure::{Failure, FailureKind};
use crate::observe::{Metrics, RepositoryCounters};
use crate::oci::Name;
use crate::routing::Repository;
use crate::upstream::{Anywhere, BuildError, Clients, Server, Upstream, Upstreams};

/// Most registries that are kept of those that only clients name.
const MAX_OTHERS: usize = 256;

/// The registries behind the proxy door, by their origins.
pub struct Registries {
    known: HashMap<String, Vec<Arc<Repository>>>,
    /// The same upstreams without Larder's credentials, for forwarded requests: nothing tells the server that Larder
    /// sends them.
    ways: HashMap<String, Upstreams>,
    others: Mutex<HashMap<String, Arc<Repository>>>,
    /// What the repositories of `others` are made of.
    made: Made,
}

struct Made {
    door: ProxyDoor,
    /// Prefixes of configured repositories.
    taken: Vec<String>,
    clients: Clients,
    metrics: Arc<Metrics>,
}

impl Registries {
    /// Makes the registries of a configuration.
    pub fn new(
        config: &Config,
        door: &ProxyDoor,
        clients: &Clients,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, BuildError> {
        let mut known = HashMap::<String, Vec<Arc<Repository>>>::new();
        let mut ways = HashMap::new();
        for repository in &config.repositories {
            for upstream in &repository.upstreams {
                let origin = key(&upstream.url.origin);
                let made = of_repository(repository, upstream, door, clients, metrics)?;
                let way = Upstreams::new(&[bare(upstream)], clients, metrics)?;
                ways.entry(origin.clone()).or_insert(way);
                known.entry(origin).or_default().push(Arc::new(made));
            }
        }
        let made = Made {
            door: door.clone(),
            taken: config.repositories.iter().map(|repository| repository.prefix.clone()).collect(),
            clients: Clients::new(clients.shared().of_others()),
            metrics: metrics.clone(),
        };
        Ok(Self { known, ways, others: Mutex::default(), made })
    }

    /// Returns whether a server is an upstream of the configuration.
    pub fn is_known(&self, url: &Url) -> bool {
        self.known.contains_key(&key(url))
    }

    /// Returns the configured repositories that a request to a server concerns: the repository of the name, or all
    /// repositories at this server if there is no name.
    pub fn concerned(&self, url: &Url, name: Option<&str>) -> Vec<&Arc<Repository>> {
        let repositories = self.known.get(&key(url)).map(Vec::as_slice).unwrap_or_default();
        match name.and_then(|name| inside(repositories, name)) {
            Some(repository) => vec![repository],
            None => repositories.iter().collect(),
        }
    }

    /// Returns the upstream for forwarding to a server, if the configuration has it as an upstream.
    pub fn upstream_of(&self, url: &Url) -> Option<&Upstream> {
        self.ways.get(&key(url)).map(|way| &way[0])
    }

    /// Returns the repository of a name at a registry, and the name within it.
    pub fn find(&self, url: &Url, name: &str, anywhere: &Anywhere) -> Result<Option<(Arc<Repository>, Name)>, Refused> {
        let key = key(url);
        let Ok(whole) = name.parse::<Name>() else {
            return Ok(None);
        };
        if let Some(repositories) = self.known.get(&key) {
            let found = inside(repositories, name);
            return Ok(found.and_then(|repository| Some((repository.clone(), name_inside(repository, name)?))));
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repository) = others.get(&key) {
            return Ok(Some((repository.clone(), whole)));
        }
        let repository = Arc::new(self.made.other(url, anywhere)?);
        if others.len() >= MAX_OTHERS {
            others.clear();
        }
        others.insert(key, repository.clone());
        Ok(Some((repository, whole)))
    }
}

impl Made {
    /// Makes the repository of a registry that the configuration does not have.
    fn other(&self, url: &Url, anywhere: &Anywhere) -> Result<Repository, Refused> {
        let refuse = |error: &dyn std::fmt::Display| Refused::Failure(Failure::new(FailureKind::Unavailable, error));
        let server = Server::new(url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
            .map_err(|error| refuse(&error))?;
        let permission = anywhere.permit(&server)?;
        let mut origin = url.clone();
        origin.set_path("/");
        origin.set_query(None);
        let proxies = &self.door.proxies;
        let proxy = match proxies.http.is_none() && proxies.https.is_none() {
            true => Proxy::Direct,
            false => Proxy::Through(proxies.clone()),
        };
        let tls = ClientTls { further_roots: self.door.upstream_roots.clone(), ..ClientTls::default() };
        let confined_to = (!permission.is_named).then_some(permission.networks);
        let upstream = config::Upstream::named_by_client(
            UpstreamUrl { origin, namespace: String::new() },
            tls,
            proxy,
            self.door.host_headers.clone(),
            confined_to,
        );
        let scheme = url.scheme();
        // Another scheme is another server, and a configured repository of this name may have other upstreams.
        let mut prefix = if scheme == "http" { format!("http:{server}") } else { server.authority(scheme) };
        if self.taken.contains(&prefix) {
            prefix = format!("{scheme}:{prefix}");
        }
        let upstreams = Upstreams::new(std::slice::from_ref(&upstream), &self.clients, &self.metrics);
        let consent = self.door.consent.filter(|_| !secrets::speak_for(&self.door.host_headers, url, false));
        let mut config = config::Repository::named_by_client(prefix, upstream, consent);
        config.allow.clone_from(&self.door.allow);
        Ok(Repository {
            config,
            upstreams: upstreams.map_err(|error| refuse(&error))?,
            is_trusted: self.door.trusts(url),
            is_configured: false,
            learns_public: true,
            counters: self.metrics.other_hosts.clone(),
        })
    }
}

/// Makes a configured repository for clients that name one of its upstreams, with that upstream alone. Where the
/// client's own credentials decide, nothing of the configuration logs in there. With `client_credentials = "pass"` of
/// the door, only the configuration's headers log in there, and then they decide.
fn of_repository(
    repository: &config::Repository,
    upstream: &config::Upstream,
    door: &ProxyDoor,
    clients: &Clients,
    metrics: &Arc<Metrics>,
) -> Result<Repository, BuildError> {
    let is_spoken_for =
        !upstream.headers.is_empty() || secrets::speak_for(&door.host_headers, &upstream.url.origin, true);
    let consent = repository.client_consent.or(door.consent.filter(|_| !is_spoken_for));
    let upstream = match (consent, door.consent) {
        (Some(_), _) => bare(upstream),
        (None, Some(_)) => config::Upstream { headers: upstream.headers.clone(), ..bare(upstream) },
        (None, None) => upstream.clone(),
    };
    let upstreams = Upstreams::new(std::slice::from_ref(&upstream), clients, metrics)?;
    let one_of_several = repository.upstreams.len() > 1;
    let upstreams_of = vec![upstream];
    let mut config =
        config::Repository { client_consent: consent, upstreams: upstreams_of, one_of_several, ..repository.clone() };
    config.forget_absences();
    let counters = RepositoryCounters::new(&config.prefix);
    Ok(Repository { config, upstreams, is_trusted: true, is_configured: true, learns_public: true, counters })
}

/// Returns the upstream without its own credentials.
fn bare(upstream: &config::Upstream) -> config::Upstream {
    let mut upstream = upstream.clone();
    upstream.credentials = None;
    upstream.tls.identity = None;
    upstream.headers.clear();
    upstream
}

/// Returns the repository at a server that has a name, the one with the longest namespace.
fn inside<'a>(repositories: &'a [Arc<Repository>], name: &str) -> Option<&'a Arc<Repository>> {
    let is_inside = |repository: &&Arc<Repository>| name_inside(repository, name).is_some();
    let length = |repository: &&Arc<Repository>| repository.config.upstreams[0].url.namespace.len();
    repositories.iter().filter(is_inside).max_by_key(length)
}

fn key(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Returns a name without the namespace, as the repository's own upstream knows it.
fn name_inside(repository: &Repository, name: &str) -> Option<Name> {
    let namespace = &repository.config.upstreams.first()?.url.namespace;
    let rest = match namespace.is_empty() {
        true => name,
        false => name.strip_prefix(namespace.as_str())?.strip_prefix('/')?,
    };
    rest.parse().ok()
}
