//! How requests reach an upstream: connections, redirects, headers, deadlines, and what each response tells about the
//! upstream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use quick_cache::sync::Cache;
use reqwest::Response;
use tokio::sync::Semaphore;
use url::Url;

use super::answers::BuildError;
use super::budget::Budget;
use super::errors;
use super::health::{Health, Limits, limited_for};
use super::line::{Begun, Shown};
use super::logins_sent::LoginsSent;
use super::ours::{Circle, Ours};
use super::pool::{Pool, client};
use super::probing::{Probing, Watched};
use super::reach::{Reach, Resolver};
use super::record::Record;
use super::shared::Shared;
use super::storages::{Storage, Storages};
use super::way::{Keys, Way};
use super::who::{Who, WhoId};
use crate::clock::Instant;
use crate::config::{self, ClientTls, Credentials, HostHeaders, Proxy};
use crate::failure::{Failure, FailureKind};
use crate::observe::{Metrics, OTHER_HOSTS};
use crate::oci::Digest;
use crate::oci::route::Route;

/// How long, after a client's rate limit ended, Larder remembers how many limits in a row the client had.
const LIMITS_REMEMBERED: Duration = Duration::from_secs(120);

/// Most clients with credentials of their own whose rate limits are remembered.
const MAX_LIMITED: usize = 10_000;
/// The same for an upstream that only clients name.
const FEW_LIMITED: usize = 100;

/// Sends requests to one upstream, and keeps the upstream's health and rate limit.
pub struct Transport {
    /// Host and port, for logs and errors.
    pub label: Arc<str>,
    origin: Url,
    http: Pool,
    /// For other hosts, without the client certificate, which is only for the upstream. `None`: there is no such
    /// certificate.
    elsewhere: Option<Pool>,
    ours: Ours,
    headers: Vec<(HeaderName, HeaderValue)>,
    host_headers: Arc<[HostHeaders]>,
    /// The secrets that log in at the upstream.
    pub(super) logins_sent: LoginsSent,
    max_redirect: u8,
    /// Whether the configuration names the upstream.
    pub(super) is_known: bool,
    /// How long to wait for the headers of a response.
    pub(super) patience: Duration,
    /// How long to wait between two reads of a blob.
    pub(super) read_timeout: Duration,
    /// Bounds the large documents in memory.
    pub(super) documents: Arc<Semaphore>,
    reach: Arc<Reach>,
    health: Mutex<Health>,
    record: Mutex<Record>,
    way: Way,
    /// Whether the configuration has credentials for the upstream.
    has_login: bool,
    /// The background task that probes whether the upstream is back after it did not answer.
    pub(super) probing: Probing,
    pub(super) me: Weak<Self>,
    /// Rate limits that apply to one client's own credentials.
    pub(super) limited: Cache<WhoId, (Instant, Failure, Limits)>,
    pub(super) budget: Mutex<Option<Budget>>,
    /// The account that the budget belongs to, for metrics.
    pub(super) account: String,
    pub(super) metrics: Arc<Metrics>,
}

/// A request whose `Authorization` is not known yet.
pub struct Ask<'a> {
    pub method: Method,
    pub url: Url,
    /// With whose credentials the request is sent.
    pub who: &'a Who,
    /// Whether the request counts against a limit on pulls.
    pub is_pull: bool,
    /// The object that the request is about: a storage that sent this object before is not waited for as long as
    /// others.
    pub of: Option<Digest>,
    pub headers: HeaderMap,
}

/// How far a failed request got.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// Whether the upstream was reached: it answered, or it broke the connection off.
    pub was_reached: bool,
    /// When the request began.
    pub since: Instant,
}

/// The redirect that first led away from an upstream.
#[derive(Clone, Debug)]
pub struct Led {
    pub url: Url,
    pub status: StatusCode,
}

/// How long to wait for the answer of a storage that is asked only to be sure.
const STORAGE_PATIENCE: Duration = Duration::from_secs(2);

