//! The addresses that this process listens on, so that it never sends requests to itself. Such a request would go in a
//! circle, and answers that the doors give only to this machine must not be fetched for an upstream or a client.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use arc_swap::ArcSwap;
use url::{Host, Url};

/// The addresses that this process listens on; clones share them.
#[derive(Clone, Default)]
pub struct Ours(Arc<ArcSwap<Vec<SocketAddr>>>);

impl Ours {
    /// Replaces the addresses.
    pub fn set(&self, addresses: &[SocketAddr]) {
        let canonical = addresses.iter().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
        self.0.store(Arc::new(canonical.collect()));
    }

    /// Returns whether one of Larder's doors listens on this port, at any address.
    pub fn have_port(&self, port: u16) -> bool {
        self.0.load().iter().any(|listener| listener.port() == port)
    }

    /// Returns whether a connection to this address and port reaches one of Larder's doors.
    pub fn are_at(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        self.0.load().iter().any(|listener| listener.port() == port && leads_to(address, listener.ip()))
    }

    /// Returns the addresses of a host that do not lead to one of Larder's doors at this port. Fails if none is left.
    pub fn leave_out(&self, host: &str, port: Option<u16>, addresses: Vec<IpAddr>) -> io::Result<Vec<IpAddr>> {
        let Some(port) = port else {
            return Ok(addresses);
        };
        let others: Vec<_> = addresses.into_iter().filter(|address| !self.are_at(*address, port)).collect();
        match others.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::PermissionDenied, Circle(format!("{host}:{port}")))),
            false => Ok(others),
        }
    }

    /// Returns whether a URL names one of Larder's doors by its address. Host names are checked when they are resolved.
    pub fn are_named(&self, url: &Url) -> bool {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => address.into(),
            Some(Host::Ipv6(address)) => address.into(),
            _ => return false,
        };
        url.port_or_known_default().is_some_and(|port| self.are_at(address, port))
    }
}

/// Returns whether a connection to `address` reaches a socket that listens on `listener`.
fn leads_to(address: IpAddr, listener: IpAddr) -> bool {
    // The unspecified address: the system connects to an address of its own.
    if address.is_unspecified() {
        return listener.is_loopback() || listener.is_unspecified();
    }
    match listener {
        // An IPv6 socket may accept both families.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_of_this_machine(address),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.is_ipv4() && is_of_this_machine(address),
        listener => listener == address,
    }
}

/// Returns whether an address is one of this machine's: packets to such an address have it as their source address,
/// too. Nothing is sent.
fn is_of_this_machine(address: IpAddr) -> bool {
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect((address, 9))?;
        socket.local_addr()
    };
    address.is_loopback() || source().is_ok_and(|source| source.ip() == address)
}

/// The error for a server that is one of Larder's own doors, with its host and port.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0} is an address that Larder itself listens on; name another server there")]
pub struct Circle(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_found_at_each_address_that_leads_to_it() {
        let ours = Ours::default();
        ours.set(
            &["127.0.0.1:5000", "0.0.0.0:6000", "[::]:7000", "192.0.2.1:8000", "[::ffff:127.0.0.5]:9000"]
                .map(|text| text.parse().expect("an address")),
        );
        for (address, port, expected) in [
            ("127.0.0.1", 5000, true),
            ("127.0.0.1", 5001, false),
            ("127.0.0.2", 5000, false),
            ("::ffff:127.0.0.1", 5000, true),
            ("0.0.0.0", 5000, true),
            ("::1", 5000, false),
            ("127.0.0.7", 6000, true),
            ("::ffff:127.0.0.7", 6000, true),
            ("::1", 6000, false),
            ("203.0.113.9", 6000, false),
            ("::1", 7000, true),
            ("127.0.0.7", 7000, true),
            ("::", 7000, true),
            ("192.0.2.1", 8000, true),
            ("127.0.0.1", 8000, false),
            ("127.0.0.5", 9000, true),
        ] {
            assert_eq!(ours.are_at(address.parse().expect("an address"), port), expected, "{address} {port}");
        }
        assert!(ours.have_port(8000) && !ours.have_port(80));
        let named = |text: &str| ours.are_named(&Url::parse(text).expect("a URL"));
        assert!(named("http://2130706433:5000/") && named("http://[::ffff:127.0.0.1]:5000/x"));
        assert!(!named("http://localhost:5000/") && !named("http://127.0.0.1/"));
    }
}
