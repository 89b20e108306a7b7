//! Keys of the bucket: `PREFIX/blobs/<algorithm>/<2 hex>/<hex>.<generation>`.

use crate::index::Generation;
use crate::oci::Digest;
use crate::random::NoRandomness;

/// One upload of an object's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Upload {
    pub digest: Digest,
    pub generation: Generation,
}

impl Upload {
    /// Makes the upload of an object that is to begin.
    pub fn new(digest: Digest) -> Result<Self, NoRandomness> {
        Ok(Self { digest, generation: Generation::new()? })
    }

    /// Returns the key; `prefix` is empty or ends with a slash.
    pub fn key(&self, prefix: &str) -> String {
        let (algorithm, hex) = (self.digest.algorithm().as_str(), self.digest.hex());
        format!("{prefix}blobs/{algorithm}/{}/{hex}.{}", &hex[..2], self.generation)
    }

    /// Reads a key; `None` if it is none of Larder's.
    pub fn of_key(prefix: &str, key: &str) -> Option<Self> {
        let rest = key.strip_prefix(prefix)?.strip_prefix("blobs/")?;
        let (algorithm, rest) = rest.split_once('/')?;
        let (_, name) = rest.split_once('/')?;
        let (hex, generation) = name.split_once('.')?;
        let digest = format!("{algorithm}:{hex}").parse().ok()?;
        let upload = Self { digest, generation: generation.parse().ok()? };
        (upload.key(prefix) == key).then_some(upload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written_and_no_other() {
        let upload = Upload::new(Digest::Sha256([7; 32])).expect("random numbers");
        for prefix in ["", "larder/", "a/b/"] {
            let key = upload.key(prefix);
            assert!(key.starts_with(&format!("{prefix}blobs/sha256/07/0707")), "{key}");
            assert_eq!(Upload::of_key(prefix, &key), Some(upload));
            for other in [format!("x{key}"), format!("{key}0"), key.replace("/07/", "/08/"), key.replace('.', "/")] {
                assert_eq!(Upload::of_key(prefix, &other), None, "{other}");
            }
        }
        assert_eq!(Upload::of_key("larder/", &upload.key("")), None);
    }
}
