//! `larder export` and `larder import`: images in an archive, for places without a network.

mod check;
mod sink;
mod source;

use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::error::CommandError;
use super::instance::Instance;
use super::manage::{Common, size};
use super::output::{complain, print, print_json, to_json};
use crate::clock::Instant;
use crate::ops::export::{self, Exported};
use crate::ops::import::Imported;

/// Standard input or output, in the place of a file.
const PIPE: &str = "-";

/// How often progress is shown on a terminal.
pub const PROGRESS: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(false).args(["references", "all"])))]
pub struct Export {
    /// Cached images: `docker.io/library/alpine:3.20`, or with a digest
    #[arg(value_name = "REF")]
    references: Vec<String>,
    /// Everything that is cached
    #[arg(long)]
    all: bool,
    /// Only what was stored since then: 2026-11-01, or 2026-11-01T18:00:00Z; an earlier archive has the rest
    #[arg(long, value_name = "DATE")]
    since: Option<String>,
    /// Split FILE.tar into FILE.tar.000, FILE.tar.001 and so on, each of at most this size: 4GiB, 4700MB
    #[arg(long, value_name = "SIZE", value_parser = sink::chunk_size)]
    chunk_size: Option<u64>,
    /// With signatures, SBOMs and whatever else is cached that refers to the images
    #[arg(long)]
    extras: bool,
    /// A new file that ends in .tar, a new or empty folder, or `-` for a tar archive on standard output
    #[arg(long, short, value_name = "DIR|FILE.tar|-")]
    output: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, clap::Args)]
pub struct Import {
    /// An OCI image layout: a folder, a tar file, or the parts of one in any order (of parts that lie together, one
    /// is enough), or `-` for a tar archive on standard input
    #[arg(value_name = "DIR|FILE.tar|-", required = true)]
    paths: Vec<PathBuf>,
    /// Only compare every file with its digest; no cache is needed
    #[arg(long, conflicts_with = "name")]
    check: bool,
    /// The name of the image, where the archive has none: docker.io/library/alpine:3.20, or only the part before
    /// the tag
    #[arg(long = "as", value_name = "NAME:TAG")]
    name: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

impl Export {
    /// Returns whether the archive goes to standard output.
    pub fn is_piped(&self) -> bool {
        self.output.as_os_str() == PIPE
    }
}

/// What was written, for people and for machines.
#[derive(Serialize)]
struct Written {
    #[serde(flatten)]
    exported: Exported,
    files: Vec<PathBuf>,
}

/// Runs `larder export`.
pub async fn export(files: &[PathBuf], arguments: &Export) -> Result<(), CommandError> {
    let since = arguments.since.as_deref().map(export::moment).transpose()?;
    let sink = sink::Sink::new(&arguments.output, arguments.chunk_size)?;
    let instance = Instance::find(files, &arguments.common.place).await?;
    let wanted = export::Export { references: arguments.references.clone(), since, with_extras: arguments.extras };
    let written = async {
        let pieces = instance.export(&wanted, arguments.since.as_deref()).await?;
        sink.write(pieces, Shown::new("written")).await
    };
    let written = written.await;
    instance.close().await;
    let (exported, files) = written?;
    let text = match arguments.common.json {
        true => to_json(&Written { exported, files })?,
        false => told_of_export(&exported, &files),
    };
    if arguments.is_piped() {
        // Standard output has the archive.
        complain(&text);
        return Ok(());
    }
    print(&text)
}

fn told_of_export(exported: &Exported, files: &[PathBuf]) -> String {
    let mut text = String::new();
    for incomplete in &exported.incomplete {
        let objects = plural(incomplete.missing, "object");
        text += &format!("{}: {objects} of it not cached, and left out\n", incomplete.reference);
    }
    if exported.earlier > 0 {
        let (objects, since) = (plural(exported.earlier, "object"), exported.since.as_deref().unwrap_or_default());
        text += &format!("left out {objects} from before {since}, which an earlier archive has\n");
    }
    let (images, objects) = (plural(exported.images, "image"), plural(exported.objects, "object"));
    let files = match files {
        [] => "standard output".to_owned(),
        files => files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    text += &format!("exported {images}: {objects}, {}, to {}\n", size(exported.bytes), files);
    text + &format!("what is stored from now on: --since {}\n", exported.begun_at)
}

/// Runs `larder import`.
pub async fn import(files: &[PathBuf], arguments: &Import) -> Result<(), CommandError> {
    let source = source::Source::find(&arguments.paths)?;
    if arguments.check {
        return check::run(source, arguments.common.json).await;
    }
    let instance = Instance::find(files, &arguments.common.place).await?;
    let (bytes, hint) = (source.bytes(), source.hint());
    let imported = instance.import(source.pieces(Shown::new("sent")), bytes, arguments.name.as_deref()).await;
    instance.close().await;
    let imported = imported.map_err(|error| match (error, hint) {
        (CommandError::Failed(message), Some(hint)) => CommandError::Failed(message + &hint),
        (error, _) => error,
    })?;
    match arguments.common.json {
        true => print_json(&imported)?,
        false => print(&told_of_import(&imported))?,
    }
    if imported.left_out.is_empty() { Ok(()) } else { Err(CommandError::Quiet) }
}

fn told_of_import(imported: &Imported) -> String {
    let mut text = String::new();
    for lacking in &imported.incomplete {
        let objects = plural(lacking.missing, "object");
        text += &format!("{}: {objects} of it neither in the archive nor here\n", lacking.reference);
    }
    for left_out in &imported.left_out {
        text += &format!("{}: not imported: {}\n", left_out.reference, left_out.why);
    }
    let (images, objects) = (plural(imported.images, "image"), plural(imported.objects, "new object"));
    text + &format!("imported {images}: {objects}, {}; {} were here before\n", size(imported.bytes), imported.present)
}

/// Returns a count with what is counted.
pub fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Shows on a terminal how much is done.
pub struct Shown {
    verb: &'static str,
    last: Option<Instant>,
}

impl Shown {
    /// `verb`: what is done.
    pub fn new(verb: &'static str) -> Self {
        Self { verb, last: std::io::stderr().is_terminal().then(Instant::now) }
    }

    /// Shows progress, but not too often. A line that cannot be shown is no reason to stop.
    pub fn show(&mut self, done: u64, all: u64) {
        if let Some(last) = self.last.filter(|last| last.elapsed() >= PROGRESS) {
            self.last = Some(last + last.elapsed());
            let _ = write!(std::io::stderr(), "\r\x1b[K{} {} of {}", self.verb, size(done), size(all.max(done)));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
