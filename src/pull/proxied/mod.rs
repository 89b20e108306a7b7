//! What becomes of a request that came by the proxy door: content of a registry comes from the cache, what
//! the configuration's patterns match too, and all else goes to its server and back.

mod copies;
mod forward;
mod headers;
mod names;
mod other;
mod refused;
mod registry;
mod secrets;
mod standing;
mod written;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Body as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use url::Url;

pub use crate::upstream::Place;
pub use copies::Copies;
pub use refused::usage;
pub use standing::{Standing, Tunnel};

use super::admission::{Door, Wrong};
use super::body::{self, Body};
use super::error::Refusal;
use super::observed::Observation;
use super::respond::CacheState;
use super::routing::Repository;
use super::{Client, Live, Pull};
use crate::auth::{Identity, Known};
use crate::config::{Config, Forbidden, Pattern, ProxyDoor};
use crate::failure::{Failure, FailureKind};
use crate::oci::route::{Object, Route};
use crate::sent::Sent;
use crate::telemetry::Metrics;
use crate::upstream::{Anywhere, BuildError, Clients, PassError};
use names::Names;
pub(super) use refused::Refused;
use registry::Registries;
use secrets::Secrets;

/// What the proxy door does, by the configuration.
pub struct Proxying {
    door: ProxyDoor,
    /// Of paths that are cached beside content of registries.
    patterns: Vec<Pattern>,
    registries: Registries,
    /// Hosts by which they are known beside those of their upstreams.
    names: Names,
    anywhere: Anywhere,
}

/// How a request came to the door.
#[derive(Clone)]
pub enum Came {
    /// In absolute form, by itself.
    Open,
    /// Through a tunnel.
    Through { is_secure: bool, tunnel: Box<Tunnel> },
}

/// What goes on as long as anything of a connection does.
#[derive(Clone)]
pub struct Kept {
    /// The connection's place among all others.
    pub place: Arc<dyn Send + Sync>,
    /// Says when all connections are to end.
    pub stop: watch::Receiver<Option<Duration>>,
}

/// What to do with a tunnel.
pub enum Lead {
    /// Find out what it is, and answer it if it is HTTP.
    Open(Tunnel),
    /// Carry what comes.
    Carry(Tunnel, TcpStream),
}

impl Proxying {
    pub fn new(config: &Config, clients: &Clients, metrics: &Arc<Metrics>) -> Result<Option<Self>, BuildError> {
        let Some(door) = &config.proxy else {
            return Ok(None);
        };
        Ok(Some(Self {
            registries: Registries::new(config, door, clients, metrics)?,
            names: Names::new(config),
            anywhere: Anywhere::new(door, metrics.clone(), &clients.shared().ours)?,
            door: door.clone(),
            patterns: config.cache.patterns.clone(),
        }))
    }

    /// Whether a tunnel may lead to a place, as far as it is known already: by a repository's name it leads to the
    /// upstream, too, and each request in it is looked at by itself.
    fn permit_tunnel(&self, place: &Place, address: Option<IpAddr>) -> Result<(), Forbidden> {
        match self.names.behind(place) {
            Some(behind) if address.is_none() && self.anywhere.permit(behind).is_ok() => Ok(()),
            _ => self.anywhere.permit_connection(place, address),
        }
    }

    /// Whether TLS with a place is opened.
    fn intercepts(&self, place: &Place) -> bool {
        self.door.intercepts(&place.host, place.port) || self.names.behind(place).is_some()
    }

    /// Whether `cache.patterns` match a URL.
    fn is_pattern(&self, url: &Url) -> bool {
        self.patterns.iter().any(|pattern| pattern.is_match(url.path()))
    }
}

impl Pull {
    /// Answers a CONNECT; where it comes about, what to do with the tunnel.
    pub async fn connect(&self, request: &Parts, client: Client) -> (Response<Body>, Option<Lead>) {
        let mut observation = self.observe(request, client.clone());
        match self.lead(request, &client, &mut observation).await {
            Ok(lead) => (observation.watch(Response::new(body::empty())), Some(lead)),
            Err(refused) => {
                observation.not_passed(&refused);
                (observation.watch(refused.into_response()), None)
            }
        }
    }

