//! The command line. One file per command.

mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code for wrong usage or configuration.
const WRONG_CONFIGURATION: u8 = 2;

/// A pull-through cache for container registries.
#[derive(Debug, Parser)]
#[command(name = "larder", version, about)]
struct Arguments {
    /// Configuration file; may be given several times, later files win. Without it `larder.toml` is
    /// read where it exists, else the built-in defaults apply.
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the cache (this is what `larder` alone does, too).
    Serve,
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(&arguments.config),
    }
}
