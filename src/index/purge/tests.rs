use proptest::prelude::*;

use super::super::graph::{
    NAMES, OBJECTS, REPOSITORIES, TAGS, assert_goes_by_indexes, assert_sums, graphs, object, rows,
};
use super::super::{ObjectEntry, TagEntry, TagKey, Timestamp, Viewer, Write};
use super::*;
use crate::oci::{Algorithm, MediaType};

pub fn purges() -> impl Strategy<Value = Purge> {
    let place = || (prop::sample::select(&REPOSITORIES[..]), prop::sample::select(&NAMES[..]));
    let of = |(repository, name): (&str, &str), reference| Purge::Reference {
        repository: repository.to_owned(),
        name: name.to_owned(),
        reference,
    };
    prop_oneof![
        1 => Just(Purge::All),
        2 => prop::sample::select(&REPOSITORIES[..]).prop_map(|repository| Purge::Repository(repository.to_owned())),
        4 => place().prop_map(|(repository, name)| Purge::Name { repository: repository.to_owned(), name: name.to_owned() }),
        6 => (place(), prop::sample::select(&TAGS[..]))
            .prop_map(move |(place, tag)| of(place, Reference::Tag(tag.parse().expect("a tag")))),
        4 => (place(), 0..OBJECTS).prop_map(move |(place, number)| of(place, Reference::Digest(object(number)))),
    ]
}

/// Purges by the plain definition, which looks at everything.
fn defined(transaction: &Transaction<'_>, purge: &Purge) -> rusqlite::Result<Vec<String>> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| transaction.execute(sql, values).map(drop);
    transaction
        .execute_batch("CREATE TEMP TABLE gone (digest BLOB PRIMARY KEY); CREATE TEMP TABLE roots (digest BLOB);")?;
    let (repository, name, is_root): (_, _, String) = match purge {
        Purge::All => {
            transaction.execute_batch("INSERT INTO temp.gone SELECT digest FROM objects")?;
            for table in ["objects", "tags", "manifests", "visibility", "edges"] {
                run(&format!("DELETE FROM {table}"), &[])?;
            }
            return Ok(rows(transaction, "SELECT digest FROM temp.gone ORDER BY digest"));
        }
        Purge::Repository(repository) => {
            for table in ["tags", "manifests", "visibility"] {
                run(&format!("DELETE FROM {table} WHERE repository = ?1"), &[repository])?;
            }
            transaction.execute_batch(
                "INSERT INTO temp.gone SELECT digest FROM objects WHERE digest NOT IN (SELECT digest FROM visibility);
                 DELETE FROM objects WHERE digest IN (SELECT digest FROM temp.gone);
                 DELETE FROM edges WHERE parent IN (SELECT digest FROM temp.gone);",
            )?;
            return Ok(rows(transaction, "SELECT digest FROM temp.gone ORDER BY digest"));
        }
        Purge::Name { repository, name } => (repository, name, "TRUE".to_owned()),
        Purge::Reference { repository, name, reference: Reference::Tag(tag) } => {
            (repository, name, format!("tag = '{tag}'"))
        }
        Purge::Reference { repository, name, reference: Reference::Digest(digest) } => {
            run("INSERT INTO temp.roots VALUES (?1)", &[&digest.as_raw()])?;
            (repository, name, format!("digest = x'{}'", digest.hex()))
        }
    };
    let of_name = "repository = ?1 AND name = ?2";
    let place: [&dyn rusqlite::ToSql; 2] = [repository, name];
    run(&format!("INSERT INTO temp.roots SELECT digest FROM tags WHERE {of_name} AND {is_root}"), &place)?;
    run(&format!("DELETE FROM tags WHERE {of_name} AND {is_root}"), &place)?;
    if matches!(purge, Purge::Name { .. }) {
        run(&format!("INSERT INTO temp.roots SELECT digest FROM manifests WHERE {of_name}"), &place)?;
    }
    let below = "INSERT INTO temp.gone WITH RECURSIVE below(digest) AS (SELECT digest FROM temp.roots \
        UNION SELECT child FROM edges JOIN below ON edges.parent = below.digest) SELECT digest FROM below";
    run(below, &[])?;
    run(&format!("DELETE FROM manifests WHERE {of_name} AND digest IN (SELECT digest FROM temp.gone)"), &place)?;
    let kept = |condition: &str| {
        format!(
            "WITH RECURSIVE kept(digest) AS (SELECT digest FROM tags {condition} UNION SELECT digest FROM manifests {condition} \
             UNION SELECT child FROM edges JOIN kept ON edges.parent = kept.digest) SELECT digest FROM kept"
        )
    };
    // What is kept is found out before anything is deleted.
    transaction.execute_batch(&format!(
        "CREATE TEMP TABLE kept AS {}; CREATE TEMP TABLE here AS {};",
        kept(""),
        kept(&format!("WHERE repository = '{repository}'"))
    ))?;
    let unseen = "DELETE FROM visibility WHERE repository = ?1 AND digest IN (SELECT digest FROM temp.gone) \
        AND digest NOT IN (SELECT digest FROM temp.here)";
    run(unseen, &[repository])?;
    transaction.execute_batch("DELETE FROM temp.gone WHERE digest IN (SELECT digest FROM temp.kept)")?;
    for (table, column) in [("objects", "digest"), ("visibility", "digest"), ("edges", "parent")] {
        run(&format!("DELETE FROM {table} WHERE {column} IN (SELECT digest FROM temp.gone)"), &[])?;
    }
    Ok(rows(transaction, "SELECT digest FROM temp.gone ORDER BY digest"))
}

