//! Disks that run full or fail.

use std::path::Path;
use std::process::Command;

/// A small filesystem in memory, mounted for one test. Needs root, as the real clients do.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], dir.path());
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the space there is, but for what is rounded away.
    pub fn fill_up(&self) -> std::path::PathBuf {
        let filler = self.path().join("filler");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&filler).expect("opened");
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        filler
    }

    /// From now on it can only be read.
    pub fn only_for_reading(&self) {
        run("mount", &["-o", "remount,ro"], self.path());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l"], self.0.path());
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program).args(arguments).arg(path).status().expect("mount and umount are there");
    assert!(status.success(), "{program} failed");
}
