//! The cache as clients reach it, and its registries: by the configuration and the arguments.

use std::net::IpAddr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::{Host, Url};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::cli::error::CommandError;
use crate::config::Config;
use crate::config::built_in::DOCKER_HUB;
use crate::services::ForClients;
use crate::setup::{Cache, Registry};

/// The cache's address.
pub struct Found {
    pub cache: Cache,
    /// Where it was found.
    pub from: String,
    pub warnings: Vec<String>,
}

/// Finds the cache's address. `url`, `ca`: what the arguments say of it.
pub fn find(config: &Config, url: Option<&str>, ca: Option<&Path>) -> Result<Found, CommandError> {
    let mut warnings = Vec::new();
    let (url, from) = match (url, &config.server.public_url) {
        (Some(url), _) => (url.to_owned(), "--url".to_owned()),
        (None, Some(url)) => (url.clone(), "server.public_url".to_owned()),
        (None, None) => listening(config, &mut warnings)?,
    };
    let url = read(&url).map_err(|message| CommandError::Usage(format!("{from}: {message}")))?;
    let is_tls = url.scheme() == "https";
    let authority = match ca {
        Some(_) if !is_tls => {
            return Err(CommandError::Usage(format!("--ca: {url} is plain HTTP, which needs no authority")));
        }
        Some(file) => Some(authority_in(file)?),
        None if is_tls => own_authority(config),
        None => None,
    };
    if is_tls && authority.is_none() {
        warnings.push("clients have to trust the cache's certificate already; if it is from an authority of your own, name that with --ca FILE".to_owned());
    }
    let (host, is_loopback) = host(&url);
    Ok(Found { cache: Cache { is_tls, host, is_loopback, authority }, from, warnings })
}

/// Returns the URL of the registry door by its configuration, and where that is written.
fn listening(config: &Config, warnings: &mut Vec<String>) -> Result<(String, String), CommandError> {
    let usage = |message: &str| Err(CommandError::Usage(message.to_owned()));
    let Some(address) = config.server.listen.first() else {
        return usage("server.listen names no address; name the cache with --url");
    };
    if address.port() == 0 {
        return usage("server.listen leaves the port open; name the cache with --url");
    }
    let from = "server.listen".to_owned();
    if let Some(tls) = &config.server.tls {
        let domain = tls.acme.as_ref().and_then(|acme| acme.domains.iter().find(|domain| !domain.starts_with('*')));
        return match domain {
            Some(domain) => Ok((format!("https://{domain}:{}", address.port()), "server.tls.acme.domains".to_owned())),
            None => usage(
                "the registry door speaks TLS, and its address does not tell the name that the certificate is for; name the cache with --url https://…, or set server.public_url",
            ),
        };
    }
    if !address.ip().is_unspecified() {
        return Ok((format!("http://{address}"), from));
    }
    warnings.push("the cache listens at all addresses, and a loopback address is used here; for a client on another machine name the one that it reaches with --url, or set server.public_url".to_owned());
    let host = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
    Ok((format!("http://{host}:{}", address.port()), from))
}

/// Reads a URL of a cache.
fn read(text: &str) -> Result<Url, String> {
    let example = "write for example https://mirror.example.com or http://10.0.0.7:5000";
    let url = Url::parse(text).map_err(|error| format!("`{text}` is no URL ({error}); {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("`{text}` is no URL of http or https; {example}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("a URL for clients has no user name or password; {example}"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{text}` has something behind the host; {example}"));
    }
    Ok(url)
}

/// Returns the host with its port, and whether it is the machine itself.
fn host(url: &Url) -> (String, bool) {
    let name = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    };
    (host, is_loopback)
}

fn authority_in(file: &Path) -> Result<String, CommandError> {
    let usage = |message: String| CommandError::Usage(format!("--ca {}: {message}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| usage(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let certificates = certificates.map_err(|error| usage(error.to_string()))?;
    if certificates.is_empty() {
        return Err(usage("it has no certificate in PEM form".to_owned()));
    }
    // Whatever else is in the file, such as a key, is not for clients.
    Ok(certificates.iter().map(|certificate| pem(certificate)).collect())
}

/// Returns what the lines for clients say, beside the address, for the pages of a running instance.
pub fn for_clients(config: &Config) -> ForClients {
    let authority = own_authority(config);
    // Without a registry there is nothing to show.
    let registries = registries(config, &[]).unwrap_or_default();
    ForClients { registries, is_hub_default: is_hub_default(config), authority }
}

/// Returns the authority at the end of the configured chain: a public one is not sent along, and need not be.
fn own_authority(config: &Config) -> Option<String> {
    let certified = config.server.tls.as_ref()?.certificates.first()?;
    let last = certified.cert.last()?;
    let (_, certificate) = X509Certificate::from_der(last).ok()?;
    (certificate.subject() == certificate.issuer()).then(|| pem(last))
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines = String::new();
    for (at, letter) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            lines.push('\n');
        }
        lines.push(letter);
    }
    format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
}

/// Returns the registries that clients name: `?ns=` values of the repositories. `only`: these, if there are any.
pub fn registries(config: &Config, only: &[String]) -> Result<Vec<Registry>, CommandError> {
    let mut all = Vec::new();
    for repository in &config.repositories {
        let is_hub = repository.namespaces.iter().any(|name| name == DOCKER_HUB[0]);
        // Clients call Docker Hub docker.io, whatever a reference says.
        let names = repository.namespaces.iter().filter(|name| !is_hub || !DOCKER_HUB[1..].contains(&name.as_str()));
        all.extend(names.map(|name| Registry { name: name.clone(), prefix: repository.prefix.clone() }));
    }
    if let Some(unknown) = only.iter().find(|only| !all.iter().any(|registry| registry.name == **only)) {
        let known: Vec<_> = all.iter().map(|registry| registry.name.as_str()).collect();
        return Err(CommandError::Usage(format!(
            "--registry {unknown}: no repository is for it; there are {}",
            known.join(", ")
        )));
    }
    if !only.is_empty() {
        all.retain(|registry| only.contains(&registry.name));
    }
    if all.is_empty() {
        let message = "no repository of the configuration has a `namespace`, by which clients name a registry";
        return Err(CommandError::Usage(message.to_owned()));
    }
    Ok(all)
}

/// Returns whether a request that names no registry goes to Docker Hub's repository.
pub fn is_hub_default(config: &Config) -> bool {
    let default = config.server.default_repository.as_deref();
    let repository = config.repositories.iter().find(|repository| Some(repository.prefix.as_str()) == default);
    repository.is_some_and(|repository| repository.namespaces.iter().any(|name| name == DOCKER_HUB[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_an_unusual_port() {
        for (text, expected) in [
            ("https://Mirror.Example.com:443/", ("mirror.example.com", false)),
            ("http://10.0.0.7:5000", ("10.0.0.7:5000", false)),
            ("http://localhost", ("localhost", true)),
            ("http://127.0.0.9:5000", ("127.0.0.9:5000", true)),
            ("http://[::1]:5000", ("[::1]:5000", true)),
        ] {
            let (host, is_loopback) = host(&read(text).expect(text));
            assert_eq!((host.as_str(), is_loopback), expected);
        }
        for text in ["10.0.0.7:5000", "mirror.example.com", "ftp://a", "https://me:x@a", "https://a/v2/", "https://a?b"]
        {
            let error = read(text).expect_err(text);
            assert!(error.contains("write for example") && !error.contains("me:x"), "{error}");
        }
    }
}
