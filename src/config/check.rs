//! The parts that all checks of the configuration share.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::tree::Node;

/// Makes errors that name the place of a mistake, and notes the further files that the configuration depends on.
pub struct Check<'a> {
    pub tree: &'a Node,
    /// The files that the configuration depends on.
    pub files: &'a RefCell<Vec<PathBuf>>,
}

impl Check<'_> {
    /// Notes a file that the configuration depends on. Called before the file is read, so that a missing file is noted,
    /// too.
    pub fn depends_on(&self, path: &Path) {
        self.files.borrow_mut().push(path.to_owned());
    }

    /// Returns the error that the value under `path` is wrong, with the place where the value was written.
    pub fn invalid(&self, path: &[&str], message: impl Into<String>) -> ConfigError {
        let mut key = String::new();
        for (at, part) in path.iter().enumerate() {
            let is_position = at == 3 && matches!(path[2], "upstream" | "tag");
            key += &match part {
                position if is_position => format!("[{position}]"),
                part if part.contains('.') => format!("{}\"{part}\"", if at > 0 { "." } else { "" }),
                part => format!("{}{part}", if at > 0 { "." } else { "" }),
            };
        }
        ConfigError::Invalid { origin: self.tree.origin(path), key, message: message.into() }
    }
}
