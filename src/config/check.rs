//! The parts that all checks of the configuration share.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::key_path::KeyPath;
use super::tree::Node;

/// What a check finds out beside the configuration itself.
#[derive(Debug, Default)]
pub struct Notes {
    /// The files that the configuration depends on.
    pub files: RefCell<Vec<PathBuf>>,
    /// What is allowed and hardly meant, each with its place.
    pub warnings: RefCell<Vec<String>>,
}

/// Makes errors and warnings that name the place of a mistake, and notes the further files that the configuration
/// depends on.
pub struct Check<'a> {
    pub tree: &'a Node,
    pub notes: &'a Notes,
}

impl Check<'_> {
    /// Notes a file that the configuration depends on. Called before the file is read, so that a missing file is noted,
    /// too.
    pub fn depends_on(&self, path: &Path) {
        self.notes.files.borrow_mut().push(path.to_owned());
    }

    /// Returns whether there is a value under `path`, also one that is left out because it is wrong.
    pub fn is_written(&self, path: &[&str]) -> bool {
        self.tree.has(&key_path(path))
    }

    /// Returns the error that the value under `path` is wrong, with the place where the value was written.
    pub fn invalid(&self, path: &[&str], message: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { origin: self.tree.origin(path), key: key_path(path), message: message.into() }
    }

    /// Warns that the value under `path` is hardly meant.
    pub fn warn(&self, path: &[&str], message: impl Into<String>) {
        let warning = self.invalid(path, message).to_string();
        let mut warnings = self.notes.warnings.borrow_mut();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
}

/// Returns a path whose positions in lists are written as numbers.
fn key_path(path: &[&str]) -> KeyPath {
    path.iter().enumerate().fold(KeyPath::default(), |key, (at, part)| {
        let is_list = (at == 3 && matches!(path[2], "upstream" | "tag")) || (at == 1 && path[0] == "warm");
        match part.parse() {
            Ok(position) if is_list => key.at(position),
            _ => key.key(part),
        }
    })
}
