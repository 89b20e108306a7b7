//! The addresses and names at which clients reach the registry door.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Config, HostPattern, plain_host};
use crate::upstream::Ours;

/// The addresses and names at which clients reach the registry door. People copy references from a pull, with one of
/// these before the name.
#[derive(Clone, Default)]
pub struct OwnNames {
    addresses: Ours,
    names: Vec<HostPattern>,
}

impl OwnNames {
    /// Returns the names that a configuration gives, with the addresses where it has the door listen.
    pub fn new(config: &Config) -> Self {
        let acme = config.server.tls.as_ref().and_then(|tls| tls.acme.as_ref());
        let domains = acme.iter().flat_map(|acme| &acme.domains).filter_map(|domain| HostPattern::parse(domain).ok());
        let public =
            config.server.public_url.iter().filter_map(|url| HostPattern::parse(url.split_once("://")?.1).ok());
        let addresses = Ours::default();
        addresses.set(&config.server.listen);
        Self { addresses, names: config.server.hosts.iter().cloned().chain(domains).chain(public).collect() }
    }

    /// Returns the same names, with the addresses where this process really listens.
    pub fn at(&self, addresses: &Ours) -> Self {
        Self { addresses: addresses.clone(), names: self.names.clone() }
    }

    /// Returns a reference without the address or name of this cache at its beginning.
    pub fn without<'a>(&self, reference: &'a str) -> &'a str {
        let scheme = ["http://", "https://", "docker://"].iter().find_map(|scheme| reference.strip_prefix(scheme));
        let reference = scheme.unwrap_or(reference);
        match reference.split_once('/') {
            Some((host, rest)) if self.have(host) => rest,
            _ => reference,
        }
    }

    fn have(&self, host: &str) -> bool {
        let (name, port) = match host.rsplit_once(':').map(|(name, port)| (name, port.parse::<u16>())) {
            Some((name, Ok(port))) => (name, Some(port)),
            _ => (host, None),
        };
        let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
        match (address, port) {
            (Ok(address), port) => self.addresses.are_at(address, port.unwrap_or(80)),
            (Err(_), port) if name == "localhost" => {
                let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
                loopback.into_iter().any(|address| self.addresses.are_at(address, port.unwrap_or(80)))
            }
            (Err(_), port) => {
                let host = plain_host(name);
                (name.contains('.') || port.is_some()) && self.names.iter().any(|known| known.matches(&host, port))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_before_a_reference_is_taken_off() {
        let own = OwnNames {
            addresses: Ours::default(),
            names: ["mirror.lan", "*.corp.example:5000"]
                .map(|name| HostPattern::parse(name).expect("a pattern"))
                .into(),
        };
        own.addresses
            .set(&["127.0.0.1:5000", "[::1]:5000", "192.0.2.1:80"].map(|text| text.parse().expect("an address")));
        let image = "docker.io/library/alpine:3.20";
        for host in [
            "127.0.0.1:5000",
            "localhost:5000",
            "[::1]:5000",
            "192.0.2.1",
            "http://127.0.0.1:5000",
            "docker://127.0.0.1:5000",
            "mirror.lan",
            "Mirror.LAN:5000",
            "a.corp.example:5000",
        ] {
            assert_eq!(own.without(&format!("{host}/{image}")), image, "{host}");
        }
        for other in ["127.0.0.1:5001", "localhost:80", "192.0.2.1:5000", "a.corp.example", "docker.io", "library"] {
            let reference = format!("{other}/{image}");
            assert_eq!(own.without(&reference), reference);
        }
        assert_eq!(own.without("127.0.0.1:5000"), "127.0.0.1:5000");
    }
}
