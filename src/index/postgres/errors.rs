//! What an error says: about the server, about the connection, and about the writes that met it. Pure.
//!
//! The codes: <https://www.postgresql.org/docs/15/errcodes-appendix.html>.

use deadpool_postgres::PoolError;
use deadpool_postgres::TimeoutType;
use tokio_postgres::error::SqlState;

use super::super::IndexError;

/// Why the server has not taken writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It takes none from anybody, or cannot be reached now.
    Away,
    /// It answers, and does not take these: it may not write, or cannot.
    Refused,
    /// Somebody else holds a lock.
    Blocked,
    /// They took too long.
    Slow,
    /// The same may succeed a moment later.
    Passing,
    /// One of them is nothing that it could ever take.
    Wrong,
}

fn code(error: &IndexError) -> Option<&str> {
    match error {
        IndexError::Postgres(error) => error.code().map(SqlState::code),
        _ => None,
    }
}

/// Returns what kept the server from taking writes.
pub fn trouble_of(error: &IndexError) -> Trouble {
    match (error, code(error).unwrap_or_default()) {
        (IndexError::Away(_) | IndexError::Busy, _) => Trouble::Away,
        (IndexError::Late, _) | (_, "57014") => Trouble::Slow,
        (_, "55P03") => Trouble::Blocked,
        // The tables are gone: they are made anew.
        (_, "42P01" | "3F000") => Trouble::Passing,
        (_, text) if text.starts_with("40") => Trouble::Passing,
        _ if is_lost(error) || is_shut(error) => Trouble::Away,
        // 53: memory or disk is short; 58: the disk fails; 42501: Larder's user may not write.
        (_, text) if text.starts_with("53") || text.starts_with("58") || text == "42501" => Trouble::Refused,
        _ => Trouble::Wrong,
    }
}

/// Returns whether another transaction was in the way: a deadlock, or a lock that was held too long.
pub fn is_conflict(error: &IndexError) -> bool {
    matches!(code(error), Some("40001" | "40P01" | "55P03"))
}

/// Returns whether the connection is of no more use: it is closed, the server shuts down or starts, or it has become
/// one that can only be read (25006, after a failover: a new connection leads to the new primary).
pub fn is_lost(error: &IndexError) -> bool {
    let IndexError::Postgres(error) = error else {
        return false;
    };
    match error.code() {
        // Without a code, it is no answer of the server. A value that cannot be written is this side's fault.
        None => error.is_closed() || std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>()),
        Some(code) => {
            let text = code.code();
            // 08: connection, 57P: shutdown and start, 53300: too many connections.
            text.starts_with("08") || text.starts_with("57P") || ["53300", "25006"].contains(&text)
        }
    }
}

/// Returns whether nobody is let in: the login is wrong (28), or there is no such database (3D).
fn is_shut(error: &IndexError) -> bool {
    code(error).is_some_and(|text| text.starts_with("28") || text.starts_with("3D"))
}

/// Returns whether an error gives reason to look whether the server serves at all. It may be about this call alone: a
/// connection was ended, or one answer came late.
pub fn is_doubtful(error: &IndexError) -> bool {
    matches!(error, IndexError::Late)
        || is_lost(error)
        || is_shut(error)
        || matches!(code(error), Some("42P01" | "3F000"))
}

/// Returns whether the connection serves after this error.
pub fn is_harmless(error: &IndexError) -> bool {
    match error {
        IndexError::Postgres(_) => !is_lost(error),
        IndexError::TooLarge(_) | IndexError::Server(_) => true,
        _ => false,
    }
}

/// Returns why there is no connection.
pub fn from_pool(error: PoolError) -> IndexError {
    match error {
        PoolError::Backend(error) => IndexError::Postgres(error),
        PoolError::Closed => IndexError::Closed,
        PoolError::Timeout(TimeoutType::Wait) => IndexError::Busy,
        PoolError::Timeout(_) => IndexError::Late,
        other => IndexError::Server(other.to_string()),
    }
}
