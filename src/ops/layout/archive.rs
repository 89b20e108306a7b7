//! Tar archives: the only form in which a layout is sent. What is read may come from anybody: nothing is written to
//! disk under a name from the archive, and memory is bounded whatever the headers say.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, Read};
use std::rc::Rc;

use bytes::Bytes;
use tar::EntryType;
use tokio::sync::mpsc;

use super::{INDEX, LayoutError, MARKER, MAX_DOCUMENT, REPORT};
use crate::oci::{Algorithm, Digest, Hasher};
use crate::text::one_line;

/// Most bytes of one header, with its extensions.
const MAX_HEADER: u64 = 1 << 20;
/// Most files of an archive.
const MAX_MEMBERS: usize = 2_000_000;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// Bytes of a block of a tar archive.
const BLOCK: u64 = 512;
/// Most bytes behind the end of an archive that are read: writers fill up to a multiple of some length.
const MAX_FILLING: u64 = 16 << 20;

/// A file of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Member {
    /// `oci-layout`
    Marker,
    /// `index.json`
    Index,
    /// `larder.json`
    Report,
    /// `manifest.json`, which only archives of `docker save` have.
    OfDocker,
    Blob(Digest),
}

/// Takes the files of an archive, one after the other.
pub trait Take {
    /// A file begins.
    fn begin(&mut self, member: Member, size: u64) -> Result<(), LayoutError>;
    /// Bytes of the file.
    fn bytes(&mut self, bytes: Bytes) -> Result<(), LayoutError>;
    /// The file has ended. `found`: the digest of its bytes, for a blob.
    fn end(&mut self, member: Member, found: Option<Digest>) -> Result<(), LayoutError>;
}

/// Returns the path of a blob in a layout.
pub fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Returns the blocks before the bytes of a file.
pub fn header(path: &str, size: u64) -> io::Result<Bytes> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(EntryType::Regular);
    let mut builder = tar::Builder::new(Vec::new());
    // Without the bytes: the blocks of a long path, and the header.
    builder.append_data(&mut header, path, io::empty())?;
    Ok(Bytes::copy_from_slice(builder.get_ref()))
}

/// Returns the bytes that fill up the last block of a file.
pub fn filling(size: u64) -> Bytes {
    const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
    // Smaller than a block.
    Bytes::from_static(&ZEROS[..((BLOCK - size % BLOCK) % BLOCK) as usize])
}

/// Returns the end of an archive.
pub fn end() -> Bytes {
    Bytes::from_static(&[0; 2 * BLOCK as usize])
}

/// Reads an archive, and hashes each blob on the way. Blocks.
pub fn read(archive: impl Read, take: &mut dyn Take) -> Result<(), LayoutError> {
    let meter = Meter::default();
    let mut archive = tar::Archive::new(Metered { inner: archive, meter: meter.clone() });
    let mut entries = archive.entries().map_err(LayoutError::NoTar)?;
    let mut seen = HashSet::new();
    for count in 0.. {
        if count == MAX_MEMBERS {
            return Err(LayoutError::NoLayout(format!("the archive has more than {MAX_MEMBERS} files")));
        }
        meter.limit(MAX_HEADER);
        let entry = entries.next();
        let used = meter.used();
        meter.no_limit();
        let Some(entry) = entry else {
            // The mark of the end is a block of zeros; a file that was cut off between two files has none.
            return if used >= BLOCK { Ok(()) } else { Err(LayoutError::CutOff) };
        };
        // The library says in several ways that there is too little.
        let is_cut_off = meter.is_at_end() && (count > 0 || used >= BLOCK);
        let entry = entry.map_err(|error| if is_cut_off { LayoutError::CutOff } else { broken(error) })?;
        read_entry(entry, &mut seen, take)?;
    }
    Ok(())
}

/// Reads what follows the end of an archive, so that its sender is not cut off. Blocks.
pub fn read_rest(archive: &mut impl Read) -> Result<(), LayoutError> {
    io::copy(&mut archive.take(MAX_FILLING), &mut io::sink())?;
    Ok(())
}

