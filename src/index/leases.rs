//! What only one of the Larders that share an index does at a time: it has a lease, which it takes again and again.
//!
//! The index counts the time by its own clock, from a moment after it was asked; whoever has the lease counts the same time
//! by a clock of its own that is never set, from a moment before it asked. So its time is over here before it is over there,
//! whatever the clocks say, and also where the index is away.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Index;
use crate::clock::Instant;

/// How long a lease is taken for.
const TIME: Duration = Duration::from_secs(20);
/// How often it is taken again, or asked for: who ends without a word is followed within [`TIME`] and this.
const AGAIN: Duration = Duration::from_secs(5);

/// Who has a lease, as an index says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This Larder.
    Me,
    /// Another one, with the address at which it is reached, if it is alive.
    Other(Option<String>),
}

/// A lease, as this Larder knows of it.
#[derive(Debug)]
pub struct Lease {
    name: &'static str,
    known: watch::Sender<Known>,
}

#[derive(Clone, Debug)]
enum Known {
    /// No other Larder may have it.
    Always,
    /// This Larder has it until then.
    Mine(Instant),
    /// It has not, but who has, as far as that is known.
    Not(Option<String>),
}

impl Known {
    fn is_mine(&self) -> bool {
        match self {
            Self::Always => true,
            Self::Mine(until) => Instant::now() < *until,
            Self::Not(_) => false,
        }
    }
}

impl Lease {
    /// Makes a lease that this Larder has for ever, because it is alone.
    pub fn always() -> Self {
        Self { name: "", known: watch::Sender::new(Known::Always) }
    }

    /// Makes a lease that this Larder does not have yet; see [`Self::keep`].
    pub fn shared(name: &'static str) -> Self {
        Self { name, known: watch::Sender::new(Known::Not(None)) }
    }

    /// Returns whether this Larder has it now.
    pub fn is_mine(&self) -> bool {
        self.known.borrow().is_mine()
    }

    /// Returns the address of another Larder that has it, as far as that is known.
    pub fn other(&self) -> Option<String> {
        match &*self.known.borrow() {
            Known::Not(address) => address.clone(),
            Known::Always | Known::Mine(_) => None,
        }
    }

    /// Waits until this Larder has it.
    pub async fn begins(&self) {
        // The sender lives as long as `self`.
        let _ = self.known.subscribe().wait_for(Known::is_mine).await;
    }

    /// Waits until this Larder has it no more: it was told so, or its time is over.
    pub async fn ends(&self) {
        let mut known = self.known.subscribe();
        loop {
            let until = match &*known.borrow_and_update() {
                Known::Always => None,
                Known::Mine(until) => Some(*until),
                Known::Not(_) => return,
            };
            tokio::select! {
                () = sleep_until(until) => return,
                changed = known.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes it again and again, as long as this Larder wants it, until `stop` is set; then gives it back. Returns at once
    /// where no other may have it.
    pub async fn keep(
        &self,
        index: &dyn Index,
        is_wanted: impl Fn() -> bool,
        mut stop: watch::Receiver<Option<Duration>>,
    ) {
        if matches!(*self.known.borrow(), Known::Always) {
            return;
        }
        let mut turns = tokio::time::interval(AGAIN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turns.tick() => {}
                _ = stop.wait_for(Option::is_some) => break,
            }
            if is_wanted() { self.take(index).await } else { self.give_back(index).await }
        }
        self.give_back(index).await;
    }

    async fn take(&self, index: &dyn Index) {
        let asked = Instant::now();
        let known = match index.take_lease(self.name, TIME).await {
            Ok(Holder::Me) => Known::Mine(asked + TIME),
            Ok(Holder::Other(address)) => Known::Not(address),
            // Its time goes on, and is over when it is over.
            Err(error) => {
                tracing::debug!(lease = self.name, %error, "who has a lease cannot be found out");
                return;
            }
        };
        if known.is_mine() != self.is_mine() {
            tracing::info!(lease = self.name, is_mine = known.is_mine(), "a lease has come or gone");
        }
        self.known.send_replace(known);
    }

    async fn give_back(&self, index: &dyn Index) {
        if !self.is_mine() {
            return;
        }
        // First here: whoever takes it next may do so at once.
        self.known.send_replace(Known::Not(None));
        if let Err(error) = index.take_lease(self.name, Duration::ZERO).await {
            tracing::debug!(lease = self.name, %error, "a lease is not given back before its time is over");
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_by_itself_where_nobody_takes_it_again() {
        let lease = Lease::shared("x");
        assert!(!lease.is_mine());
        lease.ends().await;
        lease.known.send_replace(Known::Mine(Instant::now() + TIME));
        lease.begins().await;
        assert!(lease.is_mine());
        let begun = Instant::now();
        lease.ends().await;
        assert_eq!((begun.elapsed().as_secs(), lease.is_mine()), (TIME.as_secs(), false));
        lease.known.send_replace(Known::Not(Some("http://other".to_owned())));
        assert_eq!(lease.other().as_deref(), Some("http://other"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_has_every_lease_for_ever() {
        let lease = Lease::always();
        lease.begins().await;
        assert!(tokio::time::timeout(100 * TIME, lease.ends()).await.is_err() && lease.is_mine());
    }
}
