//! The programs whose configurations can be converted, and the result of a conversion.

use std::str::FromStr;

use crate::config::origin::Provenance;

/// The program that a configuration is for.
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
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Manifests, Self::SimpleToml, Self::Distribution, Self::Discobot];

    /// Returns the name of the kind on the command line.
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
    /// Returns an error with the place that it is about.
    pub fn at(origin: &Provenance, message: impl std::fmt::Display) -> Self {
        Self(format!("{origin}: {message}"))
    }
}
