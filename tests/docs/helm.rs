//! `k8s/helm/weft` is made from the manifests of `weft install`, and renders to the same: by Helm itself if it is there, and always
//! by what is here, which knows the few expressions that the chart has.

use std::{collections::BTreeSet, env, fs, process::Command};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use weft_control::kubernetes::install::{self, Values};
use weft_tests::{outside, root};

use crate::page::must_be_none;

const CHART: &str = "k8s/helm/weft";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A Helm that was built without its release script takes the cluster for an old one.
const TEMPLATE: &[&str] = &["template", "weft", CHART, "--kube-version", "1.34.0"];

/// Some values, as `weft install` takes them.
const OTHERS: &[&str] = &[
    "",
    "trust_domain: prod.example\nimage_pull_policy: Always\nsample_ratio: 0.5\nlog_format: json\notlp: []\n",
    "control:\n  image: registry.example/c:1\n  dashboard_host: [mesh.example, b.example]\n  cpu_limit: \"2\"\n  memory_limit: 1Gi\n\
     sidecar:\n  image: registry.example/s@sha256:ab\n  cpu_request: 5m\n  memory_limit: 64Mi\notlp: [\"http://a:4317\", \"http://b:4317\"]\n",
];

#[test]
fn the_chart_is_made_from_the_manifests() {
    let mut problems = Vec::new();
    let mut there = BTreeSet::new();
    for (name, text) in install::chart() {
        let path = root().join(CHART).join(&name);
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder can be made");
            fs::write(&path, &text).expect("it can be written");
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            problems.push(format!("{CHART}/{name} is not made from these manifests; UPDATE_DOCS=1 writes it"));
        }
        there.insert(path);
    }
    for folder in ["", "templates"] {
        let entries = fs::read_dir(root().join(CHART).join(folder)).expect("the chart is there");
        let files = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
        problems
            .extend(files.filter(|path| !there.contains(path)).map(|path| format!("{} is too many", path.display())));
    }
    must_be_none(&problems);
    // Its defaults are those of `weft install`, which reads the same file.
    let (_, text) = install::chart().into_iter().find(|(name, _)| name == "values.yaml").expect("it has values");
    let read = Values::read(&[("values.yaml".to_owned(), text)], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(install::manifests(&read), install::manifests(&Values::default()));
}

#[test]
fn the_chart_renders_to_what_install_prints() {
    let changes = [
        json!({}),
        json!({"trust_domain": "prod.example", "image_pull_policy": "Always", "sample_ratio": 0.5, "log_format": "json",
            "otlp": []}),
        json!({"control": {"image": "registry.example/c:1", "dashboard_host": ["mesh.example", "b.example"],
            "cpu_limit": "2", "memory_limit": "1Gi"},
            "sidecar": {"image": "registry.example/s@sha256:ab", "cpu_request": "5m", "memory_limit": "64Mi"},
            "otlp": ["http://a:4317", "http://b:4317"]}),
    ];
    for (yaml, change) in OTHERS.iter().zip(changes) {
        let mut values = install::chart_values();
        merge(&mut values, change);
        let files = install::chart();
        let scope = Scope { root: json!({"Values": values, "Chart": {"AppVersion": VERSION}}), files: &files };
        let rendered = files.iter().filter(|(name, _)| name.starts_with("templates/") && name.ends_with(".yaml"));
        let rendered: Vec<String> = rendered.map(|(_, text)| scope.rendered(text)).collect();
        assert_eq!(rendered.join("---\n"), install::manifests(&read(yaml)), "{yaml}");
    }
}

/// The real one: `go install helm.sh/helm/v3/cmd/helm@v3.19.0`.
#[test]
fn helm_takes_the_chart() {
    // CI does not build it: that takes minutes, and the test above compares the same.
    let Some(helm) = outside("helm") else {
        return eprintln!("helm is not there: only the test's own rendering is compared");
    };
    let run = |args: &[&str]| {
        let output = Command::new(&helm).args(args).current_dir(root()).output().expect("helm runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("it prints text")
    };
    run(&["lint", "--strict", CHART]);
    let folder = tempfile::tempdir().expect("a folder");
    let documents = |text: &str| {
        let all = format!("\n{text}");
        let all = all.split("\n---\n").map(|document| {
            let lines = document.lines().filter(|line| !line.starts_with("# Source: "));
            lines.collect::<Vec<_>>().join("\n").trim().to_owned()
        });
        all.filter(|document| !document.is_empty()).collect::<BTreeSet<_>>()
    };
    for yaml in OTHERS {
        let file = folder.path().join("values.yaml");
        fs::write(&file, yaml).expect("it can be written");
        let file = file.to_str().expect("a path of text");
        let rendered = run(&[TEMPLATE, &["--values", file]].concat());
        assert_eq!(documents(&rendered), documents(&install::manifests(&read(yaml))), "{yaml}");
    }
    run(&[TEMPLATE, &["--set", "sample_ratio=0.5"]].concat());
    for wrong in [
        "sample_ratio=2",
        "sample_ratio=1.5",
        "trust_domain=a: b",
        "control.image=x y",
        "control.replicas=0",
        "log_format=xml",
        "colour=red",
    ] {
        let output = Command::new(&helm).args(TEMPLATE).args(["--set", wrong]).current_dir(root()).output();
        let output = output.expect("helm runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("specifications of the schema"), "{wrong}: {errors}");
    }
}

fn read(yaml: &str) -> Values {
    Values::read(&[("values.yaml".to_owned(), yaml.to_owned())], &[]).unwrap_or_else(|problems| panic!("{problems}"))
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            change.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, change) => *into = change,
    }
}

