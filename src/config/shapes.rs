//! The shapes of values: one or a list, networks, addresses, regular expressions, tables of the user's keys.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};

use crate::oci::Platform;

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

/// Marks a text as a path of a file or folder, for [`super::de`]: a relative one is relative to the file that it is
/// written in.
pub const FILE: &str = "larder file";
/// Marks one path or a list of paths.
pub const FILES: &str = "larder files";
/// Marks a text as the name of a program, which is a path if it contains a slash.
pub const PROGRAM: &str = "larder program";
/// Marks a list as a program and its arguments.
pub const HOOK: &str = "larder hook";
/// Marks a text as a secret, which may be `{ env = "NAME" }`.
pub const SECRET: &str = "larder secret";

/// Marks one address or a list of addresses.
pub const ADDRESSES: &str = "larder addresses";

/// Reads a text with one of these marks.
pub fn marked<'de, D: serde::Deserializer<'de>>(mark: &'static str, deserializer: D) -> Result<String, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = String;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        // Other deserializers, such as that of JSON, know no marks.
        fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
            String::deserialize(deserializer)
        }
    }
    deserializer.deserialize_newtype_struct(mark, Visitor)
}

/// Reads the path of a file or folder.
pub fn file<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    marked(FILE, deserializer).map(PathBuf::from)
}

/// Reads the path of a file; `None` for an empty one.
pub fn optional_file<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    file(deserializer).map(|path| (!path.as_os_str().is_empty()).then_some(path))
}

/// Reads one path or a list of paths.
pub fn files<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<OneOrMany<String>, D::Error> {
    deserializer.deserialize_newtype_struct(FILES, OneOrManyTexts)
}

/// Reads the name or path of a program.
pub fn program<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    marked(PROGRAM, deserializer)
}

/// Reads a program and its arguments.
pub fn hook<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_newtype_struct(HOOK, OneOrManyTexts).map(|list| list.0)
}

/// One socket address or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Addresses(pub Vec<SocketAddr>);

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let OneOrMany(texts) = deserializer.deserialize_newtype_struct(ADDRESSES, OneOrManyTexts)?;
        if texts.is_empty() {
            let message = "at least one address is needed, for example \"127.0.0.1:5000\"";
            return Err(serde::de::Error::custom(message));
        }
        let parsed: Result<_, _> = texts.iter().map(|text| address(text)).collect();
        parsed.map(Self).map_err(serde::de::Error::custom)
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| why_no_address(text))
}

/// Says what is wrong with a text that is no address with a port, and what to write.
fn why_no_address(text: &str) -> String {
    if let Ok(port) = text.trim_start_matches([':', '*']).parse::<u16>() {
        return format!("`{text}` is a port without an address; write {}", with_port(port));
    }
    if text.parse::<std::net::Ipv4Addr>().is_ok() {
        return format!("`{text}` has no port; write for example \"{text}:5000\"");
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
        _ => {
            return format!(
                "`{text}` is no address with a port; write for example \"127.0.0.1:5000\" or \"[::]:5000\""
            );
        }
    };
    if port.parse::<u16>().is_err() {
        return format!("`{text}` has no valid port; the highest is 65535");
    }
    if host.contains("://") || host.contains(':') {
        return format!("`{text}` is no address with a port; write {}", with_port(port));
    }
    format!("`{text}` begins with a name, and an address is needed; write {}", with_port(port))
}

/// Returns how to listen on a port, for a message.
pub fn with_port(port: impl std::fmt::Display) -> String {
    format!(
        "\"127.0.0.1:{port}\" for this machine alone, \"0.0.0.0:{port}\" for all of IPv4, \"[::]:{port}\" for IPv6 too"
    )
}

/// Says why a text is no URL. The library's words for a missing scheme are about relative URLs.
pub fn why_no_url(error: url::ParseError) -> String {
    match error {
        url::ParseError::RelativeUrlWithoutBase => "it does not begin with https://".to_owned(),
        other => other.to_string(),
    }
}

/// A single value or a list of values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<'de> Deserialize<'de> for OneOrMany<String> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(OneOrManyTexts)
    }
}

struct OneOrManyTexts;

impl<'de> serde::de::Visitor<'de> for OneOrManyTexts {
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

/// A platform such as `linux/amd64`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct PlatformText(pub Platform);

impl TryFrom<String> for PlatformText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

impl Serialize for PlatformText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
