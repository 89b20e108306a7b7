//! The life of a request: what is asked for, of which repository, and from where it is answered.

mod admission;
mod asked_host;
mod blob;
mod body;
mod by_name;
mod consent;
mod credentials;
mod error;
mod forwarded;
mod heads;
mod listing;
mod manifest;
mod moments;
mod names;
mod negative;
mod observed;
mod pages;
mod patience;
mod proxied;
mod public_lists;
mod rejected;
pub mod respond;
pub mod routing;
mod token_form;
mod warnings;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use tokio::sync::{Semaphore, watch};

pub use crate::auth::NotNow;
pub use crate::cache::Mapping;
pub use admission::Manager;
pub use asked_host::AskedHost;
pub use body::{Body, full};
pub use error::Refusal;
pub use observed::Client;
pub use proxied::{Came, Kept, Lead, Place, Tunnel, usage};

use crate::auth::{ClientAddress, Logins, counted_as};
use crate::cache::Cache;
use crate::cache::flight::Flights;
use crate::config::{Allow, Config, HostPattern};
use crate::descriptors::Shares;
use crate::failure::{Failure, FailureKind};
use crate::index::{ListKey, Listing, TagKey};
use crate::oci::route::{Object, Route};
use crate::oci::{Digest, Name, Reference};
use crate::places::Places;
use crate::sent::Sent;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Kind, Outcome};
use crate::upstream::{BuildError, Clients, Proof, WhoId};
use crate::web::WebError;
use admission::Door;
use by_name::ByName;
use consent::Consents;
use credentials::{NoRandomness, Sealer};
use error::Wanted;
use forwarded::Forwarding;
use heads::{Heads, Said};
use moments::Moments;
use negative::Negative;
use pages::NamedBy;
use patience::Lagging;
use proxied::{Copies, Proxying};
use rejected::Rejected;
use respond::CacheState;
use routing::{Asked, Routing};
use warnings::Warnings;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// Answers requests for content; shared by all connections.
pub struct Pull {
    /// What a change of the configuration replaces.
    live: ArcSwap<Live>,
    /// Told when that was done.
    changes: watch::Sender<()>,
    clients: Clients,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    sealer: Sealer,
    consents: Consents,
    /// What follows from what was shown of a name.
    by_name: ByName,
    /// Confirmed absences.
    negative: Negative,
    /// Answers to HEADs of a moment ago.
    heads: Heads,
    /// Pulls that ask again for what they just asked for.
    moments: Moments,
    /// What upstreams warn of.
    warnings: Warnings,
    /// Upstreams that sent wrong content.
    rejected: Arc<Rejected>,
    /// Repositories whose upstreams took too long lately.
    lagging: Lagging,
    checks: Flights<(TagKey, WhoId), manifest::Checked>,
    fetches: Flights<(String, Name, Digest, WhoId), manifest::Fetched>,
    asked_heads: Flights<(String, String, WhoId), Option<Said>>,
    /// Of objects, to those who ask.
    proofs: Flights<(String, String, WhoId), Proof>,
    sizes: Flights<(String, String, WhoId), Option<u64>>,
    listings: Flights<(ListKey, WhoId), Listing>,
    /// Pages of lists, and which upstreams named them.
    named_by: NamedBy,
    /// Names that are not for everybody, and until when that is believed.
    private: quick_cache::sync::Cache<(String, String), Instant>,
    /// Content of other URLs on its way.
    copies: Copies,
    /// Bounds what is asked only to learn.
    learning: Arc<Semaphore>,
    /// Bounds the questions whether a name has what is stored already.
    naming: Semaphore,
    /// Bounds all questions to upstreams that are under way, by client and upstream.
    questions: Places,
    /// Bounds the requests that are passed on.
    forwards: Places,
}