impl Transport {
    /// Makes the transport of an upstream. `account`: see the field; `patience`: how long to wait for the headers of a
    /// response.
    pub fn new(
        config: &config::Upstream,
        account: String,
        patience: Duration,
        metrics: Arc<Metrics>,
        shared: &Shared,
    ) -> Result<Arc<Self>, BuildError> {
        let ours = &shared.ours;
        let label: Arc<str> = label(&config.url.origin).into();
        let fail = |reason: String| BuildError { upstream: label.clone(), reason };
        let proxy_hosts = match &config.proxy {
            Proxy::Through(proxies) => proxies.hosts(),
            Proxy::Direct => Vec::new(),
        };
        let (own, others) = (&config.url.origin, &config.redirect_hosts);
        let reach = Arc::new(Reach::new(own, others, proxy_hosts, config.confined_to.as_deref()));
        let pool = |tls: ClientTls| {
            let config = config::Upstream { tls, ..config.clone() };
            let resolver = Resolver { reach: reach.clone(), ours: ours.clone(), port: None };
            let make = move |port| client(&config, Resolver { port, ..resolver.clone() });
            Pool::new(ours.clone(), make).map_err(fail)
        };
        let without = config.tls.identity.as_ref().map(|_| ClientTls { identity: None, ..config.tls.clone() });
        let login = match &config.credentials {
            Some(Credentials::Login(login)) => Some(login),
            Some(Credentials::Helper(_)) | None => None,
        };
        let of_hosts = config.host_headers.iter().flat_map(|rule| rule.set.iter().chain(&rule.append));
        let logins_sent = LoginsSent::new(login, config.headers.iter().chain(of_hosts).map(|(_, value)| value));
        let keys = if config.confined_to.is_none() { Keys::Upstream } else { Keys::ProxyDoor };
        let (http, elsewhere) = (pool(config.tls.clone())?, without.map(pool).transpose()?);
        Ok(Arc::new_cyclic(|me| Self {
            http,
            elsewhere,
            probing: Probing::default(),
            me: me.clone(),
            documents: shared.documents.clone(),
            ours: ours.clone(),
            origin: config.url.origin.clone(),
            headers: config.headers.clone(),
            host_headers: config.host_headers.clone(),
            logins_sent,
            max_redirect: config.max_redirect,
            is_known: config.confined_to.is_none(),
            patience,
            read_timeout: config.read_timeout,
            reach,
            health: Mutex::default(),
            record: Mutex::default(),
            has_login: config.credentials.is_some(),
            way: Way::new(label.clone(), config.connect_timeout, &config.proxy, keys),
            limited: Cache::new(if config.confined_to.is_none() { MAX_LIMITED } else { FEW_LIMITED }),
            budget: Mutex::default(),
            account,
            metrics,
            label: label.clone(),
        }))
    }

    /// Returns the upstream's name in metrics. Upstreams that only clients name share one: there may be any number of
    /// them.
    pub(super) fn counted_as(&self) -> &str {
        if self.is_known { &self.label } else { OTHER_HOSTS }
    }

