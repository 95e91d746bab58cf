//! The Helm chart: the same manifests, with an expression of Helm in each place. `values.schema.json` allows only what may stand
//! there without being taken for something else.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{DASHBOARD_HOSTS, Part, TEMPLATES, filled, values::KEYS};
use crate::kubernetes::names::{DISABLED, ENABLED};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The files of the chart, by their paths in its folder.
pub fn chart() -> Vec<(String, String)> {
    let text = |path: &str, text: String| (path.to_owned(), text);
    let mut files = vec![
        text("Chart.yaml", about()),
        text("values.yaml", values()),
        text("values.schema.json", format!("{:#}\n", sorted(schema()))),
        text("templates/_inject.tpl", INJECT.to_owned()),
    ];
    files.extend(templates().into_iter().map(|part| text(&format!("templates/{}", part.name), part.text)));
    files
}

fn about() -> String {
    format!(
        "apiVersion: v2\nname: weft\ndescription: The control plane of Weft, a gRPC service mesh\ntype: application\n\
         version: {VERSION}\nappVersion: \"{VERSION}\"\nkubeVersion: \">=1.30.0-0\"\n"
    )
}

/// The defaults of all values, as JSON.
pub fn chart_values() -> Value {
    let mut root = Map::new();
    for (key, default, _) in KEYS {
        let value = match *key {
            "sample_ratio" | "control.replicas" => default.parse().expect("a number"),
            "otlp" | "control.dashboard_host" => {
                let items = default.trim_matches(['[', ']']).split(',').map(str::trim).filter(|item| !item.is_empty());
                items.collect()
            }
            _ => Value::from(default.replace("VERSION", VERSION)),
        };
        let (table, name) = place(&mut root, key);
        table.insert(name.to_owned(), value);
    }
    Value::Object(root)
}

/// The table that a key is in, and its name there.
fn place<'a, 'k>(root: &'a mut Map<String, Value>, key: &'k str) -> (&'a mut Map<String, Value>, &'k str) {
    match key.split_once('.') {
        None => (root, key),
        Some((of, name)) => {
            let table = root.entry(of).or_insert_with(|| Value::Object(Map::new()));
            (table.as_object_mut().expect("keys have two levels"), name)
        }
    }
}

/// The file with the defaults, in the order of their list.
fn values() -> String {
    let defaults = chart_values();
    let mut text = "# The values of `weft install`: docs/kubernetes.md has more about each.\n".to_owned();
    let mut table = "";
    for (key, _, what) in KEYS {
        let (of, name) = key.split_once('.').unwrap_or(("", key));
        if of != table {
            text += &format!("{of}:\n");
            table = of;
        }
        let value = if of.is_empty() { &defaults[name] } else { &defaults[of][name] };
        let indent = if of.is_empty() { "" } else { "  " };
        text += &format!("{indent}# {what}\n{indent}{name}: {value}\n");
    }
    text
}

fn schema() -> Value {
    let mut root = Map::new();
    for (key, _, what) in KEYS {
        let name = key.rsplit('.').next().unwrap_or(key);
        let mut of = match name {
            // `helm --set` makes a text of what has a point.
            "sample_ratio" => {
                json!({"type": ["string", "number"], "minimum": 0, "maximum": 1, "pattern": "^(0(\\.[0-9]+)?|1(\\.0+)?)$"})
            }
            "replicas" => json!({"type": "integer", "minimum": 1, "maximum": 10}),
            "default" => json!({"enum": [ENABLED, DISABLED]}),
            "image_pull_policy" => json!({"enum": ["Always", "IfNotPresent", "Never"]}),
            "log_format" => json!({"enum": ["text", "json"]}),
            "trust_domain" => json!({"type": "string", "pattern": "^[a-z0-9._-]{1,255}$"}),
            "image" => json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9./:@_-]{0,511}$"}),
            "otlp" => json!({"type": "array", "items": {"type": "string", "pattern": "^https?://[^,\\s\"]+$"}}),
            "dashboard_host" => json!({"type": "array", "items": {"type": "string", "pattern": "^[a-z0-9.-]{1,253}$"}}),
            // An amount.
            _ => json!({"type": ["string", "number"], "pattern": "^[0-9]+(\\.[0-9]+)?([a-zA-Z]{1,2})?$"}),
        };
        of["description"] = json!(what);
        match key.split_once('.') {
            None => drop(root.insert(name.to_owned(), of)),
            Some((table, _)) => {
                let empty = || json!({"type": "object", "additionalProperties": false, "properties": {}});
                root.entry(table).or_insert_with(empty)["properties"][name] = of;
            }
        }
    }
    // Helm puts a table of this name into the values of each chart.
    root.insert("global".to_owned(), json!({"type": "object"}));
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": false,
        "properties": root,
    })
}

/// With its keys in order, whichever map `serde_json` is built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(table) => {
            let table: BTreeMap<String, Value> = table.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(table.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// `inject.yaml`, as [`crate::kubernetes::inject::Config::to_yaml`] has it.
const INJECT: &str = "\
{{- define \"weft.inject\" -}}
sidecar_image: {{ .Values.sidecar.image | toJson }}
redirect_image: {{ .Values.redirect.image | toJson }}
image_pull_policy: {{ .Values.image_pull_policy }}
redirect: {{ .Values.redirect.default }}
control_plane: \"https://control.weft.svc:15010\"
trust_domain: {{ .Values.trust_domain | toJson }}
otlp: {{ .Values.otlp | toJson }}
sample_ratio: {{ .Values.sample_ratio | float64 | toJson }}
log_format: {{ .Values.log_format }}
resources:
  requests: { cpu: {{ .Values.sidecar.cpu_request | toString | quote }}, memory: {{ .Values.sidecar.memory_request | toString | quote }} }
  limits: { cpu: {{ .Values.sidecar.cpu_limit | toString | quote }}, memory: {{ .Values.sidecar.memory_limit | toString | quote }} }
{{- end }}
";

/// The manifests with Helm's expressions.
fn templates() -> Vec<Part> {
    let amount = |key: &str| format!("{{{{ .Values.control.{key} | toString | quote }}}}");
    let hosts: Vec<String> = DASHBOARD_HOSTS.iter().map(|host| format!("\"{host}\"")).collect();
    let places = [
        ("version", "{{ .Chart.AppVersion | quote }}".to_owned()),
        ("image", "{{ .Values.control.image | quote }}".to_owned()),
        ("replicas", "{{ .Values.control.replicas }}".to_owned()),
        ("image_pull_policy", "{{ .Values.image_pull_policy }}".to_owned()),
        ("trust_domain", "{{ .Values.trust_domain }}".to_owned()),
        ("log_format", "{{ .Values.log_format }}".to_owned()),
        (
            "dashboard_hosts",
            format!("{{{{ concat (list {}) .Values.control.dashboard_host | join \",\" }}}}", hosts.join(" ")),
        ),
        ("cpu_request", amount("cpu_request")),
        ("cpu_limit", amount("cpu_limit")),
        ("memory_request", amount("memory_request")),
        ("memory_limit", amount("memory_limit")),
        ("inject_digest", "{{ printf \"%s\\n\" (include \"weft.inject\" .) | sha256sum | quote }}".to_owned()),
        ("inject", "{{ include \"weft.inject\" . | indent 4 }}".to_owned()),
    ];
    TEMPLATES.iter().map(|(name, template)| Part { name, text: filled(template, &places) }).collect()
}
