use proptest::prelude::*;

use super::super::graph::{REPOSITORIES, assert_goes_by_indexes, assert_sums, graphs};
use super::*;

/// Returns the catalog by its plain definition, which looks at everything.
fn defined(
    connection: &Connection,
    repositories: &[String],
    last: &str,
    count: usize,
) -> rusqlite::Result<Vec<String>> {
    const SQL: &str = "WITH named AS (SELECT repository, name, digest FROM tags UNION SELECT repository, name, digest FROM manifests) \
        SELECT DISTINCT repository || '/' || name AS path FROM named \
        WHERE path > ?1 AND repository IN (SELECT value FROM json_each(?3)) \
        AND EXISTS (SELECT 1 FROM visibility WHERE visibility.digest = named.digest \
            AND visibility.repository = named.repository AND scope <> 1) \
        ORDER BY path LIMIT ?2";
    let wanted = serde_json::to_string(repositories).expect("JSON");
    let count = i64::try_from(count).expect("small");
    connection.prepare(SQL)?.query_map(params![last, count, wanted], |row| row.get(0))?.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_catalog_is_what_its_plain_definition_lists(
        (graph, asked, count) in (graphs(), 1..8_u8, 1..6_usize),
        last in prop::sample::select(&["", "a", "r", "r/", "r/a", "r/a-", "r/a-b", "r/b", "r/x", "r/x/", "r/x/a", "s", "s:1/a", "z"][..]),
    ) {
        let (_dir, index) = graph.written();
        let asked: Vec<_> = (0..3_usize).filter(|at| asked >> at & 1 == 1).map(|at| REPOSITORIES[at].to_owned()).collect();
        let expected = index.read(|connection| {
            assert_sums(connection);
            defined(connection, &asked, last, count)
        });
        prop_assert_eq!(index.catalog(&asked, last, count).expect("read"), expected.expect("read"));
    }
}

#[test]
fn the_catalog_goes_from_name_to_name_and_looks_through_no_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let index = Sqlite::open(dir.path()).expect("an index");
    assert_goes_by_indexes(&index, NEXT);
}
