//! How long a cached tag may be served without asking the upstream. Pure.

use std::time::Duration;

use crate::config::{OnUpstream404, TagPolicy};
use crate::failure::FailureKind;
use crate::index::Timestamp;

/// How a cached tag may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve it without asking the upstream, for so long after its last check.
    Fresh { lasts: Duration },
    /// Serve it without asking the upstream, now and for ever.
    Immutable,
    /// Serve it, and revalidate it in the background.
    Aging,
    /// Revalidate it first.
    Check,
}

/// The largest share of `max_age` by which it is shortened, so that tags that were pulled together do not expire
/// together.
const SPREAD: f64 = 0.1;

/// For how long a check is due of which the time is not known.
const OVERDUE: Duration = Duration::from_secs(60);

/// Returns how a tag may be served that was last checked `age` ago. `spread` (0 to 1): the part of [`SPREAD`] that
/// applies to this tag.
pub fn of_tag(policy: &TagPolicy, tag: &str, age: Duration, spread: f64) -> Freshness {
    let max_age = policy.max_age.mul_f64(1.0 - SPREAD * spread.clamp(0.0, 1.0));
    if policy.is_immutable(tag) {
        Freshness::Immutable
    } else if age < max_age {
        Freshness::Fresh { lasts: max_age }
    } else if age < max_age.saturating_add(policy.stale_while_revalidate) {
        Freshness::Aging
    } else {
        Freshness::Check
    }
}

/// Returns the time to note for a check whose own time is still to come, as after the clock was set back: another check
/// is due, and from here on it is known how old the copy is at least.
pub fn of_unknown_time(policy: &TagPolicy, now: Timestamp) -> Timestamp {
    let past = policy.max_age.saturating_add(policy.stale_while_revalidate).saturating_add(OVERDUE);
    let past = i64::try_from(past.as_millis()).unwrap_or(i64::MAX);
    Timestamp(now.0.saturating_sub(past).max(0))
}

/// Returns whether the old copy may be served although the revalidation failed.
pub fn may_serve_stale(policy: &TagPolicy, failure: FailureKind, age: Duration) -> bool {
    match failure {
        FailureKind::NotFound => {
            policy.on_upstream_404 == OnUpstream404::ServeStale && policy.stale_if_error.covers(age)
        }
        FailureKind::Denied
        | FailureKind::WrongContent
        | FailureKind::Unavailable
        | FailureKind::Timeout
        | FailureKind::RateLimited
        | FailureKind::Busy
        | FailureKind::Unread
        | FailureKind::NoRoom
        | FailureKind::Storage => policy.stale_if_error.covers(age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limit, Pattern};

    const HOUR: Duration = Duration::from_secs(3600);

    fn policy() -> TagPolicy {
        TagPolicy {
            immutable: false,
            immutable_exclusions: Vec::new(),
            max_age: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Limit::Unlimited,
            on_upstream_404: OnUpstream404::ServeStale,
            negative_max_age: Duration::ZERO,
        }
    }

    #[test]
    fn a_tag_past_its_max_age_is_served_while_it_is_checked() {
        let policy = TagPolicy { max_age: HOUR, stale_while_revalidate: HOUR, ..policy() };
        assert!(matches!(of_tag(&policy, "latest", HOUR / 2, 0.0), Freshness::Fresh { .. }));
        assert_eq!(of_tag(&policy, "latest", HOUR, 0.0), Freshness::Aging);
        assert_eq!(of_tag(&policy, "latest", 2 * HOUR, 0.0), Freshness::Check);
    }

    #[test]
    fn a_check_at_an_unknown_time_is_due_again_and_ages_from_then_on() {
        let now = Timestamp(1_700_000_000_000);
        for max_age in [Duration::ZERO, HOUR, Duration::MAX] {
            let policy = TagPolicy { max_age, stale_if_error: Limit::Span(2 * HOUR), ..policy() };
            let noted = of_unknown_time(&policy, now);
            let age = Duration::from_millis(u64::try_from(now.0 - noted.0).expect("it is past"));
            if max_age < Duration::MAX {
                assert_eq!(of_tag(&policy, "latest", age, 0.0), Freshness::Check);
                assert!(may_serve_stale(&policy, FailureKind::Timeout, age));
                assert!(!may_serve_stale(&policy, FailureKind::Timeout, age + 2 * HOUR));
            }
        }
    }

    #[test]
    fn a_tag_is_fresh_for_its_max_age() {
        let policy = TagPolicy { max_age: HOUR, ..policy() };
        assert!(matches!(of_tag(&policy, "latest", HOUR - Duration::from_secs(1), 0.0), Freshness::Fresh { .. }));
        assert_eq!(of_tag(&policy, "latest", HOUR, 0.0), Freshness::Check);
        assert_eq!(of_tag(&self::policy(), "latest", Duration::ZERO, 0.0), Freshness::Check);
    }

    #[test]
    fn tags_pulled_together_do_not_run_out_together() {
        let policy = TagPolicy { max_age: HOUR, ..policy() };
        let almost = HOUR - HOUR / 20;
        assert!(matches!(of_tag(&policy, "a", almost, 0.0), Freshness::Fresh { .. }));
        assert_eq!(of_tag(&policy, "b", almost, 1.0), Freshness::Check);
        assert!(matches!(of_tag(&policy, "b", HOUR - HOUR / 9, 1.0), Freshness::Fresh { .. }));
    }

    #[test]
    fn an_immutable_tag_is_always_fresh_but_for_the_exclusions() {
        let latest = Pattern::try_from("^latest$".to_owned()).expect("a regex");
        let policy = TagPolicy { immutable: true, immutable_exclusions: vec![latest], ..policy() };
        assert_eq!(of_tag(&policy, "1.0", 1000 * HOUR, 0.0), Freshness::Immutable);
        assert_eq!(of_tag(&policy, "latest", Duration::ZERO, 0.0), Freshness::Check);
    }

    #[test]
    fn stale_copies_have_an_age_limit_and_404_its_own_rule() {
        let limited = TagPolicy { stale_if_error: Limit::Span(HOUR), ..policy() };
        assert!(may_serve_stale(&limited, FailureKind::Timeout, HOUR / 2));
        assert!(!may_serve_stale(&limited, FailureKind::Timeout, 2 * HOUR));
        let drop = TagPolicy { on_upstream_404: OnUpstream404::Drop, ..policy() };
        assert!(!may_serve_stale(&drop, FailureKind::NotFound, HOUR));
        assert!(may_serve_stale(&drop, FailureKind::Unavailable, HOUR));
        assert!(may_serve_stale(&policy(), FailureKind::NotFound, HOUR));
    }
}
