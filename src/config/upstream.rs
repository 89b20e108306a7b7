//! `[[repository."…".upstream]]`, checked.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::check::Check;
use super::credentials::{self, Credentials};
use super::error::ConfigError;
use super::host::HostPattern;
use super::pem;
use super::proxy::{Proxies, Proxy};
use super::raw;
use super::secret::Secret;
use super::shapes::why_no_url;

/// One upstream registry. Two equal ones are asked in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub url: UpstreamUrl,
    /// `None`: anonymous.
    pub credentials: Option<Credentials>,
    pub tls: ClientTls,
    pub max_redirect: u8,
    pub connect_timeout: Duration,
    /// Time to the headers of a response, and to the end of a document.
    pub timeout: Duration,
    /// Time between two reads of a blob.
    pub read_timeout: Duration,
    /// Connections used at once for one large blob.
    pub parallel: usize,
    pub max_connections: usize,
    /// Further hosts that may receive the credentials.
    pub token_realms: Vec<String>,
    /// Hosts that the upstream may redirect to whatever addresses they have, with those of `token_realms`.
    pub redirect_hosts: Vec<String>,
    pub proxy: Proxy,
    /// Headers that are added to requests with Larder's own credentials; the values are marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers by host; those for the upstream's host are added, too.
    pub host_headers: Arc<[HostHeaders]>,
    /// Set if a client and not the configuration names the upstream: its address has to be public or in these networks.
    pub confined_to: Option<Vec<IpNet>>,
}

/// The address of an upstream, and the part of its names that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// Scheme, host and port, with `/` as path.
    pub origin: Url,
    /// The namespace that is put before each name; empty for the registry root.
    pub namespace: String,
}

/// How Larder checks the TLS certificate of an upstream, and the certificate that Larder shows there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// The only root certificates that are trusted; `None`: those of the system.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Root certificates that are trusted beside those.
    pub further_roots: Vec<CertificateDer<'static>>,
    /// The certificate chain and key that Larder shows to the upstream.
    pub identity: Option<Arc<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>>,
    pub insecure_skip_verify: bool,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls")
            .field("own_roots", &self.roots.is_some())
            .field("identity", &self.identity.is_some())
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .finish()
    }
}

/// Headers for a host: `[headers."HOST".set]` and `.append`. Any of them may hold credentials for that host, whatever
/// its name, so all are secrets; the values are marked sensitive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostHeaders {
    host: HostPattern,
    /// Headers that replace those of a request.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are added to those of a request.
    pub append: Vec<(HeaderName, HeaderValue)>,
}

impl Upstream {
    /// Creates an upstream that the configuration does not have, because a client names it.
    pub fn named_by_client(
        url: UpstreamUrl,
        tls: ClientTls,
        proxy: Proxy,
        host_headers: Arc<[HostHeaders]>,
        confined_to: Option<Vec<IpNet>>,
    ) -> Self {
        let usual = raw::Upstream::default();
        Self {
            url,
            credentials: None,
            tls,
            max_redirect: usual.max_redirect,
            connect_timeout: usual.connect_timeout.0,
            timeout: usual.timeout.0,
            read_timeout: usual.read_timeout.0,
            parallel: usize::from(usual.parallel),
            max_connections: usual.max_connections as usize,
            token_realms: Vec::new(),
            redirect_hosts: Vec::new(),
            proxy,
            headers: Vec::new(),
            host_headers,
            confined_to,
        }
    }
}

impl HostHeaders {
    /// Returns whether these headers are for the host of a URL.
    pub fn concern(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.host.matches(host, url.port_or_known_default()))
    }

    /// Returns the pattern of their hosts.
    pub fn host(&self) -> &HostPattern {
        &self.host
    }

    /// Returns whether these headers may be sent to a URL: its host has to match, and it has to use TLS or be named by
    /// the configuration as an upstream (`is_named`) or with its port, so that plain text is intended.
    pub fn may_go_to(&self, url: &Url, is_named: bool) -> bool {
        self.concern(url) && (is_named || url.scheme() == "https" || self.host.port().is_some())
    }

    /// Returns whether one of these headers holds credentials in any case.
    fn log_in(&self) -> bool {
        self.set.iter().chain(&self.append).any(|(name, _)| is_login(name))
    }
}

/// The parts of the configuration and of the environment that concern all upstreams.
pub struct Around {
    pub host_headers: Arc<[HostHeaders]>,
    pub proxies: Proxies,
    pub auth: super::Auth,
    /// Whether clients are asked for certificates.
    pub has_certificates: bool,
}

