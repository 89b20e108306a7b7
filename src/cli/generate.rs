//! `larder completions` and `larder man`: files for shells and for `man`, made from the definition of the commands.

use std::fs;
use std::path::PathBuf;

use clap::CommandFactory;

use super::Arguments;
use super::error::CommandError;
use super::output::print;

#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub struct Man {
    /// Folder for the pages; made if it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs `larder completions`.
pub fn completions(arguments: &Completions) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "larder", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Runs `larder man`.
pub fn man(arguments: &Man) -> Result<(), CommandError> {
    let folder = &arguments.folder;
    let written = fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Arguments::command(), folder));
    written.map_err(|error| CommandError::Failed(format!("cannot write the pages into {}: {error}", folder.display())))
}
