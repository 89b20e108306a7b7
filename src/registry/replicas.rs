//! What this replica asks of others before it asks an upstream; see [`crate::cluster`].

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::cache::Origin;
use crate::cache::hot::MAX_MANIFEST;
use crate::cluster::home::Key;
use crate::cluster::{self, Asked, Cluster, Copy};
use crate::failure::{Failure, FailureKind};
use crate::index::Replica;
use crate::oci::{Digest, MediaType, Reference, signed};
use crate::routing::Target;
use crate::upstream::ManifestAnswer;

/// How long ago the upstream was asked about the tag, in milliseconds. A time would need a common clock.
pub const AGE: HeaderName = HeaderName::from_static("larder-tag-age");
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Marks a request as that of another replica: whoever pulls does so there, and the rest of an image comes in there.
#[derive(Clone, Copy, Debug)]
pub struct FromReplica;

/// The other replicas; none if this Larder is alone.
#[derive(Clone, Default)]
pub struct Replicas(pub Option<Arc<Cluster>>);

/// What another replica says of a manifest.
pub struct Told {
    /// `None`: the copy that is here already is still right.
    pub answer: Option<ManifestAnswer>,
    /// How long ago the upstream was asked about the tag.
    pub age: Duration,
    /// Why it has only an old copy, if it has.
    pub stale: Option<Failure>,
}

impl Replicas {
    /// Returns the cluster if something of this target may be asked of other replicas: not where the credentials of
    /// clients decide, and not where only a client named the upstream.
    fn of(&self, target: &Target) -> Option<&Arc<Cluster>> {
        let repository = &target.repository;
        let is_ours = repository.is_configured && repository.is_trusted && repository.config.client_consent.is_none();
        self.0.as_ref().filter(|_| is_ours)
    }

    /// Returns the origin of a blob: other replicas before `next`, unless the blob is at home here.
    pub fn origin(&self, target: &Target, digest: &Digest, next: Arc<dyn Origin>) -> Arc<dyn Origin> {
        match self.of(target) {
            Some(cluster) => cluster.origin(asked(target), digest, next),
            None => next,
        }
    }

    /// Asks other replicas for a manifest. `known`: the copy of the tag that is here. Returns `None` if an upstream has
    /// to be asked.
    pub async fn manifest(
        &self,
        target: &Target,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Option<Result<Told, Failure>> {
        let cluster = self.of(target)?;
        let key = match reference {
            Reference::Digest(digest) => Key::of_object(digest),
            Reference::Tag(tag) => Key::of_tag(target.repository.prefix(), target.name.as_str(), tag.as_str()),
        };
        let asked = asked(target);
        for replica in cluster.before_me(key) {
            match ask(cluster, &replica, &asked, reference, known).await {
                Ok(told) => return Some(Ok(told)),
                Err(failure) if cluster::is_final(&failure) => {
                    return Some(self.stored_elsewhere(target, reference).await.ok_or(failure));
                }
                Err(_) => {}
            }
        }
        self.stored_elsewhere(target, reference).await.map(Ok)
    }

    /// Returns a manifest that another replica has stored.
    pub async fn stored_manifest(&self, target: &Target, digest: &Digest) -> Option<ManifestAnswer> {
        self.stored_elsewhere(target, &Reference::Digest(*digest)).await?.answer
    }

    /// Asks the replicas that have a manifest stored.
    async fn stored_elsewhere(&self, target: &Target, reference: &Reference) -> Option<Told> {
        let (cluster, Reference::Digest(digest)) = (self.of(target)?, reference) else {
            return None;
        };
        let asked = Asked { only_stored: true, ..asked(target) };
        for replica in cluster.holders(digest).await {
            if let Ok(told) = ask(cluster, &replica, &asked, reference, None).await {
                return Some(told);
            }
        }
        None
    }
}

/// Asks one replica for a manifest.
async fn ask(
    cluster: &Arc<Cluster>,
    replica: &Replica,
    asked: &Asked,
    reference: &Reference,
    known: Option<&Digest>,
) -> Result<Told, Failure> {
    let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
    let copy = cluster.manifest(replica, asked, &reference.to_string(), known, limit).await;
    let told = copy.and_then(|copy| told(copy, reference));
    told.inspect_err(|failure| {
        tracing::debug!(replica = replica.address, %failure, "another replica does not give a manifest");
    })
}

fn asked(target: &Target) -> Asked {
    let (repository, name) = (target.repository.prefix().to_owned(), target.name.to_string());
    Asked { repository, name, client: target.client, only_stored: false }
}

/// Verifies what another replica sent.
fn told(Copy { headers, content, stale }: Copy, reference: &Reference) -> Result<Told, Failure> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let age = text(&AGE).and_then(|age| age.parse().ok()).map(Duration::from_millis).unwrap_or_default();
    let answer = content.map(|bytes| {
        let wrong = |what| Failure::new(FailureKind::WrongContent, format!("another replica sent {what}"));
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => {
                let stated = text(&DOCKER_CONTENT_DIGEST).and_then(|digest| digest.parse().ok());
                stated.ok_or_else(|| wrong("a manifest without its digest"))?
            }
        };
        let media_type = media_type(&headers).ok_or_else(|| wrong("a manifest without its media type"))?;
        let is_signed = Digest::of(digest.algorithm(), &bytes) != digest;
        if is_signed && !signed::is_named(&bytes, &digest) {
            return Err(wrong("another manifest"));
        }
        Ok(ManifestAnswer { digest, media_type, bytes, is_signed, warnings: Vec::new() })
    });
    Ok(Told { answer: answer.transpose()?, age, stale })
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    MediaType::of_others(headers.get(http::header::CONTENT_TYPE)?.to_str().ok()?)
}
