//! The files of a Helm chart: from its folder, or from the archive that `helm package` makes. Nothing is unpacked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::GzDecoder;

/// Most files and folders of a chart, with all charts in it.
const FILES: usize = 20_000;
/// Most bytes of these files together.
const BYTES: u64 = 256 << 20;
/// Largest file, in bytes: helm reads no larger one either (`MaxDecompressedFileSize`, pkg/chart/loader/archive of
/// helm/helm).
const FILE: u64 = 5 << 20;
/// Most charts within each other, and most folders.
const DEPTH: usize = 16;

/// The files of a chart by their paths within it.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What may still be read.
pub struct Budget {
    files: usize,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { files: FILES, bytes: BYTES }
    }
}

impl Budget {
    /// Takes one file or folder.
    fn take(&mut self) -> io::Result<()> {
        self.files = self.files.checked_sub(1).ok_or_else(too_large)?;
        Ok(())
    }

    fn take_bytes(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(too_large)?;
        Ok(())
    }
}

fn too_large() -> io::Error {
    io::Error::other("it has more files, or is larger, than a chart")
}

/// Reads a chart from its folder or its archive.
pub fn read(chart: &Path, budget: &mut Budget) -> io::Result<Files> {
    if chart.is_dir() {
        let mut files = Files::new();
        folder(chart, "", DEPTH, budget, &mut files)?;
        return Ok(files);
    }
    archive(fs::File::open(chart)?, budget)
}

/// Reads the files of a folder that may have a meaning. Links are passed over: they may lead anywhere.
fn folder(at: &Path, within: &str, depth: usize, budget: &mut Budget, files: &mut Files) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("its folders are too deep"))?;
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        budget.take()?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if within.is_empty() { name } else { format!("{within}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            folder(&entry.path(), &path, depth, budget, files)?;
        } else if kind.is_file() && is_meant(&path) {
            let bytes = bounded(fs::File::open(entry.path())?, budget)?;
            files.insert(path, bytes);
        }
    }
    Ok(())
}

/// Reads an archive: a tar file with gzip, with one folder around everything.
pub fn archive(bytes: impl Read, budget: &mut Budget) -> io::Result<Files> {
    let mut files = Files::new();
    let unpacked = GzDecoder::new(bytes).take(BYTES);
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries()? {
        let entry = entry?;
        budget.take()?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(io::Error::other(format!("`{path}` leads out of the archive, so this is no chart")));
        }
        let Some((_, path)) = path.trim_start_matches("./").split_once('/') else { continue };
        if is_meant(path) {
            let path = path.to_owned();
            files.insert(path, bounded(entry, budget)?);
        }
    }
    Ok(files)
}

/// Returns whether a file may say something about images.
fn is_meant(path: &str) -> bool {
    let is_yaml = path.ends_with(".yaml") || path.ends_with(".yml");
    let is_named = path.ends_with("Chart.yaml") || path.ends_with("values.yaml");
    path.ends_with(".tgz") || is_named || (is_yaml && is_manifest(path))
}

/// Returns whether a file holds manifests, or templates of them.
pub fn is_manifest(path: &str) -> bool {
    ["templates/", "crds/"].iter().any(|folder| path.starts_with(folder) || path.contains(&format!("/{folder}")))
}

fn bounded(file: impl Read, budget: &mut Budget) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE {
        return Err(io::Error::other("one of its files is larger than 5 MiB"));
    }
    budget.take_bytes(bytes.len() as u64)?;
    Ok(bytes)
}
