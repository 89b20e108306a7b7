//! No statement of a request looks through a table.

use tokio_postgres::types::{ToSql, Type};

use super::super::{images, purge, read};
use super::*;

const DIGEST: &[u8] = &[1; 32];

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
    let cases: [(&str, &[Type], &[&str]); 9] = [
        (read::TAG, &[text.clone(), text.clone(), text.clone(), text.clone()], &["tags_pkey"]),
        (read::OBJECT, &[Type::BYTEA, Type::INT4], &["digests_digest_key", "objects_pkey"]),
        (read::VISIBLE, &[Type::BYTEA, text.clone(), Type::INT2], &["digests_digest_key", "visibility_pkey"]),
        (read::KNOWS_NAME, &[text.clone(), text.clone(), Type::BYTEA], &["edges_by_child", "digests_pkey"]),
        (read::LISTING, &[text.clone(), text.clone(), Type::BYTEA, Type::INT8], &["listings_pkey"]),
        (read::URLS, &[Type::BYTEA], &["urls_pkey"]),
        (images::ALL, &[Type::INT4, text.clone(), Type::INT8], &["tags_by_reference", "manifests_by_reference"]),
        (images::USED_LAST, &[Type::INT4, Type::INT8, Type::INT8, Type::INT8], &["objects_by_use"]),
        (purge::UNNAME, &[text.clone(), text, Type::BYTEA_ARRAY], &["manifests_pkey"]),
    ];
    for (sql, types, indexes) in cases {
        let plan = plan(&index, sql.to_owned(), types.to_vec()).await;
        assert!(!plan.contains("Seq Scan"), "{sql}:\n{plan}");
        for by in indexes {
            assert!(plan.contains(by), "{sql} without {by}:\n{plan}");
        }
    }
}
