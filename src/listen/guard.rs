//! Deadlines on a client's socket that the HTTP library does not keep: for the first bytes, which tell the protocol,
//! and for a client that no longer takes the bytes that are sent. And a short path: pages of a file go from the
//! system's cache to the socket without being copied.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use super::pace::Pace;
use crate::cache::Mapping;

/// How long the first request may take to arrive.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// How long the head of a further request may take from its first byte on.
pub const HEAD: Duration = Duration::from_secs(30);

/// How long a client may take, after Larder has closed, to take the remaining bytes and to close as well.
pub const CLOSING: Duration = Duration::from_secs(10);

/// A socket with deadlines.
pub struct Guard<S> {
    inner: S,
    watched: Arc<Watched>,
    pace: Arc<Pace>,
    first: Pin<Box<Sleep>>,
    /// When the rest of a head has to be there whose first byte has come, until the request is there; and the timer for
    /// it. Most heads come at once and need none.
    head: Option<(Instant, Option<Pin<Box<Sleep>>>)>,
    /// How long the client may take none of the bytes that wait for it. A slow client takes some.
    stall: Duration,
    /// Runs while bytes wait, since the client last took some.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs since Larder closed, until the client has closed.
    closing: Option<Pin<Box<Sleep>>>,
}

/// What the guard is told about the requests on its socket.
#[derive(Debug, Default)]
pub struct Watched {
    has_arrived: AtomicBool,
    /// Whether a request has arrived since the first byte of a head came.
    is_head_whole: AtomicBool,
    /// Whether bytes wait for the client to take them.
    is_writing: AtomicBool,
    mapping: Mutex<Option<Arc<Mapping>>>,
    /// Whether the client may send while it reads.
    is_http2: AtomicBool,
    /// Whether the client may still be sending bytes that nobody reads any more.
    may_speak: AtomicBool,
}

impl Watched {
    /// Notes that the client speaks HTTP/2: such a client states all the time how many bytes it takes.
    pub fn speaks_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    /// Returns whether the client speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Notes that the client may still be sending bytes that nobody reads any more. They are read before the socket is
    /// closed, as in RFC 9112, section 9.6.
    pub fn may_still_speak(&self) {
        self.may_speak.store(true, Ordering::Relaxed);
    }

    /// Notes that a request has arrived.
    pub fn arrived(&self) {
        self.has_arrived.store(true, Ordering::Relaxed);
        self.is_head_whole.store(true, Ordering::Relaxed);
    }

    /// Sets the mapping of the next response. Its frames are recognized by their address; bytes of an earlier response
    /// are written like all others.
    pub fn answers_with(&self, mapping: Option<Arc<Mapping>>) {
        *self.mapping.lock().unwrap_or_else(PoisonError::into_inner) = mapping;
    }

    /// Returns whether bytes wait for the client to take them. Some of them may have left the HTTP library.
    pub fn is_writing(&self) -> bool {
        self.is_writing.load(Ordering::Relaxed)
    }

    fn mapping(&self) -> Option<Arc<Mapping>> {
        self.mapping.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A socket that may take pages of a file.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Sends bytes of a mapped object. Returns how many were sent.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        mapping: &Mapping,
        at: u64,
        length: usize,
    ) -> Poll<io::Result<usize>>;
}

