//! The manifests of the control plane, as plain YAML.
//!
//! They are files in `manifests/` with places for [`Values`]. A place gets a number, a name, or a text in quotes, never a
//! part of a manifest, so they read the same before and after. They hold no secret: the control plane makes its CA when it
//! starts, and the certificate that the API server has to trust (`caBundle`) is the control plane's to set.

mod chart;
mod values;

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

pub use self::{
    chart::{chart, chart_values},
    values::{KEYS, Values},
};

use super::inject::Resources;

/// The names by which the dashboard and the receiver of spans are called in a cluster.
const DASHBOARD_HOSTS: &[&str] = &["control.weft", "control.weft.svc", "control.weft.svc.cluster.local"];

/// A file of manifests: its name, and its text with places for values.
type Template = (&'static str, &'static str);

/// The custom resources.
const CRDS: &str = include_str!("install/manifests/crds.yaml");

/// In the order in which they are applied.
const TEMPLATES: &[Template] = &[
    ("crds.yaml", CRDS),
    ("namespace.yaml", include_str!("install/manifests/namespace.yaml")),
    ("rights.yaml", include_str!("install/manifests/rights.yaml")),
    ("injector.yaml", include_str!("install/manifests/injector.yaml")),
    ("network.yaml", include_str!("install/manifests/network.yaml")),
    ("control.yaml", include_str!("install/manifests/control.yaml")),
    ("webhook.yaml", include_str!("install/manifests/webhook.yaml")),
];

/// Manifests that belong together: a file of `k8s/base/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The file's name.
    pub name: &'static str,
    /// One YAML document or several.
    pub text: String,
}

/// All manifests, in the order in which they are applied. Equal values give equal text.
pub fn parts(values: &Values) -> Vec<Part> {
    let places = places(values);
    TEMPLATES.iter().map(|(name, template)| Part { name, text: filled(template, &places) }).collect()
}

/// All manifests as one text: what `weft install` prints.
pub fn manifests(values: &Values) -> String {
    let texts: Vec<String> = parts(values).into_iter().map(|part| part.text).collect();
    texts.join("---\n")
}

/// What names each object of the manifests, in the order in which they are applied.
pub fn objects() -> Vec<Object> {
    TEMPLATES.iter().flat_map(|(_, template)| template.split("---\n")).filter_map(Object::of).collect()
}

/// The definitions of the custom resources, and nothing else: what `weft install --crds` prints.
pub fn crds() -> &'static str {
    CRDS
}

/// What takes the control plane away again, for `kubectl delete -f -`: first the webhook, so that pods can be created
/// meanwhile, then everything else in reverse order. The custom resources, with all objects of theirs, are last.
pub fn removal() -> String {
    let mut objects = objects();
    objects.reverse();
    objects.sort_by_key(|object| object.kind != "MutatingWebhookConfiguration");
    let texts: Vec<String> = objects.iter().map(Object::text).collect();
    texts.join("---\n")
}

/// What names an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// `apps/v1`
    pub api_version: String,
    /// `Deployment`
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace, unless it belongs to the whole cluster.
    pub namespace: Option<String>,
}

impl Object {
    /// Of a manifest, whose values need not be there yet.
    fn of(template: &str) -> Option<Self> {
        let text = |line: &str| Some(line.split_once(": ")?.1.trim().to_owned());
        let find = |start: &str| template.lines().find(|line| line.starts_with(start)).and_then(text);
        Some(Self {
            api_version: find("apiVersion: ")?,
            kind: find("kind: ")?,
            name: find("  name: ")?,
            namespace: find("  namespace: "),
        })
    }

    fn text(&self) -> String {
        let Self { api_version, kind, name, namespace } = self;
        let namespace = namespace.as_ref().map_or_else(String::new, |namespace| format!("  namespace: {namespace}\n"));
        format!("apiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: {name}\n{namespace}")
    }
}

/// What goes where. Each value was checked when it was read; what YAML could take for something else is quoted.
fn places(values: &Values) -> Vec<(&'static str, String)> {
    let Values { sidecars, control, .. } = values;
    let hosts = DASHBOARD_HOSTS.iter().copied().chain(control.dashboard_host.iter().map(String::as_str));
    let hosts: Vec<&str> = hosts.collect();
    let Resources { requests, limits } = &control.resources;
    let inject = sidecars.to_yaml();
    let indented: Vec<String> = inject.lines().map(|line| format!("    {line}")).collect();
    vec![
        ("version", quoted(env!("CARGO_PKG_VERSION"))),
        ("image", quoted(&control.image)),
        ("replicas", control.replicas.to_string()),
        ("image_pull_policy", sidecars.image_pull_policy.to_string()),
        ("trust_domain", sidecars.trust_domain.to_string()),
        ("log_format", sidecars.log_format.to_string()),
        ("dashboard_hosts", hosts.join(",")),
        ("cpu_request", quoted(requests.cpu.as_str())),
        ("cpu_limit", quoted(limits.cpu.as_str())),
        ("memory_request", quoted(requests.memory.as_str())),
        ("memory_limit", quoted(limits.memory.as_str())),
        ("inject_digest", quoted(&hex(&Sha256::digest(&inject)))),
        ("inject", indented.join("\n")),
    ]
}

/// The template with a value in each place.
fn filled(template: &str, places: &[(&'static str, String)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{ ") {
        let (key, after) = after.split_once(" }}").expect("a place of a manifest has an end");
        let (_, value) = places.iter().find(|(name, _)| *name == key).expect("each place of a manifest has a value");
        text.push_str(before);
        text.push_str(value);
        rest = after;
    }
    text + rest
}

/// A text as JSON has it, which is YAML too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
