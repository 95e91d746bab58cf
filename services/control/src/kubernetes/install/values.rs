//! What can be chosen at the installation: defaults, then files of values, then single values (`--set`).

use std::{collections::BTreeMap, fmt::Display};

use weft_mesh::{
    config::{self, Node, Problem, Problems, Reader, Table, Value},
    telemetry::ExportTarget,
};

use crate::kubernetes::inject::{self, Amounts, Config, LEAST_MEMORY_LIMIT, PullPolicy, Quantity, Resources};

/// Every key, with its default and what it is.
pub const KEYS: &[(&str, &str, &str)] = &[
    ("trust_domain", "weft.local", "the trust domain of the mesh's identities"),
    ("image_pull_policy", "IfNotPresent", "`Always`, `IfNotPresent` or `Never`, for all images"),
    ("otlp", "[http://control.weft.svc:15080]", "where sidecars send spans, as a list; `[]` is nowhere"),
    ("log_format", "text", "`text` or `json`, for the control plane and the sidecars"),
    ("sample_ratio", "0.01", "the share of new traces that is recorded, 0 to 1"),
    ("control.image", "weft/control:VERSION", "the control plane's image"),
    ("control.replicas", "1", "how many control planes there are, 1 to 10: one acts, the others stand by"),
    ("control.dashboard_host", "[]", "further host names of the dashboard, as a list"),
    ("control.cpu_request", "50m", "what the control plane asks for"),
    ("control.cpu_limit", "1", "and its bound"),
    ("control.memory_request", "64Mi", "what the control plane asks for"),
    ("control.memory_limit", "512Mi", "and its bound"),
    ("sidecar.image", "weft/sidecar:VERSION", "the sidecar's image"),
    ("sidecar.cpu_request", "10m", "what each sidecar asks for; a pod's annotation overrides it"),
    ("sidecar.cpu_limit", "1", "and its bound"),
    ("sidecar.memory_request", "32Mi", "what each sidecar asks for"),
    ("sidecar.memory_limit", "256Mi", "and its bound, from 32Mi on"),
    (
        "redirect.default",
        "disabled",
        "`enabled` or `disabled`: whether pods are redirected; a pod's annotation overrides it",
    ),
    ("redirect.image", "weft/redirect:VERSION", "the image of the container that redirects"),
];

const ROOT: &[&str] =
    &["trust_domain", "image_pull_policy", "otlp", "log_format", "sample_ratio", "control", "sidecar", "redirect"];
const CONTROL: &[&str] =
    &["image", "replicas", "dashboard_host", "cpu_request", "cpu_limit", "memory_request", "memory_limit"];
const SIDECAR: &[&str] = &["image", "cpu_request", "cpu_limit", "memory_request", "memory_limit"];

const REDIRECT: &[&str] = &["default", "image"];

const IMAGE: &str = "the name of an image, as registry.example/weft/sidecar:1.2.3";

/// What the manifests are made from.
#[derive(Debug, Clone)]
pub struct Values {
    /// What sidecars have in common; the control plane has the same trust domain, pull policy and log format.
    pub(super) sidecars: Config,
    pub(super) control: Control,
    /// Where a value was given, by its key: the file or the flag, and the line.
    given: BTreeMap<String, (String, u64)>,
}

/// What only the control plane has.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) image: String,
    pub(super) replicas: i64,
    pub(super) dashboard_host: Vec<String>,
    pub(super) resources: Resources,
}

impl Default for Values {
    fn default() -> Self {
        let amount = |text: &str| text.parse::<Quantity>().expect("the defaults are amounts");
        Self {
            sidecars: Config { otlp: vec!["http://control.weft.svc:15080".to_owned()], ..Config::default() },
            control: Control {
                image: concat!("weft/control:", env!("CARGO_PKG_VERSION")).to_owned(),
                replicas: 1,
                dashboard_host: Vec::new(),
                resources: Resources {
                    requests: Amounts { cpu: amount("50m"), memory: amount("64Mi") },
                    limits: Amounts { cpu: amount("1"), memory: amount("512Mi") },
                },
            },
            given: BTreeMap::new(),
        }
    }
}