fn read_entry<R: Read>(
    mut entry: tar::Entry<'_, R>,
    seen: &mut HashSet<Member>,
    take: &mut dyn Take,
) -> Result<(), LayoutError> {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let refused = |why| Err(LayoutError::Member(one_line(&path), why));
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return refused("its path leads out of the archive; a layout has no such file");
    }
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => {}
        EntryType::Directory | EntryType::XGlobalHeader => return pass_over(&mut entry),
        EntryType::GNUSparse => return refused("it is a sparse file; make the archive without --sparse"),
        EntryType::Symlink | EntryType::Link => return refused("it is a link; a layout has only files"),
        _ => return refused("it is neither a file nor a folder"),
    }
    let Some(member) = member(&path)? else {
        return pass_over(&mut entry);
    };
    if !seen.insert(member) {
        return refused("it is there twice");
    }
    let size = entry.size();
    if !matches!(member, Member::Blob(_)) && size > MAX_DOCUMENT {
        return refused("it is larger than 64 MiB");
    }
    take.begin(member, size)?;
    let mut hasher = match member {
        Member::Blob(digest) => Some(digest.algorithm().hasher()),
        _ => None,
    };
    let found = read_bytes(&mut entry, size, hasher.as_mut(), take)?;
    if found != size {
        return Err(LayoutError::CutOff);
    }
    take.end(member, hasher.map(Hasher::finish))
}

fn read_bytes(
    entry: &mut impl Read,
    size: u64,
    mut hasher: Option<&mut Hasher>,
    take: &mut dyn Take,
) -> Result<u64, LayoutError> {
    let mut at = 0;
    while at < size {
        let length = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match entry.read(&mut piece[filled..]).map_err(broken)? {
                0 => return Ok(at + filled as u64),
                read => filled += read,
            }
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece);
        }
        at += length as u64;
        take.bytes(piece.into())?;
    }
    Ok(at)
}

/// Reads a file that nobody wants.
fn pass_over<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<(), LayoutError> {
    let size = entry.size();
    let read = io::copy(entry, &mut io::sink()).map_err(broken)?;
    if read == size { Ok(()) } else { Err(LayoutError::CutOff) }
}

/// Returns which file of a layout a path means; `None` for files that are not a part of it.
fn member(path: &str) -> Result<Option<Member>, LayoutError> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(Some(match parts[..] {
        [MARKER] => Member::Marker,
        [INDEX] => Member::Index,
        [REPORT] => Member::Report,
        ["manifest.json"] => Member::OfDocker,
        ["blobs", algorithm, hex] if Algorithm::ALL.iter().any(|known| known.as_str() == algorithm) => {
            let digest = format!("{algorithm}:{hex}").parse();
            Member::Blob(digest.map_err(|_| LayoutError::Member(one_line(path), "its name is no digest"))?)
        }
        _ => return Ok(None),
    }))
}

/// Returns the error of an archive that cannot be read on.
fn broken(error: io::Error) -> LayoutError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LayoutError::CutOff,
        io::ErrorKind::ConnectionAborted | io::ErrorKind::TimedOut => LayoutError::Io(error),
        _ => LayoutError::NoTar(error),
    }
}

/// Counts the bytes that are read for one header.
#[derive(Clone, Default)]
struct Meter {
    /// The limit, and the bytes read since it was set.
    bytes: Rc<Cell<(Option<u64>, u64)>>,
    is_at_end: Rc<Cell<bool>>,
}

impl Meter {
    fn limit(&self, bytes: u64) {
        self.bytes.set((Some(bytes), 0));
    }

    fn no_limit(&self) {
        self.bytes.set((None, 0));
    }

    fn used(&self) -> u64 {
        self.bytes.get().1
    }

    /// Returns whether there were no more bytes.
    fn is_at_end(&self) -> bool {
        self.is_at_end.get()
    }
}

struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (limit, used) = self.meter.bytes.get();
        let read = self.inner.read(buffer)?;
        self.meter.is_at_end.set(read == 0 && !buffer.is_empty());
        let used = used + read as u64;
        self.meter.bytes.set((limit, used));
        if limit.is_some_and(|limit| used > limit) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the header of a file is larger than 1 MiB"));
        }
        Ok(read)
    }
}

/// Reads bytes that arrive piece by piece. Blocks.
pub struct Arriving {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Arriving {
    /// Reads what this receives.
    pub fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { pieces, piece: Bytes::new() }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
