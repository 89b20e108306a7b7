//! What the kernel counts for this process, for the metrics `process_*`.

use std::time::Duration;

use procfs::process::LimitValue;
use procfs::{ProcError, WithCurrentSystemInfo};

/// The resources that the process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// Processor time, of the process and of the kernel for it.
    pub cpu: Duration,
    /// In bytes.
    pub resident: u64,
    /// In bytes.
    pub virtual_memory: u64,
    pub open_descriptors: u64,
    /// The soft limit; `None`: there is none.
    pub most_descriptors: Option<u64>,
    /// Seconds since 1970.
    pub started: f64,
}

impl Process {
    /// Reads `/proc/self`; blocks while the kernel counts. Fails where `/proc` is not mounted.
    pub fn read() -> Result<Self, ProcError> {
        let process = procfs::process::Process::myself()?;
        let stat = process.stat()?;
        let ticks = procfs::ticks_per_second();
        let seconds = |count: u64| Duration::from_secs(count / ticks) + tick_rest(count, ticks);
        let most_descriptors = match process.limits()?.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most),
            LimitValue::Unlimited => None,
        };
        // The kernel counts from when the machine started.
        let booted = Duration::from_secs(procfs::boot_time_secs()?);
        Ok(Self {
            cpu: seconds(stat.utime + stat.stime),
            resident: stat.rss_bytes().get(),
            virtual_memory: stat.vsize,
            open_descriptors: u64::try_from(process.fd_count()?).unwrap_or(u64::MAX),
            most_descriptors,
            started: (booted + seconds(stat.starttime)).as_secs_f64(),
        })
    }
}

/// Returns the part of `count` ticks that is no whole second.
fn tick_rest(count: u64, ticks: u64) -> Duration {
    Duration::from_micros((count % ticks) * 1_000_000 / ticks)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::clock;

    #[test]
    fn the_kernel_tells_what_the_process_uses() {
        let process = Process::read().expect("a /proc");
        assert!(process.resident > 1 << 20 && process.virtual_memory >= process.resident, "{process:?}");
        assert!(process.open_descriptors > 2, "{process:?}");
        let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        // The clock may have been set since the machine started; a day is near enough to see that the unit is right.
        assert!((now - process.started).abs() < 86_400.0, "{process:?}");
    }
}
