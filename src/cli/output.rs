//! Writes the output of commands to standard output, and why a command failed.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::error::CommandError;

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    print(&to_json(value)?)
}

/// Returns a value as JSON, as it is printed.
pub fn to_json(value: &impl Serialize) -> Result<String, CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CommandError::Failed(error.to_string()))?;
    Ok(text + "\n")
}

/// Prints a text.
pub fn print(text: &str) -> Result<(), CommandError> {
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough and has closed the pipe, as in `larder ls | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| CommandError::Failed(error.to_string())),
    }
}

/// Returns the error that a file or folder cannot be written, with what to do.
pub fn cannot_write(path: &Path, error: &io::Error) -> CommandError {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let remedy = match (error.kind(), parent) {
        (io::ErrorKind::NotFound, Some(parent)) => format!("; make the folder {} first", parent.display()),
        (io::ErrorKind::IsADirectory, _) => "; name a file in it".to_owned(),
        (io::ErrorKind::PermissionDenied, _) => "; name a place where this user may write".to_owned(),
        _ => String::new(),
    };
    CommandError::Failed(format!("cannot write {}: {error}{remedy}", path.display()))
}

/// Writes a text to standard error, which may be closed or full.
pub fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Reports why a command failed, unless that was done before: as text on standard error, or as JSON on standard output,
/// where the result would be. Returns the exit code.
pub fn report(error: &CommandError, is_json: bool) -> ExitCode {
    if !error.is_reported() {
        let message = error.to_string();
        let printed = is_json.then(|| print_json(&serde_json::json!({ "error": message })));
        if !matches!(printed, Some(Ok(()))) {
            complain(&lines(&message));
        }
    }
    error.code()
}

/// Returns a message as it is printed: each of its lines begins with the name of the program.
pub fn lines(message: &str) -> String {
    message.lines().map(|line| format!("larder: {line}\n")).collect()
}
