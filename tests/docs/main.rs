//! The tables on the pages in `docs/` say what the code says: flags, options of contracts, keys of `mesh.yaml`, failures,
//! limits and metrics. Each test names the page and the row that is missing, is one too many or says something else.
//!
//! [`page`] reads the tables and compares them, [`help`] reads what `--help` prints, [`limits`] makes the page of limits,
//! [`manifests`] the files in `k8s/`, [`helm`] the chart there, and [`links`] follows the links between all pages.

mod helm;
mod help;
mod limits;
mod links;
mod manifests;
mod page;
mod tests;

use std::{fs, process::Command};

use prost::Message;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use tempfile::TempDir;
use weft_control::kubernetes::{inject::Config, names::annotation};
use weft_mesh::{
    errors::{GRPC_CODES, Reason},
    policy::BreakerPolicy,
};
use weft_tests::{Bed, binary, get, probe_service};

use help::Flag;
use page::{Page, Row, Table, code, differences, must_be_none};

/// Where the flags of a command stand: page, heading, command.
const FLAGS: &[(&str, &str, &[&str])] = &[
    ("docs/command-line.md", "weft init", &["init"]),
    ("docs/command-line.md", "weft up", &["up"]),
    ("docs/command-line.md", "weft down", &["down"]),
    ("docs/command-line.md", "weft restart", &["restart"]),
    ("docs/command-line.md", "weft call", &["call"]),
    ("docs/command-line.md", "weft check", &["check"]),
    ("docs/command-line.md", "weft access explain", &["access", "explain"]),
    ("docs/command-line.md", "weft access test", &["access", "test"]),
    ("docs/command-line.md", "weft access suggest", &["access", "suggest"]),
    ("docs/command-line.md", "weft inject", &["inject"]),
    ("docs/command-line.md", "weft proto export", &["proto", "export"]),
    ("docs/command-line.md", "weft identity", &["identity", "list"]),
    ("docs/command-line.md", "weft identity", &["identity", "release"]),
    ("docs/command-line.md", "weft redirect", &["redirect"]),
    ("docs/command-line.md", "weft install", &["install"]),
    ("docs/command-line.md", "weft upgrade", &["upgrade"]),
    ("docs/command-line.md", "weft uninstall", &["uninstall"]),
    ("docs/command-line.md", "weft contracts push", &["contracts", "push"]),
    ("docs/command-line.md", "weft cluster check", &["cluster", "check"]),
    ("docs/command-line.md", "weft cluster status", &["cluster", "status"]),
    ("docs/sidecar.md", "Flags", &["sidecar"]),
    ("docs/sidecar.md", "Life cycle", &["sidecar", "drain"]),
    ("docs/control-plane.md", "Flags", &["control"]),
    ("docs/control-plane.md", "Join tokens", &["control", "token"]),
];

#[test]
fn the_flags_of_each_command_are_on_its_page() {
    let mut problems = Vec::new();
    for (page, heading, command) in FLAGS {
        let table = Page::read(page).table(heading, "flag");
        let place = format!("{page}, `weft {}`", command.join(" "));
        problems.extend(flag_differences(&place, &table, &help::flags(&help::of(command))));
    }
    must_be_none(&problems);
}

