//! The cache that a command works on: a running instance, through its API, or the directory of a stopped one.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::redirect::Policy;
use serde::de::DeserializeOwned;
use url::Url;

use super::error::CommandError;
use crate::cache::{Cache, OpenError};
use crate::config::{self, Config};
use crate::observe::Metrics;
use crate::ops::{self, Images, PinDone, PurgeDone};
use crate::routing::Routing;
use crate::upkeep::scrub::Report;
use crate::upstream::Clients;
use crate::web::dial;

/// Longest time to connect to the API.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time until a response begins, and between two pieces of it.
const ANSWER: Duration = Duration::from_secs(600);
/// Longest line of a report, in bytes.
const MAX_LINE: usize = 16 << 20;

/// Where a cache is to be found.
#[derive(Debug, clap::Args)]
pub struct Where {
    /// The admin door of a running instance, as http://127.0.0.1:17081, or with a login as
    /// http://USER:PASSWORD@HOST:PORT; without it, `admin.listen` of the configuration if the
    /// cache directory is in use, else the directory itself
    #[arg(long, value_name = "URL", value_parser = admin_url)]
    admin: Option<Url>,
}

fn admin_url(text: &str) -> Result<Url, String> {
    match text.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err("write it as http://127.0.0.1:17081".to_owned()),
    }
}

/// The cache that a command works on.
pub enum Instance {
    Running(Api),
    Stopped(Stopped),
}

/// The directory of a stopped instance.
pub struct Stopped {
    cache: Arc<Cache>,
    routing: Routing,
    /// The task that looks after the directory until [`Instance::close`].
    attending: tokio::task::JoinHandle<()>,
}

impl Instance {
    /// Returns the instance that `--admin` names. Without it, opens the cache directory if no instance uses it;
    /// otherwise connects to that instance.
    pub fn find(files: &[PathBuf], place: &Where) -> Result<Self, CommandError> {
        if let Some(url) = &place.admin {
            return Ok(Self::Running(Api::new(url.clone())?));
        }
        let config =
            Config::load(files, config::environment()).map_err(|error| CommandError::Usage(error.to_string()))?;
        let dir = &config.cache.dir;
        let found = std::fs::metadata(dir.join("blobs"));
        if let Err(error) = &found
            && error.kind() == std::io::ErrorKind::PermissionDenied
        {
            let message = format!(
                "{}: {error}; run this as the user that Larder runs as, or name a running instance with --admin",
                dir.display()
            );
            return Err(CommandError::Failed(message));
        }
        if !found.is_ok_and(|found| found.is_dir()) {
            let message = format!(
                "there is no cache in {}; name the configuration with --config, or a running instance with --admin",
                dir.display()
            );
            return Err(CommandError::Failed(message));
        }
        let metrics = Arc::<Metrics>::default();
        match Cache::open(&config, metrics.clone()) {
            Ok(cache) => {
                let routing = Routing::new(&config, &Clients::default(), &metrics);
                let routing = routing.map_err(|error| CommandError::Failed(error.to_string()))?;
                let cache = Arc::new(cache);
                let attending = tokio::spawn(cache.clone().attend());
                Ok(Self::Stopped(Stopped { cache, routing, attending }))
            }
            Err(OpenError::Store(error)) if error.is_in_use() => {
                let none = || CommandError::Failed("admin.listen names no address".to_owned());
                Ok(Self::Running(Api::at(*config.admin.listen.first().ok_or_else(none)?)?))
            }
            Err(error) => Err(CommandError::Failed(error.to_string())),
        }
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
            Self::Stopped(Stopped { cache, routing, .. }) => Ok(ops::purge(cache, routing, which).await?),
            Self::Running(api) => {
                let parameters: Vec<_> = which.map(|which| ("reference", which)).into_iter().collect();
                api.ask(reqwest::Method::DELETE, "api/cache", &parameters).await
            }
        }
    }

    /// Pins an image, or unpins it.
    pub async fn set_pin(&self, reference: &str, is_pinned: bool) -> Result<PinDone, CommandError> {
        match self {
            Self::Stopped(Stopped { cache, routing, .. }) => {
                Ok(ops::set_pin(cache, routing, reference, is_pinned).await?)
            }
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

    /// Writes the changes that the index still has queued, and releases the directory of a stopped instance.
    pub async fn close(self) {
        if let Self::Stopped(Stopped { cache, attending, .. }) = self {
            attending.abort();
            // The only error is that the task was aborted.
            let _ = attending.await;
            cache.close().await;
        }
    }
}

/// The API of a running instance.
pub struct Api {
    client: reqwest::Client,
    base: Url,
}

impl Api {
    fn new(base: Url) -> Result<Self, CommandError> {
        // Another part of the process may have set a provider before; any provider will do.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = dial::plain_client(CONNECT).redirect(Policy::default()).read_timeout(ANSWER).build();
        let client = client.map_err(|error| CommandError::Failed(error.to_string()))?;
        Ok(Self { client, base })
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

    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> Result<reqwest::Response, CommandError> {
        let unreachable =
            |error: &dyn std::fmt::Display| CommandError::Failed(format!("cannot speak to {}: {error}", self.shown()));
        let mut url = self.base.join(path).map_err(|error| unreachable(&error))?;
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        let answer = self.client.request(method, url).send().await.map_err(|error| {
            // The innermost cause is the one that a person can act on.
            let mut cause: &dyn std::error::Error = &error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            unreachable(&cause)
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        let said = serde_json::from_str::<serde_json::Value>(&body).ok();
        let said = said.and_then(|said| Some(said.get("error")?.as_str()?.to_owned()));
        let said = said.unwrap_or_else(|| format!("{} answered {status}", self.shown()));
        // The API's statuses for a wrong reference, and for a name that no repository serves.
        let is_usage = matches!(status.as_u16(), 400 | 404);
        Err(if is_usage { CommandError::Usage(said) } else { CommandError::Failed(said) })
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

    fn strange(&self, error: &dyn std::fmt::Display) -> CommandError {
        CommandError::Failed(format!("{} does not answer as Larder does: {error}", self.shown()))
    }
}
