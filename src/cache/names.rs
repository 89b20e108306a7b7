//! Which names have which manifests, as their upstreams have said. The catalog and the list of images show this.

use super::Cache;
use super::hot::NameKey;
use crate::index::{Timestamp, Write};
use crate::oci::{Digest, Name};

impl Cache {
    /// Notes that the upstream has a manifest under a name.
    pub fn note_manifest(&self, repository: &str, name: &Name, digest: Digest) {
        if self.hot.names.get(&NameKey(repository, name.as_str(), &digest)).is_some() {
            return;
        }
        let key = (repository.to_owned(), name.to_string(), digest);
        let (repository, name, digest) = key.clone();
        self.index.note(Write::Manifest { repository, name, digest, at: Timestamp::now() });
        self.hot.names.insert(key, ());
    }

    /// Returns whether the upstream is known to have a manifest under a name: the upstream said so, or a tag or a
    /// manifest of that name leads to it. An index that cannot be read knows nothing.
    pub async fn knows_name(&self, repository: &str, name: &Name, digest: Digest) -> bool {
        if self.hot.names.get(&NameKey(repository, name.as_str(), &digest)).is_some() {
            return true;
        }
        let found = self.read(self.index.knows_name(repository, name.as_str(), &digest)).await;
        let is_known = matches!(found, Ok(true));
        if is_known {
            // The next call does not need the index.
            self.note_manifest(repository, name, digest);
        }
        is_known
    }
}
