//! How Larder connects to others: every HTTP client and every connection begins here.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use reqwest::ClientBuilder;

use crate::config::Proxies;

/// Begins an HTTP client that verifies servers by `tls`. (By default the HTTP library takes the system's roots, and makes
/// no client where there are none, as in an empty container.) `connect`: how long opening a connection may take. The
/// client follows no redirect: its caller judges where a redirect leads. It sends no `Referer`, and uses no proxy but those
/// of [`through`]. If a name has addresses of both families and the first does not answer within 300 ms, it tries the other
/// family (Happy Eyeballs, RFC 8305).
pub fn client(tls: rustls::ClientConfig, connect: Duration) -> ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .connect_timeout(connect)
}

/// Makes a client use the configured proxies. Fails if the URL of one of them cannot be used.
pub fn through(client: ClientBuilder, proxies: &Proxies) -> reqwest::Result<ClientBuilder> {
    let exceptions = || reqwest::NoProxy::from_string(&proxies.exceptions);
    let http = proxies.http.iter().map(|url| reqwest::Proxy::http(url.reveal()));
    let https = proxies.https.iter().map(|url| reqwest::Proxy::https(url.reveal()));
    http.chain(https).try_fold(client, |client, proxy| Ok(client.proxy(proxy?.no_proxy(exceptions()))))
}

/// Makes a connector for connections that are no HTTP. `resolver` gives the addresses.
pub fn connector<R>(resolver: R, connect: Duration) -> HttpConnector<R> {
    let mut connector = HttpConnector::new_with_resolver(resolver);
    connector.set_connect_timeout(Some(connect));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector
}

/// Makes a connector that uses the system's resolver.
pub fn system_connector(connect: Duration) -> HttpConnector<GaiResolver> {
    connector(GaiResolver::new(), connect)
}
