//! Where an import comes from: a folder, a file, the parts of one, or standard input.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::super::error::CommandError;
use super::super::instance::Pieces;
use super::sink::part;
use super::{PIPE, Shown};
use crate::ops::layout::{INDEX, MARKER, REPORT, archive};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// Pieces that wait for a slow reader.
const PIECES: usize = 4;

/// What is imported.
pub struct Source {
    files: Files,
    /// `None`: not known before the end.
    bytes: Option<u64>,
}

enum Files {
    /// The parts of a tar file, in order.
    Tar(Vec<PathBuf>),
    /// The files of a layout, each with its path in the layout and its size.
    Folder(Vec<(PathBuf, String, u64)>),
    /// A tar file that comes from another program.
    Input,
}

impl Source {
    /// Finds what the arguments name.
    pub fn find(paths: &[PathBuf]) -> Result<Self, CommandError> {
        let (first, others) = match paths {
            [] => return Err(CommandError::Usage("name a folder or a file".to_owned())),
            [first, others @ ..] => (first, others),
        };
        if first == Path::new(PIPE) {
            return match others {
                [] if io::stdin().is_terminal() => Err(CommandError::Usage(
                    "nothing is sent to it; pipe an archive into it (`larder export … -o - | larder import -`)"
                        .to_owned(),
                )),
                [] => Ok(Self { files: Files::Input, bytes: None }),
                _ => Err(CommandError::Usage("`-` is standard input, and goes with no other file".to_owned())),
            };
        }
        if others.is_empty() && first.is_dir() {
            let files = folder(first).map_err(|error| unreadable(first, &error))?;
            let bytes = files.iter().map(|(_, path, size)| in_archive(path, *size)).sum::<u64>();
            return Ok(Self { files: Files::Folder(files), bytes: Some(bytes + archive::end().len() as u64) });
        }
        let parts = if others.is_empty() { parts_beside(first)? } else { sorted(paths)? };
        let bytes = sizes(&parts)?.iter().sum();
        Ok(Self { files: Files::Tar(parts), bytes: Some(bytes) })
    }

    /// Returns how many bytes [`Self::pieces`] has, if that is known.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Returns what to look at if the archive is found to be cut off.
    pub fn hint(&self) -> Option<String> {
        match &self.files {
            Files::Tar(parts) if parts.len() > 1 => {
                let last = parts.last().map(|last| last.display().to_string()).unwrap_or_default();
                Some(format!("; its last part here is {last}"))
            }
            _ => None,
        }
    }

    /// Returns the bytes as a tar archive.
    pub fn pieces(self, mut shown: Shown) -> Pieces {
        let (all, mut done) = (self.bytes.unwrap_or_default(), 0);
        stream::unfold(self.begin(), async |mut pieces| Some((pieces.recv().await?, pieces)))
            .inspect(move |piece| {
                done += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                shown.show(done, all);
            })
            .boxed()
    }

    /// Reads on a thread, as fast as the pieces are taken.
    pub fn begin(self) -> mpsc::Receiver<io::Result<Bytes>> {
        let (to, pieces) = mpsc::channel(PIECES);
        let is_input = matches!(self.files, Files::Input);
        let reading = move || {
            if let Err(error) = self.read(&to) {
                // Whoever has left needs no reason.
                let _ = to.blocking_send(Err(error));
            }
        };
        // The end of the command would wait for a task, and a program that sends nothing does not end.
        match is_input {
            true => drop(std::thread::spawn(reading)),
            false => drop(tokio::task::spawn_blocking(reading)),
        }
        pieces
    }

    fn read(&self, to: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
        let put = |bytes: Bytes| {
            let left = |_| io::Error::new(io::ErrorKind::ConnectionAborted, "nobody reads any more");
            to.blocking_send(Ok(bytes)).map_err(left)
        };
        match &self.files {
            Files::Input => copy(Path::new("standard input"), &mut io::stdin().lock(), &put).map(drop),
            Files::Tar(parts) => parts.iter().try_for_each(|path| copy_file(path, u64::MAX, &put).map(drop)),
            Files::Folder(files) => {
                for (path, within, size) in files {
                    put(archive::header(within, *size)?)?;
                    let copied = copy_file(path, *size, &put)?;
                    if copied != *size {
                        return Err(io::Error::other(format!("{} has changed", path.display())));
                    }
                    put(archive::filling(*size))?;
                }
                put(archive::end())
            }
        }
    }
}

