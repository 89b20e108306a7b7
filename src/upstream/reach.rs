//! Where an upstream may send us.
//!
//! A registry names further addresses: of its token service, of the storage behind its redirects. One on
//! the public internet has no business with addresses inside our network or on this machine, such as
//! the metadata service of a cloud (server-side request forgery). So another host may be public, or of
//! the same kind as the upstream's own address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Public,
    /// RFC 1918, RFC 6598, RFC 4193.
    Private,
    Loopback,
    /// RFC 3927, RFC 4291; also where clouds keep the credentials of machines.
    LinkLocal,
    /// Multicast, broadcast, reserved: nobody's.
    Nobody,
}

impl Kind {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => match embedded(address) {
                Some(inner) => Self::of_v4(inner),
                None => Self::of_v6(address),
            },
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [first, second, ..] = address.octets();
        // 0.0.0.0/8 leads to this machine.
        if address.is_loopback() || first == 0 {
            Self::Loopback
        } else if address.is_link_local() {
            Self::LinkLocal
        } else if address.is_private() || (first == 100 && second & 0xc0 == 64) {
            Self::Private
        } else if first >= 224 {
            Self::Nobody
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if address.is_loopback() || address.is_unspecified() {
            Self::Loopback
        } else if address.is_unicast_link_local() {
            Self::LinkLocal
        } else if address.is_unique_local() || is_site_local(address) || is_local_nat64(address) {
            Self::Private
        } else if address.is_multicast() {
            Self::Nobody
        } else {
            Self::Public
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The IPv4 address inside: mapped (`::ffff:0:0/96`), or for NAT64 (RFC 6052).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match [a, b, c, d, e, f] {
        [0x64, 0xff9b, 0, 0, 0, 0] => Some(v4(high, low)),
        // 6to4 (RFC 3056)
        [0x2002, high, low, ..] => Some(v4(high, low)),
        // The old form of compatible addresses; ::1 and :: are none.
        [0, 0, 0, 0, 0, 0] if high != 0 => Some(v4(high, low)),
        _ => address.to_ipv4_mapped(),
    }
}

/// fec0::/10, given up by RFC 3879 and still routed inside.
fn is_site_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfec0
}

/// 64:ff9b:1::/48 (RFC 8215)
fn is_local_nat64(address: Ipv6Addr) -> bool {
    address.segments()[..3] == [0x64, 0xff9b, 1]
}

/// Whether the proxy door leads to an address: `is_named`, the configuration names its host; `networks`,
/// those that it names.
pub fn is_open(address: IpAddr, is_named: bool, networks: &[IpNet]) -> bool {
    let plain = match address {
        IpAddr::V6(inner) => embedded(inner).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    };
    is_named || Kind::of(address) == Kind::Public || networks.iter().any(|network| network.contains(&plain))
}

/// What one upstream may lead to. Also resolves names for its client, so that the address that is
/// looked at is the one that is dialled.
pub struct Reach {
    own_host: String,
    origin: Url,
    /// Hosts that the configuration names, wherever they are.
    trusted: Vec<String>,
    /// Where requests go on their way; not to be led to.
    proxies: Vec<String>,
    /// The kinds of the upstream's own addresses, as bits.
    own: AtomicU8,
    /// Set where nobody but a client named the upstream: it is public or in these networks.
    confined_to: Option<Vec<IpNet>>,
}

impl Reach {
    pub fn new(origin: &Url, trusted: &[String], proxies: Vec<String>, confined_to: Option<&[IpNet]>) -> Self {
        let own_host = origin.host_str().unwrap_or_default().to_ascii_lowercase();
        let own = literal(origin).filter(|_| confined_to.is_none()).map_or(0, |address| Kind::of(address).bit());
        let confined_to = confined_to.map(<[IpNet]>::to_vec);
        Self {
            own_host,
            origin: origin.clone(),
            trusted: trusted.to_vec(),
            proxies,
            own: AtomicU8::new(own),
            confined_to,
        }
    }

    /// Whether to go to the host of `url`, as far as the URL itself tells; names are judged when they
    /// are resolved.
    pub fn permits(&self, url: &Url) -> bool {
        // Nobody vouches for where a client's own choice leads: not to other ports than the door itself does.
        let is_usual = matches!(url.port_or_known_default(), Some(80 | 443));
        let is_at_home = url.origin() == self.origin.origin();
        if self.confined_to.is_some() && !is_usual && !is_at_home {
            return false;
        }
        self.is_trusted(url.host_str().unwrap_or_default()) || literal(url).is_none_or(|address| self.allows(address))
    }

    fn is_trusted(&self, host: &str) -> bool {
        self.is_own(host) || self.trusted.iter().any(|trusted| trusted == host)
    }

