//! The cache that a command works on: a running instance, through its API, or the directory of a stopped one.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::CONTENT_LENGTH;
use reqwest::redirect::Policy;
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::error::CommandError;
use crate::cache::{Cache, OpenError};
use crate::config::{self, ClientTls, Config};
use crate::observe::Metrics;
use crate::ops::export::Export;
use crate::ops::import::Imported;
use crate::ops::{self, Images, Named, OpsError, PinDone, PurgeDone};
use crate::routing::{OwnNames, Routing};
use crate::upkeep::scrub::Report;
use crate::upstream::Clients;
use crate::web::{dial, tls};

/// Longest time to connect to the API.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time until a response begins, and between two pieces of it.
const ANSWER: Duration = Duration::from_secs(600);
/// Longest line of a report, in bytes.
const MAX_LINE: usize = 16 << 20;

/// Longest time to find out whether an instance runs.
const LOOK: Duration = Duration::from_secs(2);
/// Longest time until an instance says how it is.
const HEALTH: Duration = Duration::from_secs(10);
/// The variable that names the admin door of a running instance.
const VARIABLE: &str = "LARDER_ADMIN";

/// What to do if something else is at the address than an admin door.
const NAME_THE_DOOR: &str = "name with --admin where `admin.listen` is, by default http://127.0.0.1:17081";

/// Where a cache is to be found.
#[derive(Debug, clap::Args)]
pub struct Where {
    /// Admin door of a running instance: http://127.0.0.1:17081, or with a login
    /// http://USER:PASSWORD@HOST:PORT. Without it: LARDER_ADMIN; else `admin.listen` of the configuration;
    /// else, if no instance runs there, the cache directory
    #[arg(long, value_name = "URL", value_parser = admin_url)]
    admin: Option<Url>,
}

impl Where {
    /// Returns the admin door that is named by the option or by the environment.
    fn named(&self) -> Result<Option<Url>, CommandError> {
        let written = || config::environment().find(|(name, value)| name == VARIABLE && !value.is_empty());
        match (&self.admin, written()) {
            (Some(url), _) => Ok(Some(url.clone())),
            (None, Some((_, text))) => {
                admin_url(&text).map(Some).map_err(|error| CommandError::Usage(format!("{VARIABLE}: {error}")))
            }
            (None, None) => Ok(None),
        }
    }
}

fn admin_url(text: &str) -> Result<Url, String> {
    match text.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err("write it as http://127.0.0.1:17081".to_owned()),
    }
}

/// The bytes of an archive.
pub type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// The cache that a command works on.
pub enum Instance {
    Running(Api),
    Stopped(Box<Stopped>),
}

/// The directory of a stopped instance.
pub struct Stopped {
    cache: Arc<Cache>,
    routing: Routing,
    own: OwnNames,
    /// The task that looks after the directory until [`Instance::close`].
    attending: tokio::task::JoinHandle<()>,
}

