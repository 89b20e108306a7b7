//! The files of a client, below the root of a file system.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use super::SetupError;

/// Most bytes of a file that is read.
const MOST: u64 = 64 << 20;
/// Most links that lead to one file, as in the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// What is there before a client is set up. Paths are those that the client sees.
pub trait Found {
    /// Returns the text of a file; `None` if there is no such file.
    fn text(&self, path: &Path) -> Result<Option<String>, SetupError>;

    /// Returns the names of the entries of a folder, sorted; none if there is no such folder.
    fn names(&self, folder: &Path) -> Result<Vec<String>, SetupError>;

    /// Returns the text of a file that only a warning depends on; `None` also if it cannot be read.
    fn glance(&self, path: &Path) -> Option<String> {
        self.text(path).ok().flatten()
    }

    /// Returns the names of the entries of a folder that only a warning depends on.
    fn glance_at_names(&self, folder: &Path) -> Vec<String> {
        self.names(folder).unwrap_or_default()
    }
}

/// The root of a file system, which nothing leaves: a symbolic link means what it means for who has this root.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// Names a root. Fails if there is no such folder.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let folder = fs::canonicalize(folder)?;
        if !folder.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Self(folder))
    }

    /// Returns whether this is the file system that we see ourselves.
    pub fn is_ours(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Returns where a file is, or would be, without a symbolic link on the way.
    pub fn place(&self, path: &Path) -> io::Result<PathBuf> {
        // What is still to go, the next part last.
        let mut rest: Vec<_> = parts(path);
        let mut place = self.0.clone();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                if place != self.0 {
                    place.pop();
                }
                continue;
            }
            let next = place.join(&part);
            match fs::read_link(&next) {
                Ok(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(io::Error::other("too many symbolic links"));
                    }
                    if target.is_absolute() {
                        place.clone_from(&self.0);
                    }
                    rest.extend(parts(&target));
                }
                // EINVAL: it is no link; what is missing is not one, either.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput || is_absent(&error) => place = next,
                Err(error) => return Err(error),
            }
        }
        Ok(place)
    }

    /// Returns the path as who has this root sees it.
    pub fn shown(&self, place: &Path) -> PathBuf {
        Path::new("/").join(place.strip_prefix(&self.0).unwrap_or(place))
    }

    /// Returns the bytes of a file; `None` if there is no such file.
    pub fn bytes(&self, path: &Path) -> Result<Option<Vec<u8>>, SetupError> {
        let read = || -> io::Result<Option<Vec<u8>>> {
            let file = match fs::File::open(self.place(path)?) {
                Err(error) if is_absent(&error) => return Ok(None),
                file => file?,
            };
            let mut bytes = Vec::new();
            file.take(MOST + 1).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        read().map_err(|error| SetupError::of(path, error))
    }
}

impl Found for Root {
    fn text(&self, path: &Path) -> Result<Option<String>, SetupError> {
        self.bytes(path)?.map(|bytes| text(path, bytes)).transpose()
    }

    fn names(&self, folder: &Path) -> Result<Vec<String>, SetupError> {
        let read = || -> io::Result<Vec<String>> {
            let entries = match fs::read_dir(self.place(folder)?) {
                Err(error) if is_absent(&error) => return Ok(Vec::new()),
                entries => entries?,
            };
            let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok())).collect::<io::Result<Vec<_>>>();
            let mut names: Vec<_> = names?.into_iter().flatten().collect();
            names.sort();
            Ok(names)
        };
        read().map_err(|error| SetupError::of(folder, error))
    }
}

/// Returns the text of a file's bytes.
pub fn text(path: &Path, bytes: Vec<u8>) -> Result<String, SetupError> {
    if bytes.len() as u64 > MOST {
        return Err(SetupError::NoText(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| SetupError::NoText(path.to_owned()))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns the parts of a path, the last one first.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.rev().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_leads_out_of_the_root() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let root = Root::new(dir.path()).expect("a root");
        let at = fs::canonicalize(dir.path()).expect("a path");
        fs::create_dir(at.join("etc")).expect("made");
        for (link, target) in [
            ("etc/out", "../../../../etc"),
            ("etc/docker", "/data/docker"),
            ("etc/loop", "loop"),
            ("etc/up", ".."),
            ("etc/file", "docker/daemon.json"),
        ] {
            symlink(target, at.join(link)).expect("linked");
        }
        let place = |path: &str| root.place(Path::new(path)).map_err(|error| error.to_string());
        assert_eq!(place("/etc/out/passwd"), Ok(at.join("etc/passwd")));
        assert_eq!(place("/etc/docker/daemon.json"), Ok(at.join("data/docker/daemon.json")));
        assert_eq!(place("/etc/file"), Ok(at.join("data/docker/daemon.json")));
        assert_eq!(place("/../../etc/up/x"), Ok(at.join("x")));
        assert_eq!(place("/etc/loop"), Err("too many symbolic links".to_owned()));
    }
}
