//! Writes a client's files, and takes them back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::found::Root;
use super::record::{Before, Entry, Record, sha256};
use super::{Plan, SetupError, Target, Wish, plan};

/// The mode of a new file: clients that run as other users read it, and nothing in it is secret.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;
/// Most copies of one file from before.
const MOST_BACKUPS: u32 = 100;

/// What happens to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Made,
    /// With the path of the file from before.
    Changed(PathBuf),
    /// It is again as it was before setup wrote it the first time.
    Restored,
    Removed,
    /// Nothing: somebody has changed it since. With the path of the file from before, if there was one.
    Left(Option<PathBuf>),
}

/// A file, and what happens to it.
#[derive(Clone, Debug)]
pub struct Step {
    entry: Entry,
    pub change: Change,
    /// The whole new content. `None` where there is none.
    pub text: Option<String>,
}

impl Step {
    /// Returns the path as the client sees it.
    pub fn path(&self) -> &Path {
        &self.entry.path
    }
}

/// What setup would do.
pub struct Changes {
    pub plan: Plan,
    /// Empty: everything is as it should be.
    pub steps: Vec<Step>,
    record: Record,
    record_file: PathBuf,
}

/// What was taken back.
pub struct Taken {
    pub steps: Vec<(PathBuf, Change)>,
    /// Folders that setup has made and in which something else is now.
    pub folders: Vec<PathBuf>,
}

/// Finds out what there is to do. Writes nothing.
pub fn prepare(root: &Root, wish: &Wish) -> Result<Changes, SetupError> {
    let record = Record::read(root, &wish.target)?.unwrap_or_default();
    let before = Before { root, record: &record };
    let mut plan = plan(wish, &before)?;
    let mut steps = Vec::new();
    let mut files = Vec::new();
    let mut warnings = Vec::new();
    for file in &plan.files {
        if before.bytes(&file.path)?.as_deref() == Some(file.text.as_bytes()) {
            continue;
        }
        let now = root.bytes(&file.path)?;
        let known = record.entry(&file.path);
        let backup = match (known, &now) {
            (Some(entry), Some(now)) if entry.is_ours(now) => entry.backup.clone(),
            (_, None) => None,
            (known, Some(_)) => {
                if known.is_some() {
                    warnings.push(format!(
                        "{} was changed since setup wrote it; --undo will bring back what it says now",
                        file.path.display()
                    ));
                }
                Some(free_backup(root, &file.path)?)
            }
        };
        let change = backup.clone().map_or(Change::Made, Change::Changed);
        let entry = Entry { path: file.path.clone(), sha256: sha256(file.text.as_bytes()), backup };
        files.push(entry.clone());
        if now.as_deref() != Some(file.text.as_bytes()) {
            steps.push(Step { entry, change, text: Some(file.text.clone()) });
        }
    }
    for entry in record.files.iter().filter(|entry| !plan.files.iter().any(|file| file.path == entry.path)) {
        match taken(root, entry)? {
            Change::Left(_) => files.push(entry.clone()),
            change => steps.push(Step { entry: entry.clone(), change, text: None }),
        }
    }
    plan.warnings.extend(warnings);
    let record = Record { files, folders: record.folders };
    Ok(Changes { plan, steps, record, record_file: wish.target.record() })
}

impl Changes {
    /// Writes the files. What was written before a failure is noted, so that it can be taken back.
    pub fn write(&mut self, root: &Root) -> Result<(), SetupError> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let written = self.steps.iter().filter(|step| step.text.is_some()).map(|step| step.entry.path.clone());
        for path in written.chain([self.record_file.clone()]) {
            make_folders(root, &path, &mut self.record.folders)?;
        }
        save(root, &self.record_file, &self.record)?;
        for step in &self.steps {
            let done = match &step.text {
                Some(text) => write_file(root, &step.entry, text),
                None => take_back(root, &step.entry, &step.change),
            };
            done.map_err(|error| SetupError::of(&step.entry.path, error))?;
        }
        Ok(())
    }
}

/// Takes back what setup has written for a client. `None`: nothing was.
pub fn undo(root: &Root, target: &Target) -> Result<Option<Taken>, SetupError> {
    let Some(mut record) = Record::read(root, target)? else { return Ok(None) };
    let mut steps = Vec::new();
    let mut left = Vec::new();
    for entry in &record.files {
        let change = taken(root, entry)?;
        match &change {
            Change::Left(_) => left.push(entry.clone()),
            change => take_back(root, entry, change).map_err(|error| SetupError::of(&entry.path, error))?,
        }
        steps.push((entry.path.clone(), change));
    }
    let file = target.record();
    record.files = left;
    let is_all = record.files.is_empty();
    if is_all {
        remove_if_there(root, &file).map_err(|error| SetupError::of(&file, error))?;
    }
    let mut folders = Vec::new();
    for folder in record.folders.iter().rev() {
        if !remove_folder(root, folder)? {
            folders.insert(0, folder.clone());
        }
    }
    record.folders.clone_from(&folders);
    if !is_all {
        save(root, &file, &record)?;
        folders.retain(|folder| !file.starts_with(folder));
        folders.retain(|folder| !record.files.iter().any(|entry| entry.path.starts_with(folder)));
    }
    Ok(Some(Taken { steps, folders }))
}