    async fn lead(&self, request: &Parts, client: &Client, observation: &mut Observation) -> Result<Lead, Refused> {
        let (live, proxying) = self.proxying()?;
        let text = request.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        // A login in front of the place is refused below, and is not for the log.
        observation.goes_to(text.rsplit('@').next().unwrap_or_default().to_owned());
        let standing = self.let_through(&live, &proxying, request, client).await?;
        observation.admitted(&standing.identity);
        let place = Place::parse(text, None).map_err(|_| Refused::Malformed("CONNECT needs a host and a port"))?;
        proxying.permit_tunnel(&place, None)?;
        if proxying.intercepts(&place) {
            return Ok(Lead::Open(Tunnel { standing, place, address: None }));
        }
        let (server, address) = proxying.anywhere.dial(&place).await?;
        Ok(Lead::Carry(Tunnel { standing, place, address }, server))
    }

    /// A connection for what came through an opened tunnel and is no HTTP, with the address of its server.
    pub async fn dial(&self, place: &Place) -> Result<(TcpStream, Option<IpAddr>), PassError> {
        match self.proxying() {
            Ok((_, proxying)) => proxying.anywhere.dial(place).await,
            Err(closed) => Err(Failure::new(FailureKind::Unavailable, closed).into()),
        }
    }