fn copy_file(path: &Path, most: u64, put: &dyn Fn(Bytes) -> io::Result<()>) -> io::Result<u64> {
    let mut file = File::open(path).map_err(|error| named(path, &error))?.take(most);
    copy(path, &mut file, put)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Copies to the end. `path`: what is read, for errors.
fn copy(path: &Path, from: &mut dyn Read, put: &dyn Fn(Bytes) -> io::Result<()>) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        let mut piece = vec![0; PIECE];
        let read = from.read(&mut piece).map_err(|error| named(path, &error))?;
        if read == 0 {
            return Ok(copied);
        }
        piece.truncate(read);
        copied += read as u64;
        put(piece.into())?;
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CommandError {
    CommandError::Failed(format!("cannot read {}: {error}", path.display()))
}

/// Returns the bytes that a file takes in an archive.
fn in_archive(path: &str, size: u64) -> u64 {
    let header = archive::header(path, size).map_or(0, |header| header.len() as u64);
    header + size + archive::filling(size).len() as u64
}

/// Lists the files of a layout. Links are not followed: a folder from elsewhere must not lead out of itself.
fn folder(path: &Path) -> io::Result<Vec<(PathBuf, String, u64)>> {
    let mut files = Vec::new();
    let mut add = |path: PathBuf, within: String| {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => files.push((path, within, metadata.len())),
            Ok(_) => return Err(io::Error::other(format!("{within} is no plain file"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    };
    for name in [REPORT, MARKER] {
        add(path.join(name), name.to_owned())?;
    }
    let blobs = path.join("blobs");
    for algorithm in names(&blobs)? {
        for name in names(&blobs.join(&algorithm))? {
            add(blobs.join(&algorithm).join(&name), format!("blobs/{algorithm}/{name}"))?;
        }
    }
    add(path.join(INDEX), INDEX.to_owned())?;
    Ok(files)
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(Vec::new());
    }
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Returns the number of a part and the file that it is a part of.
fn number(path: &Path) -> Option<(usize, PathBuf)> {
    let digits = path.extension()?.to_str().filter(|digits| digits.len() >= 3)?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((digits.parse().ok().filter(|_| is_number)?, path.with_extension("")))
}

/// Returns a file, or all of its parts.
fn parts_beside(path: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let whole = number(path).map_or_else(|| path.to_owned(), |(_, whole)| whole);
    let is_part = whole != path;
    if !is_part && path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    let folder = whole.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
    let beside = beside.filter_map(|entry| {
        let path = whole.with_file_name(entry.ok()?.file_name());
        number(&path).is_some_and(|(_, of)| of == whole).then_some(path)
    });
    let beside: Vec<_> = beside.collect();
    if beside.is_empty() {
        return Err(CommandError::Failed(format!(
            "there is neither {} nor {}",
            path.display(),
            part(&whole, 0).display()
        )));
    }
    sorted(&beside)
}

/// Returns the parts of one file in order, if none is missing between them.
fn sorted(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CommandError> {
    let mut numbered = Vec::new();
    for path in paths {
        let (number, whole) = number(path).ok_or_else(|| {
            CommandError::Usage(format!(
                "several files are the parts of one, such as x.tar.000; {} is none",
                path.display()
            ))
        })?;
        numbered.push((number, whole.file_name().map(ToOwned::to_owned), path.clone()));
    }
    numbered.sort();
    numbered.dedup();
    for (at, (number, name, path)) in numbered.iter().enumerate() {
        let is_of_same = numbered.first().is_some_and(|(_, first, _)| first == name);
        if !is_of_same {
            return Err(CommandError::Usage(format!("{} is a part of another file than the others", path.display())));
        }
        if *number != at {
            let missing = part(&path.with_extension(""), at);
            return Err(CommandError::Failed(format!("the part {} is missing", missing.display())));
        }
    }
    Ok(numbered.into_iter().map(|(_, _, path)| path).collect())
}

/// Returns the sizes of files. All parts but the last have the same size.
fn sizes(paths: &[PathBuf]) -> Result<Vec<u64>, CommandError> {
    let size = |path: &PathBuf| fs::metadata(path).map(|data| data.len()).map_err(|error| unreadable(path, &error));
    let sizes = paths.iter().map(size).collect::<Result<Vec<_>, _>>()?;
    let whole = sizes.first().copied().unwrap_or_default();
    for (at, (path, size)) in paths.iter().zip(&sizes).enumerate() {
        let is_last = at + 1 == paths.len();
        if *size > whole || (!is_last && *size != whole) {
            let message = format!("{} has {size} bytes and the first part {whole}: it was cut off", path.display());
            return Err(CommandError::Failed(message));
        }
    }
    Ok(sizes)
}
