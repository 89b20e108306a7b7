//! Which replica is the home of something: pure. By rendezvous hashing (Thaler and Ravishankar, "Using name-based
//! mappings to increase hit rates", 1998): for each thing, all replicas have an order that depends on nothing else, the
//! first is its home, and when a replica comes or goes, only what is at home there moves.

use crate::oci::{Algorithm, Digest};

/// The number that stands for a replica's address in the order. All replicas have to compute the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(u64);

/// The number that stands for what is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Number {
    pub fn of(address: &str) -> Self {
        Self(beginning(&Digest::of(Algorithm::Sha256, address.as_bytes())))
    }
}

impl Key {
    /// Returns the key of an object.
    pub fn of_object(digest: &Digest) -> Self {
        Self(beginning(digest))
    }

    /// Returns the key of a tag.
    pub fn of_tag(repository: &str, name: &str, tag: &str) -> Self {
        Self(beginning(&Digest::of(Algorithm::Sha256, [repository, name, tag].join("\n").as_bytes())))
    }
}

fn beginning(digest: &Digest) -> u64 {
    digest.as_raw().iter().take(8).fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

/// Returns how far in front a replica is in the order of a key; no two replicas are equally far in front, but by
/// chance. Both numbers are spread evenly, and SplitMix64 mixes them.
pub fn weight(Number(replica): Number, Key(key): Key) -> u64 {
    let mixed = replica ^ key.rotate_left(32);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(count: usize) -> Vec<(String, Number)> {
        let address = |at| format!("http://10.0.{}.{}:17082", at / 250, at % 250);
        (0..count).map(|at| (address(at), Number::of(&address(at)))).collect()
    }

    fn home(replicas: &[(String, Number)], key: Key) -> &str {
        &replicas.iter().max_by_key(|(address, number)| (weight(*number, key), address)).expect("a replica").0
    }

    fn keys(count: u32) -> impl Iterator<Item = Key> {
        (0..count).map(|at| Key::of_object(&Digest::of(Algorithm::Sha256, &at.to_le_bytes())))
    }

    #[test]
    fn each_replica_is_home_to_its_share() {
        for count in [2, 3, 10, 100] {
            let all = replicas(count);
            let mut homes = std::collections::HashMap::new();
            let wanted = 1_000 * u32::try_from(count).expect("few");
            keys(wanted).for_each(|key| *homes.entry(home(&all, key)).or_insert(0) += 1);
            assert_eq!(homes.len(), count);
            // The standard deviation of a share of 1,000 is 32.
            assert!(homes.values().all(|share| (800..1_200).contains(share)), "{count}: {homes:?}");
        }
    }

    #[test]
    fn only_what_is_at_home_at_a_replica_moves_when_it_comes_or_goes() {
        for count in [3, 20, 1_000] {
            let all = replicas(count);
            let (fewer, gone) = (&all[1..], all[0].0.as_str());
            let mut moved = 0;
            for key in keys(2_000) {
                match (home(&all, key), home(fewer, key)) {
                    (before, after) if before == gone => moved += usize::from(after != gone),
                    (before, after) => assert_eq!(before, after),
                }
            }
            let share = 2_000 / count;
            assert!(moved <= share + share / 4 + 10, "{moved} of 2,000 with {count} replicas");
        }
    }

    #[test]
    fn all_replicas_compute_the_same_order_for_ever() {
        // Replicas of different versions have to agree.
        let number = Number::of("http://10.0.0.7:17082");
        let tag = Key::of_tag("docker.io", "library/alpine", "3.20");
        let object = Key::of_object(&Digest::of(Algorithm::Sha256, b"larder"));
        assert_eq!(
            (weight(number, tag), weight(number, object)),
            (9_714_280_901_076_777_614, 10_327_367_035_582_764_064)
        );
    }
}
