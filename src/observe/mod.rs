//! What Larder reports about itself: logs, access log, metrics.

pub mod access_log;
mod exposition;
mod lines;
pub mod log;
pub mod metrics;
mod observation;
mod process;
mod scrape;
mod text;

pub use exposition::Format;
pub use lines::{Lines, LogHealth};
pub use metrics::Metrics;
pub use observation::Observation;
pub use process::Process;
pub use scrape::Scraped;
