//! Requests that go to their server as they are, and answers that come back as they are.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until};
use url::Url;

use super::secrets::Secrets;
use super::{Kept, Proxying, Tunnel, headers};
use crate::failure::{Failure, FailureKind};
use crate::places::{self, Party};
use crate::pull::body::{self, Body};
use crate::pull::{Pull, counted_client};
use crate::sent::Sent;
use crate::tunnel;
use crate::upstream::{PassError, Place};

/// For an answer to begin after all was sent, and between two pieces of what goes either way. Long, since
/// some requests wait for something to happen.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// A place among the requests that are passed on.
pub type Held = Arc<places::Place>;
/// How long such a request waits for it.
const FOR_A_PLACE: Duration = Duration::from_secs(10);

impl Pull {
    /// `tunnel`: whose request it is, and where it goes.
    pub(super) async fn forward(
        self: &Arc<Self>,
        proxying: &Proxying,
        mut request: Request<Sent>,
        tunnel: Tunnel,
        url: &Url,
        secrets: &Secrets,
    ) -> Result<Response<Body>, PassError> {
        let place = &tunnel.place;
        let version = request.version();
        let upgrade = headers::upgrade(request.headers());
        let own_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let kept = parts.extensions.remove::<Kept>();
        let party = Party { source: place.host.as_str().into(), client: counted_client(&parts), is_named: true };
        let held = self.place_to_forward(party).await?;
        headers::pass_on(&mut parts.headers, version);
        // Those of the connection to come are for the HTTP library to write.
        parts.headers.remove(HOST);
        secrets.add_to(&mut parts.headers);
        if let Some(protocol) = &upgrade {
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(UPGRADE, protocol.clone());
        }
        let moved = Arc::<AtomicU64>::default();
        let mut outgoing = reqwest::Request::new(parts.method, url.clone());
        *outgoing.headers_mut() = parts.headers;
        if body.is_end_stream() {
            // A body of no bytes is told from none.
            let is_stated = outgoing.headers().contains_key(CONTENT_LENGTH);
            *outgoing.body_mut() = is_stated.then(|| reqwest::Body::from(Bytes::new()));
        } else {
            let limited = Limited::new(body.map_err(|error| broken("the client", &error)), moved.clone());
            *outgoing.body_mut() = Some(reqwest::Body::wrap(limited));
        }

        let sending = proxying.send(outgoing, place, upgrade.is_some());
        let response = in_time(sending, &moved, place).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match own_side {
                Some(own_side) => {
                    let address = proxying.anywhere.address_of(&response);
                    Ok(self.switched(response, own_side, Tunnel { address, ..tunnel }, (kept, held)))
                }
                None => {
                    Err(Failure::new(FailureKind::WrongContent, format!("{place}: changed the protocol unasked"))
                        .into())
                }
            };
        }
        Ok(returned(response, place, Some(held)))
    }

    /// A place for a request that is passed on: HTTP/2 brings many on one connection, and each has a connection of its own
    /// to its server.
    pub(super) async fn place_to_forward(&self, party: Party) -> Result<Held, Failure> {
        let held = self.forwards.take(Party { is_named: true, ..party }, FOR_A_PLACE).await;
        held.map(Arc::new)
            .map_err(|_| Failure::new(FailureKind::Busy, "too many requests are passed on at once; try again soon"))
    }

    /// Joins both sides of what is no longer HTTP.
    fn switched(
        self: &Arc<Self>,
        response: reqwest::Response,
        own_side: hyper::upgrade::OnUpgrade,
        through: Tunnel,
        (kept, held): (Option<Kept>, Held),
    ) -> Response<Body> {
        let mut answer = Response::new(body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        let pull = self.clone();
        tokio::spawn(async move {
            let _held = held;
            let place = &through.place;
            let (client, server) = match tokio::join!(own_side, response.upgrade()) {
                (Ok(client), Ok(server)) => (client, server),
                _ => return tracing::debug!(%place, "a change of protocol did not come about"),
            };
            let ends = async {
                match kept.clone() {
                    Some(mut kept) => drop(kept.stop.wait_for(Option::is_some).await),
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                ended = tunnel::run(TokioIo::new(client), server, || (), ends) => ended,
                () = pull.until_turned_away(&through) => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%place, %error, "what followed a change of protocol ended with an error");
            }
        });
        answer
    }
}

/// The answer of a server for a client. `held`: the request's place, until all of the answer is there.
pub fn returned(response: reqwest::Response, place: &Place, held: Option<Held>) -> Response<Body> {
    let (mut parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
    headers::pass_on(&mut parts.headers, parts.version);
    let label = place.to_string();
    let body = body.map_err(move |error| {
        let _until_the_end = &held;
        broken(&label, &error)
    });
    let mut response = Response::new(Limited::new(body, Arc::default()).boxed_unsync());
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}

impl Proxying {
    pub(super) async fn send(
        &self,
        request: reqwest::Request,
        place: &Place,
        is_upgrade: bool,
    ) -> Result<reqwest::Response, PassError> {
        match self.registries.upstream_of(request.url()) {
            Some(upstream) => Ok(upstream.pass(request).await?),
            None => self.anywhere.send(request, place, is_upgrade).await,
        }
    }
}

/// Waits for an answer for as long as something goes there.
pub async fn in_time<T>(
    sending: impl Future<Output = Result<T, PassError>>,
    moved: &AtomicU64,
    place: &Place,
) -> Result<T, PassError> {
    let mut sending = std::pin::pin!(sending);
    loop {
        let before = moved.load(Ordering::Relaxed);
        if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut sending).await {
            return answer;
        }
        if moved.load(Ordering::Relaxed) == before {
            let message = format!("{place}: no answer came within {} s", PATIENCE.as_secs());
            return Err(Failure::new(FailureKind::Timeout, message).into());
        }
    }
}

pub fn broken(who: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    Failure::new(FailureKind::Unavailable, format!("{who}: {last}"))
}

/// A body each of whose pieces has a deadline.
pub struct Limited<B> {
    body: B,
    moved: Arc<AtomicU64>,
    deadline: Pin<Box<Sleep>>,
}

impl<B> Limited<B> {
    pub fn new(body: B, moved: Arc<AtomicU64>) -> Self {
        Self { body, moved, deadline: Box::pin(sleep_until(Instant::now() + PATIENCE)) }
    }
}

impl<B> hyper::body::Body for Limited<B>
where
    B: hyper::body::Body<Data = Bytes, Error = Failure> + Unpin,
{
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
            let next = Instant::now() + PATIENCE;
            self.deadline.as_mut().reset(next);
            return polled;
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => {
                let message = format!("nothing more came within {} s", PATIENCE.as_secs());
                Poll::Ready(Some(Err(Failure::new(FailureKind::Timeout, message))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
