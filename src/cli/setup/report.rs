//! What `larder setup` says.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::error::CommandError;
use crate::cli::output::{complain, print, print_json};
use crate::setup::{Change, Changes, Client, Taken, Target, Version, Wish};

/// What is there to tell.
pub struct Told<'a> {
    pub wish: &'a Wish,
    /// Where the cache's address was found.
    pub from: &'a str,
    /// The client's version, and where it was found.
    pub version: Option<(Version, &'static str)>,
    pub changes: &'a Changes,
    pub is_written: bool,
}

/// The output as JSON.
#[derive(Serialize)]
struct Said<'a> {
    client: &'a str,
    url: String,
    url_from: &'a str,
    version: Option<String>,
    version_from: Option<&'a str>,
    written: bool,
    files: Vec<SaidFile<'a>>,
    warnings: &'a [String],
    next: &'a [String],
}

#[derive(Serialize)]
struct SaidFile<'a> {
    path: &'a Path,
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl<'a> SaidFile<'a> {
    fn of(path: &'a Path, change: &'a Change, content: Option<&'a str>) -> Self {
        let (change, backup) = match change {
            Change::Made => ("made", None),
            Change::Changed(backup) => ("changed", Some(backup.as_path())),
            Change::Restored => ("restored", None),
            Change::Removed => ("removed", None),
            Change::Left(backup) => ("left", backup.as_deref()),
        };
        Self { path, change, backup, content }
    }
}

impl Told<'_> {
    /// Prints it.
    pub fn tell(&self, is_json: bool) -> Result<(), CommandError> {
        if is_json { print_json(&self.said()) } else { self.print() }
    }

    fn said(&self) -> Said<'_> {
        let file = |step| -> SaidFile<'_> {
            let step: &crate::setup::Step = step;
            SaidFile::of(step.path(), &step.change, step.text.as_deref())
        };
        Said {
            client: self.wish.target.client.name(),
            url: self.wish.cache.url(),
            url_from: self.from,
            version: self.version.map(|(version, _)| version.to_string()),
            version_from: self.version.map(|(_, from)| from),
            written: self.is_written && !self.changes.steps.is_empty(),
            files: self.changes.steps.iter().map(file).collect(),
            warnings: &self.changes.plan.warnings,
            next: &self.changes.plan.next,
        }
    }

    fn print(&self) -> Result<(), CommandError> {
        let client = self.wish.target.client;
        let version = match self.version {
            Some((version, from)) => format!(" {version} (by {from})"),
            None if depends_on_version(client) => {
                " of unknown version (taken for a present one; else name it with --client-version)".to_owned()
            }
            None => String::new(),
        };
        let mut text = format!("{}{version}, through {} (by {})\n", client.name(), self.wish.cache.url(), self.from);
        for step in &self.changes.steps {
            let path = step.path().display();
            let _ = match (&step.change, self.is_written) {
                (Change::Made, false) => writeln!(text, "\n--- {path}: new"),
                (Change::Made, true) => writeln!(text, "wrote {path}"),
                (Change::Changed(backup), false) => {
                    writeln!(text, "\n--- {path}: changed; from before it stays as {}", backup.display())
                }
                (Change::Changed(backup), true) => {
                    writeln!(text, "changed {path}; from before it is {}", backup.display())
                }
                (Change::Restored, false) => writeln!(text, "\n--- {path}: again as it was before"),
                (Change::Restored, true) => writeln!(text, "restored {path}"),
                (Change::Removed, false) => writeln!(text, "\n--- {path}: removed"),
                (Change::Removed, true) => writeln!(text, "removed {path}"),
                (Change::Left(_), _) => writeln!(text, "left {path}"),
            };
            if let Some(content) = step.text.as_ref().filter(|_| !self.is_written) {
                text.push_str(content);
            }
        }
        if !self.is_written && !self.changes.steps.is_empty() {
            text.push('\n');
        }
        let is_done = self.changes.steps.is_empty();
        if is_done {
            text.push_str("nothing to do: no file has to change\n");
        } else if !self.is_written {
            text.push_str("nothing is written yet: add --write\n");
        }
        if !is_done {
            let when = if self.is_written { "next" } else { "then" };
            self.changes.plan.next.iter().for_each(|next| {
                let _ = writeln!(text, "{when}: {next}");
            });
        }
        print(&shown(&text))?;
        warn(&self.changes.plan.warnings);
        Ok(())
    }
}

/// Whether something other than the version itself depends on it.
fn depends_on_version(client: Client) -> bool {
    matches!(client, Client::Docker | Client::Containerd | Client::K3s | Client::Rke2)
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        complain(&shown(&format!("larder: warning: {}\n", warning.trim_end())));
    }
}

/// Returns a text in which nothing controls the terminal: it may be from the files of another machine.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c }).collect()
}

/// What was taken back, as JSON.
#[derive(Serialize)]
struct SaidTaken<'a> {
    client: &'a str,
    undone: bool,
    files: Vec<SaidFile<'a>>,
    folders_left: &'a [PathBuf],
}

/// Prints what was taken back. Fails if not all was.
pub fn taken(target: &Target, taken: Option<Taken>, is_json: bool) -> Result<(), CommandError> {
    let name = target.client.name();
    let is_nothing = taken.is_none();
    let taken = taken.unwrap_or(Taken { steps: Vec::new(), folders: Vec::new() });
    let is_all = !taken.steps.iter().any(|(_, change)| matches!(change, Change::Left(_)));
    if is_json {
        let files = taken.steps.iter().map(|(path, change)| SaidFile::of(path, change, None)).collect();
        print_json(&SaidTaken { client: name, undone: is_all && !is_nothing, files, folders_left: &taken.folders })?;
    } else {
        print(&shown(&lines(target, &taken, is_nothing)))?;
    }
    if is_all { Ok(()) } else { Err(CommandError::Quiet) }
}

fn lines(target: &Target, taken: &Taken, is_nothing: bool) -> String {
    let (mut text, name) = (String::new(), target.client.name());
    if is_nothing {
        let _ = writeln!(text, "nothing to undo: setup has written nothing for {name} here");
    }
    for (path, change) in &taken.steps {
        let path = path.display();
        let _ = match change {
            Change::Removed => writeln!(text, "removed {path}"),
            Change::Left(Some(backup)) => {
                writeln!(text, "left {path}: it was changed since; from before it is {}", backup.display())
            }
            Change::Left(None) => writeln!(text, "left {path}: it was changed since; setup had made it"),
            Change::Made | Change::Changed(_) | Change::Restored => writeln!(text, "restored {path}"),
        };
    }
    for folder in &taken.folders {
        let _ = writeln!(text, "left {}: setup had made it, and something else is in it now", folder.display());
    }
    if !is_nothing {
        let _ = writeln!(text, "next: {}", target.reload());
    }
    text
}