impl Instance {
    /// Returns the instance that `--admin` or `LARDER_ADMIN` names; else the one that runs at `admin.listen` of the
    /// configuration; else opens the cache directory, which no instance uses. A directory that the configuration names
    /// goes before `admin.listen` while no instance uses it: at that address another cache may run.
    pub async fn find(files: &[PathBuf], place: &Where) -> Result<Self, CommandError> {
        if let Some(url) = place.named()? {
            return Ok(Self::Running(Api::new(url)?));
        }
        let config = read(files)?;
        let dir = &config.cache.dir;
        let found = std::fs::metadata(dir.join("blobs"));
        let is_there = found.as_ref().is_ok_and(std::fs::Metadata::is_dir);
        if is_there && config.cache.is_dir_named && may_lock(dir) {
            return match open(&config)? {
                Some(stopped) => Ok(Self::Stopped(stopped)),
                None => Self::in_use(&config).await,
            };
        }
        if let Some(api) = running(&config).await? {
            return Ok(Self::Running(api));
        }
        match found {
            Ok(found) if found.is_dir() => match open(&config)? {
                Some(stopped) => Ok(Self::Stopped(stopped)),
                None => Self::in_use(&config).await,
            },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let remedy = "run this as the user that Larder runs as, or name a running instance with --admin";
                Err(CommandError::Failed(format!("{}: {error}; {remedy}", dir.display())))
            }
            _ => {
                let tried: Vec<_> = config.admin.listen.iter().map(ToString::to_string).collect();
                let message = format!(
                    "no instance runs at {}, and there is no cache in {}; start one with `larder`, name its configuration with --config, or a running instance with --admin",
                    tried.join(" or "),
                    dir.display()
                );
                Err(CommandError::Failed(message))
            }
        }
    }

    /// Returns the instance that uses the directory.
    async fn in_use(config: &Config) -> Result<Self, CommandError> {
        match running(config).await? {
            Some(api) => Ok(Self::Running(api)),
            // Nothing answers there: the first request says why.
            None => Ok(Self::Running(Api::at(first_door(config)?)?)),
        }
    }

    /// Returns the running instance, for what only a running one can tell.
    pub async fn running(files: &[PathBuf], place: &Where) -> Result<Api, CommandError> {
        if let Some(url) = place.named()? {
            return Api::new(url);
        }
        let config = read(files)?;
        match running(&config).await? {
            Some(api) => Ok(api),
            None => {
                let tried: Vec<_> = config.admin.listen.iter().map(ToString::to_string).collect();
                let message = format!(
                    "no instance runs at {}: only a running one can tell; start it with `larder serve`, or name it with --admin",
                    tried.join(" or ")
                );
                Err(CommandError::Failed(message))
            }
        }
    }

    /// Asks the running instance for a page that says how it is. Fails if it does not say that all is well.
    pub async fn health(files: &[PathBuf], place: &Where, page: &str) -> Result<(), CommandError> {
        let api = match place.named()? {
            Some(url) => Api::new(url)?,
            None => {
                let config = read(files)?;
                match running(&config).await? {
                    Some(api) => api,
                    None => Api::at(first_door(&config)?)?,
                }
            }
        };
        let asked = tokio::time::timeout(HEALTH, api.send(reqwest::Method::GET, page, &[])).await;
        asked.map_err(|_| CommandError::Failed(format!("{} does not answer within {HEALTH:?}", api.shown())))?.map(drop)
    }

    /// Returns all cached images.
    pub async fn images(&self) -> Result<Vec<ops::Image>, CommandError> {
        let mut all = Vec::new();
        let mut last = String::new();
        loop {
            let Images { images, next } = match self {
                Self::Stopped(stopped) => ops::images(&stopped.cache, &last, ops::PAGE).await?,
                Self::Running(api) => api.ask(reqwest::Method::GET, "api/images", &[("last", &last)]).await?,
            };
            all.extend(images);
            match next {
                Some(next) => last = next,
                None => return Ok(all),
            }
        }
    }

    /// Removes everything (`None`) or one repository, name, tag or digest from the cache.
    pub async fn purge(&self, which: Option<&str>) -> Result<PurgeDone, CommandError> {
        match self {
            Self::Stopped(stopped) => Ok(ops::purge(&stopped.named(), which).await?),
            Self::Running(api) => {
                let parameters: Vec<_> = which.map(|which| ("reference", which)).into_iter().collect();
                api.ask(reqwest::Method::DELETE, "api/cache", &parameters).await
            }
        }
    }

    /// Pins an image, or unpins it.
    pub async fn set_pin(&self, reference: &str, is_pinned: bool) -> Result<PinDone, CommandError> {
        match self {
            Self::Stopped(stopped) => Ok(ops::set_pin(&stopped.named(), reference, is_pinned).await?),
            Self::Running(api) => {
                let method = if is_pinned { reqwest::Method::PUT } else { reqwest::Method::DELETE };
                api.ask(method, "api/pins", &[("reference", reference)]).await
            }
        }
    }

    /// Verifies everything; calls `progress` with each intermediate report.
    pub async fn verify(
        &self,
        is_repair: bool,
        mut progress: impl FnMut(&Report) + Send + 'static,
    ) -> Result<Report, CommandError> {
        match self {
            Self::Stopped(stopped) => {
                let (begun, _) = tokio::sync::oneshot::channel();
                let tell = move |report: &Report| {
                    progress(report);
                    true
                };
                Ok(ops::verify(&stopped.cache, is_repair, begun, tell).await?)
            }
            Self::Running(api) => {
                let repair = is_repair.to_string();
                let mut last = None;
                api.lines(reqwest::Method::POST, "api/verify", &[("repair", &repair)], |report: Report| {
                    progress(&report);
                    last = Some(report);
                })
                .await?;
                let cut = || CommandError::Failed("the instance broke the verification off; see its log".to_owned());
                last.filter(|report| report.is_complete).ok_or_else(cut)
            }
        }
    }

    /// Returns the archive of an export. An error in it means that the archive is not whole.
    pub async fn export(&self, export: &Export, since: Option<&str>) -> Result<Pieces, CommandError> {
        match self {
            Self::Stopped(stopped) => {
                let archive = ops::export::plan(&stopped.named(), &stopped.cache, export).await?;
                Ok(archive.bytes().map(|piece| piece.map_err(io::Error::other)).boxed())
            }
            Self::Running(api) => {
                let mut parameters: Vec<_> =
                    export.references.iter().map(|reference| ("reference", reference.as_str())).collect();
                if parameters.is_empty() {
                    parameters.push(("all", "true"));
                }
                parameters.extend(since.map(|since| ("since", since)));
                parameters.extend(export.with_extras.then_some(("extras", "true")));
                let answer = api.send(reqwest::Method::GET, "api/export", &parameters).await?;
                let broke = format!("{} broke the export off; see its log", api.shown());
                Ok(answer.bytes_stream().map(move |piece| piece.map_err(|_| io::Error::other(broke.clone()))).boxed())
            }
        }
    }

    /// Takes in an archive of so many bytes. `given`: the name of its image, where the archive has none.
    pub async fn import(
        &self,
        bytes: Pieces,
        size: Option<u64>,
        given: Option<&str>,
    ) -> Result<Imported, CommandError> {
        match self {
            Self::Stopped(stopped) => {
                if let Some(size) = size.filter(|size| stopped.cache.never_fits(*size)) {
                    return Err(OpsError::TooLarge(size).into());
                }
                let carrying = stopped.cache.begin_carrying().ok_or(OpsError::Carrying)?;
                Ok(ops::import::import(&stopped.named(), carrying, bytes, given).await?)
            }
            Self::Running(api) => {
                let parameters: Vec<_> = given.map(|given| ("as", given)).into_iter().collect();
                let url = api.url("api/import", &parameters)?;
                let mut request = Api::client(None)?.post(url);
                if let Some(size) = size {
                    request = request.header(CONTENT_LENGTH, size);
                }
                let answer = api.answered(request.body(reqwest::Body::wrap_stream(bytes)).send().await).await?;
                let body = answer.bytes().await.map_err(|error| api.strange(&error))?;
                serde_json::from_slice(&body).map_err(|error| api.strange(&error))
            }
        }
    }

    /// Writes the changes that the index still has queued, and releases the directory of a stopped instance.
    pub async fn close(self) {
        if let Self::Stopped(stopped) = self {
            let Stopped { cache, attending, .. } = *stopped;
            attending.abort();
            // The only error is that the task was aborted.
            let _ = attending.await;
            cache.close().await;
        }
    }
}

