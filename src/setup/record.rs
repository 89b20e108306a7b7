//! What setup has written, so that it can be taken back to the byte; and the files as they were before.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::found::{Found, Root, text};
use super::{SetupError, Target};

/// What setup has written for one client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub files: Vec<Entry>,
    /// Folders that setup has made, each after the one that it is in.
    pub folders: Vec<PathBuf>,
}

/// A file that setup has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: PathBuf,
    /// Of what setup has written.
    pub sha256: String,
    /// The file from before. `None`: there was none.
    pub backup: Option<PathBuf>,
}

impl Record {
    /// Reads what was noted; `None` if nothing was.
    pub fn read(root: &Root, target: &Target) -> Result<Option<Self>, SetupError> {
        let path = target.record();
        let Some(text) = root.text(&path)? else { return Ok(None) };
        let record = serde_json::from_str(&text);
        record.map(Some).map_err(|error| SetupError::Broken { path, reason: error.to_string() })
    }

    pub fn entry(&self, path: &Path) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.path == path)
    }
}

impl Entry {
    /// Returns whether the file is still as setup has written it.
    pub fn is_ours(&self, bytes: &[u8]) -> bool {
        self.sha256 == sha256(bytes)
    }
}

/// Returns the SHA-256 of bytes in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files as they were before setup wrote anything. One that somebody else has changed since is as it is now.
pub struct Before<'a> {
    pub root: &'a Root,
    pub record: &'a Record,
}

impl Before<'_> {
    pub fn bytes(&self, path: &Path) -> Result<Option<Vec<u8>>, SetupError> {
        let now = self.root.bytes(path)?;
        match (&now, self.record.entry(path)) {
            (Some(bytes), Some(entry)) if entry.is_ours(bytes) => match &entry.backup {
                Some(backup) => self.root.bytes(backup),
                None => Ok(None),
            },
            _ => Ok(now),
        }
    }
}

impl Found for Before<'_> {
    fn text(&self, path: &Path) -> Result<Option<String>, SetupError> {
        self.bytes(path)?.map(|bytes| text(path, bytes)).transpose()
    }

    fn names(&self, folder: &Path) -> Result<Vec<String>, SetupError> {
        let mut names = Vec::new();
        for name in self.root.names(folder)? {
            let path = folder.join(&name);
            let is_backup = self.record.files.iter().any(|entry| entry.backup.as_ref() == Some(&path));
            let is_made = self.record.entry(&path).is_some() && self.bytes(&path)?.is_none();
            if !is_backup && !is_made {
                names.push(name);
            }
        }
        Ok(names)
    }
}
