//! The command line.

mod ca;
mod carry;
mod chart;
mod config;
mod doctor;
mod error;
mod generate;
mod healthcheck;
mod instance;
mod look;
mod manage;
mod migrate;
mod output;
mod pull;
mod reload;
mod serve;
mod setup;
mod systemd;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{LogFormat, Logging};
use crate::observe::log::Log;
use error::{CommandError, WRONG_CONFIGURATION};

/// A pull-through cache for container registries.
#[derive(Debug, Parser)]
#[command(name = "larder", version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    /// Configuration file; may be given several times, later files win. Without it `larder.toml` is read, or else
    /// /etc/larder/larder.toml; where there is neither, the built-in defaults apply
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "Examples:
  larder                                          runs the cache at 127.0.0.1:5000
  docker pull 127.0.0.1:5000/docker.io/library/alpine:3.20
  larder ls                                       shows what is cached
  larder config init -o larder.toml               writes a configuration to start from";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the cache (this is what `larder` alone does, too)
    #[command(
        after_help = "Examples:\n  larder serve\n  larder --config /etc/larder/larder.toml serve\n  LARDER_SERVER__LISTEN=0.0.0.0:5000 larder serve"
    )]
    Serve,
    /// List the cached images
    #[command(
        after_help = "Examples:\n  larder ls\n  larder ls --json | jq -r '.[].reference'\n  larder ls --admin http://cache.example:17081"
    )]
    Ls(manage::Ls),
    /// Take images out of the cache
    #[command(
        after_help = "Examples:\n  larder purge docker.io/library/alpine:3.20\n  larder purge docker.io/library/alpine\n  larder purge ghcr.io\n  larder purge --all"
    )]
    Purge(manage::Purge),
    /// Show what the cache did since it started, and what it holds
    #[command(after_help = "Examples:\n  larder stats\n  larder stats --watch\n  larder stats --json | jq .hit_rate")]
    Stats(look::ShowStats),
    /// Show the last pulls, each with the reason why it was answered as it was
    #[command(
        after_help = "Examples:\n  larder pulls\n  larder pulls --follow\n  larder pulls --status stale alpine\n  larder pulls -n 1000 --json | jq -r '.[].reason' | sort | uniq -c"
    )]
    Pulls(look::ShowPulls),
    /// Say what would happen if an image were pulled now, and why
    #[command(after_help = "Example:\n  larder explain docker.io/library/alpine:3.20")]
    Explain(look::Explain),
    /// Ask the upstream about a tag now, and fetch a newer manifest
    #[command(after_help = "Example:\n  larder refresh docker.io/library/alpine:3.20")]
    Refresh(look::Explain),
    /// Show the replicas that behave as one cache, and what each of them holds and does
    #[command(after_help = "Examples:\n  larder replicas\n  larder replicas --json | jq '.[].report.fills'")]
    Replicas(look::ShowReplicas),
    /// Bring images into the cache before anybody asks for them
    #[command(
        after_help = "Examples:\n  larder warm docker.io/library/alpine:3.20 --platform linux/amd64\n  docker images | larder warm -f -\n  kubectl get pods -A -o yaml | larder warm --manifests -\n  larder warm --chart ./my-chart-1.0.0.tgz"
    )]
    Warm(warm::Warm),
    /// Keep an image for ever, whatever `max_size` and `ttl` say
    #[command(after_help = "Example:\n  larder pin docker.io/library/alpine:3.20")]
    Pin(manage::Pin),
    /// Let a pinned image be evicted again
    #[command(after_help = "Example:\n  larder unpin docker.io/library/alpine:3.20")]
    Unpin(manage::Pin),
    /// Read every stored byte and compare it with its digest
    #[command(after_help = "Examples:\n  larder verify\n  larder verify --repair")]
    Verify(manage::Verify),
    /// Write cached images into an archive, to carry them to a place without a network
    #[command(
        after_help = "Examples:\n  larder export docker.io/library/alpine:3.20 -o alpine.tar\n  larder export --all -o /media/usb/images\n  larder export --all --since 2026-11-01 --chunk-size 4GiB -o /media/usb/november.tar"
    )]
    Export(carry::Export),
    /// Take in an archive that `larder export`, skopeo, podman, Docker or containerd has written
    #[command(
        after_help = "Examples:\n  larder import alpine.tar\n  larder import /media/usb/november.tar.000\n  larder import --check /media/usb/images\n  larder import app.tar --as registry.example/team/app:1.2"
    )]
    Import(carry::Import),
    /// Move the cache to another place, with everything in it: to a bucket, to PostgreSQL, or back
    #[command(
        after_help = "Examples:\n  larder migrate --from old.toml --config new.toml --check\n  larder migrate --from old.toml --config new.toml\n\nBoth caches have to be stopped, and no upstream is needed. Broken off, it goes on where it was when it is run again. Nothing is removed from the old cache."
    )]
    Migrate(migrate::Migrate),
    /// Print the certificate that clients of the proxy door have to trust, and how they come to do so
    #[command(after_help = "Example:\n  larder ca > larder.crt")]
    Ca(ca::Ca),
    /// Show, write or take back the configuration by which a client pulls through the cache
    #[command(
        after_help = "Examples:\n  larder setup docker\n  sudo larder setup docker --url https://mirror.example.com --write\n  sudo larder setup docker --undo\n  larder setup podman --user --write\n  larder setup containerd --root /mnt/node --client-version 2.1 --url http://10.0.0.7:5000 --write"
    )]
    Setup(setup::Setup),
    /// Make, check, show or convert a configuration
    Config(config::Config),
    /// Look for what keeps the cache from serving, and say what to do
    #[command(
        after_help = "Examples:\n  larder doctor\n  larder doctor --pull docker.io/library/alpine:3.20\n  larder doctor --json | jq '.findings[] | select(.verdict != \"ok\")'"
    )]
    Doctor(doctor::Doctor),
    /// Say by the exit code whether the instance is well: 0 if it is, else 1
    #[command(after_help = "Example, in a Containerfile:\n  HEALTHCHECK CMD [\"/larder\", \"healthcheck\"]")]
    Healthcheck(healthcheck::Healthcheck),
    /// Print the completions for a shell
    #[command(after_help = "Example:\n  larder completions bash > /etc/bash_completion.d/larder")]
    Completions(generate::Completions),
    /// Write the manual pages into a folder
    #[command(after_help = "Example:\n  larder man /usr/local/share/man/man1")]
    Man(generate::Man),
}

