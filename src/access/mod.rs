//! Which client sends a request, from which address, and what the client may read: addresses, names of hosts, logins,
//! `allow`, and what upstreams let each client read.

mod absences;
mod authorization;
pub mod browser;
mod by_name;
mod caller;
mod consent;
mod failed_logins;
mod forwarded;
mod given;
mod host;
mod login;
mod names;
mod questions;
mod refusal;
mod rules;
mod sealer;
pub mod token_form;

pub use crate::auth::NotNow;
pub use absences::Absences;
pub use authorization::MAX_AUTHORIZATION;
pub use caller::Caller;
pub use consent::{Consent, StoredObject};
pub use host::AskedHost;
pub use login::{Access, LoginError, Manager, challenge, host, not_now};
pub use questions::{Questions, party};
pub use refusal::{Challenge, Refusal, Wanted};
pub use rules::{Rules, RulesError};
pub use sealer::TOKEN_LIFE;
