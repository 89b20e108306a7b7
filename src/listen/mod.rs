//! The doors: sockets, limits and draining.

mod announced;
mod connection;
mod crowd;
mod guard;
mod pace;
mod places;
mod proxy;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::auth::Client;
use crate::body::Body;
use crate::ca::Ca;
use crate::observe::Metrics;
use crate::proxy::Proxy;
use crate::registry::Registry;
use crate::sent::Sent;
use crate::sockets;
pub use connection::Times;
use connection::{Ends, Held, Peer, connection};
pub use crowd::Crowd;
use guard::Socket;
use pace::Pace;
pub use places::Places;
use proxy::Way;
use tls::Handshakes;
pub use tls::{Tls, TlsError};

/// Most connections of proxies that have not announced their clients yet.
const MOST_UNANNOUNCED: usize = 1024;
/// Pause after the system could not give a socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a door could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{table}.listen: cannot listen on {address}: {source}{}", sockets::remedy(source))]
pub struct BindError {
    /// The table of the configuration.
    table: &'static str,
    address: SocketAddr,
    source: std::io::Error,
}

/// Opens all addresses of a door, and logs them.
pub fn bind(door: &'static str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BindError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let table = if door == "registry" { "server" } else { door };
        let fail = |source| BindError { table, address, source };
        let listener = sockets::listen(address, addresses).map_err(fail)?;
        let bound = listener.local_addr().map_err(fail)?;
        tracing::info!(door, address = %bound, "listening");
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Takes listening sockets that somebody else opened for a door, and logs their addresses.
pub fn adopt(door: &'static str, sockets: Vec<std::net::TcpListener>) -> std::io::Result<Vec<TcpListener>> {
    let adopt = |socket| {
        let listener = TcpListener::from_std(socket)?;
        tracing::info!(door, address = %listener.local_addr()?, "listening");
        Ok(listener)
    };
    sockets.into_iter().map(adopt).collect()
}

/// The services behind a listener.
#[derive(Clone)]
pub enum Door {
    Registry(RegistryDoor),
    Proxy(Arc<Proxy>, Arc<Ca>),
    Admin(Handler),
    /// Other replicas.
    Replicas(Handler, Tls),
}

/// The registry with what its door needs.
#[derive(Clone)]
pub struct RegistryDoor {
    pub registry: Arc<Registry>,
    pub tls: Tls,
    /// Whether trusted proxies announce their clients by the PROXY protocol.
    pub is_announced: bool,
}

/// Answers a request of the client at an address.
pub type Handler = Arc<dyn Fn(Request<Sent>, SocketAddr) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// How long requests at the admin door may go on after a request to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Serves a door until `stop` states how long running requests may still take.
pub async fn serve(
    listener: TcpListener,
    door: Door,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    crowd: Arc<Crowd>,
    times: Times,
    mut stop: watch::Receiver<Option<Duration>>,
) {
    let unannounced = Arc::new(Semaphore::new(MOST_UNANNOUNCED));
    // Each connection holds a sender. When all senders are dropped, there is nothing left to wait for.
    let (open_connection, mut all_closed) = mpsc::channel::<()>(1);
    let grace = loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            grace = stop.wait_for(Option::is_some) => break grace.ok().and_then(|grace| *grace).unwrap_or_default(),
        };
        match accepted {
            Ok((stream, address)) => {
                let served = Served {
                    door: door.clone(),
                    metrics: metrics.clone(),
                    places: places.clone(),
                    crowd: crowd.clone(),
                    times,
                    stop: stop.clone(),
                    held: open_connection.clone(),
                };
                match served.announces(address.ip()) {
                    true => served.hear_announcement(stream, address, &unannounced),
                    false => served.admit(stream, Came::directly(address)),
                }
            }
            Err(error) => {
                // Most likely no descriptors are free, and an idle connection has one.
                let is_relieved = places.relieve();
                tracing::warn!(%error, is_relieved, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    drop((listener, open_connection));
    let grace = if matches!(door, Door::Admin(_)) { grace.min(LAST_ANSWERS) } else { grace };
    if tokio::time::timeout(grace, all_closed.recv()).await.is_err() {
        tracing::warn!("some transfers did not end within server.shutdown_grace and were cut off");
    }
}

/// Everything that an accepted connection needs.
struct Served {
    door: Door,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    crowd: Arc<Crowd>,
    times: Times,
    stop: watch::Receiver<Option<Duration>>,
    held: mpsc::Sender<()>,
}

/// Where a connection comes from.
#[derive(Clone, Copy)]
struct Came {
    from: SocketAddr,
    /// Whether a proxy announced the address.
    is_announced: bool,
}

impl Came {
    fn directly(from: SocketAddr) -> Self {
        Self { from, is_announced: false }
    }
}

impl Served {
    /// Returns whether a connection from this address begins with the announcement of its client.
    fn announces(&self, address: IpAddr) -> bool {
        matches!(&self.door, Door::Registry(door) if door.is_announced && door.registry.trusts_proxy(address))
    }

    /// Serves a connection once its proxy has announced whom it is for.
    fn hear_announcement(self, mut stream: TcpStream, proxy: SocketAddr, unannounced: &Arc<Semaphore>) {
        let Ok(place) = unannounced.clone().try_acquire_owned() else {
            return tracing::warn!(%proxy, "very many connections of proxies have not announced their clients");
        };
        tokio::spawn(async move {
            let announced = announced::read(&mut stream).await;
            drop(place);
            match announced {
                Ok(Some(from)) => self.admit(stream, Came { from, is_announced: true }),
                Ok(None) => self.admit(stream, Came::directly(proxy)),
                // Proxies that only look whether somebody listens send nothing.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
                Err(error) => {
                    tracing::warn!(%proxy, %error, "a connection was closed; server.proxy_protocol is on for its address");
                }
            }
        });
    }

    /// Serves a connection as soon as its address may have another one.
    fn admit(self, stream: TcpStream, came: Came) {
        if self.places.admits(came.from.ip()) {
            return self.open(stream, came);
        }
        // The last places are for other addresses.
        let waiting = self.places.wait();
        tokio::spawn(async move {
            if waiting.until_admitted(came.from.ip()).await {
                self.open(stream, came);
            } else {
                tracing::debug!(client = %came.from, "this address has many connections, and few more may be open");
            }
        });
    }

    /// Serves a connection in a task of its own.
    fn open(self, stream: TcpStream, came: Came) {
        let Self { door, metrics, places, crowd, times, stop, held } = self;
        let address = came.from;
        let Some(counted) = crowd.enter(address.ip()) else {
            return tracing::debug!(client = %address, "too many connections from this address");
        };
        // Responses are written whole; waiting for more would only delay their last segment.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let pace = Arc::<Pace>::default();
        let load = counted.load();
        let held: Held = Arc::new((places.enter(address.ip(), pace.clone()), counted, held));
        let peer = Peer { address, pace, load, times };
        match door {
            Door::Registry(RegistryDoor { registry, tls, .. }) => {
                let ends = Ends { stop, renewed: Some(tls.renewed()) };
                let tls = tls.handshakes();
                // What a proxy carries does not come from this machine.
                let local = if came.is_announced { None } else { local_address(&stream) };
                tokio::spawn(async move {
                    let client = Client { local, ..Client::connected(address) };
                    open(stream, client, peer, tls, (registry, metrics), ends).await;
                    drop(held);
                });
            }
            Door::Admin(handler) => {
                let ends = Ends { stop, renewed: None };
                tokio::spawn(async move {
                    let answer = move |request| handler(request, address);
                    let builder = Builder::new(TokioExecutor::new()).http1_only();
                    connection(stream, peer, builder, metrics, answer, ends).await;
                    drop(held);
                });
            }
            Door::Replicas(handler, tls) => {
                let ends = Ends { stop, renewed: Some(tls.renewed()) };
                let tls = tls.handshakes();
                tokio::spawn(async move {
                    replica(stream, peer, tls, (handler, metrics), ends).await;
                    drop(held);
                });
            }
            Door::Proxy(behind, ca) => {
                let ends = Ends { stop, renewed: None };
                tokio::spawn(proxy::open(stream, Arc::new(Way { proxy: behind, metrics, ca, peer, ends, held })));
            }
        }
    }
}

async fn accept(listener: &TcpListener, places: &Places) -> std::io::Result<(TcpStream, SocketAddr)> {
    let accepted = listener.accept().await?;
    places.wait_for_room().await;
    Ok(accepted)
}

/// Does the TLS handshake if the door uses TLS, and serves one connection to its end.
async fn open(
    stream: TcpStream,
    client: Client,
    peer: Peer,
    tls: Option<Arc<Handshakes>>,
    behind: (Arc<Registry>, Arc<Metrics>),
    mut ends: Ends,
) {
    let address = peer.address;
    let Some(handshakes) = tls else {
        return registry(stream, client, peer, behind, ends).await;
    };
    let shaken = tokio::select! {
        // In a box, whose memory is free again for the rest of the connection.
        shaken = Box::pin(handshakes.shake(stream)) => shaken,
        () = ends.come() => return,
        () = peer.pace.closed() => return,
    };
    match shaken {
        Ok(None) => tracing::debug!(client = %address, "an ACME server looked at a proof"),
        Ok(Some(stream)) => {
            let certificate = tls::names(&stream);
            let client = Client { is_secure: true, certificate, ..client };
            registry(stream, client, peer, behind, ends).await;
        }
        Err(error) => tracing::debug!(client = %address, %error, "a TLS handshake failed"),
    }
}

/// Does the TLS handshake if replicas use TLS, and serves one connection of another replica to its end.
async fn replica(
    stream: TcpStream,
    peer: Peer,
    tls: Option<Arc<Handshakes>>,
    (handler, metrics): (Handler, Arc<Metrics>),
    mut ends: Ends,
) {
    let address = peer.address;
    let answer = move |request| handler(request, address);
    let builder = Builder::new(TokioExecutor::new()).http1_only();
    let Some(handshakes) = tls else {
        return connection(stream, peer, builder, metrics, answer, ends).await;
    };
    let shaken = tokio::select! {
        shaken = Box::pin(handshakes.shake(stream)) => shaken,
        () = ends.come() => return,
    };
    match shaken {
        Ok(Some(stream)) => connection(stream, peer, builder, metrics, answer, ends).await,
        Ok(None) => {}
        Err(error) => tracing::warn!(%address, %error, "a TLS handshake at cluster.listen failed"),
    }
}

fn local_address(stream: &TcpStream) -> Option<IpAddr> {
    stream.local_addr().ok().map(|address| address.ip().to_canonical())
}

/// Serves one connection of the registry door to its end.
fn registry(
    stream: impl Socket + Send + 'static,
    client: Client,
    peer: Peer,
    (behind, metrics): (Arc<Registry>, Arc<Metrics>),
    ends: Ends,
) -> impl Future<Output = ()> {
    let answer = move |request: Request<Sent>| {
        let (registry, client) = (behind.clone(), client.clone());
        // In a box, which the HTTP library moves around instead of all that the answer needs.
        async move { registry.handle(request, client).await }.boxed()
    };
    connection(stream, peer, Builder::new(TokioExecutor::new()), metrics, answer, ends)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::connection::PING;
    use super::guard::HEAD;
    use super::*;
    use crate::services::Services;

    const IDLE: Duration = Duration::from_secs(600);
    const STALL: Duration = Duration::from_secs(120);
    const LONG: Duration = Duration::from_secs(2000);

    /// Values that live as long as a connection.
    struct Kept {
        _dir: TempDir,
        stopping: watch::Sender<Option<Duration>>,
        renewing: watch::Sender<()>,
    }

    /// Connects to a door.
    fn connect() -> (DuplexStream, Kept) {
        let dir = TempDir::new().expect("a directory");
        let services = Services::in_directory(dir.path());
        let ((stopping, stop), (renewing, renewed)) = (watch::channel(None), watch::channel(()));
        let (client, server) = tokio::io::duplex(64 * 1024);
        let who = Client::connected((Ipv4Addr::LOCALHOST, 1).into());
        let peer = Peer {
            address: who.peer,
            pace: Arc::default(),
            load: Crowd::new(None).enter(who.peer.ip()).expect("a place").load(),
            times: Times { idle: IDLE, stall: STALL },
        };
        let behind = (services.registry.clone(), services.metrics.clone());
        tokio::spawn(registry(server, who, peer, behind, Ends { stop, renewed: Some(renewed) }));
        (client, Kept { _dir: dir, stopping, renewing })
    }

    /// Returns how long the door stays open for a client that does nothing more.
    async fn ends_after(client: &mut (impl AsyncReadExt + Unpin)) -> Duration {
        let begun = Instant::now();
        let mut rest = Vec::new();
        tokio::time::timeout(LONG, client.read_to_end(&mut rest)).await.expect("it ends").expect("no error");
        begun.elapsed()
    }

    /// Sends a head that never ends, a byte at a time. Returns how long it is waited for.
    async fn drips(client: &mut DuplexStream) -> Duration {
        let begun = Instant::now();
        client.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nx: ").await.expect("sent");
        while begun.elapsed() < LONG && client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_is_not_waited_for() {
        let (mut client, _kept) = connect();
        let waited = drips(&mut client).await;
        assert!(waited <= 2 * HEAD, "{waited:?}");
    }

    /// Sends a request and reads its whole answer.
    async fn ask(client: &mut DuplexStream) {
        client.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"{}") {
            answer.push(client.read_u8().await.expect("an answer"));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    }

    /// Balancers keep connections for up to ten minutes, and send requests over them that must not meet a closed one
    /// (fleet#51461).
    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_open_for_the_idle_timeout_and_then_ends() {
        let (mut client, _kept) = connect();
        for _ in 0..3 {
            ask(&mut client).await;
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        }
        ask(&mut client).await;
        let idle = ends_after(&mut client).await;
        assert!(IDLE <= idle && idle <= IDLE + Duration::from_secs(5), "{idle:?}");

        // An HTTP/2 connection that does not even answer pings.
        let (mut client, _kept) = connect();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
        assert!(ends_after(&mut client).await <= 3 * PING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_further_head_that_drips_is_not_waited_for_either() {
        let (mut client, _kept) = connect();
        ask(&mut client).await;
        tokio::time::sleep(IDLE / 2).await;
        let waited = drips(&mut client).await;
        assert!(waited <= 2 * HEAD, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_keeps_its_window_shut_and_answers_pings_is_not_waited_for() {
        let (mut client, _kept) = connect();
        let begun = Instant::now();
        // SETTINGS_INITIAL_WINDOW_SIZE is 0; then a GET of /v2/ (RFC 9113, RFC 7541).
        let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
        let request = b"\0\0\x0b\x01\x05\0\0\0\x01\x82\x86\x04\x04/v2/\x01\x01x";
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
        client.write_all(&[&settings[..], request].concat()).await.expect("sent");
        let mut has_answer = false;
        let mut head = [0; 9];
        while client.read_exact(&mut head).await.is_ok() {
            assert!(begun.elapsed() < LONG, "it is waited for");
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            client.read_exact(&mut payload).await.expect("the rest of a frame");
            has_answer |= head[3] == 1;
            let is_ping = head[3] == 6 && head[4] == 0;
            let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat();
            if is_ping && client.write_all(&pong).await.is_err() {
                break;
            }
        }
        assert!(has_answer && begun.elapsed() > PING, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_door_that_closes_does_not_wait_for_who_says_nothing() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        for begun in [&b""[..], b"G", b"GET /v2/ HTTP/1.1\r\nhost: ", preface] {
            let (mut client, kept) = connect();
            client.write_all(begun).await.expect("sent");
            // When there is nothing else to do, the door has read the bytes.
            tokio::time::sleep(Duration::from_millis(1)).await;
            kept.stopping.send_replace(Some(LONG));
            assert!(ends_after(&mut client).await <= Duration::from_secs(2), "{}", String::from_utf8_lossy(begun));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_end_when_the_door_is_renewed_or_closed() {
        for is_stopped in [false, true] {
            let (mut client, kept) = connect();
            client.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
            let mut answer = [0; 12];
            client.read_exact(&mut answer).await.expect("an answer");
            match is_stopped {
                true => drop(kept.stopping.send_replace(Some(LONG))),
                false => kept.renewing.send_replace(()),
            }
            assert_eq!(ends_after(&mut client).await, Duration::ZERO, "{is_stopped}");
        }
    }
}
