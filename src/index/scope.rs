//! By whose credentials an object is visible in a repository.

use std::fmt;

use rusqlite::ToSql;
use rusqlite::types::ToSqlOutput;

/// By whose credentials a repository's upstream has shown an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Larder's own.
    Own,
    /// Clients'. The object is not shown when Larder's own credentials come to decide, not even if it comes in at that
    /// moment.
    ByClients,
    /// Nobody's: the upstream shows the object to everybody.
    Public,
}

impl Scope {
    /// Returns the number by which the index keeps the scope. A number never gets another meaning.
    pub(super) const fn number(self) -> i16 {
        match self {
            Self::Own => 0,
            Self::ByClients => 1,
            Self::Public => 2,
        }
    }
}

impl Scope {
    /// Returns the scope that has this number.
    pub(super) const fn of_number(number: i16) -> Option<Self> {
        match number {
            0 => Some(Self::Own),
            1 => Some(Self::ByClients),
            2 => Some(Self::Public),
            _ => None,
        }
    }
}

impl ToSql for Scope {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.number().into())
    }
}

/// To whom an object is visible: a repository (its prefix), in a scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    pub repository: String,
    pub scope: Scope,
}

impl Viewer {
    /// Creates a viewer.
    pub fn new(repository: impl Into<String>, scope: Scope) -> Self {
        Self { repository: repository.into(), scope }
    }

    /// Creates the viewer of a repository whose upstream was asked with Larder's own credentials.
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
