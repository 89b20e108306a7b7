//! The proxy door: requests in absolute form, CONNECT, SOCKS 5. A tunnel to a host that the configuration names is
//! opened and read; all others are carried unchanged.

mod connect;
mod rewound;
mod socks;
mod way;

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;

use super::connection::connection;
use crate::body::{Body, full};
use crate::proxy::{Came, usage};
use crate::sent::Sent;
pub use way::Way;

/// How long a client has for its first byte.
const FIRST: Duration = Duration::from_secs(30);

/// Serves one connection to its end.
pub async fn open(stream: TcpStream, way: Arc<Way>) {
    let mut first = [0];
    let mut ends = way.ends.clone();
    let peeked = tokio::select! {
        peeked = tokio::time::timeout(FIRST, stream.peek(&mut first)) => peeked,
        () = ends.come() => return,
        () = way.peer.pace.closed() => return,
    };
    if !matches!(peeked, Ok(Ok(1))) {
        return;
    }
    if first == [socks::VERSION] {
        return socks::serve(stream, way).await;
    }
    let (peer, metrics, ends) = (way.peer.clone(), way.metrics.clone(), way.ends.clone());
    let answer = move |request| answer(way.clone(), request);
    connection(stream, peer, Builder::new(TokioExecutor::new()).http1_only(), metrics, answer, ends).await;
}

async fn answer(way: Arc<Way>, request: Request<Sent>) -> Response<Body> {
    if request.method() == Method::CONNECT {
        return connect::answer(way, request).await;
    }
    if request.uri().authority().is_some() {
        return way.proxy.pass(request, Came::Open, way.client(), way.kept()).await;
    }
    // A request to the door itself: somebody looks, or fetches the certificate that clients have to trust.
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if is_read && request.uri().path() == "/ca.crt" {
        let mut response = Response::new(full(way.ca.pem().to_owned().into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-pem-file"));
        return response;
    }
    usage()
}