fn all_rows(connection: &Connection) -> Vec<Vec<String>> {
    ["objects", "tags", "manifests", "visibility", "edges"]
        .map(|table| rows(connection, &format!("SELECT * FROM {table}")))
        .into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_purge_in_steps_takes_out_what_its_plain_definition_does((graph, purge) in (graphs(), purges())) {
        let (_dir, index) = graph.written();
        // By the definition, in a transaction that is rolled back.
        let asked = purge.clone();
        let (expected, mut digests) = index
            .change_blocking(move |connection| {
                let transaction = connection.transaction()?;
                let digests = defined(&transaction, &asked)?;
                Ok((all_rows(&transaction), digests))
            })
            .expect("purged");
        let mut removed = Purged::default();
        index
            .purge(&purge, |step| {
                // The files of these objects are still there, and nothing in the index leads to them.
                for digest in &step.digests {
                    assert!(index.object(digest).expect("read").is_none());
                    assert!(!index.read(|connection| is_seen(connection, digest)).expect("read"));
                    let has_root = index.read(|connection| is_root(connection, None, digest)).expect("read");
                    assert!(!has_root || matches!(purge, Purge::Repository(_)), "another may have a tag of it");
                }
                removed.add(step);
            })
            .expect("purged");
        let found = index.read(|connection| {
            assert_sums(connection);
            Ok(all_rows(connection))
        });
        prop_assert_eq!(found.expect("read"), expected);
        let mut found: Vec<_> =
            removed.digests.iter().map(|digest| format!("{:?}", rusqlite::types::ValueRef::Blob(digest.as_raw()))).collect();
        found.sort_unstable();
        digests.sort_unstable();
        prop_assert_eq!(found, digests);
    }
}

fn digest(number: u32) -> Digest {
    Digest::of(Algorithm::Sha256, &number.to_le_bytes())
}

/// Makes an index with `count` images of one name: each is an index, a manifest below it, and a layer that all share.
fn images(count: u32) -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().expect("a directory");
    let index = Sqlite::open(dir.path()).expect("an index");
    for image in 0..count {
        let (top, manifest, layer) = (digest(3 * image), digest(3 * image + 1), digest(2));
        for object in [top, manifest, layer] {
            let entry = ObjectEntry { size: 1, media_type: None, stored_at: Timestamp(1), generation: None };
            index.apply([
                Write::Object { digest: object, entry },
                Write::Visible { viewer: Viewer::own("r"), digest: object },
            ]);
        }
        index.apply([
            Write::Edges { parent: top, children: vec![manifest] },
            Write::Edges { parent: manifest, children: vec![layer] },
        ]);
        let key =
            TagKey { repository: "r".to_owned(), shelf: String::new(), name: "a".to_owned(), tag: image.to_string() };
        let entry = TagEntry { digest: top, media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
        index.apply([Write::Tag { key, entry }]);
    }
    index.flush_blocking_here();
    (dir, index)
}

