//! How much of an image is there.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use rusqlite::{Connection, OptionalExtension, params};

use crate::index::sqlite::read_digest;
use crate::oci::Digest;

/// The objects that a manifest `?1` refers to.
pub(super) const CHILDREN: &str = "SELECT child FROM edges WHERE parent = ?1";

/// How much of an image is there.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::index) struct Extent {
    pub objects: u64,
    pub bytes: u64,
    pub missing: u64,
    pub children: Option<(u64, u64)>,
}

/// Counts the stored objects of images, and their bytes.
pub(super) struct Sizes<'a> {
    connection: &'a Connection,
    /// The results, for images that other tags lead to as well.
    known: HashMap<Digest, Extent>,
    /// Objects that were looked at in all.
    pub looked_at: usize,
}

/// What is known of one object of an image. `K` stands for an object.
pub(in crate::index) struct Part<K> {
    /// `None` if it is not stored.
    pub size: Option<u64>,
    pub is_blob: bool,
    pub children: Vec<K>,
}

impl Extent {
    /// Counts what is there of a manifest, given all that it leads to.
    pub fn of<K: Copy + Eq + Hash>(parts: &HashMap<K, Part<K>>, manifest: K) -> Self {
        let mut extent = Self::default();
        for part in parts.values() {
            match part.size {
                Some(size) => (extent.objects, extent.bytes) = (extent.objects + 1, extent.bytes + size),
                None => extent.missing += 1,
            }
        }
        extent.children = children_of(parts, manifest);
        extent
    }
}

impl<'a> Sizes<'a> {
    pub fn new(connection: &'a Connection) -> Self {
        Self { connection, known: HashMap::new(), looked_at: 0 }
    }

    pub fn below(&mut self, manifest: Digest) -> rusqlite::Result<Extent> {
        if let Some(known) = self.known.get(&manifest) {
            return Ok(*known);
        }
        let parts = self.parts(manifest)?;
        let extent = Extent::of(&parts, manifest);
        self.looked_at += parts.len();
        self.known.insert(manifest, extent);
        Ok(extent)
    }

    /// Returns a manifest and all that it leads to.
    fn parts(&self, manifest: Digest) -> rusqlite::Result<HashMap<Digest, Part<Digest>>> {
        let mut object =
            self.connection.prepare_cached("SELECT size, media_type IS NULL FROM objects WHERE digest = ?1")?;
        let mut edges = self.connection.prepare_cached(CHILDREN)?;
        let (mut parts, mut open) = (HashMap::new(), vec![manifest]);
        while let Some(next) = open.pop() {
            if parts.contains_key(&next) {
                continue;
            }
            let row =
                object.query_row(params![next.as_raw()], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, bool>(1)?)));
            let row = row.optional()?;
            let is_blob = row.is_some_and(|(_, is_blob)| is_blob);
            let mut part = Part { size: row.map(|(size, _)| size), is_blob, children: Vec::new() };
            // An object that came as a blob leads nowhere, and most objects of an image are blobs.
            if !is_blob {
                let mut rows = edges.query(params![next.as_raw()])?;
                while let Some(row) = rows.next()? {
                    part.children.push(read_digest(row)?);
                }
            }
            open.extend(&part.children);
            parts.insert(next, part);
        }
        Ok(parts)
    }
}

/// Returns how many manifests below an index are there with all that they lead to, and how many there are in all; `None`
/// if `root` has no manifest below it, as far as is known.
fn children_of<K: Copy + Eq + Hash>(parts: &HashMap<K, Part<K>>, root: K) -> Option<(u64, u64)> {
    let children = &parts.get(&root)?.children;
    // A stored blob below it shows that it is an image; so does nothing but missing objects, as far as anybody knows.
    let is_manifest = |child: &K| parts.get(child).is_some_and(|part| part.size.is_some() && !part.is_blob);
    let is_blob = |child: &K| parts.get(child).is_some_and(|part| part.is_blob);
    if children.iter().any(is_blob) || !children.iter().any(is_manifest) {
        return None;
    }
    let is_whole = |child: &&K| {
        let (mut seen, mut open) = (HashSet::new(), vec![**child]);
        while let Some(next) = open.pop() {
            if !seen.insert(next) {
                continue;
            }
            match parts.get(&next) {
                Some(Part { size: Some(_), children, .. }) => open.extend(children),
                _ => return false,
            }
        }
        true
    };
    let whole = children.iter().filter(is_whole).count();
    Some((whole as u64, children.len() as u64))
}
