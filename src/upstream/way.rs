//! The way to an upstream, and who is to blame when no connection comes about: the upstream, a proxy on the way, or a
//! key of the configuration.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use super::errors;
use crate::config::{Proxies, Proxy};
use crate::failure::{Failure, FailureKind};
use crate::web::Why;

/// The way to a server.
pub struct Way {
    /// Host and port, for logs and errors.
    label: Arc<str>,
    /// How long opening a connection may take.
    connect: Duration,
    proxies: Option<Matcher>,
    keys: Keys,
}

/// The keys that help on a [`Way`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Those of `[[repository."…".upstream]]`.
    Upstream,
    /// Those of `[proxy]`, for servers that only clients name.
    ProxyDoor,
}

impl Way {
    /// Makes the way to an upstream.
    pub fn new(label: Arc<str>, connect: Duration, proxy: &Proxy, keys: Keys) -> Self {
        let proxies = match proxy {
            Proxy::Through(proxies) => matcher(proxies),
            Proxy::Direct => None,
        };
        Self { label, connect, proxies, keys }
    }

    /// Returns the failure for an error of the HTTP client.
    pub fn failure(&self, error: reqwest::Error) -> Failure {
        if !error.is_connect() {
            return errors::network(&self.label, error);
        }
        let uri: Option<Uri> = error.url().and_then(|url| url.as_str().parse().ok());
        let is_tls = uri.as_ref().is_some_and(|uri| uri.scheme_str() == Some("https"));
        let proxy = uri.as_ref().and_then(|uri| self.proxies.as_ref()?.intercept(uri));
        // Without the login, which the library keeps apart.
        let proxy = proxy.map(|proxy| proxy.uri().to_string());
        let why = match error.source() {
            _ if error.is_timeout() => Why::Late,
            Some(cause) => Why::of(cause),
            None => Why::Other("no connection".to_owned()),
        };
        let kind = match why {
            Why::OwnShortage => FailureKind::Busy,
            Why::Late => FailureKind::Timeout,
            _ => FailureKind::Unavailable,
        };
        let message = match proxy {
            Some(proxy) => self.by_proxy(&why, proxy.trim_end_matches('/'), is_tls),
            None => self.directly(&why),
        };
        Failure::new(kind, message).caused_by(error.without_url())
    }

    /// Returns the failure of a tunnel that `proxy` was to open.
    pub fn no_tunnel(&self, proxy: &Uri, error: &(dyn Error + 'static)) -> Failure {
        let proxy = proxy.to_string();
        let message = self.by_proxy(&Why::of(error), proxy.trim_end_matches('/'), false);
        Failure::new(FailureKind::Unavailable, message)
    }

    fn directly(&self, why: &Why) -> String {
        let Self { label, connect, .. } = self;
        let (url, bundle, timeout) = match self.keys {
            Keys::Upstream => (
                format!("write url = \"http://{label}\""),
                "put the authority's certificate into server_ca_bundle",
                " (connect_timeout)",
            ),
            Keys::ProxyDoor => {
                ("ask it with http://".to_owned(), "put the authority's certificate into proxy.upstream_ca_bundle", "")
            }
        };
        match why {
            Why::NoTls => format!("{label}: {why}; {url}"),
            Why::UnknownIssuer => format!("{label}: {why}; {bundle}"),
            Why::Late => format!("{label}: could not connect within {} s{timeout}", connect.as_secs_f32()),
            _ => format!("{label}: {why}"),
        }
    }

    fn by_proxy(&self, why: &Why, proxy: &str, is_tls: bool) -> String {
        let Self { label, connect, .. } = self;
        let keys = match self.keys {
            Keys::Upstream => "http_proxy of the upstream, or HTTP_PROXY and HTTPS_PROXY of the environment",
            Keys::ProxyDoor => "HTTP_PROXY and HTTPS_PROXY of the environment",
        };
        match why {
            // TLS within the tunnel is with the upstream.
            Why::NoTls | Why::UnknownIssuer | Why::Certificate(_) | Why::Tls(_) if is_tls => self.directly(why),
            Why::Tunnel(told) if told.contains("authorization") => {
                format!(
                    "the proxy {proxy} wants a login: write http://USER:PASSWORD@HOST:PORT ({keys}); it is on the way to {label}"
                )
            }
            Why::Tunnel(told) => format!("the proxy {proxy} opens no tunnel to {label}: {told} ({keys})"),
            Why::Late => {
                format!(
                    "the proxy {proxy} on the way to {label} could not be reached within {} s ({keys})",
                    connect.as_secs_f32()
                )
            }
            _ => format!("the proxy {proxy} on the way to {label} cannot be reached: {why} ({keys})"),
        }
    }
}

/// Returns what tells for which URL which proxy is used; `None`: there is no proxy.
pub fn matcher(proxies: &Proxies) -> Option<Matcher> {
    let url = |secret: &Option<crate::config::Secret>| secret.as_ref().map(|url| url.reveal().to_owned());
    let (http, https) = (url(&proxies.http), url(&proxies.https));
    if http.is_none() && https.is_none() {
        return None;
    }
    let builder = Matcher::builder().http(http.unwrap_or_default()).https(https.unwrap_or_default());
    Some(builder.no(proxies.exceptions.clone()).build())
}
