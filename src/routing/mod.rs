//! Which repository a request is for.

mod own;
mod repository;
mod unknown;

use std::collections::HashMap;
use std::sync::Arc;

use quick_cache::sync::Cache;

pub use own::OwnNames;
pub use repository::{Repository, Target};
use unknown::Unknown;

use crate::config::error::nearest;
use crate::config::{self, Config, plain_host};
use crate::observe::{Metrics, RepositoryCounters};
use crate::oci::Name;
use crate::oci::name::InvalidName;
use crate::upstream::{BuildError, Clients, Upstreams, Who};

/// The parts of a request that decide its repository.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// `?ns=`
    pub namespace: Option<&'a str>,
    /// `Host`, with or without a port.
    pub host: Option<&'a str>,
    /// The name as the client wrote it, with whatever prefix it has.
    pub path: &'a str,
    pub tag: Option<&'a str>,
}

/// Why a request leads to no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    #[error("no repository has the namespace `{0}`; add it to a [repository] table of larder.toml")]
    UnknownNamespace(String),
    #[error(
        "no repository serves `{0}`; begin the name with a configured prefix such as docker.io/ or set server.default_repository"
    )]
    UnknownName(String),
    /// A name that begins with the host of a registry. `nearest`: the repository whose prefix is most like it.
    #[error("no repository serves `{name}`: {}", to_do_about(.host, .nearest.as_deref()))]
    UnknownRegistry { name: String, host: String, nearest: Option<String> },
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
}

