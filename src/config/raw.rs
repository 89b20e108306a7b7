//! The file's tables and keys with their defaults, before they are checked against each other.

mod cluster;
mod index;
mod reporting;
mod storage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::secret::{HIDDEN, Secret};
pub use super::shapes::{Addresses, ClaimValues, InOrder, Network, OneOrMany, Pattern, PlatformText};
use super::shapes::{file, files, hook, optional_file, program};
use super::units::{Amount, Limit, Span};
use super::warm::WarmImages;

pub use cluster::Cluster;
pub use index::Index;
pub use reporting::{LogFormat, Logging, Telemetry};
pub use storage::{S3, Storage};

/// The whole file.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct File {
    pub server: Server,
    pub auth: Auth,
    pub cache: Cache,
    pub index: Index,
    pub storage: Storage,
    /// `None`: this Larder is alone.
    pub cluster: Option<Cluster>,
    pub repository: Repositories,
    /// Headers by host.
    pub headers: InOrder<HostHeaders>,
    /// Left out where it is empty: a list without a table would be written as a value, behind other tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warm: Vec<Warm>,
    /// `None`: there is no proxy door.
    pub proxy: Option<Proxy>,
    pub allowlist: Allowlist,
    pub admin: Admin,
    pub logging: Logging,
    pub telemetry: Telemetry,
}

impl File {
    /// Removes the keys that name files or programs, which need not exist here. A password from a file becomes a
    /// placeholder, and a certificate without its key stays (or a key without its certificate), so that later checks
    /// still find what is missing.
    pub fn forget_files(&mut self) {
        self.server.tls = None;
        self.auth.htpasswd = None;
        self.proxy.iter_mut().for_each(|proxy| proxy.upstream_ca_bundle = None);
        if let Some(s3) = &mut self.storage.s3
            && s3.secret_access_key_file.take().is_some()
        {
            s3.access_key_id.clear();
        }
        for (_, oidc) in &mut self.auth.oidc.0 {
            oidc.server_ca_bundle = None;
            if let Some(login) = &mut oidc.login
                && login.client_secret_file.take().is_some()
                && login.client_secret.is_empty()
            {
                login.client_secret = Secret::new(HIDDEN);
            }
        }
        if self.index.password_file.take().is_some() && self.index.password.is_empty() {
            self.index.password = Secret::new(HIDDEN);
        }
        self.index.server_ca_bundle = None;
        if let Some(cluster) = &mut self.cluster {
            if cluster.token_file.take().is_some() && cluster.token.is_empty() {
                cluster.token = Secret::new(HIDDEN.repeat(32));
            }
            // Without its certificates, nothing else of it can be checked.
            if [&cluster.certificate, &cluster.private_key, &cluster.ca_bundle].iter().any(|file| file.is_some()) {
                self.cluster = None;
            }
        }
        for upstream in self.repository.0.iter_mut().flat_map(|(_, repository)| &mut repository.upstream) {
            if upstream.password_file.take().is_some() && upstream.password.is_empty() {
                upstream.password = Secret::new(HIDDEN);
            }
            upstream.credential_helper.clear();
            upstream.docker_config = None;
            upstream.server_ca_bundle = None;
            if upstream.client_certificate.is_some() && upstream.client_private_key.is_some() {
                (upstream.client_certificate, upstream.client_private_key) = (None, None);
            }
        }
    }
}

/// `[server]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Server {
    pub listen: Addresses,
    /// `None`: the built-in default, if there is a repository of that name.
    pub default_repository: Option<String>,
    pub trusted_proxies: Vec<Network>,
    pub forwarded_header: ForwardedHeader,
    pub hosts: Vec<String>,
    pub public_url: String,
    pub proxy_protocol: bool,
    pub idle_timeout: Span,
    pub stall_timeout: Span,
    /// Whether the well-known registries are repositories, beside those of the file.
    pub builtin_repositories: bool,
    pub shutdown_grace: Span,
    pub max_connections: u64,
    pub max_connections_per_address: u64,
    /// `None`: plain HTTP.
    pub tls: Option<ServerTls>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: Addresses(vec![SocketAddr::from(([127, 0, 0, 1], 5000))]),
            default_repository: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::XForwardedFor,
            hosts: Vec::new(),
            public_url: String::new(),
            proxy_protocol: false,
            idle_timeout: Span(Duration::from_secs(600)),
            stall_timeout: Span(Duration::from_secs(1800)),
            builtin_repositories: true,
            shutdown_grace: Span(Duration::from_secs(30)),
            max_connections: 0,
            max_connections_per_address: 0,
            tls: None,
        }
    }
}

/// The header in which reverse proxies state the client that they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto`.
    #[serde(rename = "x-forwarded-for")]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    #[serde(rename = "forwarded")]
    Forwarded,
}

impl TryFrom<String> for ForwardedHeader {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "x-forwarded-for" => Ok(Self::XForwardedFor),
            "forwarded" => Ok(Self::Forwarded),
            _ => Err(format!("`{text}` is not one of `x-forwarded-for`, `forwarded`")),
        }
    }
}

