//! The configuration: TOML files and environment variables, read strictly, then checked and typed.
//!
//! A value passes through [`tree`] (the text, and where it is written) → [`raw`] (keys, types, defaults) → [`Config`]
//! (checked; the only form that the rest of Larder sees).

mod acme;
mod auth;
pub(crate) mod built_in;
mod check;
mod cluster;
mod credentials;
mod de;
pub(crate) mod document;
mod environment;
pub(crate) mod error;
mod hint;
mod host;
mod index;
mod key_path;
mod log_filter;
mod mistakes;
mod oidc;
pub(crate) mod origin;
mod pem;
mod proxy;
mod proxy_door;
mod public_url;
pub(crate) mod raw;
pub(crate) mod repository;
mod secret;
mod shapes;
mod show;
mod storage;
mod suspicious;
pub mod tag_pattern;
mod telemetry;
mod tls;
pub(crate) mod tree;
pub(crate) mod units;
mod upstream;
mod warm;
mod watch;
mod web;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use acme::{Acme, AcmeChallenge, ExternalAccount, Hook};
pub use auth::{Allow, Auth, Htpasswd};
pub use cluster::{Cluster, ClusterTls};
pub use credentials::{Credentials, Helper, Login};
pub use error::{ConfigError, ConfigErrors};
pub use host::{HostPattern, plain_host};
pub use index::IndexServer;
#[cfg(test)]
pub use index::test_server as index_server;
pub use oidc::{BrowserLogin, ClaimRule, Issuer, Keys};
pub use proxy::{Proxies, Proxy};
pub use proxy_door::{Allowlist, Forbidden, Permission, ProxyDoor};
pub use raw::{ForwardedHeader, LogFormat, Logging, OnUpstream404, Pattern, Policy, Prefetch};
pub use repository::{Repository, TagPolicy};
pub use secret::Secret;
pub use show::Effective;
pub use storage::{S3, S3Keys};
pub use telemetry::Telemetry;
pub use tls::{ClientRoots, ServerTls};
pub use units::{Amount, Limit};
pub use upstream::{ClientTls, HostHeaders, Upstream, UpstreamUrl};
pub use warm::{WarmImages, WarmSchedule, Which};
pub use watch::Watch;
pub use web::WebAccess;

use built_in::BUILT_IN_DEFAULT;
use check::{Check, Notes};
pub use log_filter::{FilterError, parse_filter};
use mistakes::{FoundBy, Mistakes};
use tree::Node;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub auth: Auth,
    pub cache: Cache,
    /// The server that keeps the index; `None`: it is kept in the cache's directory.
    pub index: Option<IndexServer>,
    /// The bucket in which content is kept; `None`: in the cache directory alone.
    pub s3: Option<S3>,
    /// How other replicas and this one reach each other; `None`: this Larder is alone.
    pub cluster: Option<Cluster>,
    /// In the order of the file.
    pub repositories: Vec<Repository>,
    /// What is kept warm, in the order of the file.
    pub warm: Vec<WarmSchedule>,
    /// `None`: there is no proxy door.
    pub proxy: Option<ProxyDoor>,
    pub admin: Admin,
    pub logging: Logging,
    /// `None`: no traces.
    pub telemetry: Option<Telemetry>,
}

/// `[server]`: the registry door.
#[derive(Clone, Debug)]
pub struct Server {
    pub listen: Vec<SocketAddr>,
    /// The prefix of the repository that serves names which no other rule matches.
    pub default_repository: Option<String>,
    /// Networks of the reverse proxies whose statements about clients are trusted.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// The header with these statements; no other header is read.
    pub forwarded_header: ForwardedHeader,
    /// Names by which clients on this machine may ask this door, beside addresses and `localhost`.
    pub hosts: Vec<HostPattern>,
    /// The URL by which clients reach the door, without a slash at the end. `None`: as the request says.
    pub public_url: Option<String>,
    /// Whether connections of `trusted_proxies` begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// How long a connection is kept open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of a running response.
    pub stall_timeout: Duration,
    /// How long running transfers may go on after a request to stop.
    pub shutdown_grace: Duration,
    /// `None`: no limit.
    pub max_connections: Option<usize>,
    /// `None`: no limit.
    pub max_connections_per_address: Option<usize>,
    /// `None`: plain HTTP.
    pub tls: Option<ServerTls>,
}

