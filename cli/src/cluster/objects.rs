//! What is read of a cluster's objects. All other fields are left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What all objects have.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) generation: i64,
    pub(super) deletion_timestamp: Option<String>,
}

/// An object of which only the name and labels matter.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Plain {
    pub(super) metadata: Meta,
}

/// A Service, as far as it says which contracts it implements.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AnnotatedService {
    pub(super) metadata: AnnotatedMeta,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct AnnotatedMeta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) annotations: BTreeMap<String, String>,
    /// Of RFC 3339 in UTC, so that the order of the texts is that of the times.
    pub(super) creation_timestamp: String,
}

/// The answer to `/version`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ServerVersion {
    pub(super) git_version: String,
    pub(super) major: String,
    pub(super) minor: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Deployment {
    pub(super) metadata: Meta,
    pub(super) spec: DeploymentSpec,
    pub(super) status: DeploymentStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct DeploymentSpec {
    pub(super) template: Template,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Template {
    pub(super) spec: TemplateSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct TemplateSpec {
    pub(super) containers: Vec<Container>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) args: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DeploymentStatus {
    pub(super) available_replicas: u32,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Deployment {
    /// The version of Weft that it runs, by its label.
    pub(super) fn version(&self) -> Option<&str> {
        self.metadata.labels.get("app.kubernetes.io/version").map(String::as_str)
    }

    /// The value of a flag of its container.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        let mut args = self.spec.template.spec.containers.iter().flat_map(|container| &container.args);
        args.find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct WebhookConfiguration {
    pub(super) webhooks: Vec<Webhook>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Webhook {
    pub(super) name: String,
    pub(super) client_config: ClientConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClientConfig {
    /// Base64 of PEM.
    pub(super) ca_bundle: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigMap {
    pub(super) metadata: Meta,
    pub(super) data: BTreeMap<String, String>,
}

/// An AccessPolicy, a MethodPolicy or the MeshDefaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Policy {
    pub(super) metadata: Meta,
    pub(super) spec: Value,
    pub(super) status: Value,
}

/// The answer to a review of rights.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AccessReview {
    pub(super) status: AccessStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AccessStatus {
    pub(super) allowed: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointSlice {
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "or_null")]
    pub(super) endpoints: Vec<SliceEndpoint>,
    #[serde(deserialize_with = "or_null")]
    pub(super) ports: Vec<SlicePort>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SliceEndpoint {
    #[serde(deserialize_with = "or_null")]
    pub(super) addresses: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SlicePort {
    /// Any number: the API server does not check it.
    pub(super) port: Option<i64>,
}

/// Go writes a list that is empty as null.
fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
