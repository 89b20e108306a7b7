pub mod cache;
pub mod config;
pub mod failure;
pub mod index;
pub mod oci;
pub mod store;
pub mod telemetry;
pub mod upstream;