/// Checks `[headers]`.
pub fn check_host_headers(
    check: &Check<'_>,
    written: raw::InOrder<raw::HostHeaders>,
) -> Result<Arc<[HostHeaders]>, ConfigError> {
    let checked = written.0.into_iter().map(|(host, headers)| {
        let message = "a key of [headers] is a host such as ghcr.io, ghcr.io:443, *.example.com, or *";
        let pattern = HostPattern::parse(&host).map_err(|_| check.invalid(&["headers", &host], message))?;
        let values = |key: &str, written| {
            check_headers(written).map_err(|message| check.invalid(&["headers", &host, key], message))
        };
        let (set, append) = (values("set", &headers.set)?, values("append", &headers.append)?);
        Ok(HostHeaders { host: pattern, set, append })
    });
    checked.collect()
}

/// Headers that only the HTTP library may set, because they describe the message or the connection.
const OF_THE_MESSAGE: [&str; 7] =
    ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "proxy-authorization"];

fn check_headers(
    written: &std::collections::BTreeMap<String, Secret>,
) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let checked = written.iter().map(|(name, value)| {
        let parsed = (name.parse::<HeaderName>(), HeaderValue::from_str(value.reveal()));
        let (Ok(name), Ok(mut value)) = parsed else {
            return Err("one of its names is no header name, or its value has control characters".to_owned());
        };
        if OF_THE_MESSAGE.contains(&name.as_str()) {
            return Err(format!("`{name}` is not for a configuration to set: it is about each message or connection"));
        }
        value.set_sensitive(true);
        Ok((name, value))
    });
    checked.collect()
}

/// Checks the upstream at position `at`. `passes`: whether the clients' own credentials are used.
pub fn check(
    check: &Check<'_>,
    prefix: &str,
    at: usize,
    written: raw::Upstream,
    passes: bool,
    around: &Around,
) -> Result<Upstream, ConfigError> {
    let at = at.to_string();
    let invalid = |key: &str, message: String| check.invalid(&["repository", prefix, "upstream", &at, key], message);

    let url = UpstreamUrl::parse(&written.url).map_err(|message| invalid("url", message))?;
    let credentials =
        credentials::check(check, &url.origin, &written).map_err(|(key, message)| invalid(key, message))?;
    if passes && credentials.is_some() {
        let key = credentials::key_of(&written);
        let message =
            "the repository has client_credentials = \"pass\", so the clients' own are used; remove one of them";
        return Err(invalid(key, message.to_owned()));
    }
    if passes {
        refuse_own_identity(&written, &url.origin, around).map_err(|(key, message)| invalid(key, message))?;
    }
    let tls = check_tls(check, &written).map_err(|(key, message)| invalid(key, message))?;
    let headers = check_headers(&written.headers).map_err(|message| invalid("headers", message))?;
    let proxy = Proxy::choose(&written.http_proxy, &url.origin, &around.proxies)
        .map_err(|message| invalid("http_proxy", message))?;
    check_numbers(&written).map_err(|(key, message)| invalid(key, message))?;
    check_hosts(&written).map_err(|(key, message)| invalid(key, message))?;
    Ok(Upstream {
        url,
        credentials,
        tls,
        max_redirect: written.max_redirect,
        connect_timeout: written.connect_timeout.0,
        timeout: written.timeout.0,
        read_timeout: written.read_timeout.0,
        parallel: usize::from(written.parallel),
        max_connections: written.max_connections as usize,
        token_realms: lower(&written.token_realms),
        redirect_hosts: [lower(&written.token_realms), lower(&written.redirect_hosts)].concat(),
        proxy,
        headers,
        host_headers: around.host_headers.clone(),
        confined_to: None,
    })
}

