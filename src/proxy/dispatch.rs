//! The life of a request of the proxy door.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Body as _;
use tokio::net::TcpStream;
use tracing::Instrument;
use url::Url;

use super::door::Proxy;
use super::headers;
use super::refused::Refused;
use super::registry;
use super::rules::ProxyRules;
use super::secrets::{self, Secrets};
use super::tunnel::{Admission, Came, Kept, Lead, Tunnel};
use super::written;
use crate::access::{Caller, LoginError, Rules, not_now};
use crate::auth::{Client, Identity, Known};
use crate::body::{self, Body};
use crate::failure::{Failure, FailureKind};
use crate::observe::Observation;
use crate::oci::route::{Object, Route};
use crate::routing::Repository;
use crate::sent::Sent;
use crate::upstream::{PassError, Server};

impl Proxy {
    /// Answers a CONNECT. If the tunnel is allowed, also returns what to do with it.
    pub async fn connect(&self, request: &Parts, client: Client) -> (Response<Body>, Option<Lead>) {
        let mut observation = self.observe(request, client.clone());
        match self.lead(request, &client, &mut observation).await {
            Ok(lead) => (observation.watch(Response::new(body::empty())), Some(lead)),
            Err(refused) => {
                note(&mut observation, &refused);
                (observation.watch(refused.into_response()), None)
            }
        }
    }

    async fn lead(&self, request: &Parts, client: &Client, observation: &mut Observation) -> Result<Lead, Refused> {
        let rules = self.rules()?;
        let text = request.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        // Credentials before the host are refused below, and do not belong in the log.
        observation.goes_to(text.rsplit('@').next().unwrap_or_default().to_owned());
        let admission = self.let_through(&rules, request, client).await?;
        observation.admitted(&admission.identity);
        let server = Server::parse(text, None).map_err(|_| Refused::Malformed("CONNECT needs a host and a port"))?;
        rules.permit_tunnel(&server, None)?;
        if rules.intercepts(&server) {
            return Ok(Lead::Open(Tunnel { admission, server, address: None }));
        }
        let (stream, address) = rules.anywhere.dial(&server).await?;
        Ok(Lead::Carry(Tunnel { admission, server, address }, stream))
    }

