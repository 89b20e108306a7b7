//! The questions to an upstream that transfer no blob: does it have this object, for this client, and how long is the
//! object?
//!
//! HEAD is a hint and GET decides. A blob is asked for by HEAD, then by GET of its first byte (`Range: bytes=0-0`,
//! redirects followed), and where that says too little by GET of the whole blob. A manifest is asked for by HEAD, then
//! by GET. How reliable HEAD is at this registry is remembered ([`Habit`](super::habits::Habit)).

use std::hash::BuildHasher;
use std::time::Duration;

use futures_util::StreamExt;
use http::header::{ETAG, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::answers::{
    HeadSaid, Lane, ManifestHead, Proof, content_digest, content_length, content_range, is_page,
    length_behind_which_nothing_is, media_type,
};
use super::client::Upstream;
use super::storages::Storage;
use super::transport::{Ask, Led, is_storage_of};
use super::warning;
use super::who::Who;
use crate::clock::Instant;
use crate::failure::{Failure, FailureKind};
use crate::oci::media_type::{self, MediaType};
use crate::oci::{Digest, Name, Reference};

/// Blobs up to this size, in bytes, are read as a whole where the answer names no digest. A page may well have the same
/// length, and anyone who writes the path that the page shows can give the page that length.
const GUESSABLE: u64 = 64 * 1024;
/// How long a question waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// The upstream's description of a blob that it has.
struct Told {
    size: Option<u64>,
    /// Whether the answer names the digest.
    is_named: bool,
}

impl Upstream {
    /// Waits for a turn to ask. Of many questions at once only some are under way, so that their connections are
    /// reused. Blob transfers have places of their own.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let turn = tokio::time::timeout(PATIENCE, self.asked.turns.clone().acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            let message = format!("{}: too many questions to it are under way; try again soon", self.label());
            Failure::new(FailureKind::Busy, message)
        })
    }

    /// Asks about a manifest without fetching it. This costs nothing of Docker Hub's quota. `may_fetch`: whether a
    /// manifest that HEAD does not find may be asked for by GET, where GET may say why the manifest is not available.
    pub async fn head_manifest(
        &self,
        who: &Who,
        name: &Name,
        reference: &Reference,
        may_fetch: bool,
    ) -> Result<HeadSaid, Failure> {
        if !self.asked.manifests().is_worth_asking(Instant::now()) {
            return Ok(HeadSaid::Nothing);
        }
        let _turn = self.turn().await?;
        let ask = self.ask(Method::HEAD, who, name, &format!("manifests/{reference}"), Some(media_type::ACCEPT));
        let (response, _) = self.send_led(&ask, &self.scope(name)).await;
        let response = response?;
        let status = response.status();
        let is_absent = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
        let says_why = may_fetch && is_long_refusal(&response, name, reference);
        // No GET where the upstream counts pulls.
        if is_absent && !(says_why && self.transport.budget().is_none()) {
            return Err(self.transport.refused(response).await);
        }
        if status != StatusCode::OK {
            self.asked.manifests().suspect(self.hash(name, reference), status);
            return Ok(HeadSaid::Nothing);
        }
        let headers = response.headers();
        // No manifest is empty, and none has a type that says nothing: a mirror may answer HEAD by itself (wharf#11,
        // LightMirrors#9). The digest that it states may be right all the same.
        let size = content_length(headers).filter(|size| *size > 0);
        let media_type = media_type(headers).filter(MediaType::names_a_manifest);
        let warnings = self.transport.without_secrets(warning::of(headers));
        // A page may state any digest, also its own.
        match content_digest(headers).filter(|_| !is_page(headers)) {
            None => {
                self.asked.manifests().suspect(self.hash(name, reference), status);
                Ok(HeadSaid::Nothing)
            }
            Some(digest) => {
                self.asked.manifests().served();
                Ok(HeadSaid::Manifest(ManifestHead { digest, media_type, size, warnings }))
            }
        }
    }

    /// Notes that GET gave a manifest.
    pub(super) fn gave_manifest(&self, name: &Name, reference: &Reference) {
        self.asked.manifests().given(self.hash(name, reference), Instant::now());
    }

    fn hash(&self, name: &Name, reference: &Reference) -> u64 {
        self.asked.hasher.hash_one((name.as_str(), reference.to_string()))
    }

    /// Returns the size of a blob without fetching it; `None` when the upstream has the blob and does not say how long
    /// it is.
    pub async fn head_blob(&self, who: &Who, name: &Name, digest: &Digest) -> Result<Option<u64>, Failure> {
        self.told_of_blob(who, name, digest).await.map(|told| told.size).map_err(|(failure, _)| failure)
    }

    /// Returns the upstream's description of a blob. A failure comes with the URL that a redirect led to.
    async fn told_of_blob(&self, who: &Who, name: &Name, digest: &Digest) -> Result<Told, (Failure, Option<Led>)> {
        let _turn = self.turn().await.map_err(|failure| (failure, None))?;
        let scope = self.scope(name);
        let by_head = Ask { of: Some(*digest), ..self.ask(Method::HEAD, who, name, &format!("blobs/{digest}"), None) };
        let mut refused = None;
        if self.asked.blobs().is_worth_asking(Instant::now()) {
            let (response, led) = self.send_led(&by_head, &scope).await;
            let response = response.map_err(|failure| (failure, led))?;
            let status = response.status();
            match self.told(response, digest).await {
                Ok(told) if told.size.is_some() => {
                    self.asked.blobs().served();
                    return Ok(told);
                }
                _ => refused = Some(status),
            }
        }
        let mut by_range = Ask { method: Method::GET, ..by_head };
        by_range.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let (response, led) = self.send_led(&by_range, &scope).await;
        let response = response.map_err(|failure| (failure, led.clone()))?;
        let told = self.told(response, digest).await.map_err(|failure| (failure, led))?;
        // A missing length is no refusal: some answers have none.
        if let Some(status) = refused.filter(|status| !status.is_success() || told.size.is_some()) {
            self.asked.blobs().refused(status, Instant::now());
        }
        Ok(told)
    }

    async fn told(&self, response: Response, digest: &Digest) -> Result<Told, Failure> {
        let nothing = length_behind_which_nothing_is(response.headers());
        if let (StatusCode::RANGE_NOT_SATISFIABLE, Some(size)) = (response.status(), nothing) {
            self.refuse_size(size, digest)?;
            return Ok(Told { size: Some(size), is_named: false });
        }
        let response = self.transport.successful(response).await?;
        self.refuse_pages(&response, digest)?;
        let headers = response.headers();
        let size = match content_range(headers) {
            Some((_, total)) => total,
            None => content_length(headers),
        };
        if let Some(size) = size {
            self.refuse_size(size, digest)?;
        }
        let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default();
        Ok(Told { size, is_named: content_digest(headers) == Some(*digest) || etag.contains(digest.hex().as_str()) })
    }

    /// Fails if the upstream says that a blob is empty which is not: only one content is empty, and its digest is
    /// known.
    fn refuse_size(&self, size: u64, digest: &Digest) -> Result<(), Failure> {
        if size == 0 && Digest::of(digest.algorithm(), b"") != *digest {
            return Err(self.transport.wrong(format!("says that {digest} is empty")));
        }
        Ok(())
    }

    /// Fails if the response is a page for people, such as a login page, or if it states another digest: neither is an
    /// answer about the blob.
    fn refuse_pages(&self, response: &Response, digest: &Digest) -> Result<(), Failure> {
        let is_other = content_digest(response.headers()).is_some_and(|stated| stated.contradicts(digest));
        if is_page(response.headers()) || is_other {
            return Err(self.transport.wrong(format!("answered with something else than {digest}")));
        }
        Ok(())
    }

    /// Makes the upstream prove that it has a blob that is known to have `size` bytes: by the length stated where the
    /// redirects end, and by the blob itself where the length says too little. A successful response alone is no proof,
    /// nor is a redirect: login pages have both. While the storage is down, a redirect counts that led to the same blob
    /// before.
    pub async fn proves_blob(&self, who: &Who, name: &Name, digest: &Digest, size: u64) -> Result<Proof, Failure> {
        let told = match self.told_of_blob(who, name, digest).await {
            Ok(told) => told,
            Err((failure, led)) => {
                let is_down = matches!(failure.kind, FailureKind::Unavailable | FailureKind::Timeout);
                let counts = is_down && led.is_some_and(|led| self.knows_storage(digest, &led));
                return if counts { Ok(Proof::Redirect) } else { Err(failure) };
            }
        };
        match told.size {
            Some(told) if told != size => Err(self
                .transport
                .wrong(format!("says that {digest} has {told} bytes; what has that digest has {size}"))),
            Some(_) if told.is_named || size > GUESSABLE => Ok(Proof::Shown),
            _ => self.sends_blob(who, name, digest, size).await.map(|()| Proof::Shown),
        }
    }

    fn knows_storage(&self, digest: &Digest, led: &Led) -> bool {
        let is_redirect = led.status == StatusCode::TEMPORARY_REDIRECT && is_storage_of(digest, &led.url);
        is_redirect && self.storages.know(Storage::of(digest, &led.url))
    }

    /// Makes the upstream send a blob, to be verified and thrown away.
    pub async fn sends_blob(&self, who: &Who, name: &Name, digest: &Digest, size: u64) -> Result<(), Failure> {
        let permit = self.permit(Lane::Fill, None).await?;
        let mut body = self.blob(permit, who, name, digest, (0, None), None).await?.body;
        let (mut hasher, mut count) = (digest.algorithm().hasher(), 0);
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            count += bytes.len() as u64;
            if count > size {
                break;
            }
            hasher.update(&bytes);
        }
        let is_it = count == size && hasher.finish() == *digest;
        is_it.then_some(()).ok_or_else(|| self.transport.wrong(format!("sent something else as {digest}")))
    }
}

/// Returns whether GET would give a refusal with a longer body than registries usually send for an object that does not
/// exist. A longer body may say what the user has to do (containerd#13547).
fn is_long_refusal(response: &Response, name: &Name, reference: &Reference) -> bool {
    /// Length of `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":null}]}`, without names,
    /// in bytes.
    const USUAL: u64 = 90;
    let names = name.as_str().len() + 2 * reference.to_string().len();
    content_length(response.headers()).is_some_and(|length| length > USUAL + names as u64)
}
