//! Where an export goes: a file, several files, a folder, or standard output. Files and folders are written beside their
//! place first, so that an archive that is there is whole. What goes to a pipe is whole if its end has come: whoever reads
//! the archive finds out.
//!
//! A file is split as `split(1)` splits it, and not into archives of their own: places without a network have media of
//! a fixed size (a FAT32 stick takes files below 4 GiB), and a layer may be larger than any of these, so that only a
//! split by bytes keeps within the size. `cat FILE.tar.*` makes it whole for other programs.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::super::error::CommandError;
use super::super::instance::Pieces;
use super::super::output::cannot_write;
use super::{PIPE, Shown};
use crate::config::Amount;
use crate::oci::Digest;
use crate::ops::export::Exported;
use crate::ops::layout::archive::{self, Arriving, Member, Take};
use crate::ops::layout::{Documents, LayoutError};

/// Smallest size of a part: more than 1,000 parts of less would not be found in order.
const MIN_CHUNK: u64 = 1 << 20;
/// Pieces that wait for a slow disk.
const PIECES: usize = 4;

/// Reads the size of a part.
pub fn chunk_size(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(Amount::Bytes(size)) if size >= MIN_CHUNK => Ok(size),
        _ => Err("write a size of at least 1MiB, for example 4GiB or 4700MB".to_owned()),
    }
}

/// Where an export goes.
pub enum Sink {
    File { path: PathBuf, chunk: Option<u64> },
    Folder(PathBuf),
    Output,
}

impl Sink {
    /// Finds out what `path` means. Nothing that is there is overwritten.
    pub fn new(path: &Path, chunk: Option<u64>) -> Result<Self, CommandError> {
        if path == Path::new(PIPE) {
            return match chunk {
                Some(_) => Err(CommandError::Usage("--chunk-size splits a file, not standard output".to_owned())),
                None if io::stdout().is_terminal() => Err(CommandError::Usage(
                    "an archive is nothing to read; send it to a program (`| ssh host larder import -`) or a file"
                        .to_owned(),
                )),
                None => Ok(Self::Output),
            };
        }
        let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tar"));
        let there = |path: &Path| {
            CommandError::Usage(format!("{} is there already; name another place, or remove it", path.display()))
        };
        if is_file {
            let first = part(path, 0);
            return match [path, &first].into_iter().find(|path| fs::symlink_metadata(path).is_ok()) {
                Some(path) => Err(there(path)),
                None => Ok(Self::File { path: path.to_owned(), chunk }),
            };
        }
        if chunk.is_some() {
            let message = format!("--chunk-size splits a file; `{}` does not end in .tar", path.display());
            return Err(CommandError::Usage(message));
        }
        match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(Self::Folder(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Folder(path.to_owned())),
            Ok(false) => Err(there(path)),
            Err(error) => Err(cannot_write(path, &error)),
        }
    }

    /// Writes the archive, and compares each digest on the way. Returns what is in it and which files were written.
    pub async fn write(self, mut pieces: Pieces, shown: Shown) -> Result<(Exported, Vec<PathBuf>), CommandError> {
        let (sending, received) = mpsc::channel(PIECES);
        let writing = tokio::task::spawn_blocking(move || self.write_blocking(Arriving::new(received), shown));
        while let Some(piece) = pieces.next().await {
            let is_last = piece.is_err();
            // Whoever writes says why it takes no more.
            if sending.send(piece).await.is_err() || is_last {
                break;
            }
        }
        drop(sending);
        writing.await.map_err(|error| CommandError::Failed(error.to_string()))?
    }

