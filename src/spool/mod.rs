//! The spool: downloads of objects on their way in, in files that grow. It is always on a local disk, whatever the
//! store is.
//!
//! ```text
//! DIR/partial/sha256-abcd…        the bytes that are there so far
//! DIR/partial/sha256-abcd….have   the journal: which ranges of them
//! ```

mod partial;
mod taint;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use partial::{Partial, Resumed, Slot};

use crate::clock;
use crate::files::{FolderLock, entries, make_folder};
use crate::oci::Digest;
use crate::work::Pool;
use taint::Taint;

/// A temporary file older than this was left behind: a small object is written in much less time.
const TEMPORARY: Duration = Duration::from_secs(300);
/// The beginning of the names of files to which the store writes small objects before it renames them.
pub const TEMPORARY_NAME: &str = "put-";

/// The directory of downloads; clones share it.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    pool: Pool,
    tainted: Taint,
    /// The lock on the directory above; none in a test.
    lock: Option<Arc<FolderLock>>,
}

/// A download on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download {
    pub digest: Digest,
    /// Disk space that it takes, in bytes.
    pub bytes: u64,
    /// When it was last written to.
    pub since: SystemTime,
}

impl Spool {
    /// Creates the spool in `dir`, which is made when it is needed.
    pub fn new(dir: PathBuf, pool: Pool) -> Self {
        Self(Arc::new(Shared { dir, pool, tainted: Taint::default(), lock: None }))
    }

    /// Creates the spool in `dir`, in which nothing is written without the lock.
    pub fn locked(dir: PathBuf, pool: Pool, lock: Arc<FolderLock>) -> Self {
        Self(Arc::new(Shared { dir, pool, tainted: Taint::default(), lock: Some(lock) }))
    }

    fn take_lock(&self) -> io::Result<()> {
        self.0.lock.as_ref().map_or(Ok(()), |lock| lock.take())
    }

    /// Opens the download of `digest`: a new one or, with `may_resume`, the one that was left.
    pub async fn open(&self, digest: &Digest, may_resume: bool) -> io::Result<(Partial, Resumed)> {
        let (spool, digest) = (self.clone(), *digest);
        self.0.pool.run_io(move || spool.open_blocking(digest, may_resume)).await
    }

    fn open_blocking(&self, digest: Digest, may_resume: bool) -> io::Result<(Partial, Resumed)> {
        self.take_lock()?;
        let is_tainted = self.0.tainted.contains(&digest);
        // Somebody may have removed the folder.
        make_folder(&self.0.dir)?;
        let path = self.path(&digest);
        if is_tainted || !may_resume {
            partial::remove(&path)?;
        }
        let opened = Partial::open(digest, path, self.0.pool.clone(), self.0.tainted.clone())?;
        self.0.tainted.remove(&digest);
        Ok(opened)
    }

    /// Lists all downloads, those of running fills among them.
    pub async fn list(&self) -> io::Result<Vec<Download>> {
        let dir = self.0.dir.clone();
        self.0.pool.run_io(move || list(&dir)).await
    }

    /// Removes a download that no fill continues.
    pub async fn remove(&self, digest: &Digest) -> io::Result<()> {
        let path = self.path(digest);
        self.0.pool.run_io(move || partial::remove(&path)).await
    }

    /// [`Self::clear_blocking`], off the async threads.
    pub async fn clear(&self, max_age: Duration) -> io::Result<()> {
        let spool = self.clone();
        self.0.pool.run_io(move || spool.clear_blocking(max_age)).await
    }

    /// Removes the downloads that no fill has continued for `max_age`, and the temporary files that an earlier process
    /// was writing when it was killed. Blocks.
    pub fn clear_blocking(&self, max_age: Duration) -> io::Result<()> {
        self.take_lock()?;
        for entry in entries(&self.0.dir)? {
            let entry = entry?;
            let is_temporary = entry.file_name().to_string_lossy().starts_with(TEMPORARY_NAME);
            let Ok(age) = clock::wall().duration_since(entry.metadata()?.modified()?) else {
                // The clock was ahead and has been set back: its age counts from now on.
                File::options().write(true).open(entry.path())?.set_modified(clock::wall())?;
                continue;
            };
            let limit = if is_temporary { TEMPORARY.min(max_age) } else { max_age };
            if age <= limit {
                continue;
            }
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove an abandoned download");
            }
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.0.dir.join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }
}

fn list(dir: &Path) -> io::Result<Vec<Download>> {
    let mut downloads = Vec::new();
    for entry in entries(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().replacen('-', ":", 1);
        match (name.parse(), entry.metadata()) {
            (Ok(digest), Ok(metadata)) => {
                // A block is 512 bytes here, whatever the filesystem's own blocks are.
                let journal = fs::metadata(partial::journal_path(&entry.path()));
                let bytes = (metadata.blocks() + journal.map_or(0, |journal| journal.blocks())) * 512;
                downloads.push(Download { digest, bytes, since: metadata.modified()? });
            }
            (Ok(_), Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(downloads)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = Pool::new("a test", 4, Duration::from_secs(60));
        let spool = Spool::new(dir.path().join("partial"), pool);
        (dir, spool)
    }

    #[tokio::test]
    async fn downloads_are_listed_with_the_disk_they_take() {
        let (dir, spool) = spool();
        assert_eq!(spool.list().await.expect("no folder yet"), []);
        let digest = Digest::Sha512([7; 64]);
        let (partial, _) = spool.open(&digest, true).await.expect("a file");
        partial.file().write_all_at(&[1; 100_000], 0).expect("written");
        fs::write(dir.path().join("partial/put-1"), "no download").expect("written");
        let found = spool.list().await.expect("listed");
        assert_eq!(found.iter().map(|download| download.digest).collect::<Vec<_>>(), [digest]);
        assert!(found[0].bytes >= 100_000);
        spool.remove(&digest).await.expect("removed");
        assert_eq!(spool.list().await.expect("listed"), []);
    }

    #[tokio::test]
    async fn only_abandoned_downloads_are_cleared() {
        let (dir, spool) = spool();
        drop(spool.open(&Digest::Sha256([1; 32]), true).await.expect("a file"));
        let left = || fs::read_dir(dir.path().join("partial")).expect("readable").count();
        fs::write(dir.path().join("partial/put-1"), "being written").expect("written");
        spool.clear(Duration::from_secs(3600)).await.expect("cleared");
        assert_eq!(left(), 3, "the file, its journal, and the one that is being written");
        spool.clear(Duration::ZERO).await.expect("cleared");
        assert_eq!(left(), 0);
    }

    /// A write that comes late must not change what another download has verified.
    #[tokio::test]
    async fn a_download_with_a_write_that_was_given_up_is_begun_anew_in_another_file() {
        let (_dir, spool) = spool();
        let digest = Digest::Sha256([1; 32]);
        let (first, _) = spool.open(&digest, true).await.expect("a file");
        first.allocate(10).await.expect("allocated");
        first.write(&first.new_slot(), 0, 0, vec![bytes::Bytes::from_static(b"12345")]).await.expect("written");
        spool.0.tainted.add(digest);
        let (second, resumed) = spool.open(&digest, true).await.expect("a file");
        assert_eq!(resumed, Resumed::default());
        first.file().write_all_at(b"late", 0).expect("written");
        assert_eq!(second.file().metadata().expect("open").len(), 0);
        let (_, resumed) = spool.open(&digest, true).await.expect("a file");
        assert_eq!(resumed, Resumed::default(), "tainted once");
    }
}
