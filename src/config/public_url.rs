//! `server.public_url`, and the other keys of `[server]` about proxies in front.

use std::time::Duration;

use url::Url;

use super::check::Check;
use super::error::ConfigError;
use super::raw;
use super::shapes::why_no_url;

/// A shorter time would end connections between two requests of one pull.
const SHORTEST: Duration = Duration::from_secs(1);

/// Checks the keys of `[server]` about proxies in front. Returns the public URL without a slash at the end; `None` if
/// none is set.
pub fn check(check: &Check<'_>, server: &raw::Server) -> Result<Option<String>, ConfigError> {
    if server.proxy_protocol && server.trusted_proxies.is_empty() {
        let message = "it is read from server.trusted_proxies only, and there are none; name the proxies there";
        return Err(check.invalid(&["server", "proxy_protocol"], message));
    }
    for (key, time) in [("idle_timeout", server.idle_timeout.0), ("stall_timeout", server.stall_timeout.0)] {
        if time < SHORTEST {
            return Err(check.invalid(&["server", key], "it is too short; write at least \"1s\""));
        }
    }
    if server.public_url.is_empty() {
        return Ok(None);
    }
    let url = read(&server.public_url).map_err(|message| check.invalid(&["server", "public_url"], message))?;
    Ok(Some(url))
}

fn read(text: &str) -> Result<String, String> {
    let example = "write for example \"https://mirror.example.com\"";
    let url = Url::parse(text).map_err(|error| format!("`{text}` is no URL ({}); {example}", why_no_url(error)))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("`{text}` is no URL of http or https; {example}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("a URL for clients has no user name or password; {example}"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        let why = "clients put `/v2/` right behind the host (OCI distribution specification)";
        return Err(format!("`{text}` has something behind the host, but {why}; {example}"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_public_url_is_a_scheme_and_a_host() {
        for (text, expected) in [
            ("https://Mirror.Example.com", "https://mirror.example.com"),
            ("https://mirror.example.com:443/", "https://mirror.example.com"),
            ("http://10.0.0.1:5000/", "http://10.0.0.1:5000"),
            ("https://[fd00::1]:8443", "https://[fd00::1]:8443"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected));
        }
        for text in ["mirror.example.com", "ftp://a", "https://", "https://me:x@a", "https://a/registry", "https://a?b"]
        {
            let error = read(text).expect_err(text);
            assert!(error.contains("write for example"), "{error}");
            assert!(!error.contains("me:x"), "{error}");
        }
    }
}
