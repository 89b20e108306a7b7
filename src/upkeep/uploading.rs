//! Uploads that run: no comparison with the bucket takes what they send for left over.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::s3::Upload;

/// Uploads that run; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Uploading(Arc<Mutex<HashSet<Upload>>>);

/// An upload that runs until this is dropped.
#[derive(Debug)]
pub struct Running {
    all: Uploading,
    upload: Upload,
}

impl Uploading {
    /// Notes an upload that is to begin.
    pub fn begin(&self, upload: Upload) -> Running {
        self.all().insert(upload);
        Running { all: self.clone(), upload }
    }

    /// Returns whether an upload runs.
    pub fn has(&self, upload: &Upload) -> bool {
        self.all().contains(upload)
    }

    fn all(&self) -> MutexGuard<'_, HashSet<Upload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.all.all().remove(&self.upload);
    }
}
