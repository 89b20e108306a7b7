//! Decides what becomes of a request that came by the proxy door: content of registries, and what the configuration's
//! patterns match, comes from the cache; all other requests are forwarded to their server.

mod copies;
mod dispatch;
mod door;
mod forward;
mod headers;
mod names;
mod other;
mod refused;
mod registries;
mod registry;
mod relay;
mod rules;
mod secrets;
mod tell;
mod tunnel;
mod written;

pub use door::Proxy;
pub use refused::usage;
pub use rules::ProxyRules;
pub use tunnel::{Came, Kept, Lead, Tunnel};