/// The key of a mistake, and what is wrong.
type Mistake = (&'static str, String);

fn check_numbers(written: &raw::Upstream) -> Result<(), Mistake> {
    let spans = [
        ("connect_timeout", written.connect_timeout),
        ("timeout", written.timeout),
        ("read_timeout", written.read_timeout),
    ];
    if let Some((key, _)) = spans.into_iter().find(|(_, span)| span.0.is_zero()) {
        return Err((key, "it must be longer than nothing".to_owned()));
    }
    let numbers = [("max_connections", u64::from(written.max_connections)), ("parallel", u64::from(written.parallel))];
    match numbers.into_iter().find(|(_, number)| *number == 0) {
        Some((key, _)) => Err((key, "at least one connection is needed".to_owned())),
        None => Ok(()),
    }
}

fn check_hosts(written: &raw::Upstream) -> Result<(), Mistake> {
    for (key, hosts) in [("token_realms", &written.token_realms), ("redirect_hosts", &written.redirect_hosts)] {
        if let Some(at) = hosts.iter().position(|host| host.is_empty() || host.contains(['/', ' ', '*', '@', '?'])) {
            let message = format!("its entry {} is no host; write for example {key} = [\"auth.example.com\"]", at + 1);
            return Err((key, message));
        }
    }
    Ok(())
}

/// Returns whether a header holds credentials, whatever server it is for.
fn is_login(name: &HeaderName) -> bool {
    *name == http::header::AUTHORIZATION || *name == http::header::COOKIE
}

/// Refuses Larder's own credentials where the clients' own credentials decide: Larder's would let in every client.
fn refuse_own_identity(written: &raw::Upstream, origin: &Url, around: &Around) -> Result<(), (&'static str, String)> {
    let why = |what: &str| {
        format!(
            "the repository has client_credentials = \"pass\", and {what} would let everybody in; remove one of them"
        )
    };
    let mut names = written.headers.keys().filter_map(|name| name.parse::<HeaderName>().ok());
    if names.any(|name| is_login(&name)) {
        return Err(("headers", why("Authorization or Cookie of the configuration")));
    }
    if around.host_headers.iter().any(|headers| headers.concern(origin) && headers.log_in()) {
        return Err(("url", why("Authorization or Cookie of [headers] for this host")));
    }
    if written.client_certificate.is_some() {
        return Err(("client_certificate", why("a certificate of Larder's own")));
    }
    Ok(())
}

fn lower(hosts: &[String]) -> Vec<String> {
    hosts.iter().map(|host| host.to_ascii_lowercase()).collect()
}

fn check_tls(check: &Check<'_>, written: &raw::Upstream) -> Result<ClientTls, (&'static str, String)> {
    let at = |key: &'static str| move |message: String| (key, message);
    let roots = written.server_ca_bundle.as_deref();
    let roots = roots.map(|path| pem::certificates(check, path)).transpose().map_err(at("server_ca_bundle"))?;
    let identity = match (written.client_certificate.as_deref(), written.client_private_key.as_deref()) {
        (Some(certificate), Some(key)) => {
            let chain = pem::certificates(check, certificate).map_err(at("client_certificate"))?;
            let key = pem::private_key(check, key).map_err(at("client_private_key"))?;
            Some(Arc::new((chain, key)))
        }
        (None, None) => None,
        (Some(_), None) => {
            return Err(("client_certificate", "a `client_private_key` is needed with it".to_owned()));
        }
        (None, Some(_)) => {
            return Err(("client_private_key", "a `client_certificate` is needed with it".to_owned()));
        }
    };
    Ok(ClientTls { roots, further_roots: Vec::new(), identity, insecure_skip_verify: written.insecure_skip_verify })
}

impl UpstreamUrl {
    /// Reads `https://host`, with or without a path. The path is the upstream namespace, with or without a leading
    /// `v2`.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is missing; write for example url = \"https://registry-1.docker.io\"".to_owned());
        }
        // There may be a password before an `@`, and a token after a `?`.
        let shown = if text.contains(['@', '?']) { "this".to_owned() } else { format!("`{text}`") };
        // Without a scheme it is a host, which the URL standard reads as a scheme if there is a port behind it.
        let example = match Url::parse(&format!("https://{text}")) {
            Ok(url) if shown != "this" && !text.contains("://") && url.has_host() => format!("https://{text}"),
            _ => "https://registry-1.docker.io".to_owned(),
        };
        let mut url = Url::parse(text)
            .map_err(|error| format!("{shown} is no URL ({}); write for example \"{example}\"", why_no_url(error)))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!(
                "{shown} does not begin with https:// or http:// and a host; write for example \"{example}\""
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user name and password do not belong in the URL; use `username` and `password`".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("it has a query or fragment, which an upstream's URL cannot have".to_owned());
        }
        let path = url.path().trim_matches('/');
        let namespace = match path.strip_prefix("v2") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_matches('/'),
            _ => path,
        };
        if !namespace.is_empty() && namespace.parse::<crate::oci::Name>().is_err() {
            return Err(format!("`{namespace}` cannot be the beginning of a repository name"));
        }
        let namespace = namespace.to_owned();
        url.set_path("/");
        Ok(Self { origin: url, namespace })
    }
}
