//! The claims of a token about its bearer.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::ClaimRule;

/// The claims of a token that was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// The issuer, by its name in the configuration.
    pub issuer: Arc<str>,
    /// All claims, by name.
    pub values: Map<String, Value>,
}

impl Claims {
    /// Returns the subject of the token (`sub`).
    pub fn subject(&self) -> &str {
        self.values.get("sub").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the name by which a person is shown: what people call the account, else its subject. It may be of the
    /// person's own choice, and decides nothing.
    pub fn person(&self) -> &str {
        let claim = |name: &&str| self.values.get(*name).and_then(Value::as_str).filter(|text| !text.is_empty());
        ["preferred_username", "email", "name"].iter().find_map(claim).unwrap_or_else(|| self.subject())
    }

    /// Returns whether the claims meet a rule.
    pub fn fulfil(&self, rule: &ClaimRule) -> bool {
        let found = find(&self.values, &rule.claim);
        found.is_some_and(|found| rule.values.iter().any(|wanted| is_or_holds(found, wanted)))
    }
}

/// Finds a claim by its name. A name with dots may also lead into nested claims.
fn find<'a>(values: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    values.get(name).or_else(|| {
        name.match_indices('.').find_map(|(at, _)| match values.get(&name[..at])? {
            Value::Object(inner) => find(inner, &name[at + 1..]),
            _ => None,
        })
    })
}

fn is_or_holds(found: &Value, wanted: &str) -> bool {
    match found {
        Value::String(text) => is_like(text, wanted),
        Value::Number(number) => number.to_string() == wanted,
        Value::Bool(value) => value.to_string() == wanted,
        Value::Array(all) => all.iter().any(|one| !one.is_array() && is_or_holds(one, wanted)),
        Value::Null | Value::Object(_) => false,
    }
}

fn is_like(text: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(begin) => text.starts_with(begin),
        None => text == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_is_about_one_claim_and_all_of_its_value() {
        let Value::Object(values) = json!({
            "sub": "repo:acme/app:ref:refs/heads/main", "owner": "acme", "id": 7, "ok": true, "groups": ["ops", "dev"],
            "realm_access": {"roles": ["pull"]}, "https://x.example/role": "admin", "none": null, "deep": [["in"]],
        }) else {
            unreachable!("an object");
        };
        let claims = Claims { issuer: "ci".into(), values };
        for (claim, value, is_right) in [
            ("owner", "acme", true),
            ("owner", "acm", false),
            ("owner", "Acme", false),
            ("owner", "acm*", true),
            ("owner", "*", true),
            ("sub", "repo:acme/*", true),
            ("sub", "repo:acme/application*", false),
            ("id", "7", true),
            ("ok", "true", true),
            ("groups", "dev", true),
            ("groups", "de", false),
            ("realm_access.roles", "pull", true),
            ("realm_access", "pull", false),
            ("https://x.example/role", "admin", true),
            ("none", "null", false),
            ("none", "*", false),
            ("deep", "in", false),
            ("missing", "*", false),
            ("realm_access.missing.more", "*", false),
        ] {
            let rule = ClaimRule { claim: claim.to_owned(), values: vec!["other".to_owned(), value.to_owned()] };
            assert_eq!(claims.fulfil(&rule), is_right, "{claim}={value}");
        }
    }
}
