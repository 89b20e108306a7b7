//! Why a command did not do what it was asked for, and its exit code.

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

impl From<OpsError> for CommandError {
    fn from(error: OpsError) -> Self {
        match error {
            OpsError::Wrong(_) | OpsError::Unknown(_) => Self::Usage(error.to_string()),
            OpsError::Busy | OpsError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

/// Returns a message as it is printed: each of its lines begins with the name of the program.
pub fn lines(message: &str) -> String {
    message.lines().map(|line| format!("larder: {line}\n")).collect()
}
