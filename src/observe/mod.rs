//! What Larder reports about itself: logs, access log, metrics.

pub mod access_log;
pub mod log;
pub mod metrics;
mod observation;
mod text;

pub use metrics::Metrics;
pub use observation::Observation;
