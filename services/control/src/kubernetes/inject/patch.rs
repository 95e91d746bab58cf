//! Operations of a JSON patch (RFC 6902), with pointers of RFC 6901.

use serde_json::{Map, Value, json};

/// The operations, in the order in which they are applied.
#[derive(Debug, Default)]
pub(super) struct Patch(Vec<Value>);

impl Patch {
    /// Sets a key of the table at `path` in `of`. What is absent on the way is made.
    pub(super) fn set(&mut self, of: &Value, path: &[&str], key: &str, value: Value) {
        let mut at = of;
        for (depth, step) in path.iter().enumerate() {
            match at.get(step).filter(|value| !value.is_null()) {
                Some(next) => at = next,
                None => {
                    let entry = Value::Object(Map::from_iter([(key.to_owned(), value)]));
                    let within = path[depth + 1..].iter().rev();
                    let made = within.fold(entry, |inner, step| json!({ *step: inner }));
                    return self.add(&path[..=depth], made);
                }
            }
        }
        self.add(&[path, &[key]].concat(), value);
    }

    /// Adds entries at the front of the list at `path` in `of`, which may be absent.
    pub(super) fn prepend(&mut self, of: &Value, path: &[&str], entries: Vec<Value>) {
        if !is_list(of, path) {
            return self.add_list(path, entries);
        }
        for (index, entry) in entries.into_iter().enumerate() {
            self.add(&[path, &[&index.to_string()]].concat(), entry);
        }
    }

    /// Adds entries at the end of the list at `path` in `of`, which may be absent.
    pub(super) fn append(&mut self, of: &Value, path: &[&str], entries: Vec<Value>) {
        if !is_list(of, path) {
            return self.add_list(path, entries);
        }
        for entry in entries {
            self.add(&[path, &["-"]].concat(), entry);
        }
    }

    /// Replaces what is at `path`, which must be there.
    pub(super) fn put(&mut self, path: &[&str], value: Value) {
        self.0.push(json!({ "op": "replace", "path": pointer(path), "value": value }));
    }

    fn add_list(&mut self, path: &[&str], entries: Vec<Value>) {
        if !entries.is_empty() {
            self.add(path, Value::Array(entries));
        }
    }

    fn add(&mut self, path: &[&str], value: Value) {
        self.0.push(json!({ "op": "add", "path": pointer(path), "value": value }));
    }

    pub(super) fn into_operations(self) -> Vec<Value> {
        self.0
    }
}

fn is_list(of: &Value, path: &[&str]) -> bool {
    of.pointer(&pointer(path)).is_some_and(Value::is_array)
}

/// `~` and `/` have a meaning in pointers, and are escaped (RFC 6901, section 3).
fn pointer(path: &[&str]) -> String {
    path.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(of: Value) -> Value {
        let mut patch = Patch::default();
        patch.set(&of, &["metadata", "annotations"], "a/b~c", json!("x"));
        patch.into_operations().remove(0)
    }

    #[test]
    fn what_is_absent_is_made() {
        let entry = json!({ "a/b~c": "x" });
        for none in [json!({}), json!({ "metadata": null })] {
            assert_eq!(set(none), json!({ "op": "add", "path": "/metadata", "value": { "annotations": entry } }));
        }
        let none = json!({ "metadata": { "annotations": null } });
        assert_eq!(set(none), json!({ "op": "add", "path": "/metadata/annotations", "value": entry }));
        let some = json!({ "metadata": { "annotations": { "d": "y" } } });
        assert_eq!(set(some), json!({ "op": "add", "path": "/metadata/annotations/a~1b~0c", "value": "x" }));
    }

    #[test]
    fn entries_keep_their_order() {
        let of = json!({ "full": [0], "null": null });
        let mut patch = Patch::default();
        patch.prepend(&of, &["full"], vec![json!(1), json!(2)]);
        patch.append(&of, &["full"], vec![json!(3)]);
        patch.prepend(&of, &["null"], vec![json!(4)]);
        patch.append(&of, &["none"], vec![json!(5), json!(6)]);
        patch.append(&of, &["none"], Vec::new());
        let expected = json!([
            { "op": "add", "path": "/full/0", "value": 1 },
            { "op": "add", "path": "/full/1", "value": 2 },
            { "op": "add", "path": "/full/-", "value": 3 },
            { "op": "add", "path": "/null", "value": [4] },
            { "op": "add", "path": "/none", "value": [5, 6] },
        ]);
        assert_eq!(Value::Array(patch.into_operations()), expected);
    }
}
