//! The pods of a cluster, with what matters of their sidecars.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;
use weft_control::kubernetes::{
    inject::{self, Config, Decision, Namespace, Reason},
    names::{CONTAINER, annotation},
};

use super::api::{Api, Listed, Trouble};

/// A namespace that the webhook is never asked about.
const NEVER: &str = "kube-system";
/// The longest reason of a pod's state.
const WHY_CHARS: usize = 200;

/// All namespaces by name.
pub(super) type Namespaces = BTreeMap<String, Namespace>;

/// A pod that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) ip: Option<IpAddr>,
    /// Its service account, which is its identity.
    pub(super) account: String,
    pub(super) sidecar: Sidecar,
    /// Why it is not ready, if it is not.
    pub(super) not_ready: Option<String>,
    /// The port of the application that others call, by the variables of its sidecar.
    pub(super) port: Option<u16>,
}

/// Whether a pod has a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sidecar {
    /// It has one, of this version.
    Has(String),
    /// It should have one: its labels say so.
    Lacks,
    /// It could not be made today, by this error.
    Refused(String),
    /// It is left alone.
    LeftAlone(Reason),
    /// It is in a namespace that the webhook is never asked about, although a label asks for a sidecar.
    NeverAsked,
}

impl Pod {
    /// `NAMESPACE/NAME`
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it has a sidecar.
    pub(super) fn has_sidecar(&self) -> bool {
        matches!(self.sidecar, Sidecar::Has(_))
    }

    /// Reads one; `None` if it has ended, or is being deleted.
    pub(super) fn read(namespaces: &Namespaces, object: &Value) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let is_over = matches!(text("/status/phase"), Some("Succeeded" | "Failed"));
        if is_over || text("/metadata/deletionTimestamp").is_some() {
            return None;
        }
        let namespace = text("/metadata/namespace")?.to_owned();
        let of = |name: &str| Namespace { name: name.to_owned(), inject: None };
        let has_sidecar = inject::has_sidecar(object);
        let sidecar = if has_sidecar {
            let version = object.pointer("/metadata/annotations").and_then(|all| all[annotation::INJECTED].as_str());
            Sidecar::Has(version.unwrap_or_default().to_owned())
        } else {
            let labels = namespaces.get(&namespace).cloned().unwrap_or_else(|| of(&namespace));
            match inject::inject(&Config::default(), &labels, object) {
                Ok(Decision::Patch(_)) if namespace == NEVER => Sidecar::NeverAsked,
                Ok(Decision::Patch(_)) => Sidecar::Lacks,
                Ok(Decision::Skip(reason)) => Sidecar::LeftAlone(reason),
                Err(error) => Sidecar::Refused(error.to_string()),
            }
        };
        let account = text("/spec/serviceAccountName").filter(|name| !name.is_empty()).unwrap_or("default");
        Some(Self {
            name: text("/metadata/name")?.to_owned(),
            ip: text("/status/podIP").and_then(|ip| ip.parse().ok()),
            account: account.to_owned(),
            not_ready: not_ready(object, has_sidecar),
            port: has_sidecar.then(|| port(object)).flatten(),
            sidecar,
            namespace,
        })
    }
}

/// All pods that have not ended.
pub(super) async fn all(api: &Api, namespaces: &Namespaces) -> Result<Listed<Pod>, Trouble> {
    api.list("/api/v1/pods", "", |object: Value| Pod::read(namespaces, &object)).await
}

fn list<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn has_name(name: &'static str) -> impl Fn(&&Value) -> bool {
    move |of| of["name"] == name
}

/// Where the sidecar calls the application.
fn port(object: &Value) -> Option<u16> {
    let sidecar = list(object, "/spec/initContainers").find(has_name(CONTAINER))?;
    let address = list(sidecar, "/env").find(has_name("WEFT_APP"))?["value"].as_str()?;
    address.rsplit_once(':')?.1.parse().ok()
}

/// Why a pod is not ready; `None` if it is.
fn not_ready(object: &Value, has_sidecar: bool) -> Option<String> {
    let condition = |kind: &'static str| list(object, "/status/conditions").find(move |of| of["type"] == kind);
    if condition("Ready").is_some_and(|ready| ready["status"] == "True") {
        return None;
    }
    let short = |text: &str| weft_mesh::names::shown_up_to(text, WHY_CHARS);
    let said = |of: &Value| {
        let (reason, message) = (of["reason"].as_str().unwrap_or_default(), of["message"].as_str().unwrap_or_default());
        short(&if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") })
    };
    if let Some(scheduled) = condition("PodScheduled").filter(|scheduled| scheduled["status"] == "False") {
        return Some(format!("it is on no node: {}", said(scheduled)));
    }
    let statuses = || list(object, "/status/initContainerStatuses").chain(list(object, "/status/containerStatuses"));
    let waiting = |status: &&Value| !status["state"]["waiting"].is_null() && !is_ordinary(&status["state"]["waiting"]);
    if let Some(status) = statuses().find(waiting) {
        let name = short(status["name"].as_str().unwrap_or_default());
        return Some(format!("its container `{name}` waits: {}", said(&status["state"]["waiting"])));
    }
    if has_sidecar {
        let Some(status) = statuses().find(has_name(CONTAINER)) else {
            return Some("its containers have not been made yet".to_owned());
        };
        if status["started"] != true {
            return Some(match status["state"]["running"].is_null() {
                true => "its sidecar has not been started yet".to_owned(),
                false => "its sidecar waits for its identity".to_owned(),
            });
        }
        if status["ready"] == false {
            let why = "its sidecar is not ready: the application does not answer its health check, or the control plane \
                       has not taken its announcement";
            return Some(why.to_owned());
        }
    }
    let unready = statuses().find(|status| status["ready"] == false && status["state"]["terminated"]["exitCode"] != 0);
    Some(match unready.and_then(|status| status["name"].as_str()) {
        Some(name) => format!("its container `{}` is not ready", short(name)),
        None => "it is not ready".to_owned(),
    })
}

/// A container that waits for others to start.
fn is_ordinary(waiting: &Value) -> bool {
    matches!(waiting["reason"].as_str(), Some("PodInitializing" | "ContainerCreating"))
}
