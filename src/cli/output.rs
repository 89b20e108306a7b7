//! What commands write to standard output.

use std::io::Write as _;

use serde::Serialize;

use super::error::CommandError;

pub fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CommandError::Failed(error.to_string()))?;
    print(&(text + "\n"))
}

pub fn print(text: &str) -> Result<(), CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough, as `larder ls | head` has.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| CommandError::Failed(error.to_string())),
    }
}
