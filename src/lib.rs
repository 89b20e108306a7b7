pub mod config;
pub mod oci;
pub mod telemetry;
