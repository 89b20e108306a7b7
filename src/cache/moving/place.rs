//! The two places of a migration, opened.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::super::opened::{Folder, OpenError};
use super::super::pools::Pools;
use super::error::{MovingError, Side};
use crate::config::Config;
use crate::index::Index;
use crate::observe::Metrics;
use crate::s3::Bucket;

/// One of the two places.
pub struct Place {
    pub folder: Folder,
    pub bucket: Option<Bucket>,
    pub index: Arc<dyn Index>,
}

/// What the two places have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Same {
    pub folder: bool,
    /// Both have a bucket, and it is the same one.
    pub bucket: bool,
    /// Both have their index in the same directory.
    pub index: bool,
}

impl Same {
    /// Compares two configurations. Fails if one cannot be moved to the other.
    pub fn of(old: &Config, new: &Config) -> Result<Self, MovingError> {
        let folder = is_same_folder(&old.cache.dir, &new.cache.dir);
        let bucket = match (&old.s3, &new.s3) {
            (Some(old), Some(new)) => {
                (&old.endpoint, &old.region, &old.bucket, &old.prefix)
                    == (&new.endpoint, &new.region, &new.bucket, &new.prefix)
            }
            _ => false,
        };
        let index = folder && old.index.is_none() && new.index.is_none();
        let is_same_server = match (&old.index, &new.index) {
            (Some(old), Some(new)) => (&old.host, old.port, &old.database) == (&new.host, new.port, &new.database),
            _ => false,
        };
        let is_same_store = bucket || old.s3.is_none() && new.s3.is_none();
        if folder && is_same_store && (index || is_same_server) {
            return Err(MovingError::Same);
        }
        // One row cannot name an upload in both.
        if index && !is_same_store && old.s3.is_some() && new.s3.is_some() {
            return Err(MovingError::TwoBuckets);
        }
        let needed = match (&old.index, &old.s3) {
            (None, _) => Some("larder.db"),
            (Some(_), None) => Some("blobs"),
            (Some(_), Some(_)) => None,
        };
        match needed.filter(|needed| !old.cache.dir.join(needed).exists()) {
            Some(_) => Err(MovingError::NoCache(old.cache.dir.clone())),
            None => Ok(Self { folder, bucket, index }),
        }
    }
}

/// Opens both places. Blocks.
pub fn open_both(old: &Config, new: &Config, same: Same) -> Result<(Place, Place), MovingError> {
    let folder = open_folder(Side::Old, &old.cache.dir)?;
    let from = Place::open(Side::Old, old, folder.clone(), None)?;
    let folder = if same.folder { folder } else { open_folder(Side::New, &new.cache.dir)? };
    let index = same.index.then(|| from.index.clone());
    let to = Place::open(Side::New, new, folder, index)?;
    Ok((from, to))
}

impl Place {
    fn open(side: Side, config: &Config, folder: Folder, index: Option<Arc<dyn Index>>) -> Result<Self, MovingError> {
        let failed = |error| MovingError::Open(side, error);
        let metrics = Arc::<Metrics>::default();
        let bucket = config.s3.as_ref().map(|s3| Bucket::new(s3, metrics.clone())).transpose();
        let bucket = bucket.map_err(|error| failed(OpenError::Bucket(error)))?;
        let index = match index {
            Some(index) => index,
            None => folder.index(config, bucket.as_ref()).map_err(failed)?,
        };
        Ok(Self { folder, bucket, index })
    }
}

fn open_folder(side: Side, dir: &Path) -> Result<Folder, MovingError> {
    Folder::open(dir, Pools::patient()).map_err(|error| match error.is_in_use() {
        true => MovingError::InUse(side, dir.to_owned()),
        false => MovingError::Open(side, OpenError::Store(error)),
    })
}

/// Returns whether two paths lead to the same folder; one that is still to be made is no other's.
fn is_same_folder(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parse;

    #[test]
    fn what_two_places_have_in_common_says_whether_one_can_be_moved_to_the_other() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        std::fs::write(dirs[0].path().join("larder.db"), "").expect("written");
        let config = |at: usize, keys: &str| {
            parse(&format!("[cache]\ndir = {:?}\n{keys}", dirs[at].path())).expect("a configuration")
        };
        let bucket = |name: &str| format!("[storage.s3]\nbucket = \"{name}\"");
        let of = |old: &Config, new: &Config| Same::of(old, new).map(|same| (same.folder, same.bucket, same.index));
        let (plain, one) = (config(0, ""), config(0, &bucket("one")));
        assert!(matches!(of(&plain, &plain), Err(MovingError::Same)));
        assert!(matches!(of(&one, &one), Err(MovingError::Same)));
        assert!(matches!(of(&one, &config(0, &bucket("two"))), Err(MovingError::TwoBuckets)));
        assert!(matches!(of(&config(1, ""), &plain), Err(MovingError::NoCache(_))));
        assert_eq!(of(&plain, &one).expect("it can"), (true, false, true));
        assert_eq!(of(&one, &config(1, &bucket("one"))).expect("it can"), (false, true, false));
        let server = "[index]\nurl = \"postgres://larder@127.0.0.1/larder\"";
        assert_eq!(of(&plain, &config(0, server)).expect("it can"), (true, false, false));
        let both = format!("{}\n{server}", bucket("one"));
        assert_eq!(
            of(&config(0, server), &config(1, &both)).err().map(|error| error.to_string()),
            Some(format!(
                "there is no cache in {}; name the configuration of the old one with --from",
                dirs[0].path().display()
            ))
        );
        assert_eq!(of(&config(1, &both), &config(0, "")).expect("its directory may be gone"), (false, false, false));
    }
}