    /// Returns whether `url` leads to the upstream itself.
    pub fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.origin.origin()
    }

    /// Checks whether the upstream is worth asking now.
    pub fn may_ask(&self, ask: &Ask<'_>) -> Result<(), Failure> {
        let now = Instant::now();
        if ask.who.is_client() {
            let id = ask.who.id();
            match self.limited.get(&id) {
                Some((until, why, _)) if now < until => return Err(limited_for(&why, until - now)),
                // The number of limits in a row is remembered a while longer.
                Some((until, ..)) if now < until + LIMITS_REMEMBERED => {}
                Some(_) => drop(self.limited.remove(&id)),
                None => {}
            }
        }
        self.health().may_ask(now, self.patience, ask.is_pull)
    }

    /// Sends a request and follows its redirects. Data for the upstream alone (credentials, configured headers, the
    /// client certificate) is sent to no other origin. After a redirect to another origin it is not sent to the
    /// upstream either: the storage would choose which request carries it. Also returns where a redirect led, even if
    /// the request failed there.
    pub async fn follow(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
        storages: &Storages,
    ) -> (Result<Response, Failure>, Option<Led>) {
        let mut led = None;
        let response = self.follow_to_end(ask, authorization, storages, &mut led).await;
        (response, led)
    }

    async fn follow_to_end(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
        storages: &Storages,
        led: &mut Option<Led>,
    ) -> Result<Response, Failure> {
        let mut url = ask.url.clone();
        let (mut is_at_home, mut patience) = (true, self.patience);
        for _ in 0..=self.max_redirect {
            let mut headers = ask.headers.clone();
            let is_own = self.is_own(&url);
            is_at_home &= is_own;
            if is_at_home {
                self.add_secrets(&mut headers, &url, authorization, ask.who);
            }
            let request = self.client(&url, is_at_home)?.request(ask.method.clone(), url.clone());
            let response = self.execute(request, headers, Some(ask).filter(|_| is_own), ask.who, patience).await?;
            self.take_note_of_address(&url, &response)?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            url = self.redirect_target(&url, response.headers())?;
            if led.is_none() && !self.is_own(&url) {
                let is_known = ask.of.is_some_and(|digest| storages.know(Storage::of(&digest, &url)));
                patience = if is_known { patience.min(STORAGE_PATIENCE) } else { patience };
                *led = Some(Led { url: url.clone(), status: response.status() });
            }
            tracing::debug!(upstream = %self.label, to = url.host_str().unwrap_or_default(), "following a redirect");
        }
        Err(self.wrong(format!("redirected more than {} times (max_redirect)", self.max_redirect)))
    }

    /// Sends a request to a URL that a redirect led to before; `None` where that URL no longer gives the object.
    pub async fn at_address(&self, ask: &Ask<'_>, address: Url) -> Option<Response> {
        let ask = Ask {
            url: address,
            method: ask.method.clone(),
            who: ask.who,
            is_pull: false,
            of: ask.of,
            headers: ask.headers.clone(),
        };
        if self.is_own(&ask.url) {
            return None;
        }
        let (response, _) = self.follow(&ask, None, &Storages::default()).await;
        let response = response.ok()?;
        let is_there = response.status().is_success() || response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
        is_there.then_some(response)
    }

    /// Probes whether the upstream answers again; any answer will do.
    pub async fn look(&self, patience: Duration) {
        let mut url = self.origin.clone();
        url.set_path("/v2/");
        let who = Who::Anonymous;
        let ask = Ask {
            method: Method::GET,
            url: url.clone(),
            who: &who,
            is_pull: false,
            of: None,
            headers: HeaderMap::new(),
        };
        let Ok(http) = self.client(&url, true) else {
            return;
        };
        let looked = self.execute(http.get(url), HeaderMap::new(), Some(&ask), &who, patience.min(self.patience)).await;
        if let Err(failure) = looked {
            tracing::debug!(upstream = %self.label, %failure, "an upstream does not answer yet");
        }
    }

    /// Adds the secrets that log in at the upstream: an `Authorization`, and where Larder asks as itself also the
    /// headers that the configuration has for the upstream. A client's own credentials are sent without any others.
    fn add_secrets(&self, headers: &mut HeaderMap, url: &Url, authorization: Option<&HeaderValue>, who: &Who) {
        let (is_own, is_larder) = (self.is_own(url), !who.is_client());
        authorization.into_iter().for_each(|value| self.logins_sent.note(value));
        if is_own && is_larder {
            headers.extend(self.headers.iter().cloned());
        }
        headers.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
        let is_named = is_own && self.is_known;
        for rule in self.host_headers.iter().filter(|rule| is_larder && rule.may_go_to(url, is_named)) {
            for (name, value) in &rule.set {
                headers.insert(name, value.clone());
            }
            for (name, value) in &rule.append {
                headers.append(name, value.clone());
            }
        }
    }

    /// Sends a request for a token to the upstream's token service. The token service counts as a part of the upstream:
    /// without tokens the upstream cannot be asked either. `is_trusted`: whether the token service may see the
    /// upstream's credentials.
    pub async fn ask_for_token(
        &self,
        request: TokenCall<'_>,
        who: &Who,
        is_trusted: bool,
    ) -> Result<Response, Failure> {
        let TokenCall { url, form, authorization } = request;
        if !self.permits(&url) {
            return Err(self.wrong(self.reach.refusal(&url)));
        }
        let mut headers = HeaderMap::new();
        // With headers for another server, this upstream would get a token of that server.
        if self.is_own(&url) {
            self.add_secrets(&mut headers, &url, authorization.as_ref(), who);
        } else {
            authorization.iter().for_each(|value| self.logins_sent.note(value));
            headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
        }
        form.into_iter().for_each(|form| self.logins_sent.note_form(form));
        let http = self.client(&url, is_trusted)?;
        let call = match form {
            None => http.get(url.clone()),
            Some(form) => {
                headers
                    .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                http.post(url.clone()).body(form.to_owned())
            }
        };
        let ask = Ask { method: Method::GET, url, who, is_pull: false, of: None, headers: HeaderMap::new() };
        self.execute(call, headers, Some(&ask), who, self.patience).await
    }

    /// Sends a client's request unchanged. There is no deadline: the client waits for the answer, and may take long to
    /// send its body.
    pub async fn pass(&self, request: reqwest::Request) -> Result<Response, Failure> {
        let (url, since) = (request.url().clone(), Instant::now());
        let line = Begun::new(&self.label, request.method(), &url, Shown::All);
        let result = self.client(&url, true)?.execute(request).await;
        let result = result.map_err(|error| self.way.failure(error));
        let mut result = result.and_then(|response| self.take_note_of_address(&url, &response).map(|()| response));
        self.count(&mut result, since, line);
        result
    }

    /// Returns the HTTP client for a URL. `is_theirs`: whether the client may show the certificate that is for the
    /// upstream. Fails for Larder's own doors: no upstream may lead there.
    fn client(&self, url: &Url, is_theirs: bool) -> Result<reqwest::Client, Failure> {
        if self.ours.are_named(url) {
            return Err(self.wrong(Circle(label(url)).to_string()));
        }
        let pool = self.elsewhere.as_ref().filter(|_| !is_theirs).unwrap_or(&self.http);
        pool.client(url).map_err(|error| Failure::new(FailureKind::Unavailable, format!("{}: {error}", self.label)))
    }

    /// Notes from which address the upstream answered. Fails where the upstream may not have this address.
    fn take_note_of_address(&self, url: &Url, response: &Response) -> Result<(), Failure> {
        match response.remote_addr().filter(|_| self.is_own(url)) {
            Some(address) => self.reach.answered_from(address.ip().to_canonical()).map_err(|why| self.wrong(why)),
            None => Ok(()),
        }
    }

    /// Sends one request. `own`: the request, where the response tells how the upstream does; a storage that the
    /// upstream redirects to is not the upstream. A 429 to such a request is a failure; every other status is a
    /// response.
    async fn execute(
        &self,
        request: reqwest::RequestBuilder,
        mut headers: HeaderMap,
        own: Option<&Ask<'_>>,
        who: &Who,
        patience: Duration,
    ) -> Result<Response, Failure> {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let (http, request) = request.headers(headers).build_split();
        let request = request.map_err(|error| self.way.failure(error))?;
        let shown = match own {
            Some(ask) if ask.url == *request.url() => Shown::All,
            _ => Shown::Host,
        };
        let line = Begun::new(&self.label, request.method(), request.url(), shown);
        let since = Instant::now();
        // An upstream that breaks a connection off may do better at once. An upstream that cannot be reached, or hangs,
        // costs the next request as much again.
        let (mut result, was_reached) = match tokio::time::timeout(patience, http.execute(request)).await {
            Ok(Ok(response)) => (Ok(response), true),
            Ok(Err(error)) => {
                let was_reached = !error.is_connect() && !error.is_timeout();
                (Err(self.way.failure(error)), was_reached)
            }
            Err(_) => (Err(errors::timeout(&self.label, "an answer", patience)), false),
        };
        self.count(&mut result, since, line);
        let Some(ask) = own else {
            return result;
        };
        if let (Ok(response), false) = (&mut result, who.is_client()) {
            response.extensions_mut().insert(errors::AskedAsLarder { has_login: self.has_login });
        }
        match result {
            Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                Err(self.rate_limited(response, ask, who).await)
            }
            result => {
                self.take_note(&result, Reached { was_reached, since }, who, ask.is_pull);
                result
            }
        }
    }

    /// Returns what is left of the rate limit, where the upstream reports one.
    pub fn budget(&self) -> Option<Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the account that Larder uses at the upstream, for people: a user name, or a word for its absence.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// Returns the upstream's health, locked.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how the upstream did lately, locked.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permits(&self, url: &Url) -> bool {
        self.reach.permits(url)
    }

    fn redirect_target(&self, from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let target = location.and_then(|location| from.join(location).ok());
        let target = target.filter(|target| matches!(target.scheme(), "http" | "https"));
        let target = target.ok_or_else(|| self.wrong("redirected without a usable Location".to_owned()))?;
        if !self.permits(&target) {
            return Err(self.wrong(self.reach.refusal(&target)));
        }
        Ok(target)
    }

    /// Returns the failure for an upstream that did something wrong: `what`.
    pub fn wrong(&self, what: String) -> Failure {
        Failure::new(FailureKind::WrongContent, format!("{}: {what}", self.label))
    }
}

impl Watched for Transport {
    fn health(&self) -> MutexGuard<'_, Health> {
        Self::health(self)
    }

    fn probing(&self) -> &Probing {
        &self.probing
    }

    async fn look(&self, patience: Duration) {
        Self::look(self, patience).await;
    }
}

/// A request to a token service.
pub struct TokenCall<'a> {
    pub url: Url,
    /// The body of a POST; `None`: the request is a GET.
    pub form: Option<&'a str>,
    pub authorization: Option<HeaderValue>,
}

fn label(origin: &Url) -> String {
    let host = origin.host_str().unwrap_or_default();
    origin.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns whether a URL is that of a blob in the storage behind a registry. The path of such a URL names the digest,
/// and is not the path of a registry, which would have to be asked itself.
pub fn is_storage_of(digest: &Digest, url: &Url) -> bool {
    url.path().contains(digest.hex().as_str()) && !matches!(Route::parse(url.path()), Ok(Route::Object { .. }))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

#[cfg(test)]
pub mod tests;
