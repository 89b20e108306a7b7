//! `[repository."…"]` and its upstreams, checked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::error::ConfigError;
use super::raw::{self, OnUpstream404, OneOrMany, Pattern};
use super::secret::Secret;
use super::units::Limit;
use super::{BUILT_IN_DEFAULT, Check};

/// A local repository: a prefix of names, how requests find it and where its content comes from.
#[derive(Clone, Debug)]
pub struct Repository {
    /// The table's key, which is also the local path prefix.
    pub prefix: String,
    /// Values of `?ns=` that select it.
    pub namespaces: Vec<String>,
    /// Values of `Host` that select it, in lower case.
    pub hosts: Vec<String>,
    pub scopes: Vec<Pattern>,
    pub tags: TagPolicy,
    /// How long a confirmed 404 is remembered.
    pub negative_max_age: Duration,
    /// How long its objects are kept unused; `None`: as long as any.
    pub ttl: Option<Limit>,
    /// Regexes on `NAME:TAG` of images that are never evicted.
    pub pin: Vec<Pattern>,
    /// Whether names follow Docker Hub's custom: `alpine` means `library/alpine`.
    pub implies_library: bool,
    /// In order of preference; never empty.
    pub upstreams: Vec<Upstream>,
}

/// How long tags are believed.
#[derive(Clone, Debug)]
pub struct TagPolicy {
    pub immutable: bool,
    pub immutable_exclusions: Vec<Pattern>,
    pub max_age: Duration,
    /// How much longer it is served while it is checked.
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Limit,
    pub on_upstream_404: OnUpstream404,
}

impl TagPolicy {
    /// Whether `tag` is never checked again once it is cached.
    pub fn is_immutable(&self, tag: &str) -> bool {
        self.immutable && !self.immutable_exclusions.iter().any(|pattern| pattern.is_match(tag))
    }
}

/// One upstream registry.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub url: UpstreamUrl,
    pub credentials: Option<Credentials>,
    pub tls: UpstreamTls,
    pub max_redirect: u8,
    pub connect_timeout: Duration,
    /// To the response's headers, and between two reads of its body.
    pub timeout: Duration,
    /// Connections used at once for one large blob.
    pub parallel: usize,
    pub max_connections: usize,
    /// Further hosts that may receive the credentials.
    pub token_realms: Vec<String>,
    /// Added to each request; the values are marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Where an upstream is and which part of its names it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// Scheme, host and port, with `/` as path.
    pub origin: Url,
    /// Put before each name; empty for the registry root.
    pub namespace: String,
}

#[derive(Clone, Debug)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

/// How an upstream's TLS is checked and what it is shown.
#[derive(Clone, Default)]
pub struct UpstreamTls {
    /// The only roots believed; `None`: those of the system.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Certificate chain and key shown to the upstream.
    pub identity: Option<Arc<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>>,
    pub insecure_skip_verify: bool,
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamTls")
            .field("own_roots", &self.roots.is_some())
            .field("identity", &self.identity.is_some())
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .finish()
    }
}

/// Repositories that exist when the file names none: prefix, upstream and values of `?ns=`.
const BUILT_IN: [(&str, &str, &[&str]); 10] = [
    (BUILT_IN_DEFAULT, "https://registry-1.docker.io", &["docker.io", "index.docker.io", "registry-1.docker.io"]),
    ("ghcr.io", "https://ghcr.io", &["ghcr.io"]),
    ("quay.io", "https://quay.io", &["quay.io"]),
    ("registry.k8s.io", "https://registry.k8s.io", &["registry.k8s.io"]),
    ("gcr.io", "https://gcr.io", &["gcr.io"]),
    ("mcr.microsoft.com", "https://mcr.microsoft.com", &["mcr.microsoft.com"]),
    ("public.ecr.aws", "https://public.ecr.aws", &["public.ecr.aws"]),
    ("registry.gitlab.com", "https://registry.gitlab.com", &["registry.gitlab.com"]),
    ("lscr.io", "https://lscr.io", &["lscr.io"]),
    ("nvcr.io", "https://nvcr.io", &["nvcr.io"]),
];

