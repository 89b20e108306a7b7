//! What can go wrong at the hub: which requests it strikes (`On`), what happens (`Fault`), and how a test holds time in
//! its hand (`Gate`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::watch;

use super::wire::{Kind, Request, Response};
use crate::support::DEADLINE;
use crate::support::content::sha256;

/// What happens to a request that is struck. Faults of the body alone (`WrongBytes`, `Short`, `Throttle`, `Gate`,
/// `Supply`) never strike a HEAD.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Another answer than the right one: status, headers, body. See [`Fault::status`] and [`Fault::reply`].
    Status(u16, Vec<(String, String)>, String),
    /// The request is read and never answered.
    Hang,
    /// The connection is closed instead of an answer.
    Drop,
    /// The length is right, one byte in the middle is not.
    WrongBytes,
    /// The head promises the whole body, and the connection ends after so many bytes of it.
    Short { after: usize },
    /// The body is sent chunked.
    NoContentLength,
    /// One header has another value.
    OtherValue(String, String),
    /// No `Docker-Content-Digest` and no `ETag`.
    NoDigestHeader,
    /// `Range` is ignored: 200 with everything.
    NoAcceptRanges,
    /// 200 with a login page, as captive portals and proxies send it.
    HtmlInstead,
    /// A further header, whatever else the answer is.
    Header(String, String),
    /// `Content-Encoding: gzip`, unless the client asked for `identity`.
    Gzip,
    /// `Content-Encoding: gzip`, even if the client asked for `identity`.
    GzipAlways,
    /// 405 for HEAD; other methods are not struck.
    HeadRefused,
    /// The body is padded with spaces to this size (still valid JSON), with the digest that belongs to it.
    HugeManifest { size: usize },
    /// This long before the head of the answer.
    Delay(Duration),
    /// The body at this speed, in pieces of `chunk` bytes.
    Throttle { bytes_per_second: u64, chunk: usize },
    /// The body waits at a gate; made by `Hub::gate`.
    Gate(Gate),
    /// The whole answer waits for a gate to open; made by `Hub::hold`.
    Hold(Gate),
    /// All bodies together get no more than the test gives; made by `Hub::supply`.
    Supply(Supply),
}

impl Fault {
    /// An error status with a body like a real registry's.
    pub fn status(code: u16) -> Self {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"scripted failure"}]}"#;
        Self::reply(code, &[("content-type", "application/json")], body)
    }

    /// Any status, headers and body.
    pub fn reply(code: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Self::Status(code, headers, body.to_owned())
    }

    /// Another value of one header.
    pub fn header(name: &str, value: &str) -> Self {
        Self::OtherValue(name.to_owned(), value.to_owned())
    }

    /// Whether the request's method lets it show: a fault of the body must not be used up by a HEAD.
    fn concerns(&self, request: &Request) -> bool {
        match self {
            Self::HeadRefused => request.method == "HEAD",
            Self::WrongBytes | Self::Short { .. } | Self::Throttle { .. } | Self::Gate(_) | Self::Supply(_) => {
                request.method != "HEAD"
            }
            _ => true,
        }
    }

    /// Changes the answer that would have been given.
    pub(super) fn apply(&self, request: &Request, response: &mut Response) {
        match self {
            Self::Status(code, headers, body) => {
                let mut reply = Response::new(*code);
                reply.headers.clone_from(headers);
                reply.body = body.clone().into();
                response.replace(reply);
            }
            Self::Hang => response.delivery.never = true,
            Self::Drop => response.delivery.drop = true,
            Self::WrongBytes => response.body = flip_a_byte(&response.body),
            Self::Short { after } => response.delivery.cut_after = Some(*after),
            Self::NoContentLength => response.delivery.chunked = true,
            Self::OtherValue(name, value) => {
                response.remove_header(name);
                response.headers.push((name.clone(), value.clone()));
            }
            Self::NoDigestHeader => {
                response.remove_header("docker-content-digest");
                response.remove_header("etag");
            }
            Self::NoAcceptRanges => response.remove_header("accept-ranges"),
            Self::HtmlInstead => {
                response.replace(Response::new(200).body("text/html", "<!doctype html><title>Log in</title>"));
            }
            Self::Gzip if request.header("accept-encoding").is_some_and(|value| value.contains("identity")) => {}
            Self::Gzip | Self::GzipAlways => {
                response.body = gzip(&response.body);
                response.headers.push(("content-encoding".to_owned(), "gzip".to_owned()));
            }
            Self::Header(name, value) => response.headers.push((name.clone(), value.clone())),
            Self::HeadRefused => {
                response.replace(Response::error(405, "UNSUPPORTED", "HEAD is not allowed").header("allow", "GET"));
            }
            Self::HugeManifest { size } => {
                let mut body = response.body.to_vec();
                body.resize((*size).max(body.len()), b' ');
                response.remove_header("docker-content-digest");
                response.remove_header("etag");
                response.headers.push(("docker-content-digest".to_owned(), sha256(&body)));
                response.body = body.into();
            }
            Self::Delay(delay) => response.delivery.delay = *delay,
            Self::Throttle { bytes_per_second, chunk } => {
                response.delivery.bytes_per_second = Some(*bytes_per_second);
                response.delivery.chunk = Some(*chunk);
            }
            Self::Gate(gate) => response.delivery.gates.push(gate.clone()),
            Self::Hold(gate) => response.delivery.holds.push(gate.clone()),
            Self::Supply(supply) => response.delivery.supply = Some(supply.clone()),
        }
    }
}