    /// Whether it is the host that the configuration names as the upstream.
    fn is_own(&self, host: &str) -> bool {
        self.confined_to.is_none() && host.eq_ignore_ascii_case(&self.own_host)
    }

    fn allows(&self, address: IpAddr) -> bool {
        let (kind, own) = (Kind::of(address), self.own.load(Ordering::Relaxed));
        // What runs on this machine is at home in its network.
        let is_near = kind == Kind::Private && own & Kind::Loopback.bit() != 0;
        let is_let = self.confined_to.as_ref().is_some_and(|networks| is_open(address, false, networks));
        is_let || kind == Kind::Public || own & kind.bit() != 0 || is_near
    }

    /// Of which kind the upstream is. Its own name service says so: one that is public as well does not
    /// open our network by another address, and a link-local one opens nothing.
    fn learn(&self, addresses: &[SocketAddr]) {
        let kinds = addresses.iter().fold(0, |kinds, address| kinds | Kind::of(address.ip()).bit());
        let inside = Kind::Private.bit() | Kind::Loopback.bit();
        let own = if kinds & Kind::Public.bit() == 0 { kinds & inside } else { 0 };
        self.own.store(own, Ordering::Relaxed);
    }

    /// Of the addresses of a host, those that we may go to.
    fn judge(&self, host: &str, addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        if self.is_own(host) {
            self.learn(&addresses);
            return Ok(addresses);
        }
        if self.is_trusted(host) || self.proxies.iter().any(|proxy| proxy == host) {
            return Ok(addresses);
        }
        let allowed: Vec<_> = addresses.into_iter().filter(|address| self.allows(address.ip())).collect();
        if allowed.is_empty() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal(host)));
        }
        Ok(allowed)
    }
}

/// What to say of a host that we are not to go to.
pub fn refusal(host: &str) -> String {
    format!(
        "it leads to {host}, an address inside another network than its own; if that is meant, name the host in redirect_hosts"
    )
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// For the HTTP client.
pub struct Resolver(pub Arc<Reach>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let addresses = reach.judge(name.as_str(), found)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(origin: &str) -> Reach {
        let proxies = vec!["proxy.example".to_owned()];
        Reach::new(&Url::parse(origin).expect("a URL"), &["trusted.example".to_owned()], proxies, None)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_public_registry_leads_to_public_addresses_only() {
        let public = reach("https://192.0.2.1");
        assert!(public.allows(address("198.51.100.7")));
        for inside in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "::127.0.0.1",
            "fec0::1",
        ] {
            assert!(!public.allows(address(inside)), "{inside}");
        }
    }

    #[test]
    fn a_registry_inside_leads_to_its_own_kind_and_outside() {
        let private = reach("http://10.0.0.1:5000");
        assert!(private.allows(address("192.168.7.7")) && private.allows(address("198.51.100.7")));
        assert!(!private.allows(address("127.0.0.1")) && !private.allows(address("169.254.169.254")));
        let here = reach("http://127.0.0.1:5000");
        assert!(here.allows(address("127.0.0.3")) && here.allows(address("10.0.0.1")));
        assert!(!here.allows(address("169.254.169.254")));
    }

    #[test]
    fn a_name_is_judged_by_what_it_resolves_to() {
        let public = reach("https://registry.example");
        let at = |text: &str| vec![SocketAddr::new(address(text), 0)];
        assert!(public.judge("registry.example", at("192.0.2.1")).is_ok());
        assert!(public.judge("cdn.example", at("198.51.100.7")).is_ok());
        assert!(public.judge("rebound.example", at("127.0.0.1")).is_err());
        assert!(public.judge("trusted.example", at("10.0.0.1")).is_ok());
        let mixed = |one: &str, other: &str| [at(one), at(other)].concat();
        assert_eq!(public.judge("cdn.example", mixed("10.0.0.1", "198.51.100.7")).expect("one is allowed").len(), 1);
        assert!(public.judge("proxy.example", at("10.0.0.1")).is_ok());
        // What its own name resolves to opens nothing beside a public address, and never the link.
        public.judge("registry.example", mixed("192.0.2.1", "127.0.0.1")).expect("its own host");
        assert!(public.judge("cdn.example", at("127.0.0.1")).is_err());
        public.judge("registry.example", mixed("10.0.0.1", "169.254.169.254")).expect("its own host");
        assert!(public.judge("cdn.example", at("169.254.169.254")).is_err());
        // A name of our own network makes its kind allowed.
        let internal = reach("https://registry.internal");
        assert!(internal.judge("storage.internal", at("10.0.0.2")).is_err());
        internal.judge("registry.internal", at("10.0.0.1")).expect("its own host");
        assert!(internal.judge("storage.internal", at("10.0.0.2")).is_ok());
    }
}
