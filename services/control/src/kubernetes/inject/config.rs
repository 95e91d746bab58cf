//! The file `inject.yaml`: what all sidecars of a cluster have in common. Each key may be left out.
//!
//! ```yaml
//! sidecar_image: weft/sidecar:0.1.0
//! redirect_image: weft/redirect:0.1.0
//! image_pull_policy: IfNotPresent            # Always, IfNotPresent, Never
//! redirect: disabled                         # enabled, disabled; a pod's annotation wins
//! control_plane: https://control.weft.svc:15010
//! trust_domain: weft.local
//! otlp: http://control.weft.svc:15080        # or a list; default: spans go nowhere
//! sample_ratio: 0.01
//! log_format: text                           # text, json
//! resources:
//!   requests: { cpu: 10m, memory: 32Mi }
//!   limits: { cpu: "1", memory: 256Mi }
//! ```

use std::{fmt, path::Path, str::FromStr};

use serde_json::json;
use weft_mesh::{
    config::{self, Node, Problem, Problems, Reader, Table, Value},
    identity::TrustDomain,
    names::{port, shown},
    telemetry::{ExportTarget, LogFormat},
};

use super::{
    super::names::{DISABLED, ENABLED, NAMESPACE},
    quantity::Quantity,
};

const ROOT_KEYS: &[&str] = &[
    "sidecar_image",
    "redirect_image",
    "image_pull_policy",
    "redirect",
    "control_plane",
    "trust_domain",
    "otlp",
    "sample_ratio",
    "log_format",
    "resources",
];
const RESOURCES_KEYS: &[&str] = &["requests", "limits"];
const AMOUNTS_KEYS: &[&str] = &["cpu", "memory"];

const IMAGE: &str = "the name of an image, as weft/sidecar:0.1.0";
const ADDRESS: &str = "https://HOST:PORT";
const PULL_POLICIES: &str = "Always, IfNotPresent, Never";
const LOG_FORMATS: &str = "text, json";
const SPANS: &str = "http://HOST:PORT (OTLP over gRPC), or a list of such texts";
const AMOUNT: &str = "an amount such as 500m, 2, 256Mi or 1.5Gi";

/// The content of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The image of the sidecar.
    pub sidecar_image: String,
    /// The image of the container that redirects connections.
    pub redirect_image: String,
    /// When nodes pull it.
    pub image_pull_policy: PullPolicy,
    /// Whether the connections of pods are redirected to their sidecars, unless an annotation of the pod says otherwise.
    pub redirect: bool,
    /// Where sidecars reach the control plane.
    pub control_plane: String,
    /// The trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Where sidecars send spans.
    pub otlp: Vec<String>,
    /// The share of new traces that is recorded.
    pub sample_ratio: f64,
    /// The format of sidecars' log lines.
    pub log_format: LogFormat,
    /// What a sidecar may use.
    pub resources: Resources,
}

/// When a node pulls an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time a container starts.
    Always,
    /// If the node does not have it.
    IfNotPresent,
    /// Never: it has to be there.
    Never,
}

/// What a container may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// What is reserved for it.
    pub requests: Amounts,
    /// What it may use at most.
    pub limits: Amounts,
}

/// Amounts of CPU and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amounts {
    /// In cores.
    pub cpu: Quantity,
    /// In bytes.
    pub memory: Quantity,
}

impl Default for Config {
    fn default() -> Self {
        const MI: u64 = 1 << 20;
        let milli = |count: u16| Quantity::of_milli(count);
        Self {
            sidecar_image: concat!("weft/sidecar:", env!("CARGO_PKG_VERSION")).to_owned(),
            redirect_image: concat!("weft/redirect:", env!("CARGO_PKG_VERSION")).to_owned(),
            image_pull_policy: PullPolicy::IfNotPresent,
            redirect: false,
            control_plane: format!("https://control.{NAMESPACE}.svc:{}", port::CONTROL),
            trust_domain: "weft.local".parse().expect("a trust domain"),
            otlp: Vec::new(),
            sample_ratio: 0.01,
            log_format: LogFormat::Text,
            resources: Resources {
                requests: Amounts { cpu: milli(10), memory: Quantity::of_bytes(32 * MI) },
                // One core, as a sidecar has one worker: with less, the kernel would stop it in the middle of calls.
                limits: Amounts { cpu: milli(1_000), memory: Quantity::of_bytes(256 * MI) },
            },
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// All that is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, Problems> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problems::new(vec![Problem::new(&shown, 0, "", format!("cannot be read: {error}"))]))?;
        Self::parse(&shown, &text)
    }

    /// Reads and checks the text of a file. Problems name it as `file`.
    ///
    /// # Errors
    /// All that is wrong with the text.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        config::parse(file, text, read_root)
    }

