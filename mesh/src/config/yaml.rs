//! YAML as a tree in which everything has its line, so that checks can name the place of a problem. JSON is such a tree
//! without lines.

use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::problem::Problem;

/// How deep a file may be nested; a `mesh.yaml` needs 4.
const MAX_DEPTH: usize = 32;

/// A value and its place.
#[derive(Debug)]
pub struct Node {
    /// The line, from 1; 0 if it has none.
    pub line: u64,
    /// The value as it is written in the file, if it is in one piece.
    pub source: Option<String>,
    /// The value itself.
    pub value: Value,
}

/// The types of YAML's core schema.
#[derive(Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// In the order of the file. A key may be there twice.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Reads a file, which must have one document.
    ///
    /// # Errors
    /// It is not YAML, or nested too deep.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problem> {
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
            strict_booleans: true,
            with_snippet: false,
        };
        let root: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(1, |at| at.line().max(1));
            Problem::new(file, line, "", format!("not YAML: {}", without_location(&error)))
        })?;
        let node = Self::from_raw(root, text);
        match node.too_deep(MAX_DEPTH) {
            Some(line) => Err(Problem::new(file, line, "", format!("nested deeper than {MAX_DEPTH} levels"))),
            None => Ok(node),
        }
    }

    /// The same of JSON that was read before. Whoever read it has limited how deep it is nested.
    pub fn of_json(json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(value) => value.as_i64().map_or(Value::Float(value.as_f64().unwrap_or(f64::NAN)), Value::Int),
            Json::String(value) => Value::Text(value.clone()),
            Json::Array(items) => Value::List(items.iter().map(Self::of_json).collect()),
            Json::Object(entries) => {
                let key = |key: &String| Self { line: 0, source: None, value: Value::Text(key.clone()) };
                Value::Map(entries.iter().map(|(name, value)| (key(name), Self::of_json(value))).collect())
            }
        };
        Self { line: 0, source: None, value }
    }

    fn from_raw(raw: Spanned<Raw>, text: &str) -> Self {
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(value) => Value::Bool(value),
            Raw::Int(value) => Value::Int(value),
            Raw::Float(value) => Value::Float(value),
            Raw::Text(value) => Value::Text(value),
            Raw::List(items) => Value::List(items.into_iter().map(|item| Self::from_raw(item, text)).collect()),
            Raw::Map(entries) => Value::Map(
                entries.into_iter().map(|(k, v)| (Self::from_raw(k, text), Self::from_raw(v, text))).collect(),
            ),
        };
        let source = byte_range(&raw.referenced).and_then(|range| text.get(range)).map(str::to_owned);
        Self { line: raw.referenced.line().max(1), source, value }
    }

    fn too_deep(&self, left: usize) -> Option<u64> {
        if left == 0 {
            return Some(self.line);
        }
        match &self.value {
            Value::List(items) => items.iter().find_map(|item| item.too_deep(left - 1)),
            Value::Map(entries) => entries.iter().find_map(|(_, value)| value.too_deep(left - 1)),
            _ => None,
        }
    }

    /// The value in words, for messages.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the truth value `{value}`"),
            Value::Int(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(value) => format!("the text {:?}", shortened(value)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a table of keys and values".to_owned(),
        }
    }

    /// A scalar as text, spelled as in the file.
    pub fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Text(value) => Some(value.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
            Value::Bool(value) => Some(self.source.clone().unwrap_or_else(|| value.to_string())),
            Value::Int(value) => Some(self.source.clone().unwrap_or_else(|| value.to_string())),
            Value::Float(value) => Some(self.source.clone().unwrap_or_else(|| value.to_string())),
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn byte_range(location: &Location) -> Option<Range<usize>> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let len = usize::try_from(location.span().byte_len()?).ok()?;
    Some(start..start.checked_add(len)?)
}

/// The parser's message without its place, as our message starts with the line.
fn without_location(error: &serde_saphyr::Error) -> String {
    let message = error.to_string();
    let Some(location) = error.location() else { return message };
    let suffix = format!(" at line {}, column {}", location.line(), location.column());
    message.replace(&suffix, "")
}

/// The result of the deserializer, before the source text is added.
enum Raw {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Int))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
