//! Finds out whether a stored object is a manifest, for an index that does not know the object.

use crate::oci::manifest::{self, Outline};
use crate::oci::{Digest, MediaType};
use crate::store::Store;

/// Largest file, in bytes, that is searched for a manifest when the index is rebuilt.
const MAX_OUTLINE: u64 = 4 << 20;

/// Returns the media type of a stored object and what it refers to, if it is a manifest.
pub async fn read_outline(store: &dyn Store, digest: &Digest, size: u64) -> Option<(MediaType, Vec<Digest>)> {
    if size > MAX_OUTLINE {
        return None;
    }
    let object = store.open(digest).await.ok().flatten()?;
    if object.read(0, 1).await.ok()?[..] != b"{"[..] {
        return None;
    }
    let bytes = object.read(0, object.size).await.ok()?;
    let children = Outline::read(&bytes).children;
    let media_type = manifest::media_type_of(&bytes);
    manifest::is_one(&bytes).then(|| (media_type, children.iter().map(|child| child.digest).collect()))
}
