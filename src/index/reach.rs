//! Finds out what leads to an object: a tag or a noted manifest, or another object that something leads to.

use std::collections::{HashMap, HashSet, VecDeque};

use rusqlite::{Connection, OptionalExtension, params};

use super::sqlite::read_digest;
use crate::oci::Digest;

/// Parents that are read at once the first time: most objects are found by their first parent.
const FIRST: u32 = 1;
/// Parents that are read at once after that: some layers have very many.
const MORE: u32 = 64;

/// Searches upwards for what leads to objects, and remembers what it found.
pub(super) struct Reach<'a> {
    connection: &'a Connection,
    /// The repository whose tags and manifests count; `None`: those of all repositories.
    repository: Option<&'a str>,
    /// The objects that were looked at, and whether something leads to them.
    pub(super) known: HashMap<Digest, bool>,
}

/// An object on the way up.
struct Step {
    object: Digest,
    /// Parents that were read and not looked at yet.
    parents: VecDeque<Digest>,
    /// The last parent that was read.
    last: Option<Digest>,
}

impl Step {
    fn at(object: Digest) -> Self {
        Self { object, parents: VecDeque::new(), last: None }
    }

    /// Returns the next parent of the object.
    fn next(&mut self, connection: &Connection) -> rusqlite::Result<Option<Digest>> {
        const SQL: &str = "SELECT parent FROM edges WHERE child = ?1 AND parent > ?2 ORDER BY parent LIMIT ?3";
        if self.parents.is_empty() {
            let count = if self.last.is_none() { FIRST } else { MORE };
            let last = self.last.as_ref().map_or(&[][..], |last| last.as_raw());
            let mut statement = connection.prepare_cached(SQL)?;
            let parents = statement.query_map(params![self.object.as_raw(), last, count], read_digest)?;
            self.parents = parents.collect::<rusqlite::Result<_>>()?;
            self.last = self.parents.back().copied().or(self.last);
        }
        Ok(self.parents.pop_front())
    }
}

impl<'a> Reach<'a> {
    pub(super) fn new(connection: &'a Connection, repository: Option<&'a str>) -> Self {
        Self { connection, repository, known: HashMap::new() }
    }

    /// Returns whether a tag or a noted manifest leads to an object.
    pub(super) fn is_kept(&mut self, object: &Digest) -> rusqlite::Result<bool> {
        if let Some(known) = self.known.get(object) {
            return Ok(*known);
        }
        let mut way = vec![Step::at(*object)];
        let mut on_way = HashSet::from([*object]);
        let mut seen = on_way.clone();
        // Digests allow no cycles, but wrong rows may have some. An object that was seen on a way that met itself may
        // be kept by what comes later on that way.
        let mut has_cycle = false;
        let mut is_kept = is_root(self.connection, self.repository, object)?;
        while !is_kept && let Some(step) = way.last_mut() {
            let Some(parent) = step.next(self.connection)? else {
                on_way.remove(&step.object);
                way.pop();
                continue;
            };
            has_cycle |= on_way.contains(&parent);
            match self.known.get(&parent) {
                Some(known) => is_kept = *known,
                None if seen.insert(parent) => {
                    on_way.insert(parent);
                    way.push(Step::at(parent));
                    is_kept = is_root(self.connection, self.repository, &parent)?;
                }
                None => {}
            }
        }
        // What leads to the end of the way leads to every object on it. Nothing leads to an object that was left on the
        // way.
        if !is_kept || !has_cycle {
            let left = seen.difference(&on_way).map(|object| (*object, false));
            self.known.extend(left);
        }
        self.known.extend(on_way.into_iter().map(|object| (object, is_kept)));
        Ok(is_kept)
    }
}

/// Returns whether a tag or a manifest with this digest is noted: in a repository, or in any.
pub(super) fn is_root(connection: &Connection, repository: Option<&str>, object: &Digest) -> rusqlite::Result<bool> {
    const ANY: &str =
        "SELECT 1 FROM tags WHERE digest = ?1 UNION ALL SELECT 1 FROM manifests WHERE digest = ?1 LIMIT 1";
    const ONE: &str = "SELECT 1 FROM tags WHERE digest = ?1 AND repository = ?2 \
        UNION ALL SELECT 1 FROM manifests WHERE digest = ?1 AND repository = ?2 LIMIT 1";
    let is_one = |_: &rusqlite::Row<'_>| Ok(());
    let found = match repository {
        None => connection.prepare_cached(ANY)?.query_row(params![object.as_raw()], is_one).optional()?,
        Some(repository) => {
            connection.prepare_cached(ONE)?.query_row(params![object.as_raw(), repository], is_one).optional()?
        }
    };
    Ok(found.is_some())
}
