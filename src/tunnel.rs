//! Carries bytes both ways between two connections, whatever they mean.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A tunnel is given up when no bytes pass through it for this long.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How long a tunnel that is to end goes on without bytes: time for what is on its way.
const LINGER: Duration = Duration::from_secs(1);
/// Size of the buffer for each direction, in bytes.
const BUFFER: usize = 16 * 1024;

/// Carries bytes until both sides have closed, or no bytes pass for `IDLE`, or, once `ends` has completed, for
/// `LINGER`. Calls `passes` when bytes pass.
pub async fn run(
    client: impl AsyncRead + AsyncWrite + Unpin,
    server: impl AsyncRead + AsyncWrite + Unpin,
    passes: impl Fn() + Copy + Unpin,
    ends: impl Future<Output = ()>,
) -> io::Result<()> {
    let moved = Arc::<AtomicU64>::default();
    let mut client = Noted { inner: client, moved: moved.clone(), passes };
    let mut server = Noted { inner: server, moved: moved.clone(), passes };
    let to_end = async {
        ends.await;
        falls_silent(&moved, LINGER).await;
    };
    tokio::select! {
        carried = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => carried.map(drop),
        () = falls_silent(&moved, IDLE) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing went through for long")),
        () = to_end => Ok(()),
    }
}

async fn falls_silent(moved: &AtomicU64, span: Duration) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        tokio::time::sleep(span).await;
        if moved.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// A connection that counts its reads and writes.
struct Noted<S, P> {
    inner: S,
    moved: Arc<AtomicU64>,
    passes: P,
}

impl<S, P: Fn()> Noted<S, P> {
    fn note<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
            (self.passes)();
        }
        polled
    }
}

impl<S: AsyncRead + Unpin, P: Fn() + Unpin> AsyncRead for Noted<S, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.note(polled)
    }
}

impl<S: AsyncWrite + Unpin, P: Fn() + Unpin> AsyncWrite for Noted<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.note(polled)
    }

    // Not counted: a flush is ready also when there was nothing to do.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;

    /// Returns the two ends, the sender that ends the tunnel, and the running tunnel.
    fn tunnel() -> (DuplexStream, DuplexStream, oneshot::Sender<()>, JoinHandle<io::Result<()>>) {
        let (client, near) = tokio::io::duplex(1024);
        let (server, far) = tokio::io::duplex(1024);
        let (end, ends) = oneshot::channel::<()>();
        let running = tokio::spawn(run(near, far, || (), async {
            // Once the sender is dropped, nothing ends the tunnel.
            if ends.await.is_err() {
                std::future::pending().await
            }
        }));
        (client, server, end, running)
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_side_says_the_other_hears_also_after_half_is_closed() {
        let (mut client, mut server, _end, running) = tunnel();
        client.write_all(b"question").await.expect("sent");
        client.shutdown().await.expect("closed");
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.expect("heard");
        assert_eq!(heard, "question");
        server.write_all(b"answer").await.expect("sent");
        drop(server);
        heard.clear();
        client.read_to_string(&mut heard).await.expect("heard");
        assert_eq!(heard, "answer");
        running.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_is_silent_for_long_ends_and_a_slow_one_does_not() {
        let (mut client, mut server, _end, running) = tunnel();
        for _ in 0..10 {
            tokio::time::sleep(IDLE / 2).await;
            client.write_all(b"x").await.expect("sent");
            server.read_u8().await.expect("heard");
        }
        let begun = Instant::now();
        assert!(running.await.expect("no panic").is_err());
        assert!(begun.elapsed() <= 2 * IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_is_to_end_carries_what_is_on_its_way() {
        let (mut client, mut server, end, running) = tunnel();
        end.send(()).expect("it listens");
        for _ in 0..10 {
            tokio::time::sleep(LINGER / 2).await;
            client.write_all(b"x").await.expect("sent");
            server.read_u8().await.expect("heard");
        }
        let begun = Instant::now();
        running.await.expect("no panic").expect("a clean end");
        assert!(begun.elapsed() <= 2 * LINGER);
    }
}
