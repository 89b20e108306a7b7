//! Open objects, so that many readers of one object need one descriptor and one mapping.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::mapped::Mapping;
use crate::oci::Digest;

/// The open objects, by their digests.
#[derive(Debug, Default)]
pub struct OpenObjects(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    objects: HashMap<Digest, Entry>,
    /// With more entries than this, those that nobody reads any more are removed.
    next_sweep: usize,
}

#[derive(Debug)]
struct Entry {
    inode: Inode,
    file: Weak<File>,
    mapping: Weak<Mapping>,
}

/// The device and the number of a file. Two open files with the same one are the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode(u64, u64);

impl From<&Metadata> for Inode {
    fn from(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

impl OpenObjects {
    /// Returns the file of an object that somebody reads now, and its mapping if there is one.
    pub fn find(&self, digest: &Digest) -> Option<(Arc<File>, Option<Arc<Mapping>>)> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = table.objects.get(digest)?;
        Some((entry.file.upgrade()?, entry.mapping.upgrade()))
    }

    /// Remembers an object for as long as somebody reads it. Returns what its readers are to use: of several that
    /// opened the same file at once, all use the first one's.
    pub fn share(
        &self,
        digest: &Digest,
        inode: Inode,
        file: Arc<File>,
        mapping: Option<Arc<Mapping>>,
    ) -> (Arc<File>, Option<Arc<Mapping>>) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = table.objects.get(digest)
            && entry.inode == inode
            && let Some(first) = entry.file.upgrade()
        {
            let first_mapping = entry.mapping.upgrade();
            if first_mapping.is_some() || mapping.is_none() {
                // Ours are closed when the caller's are dropped, behind the lock.
                drop(table);
                return (first, first_mapping);
            }
        }
        let weak_mapping = mapping.as_ref().map_or_else(Weak::new, Arc::downgrade);
        table.objects.insert(*digest, Entry { inode, file: Arc::downgrade(&file), mapping: weak_mapping });
        if table.objects.len() > table.next_sweep.max(MIN_SWEEP) {
            table.objects.retain(|_, entry| entry.file.strong_count() > 0);
            table.next_sweep = 2 * table.objects.len();
        }
        (file, mapping)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).objects.len()
    }
}

/// Fewer entries than this are not worth searching.
const MIN_SWEEP: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn opened(path: &std::path::Path) -> (Inode, Arc<File>, Option<Arc<Mapping>>) {
        let file = Arc::new(File::open(path).unwrap());
        let metadata = file.metadata().unwrap();
        let mapping = Mapping::new(file.clone(), metadata.len()).unwrap();
        (Inode::from(&metadata), file, Some(mapping))
    }

    #[test]
    fn those_who_open_an_object_at_once_share_one_descriptor_and_one_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        std::fs::write(&path, b"bytes").unwrap();
        let (open, digest) = (OpenObjects::default(), Digest::of(Algorithm::Sha256, b"bytes"));
        // Both found nothing open, and both opened it.
        let (first, second) = (opened(&path), opened(&path));
        let (file, mapping) = open.share(&digest, first.0, first.1, first.2);
        let (other_file, other_mapping) = open.share(&digest, second.0, second.1, second.2);
        assert!(Arc::ptr_eq(&file, &other_file));
        assert!(Arc::ptr_eq(&mapping.unwrap(), &other_mapping.unwrap()));
    }

    #[test]
    fn a_file_that_took_the_name_of_another_is_not_read_from_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        std::fs::write(&path, b"bytes").unwrap();
        let (open, digest) = (OpenObjects::default(), Digest::of(Algorithm::Sha256, b"bytes"));
        let first = opened(&path);
        let (file, _mapping) = open.share(&digest, first.0, first.1, first.2);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"bytes").unwrap();
        let second = opened(&path);
        let (other_file, _other_mapping) = open.share(&digest, second.0, second.1, second.2);
        assert!(!Arc::ptr_eq(&file, &other_file));
        let (found, _) = open.find(&digest).unwrap();
        assert!(Arc::ptr_eq(&found, &other_file));
    }
}
