//! Takes values out of the tree, and notes each problem.

use std::{collections::HashMap, fmt::Display, ops::RangeInclusive, time::Duration};

use super::{
    Located,
    problem::Problem,
    yaml::{Node, Value},
};
use crate::names::closest;

/// Collects problems while it reads the tree.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The name of the file, as it was given.
    pub file: &'a str,
    /// The problems that were found so far.
    pub problems: Vec<Problem>,
}

/// A map in the file, and its path.
#[derive(Debug)]
pub struct Table<'a> {
    /// `services.users`; empty for the root.
    pub field: String,
    entries: Vec<Entry<'a>>,
}

/// One entry of a [`Table`].
#[derive(Debug)]
pub struct Entry<'a> {
    /// The key, as it is written in the file.
    pub key: String,
    /// The key's line.
    pub line: u64,
    /// The value.
    pub node: &'a Node,
}

impl<'a> Table<'a> {
    /// The value of a key; `None` if it is left out.
    pub fn get(&self, key: &str) -> Option<&'a Node> {
        // A key without a value counts as left out.
        self.entries.iter().find(|e| e.key == key && !matches!(e.node.value, Value::Null)).map(|e| e.node)
    }

    /// The path of a key: `services.users.port`.
    pub fn path(&self, key: &str) -> String {
        join(&self.field, key)
    }

    /// Every entry, in the order of the file.
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }
}

fn join(field: &str, key: &str) -> String {
    if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") }
}

impl<'a> Reader<'a> {
    /// Notes a problem with a field.
    pub fn problem(&mut self, line: u64, field: &str, text: impl Into<String>) {
        self.problems.push(Problem::new(self.file, line, field, text));
    }

    fn wrong_type(&mut self, node: &Node, field: &str, allowed: impl Display) {
        self.problem(node.line, field, format!("found {}; allowed: {allowed}", node.describe()));
    }

