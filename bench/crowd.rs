//! Many clients of one blob at once, for `bench/run`.
//!
//! `crowd PORT PATH COUNT KIND [CERTIFICATE]`, where `KIND` is
//! - `read`: each client reads all of it; prints the bytes and the seconds of all together,
//! - `stall`, `stall-tls`, `stall-h2`: each client asks and takes nothing. Prints `stalled` once nothing more comes, and
//!   stays until its input ends. `stall-h2` has 50 streams on each connection, over TLS
//!   by the server's certificate.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long the server's buffers have to fill.
const SETTLE: Duration = Duration::from_secs(3);
const STREAMS: usize = 50;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [port, path, count, kind, rest @ ..] = &arguments[..] else {
        return Err("usage: crowd PORT PATH COUNT KIND [CERTIFICATE]".into());
    };
    let certificate = rest.first().map_or("", String::as_str);
    let (port, count): (u16, usize) = (port.parse()?, count.parse()?);
    match kind.as_str() {
        "read" => read(port, path, count).await,
        kind => stall(port, path, count, kind, certificate).await,
    }
}

async fn read(port: u16, path: &str, count: usize) -> Result<()> {
    let began = Instant::now();
    let clients: Vec<_> = (0..count).map(|_| tokio::spawn(read_one(port, path.to_owned()))).collect();
    let mut bytes = 0;
    for client in clients {
        bytes += client.await??;
    }
    println!("{bytes} {:.3}", began.elapsed().as_secs_f64());
    Ok(())
}

async fn read_one(port: u16, path: String) -> Result<u64> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.write_all(request(&path, "close").as_bytes()).await?;
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match socket.read(&mut buffer).await? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}

fn request(path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n")
}

async fn stall(port: u16, path: &str, count: usize, kind: &str, certificate: &str) -> Result<()> {
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    let connections = if kind == "stall-h2" { count / STREAMS } else { count };
    for _ in 0..connections {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        match kind {
            "stall" => {
                socket.write_all(request(path, "close").as_bytes()).await?;
                held.push(Box::new(socket));
            }
            "stall-tls" => {
                let mut socket = secure(socket, certificate, &[]).await?;
                socket.write_all(request(path, "close").as_bytes()).await?;
                held.push(Box::new(socket));
            }
            "stall-h2" => {
                let socket = TokioIo::new(secure(socket, certificate, &[b"h2"]).await?);
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await?;
                tokio::spawn(connection);
                for _ in 0..STREAMS {
                    let url = format!("https://localhost{path}");
                    let request = Request::get(url).version(Version::HTTP_2).body(Empty::<Bytes>::new())?;
                    held.push(Box::new(sender.send_request(request).await?));
                }
            }
            other => return Err(format!("no such kind: {other}").into()),
        }
    }
    tokio::time::sleep(SETTLE).await;
    println!("stalled");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut std::io::stdin(), &mut rest)?;
    Ok(())
}

async fn secure(socket: TcpStream, certificate: &str, protocols: &[&[u8]]) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector.connect(ServerName::try_from("localhost")?, socket).await?)
}
