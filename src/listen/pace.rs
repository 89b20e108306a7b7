//! How the responses on one connection progress: whether any is running, and whether the client takes the bytes that it
//! asked for. An HTTP/2 client may keep its windows shut and answer pings, so that no socket ever waits. Therefore only
//! bytes that leave the HTTP library's buffers count.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::Instant;

use super::crowd::Request;

/// How long a connection that is to end waits for the last bytes to leave, and for a request that has arrived only in
/// part.
const LINGER: Duration = Duration::from_secs(1);

/// The responses of one connection.
#[derive(Debug)]
pub struct Pace {
    /// A number of its own for each connection.
    number: u64,
    made: Instant,
    /// When something last happened (a request came or ended, bytes left), in milliseconds since `made`.
    touched: AtomicU64,
    /// Increases whenever bytes leave.
    moved: AtomicU64,
    /// Pieces that wait for the client to take them.
    owed: AtomicUsize,
    /// Requests whose responses have not been handed over completely.
    running: AtomicUsize,
    /// Whether the connection is a tunnel, whose bytes are no requests.
    is_tunnel: AtomicBool,
    /// Whether the connection has to end at once.
    closing: watch::Sender<bool>,
}

impl Default for Pace {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            made: Instant::now(),
            touched: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            owed: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            is_tunnel: AtomicBool::new(false),
            closing: watch::Sender::new(false),
        }
    }
}

/// A running request; dropping it ends the count.
#[derive(Debug)]
pub struct Running(Arc<Pace>, Option<Request>);

/// The body of a response.
#[derive(Debug)]
pub struct Paced<B> {
    body: B,
    running: Running,
    /// What waits of it; `None` until there is a piece that others follow.
    waiting: Option<Arc<Waiting>>,
}

/// Bytes of a response that the HTTP library has and the client has not taken. The library would take several pieces
/// ahead, and each client that takes nothing would hold that much memory.
#[derive(Debug, Default)]
struct Waiting {
    bytes: AtomicUsize,
    /// Wakes the response once the client has taken enough.
    taken: AtomicWaker,
}

/// So many bytes of a response may wait when the next piece of it is read.
const AHEAD: usize = 8 * 1024;

impl Waiting {
    fn is_enough(&self) -> bool {
        self.bytes.load(Ordering::Acquire) > AHEAD
    }

    fn take(&self, count: usize) {
        let before = self.bytes.fetch_sub(count, Ordering::AcqRel);
        if before > AHEAD && before - count <= AHEAD {
            self.taken.wake();
        }
    }
}

/// A piece of a response, until it has left.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    pace: Arc<Pace>,
    waiting: Option<Arc<Waiting>>,
}

impl Pace {
    /// Returns the connection's own number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Notes that a request has come.
    pub fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.touch();
        Running(self.clone(), None)
    }

    /// Notes that something happened.
    pub fn touch(&self) {
        let since = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.touched.store(since, Ordering::Relaxed);
    }

    /// Notes that the connection is a tunnel from now on.
    pub fn becomes_tunnel(&self) {
        self.is_tunnel.store(true, Ordering::Relaxed);
        self.touch();
    }

    /// Returns whether the connection is a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.is_tunnel.load(Ordering::Relaxed)
    }

    /// Returns for how long the connection has had no running request; `None`: one is running.
    pub fn idle_for(&self, now: Instant) -> Option<Duration> {
        let is_idle = self.running.load(Ordering::Relaxed) == 0 && self.owed.load(Ordering::Relaxed) == 0;
        is_idle.then(|| self.untouched_for(now))
    }

    /// Returns for how long the client has taken none of the bytes that wait for it; `None`: no bytes wait.
    pub fn stuck_for(&self, now: Instant) -> Option<Duration> {
        (self.owed.load(Ordering::Relaxed) > 0).then(|| self.untouched_for(now))
    }

    fn untouched_for(&self, now: Instant) -> Duration {
        let touched = self.made + Duration::from_millis(self.touched.load(Ordering::Relaxed));
        now.saturating_duration_since(touched)
    }

    /// Tells the connection to end at once: another one needs its place.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Returns whether the connection has to end at once.
    pub fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Waits until the connection has to end at once.
    pub async fn closed(&self) {
        // The sender lives as long as `self`.
        let _ = self.closing.subscribe().wait_for(|is_closing| *is_closing).await;
    }

    fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// Returns whether a request is running.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// Waits until the connection has had no running request for so long.
    pub async fn idles(&self, limit: Duration) {
        loop {
            match self.idle_for(Instant::now()) {
                Some(idle) if idle >= limit => return,
                Some(idle) => tokio::time::sleep(limit - idle).await,
                None => tokio::time::sleep(limit).await,
            }
        }
    }

    /// Waits until the client has taken nothing for so long though bytes wait for it.
    pub async fn stalls(&self, limit: Duration) {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            tokio::time::sleep(limit).await;
            if self.owed.load(Ordering::Relaxed) > 0 && self.moved.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// Waits until nothing is running any more. `is_writing`: whether bytes are still on their way to the socket.
    pub async fn rests(&self, is_writing: impl Fn() -> bool) {
        loop {
            tokio::time::sleep(LINGER).await;
            let is_idle = self.running.load(Ordering::Relaxed) == 0 && self.owed.load(Ordering::Relaxed) == 0;
            if is_idle && !is_writing() {
                return;
            }
        }
    }
}