/// Host names under which Docker Hub serves its registry.
const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// Checks all repositories, each by itself and against each other.
pub fn check_all(check: &Check<'_>, written: raw::Repositories) -> Result<Vec<Repository>, ConfigError> {
    let written = match written.0 {
        none if none.is_empty() => BUILT_IN.map(|(prefix, ..)| (prefix.to_owned(), raw::Repository::default())).into(),
        some => some,
    };
    let repositories = written
        .into_iter()
        .map(|(prefix, repository)| check_one(check, prefix, repository))
        .collect::<Result<Vec<_>, _>>()?;

    refuse_duplicates(check, &repositories, "namespace", |repository| &repository.namespaces)?;
    refuse_duplicates(check, &repositories, "hosts", |repository| &repository.hosts)?;
    Ok(repositories)
}

fn refuse_duplicates(
    check: &Check<'_>,
    repositories: &[Repository],
    key: &str,
    values: impl Fn(&Repository) -> &[String],
) -> Result<(), ConfigError> {
    let mut owners: HashMap<&str, &str> = HashMap::new();
    for repository in repositories {
        for value in values(repository) {
            if let Some(other) = owners.insert(value, &repository.prefix) {
                let message =
                    format!("`{value}` already selects [repository.\"{other}\"]; a request can go to one only");
                return Err(check.invalid(&["repository", &repository.prefix, key], message));
            }
        }
    }
    Ok(())
}

fn check_one(check: &Check<'_>, prefix: String, written: raw::Repository) -> Result<Repository, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["repository", &prefix, key], message);
    if !is_prefix(&prefix) {
        let message = "a repository's key is the first part of image names, such as docker.io or team/images";
        return Err(check.invalid(&["repository", &prefix], message));
    }
    let built_in = BUILT_IN.iter().find(|(name, ..)| *name == prefix);

    let mut upstreams = written.upstream;
    if upstreams.is_empty() {
        let url = match built_in {
            Some((_, url, _)) => (*url).to_owned(),
            None if is_host(&prefix) => format!("https://{prefix}"),
            None => {
                let message = format!("it has no upstream; add [[repository.\"{prefix}\".upstream]] with a `url`");
                return Err(check.invalid(&["repository", &prefix], message));
            }
        };
        upstreams.push(raw::Upstream { url, ..raw::Upstream::default() });
    }
    let upstreams = upstreams
        .into_iter()
        .enumerate()
        .map(|(at, upstream)| check_upstream(check, &prefix, at, upstream))
        .collect::<Result<Vec<_>, _>>()?;

    let namespaces = match (written.namespace, built_in) {
        (Some(OneOrMany(list)), _) => list,
        (None, Some((.., list))) => list.iter().map(|&name| name.to_owned()).collect(),
        (None, None) if is_host(&prefix) => vec![prefix.clone()],
        (None, None) => Vec::new(),
    };
    if !written.immutable_tags_exclusions.is_empty() && !written.immutable_tags {
        let message = "it has no effect without `immutable_tags = true`".to_owned();
        return Err(invalid("immutable_tags_exclusions", message));
    }
    let is_hub = |host: &str| DOCKER_HUB.contains(&host);
    let implies_library = upstreams.iter().all(|upstream| upstream.url.namespace.is_empty())
        && (is_hub(&prefix)
            || namespaces.iter().any(|name| is_hub(name))
            || upstreams.iter().any(|upstream| upstream.url.origin.host_str().is_some_and(is_hub)));

    Ok(Repository {
        namespaces,
        hosts: written.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
        scopes: written.scopes,
        tags: TagPolicy {
            immutable: written.immutable_tags,
            immutable_exclusions: written.immutable_tags_exclusions,
            max_age: written.max_age.0,
            stale_while_revalidate: written.stale_while_revalidate.0,
            stale_if_error: written.stale_if_error,
            on_upstream_404: written.on_upstream_404,
        },
        negative_max_age: written.negative_max_age.0,
        ttl: written.ttl,
        pin: written.pin,
        implies_library,
        upstreams,
        prefix,
    })
}

