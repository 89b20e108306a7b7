//! Values and rows of statements.

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::super::{Generation, IndexError, NoGeneration};
use crate::oci::Digest;

/// The holders whose objects this Larder serves: its own store, and the bucket, which is one for all that share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mine {
    /// The store in the cache directory. Its row says that the file is there.
    pub own: i32,
    /// The bucket. Its row says by which upload the content is there. `None`: there is no bucket.
    pub bucket: Option<i32>,
}

impl Mine {
    /// Returns both.
    pub fn all(self) -> Vec<i32> {
        [Some(self.own), self.bucket].into_iter().flatten().collect()
    }

    /// Returns whether a holder is one of them.
    pub fn has(self, holder: i32) -> bool {
        holder == self.own || self.bucket == Some(holder)
    }
}

/// A value of a statement, with its type. Without the type, the client would have to ask the server for it first, by a
/// prepared statement.
pub type Value<'a> = (&'a (dyn ToSql + Sync), Type);

/// Lists values of a statement with their types: `values![name => TEXT, size => INT8]`.
macro_rules! values {
    ($($value:expr => $type:ident),* $(,)?) => {
        &[$((&$value as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::$type)),*]
    };
}
pub(super) use values;

/// Reads a digest from a column.
pub fn digest(row: &Row, column: usize) -> Result<Digest, IndexError> {
    let raw: &[u8] = row.try_get(column)?;
    Digest::from_raw(raw).ok_or_else(|| IndexError::Server("a row has no digest where one belongs".to_owned()))
}

/// Reads the number of an upload.
pub fn generation(row: &Row, column: usize) -> Result<Option<Generation>, IndexError> {
    let text: Option<&str> = row.try_get(column)?;
    let read = |text: &str| text.parse().map_err(|error: NoGeneration| IndexError::Server(error.to_string()));
    text.map(read).transpose()
}

/// Reads a number that is never negative.
pub fn unsigned(row: &Row, column: usize) -> Result<u64, IndexError> {
    Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0))
}

/// Returns a number as the database has it.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns the raw digests, as a list for one value.
pub fn raws<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> Vec<&'a [u8]> {
    digests.into_iter().map(Digest::as_raw).collect()
}

/// Returns the beginning of a text up to its first zero byte. PostgreSQL has no such byte in a text; as nothing in the
/// index has one, what comes behind the whole text comes behind its beginning.
pub fn before_zero(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

/// Returns a text without zero bytes: a document of an upstream may have them in a media type.
pub fn without_zeros(text: &str) -> String {
    text.replace('\0', "")
}
