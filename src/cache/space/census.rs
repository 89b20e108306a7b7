//! The files compared with what is known of them.

use std::io;
use std::sync::PoisonError;
use std::time::SystemTime;

use super::{Space, now};
use crate::cache::scrub::read_outline;
use crate::index::{ObjectEntry, Timestamp, Write};
use crate::oci::Digest;

/// How the files compare with what is known of them.
#[derive(Debug, Default)]
pub struct Census {
    /// Of all files.
    pub bytes: u64,
    /// Files that were not known.
    pub unknown: Vec<Digest>,
    /// Known objects without a file.
    pub missing: Vec<Digest>,
}

impl Space {
    /// Compares with the files. With `is_repair` those without a row are adopted, and rows without a
    /// file dropped.
    pub fn census(&self, is_repair: bool) -> io::Result<Census> {
        // One at a time: they share the marks.
        let _taking = self.taking_census.lock().unwrap_or_else(PoisonError::into_inner);
        let mut census = Census::default();
        self.stock().evictor.begin_census();
        self.disk.for_each(|digest, size, since| {
            census.bytes += size;
            let known = self.stock().evictor.seen(&digest);
            if known.is_none() {
                census.unknown.push(digest);
            }
            // With another size it is damaged, which shows when it is read; it counts as what it is.
            if is_repair && known != Some(size) {
                self.adopt(digest, size, since);
            }
        })?;
        census.missing = self.stock().evictor.end_census(is_repair);
        if is_repair {
            self.gone(&census.missing);
            if !census.unknown.is_empty() || !census.missing.is_empty() {
                let (adopted, gone) = (census.unknown.len(), census.missing.len());
                tracing::info!(adopted, gone, "the index was brought in line with the files");
            }
            self.publish_totals();
        }
        Ok(census)
    }

    /// Takes in a file that the index does not know, or knows with another size.
    fn adopt(&self, digest: Digest, size: u64, since: SystemTime) {
        // What is being evicted still has its file for a moment.
        let _making_room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.disk.contains(&digest) {
            return;
        }
        let stored_at = Timestamp::from_system_time(since);
        let outline = read_outline(&self.disk, &digest, size);
        let media_type = outline.as_ref().map(|(media_type, _)| media_type.clone());
        let entry = ObjectEntry { size, media_type, stored_at };
        self.index.apply([Write::Object { digest, entry }, Write::Used { digest, at: Timestamp::now() }]);
        if let Some((_, children)) = outline {
            self.index.apply([Write::Edges { parent: digest, children }]);
            self.edges_changed(&digest);
        }
        // Nobody knows who used it and when: it is kept as long as anything is.
        let mut stock = self.stock();
        let class = self.limits.load().classes.count() - 1;
        let is_pinned = stock.pinned.contains(&digest);
        stock.evictor.insert(digest, size, now(), class, is_pinned);
    }
}
