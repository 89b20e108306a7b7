//! An S3 server in this process: that of the crates `s3s` and `s3s-fs`, which checks signatures as AWS does, behind a
//! layer that behaves as real servers do when they are unwell.
//!
//! What the faults are taken from:
//!
//! - 503 `SlowDown`, and a status of 200 with an error in its body for CompleteMultipartUpload: AWS, "Error responses"
//!   and the reference of CompleteMultipartUpload ("a request could return a 200 OK response and then fail").
//! - 403 `RequestTimeTooSkewed`: AWS, "Error responses".
//! - No list of unfinished uploads: `s3s-fs` itself answers 501; with a prefix that is no whole key, MinIO lists nothing
//!   (minio/minio#20989), and so does this server.
//! - An acknowledged completion whose object is not there: AWS itself, in a case of its own (boto/boto3#4476).
//! - A list comes in pages, each with what leads to the next (AWS, ListObjectsV2: `IsTruncated`,
//!   `NextContinuationToken`; Garage, `handle_list` in `src/api/s3/list.rs`), so that it can break off between two.
//! - When an upload was begun is a time with milliseconds (Garage, `msec_to_rfc3339` in the same file).

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const ACCESS_KEY: &str = "larder-key";
/// The secret key: nothing that Larder writes may have it.
pub const SECRET_KEY: &str = "geheimer-schluessel";
/// The prefix of all keys.
const PREFIX: &str = "p";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>no</Message></Error>";

/// What a request to the bucket does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Get,
    Head,
    Put,
    Delete,
    List,
    ListUploads,
    Begin,
    Part,
    Complete,
    Abort,
}

/// How the server is unwell.
#[derive(Clone, Debug)]
pub enum S3Fault {
    /// It answers with this status and this code.
    Refuse(u16, &'static str),
    /// It is too busy for every second request.
    EverySecond,
    /// It never answers.
    Hang,
    /// The body breaks off after half of it.
    Truncate,
    /// One byte in the middle is another.
    WrongBytes,
    /// It does nothing and says that all is well.
    Lie,
    /// Status 200, and an error in the body.
    ErrorIn200,
    /// A byte of the body comes now and then.
    Trickle,
    /// Of a list, the first page ends behind the first key of content, and the next page is refused.
    SecondPage,
    /// The answer waits until the sender says so.
    Hold(watch::Receiver<bool>),
}

/// A running server with a bucket `larder`.
pub struct S3 {
    address: SocketAddr,
    root: TempDir,
    secret: tempfile::NamedTempFile,
    state: Arc<State>,
    serving: Option<JoinHandle<()>>,
}

struct State {
    service: S3Service,
    faults: Mutex<HashMap<Op, S3Fault>>,
    seen: Mutex<Vec<(Op, Uri)>>,
    /// Uploads that were begun and not completed or aborted, by their identifiers.
    unfinished: Mutex<HashMap<String, Begun>>,
    /// Whether unfinished uploads can be listed.
    lists_uploads: bool,
}

impl State {
    /// How many requests of this kind came for content.
    fn count(&self, op: Op) -> usize {
        let seen = self.seen.lock().expect("no panic");
        seen.iter().filter(|(other, uri)| *other == op && !uri.path().contains("/probe.")).count()
    }
}

/// What the identifiers of uploads begin with that [`S3::begin`] began: the server behind this one does not know them.
const SENT_NOTHING: &str = "nothing";

/// An upload that was begun: its key, and when.
#[derive(Clone)]
struct Begun(String, SystemTime);

impl S3 {
    pub async fn start() -> Self {
        Self::with(true).await
    }

    /// Does not know the list of unfinished uploads.
    pub async fn without_list_of_uploads() -> Self {
        Self::with(false).await
    }

