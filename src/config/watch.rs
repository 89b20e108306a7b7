//! Finds out whether files were changed. The files are looked at every now and then. That also works where the system
//! reports no changes: network filesystems, files mounted into containers, and links that are pointed elsewhere, as
//! Kubernetes does with secrets.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::clock;

/// Some files, with their last known states.
#[derive(Debug, Default)]
pub struct Watch(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    file: PathBuf,
    /// The state that was last reported or taken as known.
    settled: Mark,
    /// The state at the last look.
    last: Mark,
}

/// A state of a file, which differs from its other states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The file does not exist.
    Absent,
    Present {
        device: u64,
        inode: u64,
        modified: SystemTime,
        changed: (i64, i64),
        size: u64,
    },
    /// The file was read, and may have changed since.
    Unsure,
}

/// Most difference between the times of files and the time of the system.
const CLOCKS: Duration = Duration::from_secs(2);

impl Watch {
    /// Watches these files from their present state on. Blocks, as all methods do.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let mut watch = Self::default();
        watch.follow(files, clock::wall() + CLOCKS * 2);
        watch
    }

    /// Watches these files from now on, all of which were read after `read_at`. A file that is new here and was changed
    /// at about that time or later counts as changed, since it may have been read before the change.
    pub fn follow(&mut self, mut files: Vec<PathBuf>, read_at: SystemTime) {
        files.sort();
        files.dedup();
        let mut known = std::mem::take(&mut self.0);
        let watched = files.into_iter().map(|file| {
            if let Some(at) = known.iter().position(|watched| watched.file == file) {
                return known.swap_remove(at);
            }
            let last = mark(&file);
            let settled = match last {
                Mark::Present { modified, .. } if modified + CLOCKS > read_at => Mark::Unsure,
                sure => sure,
            };
            Watched { file, settled, last }
        });
        self.0 = watched.collect();
    }

    /// Returns whether any file has changed since the last report, and all files are at rest: a file that is being
    /// written may look complete when it is not.
    pub fn has_changed(&mut self) -> bool {
        let (mut is_at_rest, mut is_changed) = (true, false);
        for watched in &mut self.0 {
            let now = mark(&watched.file);
            is_at_rest &= now == watched.last;
            is_changed |= now != watched.settled;
            watched.last = now;
        }
        if is_at_rest && is_changed {
            self.settle();
        }
        is_at_rest && is_changed
    }

    /// Takes the last seen states as known. Called when the files are about to be read.
    pub fn settle(&mut self) {
        self.0.iter_mut().for_each(|watched| watched.settled = watched.last);
    }
}

fn mark(file: &PathBuf) -> Mark {
    let Ok(meta) = fs::metadata(file) else {
        return Mark::Absent;
    };
    let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let changed = (meta.ctime(), meta.ctime_nsec());
    Mark::Present { device: meta.dev(), inode: meta.ino(), modified, changed, size: meta.size() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_and_only_when_it_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, "1").expect("written");
        let mut watch = Watch::new(vec![one.clone(), two.clone()]);
        assert!(!watch.has_changed());
        fs::write(&one, "12").expect("written");
        assert!(!watch.has_changed(), "it may still be written to");
        fs::write(&one, "123").expect("written");
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        fs::write(&two, "new").expect("written");
        assert!(!watch.has_changed());
        assert!(watch.has_changed(), "a file that was not there");
        fs::remove_file(&one).expect("removed");
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_a_change() {
        let dir = tempfile::tempdir().expect("a directory");
        for version in ["a", "b"] {
            fs::create_dir(dir.path().join(version)).expect("made");
            fs::write(dir.path().join(version).join("secret"), version).expect("written");
        }
        let link = dir.path().join("data");
        std::os::unix::fs::symlink("a", &link).expect("linked");
        let mut watch = Watch::new(vec![link.join("secret")]);
        std::os::unix::fs::symlink("b", dir.path().join("new")).expect("linked");
        fs::rename(dir.path().join("new"), &link).expect("renamed");
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
    }

    #[test]
    fn what_changes_while_it_is_read_is_not_missed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (config, password) = (dir.path().join("config"), dir.path().join("password"));
        fs::write(&config, "1").expect("written");
        fs::write(&password, "1").expect("written");
        let mut watch = Watch::new(vec![config.clone()]);
        let read_at = clock::wall();
        // Both files are read here, and then changed.
        fs::write(&config, "22").expect("written");
        fs::write(&password, "22").expect("written");
        watch.follow(vec![config.clone(), password.clone()], read_at);
        assert!((0..2).any(|_| watch.has_changed()));
        watch.follow(vec![config, password], clock::wall());
        assert!(!(0..3).any(|_| watch.has_changed()), "once is enough");
    }
}
