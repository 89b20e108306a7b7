//! One connection that speaks HTTP, from its first byte to its end: limits, deadlines, draining. All doors use it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::sync::watch;

use super::crowd::Load;
use super::guard::{CLOSING, Guard, Socket, Watched};
use super::pace::Pace;
use crate::body::Body;
use crate::config;
use crate::observe::Metrics;
use crate::registry::busy;
use crate::sent::{self, Sent};

/// How long a client of HTTP/2 has for the answer to a ping, and how often it gets one.
pub const PING: Duration = Duration::from_secs(30);

/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Most requests at once on one HTTP/2 connection: as many as clients may count on (RFC 9113, section 6.5.2). While the
/// client takes none of a response, about 80 KiB of it are in memory (measured: `bench/run 1 memory`).
const MAX_STREAMS: u32 = 100;

/// A connection's place among all others, kept for as long as any part of the connection is left.
pub type Held = Arc<dyn Send + Sync>;

/// The events that end a connection as soon as its running requests are answered.
#[derive(Clone)]
pub struct Ends {
    pub stop: watch::Receiver<Option<Duration>>,
    /// Notified when other rules decide which clients may connect than when the connection was made; `None`: these
    /// rules never change.
    pub renewed: Option<watch::Receiver<()>>,
}

impl Ends {
    /// Waits until one of the events has come.
    pub async fn come(&mut self) {
        let renewed = async {
            match &mut self.renewed {
                Some(renewed) => drop(renewed.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender is dropped only when the process ends.
            _ = self.stop.wait_for(Option::is_some) => {}
            () = renewed => {}
        }
    }
}

/// The other side of a connection.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    pub pace: Arc<Pace>,
    pub load: Arc<Load>,
    pub times: Times,
}

/// How long a client may let a connection wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Without a request.
    pub idle: Duration,
    /// For the client to take bytes of a running response.
    pub stall: Duration,
}

impl Times {
    /// Reads the times from the configuration of the server.
    pub fn new(server: &config::Server) -> Self {
        Self { idle: server.idle_timeout, stall: server.stall_timeout }
    }
}

/// Serves one connection to its end, or until it changes to another protocol than HTTP. What that needs is made here and
/// kept in a box: an async function would hold its arguments beside what it makes of them, for each connection.
pub fn connection<S, A>(
    stream: S,
    peer: Peer,
    mut builder: Builder<TokioExecutor>,
    metrics: Arc<Metrics>,
    answer: impl Fn(Request<Sent>) -> A,
    mut ends: Ends,
) -> impl Future<Output = ()>
where
    S: Socket + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let Peer { address: client, pace, load, times } = peer;
    let (guarded, watched) = Guard::new(stream, pace.clone(), times.stall);
    let (paced, written) = (pace.clone(), watched.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        watched.arrived();
        let is_http2 = request.version() == Version::HTTP_2;
        if is_http2 {
            watched.speaks_http2();
        }
        let (watched, running, counted) = (watched.clone(), paced.begin(), load.begin());
        // With HTTP/2, unread bytes of one request do not disturb the other streams. A client that sends `Expect` waits
        // before it sends the body, and is told not to send it.
        let may_be_heard = counted.is_some() && !request.headers().contains_key(EXPECT);
        let (request, left) = sent::watched(request);
        // If too many requests are running, the response is short, and no work is begun for it.
        let answered = counted.is_some().then(|| answer(request));
        async move {
            let mut response = match answered {
                Some(answered) => answered.await,
                None => busy(),
            };
            let is_heard_out = is_http2 || if may_be_heard { left.hear_out().await } else { left.is_none() };
            if !is_heard_out {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                watched.may_still_speak();
            }
            let running = running.counted(counted);
            watched.answers_with(response.extensions_mut().remove());
            Ok::<_, std::convert::Infallible>(response.map(|body| running.answer(body)))
        }
    });
    set_limits(&mut builder);
    let mut connection = Box::pin(builder.serve_connection_with_upgrades(TokioIo::new(guarded), service).into_owned());
    async move {
        metrics.connections.inc();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = given_up(&pace, times, client) => Ok(()),
            () = async { tokio::select! { () = ends.come() => {}, () = pace.idles(times.idle) => {} } } => {
                connection.as_mut().graceful_shutdown();
                wind_down(connection.as_mut(), &pace, times, &written).await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%client, %error, "a connection ended with an error");
        }
        metrics.connections.dec();
    }
}

fn set_limits(builder: &mut Builder<TokioExecutor>) {
    // The guard keeps the deadline for a head; the library's would end idle connections, too.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(Some(PING))
        .keep_alive_timeout(PING);
}

/// Waits until the client has taken nothing for too long, or another connection needs the place.
async fn given_up(pace: &Pace, times: Times, client: SocketAddr) {
    tokio::select! {
        () = pace.stalls(times.stall) => tracing::debug!(%client, "a client takes nothing of what it asked for"),
        () = pace.closed() => tracing::debug!(%client, "a connection that does nothing makes room for another"),
    }
}

/// Waits until a connection that takes no further requests has answered the running ones.
async fn wind_down<E>(
    mut connection: Pin<&mut impl Future<Output = Result<(), E>>>,
    pace: &Pace,
    times: Times,
    written: &Watched,
) -> Result<(), E> {
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = pace.stalls(times.stall) => Some(Ok(())),
        // The library would wait for the rest of a head, or for the answer to a ping.
        () = pace.rests(|| written.is_writing()) => None,
    };
    match ended {
        Some(ended) => ended,
        // The answer to a ping may still come, after the bytes that are on their way.
        None if written.is_http2() => tokio::time::timeout(CLOSING, connection).await.unwrap_or(Ok(())),
        None => Ok(()),
    }
}
