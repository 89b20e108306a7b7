//! How objects that are in the bucket of `[storage.s3]` come back.
//!
//! The index answers whether an object is there, and how long it is; the bucket is asked only for bytes. They come by a
//! fill like any other ([`super::bucket_origin`]), so that any number of readers cost one request.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::bucket::InBucket;
use super::bucket_origin::BucketOrigin;
use super::fill::Origin;
use super::read::Content;
use super::{Cache, Party};
use crate::clock::Instant;
use crate::failure::Failure;
use crate::index::{ObjectEntry, Timestamp, Viewer, Write};
use crate::oci::Digest;

/// How long a client may begin to fetch a blob by the URL that it was sent to.
const LINK: Duration = Duration::from_secs(120);
/// How long to wait until an object that came back is stored, and how often to look.
const STORING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);
/// The name, of no repository, for which an object comes back that no client has asked for.
const RECALLED: &str = " from the bucket";

impl Cache {
    /// Returns whether there is a bucket.
    pub fn has_bucket(&self) -> bool {
        self.bucket.is_some()
    }

    /// Returns an object that is in the bucket, whether or not it has a file here.
    pub async fn in_bucket(&self, digest: &Digest) -> Option<InBucket> {
        self.bucket.as_ref()?;
        let entry = self.read(self.index.object(digest)).await.ok().flatten()?;
        InBucket::of(digest, entry)
    }

    /// Returns the origin of an object that is in the bucket; `next` is asked where the bucket fails.
    pub fn from_bucket(&self, found: &InBucket, next: Option<Arc<dyn Origin>>) -> Arc<dyn Origin> {
        match (&self.bucket, next) {
            (None, Some(next)) => next,
            (bucket, next) => Arc::new(BucketOrigin::new(bucket.clone(), self.upkeep.clone(), found, next)),
        }
    }

    /// Returns a complete object from the store. What is in the bucket alone comes back first.
    pub async fn recalled(self: &Arc<Self>, digest: &Digest) -> Result<Option<Content>, Failure> {
        if let Some(content) = self.stored(digest).await? {
            return Ok(Some(content));
        }
        let Some(found) = self.in_bucket(digest).await else {
            return Ok(None);
        };
        let party = Party { source: RECALLED.into(), client: None, is_named: true };
        let (fill, _) = self.fill(&Viewer::own(RECALLED), *digest, party, || self.from_bucket(&found, None));
        fill.whole().await?;
        drop(fill);
        // It is stored a moment after its digest has matched.
        let deadline = Instant::now() + STORING;
        while self.fills.running(digest).is_some() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        self.stored(digest).await
    }

    /// Notes that an object that came back has a file again. No upstream has shown it to anybody by that: who may see it is
    /// as before.
    pub(super) fn came_back(&self, digest: Digest, size: u64) {
        let entry = ObjectEntry { size, media_type: None, stored_at: Timestamp::now(), generation: None };
        self.index.note(Write::Object { digest, entry });
        self.upkeep.has_file(&digest, size);
    }

    /// Returns a URL of the bucket at which a client may fetch a blob, where clients are sent there.
    pub async fn link(&self, found: &InBucket) -> Option<Url> {
        let known = self.bucket.as_ref().filter(|known| known.bucket.redirects && !known.rests())?;
        match known.bucket.link(&found.upload, LINK).await {
            Ok(link) => {
                self.upkeep.used(&found.upload.digest);
                Some(link)
            }
            Err(error) => {
                known.failed(&error);
                None
            }
        }
    }

    /// Returns the name of the bucket and why it fails; `None` if it works or there is none.
    pub fn bucket_trouble(&self) -> Option<(String, String)> {
        let known = self.bucket.as_ref()?;
        Some((known.bucket.name().to_owned(), known.trouble()?))
    }

    /// Finds out what the server of the bucket cannot do, and says it in the log.
    pub async fn probe_bucket(&self) {
        let Some(known) = &self.bucket else {
            return;
        };
        let (bucket, found) = (known.bucket.name(), known.bucket.probe().await);
        for finding in &found {
            tracing::warn!(bucket, "{finding}");
        }
        match found.first() {
            None => tracing::info!(bucket, "the bucket can do all that is needed"),
            Some(finding) if finding.is_fatal() => known.failed(finding.why()),
            Some(_) => {}
        }
    }
}
