//! Larder, a pull-through cache for container registries.
//!
//! The path of a request:
//!
//! ```text
//! bytes → listen (limits) → oci::route (what is requested) → routing (which repository) → access (allowed?) →
//!   cache: complete → store ──────────────────────┐
//!          coming   → join the running fill ──────┤→ registry::respond (ranges, headers, body)
//!          absent   → begin a fill from upstream ─┘
//! ```
//!
//! Rooms, each of which imports only from those below it: `cli` · [`admin`], [`listen`] · `services`, `ops` · `proxy` ·
//! [`registry`] · [`access`] · `routing` · [`cache`], [`upstream`], [`acme`] · [`upkeep`], [`observe`] · [`auth`] ·
//! [`spool`], [`store`], [`index`] · [`work`], [`config`] · the leaves [`oci`], [`failure`]. `docs/architecture.md`
//! explains why.

pub mod access;
pub mod acme;
pub mod admin;
pub mod auth;
mod body;
mod ca;
pub mod cache;
mod cli;
mod clock;
mod cluster;
pub mod config;
pub mod convert;
mod descriptors;
pub mod failure;
mod files;
mod fingerprint;
pub mod index;
pub mod listen;
pub mod observe;
pub mod oci;
mod ops;
mod places;
mod program;
mod proxy;
mod random;
pub mod registry;
mod routing;
pub mod s3;
pub mod sent;
mod services;
pub mod setup;
mod sockets;
pub mod spool;
pub mod store;
mod telemetry;
mod text;
mod tunnel;
pub mod upkeep;
pub mod upstream;
mod warm;
mod web;
pub mod work;
mod x509;

pub use cli::run;
