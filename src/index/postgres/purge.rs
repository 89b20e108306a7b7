//! Purges: which rows go, and which objects nothing refers to any more. Each step is a short transaction of its own, so
//! that other writes come in between. See [`super::super::purge`] for what a purge takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use tokio_postgres::Client;

use super::super::{IndexError, Purge, Purged};
use super::apply::{forget, sweep};
use super::changes::{self, note_purge, note_purge_of_all};
use super::read::below;
use super::server::{LONG, Server, Work};
use super::values::{Mine, digest, generation, raws, unsigned, values};
use super::writer::Shared;
use crate::oci::{Digest, Reference};

/// Rows that go in one step.
const ROWS: i64 = 500;
/// Lists that go in one step: they are large.
const LISTS: i64 = 50;
/// Objects that go in one step, each with its rows.
const OBJECTS_AT_ONCE: usize = 128;
/// Objects that are looked at in one read.
const LOOKED_AT: i64 = 10_000;

const BY_TAG: &str = "DELETE FROM larder.tags WHERE repository = $1 AND name = $2 AND tag = $3 RETURNING digest";
const BY_DIGEST: &str = "DELETE FROM larder.tags WHERE repository = $1 AND name = $2 AND digest = $3 RETURNING digest";
pub(super) const UNNAME: &str = "DELETE FROM larder.manifests WHERE repository = $1 AND name = $2 AND digest = ANY($3)";

/// Whether a tag or a noted manifest has a digest `up.digest`, in any repository.
const ANYWHERE: &str = "(EXISTS (SELECT 1 FROM larder.tags AS t WHERE t.digest = up.digest) \
    OR EXISTS (SELECT 1 FROM larder.manifests AS m WHERE m.digest = up.digest))";
/// The same in the repository `$2`.
const HERE: &str = "(EXISTS (SELECT 1 FROM larder.tags AS t WHERE t.digest = up.digest AND t.repository = $2) \
    OR EXISTS (SELECT 1 FROM larder.manifests AS m WHERE m.digest = up.digest AND m.repository = $2))";

const LOCK: &str = "SELECT id, digest FROM larder.digests WHERE digest = ANY($1) ORDER BY digest FOR UPDATE";
const SEEN: &str = "SELECT DISTINCT object FROM larder.visibility WHERE object = ANY($1)";
const KNOWN: &str = "SELECT DISTINCT id FROM larder.objects WHERE id = ANY($1)";
const HIDE: &str = "DELETE FROM larder.visibility WHERE object = ANY($1) AND repository = $2";
const DROP: &str = "DELETE FROM larder.objects WHERE id = ANY($1) RETURNING id, holder, size, generation";

const SHOWN: &str = "SELECT object, bool_or(repository = $1), digest FROM larder.visibility \
    JOIN larder.digests ON id = object WHERE object > $2 GROUP BY object, digest ORDER BY object LIMIT $3";
const UNSEEN: &str = "SELECT DISTINCT id, digest, \
        NOT EXISTS (SELECT 1 FROM larder.visibility WHERE object = objects.id) \
    FROM larder.objects JOIN larder.digests USING (id) WHERE id > $1 ORDER BY id LIMIT $2";
const ALL: &str = "SELECT id, TRUE, digest FROM larder.digests WHERE id > $1 ORDER BY id LIMIT $2";

/// A purge under way.
pub struct Purging {
    pub server: Server,
    pub shared: Arc<Shared>,
    /// Gets the result of each step. If nobody takes it any more, the purge still runs to its end.
    pub steps: Sender<Result<Purged, IndexError>>,
}

impl Purging {
    /// Purges, in steps.
    pub async fn run(&self, purge: &Purge) -> Result<(), IndexError> {
        let purged = self.purge(purge).await;
        self.server.change(LONG, |client| Box::pin(changes::forget(client))).await?;
        purged
    }

    async fn purge(&self, purge: &Purge) -> Result<(), IndexError> {
        match purge {
            Purge::All => self.all().await,
            Purge::Repository(repository) => self.repository(repository).await,
            Purge::Name { repository, name } => {
                let mut roots = self.delete("tags", repository, Some(name), ROWS).await?;
                roots.extend(self.delete("manifests", repository, Some(name), ROWS).await?);
                let lists = self.delete("listings", repository, Some(name), LISTS).await?;
                self.tell(of_rows(roots.len() + lists.len())).await;
                let below = self.sorted_below(roots).await?;
                self.unkept(repository, &below).await
            }
            Purge::Reference { repository, name, reference } => {
                let (roots, tags) = self.delete_reference(repository, name, reference).await?;
                self.tell(of_rows(tags)).await;
                let below = self.sorted_below(roots).await?;
                self.unname(repository, name, &below).await?;
                self.unkept(repository, &below).await
            }
        }
    }

