//! The shapes of values: one or a list, networks, addresses, regular expressions, tables of the user's keys.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize, Serializer};

/// A network, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(pub ipnet::IpNet);

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let network = text.parse::<ipnet::IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into));
        network.map(Self).map_err(|_| {
            format!("`{text}` is no network; write for example \"10.0.0.0/8\", \"fd00::/8\" or \"127.0.0.1\"")
        })
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.0.to_string()
    }
}

/// One socket address or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "OneOrMany<String>")]
pub struct Addresses(pub Vec<SocketAddr>);

impl TryFrom<OneOrMany<String>> for Addresses {
    type Error = String;

    fn try_from(OneOrMany(texts): OneOrMany<String>) -> Result<Self, String> {
        if texts.is_empty() {
            return Err("at least one address is needed, for example \"127.0.0.1:5000\"".to_owned());
        }
        let parse = |text: &String| {
            text.parse().map_err(|_| {
                format!("`{text}` is no address with a port; write for example \"127.0.0.1:5000\" or \"[::]:5000\"")
            })
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A single value or a list of values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<'de> Deserialize<'de> for OneOrMany<String> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = OneOrMany<String>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(OneOrMany(list))
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

/// The accepted values of a claim, as texts. The file has a text, a number, `true` or `false`, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClaimValues(pub Vec<String>);

impl<'de> Deserialize<'de> for ClaimValues {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = ClaimValues;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a number, true or false, or a list of them")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(ClaimValues(vec![text.to_owned()]))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(ClaimValues(vec![value.to_string()]))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(ClaimValues(vec![value.to_string()]))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(ClaimValues(vec![value.to_string()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(ClaimValues(values)) = items.next_element()? {
                    all.extend(values);
                }
                Ok(ClaimValues(all))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A table whose keys the user chooses, in the order of the file.
#[derive(Debug)]
pub struct InOrder<T>(pub Vec<(String, T)>);

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Serialize> Serialize for InOrder<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = InOrder<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

/// A regular expression.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(pub regex::Regex);

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_str().serialize(serializer)
    }
}

impl Pattern {
    /// Returns whether the expression matches anywhere in a text.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty and matches everything; write \".*\" if that is meant".to_owned());
        }
        let pattern = regex::Regex::new(&text);
        pattern.map(Self).map_err(|error| {
            // The last line of the library's message is the reason; the lines before it show the place in the
            // expression.
            let message = error.to_string();
            let reason = message.lines().last().unwrap_or_default();
            format!("`{text}` is no valid regular expression: {}", reason.trim_start_matches("error: "))
        })
    }
}
