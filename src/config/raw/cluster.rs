//! How several Larders reach one another: `[cluster]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::secret::Secret;
use super::super::shapes::{Addresses, optional_file};
use super::path_or_empty;

/// `[cluster]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Cluster {
    /// `None`: it is not written, and is missed when this is checked.
    pub listen: Option<Addresses>,
    pub advertise: String,
    pub token: Secret,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub token_file: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub certificate: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub private_key: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub ca_bundle: Option<PathBuf>,
}
