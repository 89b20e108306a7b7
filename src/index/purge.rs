//! Taking things out: which rows go, and which objects nothing refers to any more.

use rusqlite::{Connection, Transaction, params};

use super::IndexError;
use super::sqlite::read_digest;
use crate::oci::{Digest, Reference};

/// What to take out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    All,
    /// All that a repository (its prefix) may see.
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

/// The objects whose files are to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// All that may have a file, also those that the index had no row of.
    pub digests: Vec<Digest>,
    /// Objects that the index knew.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Deletes the rows in one transaction.
pub fn run(connection: &mut Connection, purge: &Purge) -> Result<Purged, IndexError> {
    let transaction = connection.transaction()?;
    let purged = match purge {
        Purge::All => all(&transaction)?,
        Purge::Repository(repository) => one_repository(&transaction, repository)?,
        Purge::Name { repository, name } => {
            transaction.execute_batch(ROOTS)?;
            for table in ["tags", "manifests"] {
                let condition = format!("FROM {table} WHERE repository = ?1 AND name = ?2");
                transaction.execute(
                    &format!("INSERT OR IGNORE INTO temp.roots SELECT digest {condition}"),
                    params![repository, name],
                )?;
                transaction.execute(&format!("DELETE {condition}"), params![repository, name])?;
            }
            transaction
                .execute("DELETE FROM listings WHERE repository = ?1 AND name = ?2", params![repository, name])?;
            unreachable_objects(&transaction, repository, name)?
        }
        Purge::Reference { repository, name, reference } => {
            transaction.execute_batch(ROOTS)?;
            let (condition, value): (_, Box<dyn rusqlite::ToSql>) = match reference {
                Reference::Tag(tag) => ("tag = ?3", Box::new(tag.as_str().to_owned())),
                Reference::Digest(digest) => ("digest = ?3", Box::new(digest.as_raw().to_vec())),
            };
            let tags = format!("FROM tags WHERE repository = ?1 AND name = ?2 AND {condition}");
            let insert = format!("INSERT OR IGNORE INTO temp.roots SELECT digest {tags}");
            transaction.execute(&insert, params![repository, name, value])?;
            transaction.execute(&format!("DELETE {tags}"), params![repository, name, value])?;
            if let Reference::Digest(digest) = reference {
                transaction.execute("INSERT OR IGNORE INTO temp.roots VALUES (?1)", params![digest.as_raw()])?;
            }
            unreachable_objects(&transaction, repository, name)?
        }
    };
    transaction.commit()?;
    Ok(purged)
}

/// The digests to start from when looking for what is no longer needed.
const ROOTS: &str = "CREATE TEMP TABLE IF NOT EXISTS roots (digest BLOB PRIMARY KEY) WITHOUT ROWID; \
                     DELETE FROM temp.roots;";

fn all(transaction: &Transaction<'_>) -> rusqlite::Result<Purged> {
    let purged = listed(transaction, "SELECT digest, size FROM objects")?;
    for table in ["objects", "tags", "manifests", "visibility", "edges", "listings", "urls"] {
        transaction.execute(&format!("DELETE FROM {table}"), [])?;
    }
    Ok(purged)
}

fn one_repository(transaction: &Transaction<'_>, repository: &str) -> rusqlite::Result<Purged> {
    for table in ["tags", "manifests", "visibility", "listings"] {
        let sql = format!("DELETE FROM {table} WHERE repository = ?1");
        transaction.execute(&sql, params![repository])?;
    }
    let purged =
        listed(transaction, "SELECT digest, size FROM objects WHERE digest NOT IN (SELECT digest FROM visibility)")?;
    forget(transaction, &purged)?;
    Ok(purged)
}

/// From `temp.roots` down, what no other tag or manifest leads to. A manifest that was asked for by
/// digest under the same name and lies below the roots (a platform of an index) goes with them.
fn unreachable_objects(transaction: &Transaction<'_>, repository: &str, name: &str) -> rusqlite::Result<Purged> {
    transaction.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS gone (digest BLOB PRIMARY KEY) WITHOUT ROWID;
         DELETE FROM temp.gone;
         INSERT INTO temp.gone
            WITH RECURSIVE below(digest) AS (
                SELECT digest FROM temp.roots
                UNION SELECT child FROM edges JOIN below ON edges.parent = below.digest)
            SELECT digest FROM below;",
    )?;
    transaction.execute(
        "DELETE FROM manifests WHERE repository = ?1 AND name = ?2 AND digest IN (SELECT digest FROM temp.gone)",
        params![repository, name],
    )?;
    let purged = listed(
        transaction,
        "WITH RECURSIVE kept(digest) AS (
            SELECT digest FROM tags UNION SELECT digest FROM manifests
            UNION SELECT child FROM edges JOIN kept ON edges.parent = kept.digest)
         SELECT gone.digest, objects.size FROM temp.gone LEFT JOIN objects USING (digest)
         WHERE gone.digest NOT IN (SELECT digest FROM kept)",
    )?;
    forget(transaction, &purged)?;
    // What the repository no longer leads to is not shown there either, though another may keep it.
    transaction.execute(
        "DELETE FROM visibility WHERE repository = ?1 AND digest IN (SELECT digest FROM temp.gone)
         AND digest NOT IN (
            WITH RECURSIVE kept(digest) AS (
                SELECT digest FROM tags WHERE repository = ?1
                UNION SELECT digest FROM manifests WHERE repository = ?1
                UNION SELECT child FROM edges JOIN kept ON edges.parent = kept.digest)
            SELECT digest FROM kept)",
        params![repository],
    )?;
    Ok(purged)
}

fn listed(transaction: &Transaction<'_>, sql: &str) -> rusqlite::Result<Purged> {
    let mut purged = Purged::default();
    let mut statement = transaction.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        purged.digests.push(read_digest(row)?);
        if let Some(size) = row.get::<_, Option<u64>>(1)? {
            purged.objects += 1;
            purged.bytes += size;
        }
    }
    Ok(purged)
}

fn forget(transaction: &Transaction<'_>, purged: &Purged) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM objects WHERE digest = ?1",
        "DELETE FROM visibility WHERE digest = ?1",
        "DELETE FROM edges WHERE parent = ?1",
    ] {
        let mut statement = transaction.prepare_cached(sql)?;
        for digest in &purged.digests {
            statement.execute(params![digest.as_raw()])?;
        }
    }
    Ok(())
}
