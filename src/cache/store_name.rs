//! The name of this cache's store, by which Larders that share an index tell their stores apart.

use std::fs;
use std::path::Path;

use crate::files::{self, Readers};
use crate::random;

/// The file in the cache directory that holds the name.
const FILE: &str = "store-name";
/// The longest name: that of a file that somebody else wrote is none.
const LONGEST: usize = 100;

/// Returns the name, and makes one for a new directory. Blocks. Where the name cannot be kept, the next start has
/// another one, and finds the objects by their files.
pub fn store_name(dir: &Path) -> String {
    let file = dir.join(FILE);
    if let Ok(text) = fs::read_to_string(&file) {
        let name = text.trim();
        let is_name =
            |name: &str| (1..=LONGEST).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
        if is_name(name) {
            return name.to_owned();
        }
    }
    let name = random::text().unwrap_or_else(|_| dir.display().to_string());
    if let Err(error) = files::replace(&file, name.as_bytes(), Readers::Group) {
        tracing::warn!(%error, file = %file.display(), "the name of this store cannot be kept");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_name_and_another_has_another() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let [one, other] = [0, 1].map(|at| store_name(dirs[at].path()));
        assert_ne!(one, other);
        assert_eq!(store_name(dirs[0].path()), one);
        fs::write(dirs[0].path().join(FILE), "\0").expect("written");
        assert_ne!(store_name(dirs[0].path()), "\0");
    }
}
