//! What a migration has found and done.

use serde::Serialize;

use crate::upkeep::scrub::Trouble;

/// What a migration has found and done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Objects of the old cache, and their bytes.
    pub objects: u64,
    pub bytes: u64,
    /// Those that the new cache had before.
    pub present: u64,
    pub present_bytes: u64,
    /// Those that were brought over.
    pub moved: u64,
    pub moved_bytes: u64,
    /// Objects whose content does not have their digest, or cannot be read. They are left out.
    pub damaged: Trouble,
    /// Objects that the old cache knew and did not have any more. They are left out.
    pub missing: Trouble,
    /// Objects that have left the old cache meanwhile.
    pub gone: u64,
    /// Tags, and images pinned by name.
    pub tags: u64,
    pub pins: u64,
    /// Whether the new cache has everything that could be brought over.
    pub is_complete: bool,
}

impl Report {
    /// Returns how many objects the new cache does not have yet.
    pub fn left(&self) -> u64 {
        self.objects.saturating_sub(self.present + self.moved)
    }

    /// Returns their bytes.
    pub fn left_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.present_bytes + self.moved_bytes)
    }
}
