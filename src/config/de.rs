//! Turns a [`Node`] tree into the types of [`super::raw`] and says of every mistake where it stands.

use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::error::{ConfigError, nearest};
use super::tree::{Node, Origin, Value};

/// Reads `T` from the tree; a key that `T` does not know is an error.
pub fn from_tree<T: de::DeserializeOwned>(tree: &Node) -> Result<T, ConfigError> {
    let at_root = Place { node: tree, path: String::new() };
    T::deserialize(at_root).map_err(|error| match error {
        Error::Placed(error) => *error,
        Error::Unplaced(message) => ConfigError::Invalid { origin: tree.origin.clone(), key: String::new(), message },
    })
}

/// A mistake; `Unplaced` until the value it came from adds its place.
#[derive(Debug)]
enum Error {
    Unplaced(String),
    Placed(Box<ConfigError>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplaced(message) => f.write_str(message),
            Self::Placed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Unplaced(message.to_string())
    }
}

/// A node and the dotted path to it.
#[derive(Clone)]
struct Place<'a> {
    node: &'a Node,
    path: String,
}

impl<'a> Place<'a> {
    fn child(&self, key: &str, node: &'a Node) -> Self {
        let quoted = if key.contains('.') { format!("\"{key}\"") } else { key.to_owned() };
        let path = match self.path.as_str() {
            "" => quoted,
            parent => format!("{parent}.{quoted}"),
        };
        Self { node, path }
    }

    fn placed<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| match error {
            Error::Unplaced(message) => Error::Placed(Box::new(ConfigError::Invalid {
                origin: self.node.origin.clone(),
                key: self.path,
                message,
            })),
            placed => placed,
        })
    }

    fn unknown_key(&self, key: &str, origin: Origin, fields: &[&str]) -> Error {
        let path = |name: &str| match self.path.as_str() {
            "" => name.to_owned(),
            parent => format!("{parent}.{name}"),
        };
        Error::Placed(Box::new(ConfigError::UnknownKey {
            origin,
            key: path(key),
            nearest: nearest(key, fields.iter().copied()).map(path),
        }))
    }

    /// A `Text` value as the TOML it holds, where it holds any: numbers, booleans, lists, tables.
    fn text_as_toml(&self, text: &str) -> Option<Node> {
        let document = format!("value = {text}");
        let tree = Node::parse(std::path::Path::new(""), &document).ok()?;
        let Value::Table(entries) = tree.value else {
            return None;
        };
        let mut node = entries.into_iter().next()?.1;
        set_origin(&mut node, &self.node.origin);
        Some(node)
    }
}

fn set_origin(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| set_origin(item, origin)),
        Value::Table(entries) => entries.iter_mut().for_each(|(_, item)| set_origin(item, origin)),
        _ => {}
    }
}

impl<'de> de::Deserializer<'de> for Place<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::String(text) | Value::Text(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Array(items) => visitor.visit_seq(Items { place: &self, items, at: 0 }),
            Value::Table(entries) => visitor.visit_map(Entries { place: &self, entries, at: 0 }),
        };
        self.placed(result)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Table(entries) = &self.node.value {
            for (key, node) in entries {
                if !fields.contains(&key.as_str()) {
                    return Err(self.unknown_key(key, node.origin.clone(), fields));
                }
            }
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.typed(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.typed(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.typed(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.typed(visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.typed(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.typed(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if let Value::Text(text) = &self.node.value
            && !text.trim_start().starts_with('[')
        {
            // `LARDER_X=a,b` is the list that people expect it to be.
            let items: Vec<_> = text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Node { value: Value::Text(item.to_owned()), origin: self.node.origin.clone() })
                .collect();
            let result = visitor.visit_seq(Items { place: &self, items: &items, at: 0 });
            return self.placed(result);
        }
        self.typed(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.typed(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::String(text) | Value::Text(text) if variants.contains(&text.as_str()) => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            Value::String(text) | Value::Text(text) => {
                let known = variants.join("`, `");
                Err(Error::Unplaced(format!("`{text}` is not one of `{known}`")))
            }
            _ => Err(Error::Unplaced(format!("expected one of `{}`", variants.join("`, `")))),
        };
        self.placed(result)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u16 u128 f32 char str string bytes byte_buf unit unit_struct newtype_struct
        tuple tuple_struct identifier ignored_any
    }
}

impl Place<'_> {
    /// For types that an environment variable can only spell as text.
    fn typed<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        use serde::Deserializer;
        let parsed = match &self.node.value {
            Value::Text(text) => self.text_as_toml(text),
            _ => None,
        };
        match &parsed {
            Some(node) => Place { node, path: self.path }.deserialize_any(visitor),
            None => self.deserialize_any(visitor),
        }
    }
}

struct Items<'a> {
    place: &'a Place<'a>,
    items: &'a [Node],
    at: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.get(self.at) else {
            return Ok(None);
        };
        let place = Place { node, path: format!("{}[{}]", self.place.path, self.at) };
        self.at += 1;
        place.clone().placed(seed.deserialize(place)).map(Some)
    }
}

struct Entries<'a> {
    place: &'a Place<'a>,
    entries: &'a [(String, Node)],
    at: usize,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, _)) = self.entries.get(self.at) else {
            return Ok(None);
        };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, node) = &self.entries[self.at];
        self.at += 1;
        let place = self.place.child(key, node);
        // A type's own check (`try_from`) runs after its deserializer returned, so it is placed here.
        place.clone().placed(seed.deserialize(place))
    }
}
