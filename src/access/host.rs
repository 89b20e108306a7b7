//! The host that a request is for (RFC 9112, section 3.2; RFC 9113, section 8.3.1). It has to be stated once, in a form
//! with one meaning; otherwise the request is refused.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{HeaderMap, Uri, Version};

use crate::config::HostPattern;

/// Longest name of a host (RFC 1035, section 2.3.4, as text).
const MAX_NAME: usize = 253;

/// Host and port of a request: in lower case, without a dot at the end, IPv6 addresses in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedHost {
    name: String,
    port: Option<u16>,
}

/// Why it is not clear which host a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongHost {
    #[error("the request has no `Host`, which HTTP/1.1 needs")]
    Missing,
    #[error("the request has more than one `Host`")]
    Several,
    #[error("the `Host` of the request is not a host with or without a port")]
    Malformed,
    #[error("the request names one host in its target and another one in `Host`")]
    Contradictory,
}

impl AskedHost {
    /// Reads the host of a request. `None`: a request of HTTP/1.0, which need not state it.
    pub fn of(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<Self>, WrongHost> {
        let mut lines = headers.get_all(HOST).iter();
        let line = lines.next().map(|line| Self::parse(line.as_bytes())).transpose()?;
        if lines.next().is_some() {
            return Err(WrongHost::Several);
        }
        let target = uri.authority().map(|authority| Self::parse(authority.as_str().as_bytes())).transpose()?;
        match (target, line) {
            (Some(target), Some(line)) => {
                let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
                let port = |host: &Self| host.port.unwrap_or(usual);
                let is_same = target.name == line.name && port(&target) == port(&line);
                is_same.then_some(Some(target)).ok_or(WrongHost::Contradictory)
            }
            (None, None) if version < Version::HTTP_11 => Ok(None),
            (None, None) => Err(WrongHost::Missing),
            (target, line) => Ok(target.or(line)),
        }
    }

    /// Reads a host with or without a port. Credentials before the host are refused.
    pub fn parse(text: &[u8]) -> Result<Self, WrongHost> {
        let text = str::from_utf8(text).map_err(|_| WrongHost::Malformed)?;
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => {
                let address: Ipv6Addr = address.parse().map_err(|_| WrongHost::Malformed)?;
                (format!("[{address}]"), port)
            }
            None => {
                let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let name = name.strip_suffix('.').unwrap_or(name);
                let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                if name.is_empty() || name.ends_with('.') || name.len() > MAX_NAME || !name.bytes().all(is_name) {
                    return Err(WrongHost::Malformed);
                }
                (name.to_ascii_lowercase(), port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| WrongHost::Malformed)?)
            }
            _ => return Err(WrongHost::Malformed),
        };
        Ok(Self { name, port })
    }

    /// Reads a host that a proxy states; `None` if it cannot be one.
    pub fn read(text: &[u8]) -> Option<Self> {
        Self::parse(text).ok()
    }

    /// Returns the host with this port, unless it has one or the port is the usual one of the scheme.
    pub fn with_port(self, port: Option<u16>, is_https: bool) -> Self {
        let usual = if is_https { 443 } else { 80 };
        Self { port: self.port.or(port.filter(|&port| port != usual && port != 0)), ..self }
    }

    /// Returns whether the host is an IP address, or a name that by definition means the machine itself (RFC 6761,
    /// section 6.3). No web page from elsewhere has such a name, whatever the page's own name resolves to.
    pub fn is_nobodys_name(&self) -> bool {
        let is_address = self.name.starts_with('[') || self.name.parse::<Ipv4Addr>().is_ok();
        is_address || self.name == "localhost" || self.name.ends_with(".localhost")
    }

    /// Returns whether the host matches one of these patterns.
    pub fn is_one_of(&self, hosts: &[HostPattern]) -> bool {
        hosts.iter().any(|host| host.matches(&self.name, self.port))
    }

    /// Returns whether an `Origin` has the same host and port as this request.
    pub fn is_origin(&self, origin: &str) -> bool {
        let Some((scheme, host)) = origin.split_once("://") else {
            return false;
        };
        let usual = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
        let port = |host: &Self| host.port.unwrap_or(usual);
        Self::parse(host.as_bytes()).is_ok_and(|origin| origin.name == self.name && port(&origin) == port(self))
    }
}

