//! HTTP clients that do not connect to this process's own doors. A host name is checked when it is resolved, and the
//! HTTP library does not say there for which port. So each port that one of Larder's doors uses gets an HTTP client of
//! its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use url::Url;

use super::ours::Ours;
use super::reach::Resolver;
use crate::config::{self, Proxy};
use crate::web::{dial, tls};

/// Builds an HTTP client for servers at one port, or (`None`) for servers at all ports that no door of Larder uses.
type Make = Box<dyn Fn(Option<u16>) -> Result<reqwest::Client, String> + Send + Sync>;

/// HTTP clients with the same settings.
pub struct Pool {
    make: Make,
    ours: Ours,
    /// For all ports that no door of Larder uses.
    usual: reqwest::Client,
    /// The others, by port: at most one for each port of Larder's doors.
    beside_us: Mutex<Vec<(u16, reqwest::Client)>>,
}

impl Pool {
    /// Makes a pool whose clients `make` builds. The clients for ports of Larder's doors are built when they are first
    /// needed.
    pub fn new(
        ours: Ours,
        make: impl Fn(Option<u16>) -> Result<reqwest::Client, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        Ok(Self { usual: make(None)?, make: Box::new(make), ours, beside_us: Mutex::default() })
    }

    /// Returns the client for a URL.
    pub fn client(&self, url: &Url) -> Result<reqwest::Client, String> {
        let port = url.port_or_known_default().filter(|port| self.ours.have_port(*port));
        let Some(port) = port else {
            return Ok(self.usual.clone());
        };
        let mut made = self.beside_us.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = made.iter().find(|(of, _)| *of == port) {
            return Ok(client.clone());
        }
        let client = (self.make)(Some(port))?;
        made.push((port, client.clone()));
        Ok(client)
    }
}

/// Builds an HTTP client for an upstream.
pub fn client(config: &config::Upstream, resolver: Resolver) -> Result<reqwest::Client, String> {
    let tls = tls::client_config(&config.tls).map_err(|error| error.to_string())?;
    let mut client = builder(config, tls).dns_resolver(Arc::new(resolver));
    if let Proxy::Through(proxies) = &config.proxy {
        client = dial::through(client, proxies).map_err(|_| "http_proxy cannot be used".to_owned())?;
    }
    client.build().map_err(|error| error.to_string())
}

/// Returns the settings that all HTTP clients of an upstream have in common.
fn builder(config: &config::Upstream, tls: rustls::ClientConfig) -> reqwest::ClientBuilder {
    dial::client(tls, config.connect_timeout)
        // One stream per connection: a shared HTTP/2 window would slow down large layers.
        .http1_only()
        .pool_max_idle_per_host(config.max_connections)
        .pool_idle_timeout(Duration::from_secs(60))
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::super::transport::tests::upstream;
    use super::*;

    #[tokio::test]
    async fn a_family_of_addresses_that_swallows_packets_is_not_waited_for() {
        let good = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let v4 = good.local_addr().expect("an address");
        // The same port on ::1, with a queue that is full: packets are dropped, as by a firewall.
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, v4.port()));
        let socket = TcpSocket::new_v6().expect("a socket");
        socket.bind(v6).expect("the port is free on ::1");
        let hole = socket.listen(0).expect("it listens");
        let mut fillers = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(v6)).await {
            fillers.push(stream.expect("a connection"));
        }
        let serving = tokio::spawn(async move {
            let (mut stream, _) = good.accept().await.expect("a client");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            stream
        });

        let config = upstream("url = \"http://dual.invalid\"\nconnect_timeout = \"60s\"");
        let tls = tls::client_config(&config.tls).expect("TLS");
        let client = builder(&config, tls);
        let client = client.resolve_to_addrs("dual.invalid", &[v6, v4]).build().expect("a client");
        let url = format!("http://dual.invalid:{}/", v4.port());
        let answer = tokio::time::timeout(Duration::from_secs(20), client.get(url).send()).await;
        assert!(answer.expect("it does not wait for the hole").expect("an answer").status().is_success());
        drop((hole, fillers, serving));
    }
}
