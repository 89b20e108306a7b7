//! The rights on the cache directory. Files and folders that Larder makes are for its own user, and for its group as
//! far as somebody opens the directory to the group. Directories of earlier versions, or made by hand, are closed to
//! others at the start.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Most rights on a folder.
const FOLDER: u32 = 0o700;
/// Most rights on a file.
const FILE: u32 = 0o640;
/// The bit that reserves deletion for owners, as in /tmp: such a directory is not for one program.
const STICKY: u32 = 0o1000;
const FOLDERS: [&str; 5] = ["blobs", "blobs/sha256", "blobs/sha512", "partial", "acme"];
const FILES: [&str; 6] = ["larder.lock", "larder.db", "larder.db-wal", "larder.db-shm", "pins.json", "passes.json"];

/// Takes rights from other users, where Larder's user owns the files. If that fails, the cache works all the same.
pub fn tighten(dir: &Path) {
    for folder in FOLDERS {
        restrict(&dir.join(folder), FOLDER);
    }
    for file in FILES {
        restrict(&dir.join(file), FILE);
    }
    if is_for_larder_alone(dir) {
        restrict(dir, FOLDER);
    } else {
        tracing::info!(
            dir = %dir.display(),
            "cache.dir holds other things, too, so its mode is left as it is; others may read the names in it"
        );
    }
}

/// Returns whether the directory holds nothing but what Larder makes. Stops at the first entry that Larder did not
/// make.
fn is_for_larder_alone(dir: &Path) -> bool {
    let is_ours = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let begins = ["larder", "pins.json", "passes.json"].iter().any(|beginning| name.starts_with(beginning));
            begins || FOLDERS.contains(&&*name) || name == "lost+found"
        })
    };
    let is_shared = fs::metadata(dir).is_ok_and(|metadata| metadata.mode() & STICKY != 0);
    !is_shared && fs::read_dir(dir).is_ok_and(|mut entries| entries.all(is_ours))
}

fn restrict(path: &Path, most: u32) {
    let Ok(metadata) = fs::metadata(path) else {
        return;
    };
    let excess = metadata.mode() & 0o777 & !most;
    if excess == 0 || metadata.uid() != rustix::process::geteuid().as_raw() {
        return;
    }
    let mode = metadata.mode() & 0o7777 & !excess;
    match fs::set_permissions(path, Permissions::from_mode(mode)) {
        Ok(()) => tracing::info!(path = %path.display(), mode = format!("{mode:o}"), "others may read this no longer"),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "others can read this, and its mode cannot be changed")
        }
    }
}
