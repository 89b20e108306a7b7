//! Images pinned by name. A person said so, and nobody else can tell it again. So the pins are also in a file of their
//! own, from which a new index gets them when the old one was lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{ImageName, IndexError, Sqlite};
use crate::files::{self, Readers};
use crate::oci::Reference;

const PIN: &str = "INSERT OR IGNORE INTO pins (repository, name, reference) VALUES (?1, ?2, ?3)";
const UNPIN: &str = "DELETE FROM pins WHERE repository = ?1 AND name = ?2 AND reference = ?3";

/// A pin as it is written, in the database and in the file.
#[derive(Serialize, Deserialize)]
struct Row {
    repository: String,
    name: String,
    reference: String,
}

impl Sqlite {
    /// Pins an image, or takes its pin back. Returns whether that changed anything. Blocks.
    pub fn set_pin(&self, image: ImageName, is_pinned: bool) -> Result<bool, IndexError> {
        let ImageName { repository, name, reference } = image;
        let file = pins_file(self.path());
        self.change_blocking(move |connection| {
            let sql = if is_pinned { PIN } else { UNPIN };
            let is_changed = connection.execute(sql, params![repository, name, reference.to_string()])? > 0;
            if is_changed {
                write_file(&file, &rows(connection)?)?;
            }
            Ok(is_changed)
        })
    }

    /// Returns all pins, in order. Blocks.
    pub fn pins(&self) -> Result<Vec<ImageName>, IndexError> {
        let rows = self.read(rows)?;
        let pin = |row: Row| {
            let reference: Reference = row.reference.parse().ok()?;
            Some(ImageName { repository: row.repository, name: row.name, reference })
        };
        Ok(rows.into_iter().filter_map(pin).collect())
    }
}

/// Gives a new index the pins of the index before.
pub(super) fn restore(connection: &Connection, index: &Path) {
    let restored = read_file(&pins_file(index)).and_then(|rows| {
        let pin = |row: &Row| connection.execute(PIN, params![row.repository, row.name, row.reference]).map(drop);
        rows.iter().try_for_each(pin).map_err(io::Error::other)
    });
    match restored {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, "the pins of the index before are lost; pin the images again");
        }
        _ => {}
    }
}

fn rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached("SELECT repository, name, reference FROM pins ORDER BY 1, 2, 3")?;
    let rows = statement
        .query_map([], |row| Ok(Row { repository: row.get(0)?, name: row.get(1)?, reference: row.get(2)? }))?;
    rows.collect()
}

fn pins_file(index: &Path) -> PathBuf {
    index.with_file_name("pins.json")
}

fn read_file(file: &Path) -> io::Result<Vec<Row>> {
    serde_json::from_slice(&fs::read(file)?).map_err(io::Error::other)
}

fn write_file(file: &Path, rows: &[Row]) -> io::Result<()> {
    files::replace(file, &serde_json::to_vec_pretty(rows).map_err(io::Error::other)?, Readers::Group)
}