    async fn with(lists_uploads: bool) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("larder")).expect("a bucket");
        let secret = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(secret.path(), format!("{SECRET_KEY}\n")).expect("written");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).expect("a folder"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let state = Arc::new(State {
            service: builder.build(),
            faults: Mutex::default(),
            seen: Mutex::default(),
            unfinished: Mutex::default(),
            lists_uploads,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = Some(tokio::spawn(serve(listener, state.clone())));
        Self { address, root, secret, state, serving }
    }

    /// `[storage.s3]` for this server, with more lines.
    pub fn config(&self, lines: &str) -> String {
        let secret = self.secret.path().display();
        format!(
            "[storage.s3]\nbucket = \"larder\"\nendpoint = \"http://{}\"\nprefix = \"{PREFIX}\"\n\
             access_key_id = \"{ACCESS_KEY}\"\nsecret_access_key_file = \"{secret}\"\n{lines}\n",
            self.address
        )
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the server off the network. What it holds stays.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }

    /// Brings it back at the same address.
    pub async fn restart(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.serving = Some(tokio::spawn(serve(listener, self.state.clone())));
    }

    /// Requests of this kind are answered so from now on.
    pub fn fault(&self, op: Op, fault: S3Fault) {
        self.state.faults.lock().expect("no panic").insert(op, fault);
    }

    /// Requests of this kind wait until something is sent.
    pub fn hold(&self, op: Op) -> watch::Sender<bool> {
        let (open, gate) = watch::channel(false);
        self.fault(op, S3Fault::Hold(gate));
        open
    }

    pub fn heal(&self) {
        self.state.faults.lock().expect("no panic").clear();
    }

    /// How many requests of this kind came for content: those of probes do not count.
    pub fn count(&self, op: Op) -> usize {
        self.state.count(op)
    }

    /// The keys of content in the bucket.
    pub fn keys(&self) -> Vec<String> {
        let keys = files(&self.bucket());
        keys.into_iter().filter(|key| !key.contains("/probe.")).collect()
    }

    /// The key of an object, if there is exactly one.
    pub fn key_of(&self, digest: &str) -> Option<String> {
        let (_, hex) = digest.split_once(':').expect("a digest");
        let mut keys: Vec<_> = self.keys().into_iter().filter(|key| key.contains(hex)).collect();
        keys.pop().filter(|_| keys.is_empty())
    }

    pub fn has(&self, digest: &str) -> bool {
        self.key_of(digest).is_some()
    }

    /// The content under a key.
    pub fn content(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.bucket().join(key)).expect("the key is there")
    }

    pub fn put(&self, key: &str, content: &[u8]) {
        let path = self.bucket().join(key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, content).expect("written");
    }

    pub fn delete(&self, key: &str) {
        std::fs::remove_file(self.bucket().join(key)).expect("removed");
    }

    /// All content, and all that was begun, becomes as old as this.
    pub fn age(&self, age: Duration) {
        let then = SystemTime::now() - age;
        self.state.unfinished.lock().expect("no panic").values_mut().for_each(|begun| begun.1 = then);
        for key in files(&self.bucket()) {
            let file = std::fs::File::options().append(true).open(self.bucket().join(key)).expect("opened");
            file.set_modified(then).expect("set");
        }
    }

    /// Keys of uploads that were begun and neither completed nor aborted.
    pub fn unfinished(&self) -> Vec<String> {
        self.state.unfinished.lock().expect("no panic").values().map(|begun| begun.0.clone()).collect()
    }

    /// Somebody begins an upload and sends nothing.
    pub fn begin(&self, key: &str) {
        let begun = Begun(key.to_owned(), SystemTime::now());
        let mut unfinished = self.state.unfinished.lock().expect("no panic");
        let id = format!("{SENT_NOTHING}{}", unfinished.len());
        unfinished.insert(id, begun);
    }

    fn bucket(&self) -> PathBuf {
        self.root.path().join("larder")
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The files below a folder, relative to it, in order.
fn files(root: &Path) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => open.push(path),
                path => found.push(path.strip_prefix(root).expect("below").display().to_string()),
            }
        }
    }
    found.sort();
    found
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let state = state.clone();
        let answer = service_fn(move |request| answer(state.clone(), request));
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer);
        connections.spawn(async move { drop(serving.await) });
    }
}