/// What the chart's expressions see.
struct Scope<'a> {
    root: Value,
    files: &'a [(String, String)],
}

impl Scope<'_> {
    fn rendered(&self, text: &str) -> String {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("{{ ") {
            let (expression, after) = after.split_once(" }}").expect("an expression has an end");
            let mut words = words(expression).into_iter().peekable();
            out = out + before + &text_of(&self.pipeline(&mut words));
            assert!(words.next().is_none(), "{expression}");
            rest = after;
        }
        out + rest
    }

    /// `a b | c`: what comes before a bar is the last argument of what comes after it.
    fn pipeline(&self, words: &mut std::iter::Peekable<std::vec::IntoIter<String>>) -> Value {
        let mut result = None;
        loop {
            let mut parts = Vec::new();
            while let Some(word) = words.next_if(|word| word != "|" && word != ")") {
                parts.push(match word.as_str() {
                    "(" => {
                        let inner = self.pipeline(words);
                        assert_eq!(words.next().as_deref(), Some(")"));
                        Part::Value(inner)
                    }
                    "." => Part::Value(Value::Null),
                    path if path.starts_with('.') => Part::Value(self.field(path)),
                    literal if literal.starts_with('"') || literal.starts_with(|c: char| c.is_ascii_digit()) => {
                        Part::Value(serde_json::from_str(literal).expect("a literal"))
                    }
                    _ => Part::Function(word),
                });
            }
            let mut parts = parts.into_iter();
            let head = parts.next().expect("a part of an expression");
            let values = parts.map(|part| match part {
                Part::Value(value) => value,
                Part::Function(name) => panic!("{name} is not called"),
            });
            let args: Vec<Value> = values.chain(result.take()).collect();
            result = Some(match head {
                Part::Value(value) => {
                    assert!(args.is_empty(), "a value takes no arguments");
                    value
                }
                Part::Function(name) => self.call(&name, &args),
            });
            if words.next_if(|word| word == "|").is_none() {
                return result.expect("it was set");
            }
        }
    }

    fn field(&self, path: &str) -> Value {
        let found = path.split('.').skip(1).try_fold(&self.root, |of, key| of.get(key));
        found.unwrap_or_else(|| panic!("{path}: no such value")).clone()
    }

    fn call(&self, name: &str, args: &[Value]) -> Value {
        match (name, args) {
            ("quote" | "toJson", [of]) => json!(of.to_string()),
            ("toString", [of]) => json!(text_of(of)),
            ("float64", [of]) => json!(text_of(of).parse::<f64>().expect("a number")),
            ("list", items) => json!(items),
            ("concat", [Value::Array(one), Value::Array(other)]) => json!([&one[..], &other[..]].concat()),
            ("join", [Value::String(with), Value::Array(items)]) => {
                json!(items.iter().map(text_of).collect::<Vec<_>>().join(with))
            }
            ("printf", [Value::String(format), of]) => json!(format.replace("%s", &text_of(of))),
            ("sha256sum", [of]) => {
                let digest = Sha256::digest(text_of(of));
                json!(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            ("indent", [by, of]) => {
                let indent = " ".repeat(by.as_u64().expect("a number") as usize);
                let lines: Vec<String> = text_of(of).split('\n').map(|line| format!("{indent}{line}")).collect();
                json!(lines.join("\n"))
            }
            ("include", [Value::String(name), Value::Null]) => {
                let start = format!("{{{{- define \"{name}\" -}}}}\n");
                let body = self.files.iter().find_map(|(_, text)| text.strip_prefix(&start));
                let body = body.and_then(|text| text.strip_suffix("\n{{- end }}\n")).expect("it is defined");
                json!(self.rendered(body))
            }
            _ => panic!("{name} {args:?}: the chart has a new expression; add it here"),
        }
    }
}

enum Part {
    Value(Value),
    Function(String),
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The words of an expression: texts in quotes, brackets, bars and names.
fn words(expression: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut in_quotes, mut is_new) = (false, true);
    let mut before = ' ';
    for c in expression.chars() {
        let is_alone = !in_quotes && matches!(c, '(' | ')' | '|');
        if !in_quotes && c == ' ' {
            is_new = true;
        } else {
            if is_new || is_alone {
                words.push(String::new());
            }
            words.last_mut().expect("there is one").push(c);
            is_new = is_alone;
            in_quotes ^= c == '"' && before != '\\';
        }
        before = c;
    }
    words
}
