//! How Larder connects to others: every HTTP client and every connection begins here.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use reqwest::ClientBuilder;

use crate::config::Proxies;

/// What all HTTP clients have in common: redirects are for the caller to judge, no `Referer`, and no proxy but the
/// configured one. Of a name with addresses of both families the other one is tried when the first does not answer within
/// 300 ms (Happy Eyeballs, RFC 8305). `connect`: how long a connection may take to come about.
pub fn client(tls: rustls::ClientConfig, connect: Duration) -> ClientBuilder {
    plain_client(connect).tls_backend_preconfigured(tls)
}

/// The same with the TLS that the library has by itself.
pub fn plain_client(connect: Duration) -> ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .connect_timeout(connect)
}

/// Has a client go through proxies. Fails where one of them cannot be used.
pub fn through(client: ClientBuilder, proxies: &Proxies) -> reqwest::Result<ClientBuilder> {
    let exceptions = || reqwest::NoProxy::from_string(&proxies.exceptions);
    let http = proxies.http.iter().map(|url| reqwest::Proxy::http(url.reveal()));
    let https = proxies.https.iter().map(|url| reqwest::Proxy::https(url.reveal()));
    http.chain(https).try_fold(client, |client, proxy| Ok(client.proxy(proxy?.no_proxy(exceptions()))))
}

/// For connections whose bytes the caller speaks, to addresses that `resolver` gives.
pub fn connector<R>(resolver: R, connect: Duration) -> HttpConnector<R> {
    let mut connector = HttpConnector::new_with_resolver(resolver);
    connector.set_connect_timeout(Some(connect));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector
}

/// The same by the system's resolver.
pub fn system_connector(connect: Duration) -> HttpConnector<GaiResolver> {
    connector(GaiResolver::new(), connect)
}
