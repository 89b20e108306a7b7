//! Where the index is kept: `[index]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::secret::Secret;
use super::super::shapes::optional_file;
use super::path_or_empty;

/// `[index]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Index {
    pub url: String,
    pub password: Secret,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub password_file: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub server_ca_bundle: Option<PathBuf>,
}

impl Default for Index {
    fn default() -> Self {
        Self { url: "sqlite".to_owned(), password: Secret::default(), password_file: None, server_ca_bundle: None }
    }
}
