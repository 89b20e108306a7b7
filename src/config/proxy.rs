//! The proxy on the way to an upstream.

use url::{Host, Url};

use super::secret::Secret;
use super::shapes::why_no_url;

/// How an upstream is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    Direct,
    /// Through the proxy for the scheme of the URL, if there is one, but directly to the hosts of `NO_PROXY`.
    Through(Proxies),
}

/// The proxies of the usual environment variables: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, in upper or
/// lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// The proxy for `http`. It is a URL, as for `https`, and may hold a password.
    pub http: Option<Secret>,
    pub https: Option<Secret>,
    pub exceptions: String,
}

impl Proxies {
    /// Returns the hosts of the proxies themselves.
    pub fn hosts(&self) -> Vec<String> {
        let urls = [&self.http, &self.https].into_iter().flatten().filter_map(|url| Url::parse(url.reveal()).ok());
        urls.filter_map(|url| Some(url.host_str()?.to_owned())).collect()
    }

    /// Reads the proxies from environment variables. A proxy with an invalid URL is not used, and the log says so.
    pub fn of_environment(variables: &[(String, String)]) -> Self {
        let read = |name: &str| {
            let mut found = variables.iter().filter(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_empty());
            // As in curl, the name in lower case comes first.
            let (key, value) = found.clone().find(|(key, _)| key == name).or_else(|| found.next())?;
            match check_url(value) {
                Ok(()) => Some(Secret::new(value.clone())),
                Err(why) => {
                    tracing::warn!(variable = %key, "a proxy of the environment is not used: {why}");
                    None
                }
            }
        };
        let exceptions = variables.iter().find(|(key, _)| key.eq_ignore_ascii_case("no_proxy"));
        Self {
            http: read("http_proxy").or_else(|| read("all_proxy")),
            https: read("https_proxy").or_else(|| read("all_proxy")),
            exceptions: exceptions.map(|(_, value)| value.clone()).unwrap_or_default(),
        }
    }
}

impl Proxy {
    /// Chooses the proxy on the way to `origin`: the written one, otherwise that of the environment, which is never
    /// used for this machine itself.
    pub fn choose(written: &Secret, origin: &Url, environment: &Proxies) -> Result<Self, String> {
        match written.reveal() {
            "none" => Ok(Self::Direct),
            "" if is_loopback(origin) || (environment.http.is_none() && environment.https.is_none()) => {
                Ok(Self::Direct)
            }
            "" => Ok(Self::Through(environment.clone())),
            url => {
                check_url(url)?;
                let proxy = Some(written.clone());
                Ok(Self::Through(Proxies { http: proxy.clone(), https: proxy, exceptions: String::new() }))
            }
        }
    }
}

/// Checks the URL of a proxy. The message quotes nothing of the text, which may contain a password.
fn check_url(text: &str) -> Result<(), String> {
    let example = "write for example \"http://proxy.example.com:3128\", or \"none\"";
    // Many people write `host:port`; the URL standard reads that host as a scheme.
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({}); {example}", why_no_url(error)))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("this does not begin with http:// or https:// and a host; {example}"));
    }
    Ok(())
}

/// Returns whether a URL is on this machine: at `localhost` or a loopback address.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let variables: Vec<_> = variables.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Proxies::of_environment(&variables)
    }

    #[test]
    fn the_environment_names_proxies_as_it_does_for_others() {
        let all = [("HTTP_PROXY", "http://a:1"), ("http_proxy", "http://b:1"), ("NO_PROXY", "x.example")];
        let found = proxies(&all);
        assert_eq!(found.http, Some(Secret::new("http://b:1")));
        assert_eq!(found.https, None);
        assert_eq!(found.exceptions, "x.example");
        assert_eq!(proxies(&[("ALL_PROXY", "http://c:1")]).https, Some(Secret::new("http://c:1")));
        assert_eq!(proxies(&[("HTTPS_PROXY", "socks5://c:1")]).https, None);
    }

    #[test]
    fn this_machine_is_not_reached_through_the_proxy_of_the_environment() {
        let environment = proxies(&[("ALL_PROXY", "http://c:1")]);
        let choose = |written: &str, origin: &str| {
            Proxy::choose(&Secret::new(written), &Url::parse(origin).expect("a URL"), &environment).expect("valid")
        };
        assert_eq!(choose("", "http://127.0.0.1:5000"), Proxy::Direct);
        assert_eq!(choose("", "https://ghcr.io"), Proxy::Through(environment.clone()));
        assert_eq!(choose("none", "https://ghcr.io"), Proxy::Direct);
        assert!(matches!(choose("http://p:3", "http://127.0.0.1:5000"), Proxy::Through(_)));
    }
}
