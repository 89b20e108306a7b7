//! `[proxy]` and `[allowlist]`, checked: the proxy door and the hosts that it leads to.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls_pki_types::CertificateDer;
use url::Url;

use super::auth::{self, Allow};
use super::check::Check;
use super::error::ConfigError;
use super::host::HostPattern;
use super::raw::{self, ClientCredentials};
use super::upstream::{Around, HostHeaders};
use super::{Proxies, Repository, pem};

/// The proxy door.
#[derive(Clone, Debug)]
pub struct ProxyDoor {
    pub listen: Vec<SocketAddr>,
    /// The directory of the certificate authority that signs the certificates shown to clients.
    pub ca_dir: PathBuf,
    /// Hosts whose TLS is opened, beside those of repositories and of `headers`.
    pub intercept: Vec<HostPattern>,
    /// Root certificates that are trusted beside the system's.
    pub upstream_roots: Vec<CertificateDer<'static>>,
    /// How long the upstream's consent is remembered. Set if a client gets cached content only if the upstream would
    /// give it to that client.
    pub consent: Option<Duration>,
    /// Clients that may use this door; never empty.
    pub allow: Vec<Allow>,
    pub allowlist: Allowlist,
    /// Headers by host, for any host.
    pub host_headers: Arc<[HostHeaders]>,
    /// Proxies on the way to any host.
    pub proxies: Proxies,
}

/// The hosts that the proxy door leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    /// Whether the door leads to no other hosts.
    pub is_enabled: bool,
    entries: Vec<Entry>,
    /// Host and port of all upstreams.
    upstreams: Vec<(String, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Host(HostPattern),
    Network(IpNet),
}

/// Ports that the door leads to although no entry of the allowlist names them.
const PORTS: [u16; 2] = [80, 443];

/// The permission to lead a client to a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permission {
    /// Whether the configuration names the host, which then may have any address.
    pub is_named: bool,
    /// Networks that the host's address may be in, beside the public one.
    pub networks: Vec<IpNet>,
}

/// Why the proxy door does not lead to a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error("{0} is not in the allowlist of this proxy; ask its administrator to add it to allowlist.domains")]
    Host(String),
    #[error(
        "{0} is inside this network (private, loopback or link-local), where this proxy does not lead; to allow it, name it in allowlist.domains"
    )]
    Inside(String),
    /// The address is a door of this Larder; with the message about it.
    #[error("{0}, or ask this one without a proxy")]
    Ours(String),
    #[error("this proxy leads to ports 80 and 443 only; to allow {0}, add it to allowlist.domains")]
    Port(String),
}

impl Allowlist {
    /// Checks whether the door leads to `host` (in lower case, IPv6 addresses in brackets) and `port`.
    pub fn permit(&self, host: &str, port: u16) -> Result<Permission, Forbidden> {
        let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let is_upstream = self.upstreams.iter().any(|(name, of)| name == host && *of == port);
        let (mut is_listed, mut is_port, mut is_named) = (false, PORTS.contains(&port) || is_upstream, is_upstream);
        for entry in &self.entries {
            match entry {
                Entry::Host(pattern) if pattern.is_host(host) => {
                    let is_for_port = pattern.port().is_none_or(|of| of == port);
                    is_listed |= is_for_port;
                    is_port |= pattern.port() == Some(port);
                    is_named |= is_for_port && !pattern.is_any_host();
                }
                Entry::Network(network) if address.is_some_and(|address| network.contains(&address)) => {
                    is_listed = true;
                }
                _ => {}
            }
        }
        if self.is_enabled && !is_listed {
            return Err(Forbidden::Host(host.to_owned()));
        }
        if !is_port {
            return Err(Forbidden::Port(format!("\"{host}:{port}\"")));
        }
        Ok(Permission { is_named, networks: self.networks().collect() })
    }

    /// Returns the networks in the allowlist.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Network(network) => Some(*network),
            Entry::Host(_) => None,
        })
    }
}

