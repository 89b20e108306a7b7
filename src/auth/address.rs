//! The address that a client comes from, as far as it is known.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::counted_as;

/// The address of a client. An IPv4 address written as IPv6 is an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddress {
    Known(IpAddr),
    /// A proxy in front of Larder states the address in a form that cannot be read. Such a client is in no network, not
    /// even in the one of all addresses, and all such clients are counted as one.
    Unknown,
}

impl ClientAddress {
    /// Returns the address that the client is counted by. A client with an IPv6 address has a whole /64, so it is
    /// counted by that.
    pub fn counted(self) -> Self {
        match self {
            Self::Known(address) => Self::Known(counted_as(address)),
            Self::Unknown => Self::Unknown,
        }
    }

    /// Returns whether the address is in a network.
    pub fn is_in(&self, network: &IpNet) -> bool {
        match self {
            Self::Known(address) => network.contains(address),
            Self::Unknown => false,
        }
    }
}

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        Self::Known(address.to_canonical())
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(address) => address.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}
