//! Random numbers, for all of Larder: no other code asks the system for them.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// The error that the system gives no random numbers, without which no key can be made.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

/// Fills a key, or bytes that have to be as hard to guess.
pub fn fill(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| NoRandomness)
}

/// Returns a text of 43 letters, digits, `-` and `_` that is as hard to guess as a key.
pub fn text() -> Result<String, NoRandomness> {
    let mut bytes = [0; 32];
    fill(&mut bytes)?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// Returns a number that need not be hard to guess: it spreads pauses, so that clients do not come back all at once.
#[cfg(not(test))]
pub fn number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Returns a number to spread pauses. In tests, the numbers are the same in each run of a thread (SplitMix64, from 0).
#[cfg(test)]
pub fn number() -> u64 {
    use std::cell::Cell;
    thread_local!(static STATE: Cell<u64> = const { Cell::new(0) });
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Returns a number from 0 to 1, made as by [`number`].
#[allow(clippy::cast_precision_loss)]
pub fn fraction() -> f64 {
    (number() >> 32) as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_spread_from_0_to_1() {
        let fractions: Vec<_> = (0..1000).map(|_| fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..=1.0).contains(fraction)));
        for tenth in 0..10 {
            let is_in = |fraction: &&f64| (**fraction * 10.0) as u32 == tenth;
            let count = fractions.iter().filter(is_in).count();
            assert!((50..200).contains(&count), "{count} of 1000 are in tenth {tenth}");
        }
    }
}