impl ProxyDoor {
    /// Returns whether TLS with `host` is opened because the configuration names the host: in `intercept`, in `headers`
    /// or as an upstream.
    pub fn intercepts(&self, host: &str, port: u16) -> bool {
        let mut named = self.intercept.iter().chain(self.host_headers.iter().map(HostHeaders::host));
        named.any(|pattern| pattern.matches(host, Some(port)))
            || self.allowlist.upstreams.iter().any(|(name, of)| name == host && *of == port)
    }

    /// Returns whether the configuration names the host of a URL, so that the host's statements about its content are
    /// trusted. Anybody may own a part of a whole domain (`*.amazonaws.com`): TLS with such a host is opened, but the
    /// host is not trusted.
    pub fn trusts(&self, url: &Url) -> bool {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return false;
        };
        let mut named = self.intercept.iter().chain(self.host_headers.iter().map(HostHeaders::host));
        url.scheme() == "https" && named.any(|pattern| pattern.is_one_host() && pattern.matches(host, Some(port)))
    }
}

/// Checks `[proxy]` and `[allowlist]`. `has_patterns`: whether `cache.patterns` is set.
pub fn check(
    check: &Check<'_>,
    written: Option<raw::Proxy>,
    allowlist: raw::Allowlist,
    has_patterns: bool,
    repositories: &[Repository],
    around: &Around,
) -> Result<Option<ProxyDoor>, ConfigError> {
    let Some(written) = written else {
        let without = [("allowlist", "enabled", allowlist.enabled), ("cache", "patterns", has_patterns)];
        return match without.into_iter().find(|(.., is_set)| *is_set) {
            Some((table, key, _)) => {
                Err(check.invalid(&[table, key], "it is for the proxy door, which is off; add [proxy]"))
            }
            None => Ok(None),
        };
    };
    let invalid = |key: &str, message: String| check.invalid(&["proxy", key], message);
    if written.ca_dir.as_os_str().is_empty() {
        return Err(invalid("ca_dir", "it is empty; write for example ca_dir = \"/var/lib/larder-ca\"".to_owned()));
    }
    let intercept = written.intercept.iter().map(|text| {
        let message = format!("`{text}` is no host; write for example ghcr.io, ghcr.io:443, *.example.com, or *");
        HostPattern::parse(text).map_err(|_| invalid("intercept", message))
    });
    let roots = written.upstream_ca_bundle.as_deref().map(|path| pem::certificates(check, path)).transpose();
    let allow = auth::check_allow(&written.allow, &around.auth, false, false);
    Ok(Some(ProxyDoor {
        listen: written.listen.0,
        ca_dir: written.ca_dir,
        intercept: intercept.collect::<Result<_, _>>()?,
        upstream_roots: roots.map_err(|message| invalid("upstream_ca_bundle", message))?.unwrap_or_default(),
        consent: (written.client_credentials == ClientCredentials::Pass).then_some(written.consent_max_age.0),
        allow: allow.map_err(|message| invalid("allow", message))?,
        allowlist: check_allowlist(check, &allowlist, repositories)?,
        host_headers: around.host_headers.clone(),
        proxies: around.proxies.clone(),
    }))
}

