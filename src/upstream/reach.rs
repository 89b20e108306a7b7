//! Where an upstream may send Larder.
//!
//! A registry names further addresses: of its token service, of the storage behind its redirects. A registry on the
//! public internet must not name addresses inside our network or on this machine, such as the metadata service of a
//! cloud (server-side request forgery). So another host must be public, or of the same kind as the upstream's own
//! address. A registry of the internet does not become one of our network by its own name either: once it answered from
//! a public address, it is public.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::addresses::{Kind, is_open};
use super::ours::Ours;

/// Most addresses of a name that are remembered.
const MAX_ADDRESSES: usize = 64;

/// The hosts and addresses that one upstream may lead to. This also resolves names for the upstream's HTTP client, so
/// that the address that is checked is the one that is connected to.
pub struct Reach {
    own_host: String,
    origin: Url,
    /// Hosts that the configuration names, at any address.
    trusted: Vec<String>,
    /// Hosts of the proxies that requests go through: their names may resolve to any address, so no URL may lead to them.
    proxies: Vec<String>,
    /// The kind of the upstream's own address, as a bit; 0 until an answer has come from it.
    own: AtomicU8,
    /// The addresses that the upstream's own name was resolved to lately. An answer from another address comes from a
    /// proxy.
    found: Mutex<Vec<IpAddr>>,
    /// Set where only a client named the upstream: the upstream must be public or in these networks.
    confined_to: Option<Vec<IpNet>>,
}

