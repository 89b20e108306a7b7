//! Answers other replicas; see [`crate::cluster`]. They have checked that their client may pull.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use super::answer::Answer;
use super::objects::Objects;
use super::query::Query;
use super::replicas::{AGE, FromReplica};
use super::respond::CacheState;
use crate::access::{Access, Refusal, Wanted};
use crate::auth::Client;
use crate::body::{self, Body};
use crate::cluster::{CLIENT, Cluster, EPOCH, FAILURE, ONLY_STORED, REPORT, REPOSITORY, SCHEME};
use crate::failure::{Failure, FailureKind};
use crate::oci::route::{Object, Route};
use crate::oci::{Digest, Reference};
use crate::routing::Target;
use crate::sent::Sent;
use crate::upstream::Who;

/// Makes what this replica tells of itself, as JSON, and of an object whether it has it.
pub type Report = Arc<dyn Fn(Option<Digest>) -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

/// Answers the requests of other replicas.
pub struct ForReplicas {
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    objects: Arc<Objects>,
    /// Whether the door speaks TLS.
    is_secure: bool,
    report: Report,
}

impl ForReplicas {
    /// `is_secure`: whether the door speaks TLS.
    pub fn new(
        cluster: Arc<Cluster>,
        access: Arc<Access>,
        objects: Arc<Objects>,
        (is_secure, report): (bool, Report),
    ) -> Self {
        Self { cluster, access, objects, is_secure, report }
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Sent>, from: SocketAddr) -> Response<Body> {
        let (mut request, _) = request.into_parts();
        let text = |name: &HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
        let proof = text(&AUTHORIZATION).and_then(|value| value.strip_prefix(SCHEME)).map(str::trim_start);
        if !self.cluster.lets_in(proof, text(&EPOCH), request.uri.path()) {
            tracing::debug!(%from, "a request at cluster.listen is not from a replica, or is for another one");
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
            return response;
        }
        // What is sent from pages of a file depends on it.
        request.extensions.insert(Client { is_secure: self.is_secure, ..Client::connected(from) });
        request.extensions.insert(FromReplica);
        match self.answer(&request).await {
            Ok(response) => response,
            Err(refusal) => {
                let kind = match &refusal {
                    Refusal::Failure { failure, .. } => Some(failure.kind),
                    _ => None,
                };
                let mut response = refusal.into_response();
                response.headers_mut().extend(kind.map(failed));
                response
            }
        }
    }

    async fn answer(&self, request: &Parts) -> Result<Response<Body>, Refusal> {
        if let Some(digest) = request.uri.path().strip_prefix(REPORT).filter(|_| request.method == Method::GET) {
            let digest = digest.strip_prefix('/').and_then(|digest| digest.parse().ok());
            let mut response = Response::new(body::full((self.report)(digest).await.into()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return Ok(response);
        }
        let (path, object) = match Route::parse(request.uri.path())? {
            Route::Object { path, object } => (path, object),
            Route::Health => return Ok(Response::new(body::empty())),
            _ => return Err(Refusal::Unsupported),
        };
        if request.method != Method::GET || !matches!(object, Object::Manifest(_) | Object::Blob(_)) {
            return Err(Refusal::Unsupported);
        }
        let text = |name: &HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
        let rules = self.access.rules();
        let mut repositories = rules.routing.repositories().iter();
        let repository = repositories.find(|repository| text(&REPOSITORY) == Some(repository.prefix()));
        let repository = repository.filter(|repository| repository.config.client_consent.is_none());
        let unknown = "this replica has no such repository; all replicas need the same configuration";
        let unknown = || Refusal::of(Wanted::Name)(Failure::new(FailureKind::Unavailable, unknown));
        let repository = repository.ok_or_else(unknown)?.clone();
        let name = path.parse().map_err(crate::routing::RoutingError::from)?;
        let client = text(&CLIENT).and_then(|client| client.parse().ok());
        let target = Target { repository, name, who: Who::Larder, is_by_tag: false, may_redirect: false, client };
        if text(&CACHE_CONTROL) == Some(ONLY_STORED) && !self.objects.has_stored(&object).await {
            let failure = Failure::new(FailureKind::Unavailable, "it is not stored here");
            return Err(Refusal::of(Wanted::Name)(failure));
        }
        let Answer { mut response, state } = self.objects.answer(request, &target, &object, &Query::default()).await?;
        if let Object::Manifest(Reference::Tag(tag)) = &object
            && let Some(age) = self.objects.age_of_tag(&target, tag).await
        {
            let milliseconds = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            response.headers_mut().insert(AGE, HeaderValue::from(milliseconds));
        }
        if let CacheState::Stale { why, .. } = &state {
            response.headers_mut().extend([failed(why.kind)]);
        }
        Ok(response)
    }
}

fn failed(kind: FailureKind) -> (HeaderName, HeaderValue) {
    (FAILURE, HeaderValue::from_static(kind.as_str()))
}
