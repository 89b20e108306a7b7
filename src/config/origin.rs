//! Where a value of the configuration was written.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    File {
        path: Arc<Path>,
        line: usize,
    },
    Environment {
        variable: Arc<str>,
    },
    /// Nowhere: a default.
    Default,
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Default => f.write_str("built-in default"),
        }
    }
}