impl Command {
    /// Returns whether JSON is asked for; then errors are JSON, too.
    fn is_json(&self) -> bool {
        match self {
            Self::Ls(arguments) => arguments.common.json,
            Self::Purge(arguments) => arguments.common.json,
            Self::Pin(arguments) | Self::Unpin(arguments) => arguments.common.json,
            Self::Verify(arguments) => arguments.common.json,
            Self::Warm(arguments) => arguments.json,
            // Standard output may have the archive.
            Self::Export(arguments) => arguments.common.json && !arguments.is_piped(),
            Self::Import(arguments) => arguments.common.json,
            Self::Migrate(arguments) => arguments.json,
            Self::Stats(arguments) => arguments.json,
            Self::Pulls(arguments) => arguments.json,
            Self::Explain(arguments) | Self::Refresh(arguments) => arguments.json,
            Self::Replicas(arguments) => arguments.json,
            Self::Ca(arguments) => arguments.json,
            Self::Setup(arguments) => arguments.json,
            Self::Config(arguments) => arguments.is_json(),
            Self::Doctor(arguments) => arguments.json,
            Self::Healthcheck(arguments) => arguments.json,
            Self::Serve | Self::Completions(_) | Self::Man(_) => false,
        }
    }
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let files = arguments.config;
    let command = arguments.command.unwrap_or(Command::Serve);
    let is_json = command.is_json();
    match command {
        Command::Serve => serve::run(&files),
        Command::Ls(ls) => finish(is_json, async move { manage::ls(&files, &ls).await }),
        Command::Purge(purge) => finish(is_json, async move { manage::purge(&files, &purge).await }),
        Command::Warm(warm) => finish(is_json, async move { warm::run(&files, &warm).await }),
        Command::Stats(stats) => finish(is_json, async move { look::stats(&files, &stats).await }),
        Command::Pulls(pulls) => finish(is_json, async move { look::pulls(&files, &pulls).await }),
        Command::Explain(explain) => finish(is_json, async move { look::explain(&files, &explain).await }),
        Command::Refresh(refresh) => finish(is_json, async move { look::refresh(&files, &refresh).await }),
        Command::Replicas(replicas) => finish(is_json, async move { look::replicas(&files, &replicas).await }),
        Command::Pin(pin) => finish(is_json, async move { manage::pin(&files, &pin, true).await }),
        Command::Unpin(pin) => finish(is_json, async move { manage::pin(&files, &pin, false).await }),
        Command::Verify(verify) => finish(is_json, async move { manage::verify(&files, &verify).await }),
        Command::Export(export) => finish(is_json, async move { carry::export(&files, &export).await }),
        Command::Import(import) => finish(is_json, async move { carry::import(&files, &import).await }),
        Command::Migrate(arguments) => finish(is_json, async move { migrate::run(&files, &arguments).await }),
        Command::Ca(arguments) => finish(is_json, async move { ca::run(&files, &arguments) }),
        Command::Setup(arguments) => finish(is_json, async move { setup::run(&files, &arguments).await }),
        Command::Config(config) => finish(is_json, async move { config::run(&files, &config) }),
        Command::Doctor(arguments) => finish(is_json, async move { doctor::run(&files, &arguments).await }),
        Command::Healthcheck(arguments) => finish(is_json, async move { healthcheck::run(&files, &arguments).await }),
        Command::Completions(arguments) => finish(is_json, async move { generate::completions(&arguments) }),
        Command::Man(arguments) => finish(is_json, async move { generate::man(&arguments) }),
    }
}

/// Says what is wrong with the arguments, or shows the help that they ask for.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && is_json {
        let message = error.render().to_string();
        let failed = CommandError::Usage(message.trim().trim_start_matches("error: ").to_owned());
        return output::report(&failed, true);
    }
    // A message that cannot be shown changes nothing.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(WRONG_CONFIGURATION) } else { ExitCode::SUCCESS }
}

/// Runs a command that ends, and turns its result into an exit code.
fn finish(is_json: bool, command: impl Future<Output = Result<(), CommandError>>) -> ExitCode {
    // Only warnings and errors are logged: standard output is for the output of the command.
    let logging = Logging { level: "warn".to_owned(), format: LogFormat::Text, ..Logging::default() };
    let result = Log::init(&logging, None).map_err(|error| CommandError::Failed(error.to_string())).and_then(|log| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| CommandError::Failed(error.to_string()))?;
        let result = runtime.block_on(command);
        log.lines().flush();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error, is_json),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_commands_is_sound() {
        Arguments::command().debug_assert();
    }

    /// At every level: what a user can call shows how.
    #[test]
    fn each_command_has_examples() {
        fn check(command: &clap::Command) {
            let has_examples = command.get_after_help().is_some_and(|help| help.to_string().contains("larder"));
            assert!(has_examples || command.has_subcommands(), "{} shows no example", command.get_name());
            command.get_subcommands().filter(|command| command.get_name() != "help").for_each(check);
        }
        check(&Arguments::command());
    }
}
