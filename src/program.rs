//! Running other people's programs: with a deadline, with bounded output, and never left behind.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Most that is read of what a program says.
const MAX_OUTPUT: u64 = 1 << 20;

/// Which of its outputs is read; the other one goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    Output,
    Errors,
}

/// How a program ended by itself.
#[derive(Debug)]
pub struct Ran {
    pub is_success: bool,
    pub said: Vec<u8>,
}

/// Why a program did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it did not answer within {} s", .0.as_secs())]
    Late(Duration),
}

impl Ran {
    /// What it said, for people: one line.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.said);
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
    }
}

/// Runs a program with `input` as its standard input. It and what it starts end with this.
pub async fn run(mut command: Command, input: &[u8], reads: Reads, patience: Duration) -> Result<Ran, ProgramError> {
    let pipe = |is_read| if is_read { Stdio::piped() } else { Stdio::null() };
    command.stdin(Stdio::piped()).stdout(pipe(reads == Reads::Output)).stderr(pipe(reads == Reads::Errors));
    // Its own group, so that what it starts ends with it.
    command.process_group(0);
    let ran = async {
        let mut child = command.spawn()?;
        let _group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read its input may still answer.
            let _ = stdin.write_all(input).await;
        }
        let said = match reads {
            Reads::Output => read(child.stdout.take()).await?,
            Reads::Errors => read(child.stderr.take()).await?,
        };
        Ok(Ran { is_success: child.wait().await?.success(), said })
    };
    tokio::time::timeout(patience, ran).await.unwrap_or(Err(ProgramError::Late(patience)))
}

async fn read(output: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut said = Vec::new();
    if let Some(output) = output {
        output.take(MAX_OUTPUT).read_to_end(&mut said).await?;
    }
    Ok(said)
}

/// The processes of a program; they end when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Mostly they are gone by then.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}
