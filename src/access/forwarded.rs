//! The client behind reverse proxies: `X-Forwarded-For` with `X-Forwarded-Proto`, `-Host` and `-Port`, or `Forwarded`
//! (RFC 7239).
//!
//! Only the configured header is read, and only from proxies that the configuration trusts. Each proxy writes to the
//! right of what it received. So the addresses are read from the right for as long as they are addresses of trusted
//! proxies: anybody may have written what is further left. An address that cannot be read also ends this; then the
//! client's address is unknown ([`ClientAddress::Unknown`]).
//!
//! The scheme is that of the last proxy. The host is the one that the first proxy was asked, the leftmost, as the
//! distribution registry reads it (`registry/api/v2/urls.go`). It may be a client's own invention, as its `Host` may be;
//! what it decides (where its token comes from, which virtual host it asks) is for this client only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::host::AskedHost;
use crate::auth::{Client, ClientAddress};
use crate::config::{self, ForwardedHeader};

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Which proxies are believed, and which header of their requests is read.
#[derive(Clone, Debug)]
pub struct Forwarding {
    trusted: Vec<IpNet>,
    header: ForwardedHeader,
}

/// What one proxy states about the client of its request.
#[derive(Debug, Default)]
struct Hop {
    /// `None`: the address cannot be read.
    address: Option<IpAddr>,
    is_https: bool,
    /// The host that this proxy was asked.
    host: Option<String>,
}

impl Forwarding {
    /// Reads the rules from the configuration of the server.
    pub fn new(server: &config::Server) -> Self {
        Self { trusted: server.trusted_proxies.clone(), header: server.forwarded_header }
    }

    /// Returns whether the configuration trusts the proxy at this address.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// Returns the client of a request that came over this connection.
    pub fn client(&self, connected: Client, headers: &HeaderMap) -> Client {
        if !self.trusts(connected.peer.ip()) {
            return connected;
        }
        let peer = connected.peer.ip().to_canonical();
        let (address, is_https, asked_host) = match self.header {
            ForwardedHeader::XForwardedFor => {
                let address = self.walk(peer, elements_from_the_right(headers, &X_FORWARDED_FOR).map(address));
                let scheme = elements_from_the_right(headers, &X_FORWARDED_PROTO).next();
                let is_https = scheme.is_some_and(is_https);
                let host = leftmost(headers, X_FORWARDED_HOST).and_then(AskedHost::read);
                let port = leftmost(headers, X_FORWARDED_PORT).and_then(|port| str::from_utf8(port).ok()?.parse().ok());
                let own_host = || headers.get(HOST).map(HeaderValue::as_bytes).and_then(AskedHost::read);
                let host = host.or_else(|| port.and_then(|_| own_host()));
                (address, is_https, host.map(|host| host.with_port(port, is_https || connected.is_secure)))
            }
            ForwardedHeader::Forwarded => {
                let address = self.walk(peer, hops_from_the_right(headers).map(|hop| hop.address));
                let is_https = hops_from_the_right(headers).next().is_some_and(|hop| hop.is_https);
                let host = hops_from_the_right(headers).last().and_then(|hop| AskedHost::read(hop.host?.as_bytes()));
                (address, is_https, host)
            }
        };
        let asked_host = asked_host.map(|host| host.to_string());
        Client { address, is_secure: connected.is_secure || is_https, asked_host, ..connected }
    }

    /// Returns the first address from the right that does not belong to a trusted proxy. If all belong to trusted
    /// proxies, returns the leftmost one.
    fn walk(&self, peer: IpAddr, from_the_right: impl Iterator<Item = Option<IpAddr>>) -> ClientAddress {
        let mut nearest = peer;
        for address in from_the_right {
            match address {
                None => return ClientAddress::Unknown,
                // A loopback address that a proxy on another machine states means that machine, not this one.
                Some(address) if address.is_loopback() && !nearest.is_loopback() => return ClientAddress::Unknown,
                Some(address) if self.trusts(address) => nearest = address,
                Some(address) => return ClientAddress::Known(address),
            }
        }
        ClientAddress::Known(nearest)
    }
}