/// `[server.tls]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ServerTls {
    /// One certificate, or a list with as many entries as `private_key`.
    #[serde(deserialize_with = "files")]
    pub certificate: OneOrMany<String>,
    #[serde(deserialize_with = "files")]
    pub private_key: OneOrMany<String>,
    #[serde(deserialize_with = "optional_file")]
    pub client_ca_bundle: Option<PathBuf>,
    pub client_auth: Option<ClientAuth>,
    /// `None`: certificates are files.
    pub acme: Option<Acme>,
}

/// `[server.tls.acme]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Acme {
    pub domains: OneOrMany<String>,
    pub email: String,
    pub challenge: AcmeChallengeType,
    pub directory: String,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub ca_bundle: Option<PathBuf>,
    /// `None`: port 80 of every IPv4 address.
    pub http_listen: Option<Addresses>,
    #[serde(deserialize_with = "hook")]
    pub dns_hook: Vec<String>,
    pub eab_key_id: String,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub eab_hmac_key_file: Option<PathBuf>,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            domains: OneOrMany::default(),
            email: String::new(),
            challenge: AcmeChallengeType::TlsAlpn01,
            directory: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            ca_bundle: None,
            http_listen: None,
            dns_hook: Vec::new(),
            eab_key_id: String::new(),
            eab_hmac_key_file: None,
        }
    }
}

/// How Larder proves that it controls the domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum AcmeChallengeType {
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    #[serde(rename = "http-01")]
    Http01,
    #[serde(rename = "dns-01")]
    Dns01,
}

/// `[auth]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Auth {
    pub allow_cidrs: Vec<Network>,
    /// `None`: no client logs in with a password.
    pub htpasswd: Option<Htpasswd>,
    /// Issuers by a name that the user chooses.
    pub oidc: InOrder<Oidc>,
}

/// `[auth.oidc."NAME"]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Oidc {
    pub issuer: String,
    pub audience: OneOrMany<String>,
    pub jwks_uri: String,
    pub required_claims: InOrder<ClaimValues>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub server_ca_bundle: Option<PathBuf>,
    /// `None`: nobody logs in to the dashboard by this issuer.
    pub login: Option<OidcLogin>,
}

/// `[auth.oidc."NAME".login]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct OidcLogin {
    pub client_id: String,
    pub client_secret: Secret,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub client_secret_file: Option<PathBuf>,
    pub scopes: Vec<String>,
    pub session_max_age: Span,
}

impl Default for OidcLogin {
    fn default() -> Self {
        Self {
            client_id: String::new(),
            client_secret: Secret::default(),
            client_secret_file: None,
            scopes: ["openid", "profile", "email"].map(str::to_owned).to_vec(),
            session_max_age: Span(Duration::from_secs(12 * 3600)),
        }
    }
}

/// `[auth.htpasswd]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Htpasswd {
    #[serde(deserialize_with = "file")]
    pub path: PathBuf,
    pub realm: String,
}

impl Default for Htpasswd {
    fn default() -> Self {
        Self { path: PathBuf::new(), realm: "larder".to_owned() }
    }
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    Optional,
    Required,
}

/// `[cache]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Cache {
    #[serde(deserialize_with = "file")]
    pub dir: PathBuf,
    pub max_size: Amount,
    pub min_free: Amount,
    pub ttl: Limit,
    pub policy: Policy,
    pub partial_ttl: Span,
    pub patterns: Vec<Pattern>,
}

/// The order in which objects are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The least recently used first.
    Lru,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("./larder-data"),
            max_size: Amount::None,
            min_free: Amount::Share(10),
            ttl: Limit::Unlimited,
            policy: Policy::Lru,
            partial_ttl: Span(Duration::from_secs(24 * 3600)),
            patterns: Vec::new(),
        }
    }
}

/// `[repository]` in the order of the file: among `scopes` the first match wins.
pub type Repositories = InOrder<Repository>;

/// `[repository."…"]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Repository {
    pub namespace: Option<OneOrMany<String>>,
    pub hosts: Vec<String>,
    pub scopes: Vec<Pattern>,
    pub immutable_tags: bool,
    pub immutable_tags_exclusions: Vec<Pattern>,
    pub max_age: Span,
    pub stale_while_revalidate: Span,
    pub stale_if_error: Limit,
    pub on_upstream_404: OnUpstream404,
    pub negative_max_age: Span,
    /// `None`: as `cache.ttl`.
    pub ttl: Option<Limit>,
    pub prefetch: Prefetch,
    pub pin: Vec<Pattern>,
    pub client_credentials: ClientCredentials,
    pub consent_max_age: Span,
    pub allow: Vec<String>,
    pub tag: Vec<TagRule>,
    pub upstream: Vec<Upstream>,
}

impl Default for Repository {
    fn default() -> Self {
        Self {
            namespace: None,
            hosts: Vec::new(),
            scopes: Vec::new(),
            immutable_tags: false,
            immutable_tags_exclusions: Vec::new(),
            max_age: Span(Duration::ZERO),
            stale_while_revalidate: Span(Duration::ZERO),
            stale_if_error: Limit::Unlimited,
            on_upstream_404: OnUpstream404::ServeStale,
            negative_max_age: Span(Duration::from_secs(10)),
            ttl: None,
            prefetch: Prefetch::Pulled,
            pin: Vec::new(),
            client_credentials: ClientCredentials::Ignore,
            consent_max_age: Span(Duration::from_secs(60)),
            allow: vec!["*".to_owned()],
            tag: Vec::new(),
            upstream: Vec::new(),
        }
    }
}