    /// The text of a file that reads as this.
    pub fn to_yaml(&self) -> String {
        // JSON's texts are YAML's, whatever is in them.
        let text = |text: &str| json!(text);
        let amounts =
            |of: &Amounts| format!("{{ cpu: {}, memory: {} }}", text(of.cpu.as_str()), text(of.memory.as_str()));
        format!(
            "sidecar_image: {}\nredirect_image: {}\nimage_pull_policy: {}\nredirect: {}\ncontrol_plane: {}\ntrust_domain: {}\notlp: {}\nsample_ratio: {}\n\
             log_format: {}\nresources:\n  requests: {}\n  limits: {}\n",
            text(&self.sidecar_image),
            text(&self.redirect_image),
            self.image_pull_policy,
            if self.redirect { ENABLED } else { DISABLED },
            text(&self.control_plane),
            text(self.trust_domain.as_str()),
            json!(self.otlp),
            json!(self.sample_ratio),
            self.log_format,
            amounts(&self.resources.requests),
            amounts(&self.resources.limits),
        )
    }
}

impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "Always" => Ok(Self::Always),
            "IfNotPresent" => Ok(Self::IfNotPresent),
            "Never" => Ok(Self::Never),
            other => Err(format!("found the text {:?}; allowed: {PULL_POLICIES}", shown(other))),
        }
    }
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        })
    }
}

fn read_root(reader: &mut Reader<'_>, root: &Node) -> Option<Config> {
    let mut config = Config::default();
    // An empty file, or one in which each line is a comment.
    if matches!(root.value, Value::Null) {
        return Some(config);
    }
    let table = reader.table("", root, ROOT_KEYS)?;
    set(&mut config.sidecar_image, reader.parsed(&table, "sidecar_image", IMAGE, image));
    set(&mut config.image_pull_policy, reader.parsed(&table, "image_pull_policy", PULL_POLICIES, str::parse));
    set(&mut config.redirect_image, reader.parsed(&table, "redirect_image", IMAGE, image));
    set(&mut config.redirect, reader.parsed(&table, "redirect", "enabled, disabled", enabled));
    set(&mut config.control_plane, reader.parsed(&table, "control_plane", ADDRESS, address));
    set(&mut config.trust_domain, reader.parsed(&table, "trust_domain", "a trust domain, as weft.local", str::parse));
    set(&mut config.sample_ratio, reader.share(&table, "sample_ratio"));
    set(&mut config.log_format, reader.parsed(&table, "log_format", LOG_FORMATS, str::parse));
    config.otlp = spans(reader, &table);
    if let Some(node) = table.get("resources") {
        read_resources(reader, &table.path("resources"), node, &mut config.resources);
    }
    Some(config)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Whether a text may be the name of an image. The node that pulls it decides.
pub(in crate::kubernetes) fn is_image(text: &str) -> bool {
    text.len() <= 512
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./:@_-".contains(&byte))
}

fn image(text: &str) -> Result<String, String> {
    if is_image(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("found the text {:?}; allowed: {IMAGE}", shown(text)))
    }
}

/// Whether something is on by default.
pub(in crate::kubernetes) fn enabled(text: &str) -> Result<bool, String> {
    match text {
        ENABLED => Ok(true),
        DISABLED => Ok(false),
        other => Err(format!("found the text {:?}; allowed: {ENABLED}, {DISABLED}", shown(other))),
    }
}

fn address(text: &str) -> Result<String, String> {
    let is_address = |uri: &http::Uri| {
        let is_plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
        uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty()) && is_plain
    };
    match text.parse::<http::Uri>() {
        Ok(uri) if is_address(&uri) => Ok(text.to_owned()),
        _ => Err(format!("found the text {:?}; allowed: {ADDRESS}", shown(text))),
    }
}

fn spans(reader: &mut Reader<'_>, table: &Table<'_>) -> Vec<String> {
    let mut targets = Vec::new();
    for text in reader.texts(table, "otlp", SPANS).unwrap_or_default() {
        match text.value.parse::<ExportTarget>() {
            Ok(target) => targets.push(target.to_string()),
            Err(error) => reader.problem(text.line, &table.path("otlp"), error.to_string()),
        }
    }
    targets
}

fn read_resources(reader: &mut Reader<'_>, field: &str, node: &Node, resources: &mut Resources) {
    let Some(table) = reader.table(field, node, RESOURCES_KEYS) else { return };
    for (key, amounts) in [("requests", &mut resources.requests), ("limits", &mut resources.limits)] {
        let Some(node) = table.get(key) else { continue };
        let Some(table) = reader.table(&table.path(key), node, AMOUNTS_KEYS) else { continue };
        set(&mut amounts.cpu, amount(reader, &table, "cpu"));
        set(&mut amounts.memory, amount(reader, &table, "memory"));
    }
    for (what, request, limit) in [
        ("cpu", &resources.requests.cpu, &resources.limits.cpu),
        ("memory", &resources.requests.memory, &resources.limits.memory),
    ] {
        if request > limit {
            let text = format!("found {request}; allowed: at most the limit of {limit}");
            reader.problem(node.line, &format!("{field}.requests.{what}"), text);
        }
    }
    let (limit, least) = (&resources.limits.memory, LEAST_MEMORY_LIMIT);
    if limit.units() < least {
        let text = format!("found {limit}; allowed: from {} on", Quantity::of_bytes(least));
        reader.problem(node.line, &format!("{field}.limits.memory"), text);
    }
}