impl fmt::Display for AskedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(version: Version, target: &str, lines: &[&str]) -> Result<String, WrongHost> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HOST, line.parse().expect("a value"));
        }
        let host = AskedHost::of(version, &target.parse().expect("a target"), &headers)?;
        Ok(host.map_or_else(|| "none".to_owned(), |host| host.to_string()))
    }

    #[test]
    fn one_host_is_said_once() {
        let of = |target: &str, lines: &[&str]| of(Version::HTTP_11, target, lines);
        for (target, lines, expected) in [
            ("/v2/", &["Cache.Example:5000"][..], Ok("cache.example:5000")),
            ("/v2/", &["cache.example."], Ok("cache.example")),
            ("/v2/", &["cache.example.:"], Ok("cache.example")),
            ("/v2/", &["[0::1]:5000"], Ok("[::1]:5000")),
            ("/v2/", &[], Err(WrongHost::Missing)),
            ("/v2/", &["a", "a"], Err(WrongHost::Several)),
            ("/v2/", &[""], Err(WrongHost::Malformed)),
            ("http://a/v2/", &["A:80"], Ok("a")),
            ("https://a/v2/", &["a:443"], Ok("a")),
            ("https://a/v2/", &["a:80"], Err(WrongHost::Contradictory)),
            ("http://a/v2/", &[], Ok("a")),
            ("http://a/v2/", &["b"], Err(WrongHost::Contradictory)),
            ("http://a:1/v2/", &["a:2"], Err(WrongHost::Contradictory)),
            ("http://me:x@a/v2/", &["a"], Err(WrongHost::Malformed)),
            ("http://a/v2/", &["a", "a"], Err(WrongHost::Several)),
        ] {
            assert_eq!(of(target, lines), expected.map(str::to_owned), "{target} {lines:?}");
        }
        assert_eq!(super::tests::of(Version::HTTP_10, "/", &[]).as_deref(), Ok("none"));
        assert_eq!(super::tests::of(Version::HTTP_2, "/", &[]), Err(WrongHost::Missing));
    }

    #[test]
    fn one_dot_may_stand_at_the_end_of_a_name() {
        let host = |text: &str| AskedHost::parse(text.as_bytes()).map(|host| host.to_string());
        assert_eq!(host("larder.corp.:5000").as_deref(), Ok("larder.corp:5000"));
        for text in ["..", ".", "larder.corp..", "...:5000"] {
            assert!(host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_origin_is_the_same_host_and_port() {
        let host = |text: &str| AskedHost::parse(text.as_bytes()).expect("a host");
        assert!(host("localhost:17081").is_origin("http://LOCALHOST:17081"));
        assert!(
            host("localhost").is_origin("http://localhost:80") && host("localhost:80").is_origin("http://localhost")
        );
        assert!(host("larder.corp").is_origin("https://larder.corp"), "a proxy in front does TLS");
        for origin in ["null", "", "localhost:17081", "http://localhost", "http://evil.example:17081", "http://"] {
            assert!(!host("localhost:17081").is_origin(origin), "{origin}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_read_in_one_way_or_refused(text in "[ -~]{0,40}|[a-z0-9.:\\[\\]@%-]{0,20}") {
            if let Ok(host) = AskedHost::parse(text.as_bytes()) {
                let again = AskedHost::parse(host.to_string().as_bytes());
                prop_assert_eq!(again.as_ref(), Ok(&host));
                prop_assert!(!host.to_string().contains(['@', ' ', '/', '%', ',']));
                // The same as in a URL, except for shorthand forms of IPv4 addresses, which count as names here.
                let url = url::Url::parse(&format!("http://{host}/"));
                let url_host = url.as_ref().ok().and_then(|url| url.host_str());
                prop_assert!(!host.is_nobodys_name() || url_host == Some(host.name.as_str()) || url.is_err(), "{host}");
            }
        }
    }
}
