//! The names with cached content, in order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rusqlite::{Connection, params};

use super::{IndexError, Sqlite};

impl Sqlite {
    /// Returns at most `count` names with cached content, as `repository/name` in byte order, behind `last`. Names that
    /// only clients' own credentials brought in are not listed. Blocks.
    pub fn catalog(&self, repositories: &[String], last: &str, count: usize) -> Result<Vec<String>, IndexError> {
        self.read(|connection| {
            // The next name of each repository.
            let mut next = BinaryHeap::new();
            for (at, repository) in repositories.iter().enumerate() {
                if let Some(begin) = begin_behind(repository, last) {
                    next.extend(next_name(connection, repository, begin)?.map(|path| Reverse((path, at))));
                }
            }
            let mut found: Vec<String> = Vec::new();
            while found.len() < count
                && let Some(Reverse((path, at))) = next.pop()
            {
                let repository = &repositories[at];
                let name = path.get(repository.len() + 1..).unwrap_or_default();
                next.extend(next_name(connection, repository, name)?.map(|path| Reverse((path, at))));
                // Two repositories may have the same path.
                if found.last() != Some(&path) {
                    found.push(path);
                }
            }
            Ok(found)
        })
    }
}

/// Returns the name behind which the paths of a repository come after `last`; `None` if none does.
pub(super) fn begin_behind<'a>(repository: &str, last: &'a str) -> Option<&'a str> {
    match last.strip_prefix(repository).and_then(|rest| rest.strip_prefix('/')) {
        Some(name) => Some(name),
        None => (last < format!("{repository}/").as_str()).then_some(""),
    }
}

const NEXT: &str = "SELECT min(name) FROM ( \
    SELECT * FROM (SELECT name FROM tags WHERE repository = ?1 AND name > ?2 AND is_listed ORDER BY name LIMIT 1) \
    UNION ALL \
    SELECT * FROM (SELECT name FROM manifests WHERE repository = ?1 AND name > ?2 AND is_listed ORDER BY name LIMIT 1))";

/// Returns the path of the first listed name of a repository behind another name.
fn next_name(connection: &Connection, repository: &str, last: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached(NEXT)?;
    let name: Option<String> = statement.query_row(params![repository, last], |row| row.get(0))?;
    Ok(name.map(|name| format!("{repository}/{name}")))
}

#[cfg(test)]
mod tests;
