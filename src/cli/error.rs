//! Why a command did not do what it was asked for, and its exit code.

use std::process::ExitCode;

use crate::ops::OpsError;

/// Exit code for wrong usage or configuration.
pub const WRONG_CONFIGURATION: u8 = 2;

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// The command has reported the reason already.
    #[error("failed")]
    Quiet,
    /// Like `Quiet`, for wrong usage or configuration.
    #[error("failed")]
    QuietUsage,
}

impl CommandError {
    /// Returns whether the command has reported the reason already.
    pub fn is_reported(&self) -> bool {
        matches!(self, Self::Quiet | Self::QuietUsage)
    }

    /// Returns the exit code.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::QuietUsage => ExitCode::from(WRONG_CONFIGURATION),
            Self::Failed(_) | Self::Quiet => ExitCode::FAILURE,
        }
    }
}

impl From<OpsError> for CommandError {
    fn from(error: OpsError) -> Self {
        match error {
            OpsError::Wrong(_) => Self::Usage(error.to_string()),
            OpsError::Unknown(_)
            | OpsError::Absent(..)
            | OpsError::Busy
            | OpsError::Carrying
            | OpsError::TooLarge(_)
            | OpsError::Archive(_)
            | OpsError::NothingOf(_)
            | OpsError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}