/// `[cache]`: what is stored, and for how long.
#[derive(Clone, Debug)]
pub struct Cache {
    pub dir: PathBuf,
    /// Whether a file or variable names the directory; otherwise it is the default one.
    pub is_dir_named: bool,
    /// Most bytes of objects and downloads together.
    pub max_size: Amount,
    /// Space that is always kept free on the filesystem.
    pub min_free: Amount,
    /// Objects that no client has asked for in this time are removed.
    pub ttl: Limit,
    pub policy: Policy,
    /// How long an abandoned partial download is kept, so that it can be continued.
    pub partial_ttl: Duration,
    /// Patterns of URL paths: content that comes through the proxy door is cached, too, if its path matches.
    pub patterns: Vec<Pattern>,
}

/// `[admin]`: the API and the metrics.
#[derive(Clone, Debug)]
pub struct Admin {
    pub listen: Vec<SocketAddr>,
    /// Clients that may use this door, and change what they like; never empty.
    pub allow: Vec<Allow>,
    /// Clients that may look, beside these, and change nothing.
    pub read: Vec<Allow>,
    /// Names by which clients may ask this door without a login, beside addresses and `localhost`.
    pub hosts: Vec<HostPattern>,
}

/// Where a configuration is read from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Later files override earlier ones.
    files: Vec<PathBuf>,
    environment: Vec<(String, String)>,
}

/// The result of reading a configuration.
#[derive(Debug)]
pub struct Loaded {
    pub config: Result<Config, ConfigErrors>,
    /// What is allowed and hardly meant, each with its place.
    pub warnings: Vec<String>,
    /// All files that the configuration depends on, as far as reading came: its own files, certificates, passwords.
    pub files: Vec<PathBuf>,
}

/// Returns the environment variables. Bytes of a value that are not UTF-8 are replaced.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

impl Sources {
    /// Names the sources: the environment, and the given files, or those of [`Self::files`] if none is given.
    pub fn new(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>) -> Self {
        Self { files: files.to_vec(), environment: environment.collect() }
    }

    /// Returns the files that are read: the given files; if none is given, `larder.toml` or else
    /// `/etc/larder/larder.toml`, whichever exists.
    pub fn files(&self) -> Vec<PathBuf> {
        tree::files(&self.files)
    }

    /// Returns the files that are read, or would be read if they existed.
    pub fn files_to_watch(&self) -> Vec<PathBuf> {
        tree::to_watch(&self.files)
    }

    /// Reads the files, lays the environment over them and checks the result.
    pub fn load(&self) -> Loaded {
        let notes = Notes::default();
        notes.files.borrow_mut().extend(self.files_to_watch());
        let config = self.read().and_then(|(tree, wrong)| Config::of(tree, wrong, &self.environment, &notes));
        let mut warnings = environment::misspelt(&self.environment);
        warnings.extend(notes.warnings.into_inner());
        Loaded { config, warnings, files: notes.files.into_inner() }
    }

    /// Returns the tree of all sources, and the environment variables that cannot be used.
    fn read(&self) -> Result<(Node, Vec<ConfigError>), ConfigErrors> {
        let mut tree = Node::empty();
        let mut unreadable = Vec::new();
        for file in self.files() {
            match Node::read(&file) {
                Ok(read) => tree.merge(read),
                Err(error) => unreadable.push(error),
            }
        }
        ConfigErrors::unless_none(unreadable)?;
        let wrong = environment::lay_over(&mut tree, &self.environment);
        Ok((tree, wrong))
    }
}

impl Config {
    /// Does the same as [`Sources::load`], for code that reads the configuration only once.
    pub fn load(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        Sources::new(files, environment).load().config
    }

    /// Reads and checks what is written in `tree`. `wrong`: mistakes that were found before.
    fn of(
        mut tree: Node,
        wrong: Vec<ConfigError>,
        environment: &[(String, String)],
        notes: &Notes,
    ) -> Result<Self, ConfigErrors> {
        let mut mistakes = Mistakes::default();
        for error in wrong {
            mistakes.add(error, FoundBy::Reading, &mut tree);
        }
        loop {
            notes.warnings.borrow_mut().clear();
            let (error, by) = match de::from_tree(&tree, environment) {
                Err(error) => (error, FoundBy::Reading),
                Ok(raw) => match Self::from_raw(raw, &tree, environment, notes) {
                    Ok(config) => return mistakes.unless_any(config),
                    Err(error) => (error, FoundBy::Comparing),
                },
            };
            if !mistakes.add(error, by, &mut tree) {
                return Err(mistakes.into_errors());
            }
        }
    }

    /// Checks that a text is a configuration; the files that it names may be missing.
    pub(crate) fn check_text(text: &str) -> Result<(), ConfigError> {
        let tree = Node::parse(Path::new("larder.toml"), text)?;
        let mut file: raw::File = de::from_tree(&tree, &[])?;
        file.forget_files();
        Self::from_raw(file, &tree, &[], &Notes::default()).map(drop)
    }

