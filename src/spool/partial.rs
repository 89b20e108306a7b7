//! A download that is not complete: its bytes, and a journal of which bytes are there.
//!
//! The journal is an array of slots of 16 bytes. The first slot holds a mark and the object's size, each further slot a
//! range, as two little-endian numbers. A transfer has a slot of its own and overwrites it as it goes, so that a killed
//! process leaves a journal that is right up to its last write. Nothing is synced: after a power cut, the digest at the
//! end shows whether the bytes are right.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::taint::Taint;
use crate::oci::Digest;
use crate::work::{Pool, ReadFile};

/// Bytes of one slot.
const SLOT: u64 = 16;
/// The mark in the first slot.
const MARK: [u8; 8] = *b"larder1\0";
/// A size that counts as not known.
const UNKNOWN: u64 = u64::MAX;
/// Most slots that are read back; a longer journal was not written by Larder.
const MAX_SLOTS: u64 = 1 << 20;
/// Stored content may be private. A stricter umask makes the mode stricter still.
const FILE_MODE: u32 = 0o640;

/// A download that is not complete; clones share it. Its file stays on disk when this is dropped, to be resumed, unless
/// it was published or discarded.
#[derive(Clone, Debug)]
pub struct Partial {
    digest: Digest,
    path: PathBuf,
    pool: Pool,
    tainted: Taint,
    file: Arc<File>,
    journal: Arc<Journal>,
}

/// The part of a download that an earlier process, or an earlier fill, left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    pub size: Option<u64>,
    pub ranges: Vec<(u64, u64)>,
}

/// Where the ranges that are there are written down.
#[derive(Debug)]
struct Journal {
    file: File,
    next_slot: AtomicU64,
}

impl Partial {
    /// Opens the download at `path`, new or as it was left. Blocks.
    pub(super) fn open(digest: Digest, path: PathBuf, pool: Pool, tainted: Taint) -> io::Result<(Self, Resumed)> {
        let (file, journal, resumed) = open(&path)?;
        let partial = Self { digest, path, pool, tainted, file: Arc::new(file), journal: Arc::new(journal) };
        Ok((partial, resumed))
    }

    /// Returns the file, for reading the bytes that are there already.
    pub fn reader(&self) -> ReadFile {
        ReadFile::new(self.file.clone(), self.pool.clone())
    }

    /// Returns the file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns a new slot of the journal, for the range of one transfer.
    pub fn new_slot(&self) -> Slot {
        Slot { journal: self.journal.clone(), at: self.journal.next_slot.fetch_add(1, Ordering::Relaxed) }
    }

    /// Sets aside the space for the whole object, so that a full disk shows at the beginning.
    pub async fn allocate(&self, size: u64) -> io::Result<()> {
        let (file, journal) = (self.file.clone(), self.journal.clone());
        self.change(move || {
            if size > 0 {
                match rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), 0, size) {
                    // Some filesystems cannot allocate ahead; a later write may then fail instead.
                    Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            journal.set_size(size)
        })
        .await
    }

    /// Writes a batch at `at`, and notes in `slot` that `[from, end)` is there. Returns that end.
    pub async fn write(&self, slot: &Slot, from: u64, at: u64, batch: Vec<Bytes>) -> io::Result<u64> {
        let (file, slot) = (self.file.clone(), slot.clone());
        self.change(move || {
            let mut at = at;
            for chunk in &batch {
                file.write_all_at(chunk, at)?;
                at += chunk.len() as u64;
            }
            slot.write(from, at)?;
            Ok(at)
        })
        .await
    }

    /// Makes a change. A change that is late may still happen after it was given up: then the download is tainted.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.tainted.check()?;
        let changed = self.pool.run_io(change).await;
        if changed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.tainted.add(self.digest);
        }
        changed
    }

    /// Moves the file to the complete objects. The content must be synced before. Blocks.
    pub fn rename(&self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        remove_if_there(&journal_path(&self.path))
    }

    /// Removes the download. Readers that have the file open go on.
    pub async fn discard(self) -> io::Result<()> {
        self.pool.run_io(move || remove(&self.path)).await
    }
}

/// Opens a download and its journal, and reads back which ranges are there. Blocks.
fn open(path: &Path) -> io::Result<(File, Journal, Resumed)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    let file = options.open(path)?;
    let journal = options.open(journal_path(path))?;
    let length = file.metadata()?.len();
    let mut resumed = read_journal(&journal, length)?;
    if resumed.ranges.is_empty() {
        // An earlier download may have been longer: bytes that are not overwritten would stay behind the end of this
        // one.
        file.set_len(0)?;
        resumed = Resumed::default();
    }

    let journal = Journal { file: journal, next_slot: AtomicU64::new(1) };
    journal.file.set_len(0)?;
    if let Some(size) = resumed.size {
        journal.set_size(size)?;
        for &(start, end) in &resumed.ranges {
            journal.write(journal.next_slot.fetch_add(1, Ordering::Relaxed), start.to_le_bytes(), end.to_le_bytes())?;
        }
    }
    Ok((file, journal, resumed))
}