impl Values {
    /// The values, as a file, with which the control plane outlives the loss of a node: `weft install --ha`.
    pub const HIGHLY_AVAILABLE: &str = "control: { replicas: 2 }";

    /// The defaults, changed by files of values (name and text) and then by single values (`KEY=VALUE`), in this order.
    ///
    /// # Errors
    /// All problems of the first file that has any, or of the single values, or of what they are together.
    pub fn read(files: &[(String, String)], single: &[String]) -> Result<Self, Problems> {
        let mut values = Self::default();
        for (file, text) in files {
            config::parse(file, text, |reader, root| {
                values.take(reader, root);
                Some(())
            })?;
        }
        let mut problems = Vec::new();
        for given in single {
            match single_node(given) {
                Ok((file, node)) => {
                    let mut reader = Reader { file: &file, problems: Vec::new() };
                    values.take(&mut reader, &node);
                    problems.append(&mut reader.problems);
                }
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            problems.extend(values.together());
        }
        if problems.is_empty() { Ok(values) } else { Err(Problems::new(problems)) }
    }

    /// The trust domain of the mesh.
    pub fn trust_domain(&self) -> &str {
        self.sidecars.trust_domain.as_str()
    }

    /// The file `inject.yaml`: what sidecars get.
    pub fn inject_yaml(&self) -> String {
        self.sidecars.to_yaml()
    }

    /// Takes what is given and leaves the rest as it is.
    fn take(&mut self, reader: &mut Reader<'_>, root: &Node) {
        // A file in which all is commented out.
        if matches!(root.value, Value::Null) {
            return;
        }
        let Some(table) = reader.table("", root, ROOT) else { return };
        reader.must_have_values(&table, ROOT);
        let (sidecars, given) = (&mut self.sidecars, &mut self.given);
        let trust_domain = "a trust domain, as weft.local: a-z, 0-9, `.`, `-` and `_`";
        put(&mut sidecars.trust_domain, reader.parsed(&table, "trust_domain", trust_domain, str::parse));
        let policies = "Always, IfNotPresent, Never";
        put(
            &mut sidecars.image_pull_policy,
            reader.parsed(&table, "image_pull_policy", policies, str::parse::<PullPolicy>),
        );
        put(&mut sidecars.otlp, list(reader, &table, "otlp", "a URL, as http://jaeger.jaeger.svc:4317", target));
        put(&mut sidecars.log_format, reader.parsed(&table, "log_format", "text, json", str::parse));
        put(&mut sidecars.sample_ratio, reader.share(&table, "sample_ratio"));
        let control = table.get("control").and_then(|node| reader.table("control", node, CONTROL));
        if let Some(table) = control {
            reader.must_have_values(&table, CONTROL);
            self.control.take(reader, &table);
            amounts(reader, &table, &mut self.control.resources, given);
        }
        let sidecar = table.get("sidecar").and_then(|node| reader.table("sidecar", node, SIDECAR));
        if let Some(table) = sidecar {
            reader.must_have_values(&table, SIDECAR);
            put(&mut sidecars.sidecar_image, reader.parsed(&table, "image", IMAGE, image));
            amounts(reader, &table, &mut sidecars.resources, given);
        }
        let redirect = table.get("redirect").and_then(|node| reader.table("redirect", node, REDIRECT));
        if let Some(table) = redirect {
            reader.must_have_values(&table, REDIRECT);
            put(&mut sidecars.redirect, reader.parsed(&table, "default", "enabled, disabled", inject::enabled));
            put(&mut sidecars.redirect_image, reader.parsed(&table, "image", IMAGE, image));
        }
    }

    /// What only all values together show: a request above its limit, or a limit that a sidecar does not start with.
    fn together(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |keys: [String; 2], text: String| {
            // Whichever was given.
            let (key, (file, line)) = keys
                .iter()
                .find_map(|key| Some((key.clone(), self.given.get(key)?.clone())))
                .unwrap_or_else(|| (keys[0].clone(), ("the defaults".to_owned(), 0)));
            problems.push(Problem::new(file, line, key, text));
        };
        for (part, Resources { requests, limits }) in
            [("control", &self.control.resources), ("sidecar", &self.sidecars.resources)]
        {
            for (what, request, limit) in
                [("cpu", &requests.cpu, &limits.cpu), ("memory", &requests.memory, &limits.memory)]
            {
                if request > limit {
                    let keys = ["request", "limit"].map(|kind| format!("{part}.{what}_{kind}"));
                    problem(keys, format!("the request of {request} is more than the limit of {limit}"));
                }
            }
        }
        let limit = &self.sidecars.resources.limits.memory;
        if limit.units() < LEAST_MEMORY_LIMIT {
            let text = format!("found {limit}; allowed: from {} on", Quantity::of_bytes(LEAST_MEMORY_LIMIT));
            problem([(); 2].map(|()| "sidecar.memory_limit".to_owned()), text);
        }
        problems
    }
}

impl Control {
    fn take(&mut self, reader: &mut Reader<'_>, table: &Table<'_>) {
        put(&mut self.image, reader.parsed(table, "image", IMAGE, image));
        put(&mut self.dashboard_host, list(reader, table, "dashboard_host", "a host name", host));
        put(&mut self.replicas, reader.whole_number(table, "replicas", 1..=10, "").map(|number| number.value));
    }
}

fn put<T>(place: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *place = value;
    }
}

