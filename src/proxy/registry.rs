//! Content of registries, from the cache and through it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use url::Url;

use super::door::Proxy;
use super::refused::Refused;
use super::tell::tell;
use crate::access::{MAX_AUTHORIZATION, Refusal, StoredObject};
use crate::auth::counted_client;
use crate::body::{self, Body};
use crate::failure::{Failure, FailureKind};
use crate::observe::Observation;
use crate::observe::reason::Miss;
use crate::oci::route::Object;
use crate::oci::{Digest, Name, Reference};
use crate::registry::respond::{self, CacheState};
use crate::registry::{API_VERSION, Answer, Query, kind_of, reference_of};
use crate::routing::{Repository, Target};
use crate::upstream::Who;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

impl Proxy {
    /// Answers from the cache and through it. `None`: the registry itself is to answer, because it refuses, or because
    /// the request is not for the cache.
    pub(super) async fn registry(
        &self,
        request: &Parts,
        url: &Url,
        (repository, name): (Arc<Repository>, Name),
        object: &Object,
        observation: &mut Observation,
    ) -> Result<Option<Response<Body>>, Refused> {
        let who = match (repository.config.client_consent, request.headers.get(AUTHORIZATION)) {
            (None, _) => Who::Larder,
            (Some(_), None) => Who::Anonymous,
            (Some(_), Some(value)) if value.len() > MAX_AUTHORIZATION => return Ok(None),
            (Some(_), Some(value)) => {
                let mut value = value.clone();
                value.set_sensitive(true);
                Who::Header(value)
            }
        };

        // A server that is no registry may have something else at these paths.
        let is_list = matches!(object, Object::Tags | Object::Referrers(_));
        let target =
            Target { repository, name, who, is_by_tag: false, may_redirect: false, client: counted_client(request) };
        observation.found(target.repository.counters.clone(), kind_of(object), reference_of(&target, object));
        if matches!(object, Object::Upload) {
            return Ok(None);
        }
        let query = Query::read(url.query());
        let answer = self.objects.answer(request, &target, object, &query).await;
        let Answer { mut response, state } = match answer {
            Ok(answer) => answer,
            // The registry answers in its own words, with its own challenge.
            Err(Refusal::Failure { failure, .. })
                if matches!(failure.kind, FailureKind::NotFound | FailureKind::Denied)
                    || (is_list && failure.kind == FailureKind::WrongContent) =>
            {
                return Ok(None);
            }
            Err(refusal) => return Err(refusal.into()),
        };
        observation.answered(state.reason());
        tell(&state, url.path());
        // If this request began the transfer, the origin finds out whether the blob is public once the transfer has
        // ended.
        let is_coming = matches!((object, &state), (Object::Blob(_), CacheState::Miss(Miss::Absent)));
        if let Some((what, digest)) = shown(object, &response).filter(|_| !is_coming) {
            self.objects.consent.learn_whether_public(&target, what, digest).await;
        }
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        Ok(Some(response))
    }
}

/// Returns the object that an answer showed its client.
fn shown(object: &Object, response: &Response<Body>) -> Option<(StoredObject, Digest)> {
    let header = |name: HeaderName| response.headers().get(name)?.to_str().ok();
    match object {
        Object::Manifest(Reference::Digest(digest)) => Some((StoredObject::Manifest, *digest)),
        Object::Manifest(Reference::Tag(_)) => {
            Some((StoredObject::Manifest, header(DOCKER_CONTENT_DIGEST)?.parse().ok()?))
        }
        Object::Blob(digest) => {
            let size = match response.status() {
                StatusCode::OK => header(CONTENT_LENGTH)?.parse().ok()?,
                StatusCode::PARTIAL_CONTENT => header(CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok()?,
                _ => return None,
            };
            Some((StoredObject::Blob(size), *digest))
        }
        _ => None,
    }
}

/// Returns the answer to `/v2/` in place of a registry that cannot be reached; it says that no login is needed.
pub fn base(failure: &Failure) -> Response<Body> {
    let mut response = Response::new(body::full(Bytes::from_static(b"{}")));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    respond::warn(headers, &format!("larder answers for the registry: {}", failure.message()));
    response
}
