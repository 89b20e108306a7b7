//! The number of an upload: a part of the key under which content is in a bucket.

use std::fmt;
use std::str::FromStr;

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};

use crate::random::{self, NoRandomness};

/// The number of one upload of an object's content into the bucket of `[storage.s3]`.
///
/// It is random and new for each upload, so that no two uploads have the same key: whoever deletes what one upload
/// brought never meets what another one brings. The row of the object says which upload is the one to read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation([u8; 16]);

/// The error that a text is no generation.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this is no generation of an upload")]
pub struct NoGeneration;

impl Generation {
    /// Makes the number of a new upload.
    pub fn new() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 16];
        random::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generation({self})")
    }
}

impl FromStr for Generation {
    type Err = NoGeneration;

    fn from_str(text: &str) -> Result<Self, NoGeneration> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(|number| Self(number.to_be_bytes())).ok_or(NoGeneration)
    }
}

impl ToSql for Generation {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
    }
}

impl FromSql for Generation {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let bytes = value.as_blob()?;
        let wrong = |_| FromSqlError::InvalidBlobSize { expected_size: 16, blob_size: bytes.len() };
        bytes.try_into().map(Self).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_read_as_it_is_written() {
        let generation = Generation::new().expect("random numbers");
        assert_eq!(generation.to_string().parse::<Generation>().expect("a generation"), generation);
        assert_ne!(generation, Generation::new().expect("random numbers"));
        for wrong in ["", "0", "0123456789abcdef0123456789abcdeg", "+123456789abcdef0123456789abcdef", "ABCDEF"] {
            assert!(wrong.parse::<Generation>().is_err(), "{wrong}");
        }
    }
}
