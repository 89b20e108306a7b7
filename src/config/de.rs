//! Turns a [`Node`] tree into the types of [`super::raw`]. Every error tells where the mistake is written.

use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::environment;
use super::error::ConfigError;
use super::hint;
use super::key_path::{KeyPath, Step};
use super::shapes::{ADDRESSES, FILE, FILES, HOOK, PROGRAM, SECRET, with_port};
use super::tree::{Node, Value};

/// Reads `T` from the tree; a key that `T` does not know is an error. `variables`: the environment, which secrets may
/// refer to.
pub fn from_tree<T: de::DeserializeOwned>(tree: &Node, variables: &[(String, String)]) -> Result<T, ConfigError> {
    let at_root = Located { node: tree, path: KeyPath::default(), variables };
    T::deserialize(at_root).map_err(|error| match error {
        Error::Placed(error) => *error,
        Error::Unplaced(message) => {
            ConfigError::Invalid { origin: tree.origin.clone(), key: KeyPath::default(), message }
        }
    })
}

/// An error of reading. It is `Unplaced` until the value that it came from adds its own place.
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

/// A node and the path to it.
#[derive(Clone)]
struct Located<'a> {
    node: &'a Node,
    path: KeyPath,
    variables: &'a [(String, String)],
}

impl<'a> Located<'a> {
    fn child(&self, key: &str, node: &'a Node) -> Self {
        Self { node, path: self.path.key(key), variables: self.variables }
    }

    /// Returns another node in the place of this one.
    fn with<'b>(&self, node: &'b Node) -> Located<'b>
    where
        'a: 'b,
    {
        Located { node, path: self.path.clone(), variables: self.variables }
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

    fn unknown_key(&self, key: &str, node: &Node, fields: &[&str]) -> Error {
        let unquoted = match self.path.steps() {
            [Step::Key(table), Step::Key(name)] if matches!(table.as_str(), "repository" | "headers") => {
                hint::unquoted(table, name, key, node, fields)
            }
            _ => None,
        };
        let hint = unquoted.unwrap_or_else(|| hint::unknown(&self.path, key, fields));
        Error::Placed(Box::new(ConfigError::UnknownKey { origin: node.origin.clone(), key: self.path.key(key), hint }))
    }
}