/// Returns what to do about a name that begins with the host of a registry that no repository is for.
fn to_do_about(host: &str, nearest: Option<&str>) -> String {
    let add = format!("add [repository.\"{host}\"] to larder.toml");
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`? Or {add}"),
        None => add,
    }
}

/// All repositories, and how requests select them.
pub struct Routing {
    /// In the order of the configuration.
    repositories: Vec<Arc<Repository>>,
    by_namespace: HashMap<String, usize>,
    by_host: HashMap<String, usize>,
    by_prefix: HashMap<String, usize>,
    default: Option<usize>,
    /// Names that a scope matched together with a tag. Requests for these names by digest go to the same repository.
    scoped: Cache<String, usize>,
    /// Registries that clients asked for and that no repository is for.
    unknown: Unknown,
    /// Whether there is a proxy door, whose clients name registries themselves.
    has_proxy_door: bool,
}

/// Most names that are kept in `scoped`.
const SCOPED: usize = 10_000;

impl Routing {
    /// Makes the repositories of a configuration, with the clients of their upstreams.
    pub fn new(config: &Config, clients: &Clients, metrics: &Arc<Metrics>) -> Result<Self, BuildError> {
        let repositories = config
            .repositories
            .iter()
            .map(|repository| {
                let upstreams = Upstreams::new(&repository.upstreams, clients, metrics)?;
                let has_headers = repository.upstreams.iter().any(|upstream| !upstream.headers.is_empty());
                if has_headers && repository.client_consent.is_some() {
                    let repository = &repository.prefix;
                    tracing::warn!(repository, "its `headers` are not sent, since client_credentials = \"pass\" leaves it to the clients to log in");
                }
                Ok(Arc::new(Repository {
                    counters: RepositoryCounters::new(&repository.prefix),
                    config: repository.clone(),
                    upstreams,
                    is_trusted: true,
                    is_configured: true,
                    learns_public: false,
                }))
            })
            .collect::<Result<Vec<_>, BuildError>>()?;
        let table = |keys: fn(&config::Repository) -> Vec<String>| -> HashMap<String, usize> {
            let numbered = config.repositories.iter().enumerate();
            numbered.flat_map(|(at, repository)| keys(repository).into_iter().map(move |key| (key, at))).collect()
        };
        let by_prefix = table(|repository| vec![repository.prefix.clone()]);
        let default = config.server.default_repository.as_ref().and_then(|prefix| by_prefix.get(prefix).copied());
        Ok(Self {
            by_namespace: table(|repository| repository.namespaces.clone()),
            by_host: table(|repository| repository.hosts.clone()),
            by_prefix,
            default,
            scoped: Cache::new(SCOPED),
            unknown: Unknown::default(),
            has_proxy_door: config.proxy.is_some(),
            repositories,
        })
    }

    /// Returns the target of a request, by the first of namespace, host, longest prefix, scope and default that
    /// matches.
    pub fn route(&self, asked: Asked<'_>) -> Result<Target, RoutingError> {
        if let Some(namespace) = asked.namespace {
            let at = self.by_namespace.get(&plain_host(namespace));
            let at = at.ok_or_else(|| {
                self.unknown.tell(namespace);
                RoutingError::UnknownNamespace(namespace.to_owned())
            })?;
            return self.target(*at, self.without_prefix(*at, asked.path));
        }
        if let Some(at) = asked.host.and_then(|host| self.at_host(host)) {
            return self.target(at, self.without_prefix(at, asked.path));
        }
        if let Some((at, rest)) = self.longest_prefix(asked.path) {
            return self.target(at, rest);
        }
        let (at, is_by_tag) = self.at_scope(asked);
        if let (None, Some(host)) = (at, host_of(asked.path)) {
            self.unknown.tell(host);
            return Err(self.no_registry(asked.path, host));
        }
        match at.or(self.default) {
            Some(at) => Ok(Target { is_by_tag, ..self.target(at, asked.path)? }),
            // A malformed name is reported as malformed, whichever repository it was meant for.
            None => {
                let name: Name = asked.path.parse()?;
                Err(RoutingError::UnknownName(name.to_string()))
            }
        }
    }

    /// Returns where the cached content of a name is, as people write the name: the prefix of the repository and the
    /// name within it. A host that no repository has is one that only clients of the proxy door name.
    pub fn locate(&self, path: &str) -> Result<(String, Name), RoutingError> {
        let asked = Asked { path, ..Asked::default() };
        if let Some((host, name)) = path.split_once('/')
            && (host_of(path).is_some() || host == "localhost")
            && self.longest_prefix(path).is_none()
            && self.at_scope(asked).0.is_none()
        {
            return Ok((host.to_owned(), name.parse()?));
        }
        let target = self.route(asked)?;
        Ok((target.repository.prefix().to_owned(), target.name))
    }

    /// Returns the error for a name that begins with a host which no repository is for.
    fn no_registry(&self, path: &str, host: &str) -> RoutingError {
        RoutingError::UnknownRegistry {
            name: path.to_owned(),
            host: host.to_owned(),
            nearest: self.nearest(host).map(str::to_owned),
        }
    }

    /// Returns the prefix of a repository that a text is most like, if it is like any.
    pub fn nearest(&self, text: &str) -> Option<&str> {
        nearest(text, self.prefixes())
    }

    /// Fails if content of this name can never come into the cache, because no repository is for the registry that the
    /// name begins with, and there is no proxy door either.
    pub fn expects(&self, path: &str) -> Result<(), RoutingError> {
        let is_known = self.has_proxy_door || self.longest_prefix(path).is_some();
        let asked = Asked { path, ..Asked::default() };
        match host_of(path) {
            Some(host) if !is_known && self.at_scope(asked).0.is_none() => Err(self.no_registry(path, host)),
            _ => Ok(()),
        }
    }

    /// Returns the prefixes of all repositories.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.repositories.iter().map(|repository| repository.prefix())
    }

    /// Returns whether a path such as `ghcr.io` before `/v2/` leads to a repository.
    pub fn knows_prefix(&self, path: &str) -> bool {
        path.is_empty() || self.by_prefix.contains_key(path) || self.longest_prefix(path).is_some()
    }

    /// Returns whether a repository has this host, with or without a port.
    pub fn has_host(&self, host: &str) -> bool {
        self.at_host(host).is_some()
    }

    fn at_host(&self, host: &str) -> Option<usize> {
        if self.by_host.is_empty() {
            return None;
        }
        let host = host.to_ascii_lowercase();
        let without_port = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        self.by_host.get(&host).or_else(|| self.by_host.get(without_port)).copied()
    }

    fn longest_prefix<'a>(&self, path: &'a str) -> Option<(usize, &'a str)> {
        let slashes = path.rmatch_indices('/').map(|(at, _)| at);
        slashes.filter_map(|slash| Some((*self.by_prefix.get(&path[..slash])?, &path[slash + 1..]))).next()
    }

    /// Removes the prefix from a name: clients that select the repository by namespace or host may still send the
    /// prefix.
    fn without_prefix<'a>(&self, at: usize, path: &'a str) -> &'a str {
        let prefix = self.repositories[at].prefix();
        let rest = path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
        rest.unwrap_or(path)
    }

    /// Returns the repository of the first scope that matches, and whether it matches only with the tag.
    fn at_scope(&self, asked: Asked<'_>) -> (Option<usize>, bool) {
        let with_tag = asked.tag.map(|tag| format!("{}:{tag}", asked.path));
        let first = |text: &str| {
            let matches = |repository: &Arc<Repository>| {
                let mut scopes = repository.config.scopes.iter();
                scopes.any(|scope| scope.is_match(text))
            };
            self.repositories.iter().position(matches)
        };
        let by_name = first(asked.path);
        let by_tag = with_tag.and_then(|text| first(&text)).filter(|at| by_name.is_none_or(|by_name| *at < by_name));
        match (by_tag, by_name) {
            (Some(at), _) => (Some(at), true),
            (None, None) if asked.tag.is_none() => (self.scoped.get(asked.path), false),
            (None, at) => (at, false),
        }
    }

    /// Notes that a tag was served. From now on, requests for its name by digest go to the same repository.
    pub fn served(&self, path: &str, target: &Target) {
        let at = self.by_prefix.get(target.repository.prefix()).filter(|_| target.is_by_tag);
        if let Some(at) = at.filter(|at| self.scoped.get(path) != Some(**at)) {
            self.scoped.insert(path.to_owned(), *at);
        }
    }

    /// Returns the repository that a request for `/v2/` selects, if it selects one.
    pub fn selected(&self, asked: Asked<'_>) -> Option<&Arc<Repository>> {
        let by_namespace = asked.namespace.and_then(|namespace| self.by_namespace.get(&plain_host(namespace)).copied());
        let at = by_namespace.or_else(|| self.at_host(asked.host?)).or_else(|| self.by_prefix.get(asked.path).copied());
        at.map(|at| &self.repositories[at])
    }

    /// Returns the repository of names that no rule matches.
    pub fn default(&self) -> Option<&Arc<Repository>> {
        self.default.map(|at| &self.repositories[at])
    }

    /// Returns all repositories, in the order of the configuration.
    pub fn repositories(&self) -> &[Arc<Repository>] {
        &self.repositories
    }

    fn target(&self, at: usize, name: &str) -> Result<Target, RoutingError> {
        let repository = self.repositories[at].clone();
        let name: Name = name.parse()?;
        let is_one_part = !name.as_str().contains('/');
        let name =
            if repository.config.implies_library && is_one_part { format!("library/{name}").parse()? } else { name };
        Ok(Target { repository, name, who: Who::Larder, is_by_tag: false, may_redirect: true, client: None })
    }
}

/// Returns the first part of a name if it is written as a host: with a dot or a port, as clients tell a registry from
/// a part of a name.
fn host_of(path: &str) -> Option<&str> {
    path.split_once('/').map(|(first, _)| first).filter(|first| first.contains(['.', ':']) && is_host(first))
}

/// Returns whether a text has only what hosts and ports are made of; anything else is a malformed name.
fn is_host(text: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    text.bytes().all(is_character) && text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        [server]
        default_repository = "docker.io"
        [repository."docker.io"]
        [repository."ghcr.io"]
        hosts = ["ghcr.mirror.example"]
        [repository."team"]
        scopes = ["^my-team/.+$", "^my\\.group/.+$", "^tools/app:v1(\\..*)?$"]
        [[repository."team".upstream]]
        url = "https://team.example"
        [[repository."team/deep".upstream]]
        url = "https://deep.example"
    "#;

    fn route(asked: Asked<'_>) -> Result<(String, String), RoutingError> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("larder.toml");
        std::fs::write(&file, CONFIG).expect("written");
        let config = Config::load(&[file], std::iter::empty()).expect("valid");
        let routing = Routing::new(&config, &Clients::default(), &Arc::default()).expect("clients");
        let target = routing.route(asked)?;
        Ok((target.repository.prefix().to_owned(), target.name.to_string()))
    }

    fn assert_route(asked: Asked<'_>, prefix: &str, name: &str) {
        assert_eq!(route(asked), Ok((prefix.to_owned(), name.to_owned())), "{asked:?}");
    }

    #[test]
    fn the_namespace_goes_before_everything() {
        let asked = Asked { namespace: Some("ghcr.io"), path: "team/app", ..Asked::default() };
        assert_route(asked, "ghcr.io", "team/app");
        assert_route(Asked { path: "ghcr.io/team/app", ..asked }, "ghcr.io", "team/app");
        let unknown = Asked { namespace: Some("evil.example"), ..asked };
        assert_eq!(route(unknown), Err(RoutingError::UnknownNamespace("evil.example".to_owned())));
    }

    #[test]
    fn the_host_goes_before_the_prefix() {
        for host in ["ghcr.mirror.example", "GHCR.mirror.example:5000"] {
            assert_route(Asked { host: Some(host), path: "team/app", ..Asked::default() }, "ghcr.io", "team/app");
        }
        assert_route(Asked { host: Some("127.0.0.1:5000"), path: "team/app", ..Asked::default() }, "team", "app");
    }

    #[test]
    fn the_longest_prefix_wins() {
        assert_route(Asked { path: "team/app", ..Asked::default() }, "team", "app");
        assert_route(Asked { path: "team/deep/app", ..Asked::default() }, "team/deep", "app");
        assert_route(Asked { path: "docker.io/library/alpine", ..Asked::default() }, "docker.io", "library/alpine");
    }

    #[test]
    fn scopes_take_names_whole() {
        assert_route(Asked { path: "my-team/app", ..Asked::default() }, "team", "my-team/app");
        assert_route(Asked { path: "tools/app", tag: Some("v1.2"), ..Asked::default() }, "team", "tools/app");
        assert_route(Asked { path: "tools/app", tag: Some("v2"), ..Asked::default() }, "docker.io", "tools/app");
    }

    #[test]
    fn one_part_names_of_docker_hub_gain_library() {
        assert_route(Asked { path: "alpine", ..Asked::default() }, "docker.io", "library/alpine");
        assert_route(Asked { path: "docker.io/alpine", ..Asked::default() }, "docker.io", "library/alpine");
        assert_route(Asked { path: "ghcr.io/alpine", ..Asked::default() }, "ghcr.io", "alpine");
    }

    /// Docker takes a first part with a dot or a colon for a registry (`splitDockerDomain` of distribution/reference).
    #[test]
    fn a_host_that_is_no_repository_is_never_asked_of_the_default_one() {
        for (path, nearest, says) in [
            ("ghcr.oi/team/app", Some("ghcr.io"), "did you mean `ghcr.io`? Or add [repository.\"ghcr.oi\"]"),
            ("xyz.example/app", None, "`xyz.example/app`: add [repository.\"xyz.example\"]"),
            ("cache:5000/app", None, "add [repository.\"cache:5000\"]"),
        ] {
            let error = route(Asked { path, ..Asked::default() }).expect_err(path);
            assert!(error.to_string().contains(says), "{error}");
            let RoutingError::UnknownRegistry { nearest: found, .. } = error else { panic!("{error}") };
            assert_eq!(found.as_deref(), nearest, "{path}");
        }
        let asked = Asked { path: "xyz.example/app", ..Asked::default() };
        assert_route(Asked { namespace: Some("docker.io"), ..asked }, "docker.io", "xyz.example/app");
        assert_route(Asked { path: "a.b", ..asked }, "docker.io", "library/a.b");
        assert_route(Asked { path: "my.group/app", ..asked }, "team", "my.group/app");
    }

    #[test]
    fn malformed_names_are_refused() {
        for path in ["", "A", "a/../b", "docker.io/", "docker.io//a"] {
            assert!(matches!(route(Asked { path, ..Asked::default() }), Err(RoutingError::InvalidName(_))), "{path:?}");
        }
    }
}
