//! Whether people can log in to the dashboard by the issuers of the configuration.

use super::Findings;
use crate::auth::Logins;
use crate::config::Config;

const CHECK: &str = "login";

/// Asks each issuer by which people log in for its endpoints.
pub async fn check(config: &Config, findings: &mut Findings) {
    let logins = match Logins::new(&config.auth, None) {
        Ok(Some(logins)) => logins,
        Ok(None) => return,
        Err(error) => return findings.error(CHECK, format!("an issuer of tokens {error}")),
    };
    for flow in logins.flows() {
        let name = flow.name();
        match flow.check().await {
            Ok(()) => findings.ok(
                CHECK,
                format!("`{name}` answers; the redirect URI to register there ends with /login/{name}/callback"),
            ),
            Err(error) => findings.error(CHECK, format!("nobody can log in with `{name}`: {error}")),
        }
    }
}