impl<'de> de::Deserializer<'de> for Located<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::String(text) | Value::Text(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Array(items) => visitor.visit_seq(Items { place: &self, items, at: 0 }),
            Value::Table(entries) => visitor.visit_map(Entries { place: &self, entries, at: 0 }),
            // What is left out is skipped where it is an entry of a table or list, and nowhere else.
            Value::LeftOut => visitor.visit_unit(),
        };
        self.placed(result)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.resolved(|place| {
            let Value::Table(entries) = &place.node.value else {
                return Err(place.not("a table"));
            };
            let is_unknown = |(key, node): &&(String, Node)| {
                !fields.contains(&key.as_str()) && !matches!(node.value, Value::LeftOut)
            };
            match entries.iter().find(is_unknown) {
                Some((key, node)) => Err(place.unknown_key(key, node, fields)),
                None => place.deserialize_any(visitor),
            }
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.resolved(|place| match place.node.value {
            Value::Boolean(_) => place.deserialize_any(visitor),
            _ => Err(place.not("true or false")),
        })
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.whole_number(i64::MAX, visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.whole_number(u32::MAX.into(), visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.whole_number(u8::MAX.into(), visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.resolved(|place| match place.node.value {
            Value::Integer(_) | Value::Float(_) => place.deserialize_any(visitor),
            _ => Err(place.not("a number")),
        })
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::String(_) | Value::Text(_) => self.deserialize_any(visitor),
            _ => Err(self.not("a text in quotes")),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // `[::]:5000` begins like a list, too.
        let is_list = |text: &str| text.starts_with('[') && (text.ends_with(']') || self.node.text_as_toml().is_some());
        if let Value::Text(text) = &self.node.value
            && !is_list(text.trim())
        {
            // `LARDER_X=a,b` is a list of two texts, as people expect.
            let items: Vec<_> = text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Node { value: Value::Text(item.to_owned()), origin: self.node.origin.clone() })
                .collect();
            let result = visitor.visit_seq(Items { place: &self, items: &items, at: 0 });
            return self.placed(result);
        }
        self.resolved(|place| match &place.node.value {
            Value::Array(_) => place.deserialize_any(visitor),
            // Some keys take a list of texts or a single text.
            Value::String(text) => visitor.visit_str(text).map_err(|_: Error| place.not("a list")),
            _ => Err(place.not("a list")),
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.resolved(|place| match place.node.value {
            Value::Table(_) => place.deserialize_any(visitor),
            _ => Err(place.not("a table")),
        })
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

    /// Reads the values whose meaning depends on where they are written; see [`super::shapes`].
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        let is_program = |at: usize, text: &str| at == 0 && text.contains('/');
        match name {
            FILE => self.with(&self.node.with_paths(|_, _| true)).deserialize_string(visitor),
            FILES => self.with(&self.node.with_paths(|_, _| true)).deserialize_seq(visitor),
            PROGRAM => self.with(&self.node.with_paths(is_program)).deserialize_string(visitor),
            HOOK => self.with(&self.node.with_paths(is_program)).deserialize_seq(visitor),
            SECRET => self.secret(visitor),
            ADDRESSES => match self.node.value {
                Value::Integer(port) => {
                    Err(self.wrong(format!("a port needs an address before it; write {}", with_port(port))))
                }
                _ => self.deserialize_seq(visitor),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u16 u128 f32 char str bytes byte_buf unit unit_struct
        tuple tuple_struct identifier ignored_any
    }
}

impl Located<'_> {
    /// Calls `go_on` with this value. If the value is text of an environment variable that is TOML, calls it with the
    /// value of that TOML: a variable can hold numbers, lists and tables only as text.
    fn resolved<T>(self, go_on: impl FnOnce(Located<'_>) -> Result<T, Error>) -> Result<T, Error> {
        match self.node.text_as_toml() {
            Some(node) => go_on(self.with(&node)),
            None => go_on(self),
        }
    }

    /// Reads a secret: a text, or `{ env = "NAME" }`.
    fn secret<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        use serde::Deserializer;
        let Value::Table(entries) = &self.node.value else {
            return self.deserialize_string(visitor);
        };
        let [(key, Node { value: Value::String(name), .. })] = &entries[..] else {
            return Err(self.not("a text in quotes, or { env = \"NAME\" },"));
        };
        if key != "env" {
            return Err(self.not("a text in quotes, or { env = \"NAME\" },"));
        }
        let value = environment::secret(self.variables, name);
        let result = value.map_err(Error::Unplaced).and_then(|text| visitor.visit_str(text));
        self.placed(result)
    }

    fn whole_number<'de, V: Visitor<'de>>(self, most: i64, visitor: V) -> Result<V::Value, Error> {
        use serde::Deserializer;
        self.resolved(|place| match place.node.value {
            Value::Integer(number) if number < 0 => Err(place.wrong("it cannot be negative".to_owned())),
            Value::Integer(number) if number > most => {
                Err(place.wrong(format!("`{number}` is too large; the most is {most}")))
            }
            Value::Integer(_) => place.deserialize_any(visitor),
            _ => Err(place.not("a whole number")),
        })
    }

    /// Returns the error that the value has the wrong type. The message quotes nothing of the value, which may be or
    /// contain a secret.
    fn not(self, wanted: &str) -> Error {
        let is = match &self.node.value {
            Value::String(_) => "a text",
            Value::Text(text) if text.trim_start().starts_with(['[', '{']) => "text that is no valid TOML",
            Value::Text(_) => "a text",
            Value::Integer(_) => "a number",
            Value::Float(_) => "a number with a fraction",
            Value::Boolean(_) => "true or false",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
            Value::LeftOut => "nothing",
        };
        let hint = hint::about_shape(&self.path, self.node, wanted).map(|hint| format!("; {hint}"));
        self.wrong(format!("{wanted} is needed here, not {is}{}", hint.unwrap_or_default()))
    }

    fn wrong(self, message: String) -> Error {
        let unplaced: Result<(), _> = Err(Error::Unplaced(message));
        match self.placed(unplaced) {
            Err(error) => error,
            Ok(()) => Error::Unplaced(String::new()),
        }
    }
}

struct Items<'a> {
    place: &'a Located<'a>,
    items: &'a [Node],
    at: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        while matches!(self.items.get(self.at), Some(Node { value: Value::LeftOut, .. })) {
            self.at += 1;
        }
        let Some(node) = self.items.get(self.at) else {
            return Ok(None);
        };
        let place = Located { node, path: self.place.path.at(self.at), variables: self.place.variables };
        self.at += 1;
        place.clone().placed(seed.deserialize(place)).map(Some)
    }
}

struct Entries<'a> {
    place: &'a Located<'a>,
    entries: &'a [(String, Node)],
    at: usize,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while matches!(self.entries.get(self.at), Some((_, Node { value: Value::LeftOut, .. }))) {
            self.at += 1;
        }
        let Some((key, _)) = self.entries.get(self.at) else {
            return Ok(None);
        };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, node) = &self.entries[self.at];
        self.at += 1;
        let place = self.place.child(key, node);
        // A type's own check (`try_from`) runs after its deserializer has returned, so its error gets its place here.
        place.clone().placed(seed.deserialize(place))
    }
}
