//! Errors of a configuration, with messages that say where the mistake is and how to correct it.

use std::io;
use std::path::PathBuf;

use super::origin::Provenance;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot read the configuration file: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{origin}: not valid TOML: {message}")]
    Syntax { origin: Provenance, message: String },
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey { origin: Provenance, key: String, hint: String },
    #[error("{origin}: `{key}`: {message}")]
    Invalid { origin: Provenance, key: String, message: String },
}

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