/// Requests and limits.
fn amounts(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    resources: &mut Resources,
    given: &mut BTreeMap<String, (String, u64)>,
) {
    let Resources { requests, limits } = resources;
    for (key, amount) in [
        ("cpu_request", &mut requests.cpu),
        ("cpu_limit", &mut limits.cpu),
        ("memory_request", &mut requests.memory),
        ("memory_limit", &mut limits.memory),
    ] {
        let Some(node) = table.get(key) else { continue };
        if let Some(read) = inject::amount(reader, table, key) {
            *amount = read;
            given.insert(table.path(key), (reader.file.to_owned(), node.line));
        }
    }
}

/// A value or a list of them.
fn list<E: Display>(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    key: &str,
    allowed: &str,
    check: fn(&str) -> Result<String, E>,
) -> Option<Vec<String>> {
    let given = reader.texts(table, key, allowed)?;
    let mut all = Vec::with_capacity(given.len());
    for one in given {
        match check(&one.value) {
            Ok(value) => all.push(value),
            Err(problem) => reader.problem(one.line, &table.path(key), problem.to_string()),
        }
    }
    Some(all)
}

fn image(text: &str) -> Result<String, String> {
    if inject::is_image(text) { Ok(text.to_owned()) } else { Err(format!("found the text {text:?}; allowed: {IMAGE}")) }
}

fn host(text: &str) -> Result<String, String> {
    let is_valid = (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b));
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(format!("found the text {text:?}; allowed: a host name in lower case"))
    }
}

/// Sidecars get their list with commas, so none may be in an entry.
fn target(text: &str) -> Result<String, String> {
    match text.parse::<ExportTarget>() {
        Err(error) => Err(error.to_string()),
        Ok(_) if text.contains(',') => Err(format!("found the text {text:?}; allowed: one URL for each entry")),
        Ok(target) => Ok(target.to_string()),
    }
}

/// `KEY=VALUE` as the file that says the same, with a name for messages. The value is YAML.
fn single_node(given: &str) -> Result<(String, Node), Problem> {
    let Some((key, value)) = given.split_once('=') else {
        return Err(Problem::new("--set", 0, "", format!("found {given:?}; allowed: KEY=VALUE, as sample_ratio=1")));
    };
    let file = format!("--set {key}");
    let mut node = Node::parse(&file, value)?;
    without_lines(&mut node);
    for part in key.rsplit('.') {
        let key = Node { line: 0, source: None, value: Value::Text(part.to_owned()) };
        node = Node { line: 0, source: None, value: Value::Map(vec![(key, node)]) };
    }
    Ok((file, node))
}

/// A flag has no lines.
fn without_lines(node: &mut Node) {
    node.line = 0;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(without_lines),
        Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            without_lines(key);
            without_lines(value);
        }),
        _ => {}
    }
}
