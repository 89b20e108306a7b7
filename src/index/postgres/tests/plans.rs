//! No statement of a request looks through a table.

use tokio_postgres::types::{ToSql, Type};

use super::super::{images, purge, read};
use super::*;

const DIGEST: &[u8] = &[1; 32];

/// A statement, the types of its values, and the indexes that it is to use, each with the column that its search begins at.
type Case<'a> = (&'a str, &'a [Type], &'a [(&'a str, &'a str)]);

/// Returns the plan of a statement with values of these types.
async fn plan(index: &PostgresIndex, sql: String, types: Vec<Type>) -> String {
    let planned = index.server.change(LONG, move |client| {
        let (sql, types) = (sql.clone(), types.clone());
        Box::pin(async move {
            // In tables without rows, reading the whole table would be the fastest.
            client.batch_execute("SET LOCAL enable_seqscan = off").await?;
            if sql.ends_with("LIMIT $3") || sql.ends_with("LIMIT $4") {
                // A page is read in its order, from where the one before ended.
                client.batch_execute("SET LOCAL enable_sort = off").await?;
            }
            let values: Vec<(&(dyn ToSql + Sync), Type)> = types
                .iter()
                .map(|of| {
                    let value: &(dyn ToSql + Sync) = match *of {
                        Type::INT8 => &1_i64,
                        Type::INT4 => &1_i32,
                        Type::INT4_ARRAY => &(&[1_i32, 2] as &[i32]),
                        Type::INT2 => &1_i16,
                        Type::TEXT => &"x",
                        Type::BYTEA_ARRAY => &(&[DIGEST] as &[&[u8]]),
                        _ => &DIGEST,
                    };
                    (value, of.clone())
                })
                .collect();
            let rows = client.query_typed(&format!("EXPLAIN {sql}"), &values).await?;
            Ok(rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n"))
        })
    });
    planned.await.expect("planned")
}

#[tokio::test]
async fn what_a_request_reads_is_found_by_indexes() {
    let index = open(Way::Direct);
    let text = Type::TEXT;
    let cases: [Case<'_>; 9] = [
        (read::TAG, &[text.clone(), text.clone(), text.clone(), text.clone()], &[("tags_pkey", "repository")]),
        (read::OBJECT, &[Type::BYTEA, Type::INT4_ARRAY], &[("digests_digest_key", "digest"), ("objects_pkey", "id")]),
        (
            read::VISIBLE,
            &[Type::BYTEA, text.clone(), Type::INT2],
            &[("digests_digest_key", "digest"), ("visibility_pkey", "object")],
        ),
        (
            read::KNOWS_NAME,
            &[text.clone(), text.clone(), Type::BYTEA],
            &[("edges_by_child", "child"), ("digests_pkey", "id")],
        ),
        (read::LISTING, &[text.clone(), text.clone(), Type::BYTEA, Type::INT8], &[("listings_pkey", "repository")]),
        (read::URLS, &[Type::BYTEA], &[("urls_pkey", "key")]),
        (
            images::ALL,
            &[Type::INT4_ARRAY, text.clone(), Type::INT8],
            &[("tags_by_reference", "repository"), ("manifests_by_reference", "repository"), ("objects_pkey", "id")],
        ),
        (images::USED_LAST, &[Type::INT4_ARRAY, Type::INT8, Type::INT8, Type::INT8], &[("objects_by_use", "holder")]),
        (purge::UNNAME, &[text.clone(), text, Type::BYTEA_ARRAY], &[("manifests_pkey", "repository")]),
    ];
    for (sql, types, indexes) in cases {
        let plan = plan(&index, sql.to_owned(), types.to_vec()).await;
        assert!(!plan.contains("Seq Scan"), "{sql}:\n{plan}");
        // An index that is read from its first row to its last has a filter instead, or a condition on a later column.
        let lines: Vec<_> = plan.lines().collect();
        let begins_at = |two: &[&str], first: &str| {
            let condition = two[1].trim().strip_prefix("Index Cond: ").unwrap_or_default();
            condition.trim_start_matches('(').starts_with(first)
        };
        for (by, first) in indexes {
            let mut at = lines.windows(2).filter(|two| two[0].contains(&format!(" {by}")));
            assert!(at.any(|two| begins_at(two, first)), "{sql} without a search by {by}:\n{plan}");
        }
    }
}
