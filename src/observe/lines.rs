//! The way of a log line out of the process. A request never waits for it: lines go to a thread by a bounded queue, and
//! a line that cannot be written, or for which the queue has no room, is dropped and counted.
//!
//! What is written to may be a disk that is full, a pipe that nobody reads, a terminal that was closed. The crate
//! `tracing-appender` has such a queue, but counts no failed write and itself prints to standard output at the end.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

use crate::clock::Instant;

/// Most lines that wait to be written.
const MAX_LINES: usize = 16_384;
/// Most bytes of the lines that wait.
const MAX_BYTES: usize = 4 << 20;
/// How long the end of the process waits for lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often a file that could not be opened is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// Permissions of a new log file: names of images and users are not for everybody.
const MODE: u32 = 0o640;

/// The writing end of the log. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct Lines {
    sender: SyncSender<Message>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
    health: LogHealth,
}

/// Whether lines of the log are written. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct LogHealth {
    /// Lines that were dropped.
    pub lost: Counter,
    is_failing: Arc<AtomicBool>,
}

impl LogHealth {
    /// Returns whether the last line was dropped.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    fn dropped(&self) {
        self.lost.inc();
        self.is_failing.store(true, Ordering::Relaxed);
    }
}

enum Message {
    Line(Box<[u8]>),
    /// The file was renamed; its name is to be opened again.
    Reopen,
    /// Tells when all lines before it are written.
    Flush(SyncSender<()>),
}

