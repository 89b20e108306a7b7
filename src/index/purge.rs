//! Purges: which rows go, and which objects nothing refers to any more.
//!
//! A purge goes in steps, each a transaction of its own, so that other writes come in between. Searching is done by a
//! reading connection. A purge that is cut between two steps has removed less than everything: the rows that are left
//! are as before, and go with a later purge or by age.

use std::sync::mpsc::{SyncSender, sync_channel};

use rusqlite::{Connection, Transaction, params};

use super::reach::{Reach, is_root};
use super::size::{self, Left};
use super::sqlite::read_digest;
use super::{Generation, IndexError, Sqlite};
use crate::oci::{Digest, Reference};

/// Rows of one table that go in one step. Each row is in several indexes, at other places of the disk than its
/// neighbours.
const ROWS: u32 = 100;
/// The same for objects, whose rows are in no other index.
const PLAIN_ROWS: u32 = 1_000;
/// Objects that go in one step, each with its rows.
const OBJECTS_AT_ONCE: usize = 128;
/// Lists that go in one step: they are large.
const LISTS: u32 = 50;
/// Objects that are checked in one read for whether any repository may see them.
const LOOKED_AT: u32 = 10_000;

const OF_REPOSITORY: &str = "repository = ?1 AND ?2 = ''";
const BY_TAG: &str = "DELETE FROM tags WHERE repository = ?1 AND name = ?2 AND tag = ?3 RETURNING digest";
const BY_DIGEST: &str = "DELETE FROM tags WHERE digest = ?3 AND repository = ?1 AND name = ?2 RETURNING digest";
const UNNAME: &str = "DELETE FROM manifests WHERE repository = ?1 AND name = ?2 AND digest = ?3";
const SHOWN: &str = "SELECT digest, repository, scope FROM visibility \
    WHERE (digest, repository, scope) > (?1, ?2, ?3) ORDER BY digest, repository, scope LIMIT ?4";
const KNOWN: &str = "SELECT 1 FROM objects WHERE digest = ?1";
const HIDE: &str = "DELETE FROM visibility WHERE digest = ?1 AND repository = ?2";
const FORGET: [&str; 3] = [
    "DELETE FROM objects WHERE digest = ?1 RETURNING size, generation",
    "DELETE FROM visibility WHERE digest = ?1",
    "DELETE FROM edges WHERE parent = ?1",
];

/// The content to take out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    All,
    /// Everything that is visible in a repository (its prefix).
    Repository(String),
    /// All tags and manifests of one name.
    Name {
        repository: String,
        name: String,
    },
    /// One tag or one manifest.
    Reference {
        repository: String,
        name: String,
        reference: Reference,
    },
}

/// The objects whose files have to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// All objects that may have a file, also those of which the index had no row.
    pub digests: Vec<Digest>,
    /// Those of them whose content is in the bucket of `[storage.s3]`, each with its upload.
    pub uploads: Vec<(Digest, Generation)>,
    /// Objects that the index knew.
    pub objects: u64,
    /// Bytes of these objects.
    pub bytes: u64,
    /// Tags, names of manifests, lists and the like that led to the content.
    pub rows: u64,
}

impl Purged {
    /// Returns a step that removed rows and no object.
    fn of_rows(rows: usize) -> Self {
        Self { rows: rows as u64, ..Self::default() }
    }

    /// Returns whether there was anything to take out.
    pub fn is_any(&self) -> bool {
        self.objects > 0 || self.rows > 0
    }

    /// Adds the objects that a further step removed.
    pub fn add(&mut self, step: Self) {
        self.digests.extend(step.digests);
        self.uploads.extend(step.uploads);
        self.objects += step.objects;
        self.bytes += step.bytes;
        self.rows += step.rows;
    }
}

/// What one step of a search for objects to remove has found.
#[derive(Default)]
struct Found {
    /// Objects that nothing leads to any more.
    unkept: Vec<Digest>,
    /// Objects that the purged repository no longer leads to, even if another repository keeps them: they are not shown
    /// there either.
    unseen: Vec<Digest>,
}

