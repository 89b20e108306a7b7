//! Bodies that are forwarded, with a deadline for each piece.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::headers;
use crate::body::Body;
use crate::failure::{Failure, FailureKind};
use crate::places;
use crate::upstream::{PassError, Server};

/// How long to wait for the answer after all was sent, and between two pieces of a body in either direction. Long,
/// since some requests wait for an event.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// A place among the forwarded requests.
pub type Held = Arc<places::Place>;

/// Returns a server's answer for a client. `held`: the request's place, kept until the whole answer has arrived.
pub fn returned(response: reqwest::Response, server: &Server, held: Option<Held>) -> Response<Body> {
    let (mut parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
    headers::pass_on(&mut parts.headers, parts.version);
    let label = server.to_string();
    let body = body.map_err(move |error| {
        let _until_the_end = &held;
        broken(&label, &error)
    });
    let mut response = Response::new(Limited::new(body, Arc::default()).boxed_unsync());
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}

/// Waits for an answer as long as the request's body makes progress.
pub async fn in_time<T>(
    sending: impl Future<Output = Result<T, PassError>>,
    moved: &AtomicU64,
    server: &Server,
) -> Result<T, PassError> {
    let mut sending = std::pin::pin!(sending);
    loop {
        let before = moved.load(Ordering::Relaxed);
        if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut sending).await {
            return answer;
        }
        if moved.load(Ordering::Relaxed) == before {
            let message = format!("{server}: no answer came within {} s", PATIENCE.as_secs());
            return Err(Failure::new(FailureKind::Timeout, message).into());
        }
    }
}

/// Returns the failure of a body that broke off. `who`: the side that sent it.
pub fn broken(who: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    Failure::new(FailureKind::Unavailable, format!("{who}: {last}"))
}

/// A body with a deadline for each piece.
pub struct Limited<B> {
    body: B,
    moved: Arc<AtomicU64>,
    deadline: Pin<Box<Sleep>>,
}

impl<B> Limited<B> {
    /// Puts deadlines on a body. `moved` counts its pieces.
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
