//! Open objects, so that many readers of one object need one descriptor and one mapping.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::mapped::Mapping;
use crate::oci::Digest;

/// The open objects, by their digests.
#[derive(Debug, Default)]
pub struct OpenObjects(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    objects: HashMap<Digest, (Weak<File>, Weak<Mapping>)>,
    /// With more entries than this, those that nobody reads any more are removed.
    next_sweep: usize,
}

impl OpenObjects {
    /// Returns the file of an object that somebody reads now, and its mapping if there is one.
    pub fn find(&self, digest: &Digest) -> Option<(Arc<File>, Option<Arc<Mapping>>)> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, mapping) = table.objects.get(digest)?;
        Some((file.upgrade()?, mapping.upgrade()))
    }

    /// Remembers an object for as long as somebody reads it.
    pub fn keep(&self, digest: &Digest, file: &Arc<File>, mapping: Option<&Arc<Mapping>>) {
        let mapping = mapping.map_or_else(Weak::new, Arc::downgrade);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.objects.insert(*digest, (Arc::downgrade(file), mapping));
        if table.objects.len() > table.next_sweep.max(MIN_SWEEP) {
            table.objects.retain(|_, (file, _)| file.strong_count() > 0);
            table.next_sweep = 2 * table.objects.len();
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).objects.len()
    }
}

/// Fewer entries than this are not worth searching.
const MIN_SWEEP: usize = 64;