/// Which requests a fault strikes. `On::blob().get().reference(&digest).times(1)`
///
/// Faults come after authentication: a 401 that asks for a token is never struck, unless `before_auth` says so.
#[derive(Clone, Debug, Default)]
pub struct On {
    kind: Option<Kind>,
    method: Option<String>,
    name: Option<String>,
    reference: Option<String>,
    ranged: bool,
    times: Option<usize>,
    before_auth: bool,
}

impl On {
    /// Every request, on every listener.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of this kind.
    pub fn kind(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    pub fn manifest() -> Self {
        Self::kind(Kind::Manifest)
    }

    /// Blobs at the registry. With a redirect the bytes come from [`On::storage`], and these are only the 307s.
    pub fn blob() -> Self {
        Self::kind(Kind::Blob)
    }

    /// Blobs at the host that redirects point to.
    pub fn storage() -> Self {
        Self::kind(Kind::Storage)
    }

    pub fn tags() -> Self {
        Self::kind(Kind::Tags)
    }

    pub fn referrers() -> Self {
        Self::kind(Kind::Referrers)
    }

    pub fn token() -> Self {
        Self::kind(Kind::Token)
    }

    pub fn get(self) -> Self {
        Self { method: Some("GET".to_owned()), ..self }
    }

    pub fn head(self) -> Self {
        Self { method: Some("HEAD".to_owned()), ..self }
    }

    /// Only this method.
    pub fn method(self, method: &str) -> Self {
        Self { method: Some(method.to_owned()), ..self }
    }

    /// Only this repository.
    pub fn name(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Only this tag or digest.
    pub fn reference(self, reference: &str) -> Self {
        Self { reference: Some(reference.to_owned()), ..self }
    }

    /// Only requests with a `Range`.
    pub fn ranged(self) -> Self {
        Self { ranged: true, ..self }
    }

    /// Only the first so many matching requests; without it, all.
    pub fn times(self, times: usize) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Strikes also requests that are not authenticated.
    pub fn before_auth(self) -> Self {
        Self { before_auth: true, ..self }
    }

    /// Whether the request is one of these; `times` plays no part.
    pub fn matches(&self, request: &Request) -> bool {
        self.kind.is_none_or(|kind| kind == request.kind)
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.name.as_ref().is_none_or(|name| *name == request.name)
            && self.reference.as_ref().is_none_or(|reference| *reference == request.reference)
            && (!self.ranged || request.header("range").is_some())
    }
}

/// A fault in force; kept by a test that wants to know how often it struck, or to end it.
#[derive(Clone, Debug)]
pub struct Injected(pub(super) Arc<Injection>);

impl Injected {
    /// How many requests it has struck.
    pub fn hits(&self) -> usize {
        self.0.hits.load(Ordering::SeqCst)
    }

    /// Ends it for requests to come.
    pub fn lift(&self) {
        self.0.left.store(0, Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub(super) struct Injection {
    on: On,
    pub fault: Fault,
    hits: AtomicUsize,
    left: AtomicUsize,
}

impl Injection {
    pub fn new(on: On, fault: Fault) -> Self {
        let left = AtomicUsize::new(on.times.unwrap_or(usize::MAX));
        Self { on, fault, hits: AtomicUsize::new(0), left }
    }

    /// Whether it strikes this request; if so, one of its times is used up.
    pub fn strikes(&self, request: &Request, authenticated: bool) -> bool {
        if !self.fault.concerns(request) || !(authenticated || self.on.before_auth) || !self.on.matches(request) {
            return false;
        }
        let use_one = |left: usize| match left {
            usize::MAX => Some(left),
            _ => left.checked_sub(1),
        };
        let strikes = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, use_one).is_ok();
        self.hits.fetch_add(usize::from(strikes), Ordering::SeqCst);
        strikes
    }
}

/// Stops bodies at an offset until the test lets them go on.
///
/// Offsets are those of the whole object: with a gate at 1000, a range that begins at 5000 gets its head and waits.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Clone, Copy, Debug)]
struct GateState {
    /// Bytes below this offset pass.
    allowed: u64,
    /// Bytes below this offset have been handed to a client.
    sent: u64,
    /// Answers that stand at the gate now.
    waiting: usize,
}

impl Gate {
    pub(super) fn new(allowed: u64) -> Self {
        Self(Arc::new(watch::Sender::new(GateState { allowed, sent: 0, waiting: 0 })))
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.0.send_modify(|state| state.allowed = u64::MAX);
    }

    /// Moves the gate by so many bytes.
    pub fn release(&self, more: u64) {
        self.0.send_modify(|state| state.allowed = state.allowed.saturating_add(more));
    }

    /// Resolves once all bytes before the gate were handed over; with nothing before it, once an answer waits there.
    /// Panics after the deadline: then no such request came, or the object is smaller.
    pub async fn reached(&self) {
        self.wait("reached", |state| if state.allowed == 0 { state.waiting > 0 } else { state.sent >= state.allowed })
            .await;
    }

    /// Resolves once at least `count` answers wait here at the same time.
    pub async fn wait_for(&self, count: usize) {
        self.wait("reached by enough requests", |state| state.waiting >= count).await;
    }

    /// How many answers wait here now.
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting
    }

    async fn wait(&self, what: &str, condition: impl Fn(&GateState) -> bool) {
        let mut receiver = self.0.subscribe();
        let in_time = tokio::time::timeout(DEADLINE, receiver.wait_for(condition)).await.is_ok();
        assert!(in_time, "the gate was not {what}: {:?}", *self.0.borrow());
    }

    /// Waits until the byte at `position` may pass; returns the offset before which all may.
    pub(super) async fn pass(&self, position: u64) -> u64 {
        let allowed = self.0.borrow().allowed;
        if position < allowed {
            return allowed;
        }
        self.0.send_modify(|state| state.waiting += 1);
        let _waiting = Waiting(self);
        let mut receiver = self.0.subscribe();
        let state = receiver.wait_for(|state| position < state.allowed).await.expect("the gate holds its sender");
        state.allowed
    }

    pub(super) fn sent_until(&self, offset: u64) {
        self.0.send_modify(|state| state.sent = state.sent.max(offset));
    }
}

/// Counts a waiting answer out again, also when its client has gone.
struct Waiting<'a>(&'a Gate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.waiting -= 1);
    }
}