fn check_allowlist(
    check: &Check<'_>,
    written: &raw::Allowlist,
    repositories: &[Repository],
) -> Result<Allowlist, ConfigError> {
    let invalid = |message: String| check.invalid(&["allowlist", "domains"], message);
    if written.enabled && written.domains.is_empty() {
        let message = "it is empty, so that the proxy would lead nowhere; write for example domains = [\"ghcr.io\"]";
        return Err(invalid(message.to_owned()));
    }
    let entry = |text: &String| {
        if let Some(network) = text.contains('/').then(|| text.parse().ok()).flatten() {
            return Ok(Entry::Network(network));
        }
        HostPattern::parse(text).map(Entry::Host).map_err(|_| {
            invalid(format!(
                "`{text}` is no host; write for example ghcr.io, *.docker.io, registry.example.com:5000, or 10.0.0.0/8"
            ))
        })
    };
    let upstreams = repositories.iter().flat_map(|repository| &repository.upstreams).filter_map(|upstream| {
        let origin = &upstream.url.origin;
        Some((origin.host_str()?.to_owned(), origin.port_or_known_default()?))
    });
    Ok(Allowlist {
        is_enabled: written.enabled,
        entries: written.domains.iter().map(entry).collect::<Result<_, _>>()?,
        upstreams: upstreams.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parse;

    fn door(toml: &str) -> ProxyDoor {
        parse(toml).expect("valid").proxy.expect("a door")
    }

    fn says(door: &ProxyDoor, host: &str, port: u16) -> &'static str {
        match door.allowlist.permit(host, port) {
            Ok(Permission { is_named: true, .. }) => "named",
            Ok(_) => "public",
            Err(Forbidden::Host(_) | Forbidden::Inside(_) | Forbidden::Ours(_)) => "host",
            Err(Forbidden::Port(_)) => "port",
        }
    }

    #[test]
    fn without_an_allowlist_all_public_hosts_are_open_on_their_usual_ports() {
        let door = door(
            "[proxy]\n[allowlist]\ndomains = [\"registry.corp:5000\", \"10.1.0.0/16\"]\n[repository.x]\n[[repository.x.upstream]]\nurl = \"http://127.0.0.1:5001\"",
        );
        for (host, port, expected) in [
            ("example.com", 443, "public"),
            ("example.com", 80, "public"),
            ("example.com", 22, "port"),
            ("registry.corp", 5000, "named"),
            ("registry.corp", 443, "public"),
            ("127.0.0.1", 5001, "named"),
            ("127.0.0.1", 5002, "port"),
            ("127.0.0.1", 80, "public"),
        ] {
            assert_eq!(says(&door, host, port), expected, "{host}:{port}");
        }
        assert_eq!(door.allowlist.permit("example.com", 443).expect("public").networks.len(), 1);
        assert!(door.intercepts("127.0.0.1", 5001) && !door.intercepts("127.0.0.1", 443));
    }

    #[test]
    fn only_hosts_that_are_named_one_by_one_are_believed() {
        let door = door(
            "[proxy]\nintercept = [\"*\", \"*.example.com\", \"one.example.org\"]\n[headers.\"two.example.org\".set]\nx = \"y\"\n[headers.\"*.example.net\".set]\nx = \"y\"",
        );
        for (url, expected) in [
            ("https://one.example.org/", true),
            ("https://two.example.org/", true),
            ("http://one.example.org/", false),
            ("https://a.example.com/", false),
            ("https://a.example.net/", false),
            ("https://other.example/", false),
        ] {
            assert_eq!(door.trusts(&Url::parse(url).expect("a URL")), expected, "{url}");
        }
    }

    #[test]
    fn an_allowlist_shuts_out_all_others() {
        let door = door(
            "[proxy]\n[allowlist]\nenabled = true\ndomains = [\"*.docker.io\", \"ghcr.io\", \"x.corp:8443\", \"10.0.0.0/8\", \"::1\"]",
        );
        for (host, port, expected) in [
            ("registry-1.docker.io", 443, "named"),
            ("docker.io", 443, "host"),
            ("ghcr.io", 443, "named"),
            ("ghcr.io", 8443, "port"),
            ("ghcr.io.evil.example", 443, "host"),
            ("quay.io", 443, "host"),
            ("x.corp", 8443, "named"),
            ("x.corp", 443, "host"),
            ("10.2.3.4", 443, "public"),
            ("11.2.3.4", 443, "host"),
            ("[::1]", 443, "named"),
        ] {
            assert_eq!(says(&door, host, port), expected, "{host}:{port}");
        }
    }

    #[test]
    fn all_hosts_are_no_host_in_particular() {
        let door = door("[proxy]\nintercept = [\"*\"]\n[allowlist]\nenabled = true\ndomains = [\"*\"]");
        assert_eq!(says(&door, "10.0.0.1", 443), "public");
        assert!(door.intercepts("example.com", 443));
        assert!(!door.trusts(&Url::parse("https://example.com").expect("a URL")));
    }
}
