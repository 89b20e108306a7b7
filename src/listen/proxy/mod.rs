//! The proxy door: requests in absolute form, CONNECT, SOCKS 5. What comes through a tunnel to a host that
//! matters is opened and read; all else is carried untouched.

mod connect;
mod rewound;
mod socks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;

use super::{Ends, Held, Peer, connection};
use crate::ca::Ca;
use crate::pull::{Body, Came, Client, Kept, Pull, full, usage};
use crate::sent::Sent;

/// A client has this long to say its first word.
const FIRST: Duration = Duration::from_secs(30);

/// One client's way through the door.
pub struct Way {
    pub pull: Arc<Pull>,
    pub ca: Arc<Ca>,
    pub(super) peer: Peer,
    pub ends: Ends,
    pub held: Held,
}

impl Way {
    fn kept(&self) -> Kept {
        Kept { place: self.held.clone(), stop: self.ends.stop.clone() }
    }

    fn address(&self) -> SocketAddr {
        self.peer.address
    }

    fn client(&self) -> Client {
        Client::connected(self.address())
    }
}

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
    let (peer, metrics, ends) = (way.peer.clone(), way.pull.metrics().clone(), way.ends.clone());
    let answer = move |request| answer(way.clone(), request);
    connection(stream, peer, Builder::new(TokioExecutor::new()).http1_only(), &metrics, answer, ends).await;
}

async fn answer(way: Arc<Way>, request: Request<Sent>) -> Response<Body> {
    if request.method() == Method::CONNECT {
        return connect::answer(way, request).await;
    }
    if request.uri().authority().is_some() {
        return way.pull.pass(request, Came::Open, way.client(), way.kept()).await;
    }
    // To the door itself: somebody looks, or fetches what clients have to trust.
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if is_read && request.uri().path() == "/ca.crt" {
        let mut response = Response::new(full(way.ca.pem().to_owned().into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-pem-file"));
        return response;
    }
    usage()
}