/// Bytes that a test gives to many bodies together, whichever takes them first.
#[derive(Clone, Debug)]
pub struct Supply(Arc<watch::Sender<SupplyState>>);

#[derive(Clone, Copy, Debug, Default)]
struct SupplyState {
    given: u64,
    /// Bytes that the kernel took.
    sent: u64,
    /// Bytes that are being written.
    taken: u64,
}

impl Supply {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(SupplyState::default())))
    }

    /// Gives bytes until `total` were given, and waits until all of them are sent. Panics after the deadline.
    pub async fn send_up_to(&self, total: u64) {
        self.0.send_modify(|state| state.given = state.given.max(total));
        let mut receiver = self.0.subscribe();
        let all_sent = receiver.wait_for(|state| state.sent >= state.given);
        let in_time = tokio::time::timeout(DEADLINE, all_sent).await.is_ok();
        assert!(in_time, "nobody takes what is supplied: {:?}", *self.0.borrow());
    }

    /// Gives without end.
    pub fn open(&self) {
        self.0.send_modify(|state| state.given = u64::MAX);
    }

    /// Waits until there is something to take, and takes at most so many bytes.
    pub(super) async fn take(&self, most: usize) -> usize {
        let mut receiver = self.0.subscribe();
        loop {
            let mut got = 0;
            self.0.send_if_modified(|state| {
                got = (state.given - state.sent - state.taken).min(most as u64);
                state.taken += got;
                got > 0
            });
            if got > 0 {
                return usize::try_from(got).expect("at most what was asked for");
            }
            receiver.changed().await.expect("the supply holds its sender");
        }
    }

    /// Of the bytes taken, so many were sent; the others go back.
    pub(super) fn settle(&self, taken: usize, sent: usize) {
        self.0.send_modify(|state| {
            state.taken -= taken as u64;
            state.sent += sent as u64;
        });
    }
}

fn flip_a_byte(body: &Bytes) -> Bytes {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 1;
    }
    body.into()
}

/// A gzip file of stored blocks (RFC 1951 §3.2.4): valid, without a compressor.
fn gzip(body: &[u8]) -> Bytes {
    let mut out = BytesMut::from(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff][..]);
    let blocks: Vec<&[u8]> = if body.is_empty() { vec![&[]] } else { body.chunks(0xffff).collect() };
    for (number, block) in blocks.iter().enumerate() {
        out.put_u8(u8::from(number + 1 == blocks.len()));
        out.put_u16_le(block.len() as u16);
        out.put_u16_le(!(block.len() as u16));
        out.put_slice(block);
    }
    out.put_u32_le(crc32(body));
    out.put_u32_le(body.len() as u32);
    out.freeze()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}
