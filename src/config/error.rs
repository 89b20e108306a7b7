//! Errors of a configuration, with messages that say where the mistake is and how to correct it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::key_path::KeyPath;
use super::origin::Provenance;

/// A mistake in a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot read the configuration file: {source}{}", path.display(), remedy(path, source))]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{origin}: not valid TOML: {message}")]
    Syntax { origin: Provenance, message: String },
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey { origin: Provenance, key: KeyPath, hint: String },
    #[error("{origin}: `{key}`: {message}")]
    Invalid { origin: Provenance, key: KeyPath, message: String },
}

/// Returns what to do about a configuration file that cannot be read.
fn remedy(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("; `larder config init -o {}` makes one to start from", path.display())
        }
        io::ErrorKind::IsADirectory => "; name a file in it".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "; make it readable for the user that runs this, or run it as root".to_owned()
        }
        _ => String::new(),
    }
}

impl ConfigError {
    /// Returns the key that is wrong; `None` if the file cannot be read at all.
    pub fn key(&self) -> Option<&KeyPath> {
        match self {
            Self::UnknownKey { key, .. } | Self::Invalid { key, .. } => Some(key),
            Self::Unreadable { .. } | Self::Syntax { .. } => None,
        }
    }
}

/// Why a configuration cannot be used: all mistakes that were found, at least one. Displayed, each has a line.
#[derive(Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// Makes an error of mistakes, of which there has to be at least one.
    pub fn of(mistakes: Vec<ConfigError>) -> Self {
        Self(mistakes)
    }

    /// Returns the mistakes as an error, unless there are none.
    pub fn unless_none(mistakes: Vec<ConfigError>) -> Result<(), Self> {
        if mistakes.is_empty() { Ok(()) } else { Err(Self(mistakes)) }
    }

    /// Returns the mistakes.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            let line = if at > 0 { "\n" } else { "" };
            write!(f, "{line}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// How similar two words have to be (Jaro-Winkler, from 0 to 1) for one to count as a misspelling of the other.
const ALIKE: f64 = 0.8;

/// Returns the candidate that is most similar to `word`, if any is similar enough.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}
