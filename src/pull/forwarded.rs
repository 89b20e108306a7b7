//! What a proxy in front says of the client: `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded`
//! (RFC 7239). Believed of proxies that the configuration trusts, and of nobody else.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::Client;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The client behind the proxies: the last address in the row that is of none of them.
pub fn client(peer: Client, headers: &HeaderMap, trusted: &[IpNet]) -> Client {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    if trusted.is_empty() || !is_trusted(&peer.address.ip().to_canonical()) {
        return peer;
    }
    let (addresses, scheme) = match list(headers, &FORWARDED) {
        none if none.is_empty() => {
            let addresses = list(headers, &X_FORWARDED_FOR).iter().map(|text| address(text)).collect();
            (addresses, list(headers, &X_FORWARDED_PROTO).pop())
        }
        hops => {
            let part = |hop: &String, name: &str| {
                let pairs = hop.split(';').filter_map(|pair| pair.trim().split_once('='));
                let mut found = pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name));
                found.next().map(|(_, value)| value.trim_matches('"').to_owned())
            };
            let addresses = hops.iter().map(|hop| part(hop, "for").as_deref().and_then(address)).collect();
            (addresses, hops.last().and_then(|hop| part(hop, "proto")))
        }
    };
    let addresses: Vec<Option<IpAddr>> = addresses;
    // From the right: who stands further left can write what they like.
    let last_stranger = addresses.into_iter().rev().find(|address| address.is_none_or(|address| !is_trusted(&address)));
    let address = last_stranger.flatten().map_or(peer.address, |address| SocketAddr::new(address, 0));
    let is_secure = peer.is_secure || scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    Client { address, is_secure, ..peer }
}

/// The elements of all headers of a name, in order.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|element| element.trim().to_owned()).collect()
}

/// An address, with or without a port or brackets.
fn address(text: &str) -> Option<IpAddr> {
    let plain = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    plain.or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, headers: &[(&'static str, &str)]) -> (String, bool) {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network")).into();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().expect("a value"));
        }
        let peer = Client {
            address: SocketAddr::new(peer.parse().expect("an address"), 1),
            is_secure: false,
            certificate: None,
        };
        let client = client(peer, &map, &trusted);
        (client.address.ip().to_string(), client.is_secure)
    }

    fn is(address: &str, is_secure: bool) -> (String, bool) {
        (address.to_owned(), is_secure)
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let forged = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=192.0.2.1;proto=https"),
        ];
        assert_eq!(seen("203.0.113.5", &forged), is("203.0.113.5", false));
    }

    #[test]
    fn behind_trusted_proxies_the_last_stranger_is_the_client() {
        let forwarded = |value: &str| seen("10.0.0.1", &[("x-forwarded-for", value), ("x-forwarded-proto", "https")]);
        assert_eq!(forwarded("192.0.2.1"), is("192.0.2.1", true));
        assert_eq!(forwarded("6.6.6.6, 192.0.2.1, 10.0.0.2"), is("192.0.2.1", true));
        assert_eq!(forwarded("[2001:db8::1]:443"), is("2001:db8::1", true));
        assert_eq!(forwarded("10.9.9.9"), is("10.0.0.1", true));
        assert_eq!(forwarded("nonsense"), is("10.0.0.1", true), "what cannot be read is nobody");
        let rfc = [("forwarded", "for=6.6.6.6;proto=http, For=\"[2001:db8::1]:80\";Proto=https;by=x")];
        assert_eq!(seen("fd00::2", &rfc), is("2001:db8::1", true));
        assert_eq!(seen("10.0.0.1", &[]), is("10.0.0.1", false));
    }
}