    fn from_raw(
        mut file: raw::File,
        tree: &Node,
        environment: &[(String, String)],
        notes: &Notes,
    ) -> Result<Self, ConfigError> {
        repository::fill_in(&mut file.repository, file.server.builtin_repositories);
        let check = Check { tree, notes };

        let (around, tls) = check_around(&check, &mut file, environment)?;
        let proxies = around.proxies.clone();
        let repositories = repository::check_all(&check, file.repository, &around)?;
        let warm = warm::check(&check, &file.warm)?;
        let public_url = public_url::check(&check, &file.server)?;
        let default_repository = check_default(&check, file.server.default_repository, &repositories)?;
        let has_patterns = !file.cache.patterns.is_empty();
        let proxy = proxy_door::check(&check, file.proxy, file.allowlist, has_patterns, &repositories, &around)?;
        let proxy_listen = proxy.as_ref().map(|proxy| proxy.listen.as_slice()).unwrap_or_default();
        let cluster_listen = file.cluster.as_ref().and_then(|cluster| cluster.listen.as_ref());
        let cluster_listen = cluster_listen.map(|listen| listen.0.as_slice()).unwrap_or_default();
        let doors = [&file.server.listen.0, &file.admin.listen.0, proxy_listen, cluster_listen];
        check_doors(&check, doors, tls.as_ref())?;
        let hosts = check_hosts(&check, "server", &file.server.hosts)?;
        let admin = check_admin(&check, file.admin, &around.auth)?;
        let cache = check_cache(&check, file.cache, file.storage.s3.is_some())?;
        let index = index::check(&check, &file.index)?;
        let s3 = storage::check(&check, file.storage, &proxies)?;
        let cluster = cluster::check(&check, file.cluster, index.is_some())?;
        check_level(&check, &file.logging.level)?;
        let telemetry = telemetry::check(&check, &file.telemetry, &proxies)?;
        let config = Self {
            server: Server {
                listen: file.server.listen.0,
                default_repository,
                trusted_proxies: file.server.trusted_proxies.iter().map(|network| network.0).collect(),
                forwarded_header: file.server.forwarded_header,
                hosts,
                public_url,
                proxy_protocol: file.server.proxy_protocol,
                idle_timeout: file.server.idle_timeout.0,
                stall_timeout: file.server.stall_timeout.0,
                shutdown_grace: file.server.shutdown_grace.0,
                max_connections: limit(file.server.max_connections),
                max_connections_per_address: limit(file.server.max_connections_per_address),
                tls,
            },
            auth: around.auth,
            cache,
            index,
            s3,
            cluster,
            repositories,
            warm,
            proxy,
            admin,
            logging: file.logging,
            telemetry,
        };
        suspicious::warn(&check, &config);
        Ok(config)
    }
}

/// Checks what the repositories need: headers, proxies, logins; and the server's TLS.
fn check_around(
    check: &Check<'_>,
    file: &mut raw::File,
    environment: &[(String, String)],
) -> Result<(upstream::Around, Option<ServerTls>), ConfigError> {
    let around = upstream::Around {
        host_headers: upstream::check_host_headers(check, std::mem::take(&mut file.headers))?,
        proxies: Proxies::of_environment(environment),
        auth: Auth::default(),
        has_certificates: false,
    };
    let tls = file.server.tls.take().map(|written| tls::check(check, written, &around.proxies)).transpose()?;
    let proxies = around.proxies.clone();
    let auth = auth::check(check, std::mem::take(&mut file.auth), &proxies)?;
    let around =
        upstream::Around { has_certificates: tls.as_ref().is_some_and(|tls| tls.clients.is_some()), auth, ..around };
    Ok((around, tls))
}

fn check_admin(check: &Check<'_>, written: raw::Admin, auth: &Auth) -> Result<Admin, ConfigError> {
    let managers = auth::check_managers(&written, auth);
    let managers = managers.map_err(|(key, message)| check.invalid(&["admin", key], message))?;
    let hosts = check_hosts(check, "admin", &written.hosts)?;
    Ok(Admin { listen: written.listen.0, allow: managers.allow, read: managers.read, hosts })
}

