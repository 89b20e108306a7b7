//! A scripted upstream registry that behaves like Docker Hub, and misbehaves on demand.
//!
//! ```ignore
//! let hub = Hub::start(Options::docker_hub()).await;
//! let image = Image::new(1);
//! hub.push_image("library/alpine", "3.20", &image);
//! hub.fault(On::storage().times(1), Fault::Short { after: 1000 });
//! // … pull through Larder …
//! assert_eq!(hub.count(|request| request.kind == Kind::Manifest && request.method == "GET"), 1);
//! assert_eq!(hub.bytes_sent(&image.layer_digests()[0]), 20_000);
//! ```
//!
//! It has three listeners: the registry (127.0.0.1), the token service, and the storage that blob redirects point to
//! (127.0.0.2, so that it is another host). All stop when the hub is dropped.

mod faults;
mod habits;
mod lists;
mod options;
pub mod profiles;
mod registry;
mod token;
mod wire;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use self::faults::Injection;
pub use self::faults::{Fault, Gate, Injected, On, Supply};
use self::habits::Habits;
pub use self::options::{HeadHabit, LinkForm, ManifestsAt, Options, PageToken, Paging, RateLimit, Redirect, Refusal};
use self::registry::Content;
pub use self::token::{Auth, EndedToken, SERVICE, TokenField, TokenPlace, TokenService, ToldScope};
use self::token::{Realm, Tokens};
use self::wire::Response;
pub use self::wire::{Kind, Listener, Request};
use super::content::{Image, Index, Manifest, sha256};
use super::eventually;

const STORAGE_HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The scripted registry. Its methods change what it holds and how it behaves at once, also while it serves.
#[derive(Debug)]
pub struct Hub {
    shared: Arc<Shared>,
    listeners: [SocketAddr; 3],
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Hub {
    pub async fn start(options: Options) -> Self {
        let token_host = match &options.auth {
            Auth::Token(TokenService { place: TokenPlace::Address(host), .. }) => *host,
            _ => Ipv4Addr::LOCALHOST,
        };
        let mut sockets = Vec::new();
        for host in [Ipv4Addr::LOCALHOST, token_host, STORAGE_HOST] {
            sockets.push(TcpListener::bind((host, 0)).await.expect("a loopback address has a free port"));
        }
        let addresses: Vec<SocketAddr> =
            sockets.iter().map(|socket| socket.local_addr().expect("a bound socket has an address")).collect();
        let listeners: [SocketAddr; 3] = addresses.try_into().expect("three listeners");
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(options)),
            registry: format!("http://{}", listeners[0]),
            token: format!("http://{}", listeners[1]),
            storage: format!("http://{}", listeners[2]),
            connections: AtomicUsize::new(0),
        });
        let mut hub = Self { shared, listeners, running: Vec::new() };
        hub.run(sockets);
        hub
    }

    /// Closes the listeners and every connection: from now on, connections are refused.
    pub async fn stop(&mut self) {
        for running in self.running.drain(..) {
            let _ = running.stop.send(());
            let _ = running.task.await;
        }
    }

    /// Listens again, at the same addresses.
    pub async fn restart(&mut self) {
        self.stop().await;
        let mut sockets = Vec::new();
        for address in self.listeners {
            let bound = Mutex::new(None);
            // Another socket of this machine may hold the port for a moment.
            eventually("listening again", || async {
                let socket = TcpListener::bind(address).await.ok();
                let listening = socket.is_some();
                *bound.lock().expect("no panic while held") = socket;
                listening
            })
            .await;
            sockets.extend(bound.into_inner().expect("no panic while held"));
        }
        self.run(sockets);
    }

    fn run(&mut self, sockets: Vec<TcpListener>) {
        let kinds = [Listener::Registry, Listener::Token, Listener::Storage];
        for (socket, listener) in sockets.into_iter().zip(kinds) {
            let (stop, stopped) = oneshot::channel();
            let task = tokio::spawn(accept(socket, listener, self.shared.clone(), stopped));
            self.running.push(Running { stop, task });
        }
    }

    /// `http://127.0.0.1:PORT`, for `[[repository."…".upstream]] url`.
    pub fn url(&self) -> String {
        self.shared.registry.clone()
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> SocketAddr {
        self.listeners[0]
    }

    /// `http://IP:PORT` of the token service's own listener.
    pub fn token_url(&self) -> String {
        self.shared.token.clone()
    }

    /// `http://127.0.0.2:PORT` of the blobs' host.
    pub fn storage_url(&self) -> String {
        self.shared.storage.clone()
    }

    /// Changes the options from now on. The token service's address stays.
    pub fn configure(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.state().options);
    }
}

