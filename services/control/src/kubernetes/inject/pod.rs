//! A pod as raw JSON, and errors that name its fields. A field that is null counts as absent, as it does for the API server.

use serde_json::{Map, Value};
use weft_mesh::names::shown;

use super::super::names::{CONTAINER, annotation};

/// How many containers a pod may have, with its init containers. Each costs operations of the patch, and the webhook
/// reads pods that anybody has sent: an empty container is three bytes there.
const CONTAINERS: usize = 256;

/// Why a pod can't get its sidecar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {text}")]
pub struct Error {
    field: String,
    text: String,
}

impl Error {
    pub(super) fn new(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self { field: field.into(), text: text.into() }
    }

    pub(super) fn found(field: impl Into<String>, found: &Value, allowed: &str) -> Self {
        Self::new(field, format!("found {}; allowed: {allowed}", describe(found)))
    }

    /// The same error of a pod that is at `prefix` of an object: `spec.template.` for a Deployment's.
    #[must_use]
    pub fn below(self, prefix: &str) -> Self {
        Self { field: format!("{prefix}{}", self.field), text: self.text }
    }
}

/// A value in words.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the truth value `{value}`"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the text {:?}", shown(value)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table of keys and values".to_owned(),
    }
}

fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|value| !value.is_null())
}

fn table<'a>(value: &'a Value, field: &str) -> Result<&'a Map<String, Value>, Error> {
    value.as_object().ok_or_else(|| Error::found(field, value, "a table of keys and values"))
}

/// The entries of a list; none if it is absent.
fn list<'a>(value: &'a Value, key: &str, field: impl FnOnce() -> String) -> Result<&'a [Value], Error> {
    match get(value, key) {
        None => Ok(&[]),
        Some(Value::Array(entries)) => Ok(entries),
        Some(other) => Err(Error::found(field(), other, "a list")),
    }
}

/// A pod, or the template of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod<'a> {
    value: &'a Value,
    spec: &'a Value,
}

impl<'a> Pod<'a> {
    pub(super) fn new(value: &'a Value) -> Result<Self, Error> {
        table(value, "pod")?;
        let spec = get(value, "spec").ok_or_else(|| Error::new("spec", "missing; allowed: what a pod consists of"))?;
        table(spec, "spec")?;
        if let Some(metadata) = get(value, "metadata") {
            table(metadata, "metadata")?;
        }
        Ok(Self { value, spec })
    }

    /// The whole pod.
    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    /// A field of `spec`.
    pub(super) fn spec(&self, key: &str) -> Option<&'a Value> {
        get(self.spec, key)
    }

    /// The entries of a list in `spec`.
    pub(super) fn spec_list(&self, key: &str) -> Result<&'a [Value], Error> {
        list(self.spec, key, || format!("spec.{key}"))
    }

    /// The value of a label.
    pub(super) fn label(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.metadata_text("labels", key)
    }

    /// The value of an annotation.
    pub(super) fn annotation(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.metadata_text("annotations", key)
    }

    /// The names of its annotations.
    pub(super) fn annotations(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let entries = get(self.value, "metadata").and_then(|metadata| get(metadata, "annotations"));
        entries.and_then(Value::as_object).into_iter().flat_map(Map::keys).map(String::as_str)
    }

    fn metadata_text(&self, of: &str, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(entries) = get(self.value, "metadata").and_then(|metadata| get(metadata, of)) else { return Ok(None) };
        match table(entries, &format!("metadata.{of}"))?.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            // In YAML, 8080 and true are no texts.
            Some(other) => Err(Error::found(format!("metadata.{of}[{key}]"), other, "a text, in quotes")),
        }
    }

    /// Its init containers, then its containers.
    ///
    /// # Errors
    /// There are too many, or one is none.
    pub(super) fn all_containers(&self) -> Result<Vec<Container<'a>>, Error> {
        let count = self.spec_list("initContainers")?.len() + self.spec_list("containers")?.len();
        if count > CONTAINERS {
            let text = format!("found {count} containers, with the init containers; allowed: at most {CONTAINERS}");
            return Err(Error::new("spec.containers", text));
        }
        let mut all = self.containers("initContainers")?;
        all.extend(self.containers("containers")?);
        Ok(all)
    }

    /// The containers of one list.
    pub(super) fn containers(&self, list: &'static str) -> Result<Vec<Container<'a>>, Error> {
        let entries = self.spec_list(list)?.iter().enumerate();
        entries.map(|(index, value)| Container::new(list, index, value)).collect()
    }

    /// Whether Weft has given it a sidecar.
    pub(super) fn has_sidecar(&self) -> Result<bool, Error> {
        let is_marked = self.annotation(annotation::INJECTED)?.is_some();
        Ok(is_marked && self.containers("initContainers")?.iter().any(Container::is_sidecar))
    }
}

