//! From where a client comes, as far as that is known.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::counted_as;

/// The address of a client. IPv4 addresses written as IPv6 are IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddress {
    Known(IpAddr),
    /// A proxy in front says it in a way that cannot be read. It is in no network, not in that of everything either,
    /// and all such clients are counted as one.
    Unknown,
}

impl ClientAddress {
    /// What stands for it where clients are counted: who has an IPv6 address has a /64 of them.
    pub fn counted(self) -> Self {
        match self {
            Self::Known(address) => Self::Known(counted_as(address)),
            Self::Unknown => Self::Unknown,
        }
    }

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