/// What it holds.
impl Hub {
    pub fn push_blob(&self, name: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        self.push_blob_as(name, &digest, bytes);
        digest
    }

    /// Holds bytes under a digest of the test's choice: sha512, or a wrong one.
    pub fn push_blob_as(&self, name: &str, digest: &str, bytes: impl Into<Bytes>) {
        self.state().content.repository(name).blobs.insert(digest.to_owned(), bytes.into());
    }

    /// Returns the digest.
    pub fn push_manifest(&self, name: &str, tag: Option<&str>, manifest: &Manifest) -> String {
        let mut state = self.state();
        let repository = state.content.repository(name);
        repository.manifests.insert(manifest.digest.clone(), manifest.clone());
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), manifest.digest.clone());
        }
        manifest.digest.clone()
    }

    /// Pushes the blobs and the manifest; a tag that exists moves.
    pub fn push_image(&self, name: &str, tag: &str, image: &Image) -> String {
        let digest = self.push_untagged(name, image);
        self.tag(name, tag, &digest);
        digest
    }

    /// Pushes the blobs and the manifest, without a tag: referrers, images of an index.
    pub fn push_untagged(&self, name: &str, image: &Image) -> String {
        for bytes in image.blobs() {
            self.push_blob(name, bytes);
        }
        self.push_manifest(name, None, &image.manifest)
    }

    /// Pushes the index under the tag, and its images.
    pub fn push_index(&self, name: &str, tag: &str, index: &Index) -> String {
        for image in &index.images {
            self.push_untagged(name, image);
        }
        self.push_manifest(name, Some(tag), &index.manifest)
    }

    /// Points a tag to a digest.
    pub fn tag(&self, name: &str, tag: &str, digest: &str) {
        self.state().content.repository(name).tags.insert(tag.to_owned(), digest.to_owned());
    }

    pub fn delete_tag(&self, name: &str, tag: &str) {
        self.state().content.repository(name).tags.remove(tag);
    }

    pub fn delete_manifest(&self, name: &str, digest: &str) {
        self.state().content.repository(name).manifests.remove(digest);
    }

    pub fn delete_blob(&self, name: &str, digest: &str) {
        self.state().content.repository(name).blobs.remove(digest);
    }

    /// Ends the time of every token handed out so far.
    pub fn expire_tokens(&self) {
        self.state().tokens.end_all();
    }

    /// Takes back every token handed out so far, before its time.
    pub fn revoke_tokens(&self) {
        self.state().tokens.revoke_all();
    }

    /// How many tokens were handed out so far.
    pub fn tokens_given(&self) -> usize {
        self.state().tokens.issued
    }

    /// Makes every blob redirect handed out so far answer 403.
    pub fn expire_redirects(&self) {
        self.state().content.expire_signatures();
    }

    /// Gives the whole quota of the rate limit back.
    pub fn reset_quota(&self) {
        self.state().content.pulls.clear();
    }
}

/// What goes wrong.
impl Hub {
    /// From now on, the fault strikes these requests. Several faults may strike one request, in the order of adding.
    pub fn fault(&self, on: On, fault: Fault) -> Injected {
        let injection = Arc::new(Injection::new(on, fault));
        self.state().faults.push(injection.clone());
        Injected(injection)
    }

    /// Stops the bodies of these requests at this offset of the object.
    pub fn gate(&self, on: On, first_bytes: u64) -> Gate {
        let gate = Gate::new(first_bytes);
        self.fault(on, Fault::Gate(gate.clone()));
        gate
    }

    /// Holds the whole answers to these requests, head included, until `open`.
    pub fn hold(&self, on: On) -> Gate {
        let gate = Gate::new(0);
        self.fault(on, Fault::Hold(gate.clone()));
        gate
    }

    /// From now on the bodies of these requests get what the test gives, nothing at first.
    pub fn supply(&self, on: On) -> Supply {
        let supply = Supply::new();
        self.fault(on, Fault::Supply(supply.clone()));
        supply
    }

    /// Ends all faults, for requests to come.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }
}

