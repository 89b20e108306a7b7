//! The client that a request comes from.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::request::Parts;

use super::address::ClientAddress;
use super::certificate::CertificateNames;
use super::counted_as;

/// A client. It is kept in the extensions of its request.
#[derive(Clone, Debug)]
pub struct Client {
    /// The other end of the connection: the client itself, or the last of the proxies before it.
    pub peer: SocketAddr,
    /// Larder's own address that was connected to, where it is known.
    pub local: Option<IpAddr>,
    /// The address that the request comes from.
    pub address: ClientAddress,
    /// Whether the request came over TLS.
    pub is_secure: bool,
    /// The host with or without a port that the client asked, as a trusted proxy states it. `None`: as the request
    /// says.
    pub asked_host: Option<String>,
    /// The names of a client certificate that was verified.
    pub certificate: Option<Arc<CertificateNames>>,
}

impl Client {
    /// Makes a client that connected from `peer`, in plain text and without a certificate.
    pub fn connected(peer: SocketAddr) -> Self {
        Self { peer, local: None, address: peer.ip().into(), is_secure: false, asked_host: None, certificate: None }
    }

    /// Returns the address for logs and lists.
    pub fn shown(&self) -> ShownAddress {
        match self.address == self.peer.ip().into() {
            true => ShownAddress::Connection(self.peer),
            false => ShownAddress::Stated(self.address),
        }
    }

    /// Returns the address that the client is counted by.
    pub fn counted(&self) -> IpAddr {
        match self.address.counted() {
            ClientAddress::Known(address) => address,
            // A client behind a proxy that does not state the client's address is counted by the proxy's address.
            ClientAddress::Unknown => counted_as(self.peer.ip()),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

/// The address of a client as logs and lists show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownAddress {
    /// The client is the other end of the connection.
    Connection(SocketAddr),
    /// A proxy stated the address, without a port.
    Stated(ClientAddress),
}

impl fmt::Display for ShownAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(peer) => peer.fmt(f),
            Self::Stated(address) => address.fmt(f),
        }
    }
}

/// Returns whether a request came over TLS.
pub fn is_secure(request: &Parts) -> bool {
    request.extensions.get::<Client>().is_some_and(|client| client.is_secure)
}

/// Returns the address that the client of a request is counted by.
pub fn counted_client(request: &Parts) -> Option<IpAddr> {
    request.extensions.get::<Client>().map(Client::counted)
}