/// A container of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Container<'a> {
    list: &'static str,
    index: usize,
    value: &'a Value,
}

impl<'a> Container<'a> {
    fn new(list: &'static str, index: usize, value: &'a Value) -> Result<Self, Error> {
        table(value, &format!("spec.{list}[{index}]"))?;
        Ok(Self { list, index, value })
    }

    /// Its place in the list that it is in.
    pub(super) fn place(&self) -> (&'static str, usize) {
        (self.list, self.index)
    }

    /// The path of a field of it.
    pub(super) fn field(&self, of: &str) -> String {
        format!("spec.{}[{}].{of}", self.list, self.index)
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.value.get("name").and_then(Value::as_str) == Some(name)
    }

    /// A field of it.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        get(self.value, key)
    }

    /// Whether it looks like what [`super::sidecar`] adds: a native sidecar of that name.
    pub(super) fn is_sidecar(&self) -> bool {
        let is_native = self.value.get("restartPolicy").and_then(Value::as_str) == Some("Always");
        self.has_name(CONTAINER) && is_native && self.list == "initContainers"
    }

    /// Its variables, without those that come from elsewhere as a whole (`envFrom`).
    pub(super) fn env(&self) -> Result<&'a [Value], Error> {
        list(self.value, "env", || self.field("env"))
    }

    /// Where in its list of mounts it mounts this volume, if it does.
    pub(super) fn mount_of(&self, volume: &str) -> Result<Option<usize>, Error> {
        let mounts = list(self.value, "volumeMounts", || self.field("volumeMounts"))?;
        Ok(mounts.iter().position(|mount| mount.get("name").and_then(Value::as_str) == Some(volume)))
    }

    /// The TCP ports that it says it listens on.
    pub(super) fn ports(&self) -> Result<Vec<Port<'a>>, Error> {
        let entries = list(self.value, "ports", || self.field("ports"))?.iter().enumerate();
        let is_tcp = |value: &Value| get(value, "protocol").is_none_or(|protocol| protocol == "TCP");
        entries.filter(|(_, value)| is_tcp(value)).map(|(index, value)| self.port(index, value)).collect()
    }

    fn port(&self, index: usize, value: &'a Value) -> Result<Port<'a>, Error> {
        let field = self.field(&format!("ports[{index}].containerPort"));
        let found = value.get("containerPort").unwrap_or(&Value::Null);
        let number = found.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
        let number = number.ok_or_else(|| Error::found(&*field, found, PORTS))?;
        Ok(Port { number, name: value.get("name").and_then(Value::as_str).unwrap_or_default(), field })
    }
}

/// What a port may be.
pub(super) const PORTS: &str = "a whole number from 1 to 65535";

/// A TCP port of a container.
#[derive(Debug)]
pub(super) struct Port<'a> {
    pub(super) number: u16,
    /// Empty if it has none.
    pub(super) name: &'a str,
    /// The path of its number.
    pub(super) field: String,
}
