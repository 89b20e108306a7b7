//! How fast a copy comes in, and what follows for the number of its connections. The caller passes what has arrived.

use std::time::Duration;

use tokio::time::Instant;

/// How often the speed is measured. The fourth measurement after further connections were opened decides whether they
/// help.
const MEASURE: Duration = Duration::from_millis(250);
/// How long after its first bytes a copy is measured for the first time: over a long line a connection is slow at first,
/// and the time until it is not is what further connections save. Over a short one, as much arrives within this time as
/// at any later one.
const FIRST: Duration = Duration::from_millis(25);
/// If the rest would take longer than this over one connection, further connections are opened.
const WORTH_IT: Duration = Duration::from_secs(1);
/// The time that a further connection takes over a long line until it is as fast as one that is under way: some round
/// trips until its first byte, and its slow start.
pub const TO_BEGIN: Duration = Duration::from_secs(2);
/// Size in bytes below which an object comes over one connection.
const MIN_PARALLEL: u64 = 16 << 20;

/// How fast a copy comes in.
#[derive(Debug, Default)]
pub struct Speed {
    /// The time of the last measurement, and the bytes that had arrived by then.
    last: Option<(Instant, u64)>,
    /// Whether a speed was measured.
    is_measured: bool,
    /// Bytes per second over one connection that has had the time to become as fast as it can.
    alone: Option<f64>,
    /// Measurements since further connections were allowed.
    widened: u32,
    /// Whether it is decided if the further connections stay; then nothing more is measured.
    is_decided: bool,
}

/// What a measurement says about the number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Widen,
    Narrow,
    Keep,
}

impl Speed {
    /// Returns how long to wait before the next measurement.
    pub fn pause(&self) -> Duration {
        if self.is_measured { MEASURE } else { FIRST }
    }

    /// Measures a copy of `size` bytes of which `arrived` are there. `connections`: over how many it comes in now;
    /// `wished`: over how many it may.
    #[allow(clippy::cast_precision_loss)]
    pub fn judge(&mut self, arrived: u64, size: u64, connections: usize, wished: usize) -> Judgement {
        let now = Instant::now();
        let last = self.last.replace((now, arrived));
        // The time until the first bytes says nothing about those that follow.
        let Some((since, before)) = last.filter(|(_, before)| self.is_measured || *before > 0) else {
            return Judgement::Keep;
        };
        let is_first = !std::mem::replace(&mut self.is_measured, true);
        let speed = arrived.saturating_sub(before) as f64 / now.duration_since(since).as_secs_f64().max(0.001);
        if self.is_decided || wished < 2 {
            return Judgement::Keep;
        }
        if connections == 1 {
            let rest = size.saturating_sub(arrived) as f64;
            if size < MIN_PARALLEL || rest < speed * WORTH_IT.as_secs_f64() {
                return Judgement::Keep;
            }
            // What one connection would have reached is not known so soon: then the others stay.
            self.alone = Some(speed).filter(|_| !is_first);
            return Judgement::Widen;
        }
        self.widened += 1;
        // The first measurements after widening still include the slow start of the new connections.
        if self.widened < 4 {
            return Judgement::Keep;
        }
        self.is_decided = true;
        match self.alone {
            Some(alone) if speed < alone * 1.2 => Judgement::Narrow,
            _ => Judgement::Keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Judges a copy of 256 MiB, a pause after the judgement before.
    async fn judged(speed: &mut Speed, arrived: u64, connections: usize) -> Judgement {
        tokio::time::advance(speed.pause()).await;
        speed.judge(arrived, 256 * MIB, connections, 8)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_beginning_is_seen_at_once_and_the_connections_that_follow_from_it_stay() {
        let mut speed = Speed::default();
        for arrived in [0, 0, 15_000] {
            assert_eq!(judged(&mut speed, arrived, 1).await, Judgement::Keep, "{arrived} bytes");
        }
        assert_eq!(speed.pause(), FIRST);
        assert_eq!(judged(&mut speed, 30_000, 1).await, Judgement::Widen);
        for arrived in 0..10 {
            assert_eq!(judged(&mut speed, 30_000 + arrived, 8).await, Judgement::Keep);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_beginning_needs_no_further_connections() {
        let mut speed = Speed::default();
        assert_eq!(judged(&mut speed, MIB, 1).await, Judgement::Keep);
        // 400 MiB a second.
        assert_eq!(judged(&mut speed, 11 * MIB, 1).await, Judgement::Keep);
        assert_eq!(speed.pause(), MEASURE);
        assert_eq!(judged(&mut speed, 121 * MIB, 1).await, Judgement::Keep);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_do_not_help_are_given_up() {
        for (each, decision) in [(10 * MIB, Judgement::Narrow), (20 * MIB, Judgement::Keep)] {
            let mut speed = Speed::default();
            judged(&mut speed, MIB, 1).await;
            judged(&mut speed, 31 * MIB, 1).await;
            assert_eq!(judged(&mut speed, 41 * MIB, 1).await, Judgement::Widen);
            for count in 1..4 {
                assert_eq!(judged(&mut speed, 41 * MIB + count * each, 8).await, Judgement::Keep);
            }
            assert_eq!(judged(&mut speed, 41 * MIB + 4 * each, 8).await, decision);
        }
    }
}
