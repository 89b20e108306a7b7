//! Writes the output of commands to standard output.

use std::io::Write as _;

use serde::Serialize;

use super::error::CommandError;

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CommandError::Failed(error.to_string()))?;
    print(&(text + "\n"))
}

/// Prints a text.
pub fn print(text: &str) -> Result<(), CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough and has closed the pipe, as in `larder ls | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| CommandError::Failed(error.to_string())),
    }
}
