//! What the integration tests stand on: content, a scripted upstream (`hub`), Larder itself as a child process, and a
//! client that sees what really came over the wire.

#![allow(dead_code, unused_imports)] // no test uses everything

pub mod bucket;
pub mod client;
pub mod content;
pub mod disk;
pub mod dns;
pub mod helper;
pub mod hub;
pub mod issuer;
pub mod larder;
pub mod origin;
pub mod player;
pub mod postgres;
pub mod provider;
pub mod proxied;
pub mod proxy;
pub mod tls;

use std::future::Future;
use std::time::{Duration, Instant};

pub use self::client::{Answer, Connection, Streaming, get, head, raw, request};
pub use self::content::{Image, Index, Manifest, blob, sha256, sha512};
pub use self::disk::SmallDisk;
pub use self::hub::{
    Auth, EndedToken, Fault, Gate, HeadHabit, Hub, Injected, Kind, LinkForm, Listener, ManifestsAt, On, Options,
    PageToken, Paging, RateLimit, Redirect, Refusal, Request, Supply, TokenField, TokenPlace, TokenService, ToldScope,
};
pub use self::larder::{Larder, Ran, RepositoryConfig, repository_config};
pub use self::origin::{Origin, Page, Seen};
pub use self::proxied::{Browser, Proxied, keeps_archives_of};
pub use self::proxy::ForwardProxy;
pub use self::tls::{Authority, Certificate, TlsFront, https, https_over, trust};

/// How long a test waits for anything before it fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks again and again until the answer is yes; panics after 20 seconds. The only place where tests sleep.
pub async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    within(Duration::from_secs(20), what, condition).await;
}

/// The same, for what may take so long.
pub async fn within<F: Future<Output = bool>>(time: Duration, what: &str, mut condition: impl FnMut() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < time, "did not happen within {} s: {what}", time.as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