    /// Opens a connection for bytes that came through an opened tunnel and are not HTTP. Returns it with the address of
    /// its server.
    pub async fn dial(&self, server: &Server) -> Result<(TcpStream, Option<IpAddr>), PassError> {
        match self.rules() {
            Ok(rules) => rules.anywhere.dial(server).await,
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
        let span = observation.traced(&parts);
        let request = Request::from_parts(parts, body);
        let answered = self.passed(request, &came, &client, kept, &mut observation).instrument(span).await;
        let mut response = answered.unwrap_or_else(|refused| {
            note(&mut observation, &refused);
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
        let rules = self.rules()?;
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::CONNECT {
            // This CONNECT came through an opened tunnel; others never get here.
            return Err(Refused::Tunnel);
        }
        let (server, url) = destination(&parts, came)?;
        let path = url[..url::Position::AfterPath].to_owned();
        observation.goes_to(path.clone());
        let (server, url) = rules.names.page(&server, &url).unwrap_or((server, url));
        headers::check(&parts)?;
        let admission = self.admission(&rules, &parts, client, came).await?;
        let identity = &admission.identity;
        observation.admitted(identity);
        rules.anywhere.permit(&server)?;
        if headers::count_down(&mut parts) {
            return Ok(headers::last_hop());
        }
        parts.extensions.insert(client.clone());
        parts.extensions.insert(kept);

        let asked = Purpose::of(&parts, &url);
        let has_logins = rules.for_all.logins.is_some();
        let is_mere_read = body.is_end_stream() && secrets::is_mere_read(&parts);
        // A client that may not pull there with the configuration's credentials may still pull with its own.
        let by_ours = |repository: &Repository| is_mere_read && identity.may_pull(&repository.config.allow, has_logins);
        let may_pull = |repository: &Repository| repository.config.client_consent.is_some() || by_ours(repository);
        if let Purpose::Object { name, object } = &asked
            && let Some((repository, name)) = rules.registries.find(&url, name, &rules.anywhere)?
            && may_pull(&repository)
            && let Some(response) = self.registry(&parts, &url, (repository, name), object, observation).await?
        {
            return Ok(response);
        }
        let secrets = if is_mere_read { rules.secrets(&url, identity, has_logins) } else { Secrets::default() };
        let may_be_copied = matches!(asked, Purpose::Other) && body.is_end_stream() && rules.is_pattern(&url);
        if may_be_copied
            && let Some(response) = self.other(&rules, &parts, &server, &url, &secrets, observation).await?
        {
            return Ok(response);
        }
        let tunnel = Tunnel { admission: admission.clone(), server, address: None };
        let forwarded = self.forwarded(&rules, Request::from_parts(parts, body), tunnel, &url, &secrets).await;
        match forwarded {
            Err(PassError::Failure(failure)) if matches!(asked, Purpose::Base) => {
                self.base_of(&rules, &url, failure, &path, may_pull).await
            }
            forwarded => Ok(forwarded?),
        }
    }

    /// Answers `/v2/` for a registry that cannot be reached: clients ask this first, and stop if they get no answer.
    async fn base_of(
        &self,
        rules: &ProxyRules,
        url: &Url,
        failure: Failure,
        path: &str,
        may_pull: impl Fn(&Repository) -> bool,
    ) -> Result<Response<Body>, Refused> {
        let found = rules.registries.find(url, "any", &rules.anywhere)?;
        let repository = found.map(|(repository, _)| repository).filter(|repository| may_pull(repository));
        self.base_without(repository.as_deref(), failure, path).await
    }

    /// Authenticates the client of a request and checks that it may use the door.
    async fn admission(
        self: &Arc<Self>,
        rules: &Arc<ProxyRules>,
        parts: &Parts,
        client: &Client,
        came: &Came,
    ) -> Result<Admission, Refused> {
        match came {
            Came::Open => self.let_through(rules, parts, client).await,
            Came::Through { tunnel, .. } => tunnel.admission.judge(rules),
        }
    }

    /// Forwards a request, and forgets the copies of pages that it has changed at its server.
    async fn forwarded(
        self: &Arc<Self>,
        rules: &Arc<ProxyRules>,
        request: Request<Sent>,
        tunnel: Tunnel,
        url: &Url,
        secrets: &Secrets,
    ) -> Result<Response<Body>, PassError> {
        let method = request.method().clone();
        let forwarded = self.forward(rules, request, tunnel, url, secrets).await;
        let changed = forwarded.as_ref().map(|answer| written::changed_by(&method, url, answer)).unwrap_or_default();
        for url in changed {
            self.forget(rules, url).await;
        }
        forwarded
    }

    /// Answers in place of a registry that cannot be reached, if any content of it is cached that does not depend on a
    /// client's own credentials.
    async fn base_without(
        &self,
        repository: Option<&Repository>,
        failure: Failure,
        path: &str,
    ) -> Result<Response<Body>, Refused> {
        let prefixes = repository.map(|repository| repository.prefix().to_owned()).into_iter().collect::<Vec<_>>();
        let names = self.cache.catalog(prefixes, String::new(), 1).await.unwrap_or_default();
        if names.is_empty() {
            return Err(Refused::Failure(failure));
        }
        tracing::info!(url = path, %failure, "a registry cannot be reached; what is cached of it is served");
        Ok(registry::base(&failure))
    }

    fn observe(&self, request: &Parts, client: Client) -> Observation {
        Observation::begin(request, client, self.metrics.clone(), self.access.rules().log_access)
    }

    /// Authenticates a client that may use the door without a login, if a login lets it read more. A wrong login counts
    /// as none.
    async fn known_for_repositories(&self, rules: &Rules, stranger: &Identity, headers: &HeaderMap) -> Option<Known> {
        let (logins, shown) = (rules.logins.as_ref()?, shown(headers)?);
        let mut repositories = rules.routing.repositories().iter();
        if repositories.all(|repository| stranger.may_pull(&repository.config.allow, true)) {
            return None;
        }
        self.access.login(logins, stranger.address, &shown).await.ok().flatten()
    }

    /// Lets a client in by its address, or by its login.
    async fn let_through(&self, rules: &ProxyRules, request: &Parts, client: &Client) -> Result<Admission, Refused> {
        let caller = Caller::new(&rules.for_all, client.clone()).map_err(|_| Refused::NotYou)?;
        let (stranger, has_logins, allow) = (caller.stranger(), caller.has_logins(), &rules.door.allow);
        if stranger.may_pull(allow, has_logins) {
            let known = self.known_for_repositories(&rules.for_all, &stranger, &request.headers).await;
            return Ok(Admission::new(&rules.for_all, client.clone(), Identity { known, ..stranger }));
        }
        let Some(logins) = &rules.for_all.logins else {
            return Err(Refused::NotYou);
        };
        let challenge = || Refused::Login(logins.realm().to_owned());
        let shown = shown(&request.headers).ok_or_else(challenge)?;
        let known = match self.access.login(logins, stranger.address, &shown).await {
            Ok(known) => known,
            Err(LoginError::Invalid) => return Err(challenge()),
            Err(LoginError::NotNow(why)) => return Err(Refused::Registry(not_now(why))),
        };
        let identity = Identity { known, ..stranger };
        match identity.may_pull(allow, has_logins) {
            true => Ok(Admission::new(&rules.for_all, client.clone(), identity)),
            false if identity.known.is_none() => Err(challenge()),
            false => Err(Refused::NotYou),
        }
    }
}

/// Tells the observation why a request was refused.
fn note(observation: &mut Observation, refused: &Refused) {
    match refused.failure() {
        Some(failure) => observation.failed("request", failure),
        None => observation.refused(refused),
    }
}

/// Returns the credentials that a client sends to the proxy door, as an `Authorization` header.
fn shown(headers: &HeaderMap) -> Option<HeaderMap> {
    Some(HeaderMap::from_iter([(AUTHORIZATION, headers.get(PROXY_AUTHORIZATION)?.clone())]))
}

/// What a request asks for.
enum Purpose {
    /// `/v2/`: whether this is a registry.
    Base,
    Object {
        name: String,
        object: Object,
    },
    Other,
}

impl Purpose {
    fn of(request: &Parts, url: &Url) -> Self {
        let is_read = request.method == Method::GET || request.method == Method::HEAD;
        // A query may mean anything to a registry, except for the parameters of lists; so may a path before `/v2/`.
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

/// Returns where a request goes: the destination that it names itself, else the one of its tunnel.
fn destination(request: &Parts, came: &Came) -> Result<(Server, Url), Refused> {
    let (scheme, server) = match came {
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
                Server::parse(authority, Some(usual)).map_err(|_| Refused::Malformed("the URL has no usable host"))?,
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
            let server = match named.or(host) {
                Some(named) => Server::parse(named, Some(usual)).map_err(|_| Refused::Malformed("Host is no host"))?,
                None => tunnel.server.clone(),
            };
            (scheme, server)
        }
    };
    let mut url = server.url(scheme).map_err(|_| Refused::Malformed("the URL has no usable host"))?;
    let path = request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    url.set_path(path);
    url.set_query(query);
    Ok((server, url))
}