    /// A map with only these keys.
    pub fn table<'n>(&mut self, field: &str, node: &'n Node, allowed: &[&str]) -> Option<Table<'n>> {
        let table = self.open_table(field, node, &format!("a table of {}", allowed.join(", ")))?;
        for Entry { key, line, .. } in &table.entries {
            if !allowed.contains(&key.as_str()) {
                let hint = closest(key, allowed.iter().copied())
                    .map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
                let allowed = allowed.join(", ");
                self.problem(*line, &table.path(key), format!("unknown key; allowed: {allowed}{hint}"));
            }
        }
        Some(table)
    }

    /// A map whose keys the user chooses.
    pub fn open_table<'n>(&mut self, field: &str, node: &'n Node, allowed: &str) -> Option<Table<'n>> {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(node, field, allowed);
            return None;
        };
        let mut table = Table { field: field.to_owned(), entries: Vec::with_capacity(entries.len()) };
        let mut seen = HashMap::new();
        for (key_node, value) in entries {
            let Some(key) = key_node.scalar_text() else {
                self.wrong_type(key_node, field, "text as a key");
                continue;
            };
            if let Some(first) = seen.get(&key) {
                let text = format!("there twice, first in line {first}; allowed: once");
                self.problem(key_node.line, &table.path(&key), text);
                continue;
            }
            seen.insert(key.clone(), key_node.line);
            table.entries.push(Entry { key, line: key_node.line, node: value });
        }
        Some(table)
    }

    /// Notes each of these keys that is there without a value. Elsewhere that counts as left out, but a rule that nobody has
    /// filled in must not count as none.
    pub fn must_have_values(&mut self, table: &Table<'_>, keys: &[&str]) {
        for Entry { key, line, node } in &table.entries {
            if keys.contains(&key.as_str()) && matches!(node.value, Value::Null) {
                self.problem(*line, &table.path(key), "found nothing; allowed: a value, or no such key");
            }
        }
    }

    /// A text that is not empty.
    pub fn text(&mut self, table: &Table<'_>, key: &str, allowed: &str) -> Option<Located<String>> {
        let node = table.get(key)?;
        match &node.value {
            Value::Text(value) if !value.trim().is_empty() => Some(Located { value: value.clone(), line: node.line }),
            Value::Text(_) => {
                self.problem(node.line, &table.path(key), format!("found an empty text; allowed: {allowed}"));
                None
            }
            _ => {
                self.wrong_type(node, &table.path(key), allowed);
                None
            }
        }
    }

    /// A text, or a list of texts.
    pub fn texts(&mut self, table: &Table<'_>, key: &str, allowed: &str) -> Option<Vec<Located<String>>> {
        let node = table.get(key)?;
        let field = table.path(key);
        let Value::List(items) = &node.value else {
            return self.text(table, key, allowed).map(|text| vec![text]);
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match &item.value {
                Value::Text(value) => texts.push(Located { value: value.clone(), line: item.line }),
                _ => self.wrong_type(item, &field, format!("a list in which each entry is {allowed}")),
            }
        }
        Some(texts)
    }

    /// A whole number in a range; `note` explains the range.
    pub fn whole_number(
        &mut self,
        table: &Table<'_>,
        key: &str,
        range: RangeInclusive<i64>,
        note: &str,
    ) -> Option<Located<i64>> {
        let node = table.get(key)?;
        match node.value {
            Value::Int(value) if range.contains(&value) => Some(Located { value, line: node.line }),
            _ => {
                let allowed = format!("a whole number from {} to {}{note}", range.start(), range.end());
                self.wrong_type(node, &table.path(key), allowed);
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn truth(&mut self, table: &Table<'_>, key: &str) -> Option<Located<bool>> {
        let node = table.get(key)?;
        if let Value::Bool(value) = node.value {
            return Some(Located { value, line: node.line });
        }
        self.wrong_type(node, &table.path(key), "true or false");
        None
    }

    /// A share from 0 to 1.
    pub fn share(&mut self, table: &Table<'_>, key: &str) -> Option<f64> {
        let node = table.get(key)?;
        let value = match node.value {
            Value::Int(value) => value as f64,
            Value::Float(value) => value,
            _ => f64::NAN,
        };
        if (0.0..=1.0).contains(&value) {
            return Some(value);
        }
        self.wrong_type(node, &table.path(key), "a number from 0 to 1");
        None
    }

    /// A time in a range, which `allowed` tells: `1h30m`, as the Gateway API has it (GEP-2257).
    pub fn duration(
        &mut self,
        table: &Table<'_>,
        key: &str,
        range: &RangeInclusive<Duration>,
        allowed: &str,
    ) -> Option<Duration> {
        let node = table.get(key)?;
        let found = match &node.value {
            Value::Text(text) => duration(text).filter(|found| range.contains(found)),
            _ => None,
        };
        if found.is_none() {
            self.wrong_type(node, &table.path(key), format!("{allowed}, such as 1m30s or 50ms"));
        }
        found
    }

    /// A text that is read by `parse`, whose error says what is allowed.
    pub fn parsed<T, E: Display>(
        &mut self,
        table: &Table<'_>,
        key: &str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(table, key, allowed)?;
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(text.line, &table.path(key), error.to_string());
                None
            }
        }
    }
}

/// Reads a time as the Gateway API has it (GEP-2257): one to four numbers of up to five digits, each with its unit, `h`, `m`, `s`
/// or `ms`.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let (mut rest, mut total) = (text, Duration::ZERO);
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let (number, unit) = rest.split_at(digits);
        let (millis, left) = UNITS.iter().find_map(|(name, millis)| Some((millis, unit.strip_prefix(name)?)))?;
        total += Duration::from_millis(number.parse::<u64>().ok()? * millis);
        if left.is_empty() {
            return Some(total);
        }
        rest = left;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        let millis = |text: &str| duration(text).map(|found| found.as_millis());
        assert_eq!(millis("50ms"), Some(50));
        assert_eq!(millis("1h30m"), Some(5_400_000));
        assert_eq!(millis("1h2m3s4ms"), Some(3_723_004));
        assert_eq!(millis("0s"), Some(0));
        assert_eq!(millis("99999h"), Some(99_999 * 3_600_000));
        for wrong in ["", "5", "s", "5x", "1.5s", "-1s", "100000s", "1s ", "1s1s1s1s1s", "1é", "5µs"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