/// The least memory that a sidecar runs with: what it needs while idle, and `--memory` at its least.
pub const LEAST_MEMORY_LIMIT: u64 = 32 << 20;

/// An amount of CPU or memory. In YAML, `2` is a number and `2Gi` a text.
pub(in crate::kubernetes) fn amount(reader: &mut Reader<'_>, table: &Table<'_>, key: &str) -> Option<Quantity> {
    let node = table.get(key)?;
    let read = match node.scalar_text() {
        Some(text) => text.parse::<Quantity>().map_err(|error| error.to_string()),
        None => Err(format!("found {}; allowed: {AMOUNT}", node.describe())),
    };
    read.map_err(|text| reader.problem(node.line, &table.path(key), text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        Config::parse("inject.yaml", text).expect_err("a file with problems").to_string()
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        for empty in ["", "# nothing\n", "resources: { limits: {} }\n"] {
            assert_eq!(Config::parse("inject.yaml", empty).unwrap(), Config::default(), "{empty}");
        }
        let text = "sidecar_image: registry.test:5000/weft@sha256:ab\nimage_pull_policy: Never\n\
                    control_plane: https://10.0.0.1:15010\ntrust_domain: corp.test\n\
                    otlp: [\"http://jaeger:4317\", \"http://10.0.0.2:4317/\"]\nsample_ratio: 1\nlog_format: json\n\
                    resources: { requests: { cpu: 1 }, limits: { cpu: 2.5, memory: 1Gi } }\n";
        let config = Config::parse("inject.yaml", text).unwrap();
        assert_eq!((config.image_pull_policy, config.sample_ratio), (PullPolicy::Never, 1.0));
        assert_eq!(config.otlp, ["http://jaeger:4317", "http://10.0.0.2:4317"]);
        let Resources { requests, limits } = &config.resources;
        let amounts = [&requests.cpu, &requests.memory, &limits.cpu, &limits.memory].map(Quantity::as_str);
        assert_eq!(amounts, ["1", "32Mi", "2.5", "1Gi"]);
        for config in [config, Config::default()] {
            assert_eq!(Config::parse("inject.yaml", &config.to_yaml()).unwrap(), config);
        }
    }

    #[test]
    fn problems_name_file_line_and_field() {
        for (text, expected) in [
            ("[]\n", "inject.yaml:1: found a list; allowed: a table of sidecar_image,"),
            ("sidecar_imag: a\n", "inject.yaml:1: sidecar_imag: unknown key; allowed: sidecar_image,"),
            (
                "sidecar_image: a b\n",
                "inject.yaml:1: sidecar_image: found the text \"a b\"; allowed: the name of an image",
            ),
            (
                "\nimage_pull_policy: always\n",
                "inject.yaml:2: image_pull_policy: found the text \"always\"; allowed: Always",
            ),
            (
                "control_plane: http://a:1\n",
                "inject.yaml:1: control_plane: found the text \"http://a:1\"; allowed: https://",
            ),
            ("trust_domain: A\n", "inject.yaml:1: trust_domain: `A` is not a trust domain"),
            ("otlp: [jaeger]\n", "inject.yaml:1: otlp: `jaeger` is not a target for spans"),
            ("sample_ratio: 2\n", "inject.yaml:1: sample_ratio: found the number 2; allowed: a number from 0 to 1"),
            ("log_format: yes\n", "inject.yaml:1: log_format: `yes` is not a log format"),
            (
                "resources:\n  limits: { memory: 64MB }\n",
                "inject.yaml:2: resources.limits.memory: found the text \"64MB\"; allowed: an amount",
            ),
            (
                "resources:\n  limits: { cpu: [] }\n",
                "inject.yaml:2: resources.limits.cpu: found a list; allowed: an amount",
            ),
            (
                "resources:\n  requests: { cpu: 2 }\n",
                "inject.yaml:2: resources.requests.cpu: found 2; allowed: at most the limit of 1",
            ),
            (
                "resources: { requests: { memory: 1Mi }, limits: { memory: 16Mi } }\n",
                "inject.yaml:1: resources.limits.memory: found 16Mi; allowed: from 32Mi on",
            ),
        ] {
            let problem = problems(text);
            assert!(problem.starts_with(expected), "{problem}");
        }
        let missing = Config::read(Path::new("/nowhere/inject.yaml")).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/inject.yaml: cannot be read: "), "{missing}");
    }
}