/// Says what taking back an entry means now.
fn taken(root: &Root, entry: &Entry) -> Result<Change, SetupError> {
    let now = root.bytes(&entry.path)?;
    let is_ours = now.as_deref().is_some_and(|bytes| entry.is_ours(bytes));
    Ok(match &entry.backup {
        None if is_ours || now.is_none() => Change::Removed,
        Some(backup) => {
            let before = root.bytes(backup)?;
            match before.is_some() && (is_ours || now == before) {
                true => Change::Restored,
                // The file was taken back before, or never written.
                false if before.is_none() && !is_ours => Change::Restored,
                false => Change::Left(before.map(|_| backup.clone())),
            }
        }
        None => Change::Left(None),
    })
}

fn take_back(root: &Root, entry: &Entry, change: &Change) -> io::Result<()> {
    match (&entry.backup, change) {
        (Some(backup), Change::Restored) => {
            let (from, to) = (root.place(backup)?, root.place(&entry.path)?);
            match fs::rename(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                renamed => renamed.and_then(|()| sync_folder(&to)),
            }
        }
        (None, Change::Removed) => remove_if_there(root, &entry.path),
        _ => Ok(()),
    }
}

/// Writes a file as a whole, and keeps the one from before, with its owner and mode, beside it.
fn write_file(root: &Root, entry: &Entry, text: &str) -> io::Result<()> {
    let place = root.place(&entry.path)?;
    let before = match fs::metadata(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        before => Some(before?),
    };
    if let (Some(backup), Some(before)) = (&entry.backup, &before) {
        let backup = root.place(backup)?;
        // The file itself, with all that it has; where that cannot be, its copy.
        if !backup.exists() && fs::hard_link(&place, &backup).is_err() {
            fs::copy(&place, &backup)?;
            own(&File::open(&backup)?, before)?;
        }
    }
    replace(&place, text.as_bytes(), before.as_ref())
}

/// Replaces a file, or makes it. `like`: the file whose owner and mode it gets.
fn replace(place: &Path, bytes: &[u8], like: Option<&fs::Metadata>) -> io::Result<()> {
    let mut name = place.as_os_str().to_owned();
    name.push(".larder-new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        if let Some(like) = like {
            own(&file, like)?;
        }
        // The umask may have made it stricter.
        file.set_permissions(fs::Permissions::from_mode(like.map_or(FILE_MODE, |like| like.mode() & 0o7777)))?;
        file.sync_all()?;
        fs::rename(&new, place)
    };
    written().inspect_err(|_| drop(fs::remove_file(&new)))?;
    sync_folder(place)
}

/// Gives a file the owner of another.
fn own(file: &File, like: &fs::Metadata) -> io::Result<()> {
    let is = file.metadata()?;
    if (is.uid(), is.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid()))
}

fn sync_folder(place: &Path) -> io::Result<()> {
    place.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Makes the missing folders above a file, also where a link leads to them, and notes them.
fn make_folders(root: &Root, path: &Path, made: &mut Vec<PathBuf>) -> Result<(), SetupError> {
    let place = root.place(path).map_err(|error| SetupError::of(path, error))?;
    let mut above: Vec<_> = place.ancestors().skip(1).collect();
    above.reverse();
    for folder in above.into_iter().filter(|folder| !folder.is_dir()) {
        let shown = root.shown(folder);
        let make = || -> io::Result<()> {
            fs::create_dir(folder)?;
            // The umask may have made it stricter.
            fs::set_permissions(folder, fs::Permissions::from_mode(FOLDER_MODE))
        };
        make().map_err(|error| SetupError::of(&shown, error))?;
        made.push(shown);
    }
    Ok(())
}

/// Removes a folder that setup has made. Returns false if something else is in it.
fn remove_folder(root: &Root, folder: &Path) -> Result<bool, SetupError> {
    let removed = root.place(folder).and_then(fs::remove_dir);
    match removed {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SetupError::of(folder, error)),
        _ => Ok(true),
    }
}

fn remove_if_there(root: &Root, path: &Path) -> io::Result<()> {
    match root.place(path).and_then(fs::remove_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn save(root: &Root, path: &Path, record: &Record) -> Result<(), SetupError> {
    let write = || -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        replace(&root.place(path)?, &bytes, None)
    };
    write().map_err(|error| SetupError::of(path, error))
}

/// Returns the path for the file from before: one that no client reads as its own.
fn free_backup(root: &Root, path: &Path) -> Result<PathBuf, SetupError> {
    for number in 1..MOST_BACKUPS {
        let mut name = path.as_os_str().to_owned();
        name.push(".larder-backup");
        if number > 1 {
            name.push(format!("-{number}"));
        }
        let backup = PathBuf::from(name);
        if root.bytes(&backup)?.is_none() {
            return Ok(backup);
        }
    }
    Err(SetupError::of(path, io::Error::other("there are too many copies from before beside it")))
}
