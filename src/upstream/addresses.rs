//! The kinds of IP addresses, by the registries of IANA.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On the internet.
    Public,
    /// In somebody's own network (RFC 1918, RFC 6598, RFC 4193, RFC 2544).
    Private,
    /// On this machine.
    Loopback,
    /// On the link (RFC 3927, RFC 4291), and where clouds keep the credentials of machines.
    LinkLocal,
    /// Multicast, reserved, or for documentation: no server has such an address.
    Nobody,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// Networks that are not public (IANA IPv4 Special-Purpose Address Registry, RFC 6890, as of 2025). The first network
/// that holds an address counts. Networks that the registry calls globally reachable are left out: 192.31.196.0/24,
/// 192.52.193.0/24, 192.175.48.0/24.
const V4: [(Ipv4Net, Kind); 18] = [
    // Clouds: Azure's agent, Alibaba's metadata service. Oracle's former one is in 192.0.0.0/24.
    (v4(168, 63, 129, 16, 32), Kind::LinkLocal),
    (v4(100, 100, 100, 200, 32), Kind::LinkLocal),
    // "This network": 0.0.0.0 leads to this machine.
    (v4(0, 0, 0, 0, 8), Kind::Loopback),
    (v4(127, 0, 0, 0, 8), Kind::Loopback),
    (v4(169, 254, 0, 0, 16), Kind::LinkLocal),
    (v4(10, 0, 0, 0, 8), Kind::Private),
    (v4(172, 16, 0, 0, 12), Kind::Private),
    (v4(192, 168, 0, 0, 16), Kind::Private),
    // Shared address space of internet providers.
    (v4(100, 64, 0, 0, 10), Kind::Private),
    // Benchmarks; some networks have servers there all the same.
    (v4(198, 18, 0, 0, 15), Kind::Private),
    // Protocol assignments.
    (v4(192, 0, 0, 0, 24), Kind::LinkLocal),
    // Documentation.
    (v4(192, 0, 2, 0, 24), Kind::Nobody),
    (v4(198, 51, 100, 0, 24), Kind::Nobody),
    (v4(203, 0, 113, 0, 24), Kind::Nobody),
    (v4(233, 252, 0, 0, 24), Kind::Nobody),
    // Relays of 6to4, deprecated.
    (v4(192, 88, 99, 0, 24), Kind::Nobody),
    // Multicast, reserved, broadcast.
    (v4(224, 0, 0, 0, 4), Kind::Nobody),
    (v4(240, 0, 0, 0, 4), Kind::Nobody),
];

/// Metadata services of clouds at addresses within private networks: Amazon, Google, Oracle.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// The network of all addresses that are assigned as public (RFC 4291; IANA IPv6 Global Unicast Address Assignments).
const GLOBAL: Ipv6Net = v6(0x2000, 0, 0, 3);

/// IPv6 networks that are not public (IANA IPv6 Special-Purpose Address Registry), within [`GLOBAL`] and outside.
const V6: [(Ipv6Net, Kind); 8] = [
    (v6(0xfe80, 0, 0, 10), Kind::LinkLocal),
    (v6(0xfc00, 0, 0, 7), Kind::Private),
    // Site-local addresses, deprecated by RFC 3879 and still routed inside networks.
    (v6(0xfec0, 0, 0, 10), Kind::Private),
    // NAT64 within a network (RFC 8215).
    (v6(0x64, 0xff9b, 1, 48), Kind::Private),
    // Protocol assignments: Teredo, benchmarks, ORCHID and others.
    (v6(0x2001, 0, 0, 23), Kind::Nobody),
    // Documentation (RFC 3849, RFC 9637).
    (v6(0x2001, 0xdb8, 0, 32), Kind::Nobody),
    (v6(0x3fff, 0, 0, 20), Kind::Nobody),
    // Segment routing (RFC 9602).
    (v6(0x5f00, 0, 0, 16), Kind::Nobody),
];

