//! Repositories in which clients' own credentials decide. Content that came in through such a repository may be
//! private. So when Larder's own credentials come to decide there, Larder first forgets what it knows of the
//! repository: its tags and manifests would be served to all clients. The list of these repositories is kept in a file
//! of its own, over restarts and changes of the configuration.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::config::Config;
use crate::files::{self, Readers};

/// The repositories, by their prefixes, in which clients' own credentials decide or decided before.
pub struct Passes {
    file: PathBuf,
    /// `None`: the list cannot be read.
    known: Option<BTreeSet<String>>,
}

impl Passes {
    /// Reads the list in a cache directory. Blocks, as all functions here do.
    pub fn read(dir: &Path) -> Self {
        let file = dir.join("passes.json");
        let read = fs::read(&file).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
        let known = match read {
            Ok(known) => Some(known),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(BTreeSet::new()),
            Err(error) => {
                tracing::error!(%error, file = %file.display(), "which repositories had client_credentials = \"pass\" cannot be told; what is known of the others is forgotten");
                None
            }
        };
        Self { file, known }
    }

    /// Returns the repositories of `config` in which clients' own credentials decided before and no longer do.
    pub fn to_forget(&self, config: &Config) -> Vec<String> {
        let others = config.repositories.iter().filter(|repository| repository.client_consent.is_none());
        let was_one = |prefix: &str| self.known.as_ref().is_none_or(|known| known.contains(prefix));
        others.map(|repository| repository.prefix.clone()).filter(|prefix| was_one(prefix)).collect()
    }

    /// Takes the list of another directory over into this one, beside what is in it.
    pub fn carry(from: &Path, to: &Path) -> io::Result<()> {
        let unreadable = |passes: &Self| io::Error::other(format!("{} cannot be read", passes.file.display()));
        let (from, to) = (Self::read(from), Self::read(to));
        let others = from.known.as_ref().ok_or_else(|| unreadable(&from))?;
        let known = to.known.as_ref().ok_or_else(|| unreadable(&to))?;
        if others.is_subset(known) {
            return Ok(());
        }
        let all: BTreeSet<_> = known.union(others).collect();
        files::replace(&to.file, &serde_json::to_vec_pretty(&all).map_err(io::Error::other)?, Readers::Group)
    }

    /// Writes the list: with the repositories of `config` in which clients' own credentials decide, and without
    /// `forgotten`, of which nothing is known any more.
    pub fn write(self, config: &Config, forgotten: &[String]) -> io::Result<()> {
        let before = self.known.clone().unwrap_or_default();
        let mut now = before.clone();
        now.retain(|prefix| !forgotten.contains(prefix));
        let passing = config.repositories.iter().filter(|repository| repository.client_consent.is_some());
        now.extend(passing.map(|repository| repository.prefix.clone()));
        if self.known.is_some() && now == before {
            return Ok(());
        }
        files::replace(&self.file, &serde_json::to_vec_pretty(&now).map_err(io::Error::other)?, Readers::Group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parse;

    /// Else what clients brought in for themselves would be served to all from the new directory.
    #[test]
    fn a_cache_that_is_moved_takes_along_where_clients_decided() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let [from, to] = [0, 1].map(|at| dirs[at].path());
        let config = |name: &str, keys: &str| {
            let upstream = format!("[[repository.\"{name}\".upstream]]\nurl = \"https://r.example\"");
            parse(&format!("[repository.\"{name}\"]\n{keys}\n{upstream}")).expect("a configuration")
        };
        let pass = "client_credentials = \"pass\"";
        Passes::read(from).write(&config("one", pass), &[]).expect("written");
        Passes::read(to).write(&config("two", pass), &[]).expect("written");
        Passes::carry(from, to).expect("carried");
        for name in ["one", "two"] {
            assert_eq!(Passes::read(to).to_forget(&config(name, "")), [name]);
        }
        fs::write(from.join("passes.json"), "[").expect("written");
        assert!(Passes::carry(from, to).is_err(), "nobody can tell where clients decided");
    }
}
