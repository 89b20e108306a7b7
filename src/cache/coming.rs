//! The download of the object that comes from an archive now.

use std::sync::{Arc, Mutex, PoisonError};

use crate::oci::Digest;

/// The download of the object that comes from an archive now, by its key; upkeep must not take it for an abandoned one.
/// Clones share it.
#[derive(Clone, Default)]
pub struct Coming(Arc<Mutex<Option<Digest>>>);

impl Coming {
    /// Returns whether a download belongs to the object that comes in now.
    pub fn is(&self, key: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(key)
    }

    /// Sets which download it is; `None`: none.
    pub fn set(&self, key: Option<Digest>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }
}
