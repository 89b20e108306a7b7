//! A relay that makes a connection over loopback as slow as one over a long line.
//!
//! - The handshake of TCP takes a round trip: what a client sends sooner leaves when the handshake would be over.
//! - Each byte is under way for half a round trip.
//! - Towards the client, a connection has slow start: ten segments at first (RFC 6928), twice as many each round trip
//!   (RFC 5681), up to the rate of the line; after an idle time the window shrinks by half for each timeout of
//!   retransmission (RFC 2861, as Linux does by default).
//! - Where the rate is that of each connection, connections do not compete, and nothing is lost.
//! - Where all connections share the rate, what they send waits in one queue. A queue as long as the line is full: the
//!   window of a connection whose bytes find it so shrinks to seven tenths, at most once in a round trip, and grows
//!   again as CUBIC does (RFC 9438). What is lost is not sent again.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

/// The first window, in bytes: ten segments.
const FIRST_WINDOW: f64 = 14_600.0;
/// Most bytes that travel as one piece.
const PIECE: usize = 16 * 1024;
/// Pieces under way in one direction; the window towards the client bounds them before this does.
const PIECES: usize = 4_096;
/// The least timeout of retransmission.
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);

/// A segment, in bytes.
const SEGMENT: f64 = 1_460.0;
/// What is left of a window when something was lost.
const BETA: f64 = 0.7;

/// Returns the window, in bytes, so long after something was lost in one of `size` bytes (RFC 9438, section 4.2).
fn cubic(size: f64, since: Duration) -> f64 {
    let most = size / SEGMENT;
    let back = (most * (1.0 - BETA) / 0.4).cbrt();
    (0.4 * (since.as_secs_f64() - back).powi(3) + most) * SEGMENT
}

/// What a line is like.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub round_trip: Duration,
    /// Bytes per second of one connection, or of all together.
    pub rate: f64,
    pub is_shared: bool,
}

/// When all that was sent so far has left, towards the clients: of one connection, or of all that share a line.
#[derive(Clone)]
pub struct Queue(Arc<Mutex<Instant>>);

impl Queue {
    /// Makes an empty queue.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Puts bytes into the queue. Returns when they have left, and how long they wait before that.
    fn put(&self, bytes: usize, rate: f64) -> (Instant, Duration) {
        let (mut free_at, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let begins = (*free_at).max(now);
        *free_at = begins + Duration::from_secs_f64(bytes as f64 / rate);
        (*free_at, begins - now)
    }
}

/// Listens on a port of `host` and carries each connection to `to`, as `line` says. `shared`: the queue of all
/// connections, where they share the line. Returns where it listens.
pub async fn start(
    (line, shared): (Line, Option<Queue>),
    host: IpAddr,
    to: SocketAddr,
    connections: Arc<AtomicU64>,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((host, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::Relaxed);
            let queue = shared.clone().unwrap_or_else(Queue::new);
            tokio::spawn(async move {
                // A connection that breaks is over: whoever holds its other end sees that.
                let _ = carry(line, queue, client, to).await;
            });
        }
    });
    Ok(address)
}

async fn carry(line: Line, queue: Queue, client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let established = Instant::now() + line.round_trip;
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let window = Arc::new(Window::new(line));
    let down = async {
        let (pieces, coming) = mpsc::channel(PIECES);
        let (acked, acks) = mpsc::unbounded_channel();
        tokio::try_join!(
            send(line, &queue, from_server, &window, pieces),
            deliver(to_client, coming, |bytes| {
                let _ = acked.send((Instant::now() + line.round_trip / 2, bytes));
            }),
            acknowledge(&window, acks),
        )
    };
    let up = async {
        let (pieces, coming) = mpsc::channel(PIECES);
        tokio::try_join!(ask(line, from_client, established, pieces), deliver(to_server, coming, |_| {}))
    };
    // What the server has sent arrives also after the client has stopped to send.
    tokio::select! {
        ended = down => ended.map(drop),
        Err(broken) = up => Err(broken),
    }
}

type Piece = (Instant, Bytes);