/// Returns the elements of all lines of a list header, the last one first.
fn elements_from_the_right<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).iter().rev().map(HeaderValue::as_bytes);
    lines.flat_map(|line| line.rsplit(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

/// Returns the first element of all lines of a list header.
fn leftmost(headers: &HeaderMap, name: HeaderName) -> Option<&[u8]> {
    elements_from_the_right(headers, &name).last()
}

/// Returns all hops of `Forwarded`, the last proxy first. A line that breaks the grammar counts as one unreadable hop:
/// nobody knows which part of it a proxy wrote.
fn hops_from_the_right(headers: &HeaderMap) -> impl Iterator<Item = Hop> {
    let lines = headers.get_all(FORWARDED).iter().rev().map(HeaderValue::as_bytes);
    lines.flat_map(|line| read_line(line).unwrap_or_else(|| vec![Hop::default()]).into_iter().rev())
}

/// Reads one line of `Forwarded` (RFC 7239, section 4). Beyond the grammar, it accepts spaces around `;` and unquoted
/// addresses with colons and brackets, as some proxies write them.
fn read_line(line: &[u8]) -> Option<Vec<Hop>> {
    let mut rest = line.trim_ascii();
    let (mut hops, mut hop, mut has_address) = (Vec::new(), Hop::default(), false);
    loop {
        if !matches!(rest.first(), None | Some(b';' | b',')) {
            let (name, after) = rest.split_at(rest.iter().position(|&byte| byte == b'=')?);
            let (value, after) = read_value(&after[1..])?;
            if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
                return None;
            }
            if name.eq_ignore_ascii_case(b"for") {
                // Each parameter may occur once.
                if std::mem::replace(&mut has_address, true) {
                    return None;
                }
                hop.address = address(&value);
            } else if name.eq_ignore_ascii_case(b"proto") {
                hop.is_https = is_https(&value);
            } else if name.eq_ignore_ascii_case(b"host") {
                hop.host = String::from_utf8(value).ok();
            }
            rest = after.trim_ascii_start();
        }
        match rest.split_first() {
            Some((b';', after)) => rest = after.trim_ascii_start(),
            Some((b',', after)) => {
                hops.push(std::mem::take(&mut hop));
                has_address = false;
                rest = after.trim_ascii_start();
            }
            Some(_) => return None,
            None => {
                hops.push(hop);
                return Some(hops);
            }
        }
    }
}

/// Reads the value of a parameter, a token or a quoted string. Returns it and the rest of the text.
fn read_value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let is_end = |&byte: &u8| !(is_token(byte) || b":[]".contains(&byte));
        let (value, rest) = text.split_at(text.iter().position(is_end).unwrap_or(text.len()));
        return (!value.is_empty()).then(|| (value.to_vec(), rest));
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter().enumerate();
    loop {
        match bytes.next()? {
            // A client may have opened the quote in which a proxy's own element is now.
            (_, b'"') if value.to_ascii_lowercase().windows(4).any(|part| part == b"for=") => return None,
            (at, b'"') => return Some((value, &quoted[at + 1..])),
            (_, b'\\') => value.push(*bytes.next()?.1),
            (_, byte) => value.push(*byte),
        }
    }
}

/// Returns whether a byte may occur in a token (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_https(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"https")
}

/// Reads an address, with or without a port; an IPv6 address with a port is in brackets. Returns `None` for `unknown`,
/// for other names that hide an address, and for an address with a zone.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(IpAddr::from(address).to_canonical());
    }
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (IpAddr::from(address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let (address, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (IpAddr::from(address.parse::<Ipv4Addr>().ok()?), port)
        }
    };
    is_port(port).then(|| address.to_canonical())
}

/// Returns whether the text is empty, or a port after a colon: a number, or a name that hides a port (RFC 7239, section
/// 6).
fn is_port(text: &str) -> bool {
    match text.strip_prefix(':').map(|port| (port, port.strip_prefix('_'))) {
        None => text.is_empty(),
        Some((_, Some(name))) => {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        }
        Some((port, None)) => port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    }
}

#[cfg(test)]
mod tests;
