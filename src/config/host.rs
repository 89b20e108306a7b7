//! Patterns of hosts.

use std::fmt;

/// A pattern of hosts: `host`, `host:port`, `*.domain`, `*.domain:port` or `*`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// The host, with the `*` at its beginning if there is one.
    host: String,
    /// `None`: any port.
    port: Option<u16>,
}

/// The error that a text is no pattern of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPattern;

impl HostPattern {
    /// Reads a pattern. A name may end with a dot, and an IPv6 address may be without brackets.
    pub fn parse(text: &str) -> Result<Self, NoPattern> {
        let text = text.to_ascii_lowercase();
        let (host, port) = match text.rsplit_once(':') {
            // In an IPv6 address without brackets, no colon begins a port.
            Some((host, port)) if !port.ends_with(']') && (!host.contains(':') || host.ends_with(']')) => {
                (host, Some(port.parse().map_err(|_| NoPattern)?))
            }
            _ => (text.as_str(), None),
        };
        let rest = host.strip_prefix('*').unwrap_or(host);
        let is_character = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
        let is_wild = rest.len() < host.len();
        if host.is_empty() || !rest.chars().all(is_character) || (is_wild && !rest.is_empty() && !rest.starts_with('.'))
        {
            return Err(NoPattern);
        }
        if port == Some(0) || rest == "." {
            return Err(NoPattern);
        }
        // The host is written as in URLs, because it is compared with hosts of URLs.
        let host = match host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) if is_wild => host.strip_suffix('.').unwrap_or(host).to_owned(),
            Err(_) => url::Host::parse(host.strip_suffix('.').unwrap_or(host)).map_err(|_| NoPattern)?.to_string(),
        };
        Ok(Self { host, port })
    }

    /// Returns whether the pattern matches a host, on any port. The host is in lower case, an IPv6 address in brackets.
    pub fn is_host(&self, host: &str) -> bool {
        match self.host.strip_prefix('*') {
            Some(rest) => host.ends_with(rest),
            None => host == self.host,
        }
    }

    /// Returns whether the pattern matches a host and port.
    pub fn matches(&self, host: &str, port: Option<u16>) -> bool {
        self.is_host(host) && self.port.is_none_or(|wanted| port == Some(wanted))
    }

    /// Returns the port of the pattern; `None`: any port.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns whether the pattern matches all hosts, and so names none.
    pub fn is_any_host(&self) -> bool {
        self.host == "*"
    }

    /// Returns whether the pattern names a single host.
    pub fn is_one_host(&self) -> bool {
        !self.host.contains('*')
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Returns a host, with or without a port, in a single form: hosts have no case and need no dot at their end, and the
/// usual ports (80, 443) are left out.
pub fn plain_host(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let without_port = match text.rsplit_once(':') {
        // In an IPv6 address without brackets, no colon begins a port.
        Some((host, "443" | "80")) if !host.contains(':') || host.ends_with(']') => host,
        _ => &text,
    };
    match without_port.rsplit_once(':') {
        Some((host, port)) => format!("{}:{port}", host.strip_suffix('.').unwrap_or(host)),
        None => without_port.strip_suffix('.').unwrap_or(without_port).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_written_in_one_way() {
        for (text, plain) in [
            ("Docker.IO", "docker.io"),
            ("docker.io.", "docker.io"),
            ("docker.io:443", "docker.io"),
            ("docker.io.:80", "docker.io"),
            ("docker.io.:5000", "docker.io:5000"),
            ("[::1]:443", "[::1]"),
            ("fe80::443", "fe80::443"),
            ("team", "team"),
        ] {
            assert_eq!(plain_host(text), plain, "{text}");
        }
    }

    #[test]
    fn a_pattern_is_for_its_hosts_alone() {
        for (pattern, host, port, expected) in [
            ("ghcr.io", "ghcr.io", 443, true),
            ("GHCR.io", "ghcr.io", 443, true),
            ("ghcr.io", "ghcr.io.evil.example", 443, false),
            ("ghcr.io:443", "ghcr.io", 443, true),
            ("ghcr.io:443", "ghcr.io", 80, false),
            ("*.example.com", "a.b.example.com", 443, true),
            ("*.example.com", "example.com", 443, false),
            ("*.example.com", "badexample.com", 443, false),
            ("*.example.com:5000", "a.example.com", 5000, true),
            ("*", "anything.example", 443, true),
            ("*:8443", "anything.example", 443, false),
            ("[::1]", "[::1]", 5000, true),
            ("[::1]:5000", "[::1]", 5000, true),
            ("[::1]:5001", "[::1]", 5000, false),
            ("::1", "[::1]", 443, true),
            ("[0::1]:443", "[::1]", 443, true),
            ("ghcr.io.", "ghcr.io", 443, true),
            ("127.1", "127.0.0.1", 443, true),
        ] {
            let parsed = HostPattern::parse(pattern).expect("a pattern");
            assert_eq!(parsed.matches(host, Some(port)), expected, "{pattern} {host}:{port}");
        }
        for wrong in [
            "",
            "a b",
            "https://ghcr.io",
            "*example.com",
            "a*.example.com",
            "ghcr.io:https",
            "x.*",
            "*.",
            ".",
            "[",
            "]:80",
            "ghcr.io:0",
        ] {
            assert_eq!(HostPattern::parse(wrong), Err(NoPattern), "{wrong}");
        }
    }
}
