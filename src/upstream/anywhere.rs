//! Requests and connections to any server that a client of the proxy door names, where that is allowed.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Resolve, Resolving};
use tokio::net::TcpStream;
use tower_service::Service;

use super::addresses::is_open;
use super::answers::BuildError;
use super::errors;
use super::line::{Begun, Shown};
use super::ours::{Circle, Ours};
use super::pool::Pool;
use super::server::Server;
use super::way::{Keys, Way, matcher};
use crate::clock::Instant;
use crate::config::{Allowlist, ClientTls, Forbidden, Permission, Proxies, Proxy, ProxyDoor};
use crate::failure::{Failure, FailureKind};
use crate::observe::{Metrics, OTHER_HOSTS};
use crate::web::{dial, tls};

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long resolving a name, connecting, and a proxy's answer may take together.
const DIAL: Duration = Duration::from_secs(30);

/// Reaches the servers that clients name.
pub struct Anywhere {
    allowlist: Allowlist,
    /// For hosts that the configuration names, at any address.
    named: Ways,
    /// For all other hosts, which must be in the public network or in the allowlist's networks.
    public: Ways,
    proxies: Option<Matcher>,
    /// The same as the configuration has them.
    written: Proxies,
    ours: Ours,
    metrics: Arc<Metrics>,
}

struct Ways {
    any: Pool,
    /// For requests that change the protocol, which only HTTP/1.1 can do.
    http1: Pool,
    outside: Outside,
}