    /// Answers one request.
    pub async fn pass(
        self: &Arc<Self>,
        request: Request<Sent>,
        came: Came,
        client: Client,
        kept: Kept,
    ) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let client = Client { is_secure: matches!(came, Came::Through { is_secure: true, .. }), ..client };
        let mut observation = self.observe(&parts, client.clone());
        let is_head = parts.method == Method::HEAD;
        let answered = self.passed(Request::from_parts(parts, body), &came, &client, kept, &mut observation).await;
        let mut response = answered.unwrap_or_else(|refused| {
            observation.not_passed(&refused);
            refused.into_response()
        });
        if is_head {
            *response.body_mut() = body::empty();
        }
        observation.watch(response)
    }

    async fn passed(
        self: &Arc<Self>,
        request: Request<Sent>,
        came: &Came,
        client: &Client,
        kept: Kept,
        observation: &mut Observation,
    ) -> Result<Response<Body>, Refused> {
        let (live, proxying) = self.proxying()?;
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::CONNECT {
            // Through a tunnel that was opened; others are seen to before.
            return Err(Refused::Tunnel);
        }
        let (place, url) = destination(&parts, came)?;
        let path = url[..url::Position::AfterPath].to_owned();
        observation.goes_to(path.clone());
        let (place, url) = proxying.names.page(&place, &url).unwrap_or((place, url));
        headers::check(&parts)?;
        let standing = self.standing(&live, &proxying, &parts, client, came).await?;
        let identity = &standing.identity;
        observation.admitted(identity);
        proxying.anywhere.permit(&place)?;
        if headers::count_down(&mut parts) {
            return Ok(headers::last_hop());
        }
        parts.extensions.insert(client.clone());
        parts.extensions.insert(kept);

        let asked = Asked::of(&parts, &url);
        let has_logins = live.logins.is_some();
        let is_mere_read = body.is_end_stream() && secrets::is_mere_read(&parts);
        // Who may not pull there with the configuration's credentials may still with its own.
        let by_ours = |repository: &Repository| is_mere_read && identity.may_pull(&repository.config.allow, has_logins);
        let may_pull = |repository: &Repository| repository.config.client_consent.is_some() || by_ours(repository);
        if let Asked::Object { name, object } = &asked
            && let Some((repository, name)) = proxying.registries.find(&url, name, &proxying.anywhere)?
            && may_pull(&repository)
            && let Some(response) = self.registry(&parts, &url, (repository, name), object, observation).await?
        {
            return Ok(response);
        }
        let secrets = if is_mere_read { proxying.secrets(&url, identity, has_logins) } else { Secrets::default() };
        let may_be_copied = matches!(asked, Asked::Other) && body.is_end_stream() && proxying.is_pattern(&url);
        if may_be_copied
            && let Some(response) = self.other(&proxying, &parts, &place, &url, &secrets, observation).await?
        {
            return Ok(response);
        }
        let tunnel = Tunnel { standing: standing.clone(), place, address: None };
        let forwarded = self.forwarded(&proxying, Request::from_parts(parts, body), tunnel, &url, &secrets).await;
        match forwarded {
            Err(PassError::Failure(failure)) if matches!(asked, Asked::Base) => {
                self.base_of(&proxying, &url, failure, &path, may_pull).await
            }
            forwarded => Ok(forwarded?),
        }
    }

    /// Answers `/v2/` for a registry that cannot be reached: clients ask this first, and go no further without an answer.
    async fn base_of(
        &self,
        proxying: &Proxying,
        url: &Url,
        failure: Failure,
        path: &str,
        may_pull: impl Fn(&Repository) -> bool,
    ) -> Result<Response<Body>, Refused> {
        let found = proxying.registries.find(url, "any", &proxying.anywhere)?;
        let repository = found.map(|(repository, _)| repository).filter(|repository| may_pull(repository));
        self.base_without(repository.as_deref(), failure, path).await
    }

    /// Who asks, and that it is let in.
    async fn standing(
        self: &Arc<Self>,
        live: &Arc<Live>,
        proxying: &Arc<Proxying>,
        parts: &Parts,
        client: &Client,
        came: &Came,
    ) -> Result<Standing, Refused> {
        match came {
            Came::Open => self.let_through(live, proxying, parts, client).await,
            Came::Through { tunnel, .. } => tunnel.standing.judge(live, proxying),
        }
    }

    /// Passes a request on, and forgets what it has changed at its server.
    async fn forwarded(
        self: &Arc<Self>,
        proxying: &Arc<Proxying>,
        request: Request<Sent>,
        tunnel: Tunnel,
        url: &Url,
        secrets: &Secrets,
    ) -> Result<Response<Body>, PassError> {
        let method = request.method().clone();
        let forwarded = self.forward(proxying, request, tunnel, url, secrets).await;
        let changed = forwarded.as_ref().map(|answer| written::changed_by(&method, url, answer)).unwrap_or_default();
        for url in changed {
            self.forget(proxying, url).await;
        }
        forwarded
    }

    /// Stands in for a registry that cannot be reached, if anything of it is cached that does not depend on a client's
    /// own credentials.
    async fn base_without(
        &self,
        repository: Option<&Repository>,
        failure: Failure,
        path: &str,
    ) -> Result<Response<Body>, Refused> {
        let prefixes = repository.map(|repository| repository.prefix().to_owned()).into_iter().collect::<Vec<_>>();
        let names = self.cache().catalog(prefixes, String::new(), 1).await.unwrap_or_default();
        if names.is_empty() {
            return Err(Refused::Failure(failure));
        }
        tracing::info!(url = path, %failure, "a registry cannot be reached; what is cached of it is served");
        Ok(registry::base(&failure))
    }

    fn proxying(&self) -> Result<(Arc<Live>, Arc<Proxying>), Refused> {
        let live = self.live.load_full();
        let proxying = live.proxying.clone().ok_or(Refused::Closed)?;
        Ok((live, proxying))
    }

    /// As whom a client is known that may use the door without a login, where it may read more with one. A wrong login
    /// is none.
    async fn known_for_repositories(&self, live: &Live, stranger: &Identity, headers: &HeaderMap) -> Option<Known> {
        let (logins, shown) = (live.logins.as_ref()?, shown(headers)?);
        let mut repositories = live.routing.repositories().iter();
        if repositories.all(|repository| stranger.may_pull(&repository.config.allow, true)) {
            return None;
        }
        self.login(logins, stranger.address, &shown).await.ok().flatten()
    }

    /// Lets a client in by its address, or by what it logs in with.
    async fn let_through(
        &self,
        live: &Arc<Live>,
        proxying: &Proxying,
        request: &Parts,
        client: &Client,
    ) -> Result<Standing, Refused> {
        let door = Door::for_client(live, client.clone()).map_err(|_| Refused::NotYou)?;
        let (stranger, has_logins, allow) = (door.stranger(), door.has_logins(), &proxying.door.allow);
        if stranger.may_pull(allow, has_logins) {
            let known = self.known_for_repositories(live, &stranger, &request.headers).await;
            return Ok(Standing::new(live, client.clone(), Identity { known, ..stranger }));
        }
        let Some(logins) = &live.logins else {
            return Err(Refused::NotYou);
        };
        let challenge = || Refused::Login(logins.realm().to_owned());
        let shown = shown(&request.headers).ok_or_else(challenge)?;
        let known = match self.login(logins, stranger.address, &shown).await {
            Ok(known) => known,
            Err(Wrong::Invalid) => return Err(challenge()),
            Err(Wrong::NotNow(why)) => return Err(Refused::Registry(super::admission::not_now(why))),
        };
        let identity = Identity { known, ..stranger };
        match identity.may_pull(allow, has_logins) {
            true => Ok(Standing::new(live, client.clone(), identity)),
            false if identity.known.is_none() => Err(challenge()),
            false => Err(Refused::NotYou),
        }
    }
}

