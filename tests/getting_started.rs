//! The steps of `docs/getting-started.md`, from an empty folder to the first trace of a service of one's own.
//!
//! They use no registry: `tests/clients/install` has downloaded what the examples need.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::Value;
use tempfile::TempDir;
use weft_tests::{Bed, FREE_PORTS, binary, eventually, get, outside, root, skip};

const LIMIT: Duration = Duration::from_secs(60);
/// For `weft up` with its build: a virtual environment of Python, or a compilation in Go.
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// The comment for this key that every example has.
const DEFAULT_PORTS: &str = "# ports: { outbound: 15001, dashboard: 15080, control: 15010 }";

const CALL: [&str; 3] = ["call", "hello.v1.Greeter/Hello", r#"{"name":"Ada"}"#];

fn weft(folder: &Path, args: &[&str]) -> Output {
    Command::new(binary("weft")).args(args).current_dir(folder).output().expect("weft starts")
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Takes all steps in one language: init, check, up, a call, its trace, the other replica, the end.
async fn walk(language: &str, env: &[(&str, &str)]) {
    let folder = TempDir::new().expect("a folder of its own");
    let output = weft(folder.path(), &["init", "--example", language]);
    assert!(output.status.success(), "{}", texts(&output).1);
    let mesh = folder.path().join("mesh.yaml");
    let text = fs::read_to_string(&mesh).expect("init has written it");
    assert!(text.contains(DEFAULT_PORTS), "{text}");
    fs::write(&mesh, text.replace(DEFAULT_PORTS, FREE_PORTS)).expect("the folder can be written");
    be_patient(&folder.path().join("proto/hello/v1/hello.proto"));

    // The files that the build makes are not there yet, and `weft check` accepts that.
    let output = weft(folder.path(), &["check"]);
    assert_eq!(texts(&output).0, "mesh.yaml: good; 1 service, 1 contract\n", "{}", texts(&output).1);

    let mut bed = Bed::start_at(folder, &[], env, BUILD_LIMIT).await;
    let (answer, trace) = call(&bed);
    assert_eq!(answer["text"], "Hello, Ada!");
    sees_the_trace(&bed, &trace).await;

    let mut replicas = BTreeSet::new();
    eventually("both replicas have answered", LIMIT, async || {
        replicas.insert(call(&bed).0["answeredBy"].to_string());
        replicas.len() == 2
    })
    .await;
    assert_eq!(replicas.into_iter().collect::<Vec<_>>(), ["\"greeter-1\"", "\"greeter-2\""]);
    let log = bed.log();
    let status = bed.stop().await;
    assert!(status.success() && bed.log().contains("stopped; no process is left"), "{log}\n{}", bed.log());
}

/// Raises the timeout of calls: on a slow machine two seconds pass quickly.
fn be_patient(contract: &Path) {
    let text = fs::read_to_string(contract).expect("init has written it");
    let patient = text.replace("timeout: { seconds: 2 }", "timeout: { seconds: 60 }");
    assert_ne!(text, patient, "the contract has a timeout");
    fs::write(contract, patient).expect("the folder can be written");
}

/// The answer to the call of the page, and the id of its trace.
fn call(bed: &Bed) -> (Value, String) {
    let output = bed.weft(&CALL);
    let (answer, told) = texts(&output);
    assert!(output.status.success(), "{told}\n{}", bed.log());
    let trace = told.lines().find_map(|line| line.strip_prefix("trace: ")).expect("the trace's address");
    assert!(trace.contains(&format!(":{}/", bed.dashboard())), "{trace}");
    let id = trace.rsplit('/').next().expect("an id").to_owned();
    (serde_json::from_str(&answer).expect("an answer is JSON"), id)
}

/// The dashboard shows spans of the caller's sidecar and of the greeter's, without an error.
async fn sees_the_trace(bed: &Bed, id: &str) {
    let mut spans = Vec::new();
    eventually("both sidecars have exported spans of the call", LIMIT, async || {
        let (_, body) = get(bed.dashboard(), &format!("/api/traces/{id}")).await;
        let trace: Value = serde_json::from_str(&body).expect("JSON");
        spans = trace["spans"].as_array().cloned().unwrap_or_default();
        ["keyboard", "greeter"].iter().all(|service| spans.iter().any(|span| span["service"] == *service))
    })
    .await;
    for span in &spans {
        assert_ne!(span["status"]["code"], "error", "{span}");
    }
    let (status, page) = get(bed.dashboard(), &format!("/traces/{id}")).await;
    assert!(status == 200 && page.contains("hello.v1.Greeter/Hello"), "{status}: {page}");
}

#[tokio::test]
async fn the_example_in_python_is_called_and_traced() {
    let has_venv = || {
        let asked = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    if !has_venv() {
        return skip("python3 or its venv is not installed");
    }
    let wheels = root().join("target/clients/wheels");
    if !wheels.is_dir() {
        return skip("the packages of the example in Python are missing: run tests/clients/install python");
    }
    walk("python", &[("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", &wheels.display().to_string())]).await;
}

#[tokio::test]
async fn the_example_in_go_is_called_and_traced() {
    if outside("go").is_none() {
        return skip("go is not installed");
    }
    if !root().join("target/clients/go/example").is_file() {
        return skip("the modules of the example in Go are missing: run tests/clients/install go");
    }
    walk("go", &[("GOPROXY", "off")]).await;
}

#[test]
fn the_page_has_the_commands_of_this_test() {
    let page = fs::read_to_string(root().join("docs/getting-started.md")).expect("the page");
    let call = format!("weft {} {} '{}'", CALL[0], CALL[1], CALL[2]);
    for command in ["weft init --example python", "weft check", "weft up", &call, "weft proto export proto"] {
        assert!(page.contains(command), "{command} is not on the page");
    }
}

#[test]
fn weft_init_writes_a_mesh_file_and_never_overwrites_one() {
    let folder = TempDir::new().expect("a folder of its own");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("the folder can be written");
    write("requirements.txt", "flask\n");
    write("app.py", "");
    let (told, _) = texts(&weft(folder.path(), &["init"]));
    assert!(told.starts_with("wrote mesh.yaml\n") && told.contains("Python, by requirements.txt\n"), "{told}");
    let output = weft(folder.path(), &["check"]);
    assert!(output.status.success(), "{}", texts(&output).1);

    let before = fs::read(folder.path().join("mesh.yaml")).expect("it is there");
    let output = weft(folder.path(), &["init"]);
    assert!(!output.status.success());
    assert!(texts(&output).1.contains("mesh.yaml is there already and stays as it is"), "{output:?}");
    let output = weft(folder.path(), &["init", "--example", "go"]);
    assert!(!output.status.success());
    assert!(texts(&output).1.contains("is not empty (app.py, mesh.yaml, requirements.txt)"), "{output:?}");
    assert_eq!(fs::read(folder.path().join("mesh.yaml")).expect("it is there"), before);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 3);
}

#[test]
fn a_contract_outside_the_repository_imports_the_options_without_a_copy() {
    let folder = TempDir::new().expect("a folder of its own");
    let contract = "syntax = \"proto3\";\nimport \"weft/options/v1/options.proto\";\nimport \"google/protobuf/empty.proto\";\n\
                    service S { rpc Do(google.protobuf.Empty) returns (google.protobuf.Empty) {\n\
                    option (weft.options.v1.method) = { timeout: { seconds: 1 } }; } }\n";
    fs::write(folder.path().join("s.proto"), contract).expect("the folder can be written");
    let mesh = "services: { s: { run: sh, protos: s.proto } }\n";
    fs::write(folder.path().join("mesh.yaml"), mesh).expect("the folder can be written");
    let good = "mesh.yaml: good; 1 service, 1 contract\n";
    let output = weft(folder.path(), &["check"]);
    assert_eq!(texts(&output).0, good, "{}", texts(&output).1);
    // What `weft sidecar --descriptors` needs.
    let output = weft(folder.path(), &["check", "--descriptors", "out"]);
    assert_eq!(texts(&output).0, format!("{good}wrote out/s.binpb\n"), "{}", texts(&output).1);
    let set = fs::read(folder.path().join("out/s.binpb")).expect("it was written");
    let set = FileDescriptorSet::decode(&*set).expect("it is a descriptor set");
    let names: BTreeSet<&str> = set.file.iter().map(|file| file.name()).collect();
    assert!(names.contains("s.proto") && names.contains("weft/options/v1/options.proto"), "with imports: {names:?}");
    // Also with the copy that other tools need.
    let output = weft(folder.path(), &["proto", "export", "."]);
    assert!(output.status.success() && folder.path().join("buf.yaml").is_file(), "{output:?}");
    let output = weft(folder.path(), &["check"]);
    assert_eq!(texts(&output).0, good, "{}", texts(&output).1);
}

#[test]
fn a_command_does_its_work_though_nobody_reads_what_it_says() {
    let folder = TempDir::new().expect("a folder of its own");
    let mut command = Command::new(binary("weft"));
    command.args(["proto", "export", "."]).current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut export = command.spawn().expect("weft starts");
    // As `head` does, once it has enough.
    drop(export.stdout.take());
    let output = export.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(folder.path().join("buf.yaml").is_file(), "the last file");
}
