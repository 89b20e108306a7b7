//! Digests that stand for secrets in what Larder remembers: all have the same length, and nobody can compute a secret
//! from them.

use std::sync::OnceLock;

use aws_lc_rs::hmac;

use crate::random;

/// Returns an HMAC of the parts with a key that only this process has.
pub fn of(parts: &[&[u8]]) -> [u8; 32] {
    static KEY: OnceLock<hmac::Key> = OnceLock::new();
    let key = KEY.get_or_init(|| {
        let mut secret = [0; 32];
        // Without random numbers, nothing that needs TLS works either; the seeds of hash maps are the next best.
        if random::fill(&mut secret).is_err() {
            for part in secret.chunks_mut(8) {
                part.copy_from_slice(&random::number().to_le_bytes());
            }
        }
        hmac::Key::new(hmac::HMAC_SHA256, &secret)
    });
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut found = [0; 32];
    found.copy_from_slice(context.sign().as_ref());
    found
}
