//! Passwords and tokens, which must not be shown.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::shapes::{SECRET, marked};

/// What is shown instead of a secret.
pub const HIDDEN: &str = "[hidden]";

/// A password or token. It prints as `[hidden]`; only [`Secret::reveal`] gives the text.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Creates a secret from its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns whether the text is empty, which means that there is no secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// Refuses the placeholder that a shown configuration has instead of a secret: Larder would send it as the secret.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = marked(SECRET, deserializer)?;
        match text == HIDDEN {
            true => {
                let message = format!("`{HIDDEN}` is what is shown instead of a secret; write the secret itself");
                Err(serde::de::Error::custom(message))
            }
            false => Ok(Self(text)),
        }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() { "" } else { HIDDEN }.serialize(serializer)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "[empty]" } else { HIDDEN })
    }
}
