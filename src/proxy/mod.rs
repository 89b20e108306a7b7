//! What becomes of a request that came by the proxy door: content of a registry comes from the cache, what the
//! configuration's patterns match too, and all else goes to its server and back.

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