impl Kind {
    /// Returns the kind of an address. An IPv6 address that holds an IPv4 address is of the kind of the latter.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => match embedded(address) {
                Some(inner) => Self::of_v4(inner),
                None => Self::of_v6(address),
            },
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        V4.iter().find(|(network, _)| network.contains(&address)).map_or(Self::Public, |(_, kind)| *kind)
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if address.is_loopback() || address.is_unspecified() {
            return Self::Loopback;
        }
        if METADATA_V6.contains(&address) {
            return Self::LinkLocal;
        }
        let special = V6.iter().find(|(network, _)| network.contains(&address));
        let usual = if GLOBAL.contains(&address) { Self::Public } else { Self::Nobody };
        special.map_or(usual, |(_, kind)| *kind)
    }

    /// Returns the bit that stands for this kind in a set of kinds.
    pub fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Returns the IPv4 address that an IPv6 address holds: mapped (`::ffff:0:0/96`), translated (RFC 2765), for NAT64 (RFC
/// 6052), or of 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match [a, b, c, d, e, f] {
        [0x64, 0xff9b, 0, 0, 0, 0] | [0, 0, 0, 0, 0xffff, 0] => Some(v4(high, low)),
        // 6to4 (RFC 3056)
        [0x2002, high, low, ..] => Some(v4(high, low)),
        // The old form of compatible addresses; ::1 and :: are not of this form.
        [0, 0, 0, 0, 0, 0] if high != 0 => Some(v4(high, low)),
        _ => address.to_ipv4_mapped(),
    }
}

/// Returns an address as it is connected to: the IPv4 address that an IPv6 address holds, else the address itself.
pub fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(inner) => embedded(inner).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Returns whether the proxy door may connect to an address. `is_named`: whether the configuration names the host;
/// `networks`: the networks that the configuration names.
pub fn is_open(address: IpAddr, is_named: bool, networks: &[IpNet]) -> bool {
    is_named
        || Kind::of(address) == Kind::Public
        || networks.iter().any(|network| network.contains(&plain(address)) || network.contains(&address))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_address_is_of_the_kind_that_iana_says() {
        for (kind, addresses) in [
            (
                Kind::Public,
                "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15 \
                 168.63.129.17 169.253.255.255 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.31.196.1 192.52.193.1 \
                 192.175.48.1 198.17.255.255 198.20.0.0 198.51.99.255 203.0.112.255 223.255.255.255 2606:4700::1111 \
                 2001:200:: 2001:4860:4860::8888 2600:1f00::1 2a00:1450::1 64:ff9b::808:808 2002:808:808:: \
                 ::ffff:8.8.8.8 2620:4f:8000::1",
            ),
            (
                Kind::Private,
                "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.1 100.64.0.1 100.127.255.255 198.18.0.0 \
                 198.19.255.255 fd00::1 fc00::1 fec0::1 64:ff9b:1::1 ::ffff:10.0.0.1 64:ff9b::a00:1 2002:a00:1:: \
                 ::ffff:0:10.0.0.1 ::10.0.0.1",
            ),
            (
                Kind::Loopback,
                "127.0.0.1 127.255.255.255 0.0.0.0 0.1.2.3 :: ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1::",
            ),
            (
                Kind::LinkLocal,
                "169.254.0.0 169.254.169.254 fe80::1 febf::1 168.63.129.16 100.100.100.200 192.0.0.192 192.0.0.170 \
                 fd00:ec2::254 fd20:ce::254 fd00:c1::a9fe:a9fe ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe ::ffff:168.63.129.16",
            ),
            (
                Kind::Nobody,
                "192.0.2.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 239.255.255.255 233.252.0.1 240.0.0.1 \
                 255.255.255.255 ff02::1 2001:db8::1 3fff::1 3fff:fff::1 5f00::1 2001::1 2001:2::1 2001:10::1 2001:20::1 \
                 2001:1ff::1 100::1 100:0:0:1::1 4000::1 1::1 e000::1",
            ),
        ] {
            for text in addresses.split_whitespace() {
                assert_eq!(Kind::of(text.parse().expect(text)), kind, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_address_in_another_form_is_of_the_same_kind(bits in any::<u32>()) {
            let address = Ipv4Addr::from(bits);
            let kind = Kind::of(address.into());
            let [a, b, c, d] = address.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            for form in [
                address.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ] {
                prop_assert_eq!(Kind::of(form.into()), kind);
                prop_assert_eq!(plain(form.into()), IpAddr::from(address));
            }
        }
    }
}
