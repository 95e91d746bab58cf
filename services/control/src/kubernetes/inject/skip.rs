//! Which pods are left alone.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use super::{
    super::names::{CONTAINER, DISABLED, ENABLED, LABEL_INJECT, NAMESPACE},
    pod::{Container, Error, Pod},
};

/// On the API server's copy of a pod that a kubelet has from a file of its own. A change of the copy changes nothing.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The label of a node that says which operating system it has.
const NODE_OS: &str = "kubernetes.io/os";

/// The namespace of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// The value of its label [`LABEL_INJECT`].
    pub inject: Option<String>,
}

impl Namespace {
    /// A namespace with its labels.
    pub fn new(name: impl Into<String>, labels: &BTreeMap<String, String>) -> Self {
        Self { name: name.into(), inject: labels.get(LABEL_INJECT).cloned() }
    }

    /// A namespace whose pods get sidecars.
    pub fn enabled(name: impl Into<String>) -> Self {
        Self { name: name.into(), inject: Some(ENABLED.to_owned()) }
    }
}

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody asked for a sidecar.
    NotEnabled,
    /// Its label says so.
    Disabled,
    /// It is in the namespace of the control plane.
    ControlPlane,
    /// It is the copy of a static pod.
    Mirror,
    /// It is in the network of its node.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// It has a container of the sidecar's name that Weft did not add.
    NameTaken,
    /// It has its sidecar.
    HasSidecar,
}

impl Reason {
    /// Whether somebody asked for a sidecar that the pod can't have, and should be told so.
    pub fn is_refusal(self) -> bool {
        match self {
            Self::NotEnabled | Self::Disabled | Self::HasSidecar | Self::Mirror => false,
            Self::ControlPlane | Self::HostNetwork | Self::Windows | Self::NameTaken => true,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnabled => write!(f, "neither the pod nor its namespace has the label {LABEL_INJECT}: {ENABLED}"),
            Self::Disabled => write!(f, "the pod has the label {LABEL_INJECT}: {DISABLED}"),
            Self::ControlPlane => write!(f, "the pod is in the control plane's namespace `{NAMESPACE}`, where none has a sidecar"),
            Self::Mirror => f.write_str("the pod is static: its kubelet has it from a file of its own, and nobody else can change it"),
            Self::HostNetwork => f.write_str("the pod has `hostNetwork: true`: all such pods of a node share their ports, so they can't have a sidecar each"),
            Self::Windows => f.write_str("the pod runs on Windows; the sidecar runs on Linux only"),
            Self::NameTaken => write!(f, "the pod has a container `{CONTAINER}` that is not Weft's; call it something else"),
            Self::HasSidecar => f.write_str("the pod has its sidecar"),
        }
    }
}

/// Why a pod is left alone, if it is. A pod that has its sidecar is not: it may lack something else.
pub(super) fn reason(namespace: &Namespace, pod: &Pod<'_>) -> Result<Option<Reason>, Error> {
    let is_asked_by_pod = match pod.label(LABEL_INJECT)? {
        Some(value) => Some(is_enabled(&format!("metadata.labels[{LABEL_INJECT}]"), value)?),
        None => None,
    };
    match (is_asked_by_pod, namespace.inject.as_deref()) {
        (Some(true), _) => {}
        (Some(false), _) => return Ok(Some(Reason::Disabled)),
        (None, None) => return Ok(Some(Reason::NotEnabled)),
        (None, Some(value)) => {
            let field = format!("the label {LABEL_INJECT} of the namespace {}", namespace.name);
            if !is_enabled(&field, value)? {
                return Ok(Some(Reason::NotEnabled));
            }
        }
    }
    unsuitable(namespace, pod)
}

fn is_enabled(field: &str, value: &str) -> Result<bool, Error> {
    match value {
        ENABLED => Ok(true),
        DISABLED => Ok(false),
        _ => Err(Error::found(field, &Value::from(value), &format!("{ENABLED}, {DISABLED}"))),
    }
}

/// Why a pod can't have a sidecar, if it can't.
fn unsuitable(namespace: &Namespace, pod: &Pod<'_>) -> Result<Option<Reason>, Error> {
    let is_windows =
        |value: Option<&Value>, key: &str| value.and_then(|value| value.get(key)).is_some_and(|os| os == "windows");
    let is_taken = || -> Result<bool, Error> {
        let all = pod.all_containers()?;
        let named = all.iter().filter(|container| container.has_name(CONTAINER)).count();
        let ours = if pod.has_sidecar()? { all.iter().filter(|c| Container::is_sidecar(c)).count() } else { 0 };
        Ok(named > ours)
    };
    Ok(if namespace.name == NAMESPACE {
        Some(Reason::ControlPlane)
    } else if pod.annotation(MIRROR)?.is_some() {
        Some(Reason::Mirror)
    } else if pod.spec("hostNetwork") == Some(&Value::Bool(true)) {
        Some(Reason::HostNetwork)
    } else if is_windows(pod.spec("os"), "name") || is_windows(pod.spec("nodeSelector"), NODE_OS) {
        Some(Reason::Windows)
    } else if is_taken()? {
        Some(Reason::NameTaken)
    } else {
        None
    })
}
