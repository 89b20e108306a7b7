//! What Larder reports about itself: logs, access log, metrics.

pub mod access_log;
mod lines;
pub mod log;
pub mod metrics;
mod observation;

pub use lines::Lines;
pub use metrics::Metrics;
pub use observation::Observation;