fn flag_differences(place: &str, table: &Table, flags: &[Flag]) -> Vec<String> {
    let rows: Vec<Row> = flags.iter().map(|flag| Row::new(&flag.long)).collect();
    let mut problems = differences(place, table, &rows);
    let column = |name: &str| table.header.iter().position(|header| header == name);
    for flag in flags {
        let Some(row) = table.rows.iter().find(|row| code(&row[0]).first() == Some(&&*flag.long)) else { continue };
        let cell = |name| column(name).and_then(|place| row.get(place)).map(String::as_str);
        // The variable has a column of its own, or stands beside the flag.
        let names: Vec<&str> =
            code(&row[0]).into_iter().chain(cell("variable").map(code).unwrap_or_default()).collect();
        for name in flag.short.iter().chain(&flag.variable).filter(|name| !names.contains(&name.as_str())) {
            problems.push(format!("{place}: the row of `{}` does not say `{name}`", flag.long));
        }
        let has: Vec<&str> = [Some(&flag.long), flag.short.as_ref(), flag.variable.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        for name in names.iter().filter(|name| !has.contains(name)) {
            problems.push(format!("{place}: the row of `{}` says `{name}`, which the code does not", flag.long));
        }
        let default = cell("default").unwrap_or_default().replace('`', "");
        match &flag.default {
            None if !default.is_empty() => {
                problems.push(format!("{place}: `{}` has no default; the page says `{default}`", flag.long));
            }
            // Words say what is used instead of a value; the page may use others.
            Some(words) if words.contains(' ') && !default.is_empty() => {}
            Some(value) if *value != default => {
                let flag = &flag.long;
                problems.push(format!("{place}: the default of `{flag}` is `{value}`; the page says `{default}`"));
            }
            _ => {}
        }
    }
    problems
}

#[test]
fn flags_variables_and_metrics_on_the_page_of_several_hosts_are_there() {
    let page = Page::read("docs/deployment.md");
    let (mut flags, mut variables) = (Vec::new(), Vec::new());
    for (_, _, command) in FLAGS {
        for flag in help::flags(&help::of(command)) {
            flags.push((command.join(" "), flag.long));
            variables.extend(flag.variable);
        }
    }
    let mut problems = Vec::new();
    let flags_in = |text: &str| {
        let words = text.split_whitespace().map(|word| word.trim_end_matches([',', '.', '`']).to_owned());
        words.filter(|word| word.starts_with("--")).collect::<Vec<_>>()
    };
    for line in page.text.lines() {
        // `control token` comes before `control`.
        let commands = ["control token", "control", "sidecar", "redirect", "call", "proto export"];
        let used = commands.iter().find_map(|name| Some((name, line.split_once(&format!("/weft {name} "))?.1)));
        let used = used
            .or_else(|| commands.iter().find_map(|name| Some((name, line.split_once(&format!("-- weft {name} "))?.1))));
        let Some((name, rest)) = used else { continue };
        let is_there = |flag: &String| flags.iter().any(|(command, long)| command == name && long == flag);
        problems.extend(
            flags_in(rest).iter().filter(|flag| !is_there(flag)).map(|flag| format!("weft {name} has no {flag}")),
        );
    }
    // In the text itself; `--profile` is cargo's.
    let spans = page.text.split('`').skip(1).step_by(2).filter(|span| span.starts_with("--"));
    let named = spans.flat_map(flags_in).filter(|flag| flag != "--profile");
    problems.extend(
        named.filter(|flag| flags.iter().all(|(_, long)| long != flag)).map(|flag| format!("there is no {flag}")),
    );

    let environment = Page::read("docs/mesh-yaml.md").text;
    let words = |start: &'static str, text: &'static str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(move |c| !is_part(c)).filter(move |word| word.starts_with(start))
    };
    let text: &'static str = page.text.leak();
    let known = |name: &&str| variables.iter().any(|known| known == name) || environment.contains(&format!("`{name}`"));
    problems.extend(words("WEFT_", text).filter(|name| !known(name)).map(|name| format!("there is no {name}")));
    let metrics = ["docs/sidecar.md", "docs/control-plane.md"].map(|name| Page::read(name).text).concat();
    let is_metric = |name: &&str| metrics.contains(&format!("`{name}`"));
    problems.extend(words("weft_", text).filter(|name| !is_metric(name)).map(|name| format!("there is no {name}")));
    must_be_none(&problems);
}

/// The security model can be traced to tests: each that it names is there.
#[test]
fn the_tests_of_the_security_model_are_there() {
    let text = Page::read("docs/security.md").text;
    let named: Vec<(&str, &str)> = text.split('`').filter_map(|part| part.split_once(".rs::")).collect();
    assert!(named.len() > 50, "{}", named.len());
    for (file, test) in named {
        let path = weft_tests::root().join(format!("{file}.rs"));
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
    }
}

#[test]
fn each_command_is_on_the_page_of_commands() {
    let rows: Vec<Row> =
        help::commands(&help::of(&[])).iter().map(|command| Row::new(format!("weft {command}"))).collect();
    must_be_none(&differences(
        "docs/command-line.md",
        &Page::read("docs/command-line.md").table("Command line", "command"),
        &rows,
    ));
}

#[test]
fn failures_are_on_their_pages() {
    let rows: Vec<Row> = Reason::ALL
        .iter()
        .map(|reason| {
            let row = Row::new(reason.as_str()).says("gRPC", GRPC_CODES[usize::from(reason.grpc())]);
            row.says("HTTP", reason.http().to_string())
        })
        .collect();
    let page = Page::read("docs/failures.md");
    let mut problems = differences(&page.name, &page.table("Failures that the mesh makes", "x-weft-error"), &rows);
    let rows: Vec<Row> = Reason::ALL
        .iter()
        .map(|reason| Row::new(reason.as_str()).says("counts against", format!("{:?}", reason.blame())))
        .collect();
    let page = Page::read("docs/breakers.md");
    problems.extend(differences(&page.name, &page.table("Answers that the mesh makes", "x-weft-error"), &rows));
    must_be_none(&problems);
}

#[test]
fn options_of_contracts_are_on_their_page() {
    let set = FileDescriptorSet::decode(weft_contracts::FILE_DESCRIPTOR_SET).expect("descriptors");
    let file = set.file.iter().find(|file| file.name() == "weft/options/v1/options.proto").expect("the options");
    let page = Page::read("docs/contracts.md");
    let mut problems = Vec::new();
    let messages = || file.message_type.iter().flat_map(|message| [message].into_iter().chain(&message.nested_type));
    for (heading, message) in [
        ("Options of a service", "ServiceOptions"),
        ("Options of a method", "MethodOptions"),
        ("Breaker", "Breaker"),
        ("SlowCall", "SlowCall"),
        ("Fallback", "Fallback"),
        ("Hedge", "Hedge"),
    ] {
        let message = messages().find(|found| found.name() == message).expect("a message");
        let rows: Vec<Row> = message.field.iter().map(|field| option_row(message, field)).collect();
        problems.extend(differences(&page.name, &page.table(heading, "field"), &rows));
    }
    must_be_none(&problems);
}