    fn write_blocking(self, pieces: Arriving, shown: Shown) -> Result<(Exported, Vec<PathBuf>), CommandError> {
        match self {
            Self::File { path, chunk } => {
                let mut parts = Parts::new(path.clone(), chunk);
                let copied = copy(pieces, &mut parts, shown);
                let exported = copied.and_then(|exported| {
                    parts.sync()?;
                    Ok(exported)
                });
                let exported = exported.map_err(|error| {
                    parts.remove();
                    wrong(&path, error)
                })?;
                Ok((exported, parts.finish().map_err(|error| cannot_write(&path, &error))?))
            }
            Self::Output => {
                let exported = copy(pieces, &mut io::stdout().lock(), shown).map_err(|error| match error {
                    LayoutError::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        CommandError::Failed("the program that takes the archive has ended before its end".to_owned())
                    }
                    error => wrong(Path::new("standard output"), error),
                })?;
                Ok((exported, Vec::new()))
            }
            Self::Folder(path) => {
                let beside = beside(&path);
                let written = write_folder(pieces, &beside, shown).and_then(|exported| {
                    fs::rename(&beside, &path)?;
                    Ok(exported)
                });
                let exported = written.map_err(|error| {
                    let _ = fs::remove_dir_all(&beside);
                    wrong(&path, error)
                })?;
                Ok((exported, vec![path]))
            }
        }
    }
}

fn wrong(path: &Path, error: LayoutError) -> CommandError {
    match error {
        LayoutError::Io(error) if error.get_ref().is_none() => cannot_write(path, &error),
        LayoutError::CutOff => CommandError::Failed("the export broke off; see the log of the instance".to_owned()),
        error => CommandError::Failed(error.to_string()),
    }
}

/// Returns the path at which something is written before it has its own name.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// Returns the path of a part of a file.
pub fn part(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number:03}"));
    PathBuf::from(name)
}

/// Watches an archive go by: collects its documents, compares its digests, shows progress.
struct Watched {
    documents: Documents,
    document: Vec<u8>,
    done: u64,
    all: u64,
    shown: Shown,
}

impl Watched {
    fn new(shown: Shown) -> Self {
        Self { documents: Documents::default(), document: Vec::new(), done: 0, all: 0, shown }
    }

    fn exported(&self) -> Result<Exported, LayoutError> {
        let read = self.documents.report.as_deref().map(serde_json::from_slice);
        read.and_then(Result::ok).ok_or_else(|| LayoutError::NoLayout("the export does not say what it has".to_owned()))
    }
}

impl Take for Watched {
    fn begin(&mut self, _: Member, _: u64) -> Result<(), LayoutError> {
        self.document.clear();
        Ok(())
    }

    fn bytes(&mut self, bytes: Bytes) -> Result<(), LayoutError> {
        self.done += bytes.len() as u64;
        self.shown.show(self.done, self.all);
        Ok(())
    }

    fn end(&mut self, member: Member, found: Option<Digest>) -> Result<(), LayoutError> {
        match (member, found) {
            (Member::Blob(digest), Some(found)) if digest != found => {
                return Err(LayoutError::Damaged(archive::path_of(&digest), found));
            }
            (Member::Blob(_), _) => {}
            (member, _) => self.documents.take(member, std::mem::take(&mut self.document)),
        }
        if member == Member::Report {
            self.all = self.exported()?.bytes;
        }
        Ok(())
    }
}

/// Takes the documents of an archive; the blobs go by.
struct ToFile(Watched, bool);

impl Take for ToFile {
    fn begin(&mut self, member: Member, size: u64) -> Result<(), LayoutError> {
        self.1 = matches!(member, Member::Blob(_));
        self.0.begin(member, size)
    }

    fn bytes(&mut self, bytes: Bytes) -> Result<(), LayoutError> {
        if !self.1 {
            self.0.document.extend_from_slice(&bytes);
        }
        self.0.bytes(bytes)
    }

    fn end(&mut self, member: Member, found: Option<Digest>) -> Result<(), LayoutError> {
        self.0.end(member, found)
    }
}

/// Copies an archive, and compares its digests on the way.
fn copy(pieces: Arriving, to: &mut dyn Write, shown: Shown) -> Result<Exported, LayoutError> {
    let mut copied = Copied { from: pieces, to, unwritten: None };
    let mut take = ToFile(Watched::new(shown), false);
    let read = archive::read(&mut copied, &mut take).and_then(|()| archive::read_rest(&mut copied));
    if let Some(error) = copied.unwritten {
        return Err(error.into());
    }
    read?;
    copied.to.flush()?;
    take.0.documents.index()?;
    take.0.exported()
}