impl Stopped {
    fn named(&self) -> Named<'_> {
        Named { cache: &self.cache, routing: &self.routing, own: &self.own }
    }
}

/// Reads the configuration.
fn read(files: &[PathBuf]) -> Result<Config, CommandError> {
    Config::load(files, config::environment()).map_err(|errors| {
        CommandError::Usage(format!(
            "{errors}\nthe configuration says where the cache is; or name a running instance with --admin"
        ))
    })
}

/// Returns whether this process may lock the cache directory: only then does it find out whether an instance uses it.
fn may_lock(dir: &Path) -> bool {
    let lock = std::fs::OpenOptions::new().write(true).open(dir.join("larder.lock"));
    lock.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |_| true)
}

/// Opens the cache directory; `None` if an instance uses it.
fn open(config: &Config) -> Result<Option<Box<Stopped>>, CommandError> {
    let metrics = Arc::<Metrics>::default();
    match Cache::open(config, metrics.clone()) {
        Ok(cache) => {
            let routing = Routing::new(config, &Clients::default(), &metrics);
            let routing = routing.map_err(|error| CommandError::Failed(error.to_string()))?;
            let cache = Arc::new(cache);
            let attending = tokio::spawn(cache.clone().attend());
            Ok(Some(Box::new(Stopped { cache, routing, own: OwnNames::new(config), attending })))
        }
        Err(OpenError::Store(error)) if error.is_in_use() => Ok(None),
        Err(error) => Err(CommandError::Failed(error.to_string())),
    }
}

