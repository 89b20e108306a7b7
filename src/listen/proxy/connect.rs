//! CONNECT: a tunnel is carried, or opened and read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::{Builder, upgrade};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{Accepted, Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::StartHandshake;

use super::rewound::Rewound;
use super::way::Way;
use crate::body::Body;
use crate::ca::Ca;
use crate::listen::connection::{Ends, connection};
use crate::listen::guard::{Guard, Socket};
use crate::listen::tls::bound;
use crate::proxy::{Came, Lead, Tunnel};
use crate::sent::Sent;
use crate::tunnel;

/// How long Larder waits for the client's first byte. A client that expects the server to speak first waits longer.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a client has for its first TLS message, and for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest first TLS message of a client, in bytes.
const MAX_HELLO: usize = 64 * 1024;
/// The first byte of TLS (RFC 8446, section 5.1: a handshake record).
const TLS: u8 = 22;
/// The protocols that Larder speaks in an opened tunnel.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Answers a CONNECT and serves its tunnel.
pub async fn answer(way: Arc<Way>, mut request: Request<Sent>) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    let (parts, _body) = request.into_parts();
    let (response, lead) = way.proxy.connect(&parts, way.client()).await;
    if let Some(lead) = lead {
        tokio::spawn(async move {
            let parts = match upgraded.await {
                Ok(upgraded) => upgrade::downcast::<TokioIo<Guard<TcpStream>>>(upgraded),
                Err(error) => return tracing::debug!(client = %way.address(), %error, "no tunnel came about"),
            };
            match parts {
                Ok(parts) => follow(parts.io.into_inner().into_inner(), parts.read_buf, lead, way).await,
                Err(_) => tracing::error!("a tunnel is of another kind than its connection"),
            }
        });
    }
    response
}

/// Serves a tunnel. `read`: bytes of it that were read already.
pub async fn follow(stream: TcpStream, read: Bytes, lead: Lead, way: Arc<Way>) {
    let address = way.address();
    let result = match lead {
        Lead::Carry(through, server) => carry(Rewound { read, stream }, server, through, &way).await,
        Lead::Open(through) => open(stream, read, through, way).await,
    };
    if let Err(error) = result {
        tracing::debug!(client = %address, %error, "a tunnel ended with an error");
    }
}

/// Carries bytes for as long as the configuration allows the tunnel.
async fn carry(client: Rewound, server: TcpStream, through: Tunnel, way: &Way) -> io::Result<()> {
    let mut ends = way.ends.clone();
    way.peer.pace.becomes_tunnel();
    let ends = async {
        tokio::select! {
            () = ends.come() => {}
            () = way.peer.pace.closed() => {}
        }
    };
    tokio::select! {
        carried = tunnel::run(client, server, || way.peer.pace.touch(), ends) => carried,
        () = way.proxy.until_turned_away(&through) => Ok(()),
    }
}

/// Carries bytes that turned out not to be HTTP.
async fn carry_to(client: Rewound, through: Tunnel, way: &Way) -> io::Result<()> {
    let (server, address) = way.proxy.dial(&through.server).await.map_err(io::Error::other)?;
    carry(client, server, Tunnel { address, ..through }, way).await
}

/// Finds out which protocol a client speaks, and answers it if that is HTTP.
async fn open(mut stream: TcpStream, read: Bytes, through: Tunnel, way: Arc<Way>) -> io::Result<()> {
    let mut begun = BytesMut::from(&read[..]);
    if begun.is_empty() {
        match tokio::time::timeout(SILENCE, stream.read_buf(&mut begun)).await {
            Ok(Ok(0)) => return Ok(()),
            Ok(read) => drop(read?),
            Err(_) => return carry_to(Rewound { read: Bytes::new(), stream }, through, &way).await,
        }
    }
    match begun[0] {
        TLS => {
            let greeted = tokio::time::timeout(HANDSHAKE, greet(&mut stream, &mut begun)).await;
            let accepted = greeted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            if !speaks_http(&accepted.client_hello()) {
                return carry_to(Rewound { read: begun.freeze(), stream }, through, &way).await;
            }
            open_tls(stream, accepted, through, way).await
        }
        first if first.is_ascii_uppercase() => {
            serve(Rewound { read: begun.freeze(), stream }, false, through, way).await;
            Ok(())
        }
        _ => carry_to(Rewound { read: begun.freeze(), stream }, through, &way).await,
    }
}

/// Reads a client's first TLS message. The bytes stay in `begun`.
async fn greet(stream: &mut TcpStream, begun: &mut BytesMut) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    let mut taken = 0;
    loop {
        while taken < begun.len() {
            taken += acceptor.read_tls(&mut &begun[taken..])?;
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(accepted),
                Ok(None) => {}
                Err((error, _)) => return Err(io::Error::other(error)),
            }
        }
        if begun.len() > MAX_HELLO {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the first TLS message is too long"));
        }
        if stream.read_buf(begun).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Returns whether a client speaks HTTP. One that offers only other protocols does not; one that offers none most
/// likely speaks HTTP/1.1.
fn speaks_http(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_none_or(|mut offered| offered.any(|protocol| PROTOCOLS.contains(&protocol)))
}

async fn open_tls(stream: TcpStream, accepted: Accepted, through: Tunnel, way: Arc<Way>) -> io::Result<()> {
    // A client that connects to an address may name the host in this message.
    let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
    let host = name.unwrap_or_else(|| through.server.host.clone());
    let config = server_config(&way.ca, &host).map_err(io::Error::other)?;
    let shaken = StartHandshake::from_parts(accepted, stream).into_stream_with(config, bound);
    match tokio::time::timeout(HANDSHAKE, shaken).await {
        Ok(Ok(stream)) => {
            serve(stream, true, through, way).await;
            Ok(())
        }
        Ok(Err(error)) => {
            // Nearly always the client does not trust Larder's authority.
            let (client, ca) = (way.address(), way.ca.file().display());
            tracing::info!(%client, %host, %error, "a client does not take our certificate; does it trust {ca}? `larder ca` tells how");
            Ok(())
        }
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Answers the requests of an opened tunnel. Each request is checked on its own. When the tunnel is no longer allowed,
/// it ends with its running requests.
async fn serve(stream: impl Socket + Send + 'static, is_secure: bool, through: Tunnel, way: Arc<Way>) {
    let (peer, proxy, metrics) = (way.peer.clone(), way.proxy.clone(), way.metrics.clone());
    let (turn_away, turned_away) = watch::channel(());
    let ends = Ends { stop: way.ends.stop.clone(), renewed: Some(turned_away) };
    let came = Came::Through { is_secure, tunnel: Box::new(through.clone()) };
    let answer = move |request| {
        let (way, came) = (way.clone(), came.clone());
        async move { way.proxy.pass(request, came, way.client(), way.kept()).await }
    };
    let asked_again = async {
        proxy.until_turned_away(&through).await;
        turn_away.send_replace(());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = connection(stream, peer, Builder::new(TokioExecutor::new()), metrics, answer, ends) => {}
        () = asked_again => {}
    }
}

fn server_config(ca: &Ca, host: &str) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error + Send + Sync>> {
    let leaf = Leaf(ca.leaf(host)?);
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    let mut config = builder.with_cert_resolver(Arc::new(leaf));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Leaf(Arc<CertifiedKey>);

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