/// Reads, and writes what was read to another place.
struct Copied<'a> {
    from: Arriving,
    to: &'a mut dyn Write,
    /// Why something could not be written. The reader of archives would take that for a fault of the archive.
    unwritten: Option<io::Error>,
}

impl Read for Copied<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        if let Err(error) = self.to.write_all(&buffer[..read]) {
            let kind = error.kind();
            self.unwritten = Some(error);
            return Err(kind.into());
        }
        Ok(read)
    }
}

/// A file, perhaps in parts.
struct Parts {
    path: PathBuf,
    chunk: Option<u64>,
    file: Option<BufWriter<File>>,
    /// Bytes in the last part.
    filled: u64,
    written: Vec<PathBuf>,
}

impl Parts {
    fn new(path: PathBuf, chunk: Option<u64>) -> Self {
        Self { path, chunk, file: None, filled: 0, written: Vec::new() }
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = self.chunk.map_or(u64::MAX, |chunk| chunk - self.filled);
            if left == 0 || self.file.is_none() {
                self.sync()?;
                let path = match self.chunk {
                    Some(_) => part(&self.path, self.written.len()),
                    None => self.path.clone(),
                };
                self.file = Some(BufWriter::new(File::create(beside(&path))?));
                self.written.push(path);
                self.filled = 0;
                continue;
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            if let Some(file) = &mut self.file {
                file.write_all(&bytes[..length])?;
            }
            self.filled += length as u64;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Ends the last part; it is on disk then.
    fn sync(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some(file) => file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Gives the parts their names.
    fn finish(self) -> io::Result<Vec<PathBuf>> {
        self.written.iter().try_for_each(|path| fs::rename(beside(path), path))?;
        Ok(self.written)
    }

    fn remove(&mut self) {
        self.file = None;
        for path in &self.written {
            let _ = fs::remove_file(beside(path));
        }
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes blobs into a folder.
struct ToFolder<'a> {
    watched: Watched,
    path: &'a Path,
    file: Option<File>,
}

impl Take for ToFolder<'_> {
    fn begin(&mut self, member: Member, size: u64) -> Result<(), LayoutError> {
        self.watched.begin(member, size)?;
        self.file = match member {
            Member::Blob(digest) => {
                let path = self.path.join(archive::path_of(&digest));
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                Some(File::create_new(path)?)
            }
            _ => None,
        };
        Ok(())
    }

    fn bytes(&mut self, bytes: Bytes) -> Result<(), LayoutError> {
        match &mut self.file {
            Some(file) => file.write_all(&bytes)?,
            None => self.watched.document.extend_from_slice(&bytes),
        }
        self.watched.bytes(bytes)
    }

    fn end(&mut self, member: Member, found: Option<Digest>) -> Result<(), LayoutError> {
        let name = match member {
            Member::Marker => Some(crate::ops::layout::MARKER),
            Member::Index => Some(crate::ops::layout::INDEX),
            Member::Report => Some(crate::ops::layout::REPORT),
            Member::OfDocker | Member::Blob(_) => None,
        };
        if let Some(name) = name {
            fs::write(self.path.join(name), &self.watched.document)?;
        }
        self.watched.end(member, found)
    }
}

fn write_folder(mut pieces: Arriving, path: &Path, shown: Shown) -> Result<Exported, LayoutError> {
    // What an export left here that was killed.
    if fs::symlink_metadata(path).is_ok() {
        fs::remove_dir_all(path)?;
    }
    // The folder of blobs is there even if there are none (image-layout.md).
    fs::create_dir_all(path.join("blobs"))?;
    let mut take = ToFolder { watched: Watched::new(shown), path, file: None };
    archive::read(&mut pieces, &mut take)?;
    take.watched.documents.index()?;
    // All files of the folder are on disk when this returns: they are carried away.
    rustix::fs::syncfs(File::open(path)?).map_err(io::Error::from)?;
    take.watched.exported()
}
