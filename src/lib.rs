//! Larder, a pull-through cache for container registries.
//!
//! The way of a request:
//!
//! ```text
//! bytes → listen (limits) → oci::route (what is asked) → pull::routing (of which repository) →
//!   cache: complete → store ──────────────────────┐
//!          coming   → join the running fill ──────┤→ pull::respond (ranges, headers, body)
//!          absent   → begin a fill from upstream ─┘
//! ```
//!
//! Rooms, each of which imports only from those below it: [`cli`] · [`listen`], [`admin`] · [`pull`] ·
//! [`cache`], [`upstream`], [`auth`], [`acme`] · [`store`], [`index`] · the leaves [`oci`], [`config`], [`telemetry`],
//! [`failure`]. `docs/architecture.md` tells why.

pub mod acme;
pub mod admin;
pub mod auth;
mod ca;
pub mod cache;
mod cli;
pub mod config;
pub mod convert;
mod descriptors;
pub mod failure;
mod files;
mod fingerprint;
pub mod index;
pub mod listen;
pub mod oci;
mod places;
mod program;
pub mod pull;
pub mod sent;
pub mod spool;
pub mod store;
pub mod telemetry;
mod text;
mod tunnel;
pub mod upkeep;
pub mod upstream;
mod web;
pub mod work;
mod x509;

pub use cli::run;