impl Reach {
    /// Makes the rules for the upstream at `origin`. `trusted`: hosts that the configuration names; `proxies`: hosts of
    /// the proxies that requests go through.
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
            found: Mutex::default(),
            confined_to,
        }
    }

    /// Returns whether Larder may go to the host of `url`, judged by the URL alone. Host names are checked when they
    /// are resolved.
    pub fn permits(&self, url: &Url) -> bool {
        if self.is_port_refused(url) {
            return false;
        }
        let host = url.host_str().unwrap_or_default();
        let may_be_elsewhere = || match literal(url) {
            Some(address) => self.allows(address),
            None => !self.is_proxy(host),
        };
        self.is_own(host) || self.is_trusted(host) || may_be_elsewhere()
    }

    /// Returns whether the port of `url` is refused. An upstream that only a client names may lead to the ports that
    /// the door itself allows (80 and 443) and to its own origin: the configuration does not vouch for more.
    fn is_port_refused(&self, url: &Url) -> bool {
        let is_usual = matches!(url.port_or_known_default(), Some(80 | 443));
        self.confined_to.is_some() && !is_usual && url.origin() != self.origin.origin()
    }

    /// Returns why [`Reach::permits`] refuses a URL, and what an operator can do about that.
    pub fn refusal(&self, url: &Url) -> String {
        let host = url.host_str().unwrap_or_default();
        match url.port_or_known_default().filter(|_| self.is_port_refused(url)) {
            Some(port) => format!(
                "it leads to {host}:{port}, and a registry that the configuration does not name leads to ports 80 and 443 only; if that is meant, name {} in allowlist.domains",
                self.own_host
            ),
            None if self.is_proxy(host) => format!(
                "it leads to {host}, the proxy that requests go through; if that is meant, name the host in redirect_hosts"
            ),
            None => self.inside(host),
        }
    }

    /// Returns the message for a host whose addresses are not allowed.
    fn inside(&self, host: &str) -> String {
        // An upstream that only a client names has no table in the configuration.
        let what = match self.confined_to {
            Some(_) => "add that network to allowlist.domains",
            None => "name the host in redirect_hosts",
        };
        format!("it leads to {host}, an address inside another network than its own; if that is meant, {what}")
    }

    fn is_proxy(&self, host: &str) -> bool {
        self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host.trim_end_matches('.')))
    }

    fn is_trusted(&self, host: &str) -> bool {
        self.trusted.iter().any(|trusted| trusted == host)
    }

    /// Returns whether a host is the one that the configuration names as the upstream.
    fn is_own(&self, host: &str) -> bool {
        self.confined_to.is_none() && host.eq_ignore_ascii_case(&self.own_host)
    }

    fn is_of_kind(&self, kind: Kind) -> bool {
        self.own.load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// Returns whether a host other than the upstream's own may have this address.
    fn allows(&self, address: IpAddr) -> bool {
        let is_let = self.confined_to.as_ref().is_some_and(|networks| is_open(address, false, networks));
        is_let
            || match Kind::of(address) {
                Kind::Public => true,
                // An upstream on this machine belongs to this machine's network.
                Kind::Private => self.is_of_kind(Kind::Private) || self.is_of_kind(Kind::Loopback),
                Kind::Loopback => self.is_of_kind(Kind::Loopback),
                Kind::LinkLocal | Kind::Nobody => false,
            }
    }

    /// Returns whether the upstream's own host may have this address: any address before the first answer, then
    /// addresses of the same kind and public ones.
    fn is_home(&self, address: IpAddr) -> bool {
        self.own.load(Ordering::Relaxed) == 0 || self.is_of_kind(Kind::of(address)) || self.allows(address)
    }

    /// Notes that the upstream's own host answered from this address, which sets the upstream's kind. The kind only
    /// narrows: from this machine to a network and to the internet. Fails where the host may not have this address.
    pub fn answered_from(&self, address: IpAddr) -> Result<(), String> {
        let is_by_name = literal(&self.origin).is_none();
        let is_found = self.found.lock().unwrap_or_else(PoisonError::into_inner).contains(&address);
        if self.confined_to.is_some() || !is_by_name || !is_found || self.is_trusted(&self.own_host) {
            return Ok(());
        }
        if !self.is_home(address) {
            return Err(self.moved(address));
        }
        let kind = Kind::of(address);
        let narrow = |own: u8| match kind {
            _ if own == 0 || kind == Kind::Public => Some(kind.bit()),
            Kind::Private if own != Kind::Public.bit() => Some(kind.bit()),
            _ => None,
        };
        // If another answer narrowed the kind meanwhile, that kind stays, or this answer narrows it further.
        let _ = self.own.fetch_update(Ordering::Relaxed, Ordering::Relaxed, narrow);
        Ok(())
    }

    fn note(&self, addresses: &[IpAddr]) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses.iter().take(MAX_ADDRESSES) {
            if !found.contains(address) {
                found.push(*address);
            }
        }
        let surplus = found.len().saturating_sub(MAX_ADDRESSES);
        found.drain(..surplus);
    }

    fn moved(&self, address: IpAddr) -> String {
        let host = &self.own_host;
        format!(
            "{host} is by now at {address}, inside a network, where it was not before; if that is meant, name the host in redirect_hosts"
        )
    }

    /// Returns those addresses of a host that Larder may connect to. Fails if none of them is allowed.
    fn judge(&self, host: &str, addresses: Vec<IpAddr>) -> io::Result<Vec<IpAddr>> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if self.is_trusted(host) || self.is_proxy(host) {
            return Ok(addresses);
        }
        let (is_own, first) = (self.is_own(host), addresses.first().copied());
        let may_have = |address: &IpAddr| if is_own { self.is_home(*address) } else { self.allows(*address) };
        let allowed: Vec<_> = addresses.into_iter().filter(may_have).collect();
        match (first, is_own) {
            (Some(first), true) if allowed.is_empty() => refuse(self.moved(first)),
            (_, false) if allowed.is_empty() => refuse(self.inside(host)),
            (_, is_own) => {
                if is_own {
                    self.note(&allowed);
                }
                Ok(allowed)
            }
        }
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// Resolves names for the HTTP client.
#[derive(Clone)]
pub struct Resolver {
    pub reach: Arc<Reach>,
    pub ours: Ours,
    /// The port of the servers whose names are resolved, if one of Larder's doors uses this port.
    pub port: Option<u16>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, ours, port) = (self.reach.clone(), self.ours.clone(), self.port);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.map(|address| address.ip()).collect();
            let addresses = ours.leave_out(name.as_str(), port, reach.judge(name.as_str(), found)?)?;
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
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

    /// Returns the addresses that may be connected to when a name service returns `addresses`.
    fn looked_up(reach: &Reach, host: &str, addresses: &[&str]) -> Vec<String> {
        let judged = reach.judge(host, addresses.iter().map(|text| address(text)).collect());
        judged.unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// A name of a proxy is resolved to any address, as the client has to get there.
    #[test]
    fn no_registry_leads_to_a_proxy_of_ours() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let public = reach("https://registry.example");
        assert_eq!(looked_up(&public, "proxy.example", &["10.0.0.7"]), ["10.0.0.7"]);
        for led_to in ["http://proxy.example/", "https://PROXY.example:8443/admin", "http://proxy.example.:3128/"] {
            assert!(!public.permits(&url(led_to)), "{led_to}");
        }
        assert!(public.permits(&url("https://other.example/")));
        assert!(reach("https://proxy.example").permits(&url("https://proxy.example/v2/")), "its own host");
        assert!(public.permits(&url("https://trusted.example/")));
    }

    #[test]
    fn a_public_registry_leads_to_public_addresses_only() {
        let public = reach("https://1.1.1.1");
        assert!(public.allows(address("8.8.8.8")));
        for inside in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.192",
            "168.63.129.16",
            "169.254.169.254",
            "192.0.2.1",
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
            "2001:db8::1",
        ] {
            assert!(!public.allows(address(inside)), "{inside}");
        }
    }

    #[test]
    fn a_registry_inside_leads_to_its_own_kind_and_outside() {
        let private = reach("http://10.0.0.1:5000");
        assert!(private.allows(address("192.168.7.7")) && private.allows(address("8.8.8.8")));
        for other in ["127.0.0.1", "169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254"] {
            assert!(!private.allows(address(other)), "{other}");
        }
        let here = reach("http://127.0.0.1:5000");
        assert!(here.allows(address("127.0.0.3")) && here.allows(address("10.0.0.1")));
        assert!(!here.allows(address("169.254.169.254")));
        // An upstream on the link may be asked, but opens no other address.
        let link = reach("http://169.254.1.1:5000");
        assert!(link.permits(&Url::parse("http://169.254.1.1:5000/x").expect("a URL")));
        assert!(!link.allows(address("169.254.169.254")));
    }

    #[test]
    fn a_name_is_judged_by_what_it_resolves_to() {
        let public = reach("https://registry.example");
        assert_eq!(looked_up(&public, "registry.example", &["1.1.1.1"]), ["1.1.1.1"]);
        public.answered_from(address("1.1.1.1")).expect("its own");
        assert_eq!(looked_up(&public, "cdn.example", &["8.8.8.8"]), ["8.8.8.8"]);
        assert!(looked_up(&public, "rebound.example", &["127.0.0.1"]).is_empty());
        assert_eq!(looked_up(&public, "trusted.example", &["10.0.0.1"]), ["10.0.0.1"]);
        assert_eq!(looked_up(&public, "cdn.example", &["10.0.0.1", "8.8.8.8"]), ["8.8.8.8"]);
        assert_eq!(looked_up(&public, "proxy.example", &["10.0.0.1"]), ["10.0.0.1"]);
    }

    #[test]
    fn what_a_registry_is_shows_in_answers_and_not_in_its_name_service() {
        let internal = reach("https://registry.internal");
        looked_up(&internal, "registry.internal", &["10.0.0.1"]);
        assert!(looked_up(&internal, "storage.internal", &["10.0.0.2"]).is_empty(), "nothing answered yet");
        internal.answered_from(address("10.0.0.1")).expect("its own");
        assert_eq!(looked_up(&internal, "storage.internal", &["10.0.0.2"]), ["10.0.0.2"]);
        assert!(looked_up(&internal, "storage.internal", &["169.254.169.254"]).is_empty());
        // An answer from another address comes from a proxy, and shows nothing.
        let proxied = reach("https://registry.example");
        proxied.answered_from(address("10.0.0.9")).expect("of no concern");
        assert!(looked_up(&proxied, "cdn.example", &["10.0.0.2"]).is_empty());
        assert_eq!(looked_up(&proxied, "registry.example", &["1.1.1.1"]), ["1.1.1.1"]);
    }

    #[test]
    fn a_registry_of_the_internet_does_not_become_one_of_our_network() {
        let public = reach("http://registry.example");
        looked_up(&public, "registry.example", &["1.1.1.1"]);
        public.answered_from(address("1.1.1.1")).expect("its own");
        for inside in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "192.168.0.1", "168.63.129.16"] {
            // For one connection: the address is refused alone, and left out beside the right address.
            let said = public.judge("registry.example", vec![address(inside)]).expect_err("refused").to_string();
            assert!(said.contains(inside) && said.contains("redirect_hosts"), "{said}");
            assert_eq!(looked_up(&public, "registry.example", &[inside, "1.1.1.1"]), ["1.1.1.1"]);
            assert!(looked_up(&public, "cdn.example", &[inside]).is_empty());
        }
        // Two connections began before the kind was known: the one inside is refused afterwards.
        let mixed = reach("http://registry.example");
        looked_up(&mixed, "registry.example", &["1.1.1.1", "10.0.0.1"]);
        mixed.answered_from(address("1.1.1.1")).expect("its own");
        assert!(mixed.answered_from(address("10.0.0.1")).is_err());
        // A registry of our network may move out, but not back in, nor to this machine.
        let moving = reach("http://registry.internal");
        looked_up(&moving, "registry.internal", &["10.0.0.1"]);
        moving.answered_from(address("10.0.0.1")).expect("its own");
        assert!(looked_up(&moving, "registry.internal", &["127.0.0.1"]).is_empty());
        looked_up(&moving, "registry.internal", &["8.8.8.8"]);
        moving.answered_from(address("8.8.8.8")).expect("outside");
        assert!(looked_up(&moving, "registry.internal", &["10.0.0.1"]).is_empty());
        // Any address is allowed where the configuration says so.
        let named = reach("http://trusted.example");
        looked_up(&named, "trusted.example", &["1.1.1.1"]);
        named.answered_from(address("1.1.1.1")).expect("its own");
        assert_eq!(looked_up(&named, "trusted.example", &["10.0.0.1"]), ["10.0.0.1"]);
    }
}