#[test]
fn what_leads_to_a_layer_of_very_many_images_is_found_at_the_first() {
    let (_dir, index) = images(1_000);
    let looked_at = |reach: &Reach<'_>| reach.known.len();
    index
        .read(|connection| {
            let mut reach = Reach::new(connection, Some("r"));
            assert!(reach.is_kept(&digest(2))?);
            assert!(looked_at(&reach) <= 3, "{}", looked_at(&reach));
            let mut reach = Reach::new(connection, Some("other"));
            assert!(!reach.is_kept(&digest(2))?);
            assert_eq!(looked_at(&reach), 2_001, "only what nothing leads to is looked for everywhere, once");
            Ok(())
        })
        .expect("read");
}

#[test]
fn a_purge_of_much_lets_others_write_between_its_steps() {
    let (_dir, index) = images(1_000);
    let mut seen = 0;
    index
        .purge(&Purge::Name { repository: "r".to_owned(), name: "a".to_owned() }, |step| {
            assert!(step.digests.len() <= OBJECTS_AT_ONCE);
            // Waits only for the step that is under way.
            index.apply([Write::Used { digest: digest(1), at: Timestamp(2) }]);
            index.flush_blocking_here();
            seen += step.digests.len();
        })
        .expect("purged");
    assert_eq!(seen, 2_001);
}

#[test]
fn what_was_pulled_again_while_it_is_purged_stays() {
    let (_dir, index) = images(1_000);
    let mut is_first = true;
    index
        .purge(&Purge::Name { repository: "r".to_owned(), name: "a".to_owned() }, |_| {
            if std::mem::take(&mut is_first) {
                let place = ("r".to_owned(), "b".to_owned());
                let again = |number| Write::Manifest {
                    repository: place.0.clone(),
                    name: place.1.clone(),
                    digest: digest(number),
                    at: Timestamp(1),
                };
                index.apply([again(0), again(3)]);
            }
        })
        .expect("purged");
    assert!(index.object(&digest(0)).expect("read").is_some() && index.object(&digest(6)).expect("read").is_none());
    assert!(index.is_visible(&Viewer::own("r"), &digest(2)).expect("read"), "what they lead to stays, too");
}

#[test]
fn no_step_of_a_purge_looks_through_a_table() {
    let (_dir, index) = images(1);
    let of_name = "repository = ?1 AND name = ?2";
    for table in ["tags", "manifests", "listings"] {
        assert_goes_by_indexes(&index, &delete_some(table, of_name));
    }
    for table in ["tags", "manifests", "listings"] {
        assert_goes_by_indexes(&index, &delete_some(table, OF_REPOSITORY));
    }
    for sql in [BY_TAG, BY_DIGEST, UNNAME, HIDE, SHOWN, KNOWN] {
        assert_goes_by_indexes(&index, sql);
    }
    for sql in FORGET {
        assert_goes_by_indexes(&index, sql);
    }
}

#[test]
fn after_all_was_purged_what_comes_is_counted_as_before() {
    let (_dir, index) = images(3);
    index.purge(&Purge::All, drop).expect("purged");
    let entry = TagEntry { digest: digest(0), media_type: MediaType::new("m"), size: 1, checked_at: Timestamp(1) };
    let key = TagKey { repository: "r".to_owned(), shelf: String::new(), name: "a".to_owned(), tag: "1".to_owned() };
    index.apply([Write::Tag { key, entry }, Write::Visible { viewer: Viewer::own("r"), digest: digest(0) }]);
    index.flush_blocking_here();
    let counted = index.read(|connection| {
        assert_sums(connection);
        Ok(rows(connection, "SELECT amount FROM totals WHERE kind = 'tags'"))
    });
    assert_eq!(counted.expect("read"), ["Integer(1)"]);
    assert_eq!(index.catalog(&["r".to_owned()], "", 10).expect("read"), ["r/a"]);
}