    async fn tell(&self, step: Purged) {
        // A caller that has left needs to hear nothing.
        let _ = self.steps.send(Ok(step)).await;
    }

    /// Does a step in a transaction of its own.
    async fn step<T: Send + 'static>(
        &self,
        step: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let own = self.shared.mine().own;
        let done = self.server.change(LONG, move |client| {
            let step = step.clone();
            Box::pin(async move {
                let done = step(client).await?;
                note_purge(client, own, &[]).await?;
                Ok(done)
            })
        });
        done.await
    }

    /// Deletes the rows of a repository, or of a name in it, in steps of `count`. Returns their digests.
    async fn delete(
        &self,
        table: &'static str,
        repository: &str,
        name: Option<&str>,
        count: i64,
    ) -> Result<Vec<Digest>, IndexError> {
        let (key, found) = match table {
            "tags" => ("repository, name, tag, shelf", "digest"),
            "manifests" => ("repository, name, digest", "digest"),
            // Lists lead to nothing; they are counted.
            _ => ("repository, name, page", "page"),
        };
        let of = if name.is_some() { "repository = $1 AND name = $2" } else { "repository = $1 AND $2 = ''" };
        let sql = format!(
            "DELETE FROM larder.{table} WHERE ({key}) IN \
             (SELECT {key} FROM larder.{table} WHERE {of} ORDER BY {key} LIMIT $3 FOR UPDATE) RETURNING {found}"
        );
        let (repository, name) = (repository.to_owned(), name.unwrap_or_default().to_owned());
        let mut all = Vec::new();
        loop {
            let (sql, repository, name) = (sql.clone(), repository.clone(), name.clone());
            let deleted = self
                .step(move |client| {
                    let (sql, repository, name) = (sql.clone(), repository.clone(), name.clone());
                    Box::pin(async move {
                        let list = values![repository => TEXT, name => TEXT, count => INT8];
                        digests(&client_rows(client, &sql, list).await?)
                    })
                })
                .await?;
            if deleted.is_empty() {
                return Ok(all);
            }
            all.extend(deleted);
        }
    }

    /// Deletes one tag, or the tags of one manifest. Returns the manifests that they led to, and the number of tags.
    async fn delete_reference(
        &self,
        repository: &str,
        name: &str,
        reference: &Reference,
    ) -> Result<(Vec<Digest>, usize), IndexError> {
        let (repository, name, reference) = (repository.to_owned(), name.to_owned(), reference.clone());
        self.step(move |client| {
            let (repository, name, reference) = (repository.clone(), name.clone(), reference.clone());
            Box::pin(async move {
                match reference {
                    Reference::Tag(tag) => {
                        let tag = tag.as_str();
                        let list = values![repository => TEXT, name => TEXT, tag => TEXT];
                        let roots = digests(&client_rows(client, BY_TAG, list).await?)?;
                        let count = roots.len();
                        Ok((roots, count))
                    }
                    Reference::Digest(digest) => {
                        let list = values![repository => TEXT, name => TEXT, digest.as_raw() => BYTEA];
                        Ok((vec![digest], client_rows(client, BY_DIGEST, list).await?.len()))
                    }
                }
            })
        })
        .await
    }

    /// Returns the roots and all objects below them, in the order in which rows are locked.
    async fn sorted_below(&self, roots: Vec<Digest>) -> Result<Vec<Digest>, IndexError> {
        let found = self
            .server
            .read(LONG, move |client| {
                let roots = roots.clone();
                Box::pin(async move { below(client, &roots).await })
            })
            .await?;
        let mut below: Vec<_> = found.into_iter().collect();
        below.sort_unstable_by(|one, other| one.as_raw().cmp(other.as_raw()));
        Ok(below)
    }

    /// Removes manifests from those of a name: one that was requested by digest and lies below what is purged (a
    /// platform of an index) goes with it.
    async fn unname(&self, repository: &str, name: &str, below: &[Digest]) -> Result<(), IndexError> {
        for chunk in below.chunks(OBJECTS_AT_ONCE) {
            let (repository, name, chunk) = (repository.to_owned(), name.to_owned(), chunk.to_vec());
            let unnamed = self
                .step(move |client| {
                    let (repository, name, chunk) = (repository.clone(), name.clone(), chunk.clone());
                    Box::pin(async move {
                        let raws = raws(&chunk);
                        let list = values![repository => TEXT, name => TEXT, raws => BYTEA_ARRAY];
                        Ok(client.execute_typed(UNNAME, list).await?)
                    })
                })
                .await?;
            self.tell(of_rows(usize::try_from(unnamed).unwrap_or(usize::MAX))).await;
        }
        Ok(())
    }

    /// Removes the objects that no tag or manifest leads to any more, and hides those that none of the repository leads
    /// to, even if another repository keeps them.
    async fn unkept(&self, repository: &str, below: &[Digest]) -> Result<(), IndexError> {
        for chunk in below.chunks(OBJECTS_AT_ONCE) {
            let (place, chunk) = (repository.to_owned(), chunk.to_vec());
            let (unkept, unseen) = self
                .server
                .read(LONG, move |client| {
                    let (place, chunk) = (place.clone(), chunk.clone());
                    Box::pin(async move { find_unkept(client, &place, &chunk).await })
                })
                .await?;
            if !unkept.is_empty() {
                // An object may have been pulled again meanwhile.
                let step = self.forget_step(unkept, Wanted::Roots);
                self.tell(step.await?).await;
            }
            if !unseen.is_empty() {
                let place = repository.to_owned();
                let hidden = self
                    .step(move |client| {
                        let (place, unseen) = (place.clone(), unseen.clone());
                        Box::pin(async move { hide(client, &place, &unseen).await })
                    })
                    .await?;
                self.tell(of_rows(hidden)).await;
            }
        }
        Ok(())
    }

    async fn forget_step(&self, objects: Vec<Digest>, wanted: Wanted) -> Result<Purged, IndexError> {
        let mine = self.shared.mine();
        let forgotten = self.server.change(LONG, move |client| {
            let (objects, wanted) = (objects.clone(), wanted.clone());
            Box::pin(async move {
                let purged = forget_objects(client, mine, &objects, &wanted).await?;
                // A purge of all is noted at its end.
                if !matches!(wanted, Wanted::None) {
                    note_purge(client, mine.own, &purged.digests).await?;
                }
                Ok(purged)
            })
        });
        forgotten.await
    }

    async fn repository(&self, repository: &str) -> Result<(), IndexError> {
        for (table, rows) in [("tags", ROWS), ("manifests", ROWS), ("listings", LISTS)] {
            let deleted = self.delete(table, repository, None, rows).await?;
            self.tell(of_rows(deleted.len())).await;
        }
        let mut last = 0;
        loop {
            let place = repository.to_owned();
            let (end, shown) = self
                .server
                .read(LONG, move |client| {
                    let place = place.clone();
                    Box::pin(async move {
                        let list = values![place => TEXT, last => INT8, LOOKED_AT => INT8];
                        page_of(&client_rows(client, SHOWN, list).await?, 1, 2)
                    })
                })
                .await?;
            for chunk in in_order(shown).chunks(OBJECTS_AT_ONCE) {
                let step = self.forget_step(chunk.to_vec(), Wanted::SeenBeside(repository.to_owned()));
                self.tell(step.await?).await;
            }
            match end {
                Some(end) => last = end,
                None => break,
            }
        }
        // Objects that no repository showed before are found only here.
        let mut last = 0;
        loop {
            let (end, unseen) = self
                .server
                .read(LONG, move |client| {
                    Box::pin(async move {
                        let list = values![last => INT8, LOOKED_AT => INT8];
                        page_of(&client_rows(client, UNSEEN, list).await?, 2, 1)
                    })
                })
                .await?;
            for chunk in in_order(unseen).chunks(OBJECTS_AT_ONCE) {
                let step = self.forget_step(chunk.to_vec(), Wanted::Seen);
                self.tell(step.await?).await;
            }
            match end {
                Some(end) => last = end,
                None => return Ok(()),
            }
        }
    }

    async fn all(&self) -> Result<(), IndexError> {
        for table in ["tags", "manifests", "visibility", "listings", "urls", "edges"] {
            // By the place of the rows: that is the fastest way, and none is missed that was there before.
            let sql = format!(
                "DELETE FROM larder.{table} WHERE ctid = ANY(ARRAY( \
                 SELECT ctid FROM larder.{table} LIMIT $1 FOR UPDATE SKIP LOCKED))"
            );
            loop {
                let sql = sql.clone();
                let deleted = self
                    .step(move |client| {
                        let sql = sql.clone();
                        Box::pin(async move { Ok(client.execute_typed(&sql, values![LOOKED_AT => INT8]).await?) })
                    })
                    .await?;
                if deleted == 0 {
                    break;
                }
            }
        }
        let mut last = 0;
        loop {
            let (end, objects) = self
                .server
                .read(LONG, move |client| {
                    Box::pin(async move {
                        page_of(&client_rows(client, ALL, values![last => INT8, ROWS => INT8]).await?, 1, 2)
                    })
                })
                .await?;
            let Some(end) = end else {
                break;
            };
            last = end;
            self.tell(self.forget_step(in_order(objects), Wanted::None).await?).await;
        }
        let own = self.shared.mine().own;
        self.server.change(LONG, move |client| Box::pin(note_purge_of_all(client, own))).await
    }
}

