//! `larder migrate`: moves a cache to another place.

use std::path::PathBuf;

use super::carry::{PROGRESS, Shown, plural};
use super::error::CommandError;
use super::manage::size;
use super::output::{complain, print, print_json};
use crate::cache::moving::{Moving, MovingError, Report};
use crate::config::{self, Config};

#[derive(Debug, clap::Args)]
pub struct Migrate {
    /// The configuration of the cache as it was until now; may be given several times, later files win. Variables of the
    /// environment are laid over the new configuration only
    #[arg(long, value_name = "OLD.toml", required = true)]
    from: Vec<PathBuf>,
    /// Move nothing: say what the new cache does not have yet. The bucket is asked for each object
    #[arg(long)]
    check: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs `larder migrate`.
pub async fn run(files: &[PathBuf], arguments: &Migrate) -> Result<(), CommandError> {
    let read = |which: &str, files: &[PathBuf], variables: Vec<(String, String)>| {
        let config = Config::load(files, variables.into_iter());
        config.map_err(|errors| CommandError::Usage(format!("{which}: {errors}")))
    };
    // A variable that sets a key sets it for the cache that is to run with it.
    let secrets = config::environment().filter(|(name, _)| !name.starts_with("LARDER_")).collect();
    let old = read("the old configuration", &arguments.from, secrets)?;
    let new = read("the new configuration", files, config::environment().collect())?;
    let moving = Moving::open(&old, &new).await?;
    let moved = shown(&moving, arguments.check).await;
    moving.close().await;
    let report = moved?;
    match arguments.json {
        true => print_json(&report)?,
        false => print(&told(&report, arguments.check))?,
    }
    if report.damaged.count == 0 { Ok(()) } else { Err(CommandError::Quiet) }
}

/// Moves, and shows on a terminal how much is done.
async fn shown(moving: &Moving, is_check: bool) -> Result<Report, CommandError> {
    let (progress, mut shown) = (moving.progress(), Shown::new(if is_check { "compared" } else { "moved" }));
    let work = async {
        let plan = moving.plan(is_check).await?;
        match is_check {
            true => Ok(plan),
            false => {
                moving.check_room(&plan).await?;
                moving.run(&plan).await
            }
        }
    };
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(PROGRESS);
    loop {
        tokio::select! {
            done = &mut work => {
                drop(shown);
                let hint = "larder: what was moved stays there: run the same command again, and it goes on\n";
                let may_go_on = |error: &MovingError| !is_check && error.may_go_on();
                return done.inspect_err(|error| if may_go_on(error) { complain(hint) }).map_err(CommandError::from);
            }
            _ = ticks.tick() => {
                let (done, all) = progress.get();
                shown.show(done, all);
            }
        }
    }
}

fn told(report: &Report, is_check: bool) -> String {
    let (all, bytes) = (plural(report.objects, "object"), size(report.bytes));
    if is_check {
        return match report.left() {
            0 => format!("{all}, {bytes}: the new cache has all of them\n"),
            left => format!("{all}, {bytes}: {left} of them, {}, are still to be moved\n", size(report.left_bytes())),
        };
    }
    let mut text = String::new();
    for (trouble, what) in [
        (&report.damaged, "is damaged in the old cache, and left out; it is fetched again"),
        (&report.missing, "is not in the old cache any more, and left out"),
    ] {
        text.extend(trouble.digests.iter().map(|digest| format!("{digest}: {what}\n")));
        let unnamed = trouble.count.saturating_sub(trouble.digests.len() as u64);
        if unnamed > 0 {
            text += &format!("and {unnamed} more\n");
        }
    }
    let (moved, tags, pins) = (plural(report.moved, "object"), plural(report.tags, "tag"), plural(report.pins, "pin"));
    text += &format!("moved {moved}, {}; {} were there before\n", size(report.moved_bytes), report.present);
    text +=
        &format!("the new cache knows {tags} and {pins} of the old one, whose files and rows are left as they are\n");
    text
}

impl From<MovingError> for CommandError {
    fn from(error: MovingError) -> Self {
        match error {
            MovingError::Same | MovingError::TwoBuckets | MovingError::NoCache(_) => Self::Usage(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}
