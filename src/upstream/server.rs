//! A server that a client of the proxy door names.

use std::fmt;

use url::{Host, Url};

/// The host and port of a server. The host is written as in a URL: in lower case, without a dot at its end, numbers as
/// addresses, IPv6 addresses in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub host: String,
    pub port: u16,
}

/// The error for a text that names no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no host with a port")]
pub struct NoServer;

impl Server {
    /// Reads `host:port`, or `host` alone where `usual_port` is given.
    pub fn parse(text: &str, usual_port: Option<u16>) -> Result<Self, NoServer> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                (host, is_number.then(|| port.parse().ok()).flatten())
            }
            _ => (text, usual_port),
        };
        Self::new(host, port.filter(|port| *port > 0).ok_or(NoServer)?)
    }

    /// Makes a server from a host and a port. The host may be an IPv6 address without brackets.
    pub fn new(host: &str, port: u16) -> Result<Self, NoServer> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c) || !c.is_ascii();
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_plain) {
            return Err(NoServer);
        }
        // An IPv6 address without brackets, as in SOCKS.
        let host = match host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => Host::Ipv6(address),
            Err(_) => Host::parse(host).map_err(|_| NoServer)?,
        };
        Ok(Self { host: host.to_string(), port })
    }

    /// Returns the URL of the server's root with this scheme.
    pub fn url(&self, scheme: &str) -> Result<Url, NoServer> {
        Url::parse(&format!("{scheme}://{self}/")).map_err(|_| NoServer)
    }

    /// Returns the server as in a URL or a `Host` header of this scheme: without the port where that is the scheme's
    /// usual one.
    pub fn authority(&self, scheme: &str) -> String {
        match (scheme, self.port) {
            ("http", 80) | ("https", 443) => self.host.clone(),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_has_one_name() {
        for (text, expected) in [
            ("ghcr.io:443", "ghcr.io:443"),
            ("GHCR.io.:443", "ghcr.io:443"),
            ("ghcr.io", "ghcr.io:80"),
            ("127.1:80", "127.0.0.1:80"),
            ("0x7f000001:80", "127.0.0.1:80"),
            ("2130706433", "127.0.0.1:80"),
            ("[::1]:5000", "[::1]:5000"),
            ("[0:0:0:0:0:0:0:1]", "[::1]:80"),
            ("bücher.example:443", "xn--bcher-kva.example:443"),
        ] {
            assert_eq!(
                Server::parse(text, Some(80)).map(|server| server.to_string()).as_deref(),
                Ok(expected),
                "{text}"
            );
        }
        for wrong in [
            "",
            ":80",
            "ghcr.io:",
            "ghcr.io:0",
            "ghcr.io:65536",
            "ghcr.io:+1",
            "a b:80",
            "me@ghcr.io:443",
            "a/b:80",
            "[::1:80",
            "::1]:80",
        ] {
            assert_eq!(Server::parse(wrong, Some(80)), Err(NoServer), "{wrong}");
        }
        assert_eq!(Server::parse("ghcr.io", None), Err(NoServer));
    }
}