fn first_door(config: &Config) -> Result<SocketAddr, CommandError> {
    let none = || CommandError::Failed("admin.listen names no address".to_owned());
    config.admin.listen.first().copied().ok_or_else(none)
}

/// Returns the instance that runs at `admin.listen` of the configuration; `None` if none does.
async fn running(config: &Config) -> Result<Option<Api>, CommandError> {
    for address in config.admin.listen.iter().filter(|address| address.port() != 0) {
        let api = Api::at(*address)?;
        if api.is_there().await {
            return Ok(Some(api));
        }
    }
    Ok(None)
}

/// The API of a running instance.
pub struct Api {
    client: reqwest::Client,
    base: Url,
}

impl Api {
    fn new(base: Url) -> Result<Self, CommandError> {
        Ok(Self { client: Self::client(Some(ANSWER))?, base })
    }

    /// Returns a client. `patience`: the longest time until a response begins, which counts from the first byte of the
    /// request on.
    fn client(patience: Option<Duration>) -> Result<reqwest::Client, CommandError> {
        let tls = tls::client_config(&ClientTls::default());
        let tls = tls.map_err(|error| CommandError::Failed(error.to_string()))?;
        let mut client = dial::client(tls, CONNECT).redirect(Policy::default());
        if let Some(patience) = patience {
            client = client.read_timeout(patience);
        }
        client.build().map_err(|error| CommandError::Failed(error.to_string()))
    }

    fn at(mut address: SocketAddr) -> Result<Self, CommandError> {
        if address.port() == 0 {
            let message = "the instance chose its own admin port; name it with --admin http://127.0.0.1:PORT";
            return Err(CommandError::Failed(message.to_owned()));
        }
        if address.ip().is_unspecified() {
            let loopback: std::net::IpAddr = match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
        }
        let base = format!("http://{address}/").parse().map_err(|error| CommandError::Failed(format!("{error}")))?;
        Self::new(base)
    }

    /// Returns whether Larder answers there. Everybody may ask for this page.
    async fn is_there(&self) -> bool {
        let Ok(url) = self.base.join("healthz") else { return false };
        let asked = async {
            let answer = self.client.get(url).send().await.ok()?.error_for_status().ok()?;
            let said: serde_json::Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
            said.get("status").map(drop)
        };
        tokio::time::timeout(LOOK, asked).await.ok().flatten().is_some()
    }

    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> Result<reqwest::Response, CommandError> {
        let url = self.url(path, parameters)?;
        self.answered(self.client.request(method, url).send().await).await
    }

