//! What is wrong with a configuration, in words that say where and what to do.

use std::io;
use std::path::PathBuf;

use super::origin::Origin;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot read the configuration file: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{origin}: not valid TOML: {message}")]
    Syntax { origin: Origin, message: String },
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey { origin: Origin, key: String, hint: String },
    #[error("{origin}: `{key}`: {message}")]
    Invalid { origin: Origin, key: String, message: String },
}

/// How much alike two words must be for one to be taken for a slip in the other.
const ALIKE: f64 = 0.8;

/// The candidate that looks most like `word`, if one does.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}
