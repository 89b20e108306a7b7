//! Random indexes, and properties that all of them have, for tests.

use proptest::collection::vec;
use proptest::prelude::*;
use rusqlite::Connection;

use super::{ObjectEntry, Scope, Sqlite, TagEntry, TagKey, Timestamp, Viewer, Write};
use crate::oci::{Digest, MediaType};

pub const OBJECTS: u8 = 12;
/// Prefixes and names whose order changes with the text that follows them, and two that make the same path.
pub const REPOSITORIES: [&str; 3] = ["r", "r/x", "s:1"];
pub const NAMES: [&str; 5] = ["a", "a-b", "a/b", "b", "x/b"];
pub const TAGS: [&str; 2] = ["1", "v-2"];

pub fn object(number: u8) -> Digest {
    match number {
        0 => Digest::Sha512([0; 64]),
        number => Digest::Sha256([number; 32]),
    }
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_owned)
}

/// Returns any write to an index; each object may refer to each.
fn writes() -> impl Strategy<Value = Write> {
    let (repository, name) = (one_of(&REPOSITORIES).boxed(), one_of(&NAMES).boxed());
    let digest = (0..OBJECTS).prop_map(object).boxed();
    let scope = prop::sample::select(&[Scope::Own, Scope::ByClients, Scope::Public][..]);
    let key = (repository.clone(), one_of(&["", " by clients"]), name.clone(), one_of(&TAGS));
    let key = key.prop_map(|(repository, shelf, name, tag)| TagKey { repository, shelf, name, tag }).boxed();
    let at = (0..9_i64).prop_map(Timestamp);
    prop_oneof![
        4 => digest.clone().prop_map(|digest| {
            let entry = ObjectEntry { size: 10, media_type: Some(MediaType::new("m")), stored_at: Timestamp(1), generation: None };
            Write::Object { digest, entry }
        }),
        3 => (key.clone(), digest.clone(), at.clone()).prop_map(|(key, digest, checked_at)| {
            Write::Tag { key, entry: TagEntry { digest, media_type: MediaType::new("m"), size: 1, checked_at } }
        }),
        1 => key.prop_map(|key| Write::DropTag { key }),
        2 => (repository.clone(), name, digest.clone(), at)
            .prop_map(|(repository, name, digest, at)| Write::Manifest { repository, name, digest, at }),
        5 => (repository, scope, digest.clone())
            .prop_map(|(repository, scope, digest)| Write::Visible { viewer: Viewer::new(repository, scope), digest }),
        6 => (digest.clone(), digest.clone())
            .prop_map(|(parent, child)| Write::Edges { parent, children: vec![child] }),
        1 => digest.prop_map(|digest| Write::DropObject { digest }),
    ]
}

pub fn graphs() -> impl Strategy<Value = Graph> {
    vec(writes(), 0..80).prop_map(Graph)
}

#[derive(Clone, Debug)]
pub struct Graph(pub Vec<Write>);

impl Graph {
    pub fn written(self) -> (tempfile::TempDir, Sqlite) {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Sqlite::open(dir.path()).expect("an index");
        index.apply(self.0);
        index.flush_blocking_here();
        (dir, index)
    }
}

impl Sqlite {
    /// Waits until everything is written, wherever a test runs.
    pub fn flush_blocking_here(&self) {
        self.change_blocking(|_| Ok(())).expect("written");
    }
}

/// Returns what a query finds, as text.
pub fn rows(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).expect("SQL");
    let columns = statement.column_count();
    let row =
        |row: &rusqlite::Row<'_>| (0..columns).map(|at| row.get_ref(at).map(|value| format!("{value:?}"))).collect();
    statement.query_map([], row).expect("read").collect::<rusqlite::Result<Vec<_>>>().expect("read")
}

/// Asserts that the sums follow from the tables: the database keeps them so that it need not look through the tables.
pub fn assert_sums(connection: &Connection) {
    for table in ["tags", "manifests"] {
        let wrong = format!(
            "SELECT * FROM {table} WHERE is_listed <> EXISTS (SELECT 1 FROM visibility WHERE scope <> 1 \
             AND visibility.digest = {table}.digest AND visibility.repository = {table}.repository)"
        );
        assert_eq!(rows(connection, &wrong), [""; 0], "{table}");
        let counted = format!("SELECT repository, count(*) FROM {table} GROUP BY repository ORDER BY repository");
        let noted = format!("SELECT repository, amount FROM shares WHERE kind = '{table}' ORDER BY repository");
        assert_eq!(rows(connection, &noted), rows(connection, &counted));
        let counted = rows(connection, &format!("SELECT count(*) FROM {table}"));
        assert_eq!(rows(connection, &format!("SELECT amount FROM totals WHERE kind = '{table}'")), counted);
    }
}

/// Asserts that a statement goes by indexes: it looks through no table, and sorts nothing. A statement that reads its
/// first rows in the order of an index is fine.
pub fn assert_goes_by_indexes(index: &Sqlite, sql: &str) {
    for line in plan(index, sql) {
        let is_fine = ["SEARCH", "SCAN (subquery", "SCAN CONSTANT ROW"].iter().any(|begin| line.starts_with(begin));
        let reads_first = line.starts_with("SCAN urls USING INDEX urls_by_age") && sql.ends_with("LIMIT 1");
        let is_frame = !line.starts_with("SCAN") && !line.contains("TEMP B-TREE");
        assert!(is_fine || reads_first || is_frame, "{line}: {sql}");
    }
}

/// Returns the lines of SQLite's plan for a statement.
pub fn plan(index: &Sqlite, sql: &str) -> Vec<String> {
    let plan = index.change_blocking({
        let sql = format!("EXPLAIN QUERY PLAN {sql}");
        move |connection| {
            let mut statement = connection.prepare(&sql)?;
            for at in 1..=statement.parameter_count() {
                statement.raw_bind_parameter(at, "")?;
            }
            let (mut rows, mut plan) = (statement.raw_query(), Vec::new());
            while let Some(row) = rows.next()? {
                plan.push(row.get::<_, String>(3)?);
            }
            Ok(plan)
        }
    });
    plan.expect("planned")
}
