//! `larder doctor`: looks for what keeps this cache from serving, and says what to do.
//!
//! It checks the configuration, the machine, the certificates, the bucket, the upstreams, the issuers, the running instance with a
//! pull end to end, and the clients on this host. Nothing is changed.

mod clients;
mod instance;
mod issuers;
mod machine;
mod storage;
mod upstreams;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::CommandError;
use super::instance::Where;
use super::output::{print, print_json};
use crate::config::{self, Config, Loaded, Sources};

#[derive(Debug, clap::Args)]
pub struct Doctor {
    #[command(flatten)]
    place: Where,
    /// The image of the pull end to end; without it, the first cached image is pulled again
    #[arg(long, value_name = "REF")]
    pull: Option<String>,
    /// Ask also the upstreams of well-known registries that the configuration does not name
    #[arg(long)]
    all: bool,
    /// Look at the configurations of clients below this folder
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    Warning,
    Error,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was checked, in a word or two.
    check: &'static str,
    verdict: Verdict,
    /// What was found, and what to do.
    text: String,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, verdict: Verdict, text: impl Into<String>) {
        self.0.push(Finding { check, verdict, text: text.into() });
    }

    fn ok(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(check, Verdict::Ok, text);
    }

    fn note(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(check, Verdict::Note, text);
    }

    fn warning(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(check, Verdict::Warning, text);
    }

    fn error(&mut self, check: &'static str, text: impl Into<String>) {
        self.add(check, Verdict::Error, text);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|finding| finding.verdict == verdict).count()
    }
}

/// Runs `larder doctor`. Fails if there is an error among what it found.
pub async fn run(files: &[PathBuf], arguments: &Doctor) -> Result<(), CommandError> {
    let mut findings = Findings::default();
    let sources = Sources::new(files, config::environment());
    let named = sources.files();
    if let Some(config) = configuration(sources.load(), &named, &mut findings) {
        machine::check(&config, &mut findings);
        let is_running = instance::check(files, &config, arguments, &mut findings).await;
        machine::check_ports(&config, is_running, &mut findings);
        storage::check(&config, &mut findings).await;
        upstreams::check(&config, arguments.all, &mut findings).await?;
        issuers::check(&config, &mut findings).await;
        clients::check(&config, &arguments.root, &mut findings).await;
    }
    match arguments.json {
        true => print_json(&serde_json::json!({ "findings": findings.0 }))?,
        false => print(&described(&findings))?,
    }
    if findings.count(Verdict::Error) > 0 { Err(CommandError::Quiet) } else { Ok(()) }
}

/// Returns the configuration if it can be used.
fn configuration(loaded: Loaded, files: &[PathBuf], findings: &mut Findings) -> Option<Config> {
    const CHECK: &str = "configuration";
    for warning in &loaded.warnings {
        findings.warning(CHECK, warning.clone());
    }
    let shown = |file: &Path| file.display().to_string();
    match loaded.config {
        Ok(config) => {
            let from = match files {
                [] => "there is no larder.toml, so the defaults apply".to_owned(),
                files => format!("{} can be used", files.iter().map(|file| shown(file)).collect::<Vec<_>>().join(", ")),
            };
            findings.ok(CHECK, from);
            Some(config)
        }
        Err(errors) => {
            for line in errors.to_string().lines() {
                findings.error(CHECK, line);
            }
            None
        }
    }
}

fn described(findings: &Findings) -> String {
    let mark = |verdict: Verdict| match verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Warning => "warning",
        Verdict::Error => "ERROR",
    };
    let width = findings.0.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let line = |Finding { check, verdict, text }: &Finding| format!("{:<8} {check:<width$}  {text}\n", mark(*verdict));
    let mut lines: String = findings.0.iter().map(line).collect();
    lines += &match (findings.count(Verdict::Error), findings.count(Verdict::Warning)) {
        (0, 0) => "\nall is well\n".to_owned(),
        (0, warnings) => format!("\nit works; warnings: {warnings}\n"),
        (errors, warnings) => format!("\nerrors: {errors}, warnings: {warnings}\n"),
    };
    lines
}