/// What a client logs in with at the proxy door, as what it logs in with elsewhere.
fn shown(headers: &HeaderMap) -> Option<HeaderMap> {
    Some(HeaderMap::from_iter([(AUTHORIZATION, headers.get(PROXY_AUTHORIZATION)?.clone())]))
}

/// Tells the log how the cache stood to a request.
fn tell(state: &CacheState, path: &str) {
    match state {
        CacheState::Hit { .. } | CacheState::Confirmed { .. } => tracing::info!(path, "cache hit"),
        CacheState::Miss { .. } => tracing::info!(path, "cache miss"),
        CacheState::Stale { why, .. } => tracing::info!(path, %why, "cache hit, of an old copy"),
    }
}

/// What a request asks for.
enum Asked {
    /// `/v2/`: is this a registry?
    Base,
    Object {
        name: String,
        object: Object,
    },
    Other,
}

impl Asked {
    fn of(request: &Parts, url: &Url) -> Self {
        let is_read = request.method == Method::GET || request.method == Method::HEAD;
        // A query may mean anything to a registry but for those of lists, and so may a path before /v2/.
        if !is_read || !url.path().starts_with("/v2/") {
            return Self::Other;
        }
        match Route::parse(url.path()) {
            Ok(Route::Object { path: name, object: object @ (Object::Tags | Object::Referrers(_)) })
                if url.query_pairs().all(|(key, _)| ["n", "last", "artifactType"].contains(&&*key)) =>
            {
                Self::Object { name, object }
            }
            _ if url.query().is_some() => Self::Other,
            Ok(Route::Base { prefix }) if prefix.is_empty() => Self::Base,
            Ok(Route::Object { path: name, object: object @ (Object::Manifest(_) | Object::Blob(_)) }) => {
                Self::Object { name, object }
            }
            _ => Self::Other,
        }
    }
}

/// Where a request goes: as it says itself, else where its tunnel leads.
fn destination(request: &Parts, came: &Came) -> Result<(Place, Url), Refused> {
    let (scheme, place) = match came {
        Came::Open => {
            let scheme = request.uri.scheme_str().unwrap_or_default();
            let usual = match scheme {
                "http" => 80,
                "https" => 443,
                _ => return Err(Refused::Malformed("only http and https can be asked for")),
            };
            let authority = request.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
            (
                scheme,
                Place::parse(authority, Some(usual)).map_err(|_| Refused::Malformed("the URL has no usable host"))?,
            )
        }
        Came::Through { is_secure, tunnel } => {
            let (scheme, usual) = if *is_secure { ("https", 443) } else { ("http", 80) };
            let named = request.uri.authority().map(http::uri::Authority::as_str);
            let mut hosts = request.headers.get_all(HOST).iter();
            let (host, more) = (hosts.next().map(|host| host.to_str()).transpose(), hosts.next());
            let (Ok(host), None) = (host, more) else {
                return Err(Refused::Malformed("there has to be one Host"));
            };
            let place = match named.or(host) {
                Some(named) => Place::parse(named, Some(usual)).map_err(|_| Refused::Malformed("Host is no host"))?,
                None => tunnel.place.clone(),
            };
            (scheme, place)
        }
    };
    let mut url = place.url(scheme).map_err(|_| Refused::Malformed("the URL has no usable host"))?;
    let path = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    url.set_path(path);
    url.set_query(query);
    Ok((place, url))
}

impl From<PassError> for Refused {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Forbidden(forbidden) => Self::Forbidden(forbidden),
            PassError::Failure(failure) => Self::Failure(failure),
        }
    }
}

impl From<Forbidden> for Refused {
    fn from(forbidden: Forbidden) -> Self {
        Self::Forbidden(forbidden)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Registry(refusal)
    }
}
