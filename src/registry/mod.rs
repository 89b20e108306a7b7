//! The registry door: the life of a request, from its head to its response.

mod all_tags;
mod answer;
mod blob_origin;
mod blobs;
mod bring;
mod catalog;
pub mod explain;
mod for_replicas;
mod heads;
mod in_bucket;
mod lists;
mod login;
mod manifests;
mod moments;
mod objects;
mod pages;
mod patience;
mod prefetch;
mod public_lists;
mod query;
mod rejected;
mod replicas;
pub mod respond;
mod tags;
pub mod warm;
mod warnings;
mod written;

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use serde_json::json;
use tracing::Instrument;

pub use all_tags::{AllTags, MOST_TAGS};
pub use answer::Answer;
pub use for_replicas::{ForReplicas, Report};
pub use objects::Objects;
pub use query::Query;
pub use written::Written;

use crate::access::{Access, Caller, Challenge, Refusal, Rules, Wanted, challenge, host, token_form};
use crate::auth::{Client, counted_client};
use crate::body::{self, Body};
use crate::cache::Cache;
use crate::failure::{Failure, FailureKind};
use crate::observe::metrics::Kind;
use crate::observe::{Metrics, Observation, Reason};
use crate::oci::Reference;
use crate::oci::route::{Object, Route};
use crate::routing::{Asked, RoutingError, Target};
use crate::sent::Sent;

/// Header by which a registry states the version of its API; in each response of the registry door.
pub const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The content that a request is for, with the rest of its URL.
struct Content<'a> {
    path: &'a str,
    object: &'a Object,
    query: &'a Query,
}

/// Answers the requests of clients that use Larder as a registry. All connections share it.
pub struct Registry {
    access: Arc<Access>,
    objects: Arc<Objects>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
}

impl Registry {
    /// Creates the registry door's service.
    pub fn new(access: Arc<Access>, objects: Arc<Objects>, cache: Arc<Cache>, metrics: Arc<Metrics>) -> Self {
        Self { access, objects, cache, metrics }
    }

    /// Returns whether the configuration trusts the proxy at this address.
    pub fn trusts_proxy(&self, address: IpAddr) -> bool {
        self.access.rules().forwarding.trusts(address)
    }