impl Sqlite {
    /// Removes rows in steps. After each step, tells which objects nothing refers to any more. Blocks.
    pub fn purge(&self, purge: &Purge, mut each: impl FnMut(Purged)) -> Result<(), IndexError> {
        match purge {
            Purge::All => self.purge_all(&mut each),
            Purge::Repository(repository) => self.purge_repository(repository, &mut each),
            Purge::Name { repository, name } => {
                let of_name = ["repository = ?1 AND name = ?2", repository, name];
                let mut roots = self.delete_roots("tags", of_name)?;
                roots.extend(self.delete_roots("manifests", of_name)?);
                let lists = self.delete("listings", of_name, LISTS)?;
                each(Purged::of_rows(roots.len() + lists));
                let below = self.sorted_below(roots)?;
                self.purge_unkept(repository, &below, &mut each)
            }
            Purge::Reference { repository, name, reference } => {
                let (roots, tags) = self.delete_reference(repository, name, reference)?;
                each(Purged::of_rows(tags));
                let below = self.sorted_below(roots)?;
                self.unname(repository, name, &below, &mut each)?;
                self.purge_unkept(repository, &below, &mut each)
            }
        }
    }

    /// Does a step in a transaction of its own.
    fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, IndexError> {
        self.change_blocking(move |connection| {
            let transaction = connection.transaction()?;
            let done = step(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    /// Deletes the rows of a table that match a condition with two values, in steps. Returns how many.
    fn delete(&self, table: &'static str, condition: [&str; 3], rows: u32) -> Result<usize, IndexError> {
        let [condition, first, second] = condition.map(str::to_owned);
        let sql = delete_some(table, &condition);
        let mut all = 0;
        loop {
            let (sql, first, second) = (sql.clone(), first.clone(), second.clone());
            let step = move |transaction: &Transaction<'_>| {
                transaction.prepare_cached(&sql)?.execute(params![first, second, rows])
            };
            match self.step(step)? {
                0 => return Ok(all),
                deleted => all += deleted,
            }
        }
    }

    /// Like [`Self::delete`], for tags or manifests. Returns their digests.
    fn delete_roots(&self, table: &'static str, condition: [&str; 3]) -> Result<Vec<Digest>, IndexError> {
        let [condition, first, second] = condition.map(str::to_owned);
        let sql = delete_some(table, &condition) + " RETURNING digest";
        let mut roots = Vec::new();
        loop {
            let (sql, first, second) = (sql.clone(), first.clone(), second.clone());
            let step = move |transaction: &Transaction<'_>| {
                let mut statement = transaction.prepare_cached(&sql)?;
                let deleted = statement.query_map(params![first, second, ROWS], read_digest)?;
                deleted.collect::<rusqlite::Result<Vec<_>>>()
            };
            let deleted = self.step(step)?;
            if deleted.is_empty() {
                return Ok(roots);
            }
            roots.extend(deleted);
        }
    }

    /// Deletes one tag, or the tags of one manifest. Returns the manifests that they led to, and the number of tags.
    fn delete_reference(
        &self,
        repository: &str,
        name: &str,
        reference: &Reference,
    ) -> Result<(Vec<Digest>, usize), IndexError> {
        let (repository, name, reference) = (repository.to_owned(), name.to_owned(), reference.clone());
        self.step(move |transaction| {
            let delete = |sql: &str, value: &dyn rusqlite::ToSql| {
                let mut statement = transaction.prepare_cached(sql)?;
                let deleted = statement.query_map(params![repository, name, value], read_digest)?;
                deleted.collect::<rusqlite::Result<Vec<_>>>()
            };
            match reference {
                Reference::Tag(tag) => delete(BY_TAG, &tag.as_str()).map(|roots| (roots.clone(), roots.len())),
                Reference::Digest(digest) => delete(BY_DIGEST, &digest.as_raw()).map(|tags| (vec![digest], tags.len())),
            }
        })
    }

    /// Returns the roots and all objects below them, in the order of the tables.
    fn sorted_below(&self, roots: Vec<Digest>) -> Result<Vec<Digest>, IndexError> {
        let mut below: Vec<_> = self.below(roots)?.into_iter().collect();
        below.sort_unstable_by(|one, other| one.as_raw().cmp(other.as_raw()));
        Ok(below)
    }

    /// Removes manifests from those of a name: one that was requested by digest and lies below what is purged (a
    /// platform of an index) goes with it.
    fn unname(
        &self,
        repository: &str,
        name: &str,
        below: &[Digest],
        each: &mut impl FnMut(Purged),
    ) -> Result<(), IndexError> {
        for digests in below.chunks(OBJECTS_AT_ONCE) {
            let (repository, name, digests) = (repository.to_owned(), name.to_owned(), digests.to_vec());
            let unnamed = self.step(move |transaction| {
                let mut statement = transaction.prepare_cached(UNNAME)?;
                digests
                    .iter()
                    .try_fold(0, |all, digest| Ok(all + statement.execute(params![repository, name, digest.as_raw()])?))
            })?;
            each(Purged::of_rows(unnamed));
        }
        Ok(())
    }

    /// Removes the objects that no tag or manifest leads to any more. The next ones are looked for while those before
    /// them are removed.
    fn purge_unkept(
        &self,
        repository: &str,
        below: &[Digest],
        each: &mut impl FnMut(Purged),
    ) -> Result<(), IndexError> {
        let (found, next) = sync_channel(1);
        std::thread::scope(|scope| {
            let search = scope.spawn(move || self.find_unkept(repository, below, &found));
            let removed = next.iter().try_for_each(|found| self.remove_found(repository, found, each));
            // If the removal failed, there is nobody to search for.
            drop(next);
            let searched = search.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            removed.and(searched)
        })
    }

    /// Hands on which objects nothing leads to any more, a step at a time, for as long as somebody takes them.
    fn find_unkept(&self, repository: &str, below: &[Digest], found: &SyncSender<Found>) -> Result<(), IndexError> {
        self.read(|connection| {
            let (mut anywhere, mut here) = (Reach::new(connection, None), Reach::new(connection, Some(repository)));
            for digests in below.chunks(OBJECTS_AT_ONCE) {
                let mut step = Found::default();
                for digest in digests {
                    if !anywhere.is_kept(digest)? {
                        step.unkept.push(*digest);
                    } else if !here.is_kept(digest)? {
                        step.unseen.push(*digest);
                    }
                }
                if found.send(step).is_err() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Removes what was found in one step of a search.
    fn remove_found(&self, repository: &str, found: Found, each: &mut impl FnMut(Purged)) -> Result<(), IndexError> {
        let Found { unkept, unseen } = found;
        if !unkept.is_empty() {
            // An object may have been pulled again meanwhile.
            let step = move |transaction: &Transaction<'_>| {
                forget(transaction, &unkept, |digest| is_root(transaction, None, digest))
            };
            each(self.step(step)?);
        }
        if !unseen.is_empty() {
            let repository = repository.to_owned();
            each(Purged::of_rows(self.step(move |transaction| hide(transaction, &repository, &unseen))?));
        }
        Ok(())
    }

    fn purge_repository(&self, repository: &str, each: &mut impl FnMut(Purged)) -> Result<(), IndexError> {
        for (table, rows) in [("tags", ROWS), ("manifests", ROWS), ("listings", LISTS)] {
            each(Purged::of_rows(self.delete(table, [OF_REPOSITORY, repository, ""], rows)?));
        }
        let mut last = Some(Shown::default());
        while let Some(from) = last {
            let (shown, end) = self.read(|connection| shown_objects(connection, repository, &from))?;
            for digests in shown.chunks(OBJECTS_AT_ONCE) {
                let (repository, digests) = (repository.to_owned(), digests.to_vec());
                each(self.step(move |transaction| hide_and_forget(transaction, &repository, &digests))?);
            }
            last = end;
        }
        // Objects that no repository showed before are found only here.
        let mut last = Vec::new();
        loop {
            let (unseen, end) = self.read(|connection| unseen_objects(connection, &last))?;
            for digests in unseen.chunks(OBJECTS_AT_ONCE) {
                let digests = digests.to_vec();
                each(
                    self.step(move |transaction| forget(transaction, &digests, |digest| is_seen(transaction, digest)))?,
                );
            }
            match end {
                Some(end) => last = end.as_raw().to_vec(),
                None => return Ok(()),
            }
        }
    }

    fn purge_all(&self, each: &mut impl FnMut(Purged)) -> Result<(), IndexError> {
        for table in ["tags", "manifests", "visibility", "listings", "urls", "edges"] {
            self.step(move |transaction| clear(transaction, table))?;
        }
        loop {
            let step = |transaction: &Transaction<'_>| {
                let digests = transaction
                    .prepare_cached("SELECT digest FROM objects LIMIT ?1")?
                    .query_map(params![PLAIN_ROWS], read_digest)?
                    .collect::<rusqlite::Result<Vec<_>>>()?;
                forget(transaction, &digests, |_| Ok(false))
            };
            let purged = self.step(step)?;
            if purged.digests.is_empty() {
                break;
            }
            each(purged);
        }
        self.give_all_back()
    }

    /// Gives all free room back at once: a user who clears a cache wants the room now.
    fn give_all_back(&self) -> Result<(), IndexError> {
        loop {
            let path = self.path().to_owned();
            let left = self.change_blocking(move |connection| {
                Ok(size::give_back(connection, &path, true).unwrap_or_else(|error| {
                    tracing::warn!(%error, "the index cannot give room back now");
                    Left::Nothing
                }))
            })?;
            if left != Left::Pages {
                break;
            }
        }
        self.change_blocking(|connection| {
            if let Err(error) = size::take_in_log(connection) {
                tracing::warn!(%error, "the index's log cannot be taken in now");
            }
            Ok(())
        })
    }
}

/// Returns the SQL that deletes rows that match a condition, as many as the third value says.
fn delete_some(table: &str, condition: &str) -> String {
    let key = match table {
        "tags" => "repository, name, tag, shelf",
        "manifests" => "repository, name, digest",
        _ => "id",
    };
    format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {condition} LIMIT ?3)")
}

/// Deletes all rows of a table as a whole: that takes a moment for each page, not for each row. Triggers would keep
/// SQLite from it, so they are dropped and made again. In an index of a million objects, the largest table takes 0.1 s
/// (`bench/index.rs`), the only step of a purge above 50 ms: row by row, a purge of everything would take some times as
/// long, and a write that comes meanwhile waits no longer than for a slow disk.
fn clear(transaction: &Transaction<'_>, table: &str) -> rusqlite::Result<()> {
    const TRIGGERS: &str = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1";
    let triggers = transaction
        .prepare(TRIGGERS)?
        .query_map(params![table], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for (name, _) in &triggers {
        transaction.execute_batch(&format!("DROP TRIGGER {name}"))?;
    }
    transaction.execute(&format!("DELETE FROM {table}"), [])?;
    transaction.execute("DELETE FROM shares WHERE kind = ?1", params![table])?;
    transaction.execute("UPDATE totals SET amount = 0 WHERE kind = ?1", params![table])?;
    triggers.iter().try_for_each(|(_, sql)| transaction.execute_batch(sql))
}

/// A row of who may see what: digest, repository, scope.
type Shown = (Vec<u8>, String, i64);

/// Returns the objects that are visible in a repository, among the next rows behind `last`; and where to go on.
fn shown_objects(
    connection: &Connection,
    repository: &str,
    last: &Shown,
) -> rusqlite::Result<(Vec<Digest>, Option<Shown>)> {
    let mut statement = connection.prepare_cached(SHOWN)?;
    let mut rows = statement.query(params![last.0, last.1, last.2, LOOKED_AT])?;
    let (mut shown, mut end) = (Vec::new(), None);
    while let Some(row) = rows.next()? {
        let (digest, place): (_, String) = (read_digest(row)?, row.get(1)?);
        // The same in another scope comes next to it.
        if place == repository && shown.last() != Some(&digest) {
            shown.push(digest);
        }
        end = Some((digest.as_raw().to_vec(), place, row.get(2)?));
    }
    Ok((shown, end))
}

/// Returns the objects that are visible in no repository, among the next objects behind `last`; and where to go on.
fn unseen_objects(connection: &Connection, last: &[u8]) -> rusqlite::Result<(Vec<Digest>, Option<Digest>)> {
    const SQL: &str = "SELECT digest, EXISTS (SELECT 1 FROM visibility WHERE visibility.digest = objects.digest) \
        FROM objects WHERE digest > ?1 ORDER BY digest LIMIT ?2";
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query(params![last, LOOKED_AT])?;
    let (mut unseen, mut end) = (Vec::new(), None);
    while let Some(row) = rows.next()? {
        let digest = read_digest(row)?;
        if !row.get::<_, bool>(1)? {
            unseen.push(digest);
        }
        end = Some(digest);
    }
    Ok((unseen, end))
}

/// Returns whether an object is visible in any repository.
fn is_seen(connection: &Connection, digest: &Digest) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM visibility WHERE digest = ?1")?.exists(params![digest.as_raw()])
}

/// Hides objects in a repository, and forgets those that are then visible in none.
fn hide_and_forget(transaction: &Transaction<'_>, repository: &str, digests: &[Digest]) -> rusqlite::Result<Purged> {
    let mut hidden = 0;
    let mut statement = transaction.prepare_cached(HIDE)?;
    for digest in digests {
        hidden += statement.execute(params![digest.as_raw(), repository])?;
    }
    let mut known = transaction.prepare_cached(KNOWN)?;
    let known: Vec<_> = digests
        .iter()
        .map(|digest| Ok(known.exists(params![digest.as_raw()])?.then_some(*digest)))
        .filter_map(rusqlite::Result::transpose)
        .collect::<rusqlite::Result<_>>()?;
    let mut purged = forget(transaction, &known, |digest| is_seen(transaction, digest))?;
    purged.rows += hidden as u64;
    Ok(purged)
}

/// Forgets objects, except those that are wanted.
fn forget(
    transaction: &Transaction<'_>,
    digests: &[Digest],
    is_wanted: impl Fn(&Digest) -> rusqlite::Result<bool>,
) -> rusqlite::Result<Purged> {
    let mut purged = Purged::default();
    let [object, visibility, edges] = FORGET;
    let mut object = transaction.prepare_cached(object)?;
    let mut visibility = transaction.prepare_cached(visibility)?;
    let mut edges = transaction.prepare_cached(edges)?;
    for digest in digests {
        if is_wanted(digest)? {
            continue;
        }
        let rows = object.query_map(params![digest.as_raw()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for row in rows {
            let (size, generation): (u64, Option<Generation>) = row?;
            purged.objects += 1;
            purged.bytes += size;
            purged.uploads.extend(generation.map(|generation| (*digest, generation)));
        }
        visibility.execute(params![digest.as_raw()])?;
        edges.execute(params![digest.as_raw()])?;
        purged.digests.push(*digest);
    }
    Ok(purged)
}

/// Hides objects in a repository, unless they were requested again meanwhile. Returns how many were visible there.
fn hide(transaction: &Transaction<'_>, repository: &str, digests: &[Digest]) -> rusqlite::Result<usize> {
    let mut statement = transaction.prepare_cached(HIDE)?;
    let mut hidden = 0;
    for digest in digests {
        if !is_root(transaction, Some(repository), digest)? {
            hidden += statement.execute(params![digest.as_raw(), repository])?;
        }
    }
    Ok(hidden)
}

#[cfg(test)]
pub(super) mod tests;