/// Removes a download and its journal. Blocks.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(&journal_path(path))?;
    remove_if_there(path)
}

impl Journal {
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.write(0, MARK, size.to_le_bytes())
    }

    fn write(&self, slot: u64, first: [u8; 8], second: [u8; 8]) -> io::Result<()> {
        let mut bytes = [0; SLOT as usize];
        bytes[..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second);
        self.file.write_all_at(&bytes, slot * SLOT)
    }
}

/// The slot of one transfer in the journal; clones are the same slot.
#[derive(Clone, Debug)]
pub struct Slot {
    journal: Arc<Journal>,
    at: u64,
}

impl Slot {
    /// Notes that `[start, end)` is in the file.
    fn write(&self, start: u64, end: u64) -> io::Result<()> {
        self.journal.write(self.at, start.to_le_bytes(), end.to_le_bytes())
    }
}

/// Returns the path of a download's journal.
pub(super) fn journal_path(path: &Path) -> PathBuf {
    path.with_extension("have")
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the ranges in a journal, as far as the file confirms them; none if the journal makes no sense.
fn read_journal(journal: &File, length: u64) -> io::Result<Resumed> {
    let slots = journal.metadata()?.len() / SLOT;
    if slots == 0 || slots > MAX_SLOTS {
        return Ok(Resumed::default());
    }
    // At most 16 MiB by the check above.
    let mut bytes = vec![0; (slots * SLOT) as usize];
    journal.read_exact_at(&mut bytes, 0)?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    let size = number(8);
    if bytes[..8] != MARK || size == UNKNOWN {
        return Ok(Resumed::default());
    }
    let pairs = (1..slots as usize).map(|slot| (number(slot * 16), number(slot * 16 + 8)));
    let ranges = pairs.filter(|&(start, end)| start < end && end <= size.min(length)).collect();
    Ok(Resumed { size: Some(size), ranges })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spool::Spool;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sha256-aa");
        (dir, path)
    }

    #[test]
    fn what_was_brought_in_is_known_after_reopening() {
        let (_dir, path) = path();
        let (file, journal, resumed) = open(&path).expect("opened");
        assert_eq!(resumed, Resumed::default());
        file.set_len(1000).expect("long");
        let journal = Arc::new(journal);
        journal.set_size(1000).expect("written");
        let slot = |at| Slot { journal: journal.clone(), at };
        slot(1).write(0, 10).expect("written");
        slot(2).write(500, 600).expect("written");
        slot(1).write(0, 20).expect("written");
        for _ in 0..2 {
            let (_, _, resumed) = open(&path).expect("opened");
            assert_eq!(resumed, Resumed { size: Some(1000), ranges: vec![(0, 20), (500, 600)] });
        }
    }

    #[test]
    fn a_journal_that_makes_no_sense_counts_for_nothing() {
        let (_dir, path) = path();
        for journal in [&b""[..], b"larder1", &[0xff; 64], &[MARK, [0xff; 8]].concat()] {
            fs::write(&path, [1; 100]).expect("written");
            fs::write(journal_path(&path), journal).expect("written");
            assert_eq!(open(&path).expect("opened").2, Resumed::default());
        }
        // Ranges behind the end of the file or of the object are not believed.
        fs::write(&path, [1; 100]).expect("written");
        let numbers = [200u64, 0, 50, 90, 150, 60, 40].map(u64::to_le_bytes).concat();
        fs::write(journal_path(&path), [&MARK[..], &numbers].concat()).expect("written");
        let (_, _, resumed) = open(&path).expect("opened");
        assert_eq!(resumed, Resumed { size: Some(200), ranges: vec![(0, 50)] });
    }

    #[tokio::test]
    async fn what_cannot_be_resumed_leaves_no_bytes_behind_the_next_download() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(dir.path().to_owned(), Pool::new("a test", 1, Duration::from_secs(60)));
        let digest = Digest::Sha256([1; 32]);
        let (partial, _) = spool.open(&digest, true).await.expect("opened");
        partial.allocate(1000).await.expect("allocated");
        drop(partial);
        let (partial, resumed) = spool.open(&digest, true).await.expect("opened");
        assert_eq!(resumed, Resumed::default());
        partial.allocate(300).await.expect("allocated");
        assert_eq!(partial.file().metadata().expect("there").len(), 300);
        partial.discard().await.expect("discarded");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }
}
