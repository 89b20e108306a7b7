//! Whether files were changed. They are looked at every now and then, which also works where the
//! system tells nobody of changes: network filesystems, files mounted into containers, and links that
//! are pointed elsewhere, as Kubernetes does with secrets.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Some files and how they were when last taken note of.
#[derive(Debug)]
pub struct Watch {
    files: Vec<PathBuf>,
    settled: Vec<Mark>,
    last: Vec<Mark>,
}

/// Tells one state of a file from another; `None`: it is not there.
type Mark = Option<(u64, u64, i64, i64, u64)>;

impl Watch {
    /// Watches `files` from their present state on. Blocks, as all of this does.
    pub fn new(mut files: Vec<PathBuf>) -> Self {
        files.sort();
        files.dedup();
        let marks: Vec<_> = files.iter().map(mark).collect();
        Self { files, last: marks.clone(), settled: marks }
    }

    /// Whether any file has changed since it was last said, and all are at rest: one that is being
    /// written may look whole when it is not.
    pub fn has_changed(&mut self) -> bool {
        let now: Vec<_> = self.files.iter().map(mark).collect();
        let is_at_rest = now == self.last;
        self.last = now;
        if is_at_rest && self.last != self.settled {
            self.settled.clone_from(&self.last);
            return true;
        }
        false
    }
}

fn mark(file: &PathBuf) -> Mark {
    let meta = fs::metadata(file).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
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
}
