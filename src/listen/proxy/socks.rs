//! SOCKS 5 (RFC 1928), with names and passwords (RFC 1929): another form of CONNECT.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::{HeaderValue, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::connect;
use super::way::Way;
use crate::proxy::Lead;

/// The version of the protocol: the first byte that a client sends.
pub const VERSION: u8 = 5;
const CONNECT: u8 = 1;
/// How long a client has until the tunnel is agreed on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Methods by which a client may authenticate.
const NOBODY: u8 = 0;
const PASSWORD: u8 = 2;
const NOTHING_FITS: u8 = 0xff;
const PASSWORD_VERSION: u8 = 1;

/// Answers to a client.
const DONE: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const UNREACHABLE: u8 = 4;
const UNKNOWN_COMMAND: u8 = 7;
const UNKNOWN_ADDRESS: u8 = 8;

/// Serves one connection to its end.
pub async fn serve(mut stream: TcpStream, way: Arc<Way>) {
    let address = way.address();
    let agreed = tokio::time::timeout(PATIENCE, agree(&mut stream, &way)).await;
    match agreed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(Some(lead)) => connect::follow(stream, Bytes::new(), lead, way).await,
        Ok(None) => {}
        Err(error) => tracing::debug!(client = %address, %error, "no agreement over SOCKS"),
    }
}

/// Reads where the client wants to go. `None`: the client was told that it cannot go there.
async fn agree(stream: &mut TcpStream, way: &Way) -> io::Result<Option<Lead>> {
    let Some(login) = log_in(stream).await? else {
        return Ok(None);
    };
    let [version, command, _, kind] = read(stream).await?;
    if version != VERSION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let host = match kind {
        1 => Ipv4Addr::from(read::<4>(stream).await?).to_string(),
        3 => text(stream).await?,
        4 => format!("[{}]", Ipv6Addr::from(read::<16>(stream).await?)),
        _ => return tell(stream, UNKNOWN_ADDRESS).await.map(|()| None),
    };
    let port = u16::from_be_bytes(read(stream).await?);
    if command != CONNECT {
        return tell(stream, UNKNOWN_COMMAND).await.map(|()| None);
    }
    let request = Request::builder().method(Method::CONNECT).uri(format!("{host}:{port}")).body(());
    let Ok(request) = request else {
        return tell(stream, UNKNOWN_ADDRESS).await.map(|()| None);
    };
    let (mut parts, ()) = request.into_parts();
    parts.headers.extend(login.map(|login| (PROXY_AUTHORIZATION, login)));
    let (response, lead) = way.proxy.connect(&parts, way.client()).await;
    let word = match (&lead, response.status()) {
        (Some(_), _) => DONE,
        (None, StatusCode::BAD_REQUEST) => UNKNOWN_ADDRESS,
        (None, status) if status.is_client_error() => NOT_ALLOWED,
        (None, _) => UNREACHABLE,
    };
    tell(stream, word).await?;
    Ok(lead)
}

/// Returns the client's name and password as an HTTP header, or `Some(None)` if the client authenticates without them.
/// Returns `None` if the client offers neither method.
async fn log_in(stream: &mut TcpStream) -> io::Result<Option<Option<HeaderValue>>> {
    let [_, count] = read(stream).await?;
    let mut offered = vec![0; usize::from(count)];
    stream.read_exact(&mut offered).await?;
    if offered.contains(&PASSWORD) {
        stream.write_all(&[VERSION, PASSWORD]).await?;
        let [_] = read(stream).await?;
        let (name, password) = (text(stream).await?, text(stream).await?);
        // The answer to the request that follows tells whether they are right.
        stream.write_all(&[PASSWORD_VERSION, DONE]).await?;
        let login = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")));
        return Ok(Some(HeaderValue::try_from(login).ok()));
    }
    let is_nobody = offered.contains(&NOBODY);
    stream.write_all(&[VERSION, if is_nobody { NOBODY } else { NOTHING_FITS }]).await?;
    Ok(is_nobody.then_some(None))
}

async fn tell(stream: &mut TcpStream, word: u8) -> io::Result<()> {
    // The address from which Larder connects is nobody's business.
    stream.write_all(&[VERSION, word, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

async fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Reads a text that follows its length.
async fn text(stream: &mut TcpStream) -> io::Result<String> {
    let [length] = read(stream).await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}
