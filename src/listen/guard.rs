//! Deadlines on a client's socket that the HTTP library does not keep: for the first bytes, by which
//! the protocol is told, and for a client that no longer takes what is sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// For the first request to arrive.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// For a client to take any of the bytes that wait for it. A slow client takes some.
const STALLED: Duration = Duration::from_secs(120);

/// A socket with deadlines.
pub struct Guard<S> {
    inner: S,
    arrived: Arc<AtomicBool>,
    first: Pin<Box<Sleep>>,
    /// Since the client last took something; only while it is waited for.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// Tells the guard that a request has arrived; from then on the HTTP library keeps the time.
#[derive(Clone)]
pub struct Arrived(Arc<AtomicBool>);

impl Arrived {
    pub fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<S> Guard<S> {
    pub fn new(inner: S) -> (Self, Arrived) {
        let arrived = Arc::new(AtomicBool::new(false));
        let first = Box::pin(sleep_until(Instant::now() + FIRST_REQUEST));
        (Self { inner, arrived: arrived.clone(), first, stalled: None }, Arrived(arrived))
    }

    /// Ends the wait for a client that takes nothing.
    fn watch_write<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let deadline = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + STALLED)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if polled.is_pending() && !self.arrived.load(Ordering::Relaxed) && self.first.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came")));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch_write(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, buffers);
        self.watch_write(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_no_request_is_cut_off() {
        let (mut client, server) = tokio::io::duplex(64);
        let (mut guarded, _arrived) = Guard::new(server);
        client.write_all(b"PRI").await.expect("sent");
        let mut bytes = [0; 24];
        let error = guarded.read_exact(&mut bytes).await.expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (mut client, server) = tokio::io::duplex(4);
        let (mut guarded, arrived) = Guard::new(server);
        arrived.mark();
        let slow = async {
            for _ in 0..5 {
                tokio::time::sleep(STALLED - Duration::from_secs(1)).await;
                client.read_u8().await.expect("a byte");
            }
        };
        let (written, ()) = tokio::join!(guarded.write_all(&[1; 9]), slow);
        written.expect("the slow client got its bytes");
        let error = guarded.write_all(&[1; 9]).await.expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