impl Running {
    /// Keeps the request counted among all requests for as long as the request runs.
    pub fn counted(self, request: Option<Request>) -> Self {
        let mut counted = self;
        counted.1 = request;
        counted
    }

    /// Returns the body of the request's response.
    pub fn answer<B>(self, body: B) -> Paced<B> {
        Paced { body, running: self, waiting: None }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.touch();
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Piece;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, B::Error>>> {
        if let Some(waiting) = self.waiting.as_ref().filter(|waiting| waiting.is_enough()) {
            waiting.taken.register(context.waker());
            // The client may have taken it in between.
            if waiting.is_enough() {
                return Poll::Pending;
            }
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) && self.waiting.is_none() && !self.body.is_end_stream() {
            self.waiting = Some(Arc::default());
        }
        let (pace, waiting) = (&self.running.0, self.waiting.as_ref());
        let piece = |bytes| Piece::new(bytes, pace, waiting);
        polled.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Piece {
    fn new(bytes: Bytes, pace: &Arc<Pace>, waiting: Option<&Arc<Waiting>>) -> Self {
        pace.owed.fetch_add(1, Ordering::Relaxed);
        pace.touch();
        if let Some(waiting) = waiting {
            waiting.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        }
        Self { bytes, pace: pace.clone(), waiting: waiting.cloned() }
    }

    fn taken(&self, count: usize) {
        self.pace.moved();
        self.waiting.iter().for_each(|waiting| waiting.take(count));
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.taken(count);
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        self.taken(count);
        self.bytes.copy_to_bytes(count)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // What has left was noted then.
        if self.bytes.has_remaining() {
            self.taken(self.bytes.remaining());
        }
        self.pace.owed.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const STALLED: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn only_who_could_take_something_and_does_not_stalls() {
        let pace = Arc::<Pace>::default();
        let stalls = async || tokio::time::timeout(LONG, pace.stalls(STALLED)).await.is_ok();
        assert!(!stalls().await, "nobody asked");

        // Content that is not here yet is not the client's fault.
        let coming = stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
        let mut coming = pace.begin().answer(StreamBody::new(coming));
        assert!(coming.frame().now_or_never().is_none());
        assert!(!stalls().await, "we are waited for");

        let mut answer = pace.begin().answer(Full::new(Bytes::from(vec![1; 1000])));
        let mut piece = answer.frame().await.expect("a frame").expect("no error").into_data().expect("data");
        // The HTTP library holds the piece, and has read the response to its end.
        drop(answer);
        let slow = async {
            for _ in 0..50 {
                tokio::time::sleep(STALLED / 2).await;
                piece.advance(10);
            }
        };
        tokio::select! {
            () = pace.stalls(STALLED) => panic!("it takes a little all the time"),
            () = slow => {}
        }
        let begun = Instant::now();
        assert!(stalls().await && begun.elapsed() <= 2 * STALLED, "{:?}", begun.elapsed());
        drop(piece);
        assert!(!stalls().await, "it has all it wanted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_when_the_last_byte_has_left() {
        let pace = Arc::<Pace>::default();
        let rests = async || tokio::time::timeout(LONG, pace.rests(|| false)).await.is_ok();
        assert!(rests().await);
        assert!(tokio::time::timeout(LONG, pace.rests(|| true)).await.is_err());
        let running = pace.begin();
        assert!(!rests().await, "there is no answer yet");
        let mut answer = running.answer(Full::new(Bytes::from_static(b"x")));
        let piece = answer.frame().await.expect("a frame").expect("no error");
        drop(answer);
        assert!(!rests().await, "it has not left yet");
        drop(piece);
        assert!(rests().await);
    }

    #[tokio::test]
    async fn the_next_piece_is_read_once_the_client_has_taken_most_of_the_last_one() {
        let pace = Arc::<Pace>::default();
        let pieces = (0..3).map(|_| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![1; 2 * AHEAD]))));
        let mut answer = pace.begin().answer(StreamBody::new(stream::iter(pieces)));
        let mut first = answer.frame().await.expect("a frame").expect("no error").into_data().expect("data");
        assert!(answer.frame().now_or_never().is_none(), "the library would hold both");
        first.advance(AHEAD - 1);
        assert!(answer.frame().now_or_never().is_none());
        let (second, ()) = tokio::join!(answer.frame(), async { first.advance(1) });
        assert!(second.as_ref().is_some_and(Result::is_ok), "the response is woken");
        // The client has gone.
        drop((first, second));
        assert!(answer.frame().now_or_never().is_some());
    }
}