/// Which objects stay.
#[derive(Clone, Debug)]
enum Wanted {
    /// None, not even those that something leads to since a moment ago.
    None,
    /// Those that a tag or a noted manifest has.
    Roots,
    /// Those that are visible in any repository.
    Seen,
    /// The same once they are hidden in this repository, and those that no store has.
    SeenBeside(String),
}

fn of_rows(rows: usize) -> Purged {
    Purged { rows: rows as u64, ..Purged::default() }
}

async fn client_rows(
    client: &Client,
    sql: &str,
    values: &[super::values::Value<'_>],
) -> Result<Vec<tokio_postgres::Row>, IndexError> {
    Ok(client.query_typed(sql, values).await?)
}

/// Returns the digests of the first column.
fn digests(rows: &[tokio_postgres::Row]) -> Result<Vec<Digest>, IndexError> {
    rows.iter().map(|row| digest(row, 0)).collect()
}

/// Sorts digests in the order in which rows are locked.
fn in_order(mut digests: Vec<Digest>) -> Vec<Digest> {
    digests.sort_unstable_by(|one, other| one.as_raw().cmp(other.as_raw()));
    digests
}

/// Returns the number of the last row if there may be more, and the digests of the rows that are marked.
fn page_of(rows: &[tokio_postgres::Row], marked: usize, of: usize) -> Result<(Option<i64>, Vec<Digest>), IndexError> {
    let mut found = Vec::new();
    for row in rows {
        if row.try_get::<_, bool>(marked)? {
            found.push(digest(row, of)?);
        }
    }
    let end = rows.last().map(|row| row.try_get(0)).transpose()?;
    Ok((end, found))
}

/// Returns which of these objects nothing leads to any more, and which nothing of the repository leads to. The search
/// goes upwards for each object, and ends at the first tag or manifest: most objects are found by their first parent.
async fn find_unkept(
    client: &Client,
    repository: &str,
    objects: &[Digest],
) -> Result<(Vec<Digest>, Vec<Digest>), IndexError> {
    let reached = |root: &str| {
        format!(
            "EXISTS (WITH RECURSIVE above(id) AS (SELECT d.id UNION SELECT parent FROM larder.edges \
                JOIN above ON child = above.id) SELECT 1 FROM above JOIN larder.digests AS up USING (id) WHERE {root})"
        )
    };
    let sql = format!(
        "SELECT w.digest, {ANYWHERE} OR {}, {HERE} OR {} FROM unnest($1) AS w (digest) \
         LEFT JOIN larder.digests AS d USING (digest) CROSS JOIN LATERAL (SELECT w.digest) AS up (digest)",
        reached(ANYWHERE),
        reached(HERE)
    );
    let raws = raws(objects);
    let (mut unkept, mut unseen) = (Vec::new(), Vec::new());
    for row in client.query_typed(&sql, values![raws => BYTEA_ARRAY, repository => TEXT]).await? {
        let (is_kept, is_here): (bool, bool) = (row.try_get(1)?, row.try_get(2)?);
        if !is_kept {
            unkept.push(digest(&row, 0)?);
        } else if !is_here {
            unseen.push(digest(&row, 0)?);
        }
    }
    Ok((in_order(unkept), in_order(unseen)))
}

/// Returns which of these digests a tag or a noted manifest has: in `repository`, or in any.
async fn roots_among(
    client: &Client,
    repository: Option<&str>,
    objects: &[Digest],
) -> Result<BTreeSet<Vec<u8>>, IndexError> {
    let root = if repository.is_some() { HERE } else { ANYWHERE };
    let sql = format!("SELECT digest FROM unnest($1) AS up (digest) WHERE $2 IS NOT NULL AND {root}");
    let (raws, repository) = (raws(objects), repository.unwrap_or_default());
    let rows = client.query_typed(&sql, values![raws => BYTEA_ARRAY, repository => TEXT]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

async fn ids_of(client: &Client, sql: &str, ids: &[i64]) -> Result<BTreeSet<i64>, IndexError> {
    let rows = client.query_typed(sql, values![ids => INT8_ARRAY]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

/// Locks the numbers of objects, so that nothing new refers to them before the end of the step.
async fn lock(client: &Client, objects: &[Digest]) -> Result<Vec<(i64, Digest)>, IndexError> {
    let raws = raws(objects);
    let rows = client.query_typed(LOCK, values![raws => BYTEA_ARRAY]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, digest(row, 1)?))).collect()
}

/// Forgets objects, except those that are wanted.
async fn forget_objects(
    client: &Client,
    mine: Mine,
    objects: &[Digest],
    wanted: &Wanted,
) -> Result<Purged, IndexError> {
    let mut purged = Purged::default();
    let mut locked = lock(client, objects).await?;
    let ids: Vec<_> = locked.iter().map(|(id, _)| *id).collect();
    // What others wrote before they lost the lock is seen from here on.
    let numbered: BTreeSet<_> = locked.iter().map(|(_, digest)| digest.as_raw().to_vec()).collect();
    let mut without_number = objects.iter().filter(|digest| !numbered.contains(digest.as_raw())).collect::<Vec<_>>();
    match wanted {
        Wanted::None => {}
        Wanted::Roots => {
            let roots = roots_among(client, None, objects).await?;
            locked.retain(|(_, digest)| !roots.contains(digest.as_raw()));
            without_number.retain(|digest| !roots.contains(digest.as_raw()));
        }
        Wanted::Seen => {
            let seen = ids_of(client, SEEN, &ids).await?;
            locked.retain(|(id, _)| !seen.contains(id));
            without_number.clear();
        }
        Wanted::SeenBeside(repository) => {
            let list = values![ids => INT8_ARRAY, repository => TEXT];
            purged.rows = client.execute_typed(HIDE, list).await?;
            let (seen, known) = (ids_of(client, SEEN, &ids).await?, ids_of(client, KNOWN, &ids).await?);
            // What no store has is hidden, and no object of a purge.
            let hidden: Vec<_> = ids.iter().copied().filter(|id| !known.contains(id)).collect();
            sweep(client, &hidden).await?;
            locked.retain(|(id, _)| known.contains(id) && !seen.contains(id));
            without_number.clear();
        }
    }
    let ids: Vec<_> = locked.iter().map(|(id, _)| *id).collect();
    let (mut stored, mut served) = (BTreeSet::new(), BTreeMap::new());
    for row in client.query_typed(DROP, values![ids => INT8_ARRAY]).await? {
        let id = row.try_get::<_, i64>(0)?;
        stored.insert(id);
        if mine.has(row.try_get(1)?) {
            let (size, upload) = (unsigned(&row, 2)?, generation(&row, 3)?);
            // The bucket's row says how long the object is; see [`super::read::object`].
            if upload.is_some() || !served.contains_key(&id) {
                served.insert(id, size);
            }
            let digest = locked.iter().find(|(locked, _)| *locked == id).map(|(_, digest)| *digest);
            purged.uploads.extend(digest.zip(upload));
        }
    }
    purged.objects += served.len() as u64;
    purged.bytes += served.values().sum::<u64>();
    forget(client, &ids).await?;
    if matches!(wanted, Wanted::None) {
        // Of the others, no store has a file.
        locked.retain(|(id, _)| stored.contains(id));
        without_number.clear();
    }
    purged.digests = locked.into_iter().map(|(_, digest)| digest).chain(without_number.into_iter().copied()).collect();
    Ok(purged)
}

/// Hides objects in a repository, unless they were requested again meanwhile. Returns how many were visible there.
async fn hide(client: &Client, repository: &str, objects: &[Digest]) -> Result<usize, IndexError> {
    let locked = lock(client, objects).await?;
    let roots = roots_among(client, Some(repository), objects).await?;
    let ids: Vec<_> =
        locked.into_iter().filter(|(_, digest)| !roots.contains(digest.as_raw())).map(|(id, _)| id).collect();
    let hidden = client.execute_typed(HIDE, values![ids => INT8_ARRAY, repository => TEXT]).await?;
    sweep(client, &ids).await?;
    Ok(usize::try_from(hidden).unwrap_or(usize::MAX))
}
