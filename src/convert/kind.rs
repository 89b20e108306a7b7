//! Whose configurations can be converted, and what comes of it.

use std::str::FromStr;

use crate::config::origin::Origin;

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The YAML manifests of simple-registry (Go).
    Manifests,
    /// The TOML of simple-registry (Rust), now angos.
    SimpleToml,
    /// `config.yml` of Docker's registry, used as a cache.
    Distribution,
    /// `config.yaml` of discobot's proxy.
    Discobot,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Manifests, Self::SimpleToml, Self::Distribution, Self::Discobot];

    pub fn name(self) -> &'static str {
        match self {
            Self::Manifests => "simple-registry-yaml",
            Self::SimpleToml => "simple-registry-toml",
            Self::Distribution => "distribution",
            Self::Discobot => "discobot",
        }
    }
}

impl FromStr for Kind {
    type Err = ConvertError;

    fn from_str(name: &str) -> Result<Self, ConvertError> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| ConvertError(format!("`{name}` is no kind of configuration")))
    }
}

/// A configuration that was converted.
#[derive(Clone, Debug)]
pub struct Converted {
    /// A `larder.toml`.
    pub toml: String,
    /// What was not taken over.
    pub warnings: Vec<String>,
}

/// Why a configuration cannot be converted.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConvertError(pub String);

impl ConvertError {
    pub fn at(origin: &Origin, message: impl std::fmt::Display) -> Self {
        Self(format!("{origin}: {message}"))
    }
}
