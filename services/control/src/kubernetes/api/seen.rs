//! Objects of the cluster as the watches read them.
//!
//! Anybody may write odd values into fields that nobody here needs. `metadata.managedFields`, above all, takes times that Go can
//! read and others can't. One object that can't be read would make all of its list unreadable, so what is not needed is not read.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// An object of the kind `K`, with what `C` reads of its other fields.
pub(super) struct Seen<K, C> {
    /// Only its names, its labels and annotations, and its times.
    pub(super) metadata: ObjectMeta,
    pub(super) content: C,
    kind: PhantomData<fn() -> K>,
}

/// Of an object of which only the metadata counts.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Nothing {}

/// All other fields are skipped, however deep they are nested.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
}

impl From<Metadata> for ObjectMeta {
    fn from(found: Metadata) -> Self {
        // A time that can't be read is one, all the same.
        let time = |text: String| Time(text.parse().unwrap_or(Timestamp::UNIX_EPOCH));
        Self {
            name: found.name,
            namespace: found.namespace,
            uid: found.uid,
            resource_version: found.resource_version,
            generation: found.generation,
            labels: found.labels,
            annotations: found.annotations,
            creation_timestamp: found.creation_timestamp.map(time),
            deletion_timestamp: found.deletion_timestamp.map(time),
            ..Self::default()
        }
    }
}

impl<'de, K, C: Deserialize<'de>> Deserialize<'de> for Seen<K, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw<C> {
            #[serde(default)]
            metadata: Metadata,
            #[serde(flatten)]
            content: C,
        }
        let Raw { metadata, content } = Raw::deserialize(deserializer)?;
        Ok(Self { metadata: metadata.into(), content, kind: PhantomData })
    }
}

impl<K, C: Clone> Clone for Seen<K, C> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), content: self.content.clone(), kind: PhantomData }
    }
}

impl<K, C: fmt::Debug> fmt::Debug for Seen<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").field("metadata", &self.metadata).field("content", &self.content).finish()
    }
}

impl<K: Resource, C> Resource for Seen<K, C> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

    /// The API server takes this time, and nobody here needs it.
    #[test]
    fn what_is_not_needed_may_have_any_value() {
        let deep = format!("{}{}", "{\"f:a\":".repeat(2_000) + "{}", "}".repeat(2_000));
        let object = format!(
            r#"{{"kind": "Pod", "metadata": {{"name": "a", "namespace": "shop", "labels": {{"b": "c"}},
                "creationTimestamp": "2026-11-30T10:00:00Z", "deletionTimestamp": "9999-12-31T23:59:59Z",
                "managedFields": [{{"manager": "x", "time": "9999-12-31T23:59:59Z", "fieldsV1": {deep}}}]}},
                "spec": {{"containers": null}}}}"#
        );
        assert!(serde_json::from_str::<Pod>(&object).is_err(), "or else there is nothing to see here");
        let list = format!(r#"{{"metadata": {{}}, "items": [{object}]}}"#);
        let list: ObjectList<Seen<Pod, Nothing>> = serde_json::from_str(&list).unwrap();
        let found = &list.items[0].metadata;
        assert_eq!((found.name.as_deref(), found.namespace.as_deref()), (Some("a"), Some("shop")));
        assert_eq!(found.labels, Some([("b".to_owned(), "c".to_owned())].into()));
        assert_eq!(json!(found.creation_timestamp), json!("2026-11-30T10:00:00Z"));
        assert!(found.deletion_timestamp.is_some(), "it is being deleted");
        let event = format!(r#"{{"type": "DELETED", "object": {object}}}"#);
        let event: WatchEvent<Seen<Pod, Nothing>> = serde_json::from_str(&event).unwrap();
        assert!(matches!(event, WatchEvent::Deleted(_)));
    }
}
