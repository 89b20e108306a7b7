//! File descriptors: every connection, object and transfer needs some, and a process has a limited number.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most descriptors that Larder uses: more are never needed. Some systems allow a billion, and tools that walk over all
/// of them take minutes.
const ENOUGH: u64 = 1 << 20;
/// Larder warns if it has fewer than this: a single office already notices the limit.
const FEW: u64 = 4096;
/// Fewest descriptors in the reserve, whatever the limit is: for the index, the log, listeners and name lookups.
const LEAST_RESERVE: u64 = 64;

/// How the descriptors of the process are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Connections at the registry door.
    pub registry: usize,
    /// Connections at the proxy door, of which each may lead to a second one.
    pub proxy: usize,
    /// Connections at the admin door.
    pub admin: usize,
    /// Transfers from upstream at once: each has a file, its journal, and one or several connections.
    pub fills: usize,
    /// Questions to upstreams at once, with requests for tokens: each has a connection.
    pub questions: usize,
    /// Requests that the proxy door forwards at once.
    pub forwards: usize,
}

/// Descriptors that one transfer needs, roughly.
const BY_FILL: u64 = 6;
/// Most transfers, however many descriptors there are: each holds two buffers of 1 MiB.
const MOST_FILLS: u64 = 256;
/// Most questions at once: each may hold a document.
const MOST_QUESTIONS: u64 = 4096;
/// Most connections at the admin door.
const MOST_ADMIN: u64 = 64;

impl Shares {
    /// Returns the shares of a process that may have `limit` descriptors.
    pub fn of(limit: u64) -> Self {
        let limit = limit.min(ENOUGH);
        // The reserve is for objects, transfers, questions and connections that wait to be let in.
        let reserve = (limit * 5 / 16).max(LEAST_RESERVE).min(limit / 2);
        let doors = limit - reserve;
        let admin = (doors / 10).clamp(1, MOST_ADMIN);
        // Half of the rest is for clients of the registry door, half for the proxy door: its connections, those that
        // they are tunnelled to, and those of forwarded requests, of which HTTP/2 has many on one connection.
        let half = (doors - admin.min(doors)) / 2;
        let questions = (reserve / 4).min(MOST_QUESTIONS);
        let number = |share: u64| usize::try_from(share).unwrap_or(usize::MAX).max(1);
        Self {
            registry: number(half),
            proxy: number(half / 3),
            forwards: number(half / 3),
            admin: number(admin),
            fills: number(((reserve - questions) / BY_FILL).min(MOST_FILLS)),
            questions: number(questions),
        }
    }

    /// Returns the shares by the limit in force.
    pub fn now() -> Self {
        Self::of(soft_limit())
    }
}

/// Returns the limit of open files if it is low.
pub fn few() -> Option<u64> {
    Some(soft_limit()).filter(|&limit| limit < FEW)
}

fn soft_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH)
}

/// Raises the soft limit to the hard one, and logs it; warns if the limit is still low.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (before, most) = (current.unwrap_or(ENOUGH), maximum.unwrap_or(ENOUGH).min(ENOUGH));
    if before < most {
        let raised = Rlimit { current: Some(most), maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    let limit = soft_limit();
    if few().is_some() {
        tracing::warn!(
            limit,
            "few files and connections may be open at once; raise the limit (ulimit -n, LimitNOFILE= of systemd)"
        );
    } else {
        tracing::debug!(limit, before, "the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_fit_into_the_limit() {
        for limit in [16, 64, 100, 256, 1024, 4096, 65_536, 1 << 20, u64::MAX] {
            let Shares { registry, proxy, admin, fills, questions, forwards } = Shares::of(limit);
            let used = registry + 2 * proxy + forwards + admin;
            let rest = limit.min(ENOUGH) - used as u64;
            assert!(registry > 0 && proxy > 0 && admin > 0 && fills > 0, "{limit}");
            assert!(
                limit < 64 || rest >= (fills as u64 * BY_FILL + questions as u64).max(limit.min(ENOUGH) / 4),
                "{limit}: {rest} are left"
            );
        }
        let few = Shares { registry: 320, proxy: 106, admin: 64, fills: 40, questions: 80, forwards: 106 };
        assert_eq!(Shares::of(1024), few);
        assert_eq!(Shares::of(1 << 20).fills, 256);
    }
}
