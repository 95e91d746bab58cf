//! Where the pods of an object are.

use serde_json::Value;
use weft_control::kubernetes::inject::Namespace;
use weft_mesh::names::DEFAULT_NAMESPACE;

/// The kinds whose pods get a sidecar: the group of their API, and where the template of their pods is.
const KINDS: &[(&str, &str, &[&str])] = &[
    ("Pod", "", &[]),
    ("Deployment", "apps", &["spec", "template"]),
    ("StatefulSet", "apps", &["spec", "template"]),
    ("DaemonSet", "apps", &["spec", "template"]),
    ("ReplicaSet", "apps", &["spec", "template"]),
    ("Job", "batch", &["spec", "template"]),
    ("CronJob", "batch", &["spec", "jobTemplate", "spec", "template"]),
];

/// A pod of an object, or the template of one.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) place: Place,
    pub(super) namespace: Namespace,
}

/// Where it is in the object.
#[derive(Debug, Clone, Default)]
pub(super) struct Place(Vec<Step>);

#[derive(Debug, Clone, Copy)]
enum Step {
    Key(&'static str),
    Index(usize),
}

impl Place {
    fn then(&self, steps: impl IntoIterator<Item = Step>) -> Self {
        Self(self.0.iter().copied().chain(steps).collect())
    }

    /// Whether it is the whole object.
    pub(super) fn is_document(&self) -> bool {
        self.0.is_empty()
    }

    /// What is there; null if nothing is.
    pub(super) fn of<'a>(&self, object: &'a Value) -> &'a Value {
        const NOTHING: &Value = &Value::Null;
        self.0.iter().fold(object, |at, step| match step {
            Step::Key(key) => at.get(key).unwrap_or(NOTHING),
            Step::Index(index) => at.get(index).unwrap_or(NOTHING),
        })
    }

    /// The same, to be changed. It must be there.
    pub(super) fn of_mut<'a>(&self, object: &'a mut Value) -> &'a mut Value {
        self.0.iter().fold(object, |at, step| match step {
            Step::Key(key) => &mut at[key],
            Step::Index(index) => &mut at[index],
        })
    }

    /// What comes before the names of its fields in messages: `spec.template.`
    pub(super) fn prefix(&self) -> String {
        let mut prefix = String::new();
        for step in &self.0 {
            match step {
                Step::Key(key) => prefix += &format!("{key}."),
                // An index belongs to the key before it.
                Step::Index(index) => prefix.insert_str(prefix.len() - 1, &format!("[{index}]")),
            }
        }
        prefix
    }
}

/// All pods of an object. A `List`, as kubectl prints several objects, has those of its items.
///
/// # Errors
/// An object of such a kind has no template.
pub(super) fn pods(object: &Value) -> Result<Vec<Workload>, String> {
    let mut pods = Vec::new();
    find(object, &Place::default(), &mut pods)?;
    Ok(pods)
}

fn find(object: &Value, place: &Place, pods: &mut Vec<Workload>) -> Result<(), String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, version) = (text("kind"), text("apiVersion"));
    let group = version.split_once('/').map_or("", |(group, _)| group);
    if (kind, version) == ("List", "v1") {
        for (index, item) in object.get("items").and_then(Value::as_array).into_iter().flatten().enumerate() {
            find(item, &place.then([Step::Key("items"), Step::Index(index)]), pods)?;
        }
        return Ok(());
    }
    let Some((_, _, template)) = KINDS.iter().find(|(name, of, _)| (kind, group) == (*name, *of)) else {
        return Ok(());
    };
    let below = Place(template.iter().copied().map(Step::Key).collect());
    let place = place.then(below.0.iter().copied());
    if !below.of(object).is_object() {
        return Err(format!("{}: missing; allowed: what a pod consists of", place.prefix().trim_end_matches('.')));
    }
    let namespace = object.get("metadata").and_then(|metadata| metadata.get("namespace")).and_then(Value::as_str);
    // Who names a pod here wants its sidecar.
    pods.push(Workload { place, namespace: Namespace::enabled(namespace.unwrap_or(DEFAULT_NAMESPACE)) });
    Ok(())
}
