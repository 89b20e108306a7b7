//! `larder config check`, `show` and `convert`: what a configuration says, before it is used.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::CommandError;
use super::output::{cannot_write, complain, print, print_json};
use crate::config::{self, ConfigErrors, Loaded, Sources};
use crate::convert::{self, Kind};
use crate::text::printable;

#[derive(Debug, clap::Args)]
pub struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print a larder.toml to start from, in which everything is explained
    #[command(after_help = "Example:\n  larder config init -o larder.toml")]
    Init(Init),
    /// Read the configuration as `serve` does and say whether it can be used
    #[command(after_help = "Examples:\n  larder config check\n  larder config check new.toml")]
    Check(Output),
    /// Print the configuration in effect: every key with its value and where it comes from
    #[command(after_help = "Examples:\n  larder config show\n  larder config show --json | jq .cache")]
    Show(Output),
    /// Print the `larder.toml` that does what another program's configuration says
    #[command(after_help = "Example:\n  larder config convert /etc/docker/registry/config.yml -o larder.toml")]
    Convert(Convert),
}

#[derive(Debug, clap::Args)]
struct Output {
    /// Configuration files, as with --config
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Init {
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file if it exists
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct Convert {
    /// The configuration, or a folder of .yaml and .yml files
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// Whose configuration it is; found out by its content where it is left out
    #[arg(long, value_name = "KIND", value_parser = kind_parser())]
    from: Option<Kind>,
    /// Write to this file, which must not exist yet, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn kind_parser() -> impl clap::builder::TypedValueParser<Value = Kind> {
    use clap::builder::TypedValueParser;
    clap::builder::PossibleValuesParser::new(Kind::ALL.map(Kind::name)).try_map(|name| name.parse::<Kind>())
}

/// The result of a check as JSON.
#[derive(Serialize)]
struct Checked {
    ok: bool,
    files: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repositories: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstreams: Option<usize>,
    /// All mistakes, a line each.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Runs `larder config`.
pub fn run(files: &[PathBuf], arguments: &Config) -> Result<(), CommandError> {
    let sources = |more: &[PathBuf]| Sources::new(&[files, more].concat(), config::environment());
    match &arguments.what {
        What::Init(arguments) => init(arguments),
        What::Check(output) => check(&sources(&output.files), output.json),
        What::Show(output) => show(&sources(&output.files), output.json),
        What::Convert(arguments) => convert(arguments),
    }
}

impl Config {
    /// Returns whether JSON is asked for.
    pub fn is_json(&self) -> bool {
        match &self.what {
            What::Check(output) | What::Show(output) => output.json,
            What::Init(_) | What::Convert(_) => false,
        }
    }
}

/// A configuration in which everything is a comment.
const STARTER: &str = include_str!("starter.toml");

fn init(arguments: &Init) -> Result<(), CommandError> {
    let Some(file) = &arguments.output else {
        return print(STARTER);
    };
    match arguments.force {
        true => std::fs::write(file, STARTER).map_err(|error| cannot_write(file, &error))?,
        false => write_new(file, STARTER, "write over it with --force")?,
    }
    print(&format!("{} is written; check your changes with: larder config check {0}\n", file.display()))
}

fn wrong(error: &ConfigErrors) -> CommandError {
    CommandError::Usage(error.to_string())
}

fn check(sources: &Sources, is_json: bool) -> Result<(), CommandError> {
    let Loaded { config, warnings, .. } = sources.load();
    let files = sources.files();
    if !is_json {
        warnings.iter().for_each(|warning| complain(&format!("larder: warning: {}\n", printable(warning))));
    }
    let config = match config {
        Ok(config) => config,
        Err(errors) if is_json => {
            let error = Some(errors.to_string());
            let errors = errors.iter().map(ToString::to_string).collect();
            let (repositories, upstreams) = (None, None);
            print_json(&Checked { ok: false, files, repositories, upstreams, error, errors, warnings })?;
            return Err(CommandError::QuietUsage);
        }
        Err(errors) => return Err(wrong(&errors)),
    };
    let repositories = config.repositories.len();
    let upstreams = config.repositories.iter().map(|repository| repository.upstreams.len()).sum();
    if is_json {
        let (repositories, upstreams, errors) = (Some(repositories), Some(upstreams), Vec::new());
        return print_json(&Checked { ok: true, files, repositories, upstreams, error: None, errors, warnings });
    }
    let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let what = match names.is_empty() {
        true => "no larder.toml".to_owned(),
        false => names.join(", "),
    };
    let repositories = counted(repositories, "repository", "repositories");
    let upstreams = counted(upstreams, "upstream", "upstreams");
    print(&format!("{what}: fine ({repositories}, {upstreams})\n"))
}

fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn show(sources: &Sources, is_json: bool) -> Result<(), CommandError> {
    let effective = sources.effective().map_err(|error| wrong(&error))?;
    if is_json { print_json(&effective) } else { print(&effective.to_toml()) }
}

fn convert(arguments: &Convert) -> Result<(), CommandError> {
    let converted = convert::convert(&arguments.paths, arguments.from);
    let converted = converted.map_err(|error| CommandError::Usage(error.to_string()))?;
    match &arguments.output {
        None => print(&converted.toml)?,
        Some(file) => write_new(file, &converted.toml, "move it away or name another file")?,
    }
    for warning in &converted.warnings {
        complain(&format!("larder: {}\n", printable(warning)));
    }
    Ok(())
}

/// Writes a new file that only its owner may read: it may hold passwords. `instead`: what to do if the file exists.
fn write_new(path: &Path, text: &str, instead: &str) -> Result<(), CommandError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists if path.is_dir() => cannot_write(path, &io::ErrorKind::IsADirectory.into()),
        io::ErrorKind::AlreadyExists => CommandError::Usage(format!("{} exists; {instead}", path.display())),
        _ => cannot_write(path, &error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the comment signs off the lines that hold a key or a heading.
    fn uncommented(text: &str) -> String {
        let is_toml =
            |line: &str| line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let line = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if is_toml(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn the_starter_is_a_configuration_with_and_without_its_comments() {
        crate::config::Config::check_text(STARTER).expect("as it is");
        let text = uncommented(STARTER);
        crate::config::Config::check_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(text.lines().filter(|line| !line.starts_with('#') && line.contains(" = ")).count() > 12);
    }
}