/// What it saw.
impl Hub {
    /// Every request on every listener, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// The requests so far; the log and the counts start again from zero.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    pub fn count(&self, condition: impl Fn(&Request) -> bool) -> usize {
        self.state().requests.iter().filter(|request| condition(request)).count()
    }

    /// `count` by the words of faults: `hub.count_on(On::blob().get().reference(&digest))`.
    pub fn count_on(&self, on: On) -> usize {
        self.count(|request| on.matches(request))
    }

    /// One line for each request, for messages of assertions.
    pub fn summary(&self) -> String {
        let line = |request: &Request| {
            let range = request.header("range").map(|range| format!(" [{range}]")).unwrap_or_default();
            format!("{:?} {} {}{range}\n", request.listener, request.method, request.path)
        };
        self.state().requests.iter().map(line).collect()
    }

    /// Body bytes of this blob or manifest that the kernel took, over all answers. After an abort that is more than the
    /// client read, by what the socket buffers hold (a few MiB); at a gate it is exact.
    pub fn bytes_sent(&self, digest: &str) -> u64 {
        self.state().bytes_sent.get(digest).copied().unwrap_or(0)
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        for running in &self.running {
            running.task.abort();
        }
    }
}

/// What the hub and its connections share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    registry: String,
    token: String,
    storage: String,
    connections: AtomicUsize,
}

#[derive(Debug)]
struct State {
    options: Options,
    content: Content,
    tokens: Tokens,
    habits: Habits,
    faults: Vec<Arc<Injection>>,
    requests: Vec<Request>,
    bytes_sent: HashMap<String, u64>,
}

impl State {
    fn new(options: Options) -> Self {
        let (content, tokens, habits) = (Content::default(), Tokens::default(), Habits::default());
        Self { options, content, tokens, habits, faults: Vec::new(), requests: Vec::new(), bytes_sent: HashMap::new() }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the state is held")
    }

    /// Records the request and decides on the answer.
    fn answer(&self, request: Request) -> Response {
        let mut state = self.state();
        let State { options, content, tokens, habits, faults, requests, .. } = &mut *state;
        requests.push(request.clone());

        let is_registry = !matches!(request.kind, Kind::Token | Kind::Storage);
        let realm = Realm::of(options, &self.registry, &self.token);
        let refused = if is_registry { tokens.check(&request, options, &realm) } else { None };
        let struck: Vec<_> = faults.iter().filter(|fault| fault.strikes(&request, refused.is_none())).collect();
        let is_admitted = refused.is_none();
        let ranges = !struck.iter().any(|injection| matches!(injection.fault, Fault::NoAcceptRanges));

        let mut response = match (refused, request.kind) {
            (Some(refused), _) => refused,
            (None, Kind::Token) => tokens.answer(&request, options),
            (None, Kind::Storage) => content.storage(&request, options.redirect == Redirect::Absolute, ranges),
            (None, _) if !matches!(request.method.as_str(), "GET" | "HEAD") => {
                Response::error(405, "UNSUPPORTED", "this registry is for reading")
            }
            (None, Kind::Manifest) => {
                let user = tokens.user(&request, options);
                content.manifest(&request, &user, options, &self.storage)
            }
            (None, Kind::Blob) => {
                let storage = match options.redirect {
                    Redirect::None => None,
                    Redirect::Absolute => Some(self.storage.as_str()),
                    Redirect::Relative => Some(""),
                };
                content.blob(&request, storage, ranges, options)
            }
            (None, Kind::Tags) => content.tags(&request, options, &self.registry),
            (None, Kind::Referrers) => content.referrers(&request, options, &self.registry),
            (None, Kind::Other) if matches!(request.path.as_str(), "/v2/" | "/v2") => {
                Response::json(200, &serde_json::json!({}))
            }
            (None, Kind::Other) => Response::error(404, "UNSUPPORTED", "404 page not found"),
        };
        if is_registry {
            response = response.header("docker-distribution-api-version", "registry/2.0");
        }
        if is_admitted {
            habits.apply(&request, &mut response, options, &realm);
        }
        for injection in struck {
            injection.fault.apply(&request, &mut response);
        }
        response
    }

    fn count_bytes(&self, digest: Option<&str>, bytes: i64) {
        if let Some(digest) = digest {
            let mut state = self.state();
            let sent = state.bytes_sent.entry(digest.to_owned()).or_default();
            *sent = sent.saturating_add_signed(bytes);
        }
    }

    /// Counts a connection for as long as the answer lives.
    fn count_connection(self: &Arc<Self>) -> OpenConnection {
        self.connections.fetch_add(1, Ordering::SeqCst);
        OpenConnection(self.clone())
    }
}

struct OpenConnection(Arc<Shared>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Accepts until told to stop, or dropped; its connections end with it.
async fn accept(socket: TcpListener, listener: Listener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(wire::serve(stream, listener, shared.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
            _ = &mut stopped => break,
        }
    }
    drop(socket);
    connections.shutdown().await;
}