/// Reads what the client sends.
async fn ask(line: Line, mut from: OwnedReadHalf, established: Instant, pieces: mpsc::Sender<Piece>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let arrives = Instant::now().max(established) + line.round_trip / 2;
        if pieces.send((arrives, Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
            return Ok(());
        }
    }
}

/// Reads what the server sends, as far as the window allows.
async fn send(
    line: Line,
    queue: &Queue,
    mut from: OwnedReadHalf,
    window: &Window,
    pieces: mpsc::Sender<Piece>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let open = window.opens().await;
        let length = from.read(&mut buffer[..open.min(PIECE)]).await?;
        if length == 0 {
            return Ok(());
        }
        window.sent(length);
        let (left_at, waited) = queue.put(length, line.rate);
        if line.is_shared && waited > line.round_trip {
            window.lost(line.round_trip);
        }
        let piece = (left_at + line.round_trip / 2, Bytes::copy_from_slice(&buffer[..length]));
        if pieces.send(piece).await.is_err() {
            return Ok(());
        }
    }
}

async fn deliver(
    mut to: OwnedWriteHalf,
    mut pieces: mpsc::Receiver<Piece>,
    delivered: impl Fn(usize),
) -> io::Result<()> {
    while let Some((arrives, piece)) = pieces.recv().await {
        sleep_until(arrives).await;
        to.write_all(&piece).await?;
        delivered(piece.len());
    }
    to.shutdown().await
}

async fn acknowledge(window: &Window, mut acks: mpsc::UnboundedReceiver<(Instant, usize)>) -> io::Result<()> {
    while let Some((arrives, bytes)) = acks.recv().await {
        sleep_until(arrives).await;
        window.acknowledged(bytes);
    }
    Ok(())
}

/// The congestion window of a connection.
struct Window {
    state: Mutex<State>,
    changed: Notify,
    most: f64,
    timeout: Duration,
}

struct State {
    size: f64,
    under_way: f64,
    last_sent: Instant,
    /// When something was lost last, and how large the window was then.
    lost: Option<(Instant, f64)>,
}

impl Window {
    fn new(line: Line) -> Self {
        let whole = line.rate * line.round_trip.as_secs_f64();
        Self {
            state: Mutex::new(State { size: FIRST_WINDOW, under_way: 0.0, last_sent: Instant::now(), lost: None }),
            changed: Notify::new(),
            // Somewhat more than the line holds, so that the rate is the limit.
            most: (whole * 1.25).max(FIRST_WINDOW),
            timeout: line.round_trip.max(LEAST_TIMEOUT / 2) + LEAST_TIMEOUT,
        }
    }

    /// Waits until something may be sent, and returns how much.
    async fn opens(&self) -> usize {
        loop {
            let changed = self.changed.notified();
            let open = {
                let state = self.state();
                state.size - state.under_way
            };
            if open >= 1.0 {
                return open as usize;
            }
            changed.await;
        }
    }

    fn sent(&self, bytes: usize) {
        let mut state = self.state();
        let mut idle = state.last_sent.elapsed();
        while state.under_way == 0.0 && idle > self.timeout && state.size > FIRST_WINDOW {
            state.size = (state.size / 2.0).max(FIRST_WINDOW);
            idle -= self.timeout;
        }
        state.last_sent = Instant::now();
        state.under_way += bytes as f64;
    }

    fn acknowledged(&self, bytes: usize) {
        let mut state = self.state();
        // A window that is not used does not grow.
        if state.under_way * 2.0 >= state.size {
            let grown = state.size + bytes as f64;
            let most = state.lost.map_or(self.most, |(since, size)| cubic(size, since.elapsed()).min(self.most));
            state.size = grown.min(most).max(state.size);
        }
        state.under_way -= bytes as f64;
        drop(state);
        self.changed.notify_one();
    }

    /// Shrinks, unless it did within this round trip.
    fn lost(&self, round_trip: Duration) {
        let mut state = self.state();
        if state.lost.is_none_or(|(since, _)| since.elapsed() > round_trip) {
            state.lost = Some((Instant::now(), state.size));
            state.size = (state.size * BETA).max(FIRST_WINDOW);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