    fn url(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Url, CommandError> {
        let mut url = self.base.join(path).map_err(|error| self.unreachable(&error))?;
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        Ok(url)
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> CommandError {
        CommandError::Failed(format!("cannot speak to {}: {error}", self.shown()))
    }

    /// Returns an answer that says yes; what another answer says is an error.
    async fn answered(&self, answer: reqwest::Result<reqwest::Response>) -> Result<reqwest::Response, CommandError> {
        let answer = answer.map_err(|error| self.unreachable(&self.why(&error)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        let said = serde_json::from_str::<serde_json::Value>(&body).ok();
        let said = said.and_then(|said| Some(said.get("error")?.as_str()?.to_owned()));
        let said = said.unwrap_or_else(|| {
            format!("{} does not answer as Larder's admin door does, but {status}; {NAME_THE_DOOR}", self.shown())
        });
        // The API's status for a wrong reference.
        let is_usage = status.as_u16() == 400;
        Err(if is_usage { CommandError::Usage(said) } else { CommandError::Failed(said) })
    }

    /// Reads a page of the API.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, parameters: &[(&str, &str)]) -> Result<T, CommandError> {
        self.ask(reqwest::Method::GET, path, parameters).await
    }

    /// Sends a JSON document to a page of the API.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, document: &impl Serialize) -> Result<T, CommandError> {
        let body = serde_json::to_vec(document).map_err(|error| CommandError::Failed(error.to_string()))?;
        let url = self.base.join(path).map_err(|error| self.unreachable(&error))?;
        let request = self.client.post(url).header("content-type", "application/json").body(body);
        let answer = self.answered(request.send().await).await?;
        let body = answer.bytes().await.map_err(|error| self.strange(&error))?;
        serde_json::from_slice(&body).map_err(|error| self.strange(&error))
    }

    /// Listens to the events of the instance.
    pub async fn events(&self, path: &str) -> Result<Events, CommandError> {
        let shown = self.shown();
        let body = self.send(reqwest::Method::GET, path, &[]).await?.bytes_stream().boxed();
        Ok(Events { body, pending: Vec::new(), shown })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> Result<T, CommandError> {
        let answer = self.send(method, path, parameters).await?;
        let body = answer.bytes().await.map_err(|error| self.strange(&error))?;
        serde_json::from_slice(&body).map_err(|error| self.strange(&error))
    }

    /// Sends a request whose response has one JSON document a line, and calls `each` with each document.
    async fn lines<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        path: &str,
        parameters: &[(&str, &str)],
        mut each: impl FnMut(T),
    ) -> Result<(), CommandError> {
        let mut body = self.send(method, path, parameters).await?.bytes_stream();
        let mut pending = Vec::new();
        while let Some(chunk) = body.next().await {
            pending.write_all(&chunk.map_err(|error| self.strange(&error))?).map_err(|error| self.strange(&error))?;
            while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                each(serde_json::from_slice(&line).map_err(|error| self.strange(&error))?);
            }
            if pending.len() > MAX_LINE {
                return Err(self.strange(&"its answer does not end"));
            }
        }
        Ok(())
    }

    /// Returns the URL of the instance without the user name and password that it may have.
    fn shown(&self) -> String {
        let port = self.base.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}://{}{port}/", self.base.scheme(), self.base.host_str().unwrap_or_default())
    }

    /// Says why there was no answer, and what to do.
    fn why(&self, error: &(dyn std::error::Error + 'static)) -> String {
        let (mut cause, mut is_refused) = (error, false);
        // The innermost cause is the one that a person can act on.
        loop {
            let io = cause.downcast_ref::<io::Error>();
            is_refused |= io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            // An error in an I/O error is not its source.
            let inner = io.and_then(io::Error::get_ref).map(|inner| -> &(dyn std::error::Error + 'static) { inner });
            let Some(inner) = inner.or_else(|| cause.source()) else { break };
            cause = inner;
        }
        match cause.downcast_ref() {
            Some(rustls::Error::InvalidMessage(_)) => {
                "it does not speak TLS there; write http:// in place of https://".to_owned()
            }
            _ if is_refused => format!("{cause}; start Larder there, or {NAME_THE_DOOR}"),
            _ => cause.to_string(),
        }
    }

    fn strange(&self, error: &dyn std::fmt::Display) -> CommandError {
        CommandError::Failed(format!("{} does not answer as Larder does: {error}", self.shown()))
    }
}

/// Server-sent events of an instance
/// (<https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>).
pub struct Events {
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    /// Bytes of an event that has not ended.
    pending: Vec<u8>,
    /// The URL of the instance.
    shown: String,
}

impl Events {
    /// Returns the name and the data of the next event; `None` when the instance has ended.
    pub async fn next(&mut self) -> Result<Option<(String, String)>, CommandError> {
        loop {
            while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.pending.drain(..end + 2).collect();
                let block = String::from_utf8_lossy(&block).into_owned();
                let field = |name: &str| {
                    let mut lines = block.lines();
                    lines
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                        .map(|value| value.trim().to_owned())
                };
                // A block without a name only keeps the connection alive.
                if let Some(name) = field("event") {
                    return Ok(Some((name, field("data").unwrap_or_default())));
                }
            }
            let broke =
                |error: &dyn std::fmt::Display| CommandError::Failed(format!("{} broke off: {error}", self.shown));
            match self.body.next().await {
                Some(Ok(bytes)) => self.pending.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(broke(&error)),
                None => return Ok(None),
            }
            if self.pending.len() > MAX_LINE {
                return Err(broke(&"an event does not end"));
            }
        }
    }
}