/// What follows from the configuration.
struct Live {
    routing: Arc<Routing>,
    forwarding: Forwarding,
    /// Only clients of these networks; empty: all.
    allow_cidrs: Vec<ipnet::IpNet>,
    /// `None`: nobody logs in here.
    logins: Option<Arc<Logins>>,
    /// Who may manage the cache.
    managers: Vec<Allow>,
    /// Names by which the registry door may be asked, beside addresses and those of repositories.
    hosts: Vec<HostPattern>,
    /// And the admin door.
    admin_hosts: Vec<HostPattern>,
    /// `None`: there is no proxy door.
    proxying: Option<Arc<Proxying>>,
    log_access: bool,
}

/// A configuration to answer by.
pub struct Prepared(Live);

/// Why requests cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("an issuer of tokens {0}")]
    Issuer(#[from] WebError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// An answer and what the statistics say of it.
struct Answer {
    response: Response<Body>,
    state: CacheState,
}

impl Pull {
    pub fn new(config: &Config, cache: Arc<Cache>, metrics: Arc<Metrics>) -> Result<Arc<Self>, PullError> {
        let clients = Clients::default();
        Ok(Arc::new(Self {
            live: ArcSwap::from_pointee(Live::new(config, &clients, &metrics, None)?),
            changes: watch::Sender::default(),
            clients,
            cache,
            metrics,
            sealer: Sealer::new()?,
            consents: Consents::default(),
            by_name: ByName::default(),
            negative: Negative::default(),
            heads: Heads::default(),
            moments: Moments::default(),
            warnings: Warnings::default(),
            asked_heads: Flights::default(),
            lagging: Lagging::default(),
            rejected: Arc::default(),
            checks: Flights::default(),
            fetches: Flights::default(),
            proofs: Flights::default(),
            sizes: Flights::default(),
            listings: Flights::default(),
            named_by: NamedBy::default(),
            private: quick_cache::sync::Cache::new(consent::PRIVATE_NAMES),
            copies: Copies::default(),
            learning: Arc::new(Semaphore::new(consent::LEARNING)),
            naming: Semaphore::new(names::AT_ONCE),
            questions: Places::new(Shares::now().questions),
            forwards: Places::new(Shares::now().forwards),
        }))
    }

    /// As configured by default, with its cache there.
    #[cfg(test)]
    pub fn in_directory(dir: &std::path::Path) -> Arc<Self> {
        let environment = [("LARDER_CACHE__DIR".to_owned(), dir.display().to_string())];
        let config = Config::load(&[], environment.into_iter()).expect("valid");
        let metrics = Arc::new(Metrics::default());
        let cache = Arc::new(Cache::open(&config, metrics.clone()).expect("a cache"));
        Self::new(&config, cache, metrics).expect("a door")
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub fn routing(&self) -> Arc<Routing> {
        self.live.load().routing.clone()
    }

    /// Says where the process listens: there nothing is asked, whoever leads there.
    pub fn listens_at(&self, addresses: &[SocketAddr]) {
        self.clients.shared().ours.set(addresses);
    }

    /// Whether requests come by the proxy door, too.
    pub fn has_proxy_door(&self) -> bool {
        self.live.load().proxying.is_some()
    }

    /// Answers by another configuration from now on. Running transfers end as they began; upstreams that
    /// are configured as before keep what is known of them.
    pub fn apply(&self, prepared: Prepared) {
        self.live.store(Arc::new(prepared.0));
        self.consents.clear();
        self.by_name.clear();
        self.negative.clear();
        self.heads.clear();
        self.lagging.clear();
        self.named_by.clear();
        self.moments.clear();
        self.warnings.clear();
        self.rejected.clear();
        self.private.clear();
        self.changes.send_replace(());
    }

    /// What [`Pull::apply`] takes; all that can fail of it.
    pub fn prepare(&self, config: &Config) -> Result<Prepared, PullError> {
        let before = self.live.load_full();
        Ok(Prepared(Live::new(config, &self.clients, &self.metrics, Some(&before))?))
    }

    /// Answers one request. Where the body is made of pages of a mapped file, its [`Mapping`] is among
    /// the extensions of the response.
    pub async fn handle(self: &Arc<Self>, request: Request<Sent>, client: Client) -> Response<Body> {
        let (mut request, body) = request.into_parts();
        if request.method == Method::POST && request.uri.path() == "/token" {
            let form = token_form::read(&mut request, body).await;
            request.extensions.insert(form);
        } else {
            drop(body);
        }
        let client = self.live.load().forwarding.client(client, &request.headers);
        let mut observation = self.observe(&request, client.clone());
        request.extensions.insert(client);
        let mut response = match self.dispatch(&request, &mut observation).await {
            Ok(response) => response,
            Err(refusal) => {
                observation.refused(&refusal);
                refusal.into_response()
            }
        };
        if request.method == Method::HEAD {
            *response.body_mut() = body::empty();
        }
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        observation.watch(response)
    }

    async fn dispatch(
        self: &Arc<Self>,
        request: &Parts,
        observation: &mut observed::Observation,
    ) -> Result<Response<Body>, Refusal> {
        if request.method == Method::CONNECT {
            return Err(Refusal::Unsupported);
        }
        let query = Query::read(request.uri.query());
        let is_read = request.method == Method::GET || request.method == Method::HEAD;
        let live = self.live.load_full();
        let routing = live.routing.clone();
        let door = Door::of(&live, request)?;
        let (path, object) = match Route::parse(request.uri.path())? {
            Route::Object { path, object } => (path, object),
            page => return self.page(page, request, &query, &door).await,
        };
        let tag = match &object {
            Object::Manifest(Reference::Tag(tag)) => Some(tag.as_str()),
            _ => None,
        };
        let namespace = query.namespace.as_deref();
        let asked = Asked { namespace, host: host(request), path: &path, tag };
        let mut target = routing.route(asked)?;
        target.client = counted_client(request);
        observation.found(target.repository.prefix(), kind_of(&object));
        if !is_read {
            return Err(Refusal::Unsupported);
        }

        let passes = target.repository.config.client_consent.is_some();
        observation.admitted(&self.admit(request, &door, &target.repository, &path).await?);
        door.is_meant()?;
        if passes {
            let client = self.upstream_sees(request, &door);
            target.who = client.map_err(|why| self.challenge(request, &door, why, Some(&path)))?;
        }
        let wanted = wanted_of(&object);
        let is_waiting = self.waits_for_a_place(&object);
        let answer = async {
            match object {
                Object::Manifest(reference) => self.manifest(request, &target, reference).await,
                Object::Blob(digest) => self.blob(request, &target, digest).await,
                Object::Tags => self.tags(request, &target, &query).await,
                Object::Referrers(subject) => self.referrers(request, &target, subject, &query).await,
                Object::Upload => Err(Refusal::Unsupported),
            }
        };
        let answer = patience::in_time(&target, wanted, answer, is_waiting).await;
        let Answer { mut response, state } = match answer {
            Err(refusal) if passes => return Err(self.ask_who_it_is(refusal, request, &door, &target.who, &path)),
            answer => answer?,
        };
        observation.answered(state.outcome());
        routing.served(&path, &target);
        if let Some(value) = namespace.and_then(|namespace| HeaderValue::from_str(namespace).ok()) {
            response.headers_mut().insert(OCI_NAMESPACE, value);
        }
        Ok(response)
    }
}

impl Pull {
    /// Answers what is no object: the base, the catalog, tokens.
    async fn page(
        self: &Arc<Self>,
        page: Route,
        request: &Parts,
        query: &Query,
        door: &Door,
    ) -> Result<Response<Body>, Refusal> {
        let is_read = request.method == Method::GET || request.method == Method::HEAD;
        let is_form = matches!(page, Route::Token) && request.method == Method::POST;
        if !is_read && !is_form {
            return Err(Refusal::Unsupported);
        }
        let answer = match page {
            Route::Token => self.give_token(request, door).await?,
            Route::Base { prefix } if door.live.routing.knows_prefix(&prefix) => {
                self.base(request, door, query.namespace.as_deref(), &prefix).await?
            }
            Route::Base { prefix } => return Err(routing::RoutingError::UnknownName(prefix).into()),
            Route::Catalog => {
                let identity = self.identify(request, door, None).await?;
                door.is_meant()?;
                return self.catalog(query, door, &identity).await;
            }
            Route::Object { .. } => return Err(Refusal::Unsupported),
        };
        door.is_meant().map(|()| answer)
    }

    /// Whether what is asked for waited for a place among the transfers, when this is called.
    fn waits_for_a_place(self: &Arc<Self>, object: &Object) -> impl FnOnce() -> bool + use<> {
        let (pull, digest) = (self.clone(), if let Object::Blob(digest) = object { Some(*digest) } else { None });
        move || digest.and_then(|digest| pull.cache.running_fill(&digest)).is_some_and(|fill| fill.waited_long())
    }
}

impl Live {
    fn new(
        config: &Config,
        clients: &Clients,
        metrics: &Arc<Metrics>,
        before: Option<&Self>,
    ) -> Result<Self, PullError> {
        let logins = Logins::new(&config.auth, before.and_then(|before| before.logins.as_deref()))?;
        let routing = Arc::new(Routing::new(config, clients, metrics)?);
        let allow_cidrs = config.auth.allow_cidrs.clone();
        let managers = config.admin.allow.clone();
        let proxying = Proxying::new(config, clients, metrics)?.map(Arc::new);
        Ok(Self {
            proxying,
            routing,
            forwarding: Forwarding::new(&config.server),
            allow_cidrs,
            logins,
            managers,
            hosts: config.server.hosts.clone(),
            admin_hosts: config.admin.hosts.clone(),
            log_access: config.logging.access,
        })
    }
}

fn base() -> Response<Body> {
    let mut response = Response::new(body::full(Bytes::from_static(b"{}")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer where too many requests are under way.
pub fn busy() -> Response<Body> {
    let message = "too many requests are under way at this cache; try again soon";
    Refusal::of(Wanted::Name)(Failure::new(FailureKind::Busy, message)).into_response()
}

/// Whether a request came over TLS.
fn is_secure(request: &Parts) -> bool {
    request.extensions.get::<Client>().is_some_and(|client| client.is_secure)
}

/// The address that a request's client is counted by.
fn counted_client(request: &Parts) -> Option<IpAddr> {
    let client = request.extensions.get::<Client>()?;
    match client.address.counted() {
        ClientAddress::Known(address) => Some(address),
        // Behind a proxy that does not say who it is: counted with the proxy.
        ClientAddress::Unknown => Some(counted_as(client.peer.ip())),
    }
}

/// HTTP/2 has the host in the URI, HTTP/1.1 in a header.
fn host(request: &Parts) -> Option<&str> {
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| request.headers.get(HOST)?.to_str().ok())
}

fn wanted_of(object: &Object) -> Wanted {
    match object {
        Object::Manifest(_) | Object::Referrers(_) => Wanted::Manifest,
        Object::Blob(_) | Object::Upload => Wanted::Blob,
        Object::Tags => Wanted::Name,
    }
}

fn kind_of(object: &Object) -> Kind {
    match object {
        Object::Manifest(_) => Kind::Manifest,
        Object::Blob(_) | Object::Upload => Kind::Blob,
        Object::Tags | Object::Referrers(_) => Kind::Listing,
    }
}

/// The parts of a query that mean something here.
#[derive(Clone, Debug, Default)]
struct Query {
    /// `ns`
    namespace: Option<String>,
    n: Option<String>,
    last: Option<String>,
    /// All of it but `ns`, as it came: which page of a list is asked for.
    page: String,
}

impl Query {
    fn read(query: Option<&str>) -> Self {
        let query = query.unwrap_or_default();
        let mut read = Self { page: pages::without_namespace(query), ..Self::default() };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let place = match &*key {
                "ns" => &mut read.namespace,
                "n" => &mut read.n,
                "last" => &mut read.last,
                _ => continue,
            };
            place.get_or_insert_with(|| value.into_owned());
        }
        read
    }
}
