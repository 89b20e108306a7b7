//! What a stored object is, for an index that does not know it.

use crate::oci::manifest::{self, Outline};
use crate::oci::{Digest, MediaType};
use crate::store::Store;

/// Larger files are not looked into for a manifest when the index is rebuilt.
const MAX_OUTLINE: u64 = 4 << 20;

/// What a stored object is if it is a manifest: its media type and what it refers to.
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