fn op(method: &Method, uri: &Uri) -> Op {
    let query = uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match (method.as_str(), has("uploadId"), has("uploads")) {
        ("GET", _, true) => Op::ListUploads,
        ("GET", ..) if has("list-type") => Op::List,
        ("GET", ..) => Op::Get,
        ("HEAD", ..) => Op::Head,
        ("PUT", true, _) => Op::Part,
        ("PUT", ..) => Op::Put,
        ("POST", true, _) => Op::Complete,
        ("POST", ..) => Op::Begin,
        ("DELETE", true, _) => Op::Abort,
        _ => Op::Delete,
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (op, uri) = (op(request.method(), request.uri()), request.uri().clone());
    state.seen.lock().expect("no panic").push((op, uri.clone()));
    let fault = state.faults.lock().expect("no panic").get(&op).cloned();
    match &fault {
        Some(S3Fault::EverySecond) if state.count(op) % 2 == 1 => return Ok(document(503, SLOW_DOWN.to_owned())),
        Some(S3Fault::Refuse(status, code)) => {
            let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
            return Ok(document(*status, text));
        }
        Some(S3Fault::Hang) => std::future::pending().await,
        Some(S3Fault::Hold(gate)) => {
            // If the sender is gone, nobody holds it any more.
            let _ = gate.clone().wait_for(|is_open| *is_open).await;
        }
        Some(S3Fault::ErrorIn200) => {
            let text = "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><Message>no</Message></Error>";
            return Ok(document(200, text.to_owned()));
        }
        Some(S3Fault::Lie) => {
            let text = "<?xml version=\"1.0\"?><CompleteMultipartUploadResult><ETag>\"0\"</ETag>\
                        </CompleteMultipartUploadResult>";
            let _ = request.into_body().collect().await;
            let mut response = document(200, text.to_owned());
            response.headers_mut().insert("etag", HeaderValue::from_static("\"0\""));
            return Ok(response);
        }
        Some(S3Fault::SecondPage) if uri.query().is_some_and(|query| query.contains("continuation-token=")) => {
            return Ok(document(503, SLOW_DOWN.to_owned()));
        }
        Some(
            S3Fault::Truncate | S3Fault::WrongBytes | S3Fault::Trickle | S3Fault::SecondPage | S3Fault::EverySecond,
        )
        | None => {}
    }
    if op == Op::ListUploads && state.lists_uploads {
        let has_prefix = uri.query().is_some_and(|query| query.contains("prefix="));
        let unfinished = state.unfinished.lock().expect("no panic").clone();
        return Ok(document(200, list_of(&if has_prefix { HashMap::new() } else { unfinished })));
    }
    if op == Op::Abort && uri.query().is_some_and(|query| query.contains(SENT_NOTHING)) {
        state.note(op, &uri, &[]);
        return Ok(document(204, String::new()));
    }
    let response = match state.service.call(request.map(s3s::Body::from)).await {
        Ok(response) => response,
        Err(error) => panic!("the S3 server failed: {error:?}"),
    };
    let (mut parts, body) = response.into_parts();
    let body = UnsyncBoxBody::new(body.map_err(failed as fn(_) -> _));
    if let Some(S3Fault::Trickle) = fault {
        return Ok(Response::from_parts(parts, trickle(body)));
    }
    if !matches!(op, Op::Begin | Op::Complete | Op::Abort)
        && !matches!(fault, Some(S3Fault::Truncate | S3Fault::WrongBytes | S3Fault::SecondPage))
    {
        return Ok(Response::from_parts(parts, body));
    }
    let bytes = body.collect().await.expect("a body").to_bytes();
    if parts.status.is_success() {
        state.note(op, &uri, &bytes);
    }
    if let Some(S3Fault::SecondPage) = fault {
        parts.headers.remove("content-length");
    }
    Ok(Response::from_parts(parts, spoilt(bytes, fault.as_ref())))
}

/// A body as the fault leaves it.
fn spoilt(bytes: Bytes, fault: Option<&S3Fault>) -> Body {
    match fault {
        Some(S3Fault::Truncate) => {
            let half = bytes.slice(..bytes.len() / 2);
            let pieces = stream::iter([Ok(Frame::data(half)), Err(std::io::Error::other("it broke off"))]);
            StreamBody::new(pieces.boxed()).boxed_unsync()
        }
        Some(S3Fault::WrongBytes) => {
            let mut wrong = bytes.to_vec();
            if let Some(byte) = wrong.get_mut(bytes.len() / 2) {
                *byte ^= 1;
            }
            whole(wrong.into())
        }
        Some(S3Fault::SecondPage) => {
            let (text, end) = (String::from_utf8(bytes.to_vec()).expect("a document"), "</Contents>");
            let key = text.find("blobs/sha256/");
            let Some(at) = key.and_then(|key| Some(key + text[key..].find(end)? + end.len())) else {
                return whole(bytes);
            };
            let first = text[..at].replace("<IsTruncated>false</IsTruncated>", "");
            let rest = "<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken>";
            whole(format!("{first}{rest}</ListBucketResult>").into())
        }
        _ => whole(bytes),
    }
}

fn document(status: u16, text: String) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/xml"));
    response
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// The first piece of a body, then nothing but a byte of it every second.
fn trickle(body: Body) -> Body {
    let pieces = stream::unfold((body, Bytes::new()), |(mut body, mut rest)| async move {
        if rest.is_empty() {
            let piece = body.frame().await?.expect("no failure").into_data().expect("data");
            rest = piece;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let byte = rest.split_to(1);
        Some((Ok(Frame::data(byte)), (body, rest)))
    });
    StreamBody::new(pieces.boxed()).boxed_unsync()
}

fn failed(error: Box<dyn std::error::Error + Send + Sync>) -> std::io::Error {
    std::io::Error::other(error)
}

impl State {
    /// Notes an upload that was begun or has ended.
    fn note(&self, op: Op, uri: &Uri, body: &[u8]) {
        let mut unfinished = self.unfinished.lock().expect("no panic");
        let id_of_query =
            uri.query().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("uploadId=")));
        match op {
            Op::Begin => {
                let text = String::from_utf8_lossy(body);
                let id = text.split_once("<UploadId>").and_then(|(_, rest)| rest.split_once("</UploadId>"));
                let (id, _) = id.expect("an identifier");
                let key = uri.path().trim_start_matches("/larder/");
                unfinished.insert(id.to_owned(), Begun(key.to_owned(), SystemTime::now()));
            }
            Op::Complete | Op::Abort => drop(unfinished.remove(id_of_query.unwrap_or_default())),
            _ => {}
        }
    }
}

/// The list of unfinished uploads.
fn list_of(unfinished: &HashMap<String, Begun>) -> String {
    let uploads: String = unfinished
        .iter()
        .map(|(id, Begun(key, since))| {
            let begun = humantime::format_rfc3339_millis(*since);
            format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>{begun}</Initiated></Upload>")
        })
        .collect();
    format!(
        "<?xml version=\"1.0\"?><ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Bucket>larder</Bucket><IsTruncated>false</IsTruncated>{uploads}</ListMultipartUploadsResult>"
    )
}