    /// Answers one request. If the body consists of pages of a mapped file, the response has its
    /// [`Mapping`](crate::cache::Mapping) among its extensions.
    pub async fn handle(&self, request: Request<Sent>, client: Client) -> Response<Body> {
        let (mut request, body) = request.into_parts();
        if request.method == Method::POST && request.uri.path() == "/token" {
            let form = token_form::read(&mut request, body).await;
            request.extensions.insert(form);
        } else {
            drop(body);
        }
        let rules = self.access.rules();
        let client = rules.forwarding.client(client, &request.headers);
        let mut observation = Observation::begin(&request, client.clone(), self.metrics.clone(), rules.log_access);
        request.extensions.insert(client);
        let mut response = match self.dispatch(&request, &rules, &mut observation).await {
            Ok(response) => response,
            Err(refusal) => {
                match &refusal {
                    Refusal::Failure { failure, wanted } => observation.failed(wanted.as_str(), failure),
                    // Clients ask without credentials first, as a rule, to learn how to log in.
                    Refusal::Unauthenticated { why: Challenge::Missing, .. } => {}
                    refusal if request.uri.path().contains("/v2/") => observation.answered(Reason::refused(refusal)),
                    _ => {}
                }
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
        &self,
        request: &Parts,
        rules: &Arc<Rules>,
        observation: &mut Observation,
    ) -> Result<Response<Body>, Refusal> {
        if request.method == Method::CONNECT {
            return Err(Refusal::Unsupported);
        }
        let query = Query::read(request.uri.query());
        let caller = Caller::of(rules, request)?;
        let routing = &caller.rules.routing;
        let (path, object) = match Route::parse(request.uri.path())? {
            Route::Object { path, object } => (path, object),
            page => return Box::pin(self.page(page, request, &query, &caller)).await,
        };
        let tag = match &object {
            Object::Manifest(Reference::Tag(tag)) => Some(tag.as_str()),
            _ => None,
        };
        let namespace = query.namespace.as_deref();
        let mut target = routing.route(Asked { namespace, host: host(request), path: &path, tag })?;
        target.client = counted_client(request);
        let counters = target.repository.counters.clone();
        observation.found(counters, kind_of(&object), reference_of(&target, &object));
        let span = observation.traced(request);
        let content = Content { path: &path, object: &object, query: &query };
        self.object(request, &caller, content, target, observation).instrument(span).await
    }

    /// Answers a request for content.
    async fn object(
        &self,
        request: &Parts,
        caller: &Caller,
        Content { path, object, query }: Content<'_>,
        mut target: Target,
        observation: &mut Observation,
    ) -> Result<Response<Body>, Refusal> {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(Refusal::Unsupported);
        }
        let passes = target.repository.config.client_consent.is_some();
        observation.admitted(&self.access.admit(request, caller, &target.repository, path).await?);
        caller.means_us()?;
        if passes {
            let client = self.access.upstream_sees(request, caller);
            target.who = client.map_err(|why| challenge(request, caller, why, Some(path)))?;
        }
        let Answer { mut response, state } = match self.objects.answer(request, &target, object, query).await {
            Err(refusal) if passes => {
                return Err(login::ask_who_it_is(refusal, request, caller, &target.who, path));
            }
            answer => answer?,
        };
        observation.answered(state.reason());
        caller.rules.routing.served(path, &target);
        let namespace = query.namespace.as_deref();
        if let Some(value) = namespace.and_then(|namespace| HeaderValue::from_str(namespace).ok()) {
            response.headers_mut().insert(OCI_NAMESPACE, value);
        }
        Ok(response)
    }

    /// Answers requests for pages that are no objects: the base (`/v2/`), the catalog, tokens.
    async fn page(
        &self,
        page: Route,
        request: &Parts,
        query: &Query,
        caller: &Caller,
    ) -> Result<Response<Body>, Refusal> {
        let is_read = request.method == Method::GET || request.method == Method::HEAD;
        let is_form = matches!(page, Route::Token) && request.method == Method::POST;
        if !is_read && !is_form {
            return Err(Refusal::Unsupported);
        }
        let answer = match page {
            // Balancers and containers ask this, by whatever name.
            Route::Health => {
                return Ok(respond::json(json!({ "status": "ok" }).to_string().into(), "application/json"));
            }
            Route::Token => login::give_token(&self.access, request, caller).await?,
            Route::Base { prefix } if caller.rules.routing.knows_prefix(&prefix) => {
                login::base(&self.access, request, caller, query.namespace.as_deref(), &prefix).await?
            }
            Route::Base { prefix } => return Err(RoutingError::UnknownName(prefix).into()),
            Route::Catalog => {
                let identity = self.access.identify(request, caller, None).await?;
                caller.means_us()?;
                return catalog::catalog(&self.cache, query, caller, &identity).await;
            }
            Route::Object { .. } => return Err(Refusal::Unsupported),
        };
        caller.means_us().map(|()| answer)
    }
}

/// Returns the response for a request that comes while too many requests are under way.
pub fn busy() -> Response<Body> {
    let message = "too many requests are under way at this cache; try again soon";
    Refusal::of(Wanted::Name)(Failure::new(FailureKind::Busy, message)).into_response()
}

/// Returns the reference of an object as people write it.
pub fn reference_of(target: &Target, object: &Object) -> String {
    let (prefix, name) = (target.repository.prefix(), target.name.as_str());
    match object {
        Object::Manifest(Reference::Tag(tag)) => [prefix, "/", name, ":", tag.as_str()].concat(),
        Object::Manifest(Reference::Digest(digest)) | Object::Blob(digest) | Object::Referrers(digest) => {
            [prefix, "/", name, "@", digest.text().as_str()].concat()
        }
        Object::Tags | Object::Upload => [prefix, "/", name].concat(),
    }
}

/// Returns the kind as which the statistics count a request.
pub fn kind_of(object: &Object) -> Kind {
    match object {
        Object::Manifest(_) => Kind::Manifest,
        Object::Blob(_) | Object::Upload => Kind::Blob,
        Object::Tags | Object::Referrers(_) => Kind::Listing,
    }
}
