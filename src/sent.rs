//! The body of a client's request, and what happens to it if nobody reads it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Most bytes of an unread body that are read and dropped.
const MOST: u64 = 1 << 20;
/// How long Larder waits for these bytes.
const LONGEST: Duration = Duration::from_secs(2);

/// The body of a request. If it is dropped before its end, the rest goes to its [`Left`].
pub struct Sent {
    body: Option<Incoming>,
    left: Left,
}

/// The unread rest of a request's body.
#[derive(Clone)]
pub struct Left(Option<Arc<Mutex<Option<Incoming>>>>);

/// Returns the request with a body whose unread rest goes to the [`Left`].
pub fn watched(request: Request<Incoming>) -> (Request<Sent>, Left) {
    // Most requests have no body.
    let left = if request.body().is_end_stream() { Left(None) } else { Left(Some(Arc::default())) };
    let watched = request.map(|body| Sent { body: Some(body), left: left.clone() });
    (watched, left)
}

impl Left {
    /// Reads the rest, so that the next request of the connection can be told from it (RFC 9112, section 9.3). Returns
    /// whether all of it was read; if not, the connection has to be closed.
    pub async fn hear_out(&self) -> bool {
        let Some(mut body) = self.take() else {
            return true;
        };
        let heard = async {
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else {
                    return false;
                };
                bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if bytes > MOST {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(LONGEST, heard).await.unwrap_or(false)
    }

    /// Returns whether nothing is left. The rest, if there is one, is dropped.
    pub fn is_none(&self) -> bool {
        self.take().is_none()
    }

    fn take(&self) -> Option<Incoming> {
        self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        if let Some((body, left)) = rest.zip(self.left.0.as_ref()) {
            *left.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}