/// Why a server was not reached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl Anywhere {
    /// Builds the HTTP clients of the proxy door. `ours`: the addresses of Larder's own doors, which are never
    /// connected to.
    pub fn new(door: &ProxyDoor, metrics: Arc<Metrics>, ours: &Ours) -> Result<Self, BuildError> {
        let networks: Arc<[IpNet]> = door.allowlist.networks().collect();
        let outside = |is_named| Outside { networks: networks.clone(), is_named, ours: ours.clone(), port: None };
        Ok(Self {
            named: Ways::new(door, outside(true))?,
            public: Ways::new(door, outside(false))?,
            ours: ours.clone(),
            allowlist: door.allowlist.clone(),
            proxies: matcher(&door.proxies),
            written: door.proxies.clone(),
            metrics,
        })
    }

    /// Returns the permission to connect to a server, judged by the server's name alone. Fails if that is forbidden.
    pub fn permit(&self, server: &Server) -> Result<Permission, Forbidden> {
        let permission = self.allowlist.permit(&server.host, server.port)?;
        let address: Option<IpAddr> = server.host.trim_matches(['[', ']']).parse().ok();
        match address {
            Some(address) if self.ours.are_at(address, server.port) => {
                Err(Forbidden::Ours(Circle(server.to_string()).to_string()))
            }
            Some(address) if !is_open(address, permission.is_named, &permission.networks) => {
                Err(Forbidden::Inside(server.host.clone()))
            }
            _ => Ok(permission),
        }
    }

    /// Checks whether an open connection may stay open. `address`: the server's address, where it is known.
    pub fn permit_connection(&self, server: &Server, address: Option<IpAddr>) -> Result<(), Forbidden> {
        let permission = self.permit(server)?;
        match address {
            Some(address) if !is_open(address, permission.is_named, &permission.networks) => {
                Err(Forbidden::Inside(server.host.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Returns the address of the server that sent a response; `None` where a proxy may stand in between.
    pub fn address_of(&self, response: &reqwest::Response) -> Option<IpAddr> {
        response.remote_addr().filter(|_| self.proxies.is_none()).map(|address| address.ip())
    }

    /// Sends a request to its server. `is_upgrade`: whether the request asks for another protocol.
    pub async fn send(
        &self,
        request: reqwest::Request,
        server: &Server,
        is_upgrade: bool,
    ) -> Result<reqwest::Response, PassError> {
        let ways = self.ways(&self.permit(server)?);
        let pool = if is_upgrade { &ways.http1 } else { &ways.any };
        let client = pool.client(request.url());
        let client = client.map_err(|error| Failure::new(FailureKind::Unavailable, format!("{server}: {error}")))?;
        let since = Instant::now();
        let line = Begun::new(&server.to_string().into(), request.method(), request.url(), Shown::PathInLog);
        let result = client.execute(request).await;
        let error = match result {
            Ok(mut response) => {
                self.metrics.asked_upstream(OTHER_HOSTS, Ok(response.status()), since.elapsed());
                line.into_iter().for_each(|line| line.answered(&mut response));
                return Ok(response);
            }
            Err(error) => error,
        };
        let forbidden = forbidden(&error, server);
        let failure = self.way(server).failure(error);
        self.metrics.asked_upstream(OTHER_HOSTS, Err(failure.kind.as_str()), since.elapsed());
        line.into_iter().for_each(|line| line.failed(&failure));
        Err(forbidden.map_or_else(|| failure.into(), PassError::from))
    }

    /// Opens a connection for whatever bytes the client sends. Also returns the server's address, where no proxy stands
    /// in between.
    pub async fn dial(&self, server: &Server) -> Result<(TcpStream, Option<IpAddr>), PassError> {
        let ways = self.ways(&self.permit(server)?);
        let failed = |what: &dyn std::fmt::Display| Failure::new(FailureKind::Unavailable, format!("{server}: {what}"));
        let uri = |scheme: &str| format!("{scheme}://{server}/").parse::<Uri>().map_err(|error| failed(&error));
        // The scheme only decides which proxy is used. The connection is most likely for TLS.
        let (plain_uri, likely_uri) = (uri("http")?, uri(if server.port == 80 { "http" } else { "https" })?);
        let proxy = self.proxies.as_ref().and_then(|proxies| proxies.intercept(&likely_uri));
        let is_direct = proxy.is_none();
        let proxy_uri = proxy.as_ref().map(|proxy| proxy.uri().clone());
        let dialled = async {
            match proxy {
                None => {
                    let mut connector = ways.connector(server.port);
                    connector.call(plain_uri).await.map_err(Box::<dyn StdError + Send + Sync>::from)
                }
                Some(proxy) => {
                    let mut tunnel = Tunnel::new(proxy.uri().clone(), dial::system_connector(CONNECT));
                    if let Some(login) = proxy.basic_auth() {
                        tunnel = tunnel.with_auth(login.clone());
                    }
                    tunnel.call(plain_uri).await.map_err(Box::<dyn StdError + Send + Sync>::from)
                }
            }
        };
        match tokio::time::timeout(DIAL, dialled).await {
            Ok(Ok(stream)) => {
                let stream = TokioIo::into_inner(stream);
                let address = stream.peer_addr().ok().filter(|_| is_direct).map(|address| address.ip());
                Ok((stream, address))
            }
            Ok(Err(error)) => Err(match (forbidden(&*error, server), proxy_uri) {
                (Some(forbidden), _) => forbidden.into(),
                (None, Some(proxy)) => self.way(server).no_tunnel(&proxy, &*error).into(),
                (None, None) => failed(&last_cause(&*error)).into(),
            }),
            Err(_) => Err(errors::timeout(&server.to_string(), "a connection", DIAL).into()),
        }
    }

    fn way(&self, server: &Server) -> Way {
        let proxy = Proxy::Through(self.written.clone());
        Way::new(server.to_string().into(), CONNECT, &proxy, Keys::ProxyDoor)
    }

    fn ways(&self, permission: &Permission) -> &Ways {
        if permission.is_named { &self.named } else { &self.public }
    }
}

impl Ways {
    fn new(door: &ProxyDoor, outside: Outside) -> Result<Self, BuildError> {
        let fail = |reason: String| BuildError { upstream: OTHER_HOSTS.into(), reason };
        let tls = ClientTls { further_roots: door.upstream_roots.clone(), ..ClientTls::default() };
        let tls = tls::client_config(&tls).map_err(|error| fail(error.to_string()))?;
        let pool = |protocols: &[&[u8]]| {
            let mut tls = tls.clone();
            tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            let (to, proxies, is_http1) = (outside.clone(), door.proxies.clone(), protocols.len() == 1);
            let make = move |port| Self::client(&tls, &proxies, Outside { port, ..to.clone() }, is_http1);
            Pool::new(outside.ours.clone(), make).map_err(fail)
        };
        Ok(Self { any: pool(&[b"h2", b"http/1.1"])?, http1: pool(&[b"http/1.1"])?, outside: outside.clone() })
    }

    fn client(
        tls: &rustls::ClientConfig,
        proxies: &Proxies,
        outside: Outside,
        is_http1: bool,
    ) -> Result<reqwest::Client, String> {
        let mut client = dial::client(tls.clone(), CONNECT)
            .dns_resolver(Arc::new(outside))
            .http2_adaptive_window(true)
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(Duration::from_secs(60));
        if is_http1 {
            client = client.http1_only();
        }
        let client = dial::through(client, proxies).map_err(|_| "the proxy of the environment is none".to_owned())?;
        client.build().map_err(|error| error.to_string())
    }

    /// Makes a connector for servers at a port.
    fn connector(&self, port: u16) -> HttpConnector<Outside> {
        let port = Some(port).filter(|port| self.outside.ours.have_port(*port));
        dial::connector(Outside { port, ..self.outside.clone() }, CONNECT)
    }
}

/// Resolves names to addresses that Larder may connect to, so that the address that is checked is the one that is
/// connected to.
#[derive(Clone)]
struct Outside {
    networks: Arc<[IpNet]>,
    is_named: bool,
    ours: Ours,
    /// The port of the servers whose names are resolved, if one of Larder's doors uses this port.
    port: Option<u16>,
}

/// The error for a host whose addresses are all inside our networks.
#[derive(Debug, thiserror::Error)]
#[error("its addresses are inside this network")]
struct Inside;

impl Outside {
    async fn look_up(self, name: String) -> Result<Vec<SocketAddr>, Box<dyn StdError + Send + Sync>> {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        let is_open = |address: &IpAddr| is_open(*address, self.is_named, &self.networks);
        let open: Vec<_> = found.map(|address| address.ip()).filter(is_open).collect();
        if open.is_empty() {
            return Err(Inside.into());
        }
        let others = self.ours.leave_out(&name, self.port, open)?;
        Ok(others.into_iter().map(|address| SocketAddr::new(address, 0)).collect())
    }
}

impl Resolve for Outside {
    fn resolve(&self, name: reqwest::dns::Name) -> Resolving {
        let look_up = self.clone().look_up(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(look_up.await?.into_iter()) as Addrs) })
    }
}

impl Service<Name> for Outside {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let look_up = self.clone().look_up(name.as_str().to_owned());
        Box::pin(async move { Ok(look_up.await?.into_iter()) })
    }
}

/// Returns why a name is forbidden, where the error says so.
fn forbidden(error: &(dyn StdError + 'static), server: &Server) -> Option<Forbidden> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if error.is::<Inside>() {
            return Some(Forbidden::Inside(server.host.clone()));
        }
        if error.is::<Circle>() || inner.is_some_and(|inner| inner.is::<Circle>()) {
            return Some(Forbidden::Ours(Circle(server.to_string()).to_string()));
        }
        cause = error.source();
    }
    None
}

fn last_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last
}