fn check_upstream(check: &Check<'_>, prefix: &str, at: usize, written: raw::Upstream) -> Result<Upstream, ConfigError> {
    let at = at.to_string();
    let invalid = |key: &str, message: String| check.invalid(&["repository", prefix, "upstream", &at, key], message);

    let url = UpstreamUrl::parse(&written.url).map_err(|message| invalid("url", message))?;
    let credentials = match (written.username.is_empty(), written.password.is_empty()) {
        (true, true) => None,
        (false, false) => Some(Credentials { username: written.username, password: written.password }),
        (false, true) => return Err(invalid("username", "a `password` is needed with it".to_owned())),
        (true, false) => return Err(invalid("password", "a `username` is needed with it".to_owned())),
    };
    let roots = match &written.server_ca_bundle {
        Some(path) => Some(read_certificates(path).map_err(|message| invalid("server_ca_bundle", message))?),
        None => None,
    };
    let identity = match (&written.client_certificate, &written.client_private_key) {
        (Some(certificate), Some(key)) => {
            let chain = read_certificates(certificate).map_err(|message| invalid("client_certificate", message))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                invalid("client_private_key", format!("cannot read a private key from {}: {error}", key.display()))
            })?;
            Some(Arc::new((chain, key)))
        }
        (None, None) => None,
        (Some(_), None) => {
            return Err(invalid("client_certificate", "a `client_private_key` is needed with it".to_owned()));
        }
        (None, Some(_)) => {
            return Err(invalid("client_private_key", "a `client_certificate` is needed with it".to_owned()));
        }
    };
    let headers = written
        .headers
        .iter()
        .map(|(name, value)| {
            let parsed = (name.parse::<HeaderName>(), HeaderValue::from_str(value.reveal()));
            let (Ok(name), Ok(mut value)) = parsed else {
                return Err(invalid(
                    "headers",
                    format!("`{name}` is no header name or its value has control characters"),
                ));
            };
            value.set_sensitive(true);
            Ok((name, value))
        })
        .collect::<Result<_, _>>()?;
    for (key, span) in [("connect_timeout", written.connect_timeout), ("timeout", written.timeout)] {
        if span.0.is_zero() {
            return Err(invalid(key, "it must be longer than nothing".to_owned()));
        }
    }
    if written.max_connections == 0 {
        return Err(invalid("max_connections", "at least one connection is needed".to_owned()));
    }
    if written.parallel == 0 {
        return Err(invalid("parallel", "at least one connection is needed".to_owned()));
    }
    Ok(Upstream {
        url,
        credentials,
        tls: UpstreamTls { roots, identity, insecure_skip_verify: written.insecure_skip_verify },
        max_redirect: written.max_redirect,
        connect_timeout: written.connect_timeout.0,
        timeout: written.timeout.0,
        parallel: usize::from(written.parallel),
        max_connections: written.max_connections as usize,
        token_realms: written.token_realms.iter().map(|host| host.to_ascii_lowercase()).collect(),
        headers,
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error| format!("cannot read certificates from {}: {error}", path.display());
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(format!("{} has no certificate in PEM form", path.display()));
    }
    Ok(certificates)
}

impl UpstreamUrl {
    /// `https://host`, or with a path that is the upstream namespace, with or without a leading `v2`.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is missing; write for example url = \"https://registry-1.docker.io\"".to_owned());
        }
        let mut url = Url::parse(text).map_err(|error| {
            format!("`{text}` is no URL ({error}); write for example \"https://registry-1.docker.io\"")
        })?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("`{text}` does not begin with https:// or http:// and a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user name and password do not belong in the URL; use `username` and `password`".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("`{text}` has a query or fragment, which an upstream's URL cannot have"));
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

/// A prefix is one or more path segments as they may stand in an image name, the first of them
/// perhaps a host with a port.
fn is_prefix(text: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-:".contains(&byte);
    text.split('/').all(|segment| !segment.is_empty() && segment != "v2" && segment.bytes().all(is_character))
}

fn is_host(prefix: &str) -> bool {
    !prefix.contains('/') && (prefix.contains(['.', ':']) || prefix == "localhost")
}