/// `[[repository."…".tag]]`: other values for the tags that match. A key that is left out has the repository's value.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct TagRule {
    pub r#match: Option<Pattern>,
    pub immutable_tags: Option<bool>,
    pub max_age: Option<Span>,
    pub stale_while_revalidate: Option<Span>,
    pub stale_if_error: Option<Limit>,
    pub on_upstream_404: Option<OnUpstream404>,
    pub negative_max_age: Option<Span>,
}

/// When the rest of an image is brought in behind a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// Once a client asks for a whole layer of it.
    Pulled,
    /// Once a client fetches its manifest.
    Layers,
    Off,
}

/// Whose credentials are sent to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCredentials {
    /// Larder's own, from the configuration.
    Ignore,
    /// The client's own.
    Pass,
}

/// What happens to a cached tag that the upstream no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUpstream404 {
    ServeStale,
    Drop,
}

/// `[[repository."…".upstream]]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Upstream {
    pub url: String,
    pub username: String,
    pub password: Secret,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub password_file: Option<PathBuf>,
    #[serde(deserialize_with = "program")]
    pub credential_helper: String,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub docker_config: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub server_ca_bundle: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub client_certificate: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub client_private_key: Option<PathBuf>,
    pub max_redirect: u8,
    pub connect_timeout: Span,
    pub timeout: Span,
    pub read_timeout: Span,
    pub parallel: u8,
    pub max_connections: u32,
    pub token_realms: Vec<String>,
    pub redirect_hosts: Vec<String>,
    /// A URL, `none`, or empty for the proxy of the environment.
    #[serde(serialize_with = "proxy_without_password")]
    pub http_proxy: Secret,
    pub headers: BTreeMap<String, Secret>,
    pub insecure_skip_verify: bool,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            url: String::new(),
            username: String::new(),
            password: Secret::default(),
            password_file: None,
            credential_helper: String::new(),
            docker_config: None,
            server_ca_bundle: None,
            client_certificate: None,
            client_private_key: None,
            max_redirect: 5,
            connect_timeout: Span(Duration::from_secs(5)),
            timeout: Span(Duration::from_secs(20)),
            read_timeout: Span(Duration::from_secs(60)),
            parallel: 8,
            max_connections: 64,
            token_realms: Vec::new(),
            redirect_hosts: Vec::new(),
            http_proxy: Secret::default(),
            headers: BTreeMap::new(),
            insecure_skip_verify: false,
        }
    }
}

/// `[headers."HOST".set]` and `.append`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct HostHeaders {
    pub set: BTreeMap<String, Secret>,
    pub append: BTreeMap<String, Secret>,
}

/// `[[warm]]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Warm {
    pub images: Vec<WarmImages>,
    pub platforms: Vec<PlatformText>,
    pub every: Span,
}

impl Default for Warm {
    fn default() -> Self {
        Self { images: Vec::new(), platforms: Vec::new(), every: Span(Duration::from_secs(6 * 3600)) }
    }
}

/// `[proxy]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Proxy {
    pub listen: Addresses,
    #[serde(deserialize_with = "file")]
    pub ca_dir: PathBuf,
    pub intercept: Vec<String>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub upstream_ca_bundle: Option<PathBuf>,
    pub client_credentials: ClientCredentials,
    pub consent_max_age: Span,
    pub allow: Vec<String>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            listen: Addresses(vec![SocketAddr::from(([127, 0, 0, 1], 17080))]),
            ca_dir: PathBuf::from("./larder-ca"),
            intercept: Vec::new(),
            upstream_ca_bundle: None,
            client_credentials: ClientCredentials::Pass,
            consent_max_age: Span(Duration::from_secs(60)),
            allow: vec!["*".to_owned()],
        }
    }
}

/// `[allowlist]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Allowlist {
    pub enabled: bool,
    pub domains: Vec<String>,
}

/// `[admin]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Admin {
    pub listen: Addresses,
    pub allow: Vec<String>,
    pub read: Vec<String>,
    pub hosts: Vec<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: Addresses(vec![SocketAddr::from(([127, 0, 0, 1], 17081))]),
            allow: vec!["loopback".to_owned()],
            read: Vec::new(),
            hosts: Vec::new(),
        }
    }
}

/// Writes a path; a missing one as an empty path, which means the same.
fn path_or_empty<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().unwrap_or(Path::new("")).serialize(serializer)
}

/// Writes the URL of a proxy. It is hidden only if it contains a user name or password.
fn proxy_without_password<S: Serializer>(proxy: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    let has_login = |url: url::Url| !url.username().is_empty() || url.password().is_some();
    match url::Url::parse(proxy.reveal()).is_ok_and(has_login) {
        true => proxy.serialize(serializer),
        false => proxy.reveal().serialize(serializer),
    }
}
