//! `larder ls`, `purge`, `pin`, `unpin` and `verify`: the commands that manage a cache, running or not.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::error::CommandError;
use super::instance::{Instance, Where};
use super::output::{print, print_json};
use crate::clock::Instant;
use crate::ops::Image;
use crate::upkeep::scrub::{INDEX_IS_FINE, Report, Trouble};

/// How often the progress of a verification is shown.
const PROGRESS: Duration = Duration::from_millis(200);

/// What every one of these commands takes.
#[derive(Debug, clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub place: Where,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["reference", "all"])))]
pub struct Purge {
    /// An image (`docker.io/library/alpine:3.20`, or with a digest), all of a name
    /// (`docker.io/library/alpine`), or a whole repository (`docker.io`)
    reference: Option<String>,
    /// Everything
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, clap::Args)]
pub struct Pin {
    /// An image: `docker.io/library/alpine:3.20`, or with a digest; it need not be cached yet
    reference: String,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Remove what is damaged, take in files that the index does not know, forget what has no file, and
    /// build the index anew if it is damaged
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    pub common: Common,
}

/// Runs `larder ls`.
pub async fn ls(files: &[PathBuf], arguments: &Ls) -> Result<(), CommandError> {
    let instance = Instance::find(files, &arguments.common.place).await?;
    let images = instance.images().await?;
    if arguments.common.json {
        return print_json(&images);
    }
    let mut table = vec![["IMAGE", "DIGEST", "SIZE", "LAST USED", "PINNED"].map(str::to_owned)];
    table.extend(images.iter().map(row));
    print(&aligned(&table))
}

fn row(image: &Image) -> [String; 5] {
    // As much of a digest as users of `docker images --digests` compare by eye.
    let digest = image.digest.get(..19).unwrap_or(&image.digest).to_owned();
    let pinned = if image.pinned { "yes" } else { "" };
    [image.reference.clone(), digest, size(image.size), image.last_use.clone(), pinned.to_owned()]
}

/// Runs `larder purge`.
pub async fn purge(files: &[PathBuf], arguments: &Purge) -> Result<(), CommandError> {
    let instance = Instance::find(files, &arguments.common.place).await?;
    let done = instance.purge(arguments.reference.as_deref()).await;
    instance.close().await;
    let done = done?;
    if arguments.common.json {
        return print_json(&done);
    }
    let objects = if done.objects == 1 { "object" } else { "objects" };
    print(&format!("purged {} {objects}, {}\n", done.objects, size(done.bytes)))
}

/// Runs `larder pin`, or `larder unpin` if `is_pinned` is false.
pub async fn pin(files: &[PathBuf], arguments: &Pin, is_pinned: bool) -> Result<(), CommandError> {
    let instance = Instance::find(files, &arguments.common.place).await?;
    let done = instance.set_pin(&arguments.reference, is_pinned).await;
    instance.close().await;
    let done = done?;
    if !is_pinned && !done.changed {
        let reference = done.reference;
        let message =
            format!("{reference} was not pinned by name; patterns are in `pin` of its repository's configuration");
        return Err(CommandError::Failed(message));
    }
    if arguments.common.json {
        return print_json(&done);
    }
    let what = match (is_pinned, done.changed) {
        (true, true) => "is pinned: it is never evicted",
        (true, false) => "was pinned already",
        (false, _) => "is no longer pinned",
    };
    print(&format!("{} {what}\n", done.reference))
}

/// Runs `larder verify`.
pub async fn verify(files: &[PathBuf], arguments: &Verify) -> Result<(), CommandError> {
    let mut instance = Instance::find(files, &arguments.common.place).await?;
    let mut report = instance.verify(arguments.repair, progress()).await?;
    let is_index_damaged = report.index != INDEX_IS_FINE;
    let is_stopped = matches!(instance, Instance::Stopped(..));
    instance.close().await;
    if is_index_damaged && arguments.repair && is_stopped {
        // The index was marked as damaged: opening the cache again sets it aside and builds it from the files.
        instance = Instance::find(files, &arguments.common.place).await?;
        let again = instance.verify(true, |_| ()).await?;
        (report.index, report.unknown) = (again.index, again.unknown);
        instance.close().await;
    }
    if arguments.common.json {
        print_json(&report)?;
    } else {
        print(&described(&report))?;
    }
    if report.is_clean() { Ok(()) } else { Err(CommandError::Quiet) }
}

/// Returns a function that shows the progress of a verification on a terminal.
fn progress() -> impl FnMut(&Report) + Send + 'static {
    let is_shown = std::io::stderr().is_terminal();
    let mut last = Instant::now();
    move |report| {
        if !is_shown || (last.elapsed() < PROGRESS && !report.is_complete) {
            return;
        }
        last = Instant::now();
        let end = if report.is_complete { "\r\x1b[K" } else { "" };
        let (read, all) = (size(report.bytes), size(report.bytes_in_all));
        // A progress line that cannot be shown is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[Kverified {read} of {all}{end}");
    }
}

fn described(report: &Report) -> String {
    let mut text = format!("{} objects, {} read\n", report.objects, size(report.bytes));
    let (removed, adopted, forgotten) = match report.is_repaired {
        true => ("; removed, to be fetched again when asked for", "; taken in", "; forgotten"),
        false => ("; not served, and removed with --repair", "; taken in with --repair", "; forgotten with --repair"),
    };
    text += &trouble("damaged", &report.damaged, removed);
    text += &trouble("unreadable", &report.unreadable, removed);
    text += &trouble("not in the index", &report.unknown, adopted);
    text += &trouble("without a file", &report.missing, forgotten);
    if report.index != INDEX_IS_FINE {
        text += &format!("{}\n", report.index);
    }
    text += if report.is_clean() { "all is well\n" } else { "" };
    text
}

fn trouble(what: &str, trouble: &Trouble, remedy: &str) -> String {
    if trouble.count == 0 {
        return String::new();
    }
    let listed: String = trouble.digests.iter().map(|digest| format!("  {digest}\n")).collect();
    let left_out = trouble.count - trouble.digests.len() as u64;
    let more = if left_out > 0 { format!("  and {left_out} more\n") } else { String::new() };
    format!("{what}: {}{remedy}\n{listed}{more}", trouble.count)
}

/// Returns a table whose columns are as wide as their widest value.
pub fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Returns a number of bytes in a form for people.
#[allow(clippy::cast_precision_loss)]
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3_401_558, "3.2 MiB"), (5 << 40, "5.0 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["A", "B"], ["long", "x"], ["", "y"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "A     B\nlong  x\n      y\n");
    }
}
