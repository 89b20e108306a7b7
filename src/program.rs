//! Runs programs of others: with a deadline, with bounded output, and without leaving any process behind.

use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::text::last_words;

/// Most bytes of a program's output that are read.
const MAX_OUTPUT: u64 = 1 << 20;

/// How long Larder waits for the rest of the output after a program has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Which output of a program is read; the other one is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    Output,
    Errors,
}

/// The result of a program that ended by itself.
#[derive(Debug)]
pub struct Ran {
    pub is_success: bool,
    pub said: Vec<u8>,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it did not answer within {} s", .0.as_secs())]
    Late(Duration),
}

impl Ran {
    /// Returns the end of the output as one line for people.
    pub fn text(&self) -> String {
        last_words(&String::from_utf8_lossy(&self.said))
    }
}

/// Runs a program with `input` as its standard input. The program, and all that it starts, ends with this future.
pub async fn run(mut command: Command, input: &[u8], reads: Reads, patience: Duration) -> Result<Ran, ProgramError> {
    let pipe = |is_read| if is_read { Stdio::piped() } else { Stdio::null() };
    command.stdin(Stdio::piped()).stdout(pipe(reads == Reads::Output)).stderr(pipe(reads == Reads::Errors));
    // Its own process group, so that the processes that it starts end with it.
    command.process_group(0);
    let ran = async {
        let mut child = command.spawn()?;
        let _group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input may still answer.
            let _ = stdin.write_all(input).await;
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut said = Vec::new();
        let is_success = {
            let mut reading = pin!(async {
                match reads {
                    Reads::Output => read(stdout, &mut said).await,
                    Reads::Errors => read(stderr, &mut said).await,
                }
            });
            tokio::select! {
                read = &mut reading => {
                    read?;
                    child.wait().await?.success()
                }
                // Processes that it leaves in the background may hold its outputs open.
                ended = child.wait() => {
                    let rest = tokio::time::timeout(LAST_WORDS, reading).await;
                    rest.unwrap_or(Ok(()))?;
                    ended?.success()
                }
            }
        };
        Ok(Ran { is_success, said })
    };
    tokio::time::timeout(patience, ran).await.unwrap_or(Err(ProgramError::Late(patience)))
}

async fn read(output: Option<impl AsyncRead + Unpin>, said: &mut Vec<u8>) -> std::io::Result<()> {
    if let Some(output) = output {
        output.take(MAX_OUTPUT).read_to_end(said).await?;
    }
    Ok(())
}

/// The processes of a program; dropping this kills them.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Mostly they have ended by then.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::clock::Instant;

    async fn sh(script: &str, reads: Reads, patience: Duration) -> Result<Ran, ProgramError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, b"input", reads, patience).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_a_program_says_and_how_it_ends_is_told() {
        let ran = sh("cat; echo aside >&2", Reads::Output, LONG).await.expect("it ran");
        assert!(ran.is_success && ran.text() == "input");
        let ran = sh("echo out; echo why >&2; exit 3", Reads::Errors, LONG).await.expect("it ran");
        assert!(!ran.is_success && ran.text() == "why");
    }

    #[tokio::test]
    async fn what_is_left_in_the_background_is_not_waited_for_and_ends() {
        let begun = Instant::now();
        let ran = sh("sleep 600 & echo $!", Reads::Output, LONG).await.expect("it ran");
        assert!(ran.is_success && begun.elapsed() < LONG / 2);
        let child = std::path::PathBuf::from(format!("/proc/{}/stat", ran.text()));
        // The process was killed, but its parent may not have collected it yet.
        let is_over = || std::fs::read_to_string(&child).map_or(true, |stat| stat.contains(") Z "));
        while !is_over() {
            assert!(begun.elapsed() < LONG, "it runs on");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_that_hangs_is_given_up() {
        let late = sh("sleep 600", Reads::Output, Duration::from_millis(50)).await;
        assert!(matches!(late, Err(ProgramError::Late(_))));
    }
}
