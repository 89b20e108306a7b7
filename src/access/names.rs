//! Whether a name has a manifest that is stored already. All clients that may pull from a repository may see what any
//! of its names brought in. But before another name counts in the catalog and among the images, the upstream has to
//! confirm that this name has the manifest, too. Otherwise made-up names would be answered, and listed for good.

use std::sync::Arc;
use std::time::Duration;

use super::consent::{Consent, StoredObject};
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;
use crate::routing::Target;
use crate::upstream::Proof;

/// How long a request waits for its turn. Then a manifest that is visible here is served without this confirmation, and
/// nothing is noted.
const PATIENCE: Duration = Duration::from_secs(5);

impl Consent {
    /// Makes sure that a stored manifest may be served to the client under this name; asks the upstream by one HEAD
    /// request if necessary. Returns whether the cache is to note that the name has the manifest.
    pub async fn confirm_manifest(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<bool, Failure> {
        if target.repository.config.client_consent.is_some() {
            self.confirm(target, StoredObject::Manifest, digest).await?;
            // A consent is for one name. A public manifest is served under any name, which says nothing about this one.
            return Ok(self.given.is_fresh(target, digest));
        }
        let repository = target.repository.prefix();
        if self.cache.knows_name(repository, &target.name, *digest).await {
            self.confirm(target, StoredObject::Manifest, digest).await?;
            return Ok(false);
        }
        self.confirm_name(target, digest).await
    }

    async fn confirm_name(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<bool, Failure> {
        let page = format!("manifests/{digest}");
        self.absences.recall(target, &page)?;
        let proof = match tokio::time::timeout(PATIENCE, self.naming.acquire()).await {
            Ok(_turn) => self.ask_for_proof(target, StoredObject::Manifest, digest, &page).await,
            Err(_) => Err(Failure::new(FailureKind::Busy, "too many names are being asked about; try again soon")),
        };
        match proof {
            Ok(Proof::Redirect) => Ok(false),
            Ok(Proof::Shown) => {
                self.cache.mark_visible(&target.repository.viewer(), *digest);
                Ok(true)
            }
            Err(failure) if matches!(failure.kind, FailureKind::NotFound | FailureKind::Denied) => {
                self.absences.remember(target, &page, target.repository.config.tags.negative_max_age, &failure);
                Err(failure)
            }
            // The upstream cannot answer. In an outage a manifest that is visible here is served, and nothing is noted.
            Err(failure) => {
                let is_visible = self.cache.is_visible(&target.repository.viewer(), digest).await.unwrap_or(false);
                if is_visible || self.is_public(target, digest).await { Ok(false) } else { Err(failure) }
            }
        }
    }
}
