//! What Larder reports about itself: `[logging]`, `[telemetry]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::shapes::file;

/// `[logging]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Logging {
    pub level: String,
    pub format: LogFormat,
    #[serde(deserialize_with = "file")]
    pub file: PathBuf,
    pub access: bool,
}

impl Default for Logging {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, file: PathBuf::new(), access: true }
    }
}

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Telemetry {
    pub otlp_endpoint: String,
    pub sampling: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: String::new(), sampling: 1.0 }
    }
}

/// The form of the log: text for people or JSON for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}