impl Lines {
    /// Starts the thread that writes lines to `output`.
    pub fn start(output: Output) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(MAX_LINES);
        let state = Arc::<State>::default();
        let shared = state.clone();
        std::thread::Builder::new().name("larder-log".to_owned()).spawn(move || write(output, &receiver, &shared))?;
        Ok(Self { sender, state })
    }

    /// Returns whether lines are written.
    pub fn health(&self) -> &LogHealth {
        &self.state.health
    }

    /// Opens the log file by its name again, behind the lines that are queued.
    pub fn reopen(&self) {
        // A full queue is one that is not being written; its file is opened again when it is tried the next time.
        let _ = self.sender.try_send(Message::Reopen);
    }

    /// Waits until all lines so far are written, a second at most. Blocks.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        let since = Instant::now();
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.sender.try_send(message) {
            if since.elapsed() > LAST_LINES {
                return;
            }
            message = unsent;
            std::thread::sleep(Duration::from_millis(5));
        }
        // An error says that it was not written in time, or never will be.
        let _ = is_done.recv_timeout(LAST_LINES);
    }

    fn offer(&self, line: &[u8]) {
        let waiting = self.state.waiting.fetch_add(line.len(), Ordering::Relaxed);
        let has_room = waiting + line.len() <= MAX_BYTES;
        if !has_room || self.sender.try_send(Message::Line(line.into())).is_err() {
            self.state.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            self.state.health.dropped();
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Takes one whole line at each call, as the subscriber writes them. Never fails.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.offer(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines for as long as there are any to come.
fn write(mut output: Output, lines: &Receiver<Message>, state: &State) {
    let mut told = 0;
    while let Ok(message) = lines.recv() {
        match message {
            Message::Line(line) => {
                let waiting = state.waiting.fetch_sub(line.len(), Ordering::Relaxed) - line.len();
                if output.write(&line).is_err() {
                    state.health.dropped();
                } else if waiting == 0 {
                    state.health.is_failing.store(false, Ordering::Relaxed);
                    let lost = state.health.lost.get();
                    if lost > told {
                        tracing::warn!(
                            lines = lost - told,
                            "so many log lines were dropped: they could not be written"
                        );
                    }
                    told = lost;
                }
            }
            Message::Reopen => output.reopen(),
            Message::Flush(done) => drop(done),
        }
    }
}

/// What the log is written to.
#[derive(Debug)]
pub struct Output {
    /// The file to write to; none: standard error.
    path: Option<PathBuf>,
    /// The open file, or standard error.
    file: File,
    /// Whether it is standard error because the file cannot be opened.
    is_instead: bool,
    /// When the file was last tried to be opened.
    tried: Instant,
    /// Whether a part of a line was written last.
    is_torn: bool,
}

impl Output {
    /// Standard error.
    pub fn standard_error() -> io::Result<Self> {
        Ok(Self { path: None, file: standard_error()?, is_instead: false, tried: Instant::now(), is_torn: false })
    }

    /// A file, which is made if it is not there. One that cannot be opened for a reason that may go away (a full disk)
    /// is opened later, and standard error is written to until then; other reasons are an error.
    pub fn file(path: &Path) -> io::Result<Self> {
        let (file, is_instead) = match open(path) {
            Ok(file) => (file, false),
            Err(error) if is_wrong_path(&error) => return Err(error),
            Err(_) => (standard_error()?, true),
        };
        Ok(Self { path: Some(path.to_owned()), file, is_instead, tried: Instant::now(), is_torn: false })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_instead && self.tried.elapsed() > TRY_AGAIN {
            self.reopen();
        }
        let mut rest = line;
        let written = write_line(&mut self.file, self.is_torn, &mut rest);
        // Nothing of this line was written, so the end of what is there is as before.
        if rest.len() < line.len() || written.is_ok() {
            self.is_torn = written.is_err();
        }
        written
    }

    /// Opens the file by its name again. If that fails, the one that is open is written to further.
    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        self.tried = Instant::now();
        match open(path) {
            Ok(file) => (self.file, self.is_instead, self.is_torn) = (file, false, false),
            Err(error) => tracing::warn!(path = %path.display(), %error, "logging.file cannot be opened again"),
        }
    }
}

/// Writes a line, behind an end of line if the line before has none. `rest`: what is still to be written of it.
fn write_line(to: &mut impl Write, is_torn: bool, rest: &mut &[u8]) -> io::Result<()> {
    if is_torn {
        to.write_all(b"\n")?;
    }
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => *rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns standard error as a file: writing to it takes no lock that a message of a panic would wait for.
fn standard_error() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(MODE).open(path)
}

/// Returns whether no file can be opened there as long as nobody changes the configuration or the permissions.
fn is_wrong_path(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), InvalidInput | IsADirectory | NotADirectory | NotFound | PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns both ends of a pipe as files.
    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (File::from(std::os::fd::OwnedFd::from(reader)), File::from(std::os::fd::OwnedFd::from(writer)))
    }

    fn to(file: File) -> Output {
        Output { path: None, file, is_instead: false, tried: Instant::now(), is_torn: false }
    }

    #[test]
    fn nobody_waits_for_a_pipe_that_is_not_read_and_what_is_dropped_is_counted() {
        let (_reader, writer) = pipe();
        let lines = Lines::start(to(writer)).unwrap();
        let line = [b'x'; 1000];
        // 20 MB: the pipe holds 64 KiB, and the queue 4 MiB.
        for _ in 0..20_000 {
            (&lines).write_all(&line).unwrap();
        }
        assert!(lines.health().lost.get() > 15_000, "{}", lines.health().lost.get());
        assert!(lines.state.waiting.load(Ordering::Relaxed) <= MAX_BYTES);
        let since = Instant::now();
        lines.flush();
        assert!(since.elapsed() < Duration::from_secs(60), "the end of the process does not wait for ever");
    }

    #[test]
    fn a_broken_pipe_loses_the_lines_and_nothing_else() {
        let (reader, writer) = pipe();
        drop(reader);
        let lines = Lines::start(to(writer)).unwrap();
        (&lines).write_all(b"one\n").unwrap();
        (&lines).write_all(b"two\n").unwrap();
        lines.flush();
        assert_eq!(lines.health().lost.get(), 2);
    }

    #[test]
    fn a_renamed_file_is_left_and_its_name_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("larder.log"), dir.path().join("larder.log.1"));
        let lines = Lines::start(Output::file(&path).unwrap()).unwrap();
        (&lines).write_all(b"before\n").unwrap();
        lines.flush();
        std::fs::rename(&path, &old).unwrap();
        (&lines).write_all(b"between\n").unwrap();
        lines.reopen();
        (&lines).write_all(b"after\n").unwrap();
        lines.flush();
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "before\nbetween\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
    }

    /// Takes so many bytes, then none.
    struct Full(Vec<u8>, usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = (self.1 - self.0.len()).min(bytes.len());
            self.0.extend_from_slice(&bytes[..room]);
            if room == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(room) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_behind_one_that_was_cut_begins_a_line_of_its_own() {
        let mut disk = Full(Vec::new(), 6);
        let mut rest = &b"the first\n"[..];
        assert!(write_line(&mut disk, false, &mut rest).is_err());
        assert_eq!(rest, b"rst\n");
        disk.1 = 100;
        write_line(&mut disk, true, &mut &b"the second\n"[..]).unwrap();
        assert_eq!(disk.0, b"the fi\nthe second\n");
    }

    #[test]
    fn a_path_that_leads_nowhere_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::file(&dir.path().join("missing/larder.log")).is_err());
        assert!(Output::file(dir.path()).is_err());
    }
}
