//! Blobs that are in the bucket of `[storage.s3]` and not in the cache directory.
//!
//! They are hits: the index knows them, and no upstream is asked unless the bucket fails.

use http::header::{CACHE_CONTROL, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use super::answer::Answer;
use super::blobs::{Blobs, for_socket};
use super::respond::{self, CacheState};
use crate::access::{Refusal, StoredObject, Wanted, party};
use crate::body::Body;
use crate::cache::{Aside, Content, FillReader, InBucket};
use crate::failure::Failure;
use crate::observe::reason::Hit;
use crate::routing::Target;
use crate::upstream::Lane;

impl Blobs {
    /// Answers with a blob that is in the bucket, if this client may read it.
    pub(super) async fn answer_from_bucket(
        &self,
        request: &Parts,
        target: &Target,
        found: InBucket,
    ) -> Result<Answer, Refusal> {
        let refuse = Refusal::of(Wanted::Blob);
        let (digest, size) = (found.upload.digest, found.size);
        self.consent.confirm(target, StoredObject::Blob(size), &digest).await.map_err(&refuse)?;
        if found.media_type.is_some() {
            self.has_as_blob(target, &digest).await.map_err(&refuse)?;
        }
        let state = CacheState::Hit { since: found.since, why: Hit::Storage };
        if request.method == Method::HEAD {
            return Ok(Answer { response: respond::blob_head(&digest, Some(size), &state), state });
        }
        if target.may_redirect
            && let Some(response) = self.redirect(&found, &state).await
        {
            return Ok(Answer { response, state });
        }
        let origin = self.cache.from_bucket(&found, Some(self.origins.of(target, &digest, Lane::Aside)));
        let aside = Aside { digest, origin, is_own: true };
        let content = match self.begun_from_bucket(target, &found).await {
            Ok(fill) => self.cache.growing(fill, aside, Some(size)),
            // A failure of Larder's own disk must not fail a pull.
            Err(failure) if failure.kind.is_of_the_store() => Content::Uncached { aside, size: Some(size) },
            Err(failure) => return Err(refuse(failure)),
        };
        let response = respond::blob(&request.headers, &digest, for_socket(request, content), &state).await?;
        Ok(Answer { response, state })
    }

    /// Returns the response that sends a client to the bucket, where the configuration says so.
    async fn redirect(&self, found: &InBucket, state: &CacheState) -> Option<Response<Body>> {
        let link = self.cache.link(found).await?;
        let mut response = respond::blob_head(&found.upload.digest, None, state);
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(LOCATION, HeaderValue::from_str(link.as_str()).ok()?);
        // The URL lets in anybody who has it, for a short time.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }

    /// Joins or begins the fill from the bucket, and waits until it has begun.
    async fn begun_from_bucket(&self, target: &Target, found: &InBucket) -> Result<FillReader, Failure> {
        let (mut fill, is_first) = self.fill_from_bucket(target, found);
        let mut begun = fill.size().await;
        if begun.is_err() && !is_first {
            // Another client began the fill, perhaps with other upstreams behind the bucket.
            (fill, _) = self.fill_from_bucket(target, found);
            begun = fill.size().await;
        }
        begun.map(|_| fill)
    }

    fn fill_from_bucket(&self, target: &Target, found: &InBucket) -> (FillReader, bool) {
        let digest = &found.upload.digest;
        let origin = || self.cache.from_bucket(found, Some(self.origins.of(target, digest, Lane::Fill)));
        self.join(target, digest, &party(target), origin)
    }
}
