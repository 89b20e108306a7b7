//! The client that a request comes from.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::request::Parts;

use super::address::ClientAddress;
use super::certificate::CertificateNames;
use super::counted_as;

/// A client. It goes along with its request, among the extensions.
#[derive(Clone, Debug)]
pub struct Client {
    /// The other end of the connection: the client itself, or the last of the proxies before it.
    pub peer: SocketAddr,
    /// Our own address that was connected to, where that is known.
    pub local: Option<IpAddr>,
    /// From where the request comes.
    pub address: ClientAddress,
    /// Whether it comes over TLS.
    pub is_secure: bool,
    /// Of a certificate that was verified.
    pub certificate: Option<Arc<CertificateNames>>,
}

impl Client {
    /// A client that connected from there, in plain text, and shows no certificate.
    pub fn connected(peer: SocketAddr) -> Self {
        Self { peer, local: None, address: peer.ip().into(), is_secure: false, certificate: None }
    }

    /// The address that it is counted by.
    pub fn counted(&self) -> IpAddr {
        match self.address.counted() {
            ClientAddress::Known(address) => address,
            // Behind a proxy that does not say which client it is: counted with the proxy.
            ClientAddress::Unknown => counted_as(self.peer.ip()),
        }
    }
}

/// For the log: the address, with the port where it is of our connection.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address == self.peer.ip().into() {
            true => self.peer.fmt(f),
            false => self.address.fmt(f),
        }
    }
}

/// Whether a request came over TLS.
pub fn is_secure(request: &Parts) -> bool {
    request.extensions.get::<Client>().is_some_and(|client| client.is_secure)
}

/// The address that the client of a request is counted by.
pub fn counted_client(request: &Parts) -> Option<IpAddr> {
    request.extensions.get::<Client>().map(Client::counted)
}
