//! Tainted downloads: a write that took too long and was given up may still change them.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::oci::Digest;

/// With so many tainted downloads, nothing is written: a disk on which so many writes hang takes no others.
const MOST: usize = 1024;

/// The tainted downloads. The next download of the same object gets a file of its own, which the late write does not
/// reach. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Taint(Arc<Mutex<HashSet<Digest>>>);

impl Taint {
    /// Notes a tainted download.
    pub fn add(&self, digest: Digest) {
        self.lock().insert(digest);
    }

    /// Returns whether the download of an object is tainted.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.lock().contains(digest)
    }

    /// Forgets a tainted download.
    pub fn remove(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Fails while very many writes hang.
    pub fn check(&self) -> io::Result<()> {
        match self.lock().len() < MOST {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "too many writes to the cache directory hang")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_writes_that_hang_stop_others() {
        let tainted = Taint::default();
        let digest = |number: usize| Digest::Sha256(std::array::from_fn(|at| (number >> (8 * (at % 8))) as u8));
        for number in 0..MOST {
            tainted.check().expect("few hang");
            tainted.add(digest(number));
        }
        assert_eq!(tainted.check().expect_err("many hang").kind(), io::ErrorKind::TimedOut);
        tainted.remove(&digest(7));
        tainted.check().expect("one has ended");
    }
}
