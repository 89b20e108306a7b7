//! HTTP/2 clients that ask and then take nothing: they keep their windows shut and answer pings, so that no
//! socket ever waits. A connection on which nothing moves, though it is the client's turn, comes to an end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};

/// For a client to take anything at all, on one of its streams.
const STALLED: Duration = Duration::from_secs(120);

/// How the answers of one connection get on.
#[derive(Debug, Default)]
pub struct Pace {
    /// Goes up with each frame that is asked for.
    moved: AtomicU64,
    /// Answers that wait for the client to take a frame.
    owed: AtomicUsize,
}

/// A body whose frames are counted.
#[derive(Debug)]
pub struct Paced<B> {
    body: B,
    pace: Arc<Pace>,
    /// Whether it is counted among those that are owed.
    is_owed: bool,
}

impl Pace {
    pub fn watch<B>(self: &Arc<Self>, body: B) -> Paced<B> {
        self.owed.fetch_add(1, Ordering::Relaxed);
        Paced { body, pace: self.clone(), is_owed: true }
    }

    /// Ends when nothing has moved for long and the client is the one who is waited for.
    pub async fn stalls(&self) {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            tokio::time::sleep(STALLED).await;
            if self.owed.load(Ordering::Relaxed) > 0 && self.moved.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl<B> Paced<B> {
    fn set_owed(&mut self, is_owed: bool) {
        match (self.is_owed, is_owed) {
            (false, true) => drop(self.pace.owed.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.pace.owed.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        self.is_owed = is_owed;
    }
}

impl<B: Body + Unpin> Body for Paced<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.pace.moved.fetch_add(1, Ordering::Relaxed);
        let polled = Pin::new(&mut self.body).poll_frame(context);
        // The next one is asked for when there was room for this; what is not there yet is for us to bring.
        self.set_owed(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Paced<B> {
    fn drop(&mut self) {
        self.set_owed(false);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use futures_util::stream;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_could_take_something_and_does_not_stalls() {
        let pace = Arc::<Pace>::default();
        let bound = 3 * STALLED;
        assert!(tokio::time::timeout(bound, pace.stalls()).await.is_err(), "nobody asked");

        let body = Full::new(Bytes::from_static(b"x"));
        let mut taken = pace.watch(body.clone());
        let begun = Instant::now();
        pace.stalls().await;
        assert!(begun.elapsed() <= STALLED, "no window from the first byte on");
        let frame = taken.frame().await.expect("a frame").expect("no error");
        assert!(frame.is_data());
        drop(taken);
        assert!(tokio::time::timeout(bound, pace.stalls()).await.is_err(), "it has all it wanted");

        // Content that is not there yet is no fault of the client's.
        let coming = stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
        let mut coming = pace.watch(StreamBody::new(coming));
        assert!(coming.frame().now_or_never().is_none());
        assert!(tokio::time::timeout(bound, pace.stalls()).await.is_err(), "we are waited for");
        let _shut = pace.watch(body);
        assert!(tokio::time::timeout(bound, pace.stalls()).await.is_ok());
    }
}
