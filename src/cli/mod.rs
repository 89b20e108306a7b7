//! The command line.

mod ca;
mod config;
mod error;
mod instance;
mod manage;
mod output;
mod reload;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{LogFormat, Logging};
use crate::observe;
use error::{CommandError, WRONG_CONFIGURATION, lines};

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
    /// Run the cache (this is what `larder` alone does, too)
    Serve,
    /// List the cached images
    Ls(manage::Ls),
    /// Take images out of the cache
    Purge(manage::Purge),
    /// Keep an image for ever, whatever `max_size` and `ttl` say
    Pin(manage::Pin),
    /// Let a pinned image be evicted again
    Unpin(manage::Pin),
    /// Read every stored byte and compare it with its digest
    Verify(manage::Verify),
    /// Print the certificate that clients of the proxy door have to trust, and how they come to do so
    Ca(ca::Ca),
    /// Check, show or convert a configuration
    Config(config::Config),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let files = arguments.config;
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(&files),
        Command::Ls(ls) => finish(async move { manage::ls(&files, &ls).await }),
        Command::Purge(purge) => finish(async move { manage::purge(&files, &purge).await }),
        Command::Pin(pin) => finish(async move { manage::pin(&files, &pin, true).await }),
        Command::Unpin(pin) => finish(async move { manage::pin(&files, &pin, false).await }),
        Command::Verify(verify) => finish(async move { manage::verify(&files, &verify).await }),
        Command::Ca(arguments) => finish(async move { ca::run(&files, &arguments) }),
        Command::Config(config) => finish(async move { config::run(&files, &config) }),
    }
}

/// Runs a command that ends, and turns its result into an exit code.
fn finish(command: impl Future<Output = Result<(), CommandError>>) -> ExitCode {
    // Only warnings and errors are logged: standard output is for the output of the command.
    let logging = Logging { level: "warn".to_owned(), format: LogFormat::Text, ..Logging::default() };
    let runtime =
        observe::log::init(&logging).map_err(|error| CommandError::Failed(error.to_string())).and_then(|_| {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            runtime.map_err(|error| CommandError::Failed(error.to_string()))
        });
    let result = runtime.and_then(|runtime| runtime.block_on(command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandError::Quiet) => ExitCode::FAILURE,
        Err(CommandError::QuietUsage) => ExitCode::from(WRONG_CONFIGURATION),
        Err(error) => {
            eprint!("{}", lines(&error.to_string()));
            match error {
                CommandError::Usage(_) => ExitCode::from(WRONG_CONFIGURATION),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
