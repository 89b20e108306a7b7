//! Where content is kept beside the cache directory: `[storage.s3]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::shapes::optional_file;
use super::super::units::Amount;
use super::path_or_empty;

/// `[storage]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Storage {
    /// `None`: content is kept in the cache directory alone.
    pub s3: Option<S3>,
}

/// `[storage.s3]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct S3 {
    pub bucket: String,
    pub endpoint: String,
    pub region: String,
    pub prefix: String,
    pub access_key_id: String,
    #[serde(serialize_with = "path_or_empty")]
    #[serde(deserialize_with = "optional_file")]
    pub secret_access_key_file: Option<PathBuf>,
    pub redirect: bool,
    pub tier_size: Amount,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            endpoint: String::new(),
            region: "us-east-1".to_owned(),
            prefix: String::new(),
            access_key_id: String::new(),
            secret_access_key_file: None,
            redirect: false,
            tier_size: Amount::None,
        }
    }
}