impl Socket for TcpStream {
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        mapping: &Mapping,
        at: u64,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(context))?;
            match self.try_io(Interest::WRITABLE, || mapping.send(self, at, length)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket for TlsStream<S> {
    /// Fails: encrypting copies the bytes anyway, so no mapped bytes are ever sent this way.
    fn poll_send(&self, _: &mut Context<'_>, _: &Mapping, _: u64, _: usize) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}

impl<S: Socket> Guard<S> {
    /// Guards a socket. Returns the guard, and the value through which it is told about requests.
    pub fn new(inner: S, pace: Arc<Pace>, stall: Duration) -> (Self, Arc<Watched>) {
        let watched = Arc::<Watched>::default();
        let first = Box::pin(sleep_until(Instant::now() + FIRST_REQUEST));
        let guard =
            Self { inner, watched: watched.clone(), pace, first, head: None, stall, stalled: None, closing: None };
        (guard, watched)
    }

    /// Returns the socket without its guard.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Notes that bytes have come. With HTTP/1.1, between two requests, they are of the head of the next one.
    fn watch_head(&mut self) {
        let is_between = self.watched.has_arrived.load(Ordering::Relaxed) && !self.pace.is_running();
        if is_between && !self.watched.is_http2() && self.head.is_none() {
            self.watched.is_head_whole.store(false, Ordering::Relaxed);
            self.head = Some((Instant::now() + HEAD, None));
        }
    }

    /// Returns whether the rest of a head has not come in time.
    fn is_head_late(&mut self, context: &mut Context<'_>) -> bool {
        if self.watched.is_head_whole.load(Ordering::Relaxed) {
            self.head = None;
        }
        let Some((deadline, timer)) = &mut self.head else {
            return false;
        };
        timer.get_or_insert_with(|| Box::pin(sleep_until(*deadline))).as_mut().poll(context).is_ready()
    }

    /// Writes the first bytes: pages of a file, or the bytes before the next page.
    fn poll_front(&mut self, context: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some(mapping) = self.watched.mapping() else {
            return Pin::new(&mut self.inner).poll_write_vectored(context, buffers);
        };
        let mut buffers = buffers;
        while let [first, rest @ ..] = buffers
            && first.is_empty()
        {
            buffers = rest;
        }
        let Some(first) = buffers.first() else {
            return Poll::Ready(Ok(0));
        };
        if let Some(at) = mapping.position(first) {
            return self.inner.poll_send(context, &mapping, at, first.len());
        }
        let is_other = |buffer: &&IoSlice<'_>| mapping.position(buffer).is_none();
        let front = buffers.iter().take_while(is_other).count();
        Pin::new(&mut self.inner).poll_write_vectored(context, &buffers[..front])
    }

    /// Fails once the client has taken nothing for too long.
    fn watch_write<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.watched.is_writing.store(polled.is_pending(), Ordering::Relaxed);
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let deadline = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + self.stall)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: Socket> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let is_late = match &polled {
            Poll::Ready(_) => {
                if buffer.filled().len() > before {
                    self.watch_head();
                }
                false
            }
            Poll::Pending if !self.watched.has_arrived.load(Ordering::Relaxed) => {
                self.first.as_mut().poll(context).is_ready()
            }
            Poll::Pending => self.is_head_late(context),
        };
        match is_late {
            true => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came"))),
            false => polled,
        }
    }
}

impl<S: Socket> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = self.poll_front(context, &[IoSlice::new(bytes)]);
        self.watch_write(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.poll_front(context, buffers);
        self.watch_write(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(context);
        self.watch_write(polled, context)
    }

    /// Ends Larder's side of the connection. If bytes arrive at a closed socket, the system discards what the client
    /// has not read yet. So if the client may still be sending, its bytes are read until it closes or [`CLOSING`] has
    /// passed.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        }
        if !self.watched.is_http2() && !self.watched.may_speak.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        let deadline = this.closing.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + CLOSING)));
        loop {
            let mut heard = [0; 1024];
            let mut buffer = ReadBuf::new(&mut heard);
            match Pin::new(&mut this.inner).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return deadline.as_mut().poll(context).map(Ok),
            }
        }
    }
}

#[cfg(test)]
impl Socket for tokio::io::DuplexStream {
    fn poll_send(&self, _: &mut Context<'_>, _: &Mapping, _: u64, _: usize) -> Poll<io::Result<usize>> {
        unreachable!("no test maps a file")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const STALLED: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_no_request_is_cut_off() {
        let (mut client, server) = tokio::io::duplex(64);
        let (mut guarded, _watched) = Guard::new(server, Arc::default(), STALLED);
        client.write_all(b"PRI").await.expect("sent");
        let mut bytes = [0; 24];
        let error = guarded.read_exact(&mut bytes).await.expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_may_still_speak_is_heard_out_before_it_is_left() {
        let (mut client, server) = tokio::io::duplex(64);
        let (mut guarded, watched) = Guard::new(server, Arc::default(), STALLED);
        guarded.shutdown().await.expect("at once");
        watched.speaks_http2();
        let begun = Instant::now();
        let speaks = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.write_all(b"more").await.expect("it is heard");
            }
            drop(client);
        };
        let (shut, ()) = tokio::join!(guarded.shutdown(), speaks);
        shut.expect("a clean end");
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        let (_silent, server) = tokio::io::duplex(64);
        let (mut guarded, watched) = Guard::new(server, Arc::default(), STALLED);
        watched.speaks_http2();
        let begun = Instant::now();
        guarded.shutdown().await.expect("a clean end");
        assert_eq!(begun.elapsed(), CLOSING, "nobody is waited for without end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (mut client, server) = tokio::io::duplex(4);
        let (mut guarded, watched) = Guard::new(server, Arc::default(), STALLED);
        watched.arrived();
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
