//! The ConfigMap with a service's contracts.

use anyhow::ensure;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use weft_control::kubernetes::names::{DESCRIPTORS, IMPLEMENTED};
use weft_mesh::limits::CONTRACTS_PER_SERVICE;

use super::input::Input;

/// The most that the values of a ConfigMap may have together, says Kubernetes.
const MOST_BYTES: usize = 1 << 20;
/// The longest list of contracts. Sidecars get it in a variable of their environment, and Linux takes no longer one than
/// twice of this.
const MOST_LIST_BYTES: usize = 64 << 10;

/// The object, in the form of the API.
///
/// # Errors
/// It would be too large.
pub(super) fn object(name: &str, namespace: Option<&str>, input: &Input) -> anyhow::Result<Value> {
    let (count, list) = (input.contracts.len(), input.contracts.join(","));
    ensure!(
        count <= CONTRACTS_PER_SERVICE && list.len() <= MOST_LIST_BYTES,
        "found {count} contracts, whose names have {} bytes; allowed: at most {CONTRACTS_PER_SERVICE} with {MOST_LIST_BYTES} \
         bytes. --contracts says which of them the service implements",
        list.len()
    );
    let bytes = input.descriptor_set.len();
    ensure!(
        bytes + list.len() <= MOST_BYTES,
        "the compiled contracts have {bytes} bytes with all that they import; allowed: at most {} beside the list of \
         contracts, as a ConfigMap has room for {MOST_BYTES}. Import smaller files, or let the application answer server \
         reflection",
        MOST_BYTES - list.len()
    );
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": { IMPLEMENTED: list },
        "binaryData": { DESCRIPTORS: BASE64_STANDARD.encode(&input.descriptor_set) },
    }))
}

/// The object as YAML. All texts in it are in quotes, as some names are something else in YAML, such as `on`.
pub(super) fn yaml(object: &Value) -> String {
    let mut text = String::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        match value {
            Value::Object(entries) => {
                text.push_str(&format!("{key}:\n"));
                entries.iter().for_each(|(key, value)| text.push_str(&format!("  {key}: {value}\n")));
            }
            value => text.push_str(&format!("{key}: {value}\n")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(contracts: &[&str], bytes: usize) -> Input {
        let contracts = contracts.iter().map(|contract| (*contract).to_owned()).collect();
        Input { contracts, descriptor_set: vec![b'x'; bytes] }
    }

    #[test]
    fn the_object_is_a_config_map_in_yaml_too() {
        for namespace in [None, Some("shop")] {
            let object = object("on", namespace, &input(&["a.B", "c.D"], 2)).unwrap();
            assert_eq!(object["metadata"].get("namespace").and_then(Value::as_str), namespace);
            assert_eq!(object["data"], json!({ "contracts": "a.B,c.D" }));
            assert_eq!(object["binaryData"], json!({ "descriptors.binpb": "eHg=" }));
            let read: Value = serde_saphyr::from_str(&yaml(&object)).unwrap();
            assert_eq!(read, object);
        }
        let text = yaml(&object("a", None, &input(&["a.B"], 1)).unwrap());
        assert!(text.starts_with("apiVersion: \"v1\"\nkind: \"ConfigMap\"\nmetadata:\n  name: \"a\"\n"), "{text}");
    }

    #[test]
    fn what_a_config_map_has_no_room_for_is_refused() {
        let told =
            |contracts: &[&str], bytes| object("a", None, &input(contracts, bytes)).map_err(|error| error.to_string());
        assert!(told(&["a.B"], (1 << 20) - 3).is_ok());
        let large = told(&["a.B"], (1 << 20) - 2).unwrap_err();
        assert!(
            large.starts_with(
                "the compiled contracts have 1048574 bytes with all that they import; allowed: at most 1048573"
            ),
            "{large}"
        );
        let many = told(&["a.B"; 1_001], 1).unwrap_err();
        assert!(many.starts_with("found 1001 contracts, whose names have 4003 bytes; allowed: at most 1000"), "{many}");
        let long = "a".repeat(1_000);
        let long = told(&[long.as_str(); 66], 1).unwrap_err();
        assert!(long.starts_with("found 66 contracts, whose names have 66065 bytes"), "{long}");
    }
}