fn option_row(message: &DescriptorProto, field: &FieldDescriptorProto) -> Row {
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().rsplit('.').next().unwrap_or_default().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    let kind = if field.label() == Label::Repeated { format!("repeated {kind}") } else { kind };
    let row = Row::new(field.name()).says("type", kind);
    match default_of(message.name(), field.name()) {
        Some(default) => row.says("default", default),
        None => row,
    }
}

/// The default of a field of `Breaker`, as people write it.
fn default_of(message: &str, field: &str) -> Option<String> {
    let default = BreakerPolicy::default();
    let codes = || default.failure_codes.iter().map(|code| GRPC_CODES[usize::from(code)]).collect::<Vec<_>>();
    Some(match (message, field) {
        ("Breaker", "consecutive_failures") => default.consecutive_failures.to_string(),
        ("Breaker", "failure_ratio") => default.failure_ratio.to_string(),
        ("Breaker", "minimum_calls") => default.minimum_calls.to_string(),
        ("Breaker", "window") => format!("{} s", default.window.as_secs()),
        ("Breaker", "open_for") => format!("{} s", default.open_for.as_secs()),
        ("Breaker", "probes") => default.probes.to_string(),
        ("Breaker", "failure_codes") => codes().join(", "),
        _ => return None,
    })
}

/// A key that no table of the file has.
const UNKNOWN: &str = "x-none";

#[test]
fn keys_of_the_mesh_file_are_on_its_page() {
    let folder = TempDir::new().expect("a folder of its own");
    let text = format!(
        "{UNKNOWN}: 1\nports: {{ {UNKNOWN}: 1 }}\ntraces: {{ {UNKNOWN}: 1 }}\nservices: {{ one: {{ {UNKNOWN}: 1 }} }}\n"
    );
    fs::write(folder.path().join("mesh.yaml"), text).expect("the folder can be written");
    let output = Command::new(binary("weft")).arg("check").current_dir(folder.path()).output().expect("weft starts");
    let told = String::from_utf8_lossy(&output.stderr);
    let page = Page::read("docs/mesh-yaml.md");
    let mut problems = Vec::new();
    for (heading, table) in
        [("Keys of the file", ""), ("ports", "ports."), ("traces", "traces."), ("Keys of a service", "services.one.")]
    {
        let rows: Vec<Row> = allowed_keys(&told, table).into_iter().map(Row::new).collect();
        problems.extend(differences(&page.name, &page.table(heading, "key"), &rows));
    }
    must_be_none(&problems);
}

/// The keys that `weft check` says are allowed where it has found an unknown one.
fn allowed_keys<'a>(told: &'a str, table: &str) -> Vec<&'a str> {
    let place = format!(": {table}{UNKNOWN}: unknown key; allowed: ");
    let (_, keys) = told.split_once(&place).unwrap_or_else(|| panic!("no `{place}` in:\n{told}"));
    let keys = keys.lines().next().unwrap_or_default();
    keys.split(" (did you mean").next().unwrap_or_default().split(", ").collect()
}

#[test]
fn annotations_and_keys_of_the_injector_are_on_their_page() {
    let page = Page::read("docs/kubernetes.md");
    let rows: Vec<Row> = annotation::SETTINGS.iter().copied().map(Row::new).collect();
    let mut problems = differences(&page.name, &page.table("Annotations", "annotation"), &rows);
    let told = Config::parse("inject.yaml", &format!("{UNKNOWN}: 1\n")).expect_err("an unknown key").to_string();
    let rows: Vec<Row> = allowed_keys(&told, "").into_iter().map(Row::new).collect();
    problems.extend(differences(&page.name, &page.table("What is added to a pod", "key"), &rows));
    must_be_none(&problems);
}

#[tokio::test]
async fn metrics_are_on_their_pages() {
    let bed = Bed::start(&probe_service(1)).await;
    let mut problems = Vec::new();
    for (page, port) in [("docs/sidecar.md", bed.ports("probe-1").metrics), ("docs/control-plane.md", bed.dashboard())]
    {
        let (status, text) = get(port, "/metrics").await;
        assert_eq!(status, 200, "{text}");
        problems.extend(differences(page, &Page::read(page).table("Metrics", "metric"), &metric_rows(&text)));
    }
    must_be_none(&problems);
}

/// The rows for a text of OpenMetrics, whose counters have `_total` at the end of each sample only.
fn metric_rows(text: &str) -> Vec<Row> {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    kinds
        .map(|(name, kind)| {
            let end = if kind == "counter" { "_total" } else { "" };
            Row::new(format!("{name}{end}")).says("type", kind)
        })
        .collect()
}
