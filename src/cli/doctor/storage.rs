//! The bucket of `[storage.s3]`: whether it can be used, and what its server cannot do.

use std::time::Duration;

use super::Findings;
use crate::config::Config;
use crate::observe::Metrics;
use crate::s3::Bucket;

const CHECK: &str = "bucket";

/// A difference between clocks that servers do not take well: AWS refuses requests that are 15 minutes off.
const SKEW: Duration = Duration::from_secs(300);

/// Stores, reads and deletes a small object.
pub async fn check(config: &Config, findings: &mut Findings) {
    let Some(s3) = &config.s3 else {
        return;
    };
    let bucket = match Bucket::new(s3, Metrics::default().into()) {
        Ok(bucket) => bucket,
        Err(error) => return findings.error(CHECK, format!("{} cannot be used: {error}", s3.bucket)),
    };
    let found = bucket.probe().await;
    for finding in &found {
        match finding.is_fatal() {
            true => findings.error(CHECK, format!("{}: {finding}", s3.bucket)),
            false => findings.warning(CHECK, format!("{}: {finding}", s3.bucket)),
        }
    }
    if found.is_empty() {
        findings.ok(CHECK, format!("{} can do all that is needed", s3.bucket));
    }
    if let Some(skew) = bucket.skew().filter(|skew| *skew > SKEW) {
        let seconds = skew.as_secs();
        findings.warning(
            CHECK,
            format!(
                "the clocks of this machine and of the server differ by {seconds} s; set them, or it refuses requests"
            ),
        );
    }
}
