//! What Larder reports about itself: logs, access log, metrics, the last pulls and their reasons.

pub mod access_log;
mod counters;
mod exposition;
mod lines;
pub mod log;
pub mod metrics;
mod observation;
mod outcome;
mod process;
pub mod pulls;
pub mod reason;
mod scrape;
mod text;
pub mod trace;

pub use counters::{OTHER_HOSTS, RepositoryCounters};
pub use exposition::Format;
pub use lines::{Lines, LogHealth};
pub use metrics::Metrics;
pub use observation::Observation;
pub use process::Process;
pub use pulls::{Pull, Pulls};
pub use reason::Reason;
pub use scrape::Scraped;