fn check_cache(check: &Check<'_>, written: raw::Cache, has_bucket: bool) -> Result<Cache, ConfigError> {
    if written.dir.as_os_str().is_empty() {
        let message = "it is empty; write for example dir = \"/var/lib/larder\"";
        return Err(check.invalid(&["cache", "dir"], message));
    }
    if written.max_size.of(u64::MAX) == Some(0) {
        let message = "nothing could be stored; write \"none\" for no limit, or for example \"20GiB\" or \"50%\"";
        return Err(check.invalid(&["cache", "max_size"], message));
    }
    if has_bucket && matches!(written.max_size, Amount::Share(_)) {
        let message = "with [storage.s3] it limits what is in the bucket, which has no size of which this could be a \
                       share; write for example \"2TiB\" or \"none\", and storage.s3.tier_size for the disk";
        return Err(check.invalid(&["cache", "max_size"], message));
    }
    Ok(Cache {
        dir: written.dir,
        is_dir_named: check.is_written(&["cache", "dir"]),
        max_size: written.max_size,
        min_free: written.min_free,
        ttl: written.ttl,
        policy: written.policy,
        partial_ttl: written.partial_ttl.0,
        patterns: written.patterns,
    })
}

/// Checks `logging.level`.
fn check_level(check: &Check<'_>, level: &str) -> Result<(), ConfigError> {
    let checked = parse_filter(level).map(drop);
    checked.map_err(|error| {
        let message = format!(
            "{error}; write error, warn, info, debug, trace, or a filter such as \"larder::upstream=debug,info\""
        );
        check.invalid(&["logging", "level"], message)
    })
}

/// Returns a limit of connections; `None` for 0, which means any number.
fn limit(number: u64) -> Option<usize> {
    usize::try_from(number).ok().filter(|&limit| limit > 0)
}

/// Checks `hosts` of a door.
fn check_hosts(check: &Check<'_>, table: &str, written: &[String]) -> Result<Vec<HostPattern>, ConfigError> {
    let parse = |text: &String| match HostPattern::parse(text) {
        Ok(pattern) if !pattern.is_any_host() => Ok(pattern),
        Ok(_) => Err(format!("`{text}` would let in every page that has its name lead here; write the names")),
        Err(_) => Err(format!("`{text}` is no host; write for example hosts = [\"mirror.lan\"]")),
    };
    let hosts: Result<_, _> = written.iter().map(parse).collect();
    hosts.map_err(|message| check.invalid(&[table, "hosts"], message))
}

/// Checks that no address is used twice, by one door or by two.
fn check_doors(
    check: &Check<'_>,
    [registry, admin, proxy, cluster]: [&[SocketAddr]; 4],
    tls: Option<&ServerTls>,
) -> Result<(), ConfigError> {
    let acme = match tls.and_then(|tls| tls.acme.as_ref()).map(|acme| &acme.challenge) {
        Some(AcmeChallenge::Http01 { listen }) => listen.as_slice(),
        _ => &[],
    };
    let doors: [(&[&str], &[SocketAddr]); 5] = [
        (&["server", "listen"], registry),
        (&["admin", "listen"], admin),
        (&["proxy", "listen"], proxy),
        (&["cluster", "listen"], cluster),
        (&["server", "tls", "acme", "http_listen"], acme),
    ];
    let mut taken: Vec<(&SocketAddr, &[&str])> = Vec::new();
    for (key, addresses) in doors {
        for address in addresses.iter().filter(|address| address.port() != 0) {
            match taken.iter().find(|(other, _)| *other == address) {
                Some((_, by)) if *by == key => {
                    return Err(check.invalid(key, format!("{address} is there twice; remove one of them")));
                }
                Some((_, by)) => {
                    let message = format!("{address} is in `{}` too; choose another port", by.join("."));
                    return Err(check.invalid(key, message));
                }
                None => taken.push((address, key)),
            }
        }
    }
    Ok(())
}

fn check_default(
    check: &Check<'_>,
    named: Option<String>,
    repositories: &[Repository],
) -> Result<Option<String>, ConfigError> {
    let exists = |prefix: &str| repositories.iter().any(|repository| repository.prefix == prefix);
    match named {
        None => Ok(exists(BUILT_IN_DEFAULT).then(|| BUILT_IN_DEFAULT.to_owned())),
        Some(none) if none.is_empty() => Ok(None),
        Some(prefix) if exists(&prefix) => Ok(Some(prefix)),
        // The mistake in the repository's own table is reported.
        Some(prefix) if check.is_written(&["repository", &prefix]) => Ok(None),
        Some(prefix) => {
            let nearest = error::nearest(&prefix, repositories.iter().map(|repository| repository.prefix.as_str()));
            let hint = match nearest {
                Some(name) => format!("did you mean `{name}`?"),
                None => "add it, or write \"\" for none".to_owned(),
            };
            let message = format!("there is no [repository.\"{prefix}\"]; {hint}");
            Err(check.invalid(&["server", "default_repository"], message))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod wrong;
