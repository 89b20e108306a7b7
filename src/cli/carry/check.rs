//! `larder import --check`: compares every file of an archive with its digest. Needs no cache.

use std::collections::HashSet;

use bytes::Bytes;
use serde::Serialize;

use super::super::error::CommandError;
use super::super::manage::size;
use super::super::output::{print, print_json};
use super::plural;
use super::source::Source;
use crate::oci::Digest;
use crate::ops::layout::archive::{self, Arriving, Member, Take};
use crate::ops::layout::{Documents, LayoutError};

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Checked {
    /// Images that `index.json` names.
    images: u64,
    /// Blobs that were read, and their bytes.
    blobs: u64,
    bytes: u64,
    /// Files whose bytes have another digest than their name.
    damaged: Vec<String>,
    /// Images whose manifest is not in the archive: an earlier one has it.
    elsewhere: u64,
}

/// Checks an archive, and says what was found. Fails if anything is damaged.
pub async fn run(source: Source, is_json: bool) -> Result<(), CommandError> {
    let hint = source.hint().unwrap_or_default();
    let pieces = source.begin();
    let checked = tokio::task::spawn_blocking(move || check(Arriving::new(pieces))).await;
    let checked = checked.map_err(|error| CommandError::Failed(error.to_string()))?;
    let checked = checked.map_err(|error| match error {
        LayoutError::CutOff => CommandError::Failed(format!("{error}{hint}")),
        error => CommandError::Failed(error.to_string()),
    })?;
    match is_json {
        true => print_json(&checked)?,
        false => print(&told(&checked))?,
    }
    if checked.damaged.is_empty() { Ok(()) } else { Err(CommandError::Quiet) }
}

fn told(checked: &Checked) -> String {
    let damaged: String = checked.damaged.iter().map(|path| format!("{path} is damaged\n")).collect();
    let (images, blobs) = (plural(checked.images, "image"), plural(checked.blobs, "blob"));
    let elsewhere = match checked.elsewhere {
        0 => String::new(),
        count => format!("; the manifests of {} are in an earlier archive", plural(count, "image")),
    };
    let end = if checked.damaged.is_empty() { "; all is well\n" } else { "; copy the archive again\n" };
    format!("{damaged}{images}, {blobs}, {}{elsewhere}{end}", size(checked.bytes))
}

#[derive(Default)]
struct Comparing {
    documents: Documents,
    document: Vec<u8>,
    is_blob: bool,
    found: HashSet<Digest>,
    checked: Checked,
}

impl Take for Comparing {
    fn begin(&mut self, member: Member, _: u64) -> Result<(), LayoutError> {
        self.document.clear();
        self.is_blob = matches!(member, Member::Blob(_));
        Ok(())
    }

    fn bytes(&mut self, bytes: Bytes) -> Result<(), LayoutError> {
        match self.is_blob {
            true => self.checked.bytes += bytes.len() as u64,
            false => self.document.extend_from_slice(&bytes),
        }
        Ok(())
    }

    fn end(&mut self, member: Member, found: Option<Digest>) -> Result<(), LayoutError> {
        let Member::Blob(digest) = member else {
            self.documents.take(member, std::mem::take(&mut self.document));
            return Ok(());
        };
        self.checked.blobs += 1;
        self.found.insert(digest);
        if found != Some(digest) {
            self.checked.damaged.push(archive::path_of(&digest));
        }
        Ok(())
    }
}

fn check(mut pieces: Arriving) -> Result<Checked, LayoutError> {
    let mut comparing = Comparing::default();
    archive::read(&mut pieces, &mut comparing)?;
    let index = comparing.documents.index()?;
    let is_here = |digest: &str| digest.parse().is_ok_and(|digest| comparing.found.contains(&digest));
    let elsewhere = index.manifests.iter().filter(|image| !is_here(&image.digest)).count();
    let mut checked = comparing.checked;
    (checked.images, checked.elsewhere) = (index.manifests.len() as u64, elsewhere as u64);
    Ok(checked)
}
