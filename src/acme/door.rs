//! The door for http-01: it speaks plain HTTP and serves one document for each challenge, and nothing else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::shown::Shown;
use crate::sockets;

const PREFIX: &str = "/.well-known/acme-challenge/";
/// How long a connection may last. Each connection is for one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most connections open at once.
const CONNECTIONS: usize = 256;
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after the system had no socket for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("server.tls.acme.http_listen: cannot listen on {address}: {source}{hint}")]
pub struct DoorError {
    address: SocketAddr,
    source: std::io::Error,
    hint: &'static str,
}

/// The hint for an address that this process listens on already.
const OWN: &str = " (by Larder itself; restart it to change this address)";

/// The open doors, by their configured address.
#[derive(Debug, Default)]
pub struct Doors(Vec<(SocketAddr, AbortHandle)>);

/// The doors that are to be open.
pub struct NewDoors {
    all: Vec<SocketAddr>,
    new: Vec<(SocketAddr, TcpListener)>,
}

impl Doors {
    /// Binds the addresses that are not open yet.
    pub fn prepare(&self, listen: &[SocketAddr]) -> Result<NewDoors, DoorError> {
        let mut new = Vec::new();
        for &address in listen.iter().filter(|address| self.0.iter().all(|(open, _)| open != *address)) {
            let is_own = self.0.iter().any(|(open, _)| open.port() == address.port());
            let fail =
                |source| DoorError { address, hint: if is_own { OWN } else { sockets::remedy(&source) }, source };
            let listener = sockets::listen(address, listen).map_err(fail)?;
            new.push((address, listener));
        }
        Ok(NewDoors { all: listen.to_vec(), new })
    }

    /// Opens the new doors and closes those that are no longer configured.
    pub fn apply(&mut self, prepared: NewDoors, shown: &Shown) {
        self.0.retain(|(address, serving)| {
            let stays = prepared.all.contains(address);
            if !stays {
                serving.abort();
            }
            stays
        });
        for (address, listener) in prepared.new {
            if let Ok(bound) = listener.local_addr() {
                tracing::info!(door = "acme", address = %bound, "listening");
            }
            let serving = tokio::spawn(serve(listener, shown.clone()));
            self.0.push((address, serving.abort_handle()));
        }
    }
}

async fn serve(listener: TcpListener, shown: Shown) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if open.len() >= CONNECTIONS {
                    open.retain(|connection| !connection.is_finished());
                }
                // An ACME server sends its request at once. So the connection that has been open longest makes room.
                if open.len() >= CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                let shown = shown.clone();
                // A connection that does not end in time is closed.
                let served = async move { drop(tokio::time::timeout(PATIENCE, connection(stream, shown)).await) };
                open.push_back(tokio::spawn(served).abort_handle());
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, shown: Shown) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, &shown);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD).keep_alive(false);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for a challenge ended with an error");
    }
}

fn answer<B>(request: &Request<B>, shown: &Shown) -> Response<Full<Bytes>> {
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    let token = request.uri().path().strip_prefix(PREFIX).filter(|_| is_read);
    let document = token.and_then(|token| shown.proofs().document(token));
    let status = if document.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let mut response = Response::new(Full::from(document.unwrap_or_default()));
    *response.status_mut() = status;
    response
}
