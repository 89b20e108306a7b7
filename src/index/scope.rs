//! Why a repository shows an object.

use std::fmt;

use rusqlite::ToSql;
use rusqlite::types::ToSqlOutput;

/// By whose credentials a repository's upstream has shown an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Larder's own.
    Own,
    /// Those of clients. It is not shown when Larder's own are to decide, not even if it comes in just then.
    ByClients,
    /// Nobody's: the upstream shows it to everybody.
    Public,
}

impl Scope {
    /// As the index keeps it; a number never gets another meaning.
    const fn number(self) -> i64 {
        match self {
            Self::Own => 0,
            Self::ByClients => 1,
            Self::Public => 2,
        }
    }
}

impl ToSql for Scope {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.number().into())
    }
}

/// Who is shown an object: a repository (its prefix), in a scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    pub repository: String,
    pub scope: Scope,
}

impl Viewer {
    pub fn new(repository: impl Into<String>, scope: Scope) -> Self {
        Self { repository: repository.into(), scope }
    }

    /// A repository whose upstream was asked with Larder's own credentials.
    pub fn own(repository: impl Into<String>) -> Self {
        Self::new(repository, Scope::Own)
    }
}

impl fmt::Display for Viewer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = match self.scope {
            Scope::Own => "",
            Scope::ByClients => " by clients",
            Scope::Public => " in public",
        };
        write!(formatter, "{}{scope}", self.repository)
    }
}
